"""The contract of a device: the same tests for every driver, and one table of what a driver cannot do.

On a plain host they meet io_uring on files and a loop device, and vhost-user; in the guest of ``vm/run``
NVMe, vDPA and VFIO, and prints the table. On the host that is::

    ./run test tests/contract -o junit_family=xunit1 --junitxml=build/contract.xml
    python3 vm/table.py build/contract.xml
"""
