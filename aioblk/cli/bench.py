"""``aioblk bench``: how fast a device is."""

import importlib
import json
import math
import os
import re
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import click

from .._libblkio.properties import IO_URING, VIRTIO
from ..errors import BlkioError
from . import system
from ._load.plan import KINDS, Plan
from .output import say
from .parameters import Opener, Whole, device_argument, duration, rate, size
from .running import LOOPS, LoopName, fail, run
from .text import of_size

__all__ = ["command"]

SEARCH_SECONDS, SEARCH_DEPTH = 2.0, 256
"""Of each depth that is tried, and the highest, where the caller does not say."""


@click.command("bench")
@device_argument()
@click.option(
    "--rw",
    type=click.Choice(list(KINDS)),
    default="randread",
    show_default=True,
    help="What is done, and whether in random order. All but read and randread change what the device holds.",
)
@click.option(
    "--mix", type=click.FloatRange(0, 100), help="Percent of reads in rw and randrw.  [default: 50]"
)
@click.option("--bs", type=size, default="4K", show_default=True, help="Size of each request.")
@click.option("--iodepth", type=Whole(1, 65536), help="Requests in flight, of each job.  [default: 1]")
@click.option(
    "--jobs",
    type=Whole(1, 256),
    default=1,
    show_default=True,
    help="Processes, or threads where one process can open the device: see above.",
)
@click.option("--runtime", type=duration, help="How long is measured.  [default: 10s]")
@click.option("--warmup", type=duration, default="1s", show_default=True, help="For how long it is not.")
@click.option("--size", "length", type=size, help="Of the range that is used.  [default: all]")
@click.option("--offset", type=size, default="0", show_default=True, help="Where that begins.")
@click.option("--rate", type=rate, help="Bytes a second at most, of all jobs: 100M/s.")
@click.option("--iops", type=click.FloatRange(1), help="Requests a second at most, of all jobs.")
@click.option(
    "--latency-target", type=duration, help="Look for the highest depth whose p99 is not above it: 2ms."
)
@click.option(
    "--latency-percentile",
    type=click.FloatRange(0, 100),
    default=99,
    show_default=True,
    help="What the target is for, in place of p99.",
)
@click.option(
    "--verify", is_flag=True, help="Write blocks that say where and when they were written; check them."
)
@click.option("--fua", is_flag=True, help="Each write is on stable storage when it is done.")
@click.option("--fsync", type=Whole(1), help="Flush after so many writes of a job.")
@click.option("--direct", is_flag=True, help="Past the page cache, as ?direct=on in the address.")
@click.option(
    "--registered/--bounce",
    default=True,
    show_default=True,
    help="Memory that the device reaches by itself, or memory that is copied where it does not.",
)
@click.option(
    "--loop", type=click.Choice(LOOPS), default="auto", show_default=True, help="auto: uvloop if it is there."
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of the random order, and of what is written."
)
@click.option("--overwrite", is_flag=True, help="Write to the device whatever it holds. Not if it is in use.")
@click.option("--even-if-in-use", is_flag=True, help="And even then: whoever uses it loses data, or crashes.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, by fio's names.")
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw it: FILE.svg, .png or .pdf."
)
@click.option("--progress/--no-progress", default=True, show_default=True, help="Show on stderr how it goes.")
def command(device: Opener, **options: Any) -> int:
    """Measure how fast DEVICE does requests, and how long they take.

    \b
        aioblk bench disk.img                                 random reads, one at a time
        aioblk bench --iodepth 32 --jobs 2 /dev/nvme0n1
        aioblk bench --rw randrw --mix 70 --iodepth 8 --direct disk.img
        aioblk bench --rw write --bs 1M --fsync 16 --overwrite /dev/sdb
        aioblk bench --latency-target 500us /dev/sdb          how deep may I go?
        aioblk bench --plot sdb.svg --runtime 1m /dev/sdb
        aioblk bench --rw randwrite --verify --iodepth 32 virtio-blk-vhost-user:blk.sock

    Each job has an event loop of its own, and --iodepth tasks in it that each await one request after
    another: what is measured is what a program has that does the same with aioblk. A job is a process.
    Where only one process can have the device open (vhost-user, vDPA, VFIO), jobs are threads with a queue
    each, which share Python's lock. Latency is counted from handing a request to the device until it is seen
    to be done, in a histogram that is right to 3 %; waiting for --rate is not in it.

    Nothing is written to a device that is mounted, swapped to, locked, or otherwise in use, nor over anything
    that is recognised, or not empty, unless you say so.
    """
    return run(_bench(device, **options))


async def _bench(device: Opener, **options: Any) -> int:
    from ._load.display import Display, show_result, show_tried
    from ._load.fleet import Result, measure
    from ._load.report import as_json
    from ._load.search import find_depth

    target: float | None = options["latency_target"]
    percent: float = options["latency_percentile"]
    if options["plot"] is not None:
        _check_plot(options["plot"])
    async with AsyncExitStack() as stack:
        plan = await _plan(stack, device, **options)
        tried: list[Result] = []
        so_far = Result(plan)

        def told(result: Result) -> None:
            nonlocal so_far
            so_far = result
            display.show(result)

        def show(result: Result, judged: Sequence[tuple[Result, bool]] = ()) -> None:
            if options["as_json"]:
                click.echo(json.dumps(as_json(result, judged), indent=2))
            else:
                show_result(result)

        best: Result | None = None
        try:
            with Display(wanted=options["progress"]) as display:
                if target is None:
                    best = await measure(plan, told)
                else:
                    best = await find_depth(plan, target, percent, told, tried)
        finally:
            if best is None and target is None and so_far.operations:  # it has come to an early end
                show(so_far)
    judged = [(each, each.latency.percentile(percent) <= (target or 0)) for each in tried]
    shown = best if best is not None else tried[-1]
    if judged and not options["as_json"]:
        show_tried(judged, percent)
    if best is not None or options["as_json"]:
        show(shown, judged)
    if options["plot"] is not None:
        from ._load.plot import plot

        plot(shown, options["plot"])
    if best is None:
        return fail(f"{device}: p{percent:g} is above the target even with one request at a time")
    for fault in best.verified.faults:
        fail(f"{device}: {fault}")
    return 1 if best.verified.wrong else 0


def _check_plot(path: Path) -> None:
    """Before an hour of measuring."""
    importlib.import_module("matplotlib")  # is it there?
    if path.suffix not in (".svg", ".png", ".pdf"):
        raise click.BadParameter(f"{path} ends in none of .svg, .png and .pdf", param_hint="'--plot'")
    is_there = path.exists()
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise click.BadParameter(
            f"{path} cannot be written: {error.strerror}", param_hint="'--plot'"
        ) from None
    if not is_there:
        path.unlink()


async def _plan(stack: AsyncExitStack, device: Opener, **options: Any) -> Plan:
    """What is to be measured, once it is known that the device can do it and nobody minds."""
    kind, random = KINDS[options["rw"]]
    target = options["latency_target"]
    driver = device.innermost.name
    properties: dict[str, object] = {}
    if options["direct"]:
        if driver != IO_URING:
            raise click.UsageError(f"--direct is for files and block devices on io_uring, not for {driver}")
        properties["direct"] = True
    if kind == "read" and driver == IO_URING:
        properties["read_only"] = True
    _check_combinations(kind, **options)
    opened = device.locked(**properties) if kind != "read" else device(**properties)
    held = await stack.enter_async_context(AsyncExitStack())
    dev: Any = await held.enter_async_context(opened)
    bs, offset = options["bs"], options["offset"]
    length = options["length"] if options["length"] is not None else dev.capacity - offset
    plan = Plan(
        address=device.address,
        properties=properties,
        kind=kind,
        random=random,
        reads=50 if options["mix"] is None else options["mix"],
        block_size=bs,
        depth=options["iodepth"] or (1 if target is None else SEARCH_DEPTH),
        jobs=options["jobs"],
        threads=options["jobs"] > 1 and driver in VIRTIO,
        offset=offset,
        size=length // bs * bs if bs else 0,
        seconds=options["runtime"] or (10.0 if target is None else SEARCH_SECONDS),
        warmup=options["warmup"],
        rate=options["rate"],
        iops=options["iops"],
        fua=options["fua"],
        fsync=options["fsync"] or 0,
        registered=options["registered"],
        loop=_loop(options["loop"]),
        seed=options["seed"],
        verify=options["verify"],
    )
    _check_memory(plan)
    _check_range(plan, dev.capacity, dev.limits.request_alignment, length)
    if plan.threads and plan.jobs > (queues := dev.properties["max-queues"]):
        raise click.UsageError(f"--jobs {plan.jobs} wants as many queues, and the device has {queues}")
    if kind == "read":
        _note_holes(device)
    if plan.writes:
        if dev.read_only:
            raise BlkioError(f"{device} is read-only", errno=30, operation="bench")
        await _check_obstacles(device, dev, plan, **options)
    if driver != IO_URING or not plan.writes:
        await held.aclose()  # otherwise it goes on being locked meanwhile
    return plan


def _note_holes(device: Opener) -> None:
    """A file that was made a moment ago is fast beyond belief."""
    path = device.path
    if path is None or not os.path.isfile(path):
        return
    status = os.stat(path)
    if status.st_blocks * 512 < status.st_size // 2:
        say(f"aioblk: note: {path} consists mostly of holes, which are read from no disk")


def _loop(name: str) -> LoopName:
    return next(each for each in LOOPS if each == name)


def _check_combinations(kind: str, **options: Any) -> None:
    if options["runtime"] is not None and not options["runtime"] > 0:
        raise click.UsageError("--runtime 0: there must be some time to measure")
    if options["bs"] < 1:
        raise click.UsageError("--bs 0: requests of nothing measure nothing")
    if options["latency_target"] == 0:
        raise click.UsageError("--latency-target 0: nothing is as fast as that")
    for name in ("mix", "iops", "latency_percentile"):
        if options[name] is not None and not math.isfinite(options[name]):
            raise click.UsageError(f"--{name.replace('_', '-')} must be a number, not {options[name]}")
    if options["rate"] is not None and not options["rate"] > 0:
        raise click.UsageError("--rate 0: nothing would be done")
    if options["mix"] is not None and kind != "rw":
        raise click.UsageError("--mix goes with rw and randrw only")
    if (options["fua"] or options["fsync"]) and kind in ("read", "trim"):
        raise click.UsageError("--fua and --fsync go with what writes only: write, randwrite, rw and randrw")
    if options["verify"] and kind not in ("write", "rw"):
        raise click.UsageError("--verify goes with what writes only: write, randwrite, rw and randrw")
    if options["verify"] and (options["bs"] % 512 or options["fsync"]):
        raise click.UsageError("--verify needs a --bs that is a multiple of 512, and goes without --fsync")


def _check_range(plan: Plan, capacity: int, alignment: int, length: int) -> None:
    if plan.block_size % alignment:
        raise click.UsageError(
            f"--bs {plan.block_size} is not a multiple of {alignment}, as the device wants"
        )
    if plan.offset % alignment:
        raise click.UsageError(
            f"--offset {plan.offset} is not a multiple of {alignment}, as the device wants"
        )
    if length < plan.block_size:
        raise click.UsageError(
            f"--bs {of_size(plan.block_size)} is more than the range has: {of_size(max(length, 0))} of the"
            f" device's {of_size(capacity)}, from offset {plan.offset} on"
        )
    if plan.offset + length > capacity:
        raise click.UsageError(f"the range ends at {plan.offset + length}, the device at {capacity}")
    if plan.verify and plan.blocks < plan.jobs * plan.depth:
        raise click.UsageError(
            f"--verify wants a block for each request in flight: {plan.jobs * plan.depth}, of which the range"
            f" has {plan.blocks}"
        )


def _check_memory(plan: Plan) -> None:
    """A machine that begins to swap, or to kill, measures nothing."""
    wanted = plan.jobs * plan.depth * plan.block_size
    found = re.search(r"^MemAvailable:\s+(\d+)", system.read("/proc/meminfo") or "", re.MULTILINE)
    if found is not None and wanted > (available := int(found[1]) << 10) // 2:
        raise click.UsageError(
            f"the requests in flight want {of_size(wanted)} of memory, and {of_size(available)} is available:"
            " less of --iodepth, --bs or --jobs"
        )


async def _check_obstacles(device: Opener, dev: Any, plan: Plan, **options: Any) -> None:
    from .overwriting import find_obstacles

    obstacles = await find_obstacles(device, dev, plan.offset)
    used = [each for each in obstacles if each.startswith("is ")]
    if used and not options["even_if_in_use"]:
        why, remedy = used, "--even-if-in-use writes all the same"
    elif len(obstacles) > len(used) and not options["overwrite"]:
        why, remedy = [each for each in obstacles if each not in used], "--overwrite writes over it"
    else:
        return
    raise click.ClickException(f"{device} {'; it '.join(why)}. Nothing was written; {remedy}")
