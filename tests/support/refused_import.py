"""Imports the core while memory is refused: each of its allocations fails once, in a process of its own.

A process that has the injector runs this, as tests/native/test_no_memory.py does; the core's path is given.
"""

import asyncio  # noqa: F401 (the core imports it, and refusing that memory is not meant)
import gc
import importlib.util
import os
import sys
import traceback
from importlib.machinery import ExtensionFileLoader
from itertools import count
from types import ModuleType

from .injector import Injector, Kind

NAME = "aioblk._native._core"
BORN, ALL_DONE, WRONG = 0, 1, 2

injector = Injector()


def import_core() -> ModuleType:
    spec = importlib.util.spec_from_loader(NAME, ExtensionFileLoader(NAME, sys.argv[1]))
    assert spec is not None
    assert spec.loader is not None
    core = sys.modules[NAME] = importlib.util.module_from_spec(spec)
    injector.call(spec.loader.exec_module, core)
    return core


def attempt(number: int) -> int:
    """What the process ends with: BORN if it could import the core in the end."""
    injector.arm(Kind.PYTHON, number)
    try:
        core = import_core()
    except (MemoryError, SystemError) as error:
        # CPython 3.13's own import may return with the MemoryError set, which becomes another's cause.
        if isinstance(error, SystemError) and not isinstance(error.__cause__, MemoryError):
            raise
        injector.disarm()
        core = import_core()
    else:
        if injector.refusals == 0:
            return ALL_DONE
    assert core.View(core.Memory(0, 10), 2).nbytes == 8
    return BORN


def in_a_child(number: int) -> int:
    child = os.fork()
    if child == 0:
        status = WRONG
        try:
            status = attempt(number)
        except BaseException:
            print(f"at allocation {number}:", file=sys.stderr)
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    gc.freeze()
    for number in count(1):
        status = in_a_child(number)
        if status == ALL_DONE:
            break
        assert status == BORN
