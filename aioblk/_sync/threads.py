"""Threads that call what may block, and then wait for a moment for more of it.

Most such calls come one after the other (a region is mapped, and unmapped soon after), and starting a thread
takes as long as they do. A thread that waits is a daemon, and idle: it hurts nobody, and goes by itself.
"""

import contextvars
import os
import queue
import threading
from collections.abc import Callable

__all__ = ["NAME", "call_in_thread", "dismiss"]

NAME = "aioblk-blocking"

_PATIENCE = 1.0  # seconds for which a thread waits
_MOST = 4  # threads that wait

_Function = Callable[[], object]
_Hand = queue.SimpleQueue[_Function | None]  # what a waiting thread is to call; None: nothing any more

# Of the two below; held for a few instructions, between which a signal may have code call in here.
_turn = threading.RLock()
_waiting: list[_Hand] = []
_dismissals = 0


def call_in_thread(function: _Function) -> None:
    """Call it in a thread that has nothing else to do, which it may keep for as long as it likes.

    Raises RuntimeError where there is no thread to be had. Nothing is called then.
    """
    with _turn:
        if _waiting:
            _waiting.pop().put(function)
            return
    hand = _Hand()
    hand.put(function)  # not an argument: a thread keeps those to its end
    threading.Thread(target=_work, args=[hand, _dismissals], name=NAME, daemon=True).start()


def dismiss() -> None:
    """Have no thread wait for more, not even those that are at work now: for who waits for their end."""
    global _dismissals
    with _turn:
        _dismissals += 1
        hands = _waiting.copy()
        _waiting.clear()
        for hand in hands:
            hand.put(None)


def _work(hand: _Hand, dismissals: int) -> None:
    function = hand.get()
    while function is not None:
        contextvars.Context().run(function)  # what one sets is not for the next
        function = None  # a thread that waits keeps nobody
        with _turn:
            if dismissals != _dismissals or len(_waiting) >= _MOST:
                return
            _waiting.append(hand)
        function = _next(hand)


def _next(hand: _Hand) -> _Function | None:
    try:
        return hand.get(timeout=_PATIENCE)
    except queue.Empty:
        pass
    with _turn:
        if hand in _waiting:
            _waiting.remove(hand)
            return None
    try:
        return hand.get_nowait()  # somebody has taken it just now
    except queue.Empty:  # and was interrupted
        return None


def _begin_anew() -> None:
    """In a child process: none of the threads is there."""
    global _turn
    _turn = threading.RLock()
    _waiting.clear()


os.register_at_fork(after_in_child=_begin_anew)
