"""Faults planted in the C core."""

from .mutant import Mutant

__all__ = ["IN_THE_CORE"]

SRC = "_native/src"

IN_THE_CORE = (
    # --- submitting and reaping -----------------------------------------------------------------------------
    Mutant(
        "interrupted-submission-forgotten",
        "A request that is submitted alone, and whose do_io is interrupted, is not submitted again: it "
        "hangs.",
        "b141052, go on after an interrupted do_io where a request was submitted at once",
        f"{SRC}/submission.c",
        """\
    if (q->more_to_reap) {
        queue_go_on_next_turn(q); /* of what an interrupted do_io has not submitted, no event will tell */
    }
""",
        "",
    ),
    Mutant(
        "interrupted-flush-forgotten",
        "A flush whose do_io is interrupted does not come again: what it carried hangs.",
        "84eba04, go on where reaping stopped early",
        f"{SRC}/turns.c",
        "(silent || q->more_to_reap || (q->backlog_head",
        "(silent || (q->backlog_head",
    ),
    Mutant(
        "completions-dropped",
        "Of more than eight completions at once, the rest is dropped: their requests hang.",
        "84eba04, a ring with more completions than one turn takes fell silent for good",
        f"{SRC}/reap.c",
        """\
        take_completions(q, turns, completions, count);
        total += count;
""",
        """\
        take_completions(q, turns, completions, count < 8 ? count : 8);
        total += count;
""",
    ),
    Mutant(
        "backlog-forgotten",
        "What did not fit into the ring is not looked at again where all of that was done in the same "
        "turn: it hangs.",
        "84eba04, sleep while the backlog waits for the device",
        f"{SRC}/turns.c",
        "silent || q->more_to_reap || (q->backlog_head && queue_has_room(q, q->backlog_head))",
        "silent || q->more_to_reap",
    ),
    Mutant(
        "owed-flush-forgotten",
        "What a turn has no time left for is not left to the next: it hangs.",
        "84eba04, go on where reaping stopped early",
        f"{SRC}/turns.c",
        "if (flushes || q->ready_head",
        "if (q->ready_head",
    ),
    Mutant(
        "backlog-of-a-batch-forgotten",
        "A batch that is longer than the ring is not gone on with where its beginning is done at once: it "
        "hangs.",
        "84eba04, sleep while the backlog waits for the device",
        f"{SRC}/submission.c",
        """\
    if (batch->state == PENDING && (q->backlog_head || q->room_made)) {
        queue_go_on_next_turn(q);
    }
""",
        "",
    ),
    Mutant(
        "budget-not-reset",
        "The bytes of one do_io are counted with those of the next: once there are too many, nothing is "
        "issued any more.",
        "issue 13, a budget that is not reset; 84eba04, a flush per turn was a busy loop",
        f"{SRC}/reap.c",
        """\
        int count = do_io(q, completions);
        q->counters.do_io_calls++;
        q->unflushed_bytes = 0;
""",
        """\
        int count = do_io(q, completions);
        q->counters.do_io_calls++;
""",
    ),
    Mutant(
        "ring-overfilled",
        "Further segments of what a virtqueue holds are not counted: it is given more than it has "
        "descriptors for.",
        "ebacd71, give libblkio no more than its ring holds",
        f"{SRC}/parts.c",
        "size_t more_segments = q->more_segments + (part->vector",
        "size_t more_segments = (part->vector",
    ),
    # --- parts and outcomes ---------------------------------------------------------------------------------
    Mutant(
        "fua-dropped-on-a-split",
        "Of a write that is split, only the first part has FUA: the others are lost with the power, though "
        "acknowledged.",
        "issue 13, FUA dropped on a split",
        f"{SRC}/parts.c",
        "blkioq_write(b, part->offset, part->address, part->length, part, r->flags);",
        "blkioq_write(b, part->offset, part->address, part->length, part,"
        " part == &r->first_part ? r->flags : 0);",
    ),
    Mutant(
        "fua-dropped-by-written-zeroes",
        "Zeroes that are written have no FUA: lost with the power, though acknowledged.",
        "2c9a005, write zeroes where the device does not make them, and grow files by them",
        f"{SRC}/parts.c",
        "zeroes_at_once(part), part, part->request->flags & BLKIO_REQ_FUA);",
        "zeroes_at_once(part), part, 0);",
    ),
    Mutant(
        "zeroes-written-in-one-place",
        "Zeroes that are written piece by piece all go to where the first went: the rest of the range "
        "stays as it was.",
        "2c9a005, write zeroes where the device does not make them",
        f"{SRC}/zeroes.c",
        "    part->offset += written;\n",
        "",
    ),
    Mutant(
        "error-forgotten",
        "A part that succeeds has an earlier part's error forgotten: a write is acknowledged that is not "
        "there.",
        "1c3a17d, hold no part across code that may do anything; keep orders out of outcomes",
        f"{SRC}/parts.c",
        """\
    if (ret < 0) {
        item_fail(item, -ret, message);
    } else if (r->operation == OP_READ) {
""",
        """\
    item->error = 0;
    if (ret < 0) {
        item_fail(item, -ret, message);
    } else if (r->operation == OP_READ) {
""",
    ),
    Mutant(
        "settled-twice",
        "A request that was cancelled is settled once more when the device is through with it.",
        "60b2914, a batch was settled a second time, and put on the ready list twice",
        f"{SRC}/outcome.c",
        """\
    if (r->state == PENDING) {
        if (r->cancel_requested) {
            request_settle(r, CANCELLED);
""",
        """\
    if (r->state == PENDING || r->state == CANCELLED) {
        if (r->cancel_requested) {
            request_settle(r, CANCELLED);
""",
    ),
    # --- cancellation ---------------------------------------------------------------------------------------
    Mutant(
        "wake-up-lost-on-cancel",
        "Who waits for a request that is cancelled, and over at once, is woken when something else "
        "happens, or never.",
        "issue 13, a wake-up lost on cancel; 9b65f28, cancellation at every await",
        f"{SRC}/awaitable.c",
        """\
    bool accepted = request_cancel_io(r, message == Py_None ? NULL : message);
    if (queue_wake_others(r->queue) < 0) {
        return NULL;
    }
""",
        """\
    bool accepted = request_cancel_io(r, message == Py_None ? NULL : message);
""",
    ),
    Mutant(
        "memory-let-go-at-cancellation",
        "A cancelled request is over although the device still has the caller's memory: it is used by both.",
        "235aa23, the caller had the buffers back while the device still wrote to them",
        f"{SRC}/parts.c",
        """\
    if (!r->lends_memory) {
        request_settle(r, CANCELLED);
    }
""",
        """\
    request_settle(r, CANCELLED);
""",
    ),
    Mutant(
        "bounce-memory-given-back-at-cancellation",
        "Bounce memory of a cancelled request goes to the next one while the device still has it: data are "
        "mixed up.",
        "684e905, bounce memory that was given back at cancellation went unseen",
        f"{SRC}/parts.c",
        """\
    if (!r->lends_memory) {
        request_settle(r, CANCELLED);
    }
""",
        """\
    if (!r->lends_memory) {
        request_settle(r, CANCELLED);
        if (r->issued > 0 && r->first_part.bounce_offset >= 0) {
            bounce_give_back(r->queue, &r->first_part);
        }
    }
""",
    ),
    Mutant(
        "cancelled-read-copied-late",
        "A cancelled read into the caller's memory is copied there all the same, long after it was over "
        "for the caller.",
        "235aa23, the caller had the buffers back while the device still wrote to them",
        f"{SRC}/parts.c",
        "if (part->bounce_offset >= 0 && r->state == PENDING && !r->cancel_requested) {",
        "if (part->bounce_offset >= 0) {",
    ),
    # --- what was given up, and who must not overtake it ----------------------------------------------------
    Mutant(
        "given-up-change-overtaken",
        "A write waits for one that was cancelled only if it begins within it: else the cancelled one "
        "lands over it.",
        "01299ac, a write that was cancelled landed over a later one that was acknowledged",
        f"{SRC}/given_up.c",
        "return (a.start > b.start ? a.start : b.start) < (a.end < b.end ? a.end : b.end);",
        "return a.start >= b.start && a.start < b.end;",
    ),
    Mutant(
        "given-up-batch-overtaken",
        "Of a batch that is cancelled, only the first item is waited for: another one lands over a later "
        "write.",
        "01299ac, a write that was cancelled landed over a later one that was acknowledged",
        f"{SRC}/given_up.c",
        "given_up->ranges[i] = range_of(r, i);",
        "given_up->ranges[i] = range_of(r, 0);",
    ),
    Mutant(
        "given-up-zeroes-overtaken",
        "Cancelled zeroes are not waited for: they land over a later write that was acknowledged.",
        "01299ac, a write that was cancelled landed over a later one that was acknowledged",
        f"{SRC}/given_up.c",
        "return op != OP_READ && op != OP_FLUSH && op != OP_REPORT_ZONES;",
        "return op != OP_READ && op != OP_FLUSH && op != OP_REPORT_ZONES && op != OP_WRITE_ZEROES;",
    ),
    Mutant(
        "held-for-ever",
        "Who waits for what was given up is not told when that is over: it hangs.",
        "b46bda0, a queue was never told of what has landed",
        f"{SRC}/given_up.c",
        """\
    PyMem_Free(given_up);
    given_up_tell(r->queue);
""",
        """\
    PyMem_Free(given_up);
""",
    ),
    # --- loss and return ------------------------------------------------------------------------------------
    Mutant(
        "replayed-backwards",
        "What a dead backend had is made again with the next one in the opposite of the order of submission.",
        "issue 13, replay in the wrong order; d205042, makes it again, in the order of submission",
        f"{SRC}/loss.c",
        """\
    while (r && r->following) {
        r = r->following;
    }
    queue_forget_parts(q);
    for (; r; r = r->previous) {
""",
        """\
    queue_forget_parts(q);
    for (; r; r = r->following) {
""",
    ),
    Mutant(
        "replayed-though-done",
        "Of a split request, parts that a dead backend had done are made again, and counted twice.",
        "d205042, come back after a loss",
        f"{SRC}/loss.c",
        "if (part->bounce_offset != PART_OVER && part->bounce_offset != PART_RIDES) {",
        "if (part_item(part)->left > 0 && part->bounce_offset != PART_RIDES) {",
    ),
    # --- merging --------------------------------------------------------------------------------------------
    Mutant(
        "merged-over-a-gap",
        "Writes of a batch that do not lie side by side go to the device as one: to where the first is.",
        "chosen when merging was written",
        f"{SRC}/merge.c",
        "if (part->offset != end || !is_plain(part)",
        "if (part->offset < end || !is_plain(part)",
    ),
    Mutant(
        "rider-replayed",
        "Of writes that went to a dead backend as one, each is made again by itself as well.",
        "chosen when merging was written",
        f"{SRC}/loss.c",
        "if (part->bounce_offset != PART_OVER && part->bounce_offset != PART_RIDES) {",
        "if (part->bounce_offset != PART_OVER) {",
    ),
    Mutant(
        "last-rider-forgotten",
        "Of writes that have failed as one, the last is not made alone: its batch hangs.",
        "chosen when merging was written",
        f"{SRC}/parts.c",
        "for (uint32_t i = 0; i <= riders; i++) {",
        "for (uint32_t i = 0; i < riders; i++) {",
    ),
    Mutant(
        "carrier-stays-long",
        "Of writes that have failed as one, the first is as long as all of them when it is made alone.",
        "chosen when merging was written",
        f"{SRC}/merge.c",
        "    part->length = vector->segments[0].length;\n",
        "",
    ),
    Mutant(
        "refused-while-away",
        "A request that is made while another backend is looked for fails, instead of waiting for it.",
        "d205042, come back after a loss",
        f"{SRC}/submission.c",
        "if (!q->blkioq && !q->suspended) {",
        "if (!q->blkioq) {",
    ),
    Mutant(
        "cancellation-lost-with-the-device",
        "A request that was cancelled, and then lost with the device, raises the loss: the cancellation "
        "never arrives.",
        "2135941, one that was cancelled stays cancelled",
        f"{SRC}/loss.c",
        "request_settle(r, r->cancel_requested ? CANCELLED : FAILED);",
        "request_settle(r, FAILED);",
    ),
    # --- memory ---------------------------------------------------------------------------------------------
    Mutant(
        "retired-region-used",
        "New requests use a region that is being unmapped: it is unmapped while the device has them.",
        "issue 13, a region unmapped in use; 1479f72, a region counts its users and its retirement in one "
        "word",
        f"{SRC}/device_core.c",
        "return inside && !(OBSERVE(region->state) & REGION_RETIRED) ? region : NULL;",
        "return inside ? region : NULL;",
    ),
    Mutant(
        "buffer-handed-out-in-use",
        "An arena's buffer is handed out again while a request has it: the data of two are mixed up.",
        "24064d1 and 1479f72, memory cannot be released between being looked at and used",
        f"{SRC}/memory.c",
        """\
    SHARED_STORE(self->closed, true);
    release_if_unused(self);
""",
        """\
    SHARED_STORE(self->closed, true);
    release(self);
""",
    ),
    # --- sight ----------------------------------------------------------------------------------------------
    Mutant(
        "end-of-the-lost-untold",
        "Instruments are not told of the end of what fails: they take it for under way for good.",
        "no fault that there has been",
        f"{SRC}/outcome.c",
        "    if (since != UNWATCHED) {",
        "    if (since != UNWATCHED && state != FAILED) {",
    ),
)
