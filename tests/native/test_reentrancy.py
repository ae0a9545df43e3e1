"""Code that runs in the middle of the request path: when memory is let go, callbacks compared, hooks called.

It may do whatever code may do. Each of these runs in an interpreter of its own, where memory that was freed
is overwritten: what the path still holds of it then crashes.
"""

from pathlib import Path

from ..support.scripts import STRICT, run_script

PRELUDE = """
import asyncio, gc, sys, aioblk

BLOCK = 4096

def over(requests):
    return all(request.done() for request in requests)
"""


def test_memory_that_is_let_go_may_give_the_device_up(scratch_file: Path) -> None:
    """Forty cancelled writes leave the backlog at once; letting the first go ends all that the queue has."""
    run_script(
        PRELUDE
        + """
class Buffer(bytearray):
    device = None
    def __del__(self):
        device, Buffer.device = Buffer.device, None
        if device:
            device.abandon("given up")

async def main():
    device = await aioblk.IoUring(sys.argv[1], num_entries=1).open()
    reads = [device.read(0, BLOCK) for _ in range(8)]
    writes = [device.write(0, Buffer(4 << 20)) for _ in range(40)]
    for request in writes:
        request.cancel()
    Buffer.device = device
    del writes, request
    await asyncio.wait(reads, timeout=10)
    assert device.lost
    assert over(reads)
    assert {type(request.exception()) for request in reads} <= {type(None), aioblk.DeviceLostError}
    assert device.statistics().in_flight == 0
    async with asyncio.timeout(10):
        await device.aclose()

asyncio.run(main())
        """,
        scratch_file,
        environment=STRICT,
    )


def test_memory_that_is_let_go_may_cancel_submit_and_collect(scratch_file: Path) -> None:
    """Each of the buffers that leave the backlog cancels others that are to leave it, and submits more."""
    run_script(
        PRELUDE
        + """
class Buffer(bytearray):
    def __del__(self):
        if others:
            others.pop().cancel()
            more.append(device.read(0, BLOCK))
        gc.collect()

async def main():
    global device, others, more
    async with aioblk.IoUring(sys.argv[1], num_entries=1) as device:
        others, more = [], []
        kept = [device.read(0, BLOCK) for _ in range(4)]
        writes = [device.write(0, Buffer(2 << 20)) for _ in range(8)]
        others += [device.write(0, bytearray(2 << 20)) for _ in range(16)]
        for request in writes:
            request.cancel()
        del writes, request
        async with asyncio.timeout(10):
            while len(more) < 8 or device.statistics().in_flight:
                await device.read(0, BLOCK)
        assert over(kept + others + more)
        assert sum(request.cancelled() for request in others) == 0

asyncio.run(main())
        """,
        scratch_file,
        environment=STRICT,
    )


def test_memory_that_is_let_go_within_a_submission_may_submit(scratch_file: Path) -> None:
    """What is read at once lets its buffer go, and the device has something else then."""
    run_script(
        PRELUDE
        + """
class Buffer(bytearray):
    def __del__(self):
        more.append(device.flush())

async def main():
    global device, more
    more = []
    async with aioblk.IoUring(sys.argv[1]) as device, asyncio.timeout(10):
        await device.write(0, bytes(BLOCK))
        for number in range(4):
            read = device.readv(0, (Buffer(BLOCK) for _ in range(1)))
            await read
            await asyncio.wait(more)
            assert len(more) == number + 1
            assert over(more)
        assert device.statistics().in_flight == 0

asyncio.run(main())
        """,
        scratch_file,
        environment=STRICT,
    )


def test_a_callback_that_is_removed_may_add_another(scratch_file: Path) -> None:
    run_script(
        PRELUDE
        + """
class Callback:
    def __call__(self, request):
        raise AssertionError("it was removed")
    def __eq__(self, other):
        return isinstance(other, str)
    __hash__ = None
    def __del__(self):
        request.add_done_callback(called.append)

async def main():
    global request, called
    async with aioblk.IoUring(sys.argv[1]) as device:
        called = []
        first = device.read(0, BLOCK)  # what comes after it is not done at once
        request = device.read(0, BLOCK)
        assert not request.done()
        request.add_done_callback(Callback())
        assert request.remove_done_callback("it") == 1
        await request
        await asyncio.sleep(0)
        assert called == [request]

asyncio.run(main())
        """,
        scratch_file,
        environment=STRICT,
    )


def test_a_suspended_queue_may_be_given_up_by_who_is_woken(scratch_file: Path) -> None:
    """Suspending takes what the device has done. A task that it wakes gives the device up, and what is
    being prepared meanwhile is refused."""
    run_script(
        PRELUDE
        + """
async def main():
    device = await aioblk.IoUring(sys.argv[1]).open()
    queue = device.queue()
    refused = []

    async def give_up():
        first = device.read(0, BLOCK)
        await device.read(0, BLOCK)  # which is not done at once, as the first is
        device.abandon("given up")

    def pairs():
        queue._suspend()
        assert device.lost
        yield (0, BLOCK)

    def submit():
        try:
            device.read_many(pairs())
        except aioblk.DeviceLostError as error:
            refused.append(error)

    task = asyncio.create_task(give_up())
    asyncio.get_running_loop().call_soon(submit)
    await task
    async with asyncio.timeout(10):
        await device.aclose()
    assert refused

asyncio.run(main())
        """,
        scratch_file,
        environment=STRICT,
    )


def test_a_queue_is_not_found_before_it_is_finished(scratch_file: Path) -> None:
    """Making one asks the loop for its methods, in the middle."""
    run_script(
        PRELUDE
        + """
from aioblk._native._core import QueueCore

def queues():
    return [found for found in gc.get_objects() if isinstance(found, QueueCore)]

class Loop(asyncio.SelectorEventLoop):
    watched = False

    @property
    def call_soon(self):
        self.look()
        return super().call_soon

    def get_debug(self):
        self.look()
        return super().get_debug()

    def look(self):
        if self.watched:
            before.append(len(queues()))
            for found in queues():
                found.flush()

async def main():
    loop = asyncio.get_running_loop()
    async with aioblk.IoUring(sys.argv[1], num_queues=2) as device:
        loop.watched = True
        second = device.queue(1)
        loop.watched = False
        assert before[:2] == [1, 1], before  # for call_soon, and for a future of its own
        assert len(queues()) == 2
        assert await second.read(0, BLOCK) == bytes(BLOCK)

before = []
with asyncio.Runner(loop_factory=Loop) as runner:
    runner.run(main())
        """,
        scratch_file,
        environment=STRICT,
    )


def test_an_order_that_is_collected_with_its_queue_is_given_whole(scratch_file: Path) -> None:
    """Nobody refers to the two, and the loop does not run any more: the main thread gets it instead."""
    run_script(
        PRELUDE
        + """
import threading
from aioblk._sync.threads import NAME, dismiss

def leave_both():
    def interrupt(loop, context):
        raise order

    async def work():
        async with aioblk.IoUring(sys.argv[1]) as device:
            order.queue = device.queue()._compiled
            order.queue.suspend()
            request = device.read(0, BLOCK)
            device.abandon("given up")
            await asyncio.wait([request])
            return request

    order = KeyboardInterrupt("arrived")
    loop = asyncio.new_event_loop()
    request = loop.run_until_complete(work())
    loop.set_exception_handler(interrupt)
    loop.close()
    dismiss()
    for thread in threading.enumerate():  # whose frames may still have what it closed
        if thread.name == NAME:
            thread.join()
    gc.collect()  # what is old is emptied first
    del request
    order.__traceback__ = None

leave_both()
try:
    gc.collect()
    for _ in range(1000):
        pass
except KeyboardInterrupt as order:
    assert order.args == ("arrived",), order.args
else:
    sys.exit("it was lost")
        """,
        scratch_file,
        environment=STRICT,
    )
