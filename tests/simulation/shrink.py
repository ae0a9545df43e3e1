"""Makes a history that fails smaller: what is left out of it does not matter to the failure."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from .history import History

__all__ = ["shrink"]


def shrink(history: History, fails: Callable[[History], bool]) -> History:
    """The smallest that is found. *fails* plays one, and says whether it fails in the same way; it may refuse
    to go on by answering no to everything."""
    history = _fewer_actions(history, fails)
    history = _calmer(history, fails)
    return _fewer_actions(history, fails)


def _fewer_actions(history: History, fails: Callable[[History], bool]) -> History:
    """Leave out halves, quarters, and so on, for as long as that helps."""
    size = max(len(history.actions) // 2, 1)
    while True:
        smaller = False
        at = 0
        while at < len(history.actions):
            candidate = replace(history, actions=history.actions[:at] + history.actions[at + size :])
            if fails(candidate):
                history, smaller = candidate, True
            else:
                at += size
        if size == 1 and not smaller:
            return history
        size = max(size // 2, 1)


def _calmer(history: History, fails: Callable[[History], bool]) -> History:
    """Leave out what may befall it, one by one."""
    for leave_out in (_without_weather, _without_threads, _without_property):
        for key in (*history.weather, *history.loop, *history.properties):
            candidate = leave_out(history, key)
            if candidate != history and fails(candidate):
                history = candidate
    return history


def _without_weather(history: History, key: str) -> History:
    return replace(history, weather=_without(history.weather, key))


def _without_threads(history: History, key: str) -> History:
    return replace(history, loop=_without(history.loop, key))


def _without_property(history: History, key: str) -> History:
    return replace(history, properties=_without(history.properties, key))


def _without(values: Mapping[str, int], key: str) -> dict[str, int]:
    return {other: value for other, value in values.items() if other != key}
