"""Memory that is refused: each allocation on the way of a request fails once, from the first to the last.

Each time somebody is told (MemoryError, or an error of the device), nothing stays in flight, callbacks are
called once and in order, regions and queues come to their ends, and what the request used is let go of.
"""

from aioblk._native import _core

from ..support.devices import Target
from ..support.injector import preloaded
from ..support.scripts import run_module, run_script

SCRIPT = """
import asyncio, faulthandler, gc, select, sys, weakref
import aioblk
from tests.support.injector import Injector, Kind

faulthandler.dump_traceback_later(50, exit=True)
BLOCK, ALLOCATIONS, PATIENCE = 4096, 24, 10
buffers = []
injector = Injector()

class Buffer(bytearray):
    pass

def buffer(length):
    made = Buffer(length)
    buffers.append(weakref.ref(made))
    return made

def calls(device):
    end = device.capacity
    return {
        "read": lambda: (device.read, 0, BLOCK),
        "long read": lambda: (device.read, 0, 3 << 20),
        "read_into": lambda: (device.read_into, 0, buffer(BLOCK)),
        "readv": lambda: (device.readv, 0, [buffer(BLOCK), buffer(2 * BLOCK)]),
        "write": lambda: (device.write, 0, buffer(BLOCK)),
        "write_zeroes": lambda: (device.write_zeroes, 0, 1 << 20),
        "discard": lambda: (device.discard, 0, 1 << 20),
        "flush": lambda: (device.flush,),
        "failure": lambda: (device.read, end, BLOCK),
        "read_many": lambda: (device.read_many, [(0, BLOCK), (BLOCK, 512), (end, BLOCK)]),
        "write_many": lambda: (device.write_many, [(0, buffer(BLOCK)), (2 * BLOCK, buffer(512))]),
    }

def failing(n, call, *arguments):
    # Call while the nth allocation fails. It may be raised, or an error of the device.
    injector.arm(Kind.PYTHON, n + 1)
    try:
        return injector.call(call, *arguments)
    except (MemoryError, aioblk.BlkioError):
        return None

def check(request):
    try:
        request.result()
    except (MemoryError, aioblk.BlkioError):
        pass

async def settled(queue, request):
    async with asyncio.timeout(PATIENCE):
        await asyncio.wait([request])
        await queue.drain()
    check(request)

async def submit(queue, call):
    for n in range(ALLOCATIONS):
        request = failing(n, *call())
        if request is not None:
            await settled(queue, request)
        await settled(queue, queue.read(0, BLOCK))

def drive(n, queue, request):
    for _ in range(20):
        if request.done():
            return
        failing(n, queue._compiled.flush)
        if select.select([queue._fd], [], [], 0.05)[0]:
            failing(n, queue._compiled.on_event)

async def complete(queue, call):
    for n in range(ALLOCATIONS):
        first = queue.read(0, BLOCK)  # what comes after it is not done at once
        method, *arguments = call()
        request = method(*arguments)
        called, event = [], asyncio.Event()
        for k in range(3):
            request.add_done_callback(lambda _, k=k: called.append(k))
        request.add_done_callback(lambda _: event.set())
        drive(n, queue, request)
        async with asyncio.timeout(PATIENCE):
            await event.wait()
        assert called == [0, 1, 2], (n, called)
        failing(n, request.exception)
        await settled(queue, request)
        check(first)

async def leave(device, queue):
    for n in range(ALLOCATIONS):
        region = await device.allocate(BLOCK).__aenter__()
        request = device.read_into(0, region)
        leaving, draining = asyncio.create_task(region.aclose()), asyncio.create_task(queue.drain())
        await asyncio.sleep(0)
        drive(n, queue, request)
        async with asyncio.timeout(PATIENCE):
            await leaving
            await draining

async def give_up(queue):
    for n in range(ALLOCATIONS):
        first = queue.read(0, BLOCK)
        request = queue.write_zeroes(0, BLOCK)
        queue._compiled.flush()
        failing(n, request.cancel)
        later = failing(n, queue.write, 0, buffer(BLOCK))
        drive(n, queue, request)
        async with asyncio.timeout(PATIENCE):
            await queue.drain()
        for each in (first, request, later):
            if each is not None:
                assert each.done(), (n, each)
                try:
                    check(each)
                except asyncio.CancelledError:
                    pass

async def main():
    async with aioblk.open(sys.argv[1], path=sys.argv[2], bounce_pool_size=1 << 18) as device:
        queue = device.queue()
        await device.read(0, 1 << 18)
        for name, call in calls(device).items():
            print(name, flush=True)
            await submit(queue, call)
            await complete(queue, call)
        print("a region", flush=True)
        await give_up(queue)
        await leave(device, queue)
        assert device.statistics().in_flight == 0
    gc.collect()
    left = sum(reference() is not None for reference in buffers)
    assert not left, f"{left} of {len(buffers)} buffers left"

asyncio.run(main())
"""


def test_each_allocation_on_the_way_of_a_request_may_fail(target: Target) -> None:
    run_script(SCRIPT, target.driver, target.path, environment=preloaded())


def test_each_allocation_of_whatever_else_the_core_is_asked_may_fail(target: Target) -> None:
    run_module("tests.support.refused_memory", target.driver, target.path, environment=preloaded())


def test_each_allocation_of_importing_the_core_may_fail() -> None:
    run_module("tests.support.refused_import", _core.__file__, environment=preloaded())
