"""What helps to test programs that use block devices: none of it needs libblkio to do anything.

::

    from aioblk.testing import Fault, Faulty, MemoryDevice

    async def test_it_survives_a_bad_sector():
        dev = Faulty(MemoryDevice(1 << 20), Fault(operations={"read"}, offset=8192, length=512,
        error=errno.EIO)) ...

``aioblk.testing.conformance`` holds devices of your own to the contract of BlockDevice, and
``aioblk.testing.plugin`` has fixtures; both need pytest, and are imported by their own names.
"""

from .faulty import Fault, Faulty, Operation
from .memory_device import MemoryDevice
from .power_loss import PowerLoss
from .recorder import Record, Recorder

__all__ = ["Fault", "Faulty", "MemoryDevice", "Operation", "PowerLoss", "Record", "Recorder"]
