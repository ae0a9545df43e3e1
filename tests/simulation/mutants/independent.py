"""Faults that were chosen by reading the package, without a look at what the search does."""

from .mutant import Mutant

__all__ = ["INDEPENDENT"]

SRC = "_native/src"

INDEPENDENT = (
    # --- in the core ----------------------------------------------------------------------------------------
    Mutant(
        "ring-holds-one-more",
        "A ring is given one request more than it has entries for.",
        "no fault that there has been; an off-by-one at the ring's depth",
        f"{SRC}/parts.c",
        "return q->device_count < q->depth && (",
        "return q->device_count <= q->depth && (",
    ),
    Mutant(
        "copy-skips-what-is-not-bounced",
        "Where only some segments of a vector are bounced, what comes after one that is not is copied "
        "from, or to, the wrong place in bounce memory.",
        "no fault that there has been; a bounce copy that counts what it does not copy",
        f"{SRC}/bounce.c",
        """\
            memcpy(to_caller ? segment->address : bounce, to_caller ? bounce : segment->address, segment->length);
            bounce += segment->length;
        }
""",  # noqa: E501
        """\
            memcpy(to_caller ? segment->address : bounce, to_caller ? bounce : segment->address, segment->length);
        }
        bounce += segment->length;
""",  # noqa: E501
    ),
    Mutant(
        "rewound-by-one-segment",
        "A part that is cut back to whole blocks goes back by one segment of the caller's memory, also "
        "where more are left over.",
        "no fault that there has been; a vector that is trimmed wrongly where it meets the largest "
        "number of segments",
        f"{SRC}/plan.c",
        "    while (bytes > cursor->offset) {\n        bytes -= cursor->offset;",
        "    if (bytes > cursor->offset) {\n        bytes -= cursor->offset;",
    ),
    Mutant(
        "last-error-of-a-batch",
        "A batch raises the last error in the order of its items, not the first.",
        "no fault that there has been; a loop turned round",
        f"{SRC}/outcome.c",
        "for (uint32_t i = batch->count; i-- > 0;) {",
        "for (uint32_t i = 0; i < batch->count; i++) {",
    ),
    Mutant(
        "regions-left-by-what-the-device-was-given",
        "Of a vector that was joined, as many segments leave their regions as the device was given: "
        "leaving the region of another one hangs.",
        "no fault that there has been; a region's user that is forgotten on one path",
        f"{SRC}/record.c",
        "for (size_t i = 0; i < vector->segment_count; i++) {",
        "for (int i = 0; i < vector->iov_count; i++) {",
    ),
    Mutant(
        "old-in-spite-of-progress",
        "A request of several parts grows older although the device does one after the other: a slow "
        "device is taken for silent.",
        "no fault that there has been; a clock that is not set back",
        f"{SRC}/parts.c",
        """\
        part->bounce_offset = PART_OVER;
        r->age = 0;
""",
        """\
        part->bounce_offset = PART_OVER;
""",
    ),
    Mutant(
        "second-waiter-forgotten",
        "Of two who wait for a request, the second hangs when the first stops waiting.",
        "no fault that there has been; a callback that does not become the first",
        f"{SRC}/awaitable.c",
        """\
    promote_callback(r);
    return PyLong_FromSsize_t(removed);
""",
        """\
    return PyLong_FromSsize_t(removed);
""",
    ),
    Mutant(
        "discard-divided-anywhere",
        "A discard that is longer than the device takes is divided without regard to its alignment.",
        "no fault that there has been; a limit that is forgotten when a range is divided",
        f"{SRC}/plan.c",
        """\
    if (r->operation == OP_DISCARD) {
        alignment = larger(alignment, device->discard_alignment);
    }
""",
        "",
    ),
    Mutant(
        "pins-of-a-refused-vector",
        "When one of several buffers is refused, those before it stay pinned: their memory is never "
        "given back.",
        "no fault that there has been; a count that is set at the end of a loop that may fail",
        f"{SRC}/prepare.c",
        """\
        r->count++;
        memory[i] = (struct iovec){pin->buf, pin->len};
        if ((uint64_t)pin->len > INT64_MAX - r->item.length) {
            return device_refuse(q->device, "range", r->operation, r->item.offset, UINT64_MAX);
        }
        r->item.length += pin->len;
    }
""",
        """\
        memory[i] = (struct iovec){pin->buf, pin->len};
        if ((uint64_t)pin->len > INT64_MAX - r->item.length) {
            return device_refuse(q->device, "range", r->operation, r->item.offset, UINT64_MAX);
        }
        r->item.length += pin->len;
    }
    r->count = PyTuple_GET_SIZE(buffers);
""",
    ),
    # --- in Python ------------------------------------------------------------------------------------------
    Mutant(
        "closed-arena-forgets-borrowers",
        "Who waits for memory of an arena that is closed is not told so: he hangs.",
        "no fault that there has been; a wake-up that is lost at the end",
        "_memory/arena.py",
        """\
            self._memory.closed = True
            self._memory.queue.serve()  # which refuses them all
""",
        """\
            self._memory.closed = True
""",
    ),
    Mutant(
        "shrinks-in-use",
        "Bounce memory in which nothing new has begun for long is replaced although a request still has "
        "some of it.",
        "no fault that there has been; idle, taken for nothing new",
        "_memory/bounce.py",
        "idle = self._core.bounce_takes == self._takes_seen and not self._core.bounce_in_use",
        "idle = self._core.bounce_takes == self._takes_seen",
    ),
    Mutant(
        "cancelled-registration-stays",
        "A registration that is cancelled while the memory is being mapped stays mapped for ever.",
        "no fault that there has been; a holder that is forgotten on cancellation",
        "_memory/device_memory.py",
        """\
        except asyncio.CancelledError:
            self._leave(mapped)
            raise
""",
        """\
        except asyncio.CancelledError:
            raise
""",
    ),
    Mutant(
        "back-with-less-room",
        "A device that has less capacity than the lost one takes its place.",
        "no fault that there has been; a property that is not compared",
        "_device/recovery.py",
        """\
        if connection.capacity < wanted.capacity:
            problem = f"the device has {connection.capacity} bytes now, and had {wanted.capacity}"
""",
        "",
    ),
    Mutant(
        "queue-lent-while-it-closes",
        "Who asks for a queue that is being closed is given it, and it refuses everything.",
        "no fault that there has been; a stage that is not asked for",
        "_queues/bound.py",
        """\
        if bound._closing is not None:
            raise self._taken(bound, "being closed; await its aclose() first")
""",
        "",
    ),
    Mutant(
        "view-discards-from-zero",
        "Where a device's units for discarding do not begin at 0, a view ends a discard within one.",
        "no fault that there has been; an origin that is forgotten in one of two places",
        "layers/byte_view.py",
        "end = max(start, offset + length - (offset + length - origin) % unit)",
        "end = max(start, offset + length - (offset + length) % unit)",
    ),
    Mutant(
        "waiting-edit-cancels-the-earlier",
        "A change of part of a block that waits for an earlier one, and is cancelled, cancels that one.",
        "no fault that there has been; awaited instead of waited for",
        "layers/_edits.py",
        """\
                for other in earlier:
                    await end_of(other)
""",
        """\
                for other in earlier:
                    try:
                        await other
                    except Exception:
                        pass
""",
    ),
    Mutant(
        "who-came-last-is-first",
        "Who came first waits until nobody comes any more.",
        "no fault that there has been; the order of a queue",
        "_sync/fair_queue.py",
        "turn = next(iter(lane.turns))",
        "turn = next(reversed(lane.turns))",
    ),
)
