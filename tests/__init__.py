"""Tests beside what they test: a folder for each wing of aioblk/, by its name without the underscore.

What a module at the root does is in a file at the root (test_errors.py is of errors.py). A test of several
wings goes where its main object lies. The others::

    contract/   what every driver keeps: the same tests for each, and a table of what it cannot do
    faults/     every descriptor, thread, piece of memory and call of libblkio, failing in turn
    reliability/ what is around a program, failing with real parts: ./run faults
    simulation/ devices that are simulated, in every order of events; a module runs in a process of its own
    hostile/    a vhost-user backend that breaks every rule, by seed, and what comes of it
    interop/    what others have written and is run as it is: NBD clients, anyio, trio, numpy, patched loops
    examples/   the examples that are services
    house/      the house as a whole: its plan, documentation, words, benchmarks, and the tests' own tools
    site/       what a made site of the documentation keeps, for ./run docs
    ceph/       beyond this machine: a Ceph cluster, another network; what ./run ceph-test brings up
    vm/         what only the guest of vm/run has devices for
    campaigns/  long searches, by the room that they attack: memory_machines.py, native_models.py
    support/    real devices and servers for all of them, and the checks that nothing is left behind
"""
