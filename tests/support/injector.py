"""A fault injector: in a process that has it preloaded, the nth call of a kind fails.

tests/faults runs scenarios under it; injector.c says what it stands before.
"""

import ctypes
import enum
import errno
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar

from .compiled import shared_library

__all__ = ["FOR_EVER", "Injector", "Kind", "preloaded"]

P = ParamSpec("P")
T = TypeVar("T")

SOURCE = Path(__file__).with_name("injector.c")
FOR_EVER = 2**62


class Kind(enum.StrEnum):
    """What fails."""

    DESCRIPTOR = "descriptor"
    MEMORY = "memory"
    THREAD = "thread"
    LIBBLKIO = "libblkio"
    """A call to libblkio."""
    LIBBLKIO_DESCRIPTOR = "libblkio-descriptor"
    """What libblkio asks the system for itself."""
    LIBBLKIO_MEMORY = "libblkio-memory"
    PYTHON = "python"
    """Memory for Python's objects, within Injector.call()."""


ERRORS = {
    Kind.DESCRIPTOR: errno.EMFILE,
    Kind.LIBBLKIO_DESCRIPTOR: errno.EMFILE,
    Kind.THREAD: errno.EAGAIN,
    Kind.LIBBLKIO: errno.EIO,
}


PYTHON_BEARS_IT = sys.version_info < (3, 13)
"""Being refused memory for what Python code does. From 3.13 on the interpreter crashes where it has none for
a function: there only what the compiled core asks for is refused."""


def _library() -> Path:
    return shared_library("injector", (SOURCE,))


def preloaded() -> dict[str, str]:
    """The environment of a process that shall have the injector."""
    return os.environ | {"LD_PRELOAD": f"{os.environ.get('LD_PRELOAD', '')} {_library()}"}


class Injector:
    """The one of this process, which preloaded() has set up. Its children do not have it."""

    def __init__(self) -> None:
        os.environ.pop("LD_PRELOAD", None)
        self._library = ctypes.CDLL(str(_library()))
        self._library.injector_calls.restype = ctypes.c_long
        self._library.injector_refusals.restype = ctypes.c_long
        self._library.injector_refused.restype = ctypes.c_char_p
        self._call: Any = None

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function whose allocations of Python's memory are counted, and fail (Kind.PYTHON)."""
        if self._call is None:
            self._library.injector_watch_python(PYTHON_BEARS_IT)
            self._call = ctypes.PyDLL(str(_library())).injector_call
            self._call.argtypes = [ctypes.py_object, ctypes.py_object]
            self._call.restype = ctypes.py_object
        bound = partial(function, *args, **kwargs)
        tracer = sys.gettrace()  # which allocates as well
        sys.settrace(None)
        try:
            result: T = self._call(bound, ())
        finally:
            sys.settrace(tracer)
        return result

    def arm(self, kind: Kind, first: int, times: int = 1, error: int | None = None) -> None:
        """Let the calls from number *first* on fail, *times* of them. Counting starts anew, from 1.

        *error* is the errno that they fail with, if not the usual one.
        """
        first_call, last_call = ctypes.c_long(first), ctypes.c_long(first + times - 1)
        self._library.injector_arm(
            list(Kind).index(kind), first_call, last_call, error or ERRORS.get(kind, errno.ENOMEM)
        )

    def disarm(self) -> None:
        """Let nothing fail."""
        self.arm(Kind.DESCRIPTOR, FOR_EVER)

    def __enter__(self) -> Self:
        """Calls are counted, and fail, within the block only."""
        self._library.injector_resume()
        return self

    def __exit__(self, *error: object) -> None:
        self._library.injector_pause()

    @property
    def calls(self) -> int:
        """How many calls of the kind have been made."""
        return int(self._library.injector_calls())

    @property
    def refusals(self) -> int:
        """How many failed: of any kind, if the system refused them."""
        return int(self._library.injector_refusals())

    @property
    def refused(self) -> str:
        """The function that failed first."""
        name: bytes | None = self._library.injector_refused()
        return "nothing" if name is None else name.decode()
