"""The layers that an address can name: their options, and how each is put over a device.

A layer, and what it needs, is imported when an address names it: most name none.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import IO, NamedTuple, Protocol, TypeAlias, cast

from .._sync.blocking import run_blocking
from ..drivers import IoUring
from ..errors import OptionError
from ..layers.block_device import BlockDevice
from ._values import Option

__all__ = ["LAYERS", "Layering", "PutOver"]

Options: TypeAlias = Mapping[str, object]
Make: TypeAlias = Callable[[str], AbstractAsyncContextManager[BlockDevice]]
"""Makes a device of an address, to be opened by entering it."""


class PutOver(Protocol):
    """Puts a layer over an open device; *undo* gets what is to be closed with it."""

    def __call__(self, base: BlockDevice, undo: AsyncExitStack) -> Awaitable[BlockDevice]: ...


class Layering(NamedTuple):
    options: Mapping[str, Option]
    prepare: Callable[[Options, Make], PutOver]
    """Refuses options that contradict each other, before anything is opened."""
    base: Mapping[str, object] = {}
    """Properties of the device below."""


# --- slice --------------------------------------------------------------------------------------------------


def _slice(options: Options, _make: Make) -> PutOver:
    from ..layers.slice import Slice

    if "partition" not in options:
        offset, length = _bytes(options, "offset", 0), _bytes(options, "length", None)

        async def cut(base: BlockDevice, undo: AsyncExitStack) -> BlockDevice:
            return Slice(base, cast(int, offset), length)

        return cut
    if "offset" in options or "length" in options:
        raise _wrong(
            "slice", "partition excludes offset and length; put one slice over the other for a part of it"
        )
    from ..layers.partitions import partitions

    number = _bytes(options, "partition", None)

    async def find(base: BlockDevice, undo: AsyncExitStack) -> BlockDevice:
        found = {partition.number: partition for partition in await partitions(base)}
        if number not in found:
            there = f"there are {', '.join(map(str, found))}" if found else "there is no partition table"
            raise _wrong("slice", f"no partition {number}; {there}")
        return found[number].slice(base)

    return find


def _bytes(options: Options, name: str, default: int | None) -> int | None:
    value = options.get(name, default)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise _wrong("slice", f"{name} must be a number from 0 on, not {value!r}")
    return value


# --- throttle -----------------------------------------------------------------------------------------------

_LIMITED = {"": "total", "read_": "reads", "write_": "writes"}
_LIMITS: Mapping[str, Option] = {
    "bytes": Option("rate"),
    "operations": Option("operations"),
    "burst_bytes": Option("number"),
    "burst_operations": Option("operations"),
}


def _throttle(options: Options, _make: Make) -> PutOver:
    from ..layers.throttle import Rate, Throttle, ThrottleGroup

    rates = {
        name: Rate(**{limit: options[prefix + limit] for limit in _LIMITS if prefix + limit in options})  # type: ignore[arg-type]
        for prefix, name in _LIMITED.items()
    }
    if not options:
        raise _wrong(
            "throttle", "a limit is needed, as in throttle,bytes=100M/s or throttle,read-operations=500"
        )

    async def put(base: BlockDevice, undo: AsyncExitStack) -> BlockDevice:
        return Throttle(base, ThrottleGroup(**rates))

    return put


# --- readonly -----------------------------------------------------------------------------------------------


def _readonly(_options: Options, _make: Make) -> PutOver:
    async def put(base: BlockDevice, undo: AsyncExitStack) -> BlockDevice:
        return base  # it was opened so

    return put


# --- cow ----------------------------------------------------------------------------------------------------


def _cow(options: Options, make: Make) -> PutOver:
    if options.get("read_only"):  # there will be no changes
        return _readonly({}, make)
    from ..layers.copy_on_write import CopyOnWrite

    overlay = options.get("overlay")
    changes = _Temporary() if overlay is None else make(cast(str, overlay))

    async def put(base: BlockDevice, undo: AsyncExitStack) -> BlockDevice:
        return CopyOnWrite(base, await undo.enter_async_context(changes))

    return put


class _Temporary(AbstractAsyncContextManager[BlockDevice]):
    """A file that has no name, and is gone when it is closed."""

    def __init__(self) -> None:
        self._undo = AsyncExitStack()

    async def __aenter__(self) -> BlockDevice:
        with await run_blocking(_temporary_file, undo=_close) as file:
            return await self._undo.enter_async_context(IoUring(fd=file.fileno()))

    async def __aexit__(self, *_error: object) -> None:
        await self._undo.aclose()


def _temporary_file() -> IO[bytes]:
    import tempfile

    return tempfile.TemporaryFile(buffering=0)  # unlike NamedTemporaryFile, without a name where it can be


def _close(file: IO[bytes]) -> None:
    file.close()


# ------------------------------------------------------------------------------------------------------------


def _wrong(layer: str, rule: str) -> OptionError:
    return OptionError(rule, driver=layer, operation="open")


LAYERS: Mapping[str, Layering] = {
    "slice": Layering(
        {"offset": Option("number"), "length": Option("number"), "partition": Option("number")}, _slice
    ),
    "throttle": Layering(
        {prefix + limit: option for prefix in _LIMITED for limit, option in _LIMITS.items()}, _throttle
    ),
    "readonly": Layering({}, _readonly, base={"read_only": True}),
    "cow": Layering({"overlay": Option("text"), "read_only": Option("flag")}, _cow, base={"read_only": True}),
}
"""By their names."""
