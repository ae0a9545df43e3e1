"""An append-only log of records on a block device. See `python examples/log_store.py --help`.

An appended record is durable: it is there after a crash. Many appenders that wait together share one write to
the medium (group commit), so the more there are, the cheaper each one is.

On the device, the first two blocks say that this is a log, and how far it goes at least. Groups of records
follow, each beginning at a block of its own: a block that holds acknowledged records is never changed again,
so that no crash can tear them. The records' checksums make a chain which recovery follows from the first
block to the last whole record; what a crash left behind it, however whole it looks, does not continue the
chain. Damage is not taken for that: where it can be known that records have been behind it, the log is
refused, with what was found, and nothing is written. The rooms of all that are in `_log/`.

Opening a log therefore reads all of it, from its start on: it takes as long as that. A log that is opened
often, or is large, would keep checkpoints from where recovery could begin.
"""

import argparse
import asyncio
import os
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress

from _log.errors import LogDamagedError, LogError, LogFullError, LogInUseError, OccupiedError
from _log.layout import BLOCK, GROUP, LARGEST_RECORD, MARK_EVERY
from _log.recovery import Record
from _log.store import LogStore

import aioblk

__all__ = [
    "BLOCK",
    "GROUP",
    "LARGEST_RECORD",
    "MARK_EVERY",
    "LogDamagedError",
    "LogError",
    "LogFullError",
    "LogInUseError",
    "LogStore",
    "OccupiedError",
    "Record",
]

DESCRIPTION = """\
Keep an append-only log of records on a block device.

  truncate --size 1G log.img
  python examples/log_store.py format log.img
  journalctl | python examples/log_store.py append log.img
  python examples/log_store.py read log.img --from 100
  python examples/log_store.py info log.img

append makes a record of every line of its input and prints the record's number when it is durable; kill it
whenever you like. A line that is too long is left out, with a word about it, and the status is 1 in the end.
read prints the records, up to the first that is damaged; read and info change nothing. DEVICE is
an address, which says what to open: io_uring:/dev/sdb?direct=on, or options after it, as PROPERTY=VALUE.
"""

MOST_APPENDERS = 1000
LINES_AHEAD = 1000


class Lines:
    """The lines of the standard input, read by a thread that nobody waits for in the end."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[bytes | int | OSError | None] = asyncio.Queue()
        self._room = threading.Semaphore(LINES_AHEAD)
        threading.Thread(target=self._read, daemon=True).start()

    async def __aiter__(self) -> AsyncGenerator[bytes | int | OSError]:
        """Lines, the lengths of those that are too long for a record, and why there are no more."""
        while (line := await self._lines.get()) is not None:
            self._room.release()
            yield line

    def end(self) -> None:
        """No more, whatever there may be."""
        self._lines.put_nowait(None)

    def _read(self) -> None:
        # A file of its own: the interpreter waits for whoever reads from sys.stdin.
        with suppress(RuntimeError), open(0, "rb", closefd=False) as file:  # the loop is closed
            try:
                for line in split(file.readline):
                    self._room.acquire()
                    self._loop.call_soon_threadsafe(self._lines.put_nowait, line)
            except OSError as error:
                error = OSError(error.errno, f"the standard input cannot be read: {error.strerror}")
                self._loop.call_soon_threadsafe(self._lines.put_nowait, error)
            self._loop.call_soon_threadsafe(self.end)


def split(read_line: Callable[[int], bytes]) -> Iterator[bytes | int]:
    """Lines, and of those that are too long their lengths, without ever having more than a record."""
    while line := read_line(LARGEST_RECORD + 1):
        length = len(line.removesuffix(b"\n"))
        if length <= LARGEST_RECORD:
            yield line.removesuffix(b"\n")
            continue
        while line and not line.endswith(b"\n"):
            line = read_line(LARGEST_RECORD + 1)
            length += len(line.removesuffix(b"\n"))
        yield length


async def append_lines(log: LogStore) -> int:
    """A record for each line of the standard input; the exit status."""
    lines = Lines()
    places = asyncio.Semaphore(MOST_APPENDERS)
    failures: list[Exception] = []
    status = 0

    async def append(line: bytes) -> None:
        try:
            number = await log.append(line)
            put_out(b"%d\n" % number)
        except (LogError, OSError) as error:
            failures.append(error)
            lines.end()
        finally:
            places.release()

    async with asyncio.TaskGroup() as appenders:
        number = 0
        async for line in lines:
            number += 1
            if isinstance(line, OSError):
                failures.append(line)
                continue
            if isinstance(line, int):
                complain(
                    f"line {number} is left out: a record has at most {LARGEST_RECORD} bytes, not {line}"
                )
                status = 1
                continue
            await places.acquire()
            appenders.create_task(append(line))
    if failures:
        raise failures[0]
    return status


async def print_records(log: LogStore, first: int) -> None:
    try:
        async for record in log.records(first):
            put_out(record.data + b"\n", flush=False)
    finally:
        put_out()


async def run(device: aioblk.Openable, options: argparse.Namespace) -> int:
    async with device:
        if options.command == "format":
            await LogStore.format(device, force=options.force)
            return 0
        async with LogStore(device, read_only=options.command != "append") as log:
            for note in log.notes:
                complain(f"{options.device}: {note}")
            match options.command:
                case "append":
                    return await append_lines(log)
                case "read":
                    await print_records(log, options.first)
                case _:
                    put_out(b"%d records in %d of %d bytes\n" % (log.last, log.used, device.capacity))
                    if log.damage is not None:
                        raise log.damage
            return 0


def put_out(data: bytes = b"", *, flush: bool = True) -> None:
    try:
        sys.stdout.buffer.write(data)
        if flush:
            sys.stdout.flush()
    except OSError as error:
        with open(os.devnull, "wb") as nowhere:  # or the interpreter tries again in the end
            os.dup2(nowhere.fileno(), 1)
        raise OSError(error.errno, f"the standard output cannot be written: {error.strerror}") from None


def hold_standard_descriptors() -> None:
    """What is closed of them becomes /dev/null, not a device that is read lines from and sent messages."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdin = sys.stdin or open(0)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w")  # noqa: SIM115


def complain(what: object) -> None:
    print(f"log_store: {what}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["format", "append", "read", "info"])
    parser.add_argument(
        "address",
        metavar="DEVICE",
        help="an address, as disk.img, io_uring:/dev/sdb?direct=on, or a driver's name",
    )
    parser.add_argument("properties", nargs="*", metavar="PROPERTY=VALUE", help="path=log.img direct=true")
    parser.add_argument(
        "--from", dest="first", type=int, default=1, metavar="NUMBER", help="first record to read"
    )
    parser.add_argument("--force", action="store_true", help="format over whatever is there, without asking")
    options = parser.parse_args()
    hold_standard_descriptors()
    status = 1
    try:
        properties = aioblk.parse_properties(options.address, options.properties)
        options.device = properties.get("path", options.address)
        try:
            status = asyncio.run(run(aioblk.open(str(options.address), **properties), options))
        except OccupiedError as error:
            if not may_overwrite(options.device, error):
                raise
            options.force = True
            status = asyncio.run(run(aioblk.open(str(options.address), **properties), options))
    except LogError as error:
        complain(f"{options.device}: {error}")
    except OSError as error:
        complain(error)
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def may_overwrite(device: object, error: OccupiedError) -> bool:
    """Ask whoever sits there; where nobody does, --force says so."""
    if not sys.stdin.isatty():
        raise OccupiedError(f"{error}; --force formats all the same")
    try:
        answer = input(f"log_store: {device}: {error}. Format all the same? [y/N] ")
    except EOFError:
        return False
    return answer.strip().lower() in ("y", "yes")


if __name__ == "__main__":
    main()
