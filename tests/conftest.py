"""Every async test runs on each event loop; every test is given real devices and leaves nothing behind."""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import uvloop

from aioblk.testing.plugin import VhostUserDaemons, vhost_user_daemon  # noqa: F401 (a fixture)

from .support.devices import (  # noqa: F401 (fixtures, most of them)
    LASTING,
    daemons_of_the_module,
    device,
    file_device,
    lasting_daemon,
    make_scratch,
    slow_daemon,
    slow_device,
    target,
)
from .support.leaks import Holdings, join_threads
from .support.left_out import MISSING, LeftOut
from .support.loop_device import LoopDevice, cannot_have_loop_devices

# Hundreds of processes import the same modules. Where none may keep what it has compiled, as in many
# containers, compiling is what takes the most of their time.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

NO_LOOP_DEVICES = cannot_have_loop_devices()

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # The suite runs in the background of a script; programs that it starts and interrupts should not care.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# --- event loops --------------------------------------------------------------------------------------------

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
LoopError = dict[str, Any]

_loop_errors: list[LoopError] = []

uvloop.new_event_loop().close()  # the first one makes a pipe for signals that the process keeps


def _watched(loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
    loop.set_exception_handler(lambda _, context: _loop_errors.append(context))
    return loop


def _new_asyncio_loop() -> asyncio.AbstractEventLoop:
    return _watched(asyncio.SelectorEventLoop())


def _new_uvloop() -> asyncio.AbstractEventLoop:
    return _watched(uvloop.new_event_loop())


def _new_eager_loop() -> asyncio.AbstractEventLoop:
    loop = _new_asyncio_loop()
    if sys.version_info >= (3, 12):
        loop.set_task_factory(asyncio.eager_task_factory)
    return loop


def pytest_asyncio_loop_factories() -> Mapping[str, LoopFactory]:
    factories: dict[str, LoopFactory] = {"asyncio": _new_asyncio_loop, "uvloop": _new_uvloop}
    if sys.version_info >= (3, 12):
        factories["eager"] = _new_eager_loop
    return factories


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pycollect_makeitem(
    collector: pytest.Module | pytest.Class, obj: object
) -> Generator[None, object, object]:
    """Have what is marked for anyio's own plugin not taken by pytest-asyncio, which takes whatever it can."""
    if not any(mark.name == "anyio" for mark in getattr(obj, "pytestmark", ())):
        return (yield)
    option = collector.config.option
    mode, option.asyncio_mode = option.asyncio_mode, "strict"
    try:
        return (yield)
    finally:
        option.asyncio_mode = mode


@pytest.fixture
def loop_errors() -> list[LoopError]:
    """What the loop's exception handler has been called with. A test that expects a call clears the list."""
    return _loop_errors


# --- what a test leaves behind ------------------------------------------------------------------------------

_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[_failed] = item.stash.get(_failed, False) or report.failed
    return report


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves a descriptor, a mapped region or a thread, or whose loop reported an error.

    A test that has failed anyway is let off: its traceback keeps alive what it was using. So is one that is
    marked "abandons_memory": a lost device may write there for as long as the process lives.
    """
    gc.collect()
    gc.freeze()  # else each collection takes a tenth of a second and more, over what pytest has gathered
    _loop_errors.clear()
    before = Holdings.now()
    yield
    if request.node.stash.get(_failed, False) or request.node.get_closest_marker("abandons_memory"):
        return
    gc.collect()
    join_threads(before)
    left = [
        what
        for what in Holdings.now().added_since(before)
        if not any(daemons.holds(what) for daemons in LASTING)
    ]
    assert not left, "the test left " + ", ".join(left)
    assert not _loop_errors, f"the event loop reported {_loop_errors}"


# --- devices ------------------------------------------------------------------------------------------------


@pytest.fixture
def scratch_file(tmp_path: Path) -> Path:
    """A regular file of 8 MiB, its blocks allocated and its bytes zero."""
    path = tmp_path / "scratch"
    make_scratch(path)
    return path


@pytest.fixture
def loop_device(scratch_file: Path) -> Iterator[Path]:
    """A block device of 8 MiB with blocks of 512 bytes, backed by ``scratch_file``."""
    with LoopDevice(scratch_file) as loop:
        yield loop.path


StorageDaemonFactory = VhostUserDaemons


@pytest.fixture
def storage_daemon(vhost_user_daemon: VhostUserDaemons) -> VhostUserDaemons:  # noqa: F811
    """Starts daemons that export *file* or, without one, zeroes, each request taking *latency_ns*."""
    return vhost_user_daemon


# --- machines without some programs -------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    if MISSING:
        config.pluginmanager.register(LeftOut())


# --- machines without loop devices --------------------------------------------------------------------------


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if NO_LOOP_DEVICES is None:
        return
    impossible = [item for item in items if "loop_device" in getattr(item, "fixturenames", ())]
    items[:] = [item for item in items if item not in impossible]
    config.hook.pytest_deselected(items=impossible)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if NO_LOOP_DEVICES is not None:
        terminalreporter.section("NOT TESTED: block devices", red=True, bold=True)
        terminalreporter.line(
            f"This machine gives no loop devices: {NO_LOOP_DEVICES}. Root has them, as a rule."
        )
