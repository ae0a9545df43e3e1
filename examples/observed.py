"""A device at work, and what Prometheus sees of it. See `python examples/observed.py --help`."""

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import prometheus_client

import aioblk
import aioblk.metrics

DESCRIPTION = """\
Read from a block device at random, and show its metrics to Prometheus.

examples:
  python examples/observed.py
      reads and writes a scratch file of 64 MiB, until Ctrl-C
  python examples/observed.py /dev/sdb --direct --depth 32
      only reads, of a disk, without the page cache: 32 requests at a time
  python examples/observed.py disk.img --write
      writes as well. What the file had is gone
  python examples/observed.py --rate 0 --seconds 10
      as fast as it goes, for ten seconds

and to look:
  curl -s localhost:9400/metrics | grep aioblk
      once
  prometheus.yml:  scrape_configs: [{job_name: aioblk, static_configs: [{targets: ["localhost:9400"]}]}]
      all the time; examples/grafana.json is a dashboard for it

What is shown, and what to make of it: docs/observability.md."""

SCRATCH = 64 << 20  # bytes
BLOCK = 4096  # bytes


def main() -> None:
    options = parse_options()
    try:
        with scratch_file(options.path) as path, asyncio.Runner() as runner:
            runner.run(observe(path, options))
    except OSError as error:
        sys.exit(f"observed: {error}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", nargs="?", type=Path, metavar="PATH", help="a file or disk; a scratch file")
    parser.add_argument("--port", type=int, default=9400, help="where /metrics is; 0: any (9400)")
    parser.add_argument("--address", default="127.0.0.1", help="whom it is for (127.0.0.1)")
    parser.add_argument("--direct", action="store_true", help="without the page cache")
    parser.add_argument("--write", action="store_true", help="write over what is at PATH, too")
    parser.add_argument("--depth", type=int, default=8, metavar="N", help="requests at a time (8)")
    parser.add_argument("--rate", type=float, default=1000, metavar="N", help="a second; 0: any (1000)")
    parser.add_argument("--seconds", type=float, metavar="S", help="for so long; until SIGINT or SIGTERM")
    options = parser.parse_args()
    if options.depth < 1 or not options.rate >= 0:
        parser.error("--depth must be at least 1, and --rate not negative")
    options.write = options.write or options.path is None
    return options


@contextlib.contextmanager
def scratch_file(path: Path | None) -> Generator[Path]:
    """The file that is named, or one that is gone afterwards."""
    if path is not None:
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="aioblk-", dir="/var/tmp") as file:
        os.truncate(file.fileno(), SCRATCH)
        yield Path(file.name)


async def observe(path: Path, options: argparse.Namespace) -> None:
    registry = prometheus_client.CollectorRegistry()  # without what the process counts
    collector = aioblk.metrics.DeviceCollector()
    registry.register(collector)

    async with aioblk.IoUring(path, direct=options.direct, read_only=not options.write) as dev:
        dev.measuring = True
        collector.add(dev, path.name)
        server, thread = prometheus_client.start_http_server(options.port, options.address, registry)
        print(f"http://{options.address}:{server.server_port}/metrics", flush=True)
        try:
            await work(dev, options)
        finally:
            await asyncio.to_thread(server.shutdown)
            server.server_close()
            thread.join()
        tell(dev)


async def work(dev: aioblk.Device, options: argparse.Namespace) -> None:
    """Until it is time, or somebody interrupts."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    throttled = aioblk.Throttle(dev, aioblk.ThrottleGroup(total=aioblk.Rate(operations=options.rate or None)))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(keep_busy(throttled, options.write)) for _ in range(options.depth)]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(options.seconds):
                await ended.wait()
        for task in tasks:
            task.cancel()


async def keep_busy(dev: aioblk.BlockDevice, write: bool) -> None:
    """One request after the other. What fails is counted; a device that is lost is left alone."""
    with contextlib.suppress(aioblk.DeviceLostError):
        while True:
            try:
                await one_request(dev, write)
            except aioblk.DeviceLostError:
                raise
            except OSError:
                await asyncio.sleep(0.1)


async def one_request(dev: aioblk.BlockDevice, write: bool) -> None:
    """A read; with writing, each fourth is a write, and now and then there is something else."""
    offset = random.randrange(max(dev.capacity // BLOCK, 1)) * BLOCK
    chance = random.random() if write else 1.0
    if chance < 0.01:
        await dev.flush()
    elif chance < 0.02:
        await dev.write_zeroes(offset, BLOCK)
    elif chance < 0.25:
        await dev.write(offset, random.randbytes(BLOCK))
    else:
        await dev.read(offset, BLOCK)


def tell(dev: aioblk.Device) -> None:
    for name, counted in dev.statistics().operations.items():
        if requests := counted.completed + counted.failed:
            latency = counted.latency
            print(
                f"{name:<13}{requests:>10,} requests, {counted.failed} failed; half of them within"
                f" {latency.percentile(50) * 1e6:,.0f} us, 99 % within {latency.percentile(99) * 1e6:,.0f} us"
            )


if __name__ == "__main__":
    main()
