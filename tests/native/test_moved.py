"""Request methods with their offsets moved: what they pass on, and what they leave to the slice."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from aioblk._native._core import Memory, Moved, View, move_pairs

START, SIZE = 1 << 20, 4096
PASSED, LEFT = "passed on", "left to the slice"


def asked(*arguments: Any, **options: Any) -> tuple[str, Any, dict[str, Any]]:
    def method(*given: Any, **named: Any) -> tuple[str, Any, dict[str, Any]]:
        return PASSED, given, named

    def otherwise(*given: Any, **named: Any) -> tuple[str, Any, dict[str, Any]]:
        return LEFT, given, named

    return Moved(method, otherwise, START, SIZE)(*arguments, **options)


BUFFERS: list[Callable[[int], Any]] = [
    bytes,
    bytearray,
    lambda length: memoryview(bytes(length)),
    lambda length: View(Memory.from_buffer(bytes(length))) if length else b"",
    lambda length: length,
]


@pytest.mark.parametrize("make", BUFFERS)
def test_what_lies_within_is_passed_on(make: Callable[[int], Any]) -> None:
    for offset, length in ((0, SIZE), (0, 0), (SIZE, 0), (SIZE - 1, 1), (100, 200)):
        what = make(length)
        assert asked(offset, what) == (PASSED, (START + offset, what), {})
        assert asked(offset, what, fua=True) == (PASSED, (START + offset, what), {"fua": True})


@pytest.mark.parametrize("make", BUFFERS)
def test_what_does_not_is_left_to_the_slice_as_it_is(make: Callable[[int], Any]) -> None:
    for offset, length in (
        (-1, 1),
        (0, SIZE + 1),
        (SIZE, 1),
        (SIZE + 1, 0),
        (1 << 63, 1),
        ((1 << 64) - 1, 1),
        (1 << 64, 1),
        (-(1 << 70), 1),
    ):
        what = make(length)
        assert asked(offset, what, fua=True) == (LEFT, (offset, what), {"fua": True})


def test_and_what_is_not_of_the_plainest_kind() -> None:
    for arguments in (
        (0, -1),
        (0, 1 << 64),
        (0, np.zeros(8)),
        ("0", 1),
        (0, None),
        (True, 1),
        (0,),
        (),
        (0.0, 1),
    ):
        assert asked(*arguments)[:2] == (LEFT, arguments)
    assert asked(offset=0, length=1) == (LEFT, (), {"offset": 0, "length": 1})
    assert asked(0, 1, *range(7))[0] == LEFT
    assert asked(0, 1, *range(5), fua=True)[0] == PASSED


def test_what_a_method_raises_is_raised() -> None:
    def method(*_: Any) -> None:
        raise KeyError("as an example")

    for length in (0, SIZE + 1):
        with pytest.raises(KeyError, match="as an example"):
            Moved(method, method, START, SIZE)(0, length)


def test_what_it_is_made_of() -> None:
    make: Any = Moved
    for arguments in ((), (print, print, "0", 0), (print, print, 0)):
        with pytest.raises(TypeError):
            make(*arguments)


def test_it_keeps_nobody_for_ever() -> None:
    class Slice:
        moved: Any

        def otherwise(self) -> None: ...

    part = Slice()
    part.moved = Moved(part.otherwise, part.otherwise, 0, 0)
    kept = weakref.ref(part)
    del part
    gc.collect()
    assert kept() is None


def test_pairs() -> None:
    pairs = ((0, 5), (100, b"data"), (SIZE, 0))
    assert move_pairs(pairs, START, SIZE) == [(START, 5), (START + 100, b"data"), (START + SIZE, 0)]
    assert move_pairs((), START, SIZE) == []
    wrong: list[Any] = [(SIZE, 1), (-1, 0), (0,), (0, 1, 2), [0, 1], 3, ("0", 1), (0, None), (0, np.zeros(1))]
    for pair in wrong:
        assert move_pairs((*pairs, pair), START, SIZE) is None
    with pytest.raises(TypeError):
        move_pairs([*pairs], START, SIZE)  # type: ignore[arg-type]
