"""What libblkio answers when it is asked to submit and reap, if not how much it has done."""

import errno

import pytest

from ..support.devices import Target
from ..support.injector import preloaded
from ..support.scripts import run_script

PASSING = [errno.EINTR, errno.EAGAIN, errno.EBUSY]

PRELUDE = """
import asyncio, sys
import aioblk
from tests.support.injector import Injector, Kind

BLOCK = 4096
injector = Injector()
error = int(sys.argv[3])
device = aioblk.open(sys.argv[1], path=sys.argv[2], num_queues=1 + (sys.argv[1] == "io_uring"))
"""


@pytest.mark.parametrize("error", PASSING)
def test_what_passes_is_tried_again(target: Target, error: int) -> None:
    run_script(
        PRELUDE
        + """
async def main():
    async with device, asyncio.timeout(30):
        await device.read(0, BLOCK)
        for times in (1, 2, 5):
            injector.arm(Kind.LIBBLKIO, 1, times, error)
            with injector:
                requests = [device.read(0, BLOCK) for _ in range(4)]
                for request in requests:
                    assert await request == bytes(BLOCK)
                assert await device.read(0, BLOCK) == bytes(BLOCK)
            assert injector.refusals == times
        assert not device.lost

asyncio.run(main())
        """,
        target.driver,
        target.path,
        str(error),
        environment=preloaded(),
    )


@pytest.mark.parametrize("error", [*PASSING, errno.EIO])
def test_without_a_loop(scratch_file: str, error: int) -> None:
    run_script(
        PRELUDE
        + """
async def main():
    async with device:
        await asyncio.to_thread(use_queue)

def use_queue():
    queue = device.blocking_queue(1).__enter__()
    queue.wait(queue.read(0, BLOCK))
    injector.arm(Kind.LIBBLKIO, 1, 3, error)
    with injector:
        request = queue.read(0, BLOCK)
        try:
            assert queue.wait(request, timeout=30) == bytes(BLOCK)
        except aioblk.DeviceLostError:
            assert error == 5
        else:
            assert error != 5
            queue.__exit__(None, None, None)
    assert injector.refusals

asyncio.run(main())
        """,
        "io_uring",
        scratch_file,
        str(error),
        environment=preloaded(),
    )
