"""Faults planted in the package's Python."""

from .mutant import Mutant

__all__ = ["IN_PYTHON"]

IN_PYTHON = (
    # --- waiting --------------------------------------------------------------------------------------------
    Mutant(
        "nobody-served-after-a-cancelled-task",
        "Who waits behind a task that is cancelled does not have what that one left: it hangs.",
        "38ece6e, let those behind a cancelled request have their turn at once; 24064d1",
        "_sync/fair_queue.py",
        """\
                self._leave(turn)
                self.serve(lane)  # who was behind it may have what it could not
""",
        "                self._leave(turn)\n",
    ),
    Mutant(
        "only-one-granted-at-a-time",
        "Of several who find room at once only the first is granted it: the others hang.",
        "the wake-ups of Arena.acquire(); nobody may be left waiting",
        "_sync/fair_queue.py",
        "                while order and self._grant(",
        "                if order and self._grant(",
    ),
    Mutant(
        "others-not-told-of-room",
        "When one of several has its buffer of an arena, the others are not told of room any more: they "
        "hang.",
        "the wake-ups of Arena.acquire(), issue 13's wake-up that is lost",
        "_memory/arena_memory.py",
        """\
            if not self._waiting:
                self._tell_of_room(None)
""",
        "            self._tell_of_room(None)\n",
    ),
    Mutant(
        "new-block-tells-nobody",
        "A buffer that comes back to a block that was added while somebody waited wakes nobody: he hangs.",
        "dd7ff3e, let an arena grow; issue 13's wake-up that is lost",
        "_memory/arena_memory.py",
        "            block.on_room = self._on_room\n",
        "",
    ),
    Mutant(
        "nobody-served-after-a-failed-resize",
        "Where bounce memory cannot be had, the first who waits for it fails, and the others hang.",
        "686d07a, test the bounce pool step by step; nobody may be left waiting",
        "_memory/bounce.py",
        """\
            self._watch_for_idleness()
        self._serve()
""",
        """\
            self._watch_for_idleness()
            self._serve()
""",
    ),
    # --- regions --------------------------------------------------------------------------------------------
    Mutant(
        "unmapped-in-use",
        "A region is unmapped without waiting for the requests that use it.",
        "issue 13, a region unmapped in use",
        "_memory/device_memory.py",
        """\
        while self._core.retire_region(mapped.start) and not (self.calls.lost or mapped.abandoned):
            mapped.idle.clear()  # another thread may tell late of a region that was here before
            await mapped.idle.wait()
        if self._core.retire_region(mapped.start):
""",
        """\
        if self._core.retire_region(mapped.start) and (self.calls.lost or mapped.abandoned):
""",
    ),
    Mutant(
        "leaving-region-not-mapped-again",
        "A region that is being left when the backend dies is not mapped into the next one: requests on it "
        "lie nowhere.",
        "d205042, everything is mapped again that was mapped in the old one",
        "_memory/device_memory.py",
        "return {mapped.region for mapped in self._ranges if not mapped.abandoned}",
        "return {mapped.region for mapped in self._ranges if mapped.holders and not mapped.abandoned}",
    ),
    Mutant(
        "bounce-memory-not-mapped-again",
        "Bounce memory is not mapped into the backend that takes a dead one's place: what bounces lies "
        "nowhere.",
        "d205042, come back after a loss",
        "_device/recovery.py",
        "regions = session.memory.wanted_regions() | session.queues.bounce_regions()",
        "regions = session.memory.wanted_regions()",
    ),
    # --- loss and return ------------------------------------------------------------------------------------
    Mutant(
        "waiting-kept-by-a-loss",
        "Who waited for bounce memory when the device was lost is still counted when it is back: newcomers "
        "hang.",
        "1479f72, one whose device was lost while a write was bounced could not be closed; 092ca5b",
        "_memory/bounce.py",
        """\
        while self._waiters:
            self._refuse_head(error)
        if self._core.bounce_in_use and self._region is not None:
""",
        """\
        if self._core.bounce_in_use and self._region is not None:
""",
    ),
    Mutant(
        "held-call-forgotten-by-a-loss",
        "A registration that waits for another backend hangs when none comes and the device is lost.",
        "d205042 and 05835f9, calls that a lost device keeps waiting",
        "_memory/handle_calls.py",
        "        self.lost = error\n        self.release()\n",
        "        self.lost = error\n",
    ),
    Mutant(
        "replayed-before-the-death",
        "What a backend had that has hung up is made again while its process lives, and may still do it, "
        "late.",
        "d205042, only a backend that is seen to have ended is replaced",
        "_device/recovery.py",
        "            await self._death()\n",
        "",
    ),
    Mutant(
        "backend-unwatched-after-attach",
        "After detach() and attach(), the end of the backend is not noticed: requests hang.",
        "b158946, look again when a device has waited to be detached",
        "_device/life.py",
        "        self.session.settle_here()\n        self.loss.watch()\n",
        "        self.session.settle_here()\n",
    ),
    Mutant(
        "silence-unwatched-after-a-return",
        "A device that has come back is not watched for silence any more: requests hang in spite of "
        "lost_after.",
        "05835f9, notice silent devices",
        "_queues/queue.py",
        "        if self._context.lost_after is not None:\n            self._watch = SilenceWatch(",
        "        if self._context.lost_after is not None and self._watch is None:\n"
        "            self._watch = SilenceWatch(",
    ),
    Mutant(
        "given-up-kept-by-a-return",
        "What was given up with a lost device is still waited for when it is back: requests there hang.",
        "138d244, hold on to what a lost device may still do; forgotten when it comes back",
        "_device/loss.py",
        "        session.core.forget_given_up()\n",
        "",
    ),
    Mutant(
        "queue-bound-while-away",
        "A queue that is bound while another backend is looked for uses the dead one, and not the next.",
        "2074791, a lost device binds no queues; d205042",
        "_queues/bound.py",
        """\
                if self._suspended:
                    queue._suspend()
""",
        "",
    ),
    # --- changes of parts of blocks -------------------------------------------------------------------------
    Mutant(
        "edit-does-not-wait-for-whole-blocks",
        "A change of part of a block does not wait for a write of the whole block that is in flight, and "
        "undoes it.",
        "fb227ac, a write of whole blocks beside a read-modify-write of one of them was undone",
        "layers/_edits.py",
        "earlier = _meeting((*self._turns, *self._under_way), span.start, end)",
        "earlier = _meeting(self._turns, span.start, end)",
    ),
    Mutant(
        "edit-not-seen-by-what-begins-before-it",
        "A change of blocks overlooks an earlier one that begins behind its own start: one of the two is "
        "undone.",
        "fb227ac, changes that share a block never undo each other",
        "layers/_edits.py",
        "if its_start < end and start < its_end]",
        "if its_start <= start < its_end]",
    ),
)
