"""The device's side of a virtqueue: what guests may say is done, and all else breaks their queue, at most."""

import struct
from collections.abc import Callable, Iterator
from random import Random

import pytest

from aioblk._native._core import GuestMemory, GuestRequest, Memory, View, Virtqueue

from ..support.guest import (
    DESCRIPTOR,
    DISCARD,
    FAILED,
    FLUSH,
    GET_ID,
    HEADER,
    IN,
    INDIRECT,
    NEXT,
    OK,
    OUT,
    RANGE,
    SECTOR,
    UNANSWERED,
    UNSUPPORTED,
    WRITABLE,
    WRITE_ZEROES,
    Guest,
    Piece,
)

SECTORS = 64
MOST = 1 << 20


def _rings(guest: Guest) -> tuple[int, int, int]:
    """Where they are, as a client knows them."""
    return guest.user + guest.descriptors, guest.user + guest.available, guest.user + guest.used


class Device:
    """A queue over what a guest has lent."""

    def __init__(
        self, guest: Guest, *, base: int = 0, tracked: View | None = None, read_only: bool = False
    ) -> None:
        self.memory = Memory.from_buffer(guest.memory)
        self.table = GuestMemory([(self.memory, guest.guest, guest.user)])
        descriptors, available, used = _rings(guest)
        self.queue = Virtqueue(
            *(self.table, guest.queue, descriptors, available, used, base),
            event_index=guest.event,
            tracked=tracked,
        )
        self.queue.set_disk(SECTORS * SECTOR, read_only, b"serial")

    def take(self) -> list[GuestRequest]:
        return self.queue.take(MOST)

    def one(self) -> GuestRequest:
        [request] = self.take()
        return request


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.close()


def test_a_read_is_taken_filled_and_finished(guest: Guest) -> None:
    device = Device(guest)
    asked = guest.ask(IN, 3, length=1024, cuts=2)
    request = device.one()
    assert (request.kind, request.offset, request.length) == (IN, 3 * SECTOR, 1024)
    [buffer] = request.buffers  # what lies side by side is one
    buffer[:] = b"x" * 1024
    assert device.queue.in_flight == 1
    device.queue.finish(request, OK)
    assert not guest.finished()
    assert device.queue.push()
    assert guest.finished() == [(asked.head, 1025)]
    assert (guest.status(asked), guest.data(asked)) == (OK, b"x" * 1024)
    assert (device.queue.in_flight, request.buffers) == (0, ())


def test_a_write_that_fails_says_so(guest: Guest) -> None:
    device = Device(guest)
    asked = guest.ask(OUT, 1, b"y" * SECTOR)
    request = device.one()
    assert b"".join(request.buffers) == b"y" * SECTOR
    device.queue.finish(request, FAILED)
    device.queue.push()
    assert guest.finished() == [(asked.head, 1)]
    assert guest.status(asked) == FAILED


@pytest.mark.parametrize("indirect", [False, True])
def test_segments_stay_apart_where_their_memory_is(guest: Guest, indirect: bool) -> None:
    device = Device(guest)
    header, status = guest.put(HEADER.pack(IN, 0, 0)), guest.put(b"\xee")
    places = [guest.put(bytes(SECTOR + 16)) for _ in range(3)]
    pieces = [Piece(place, SECTOR, True) for place in places]
    guest.offer(guest.chain([Piece(header, 16), *pieces, Piece(status, 1, True)], indirect=indirect))
    assert list(map(len, device.one().buffers)) == [SECTOR] * 3


def test_header_and_status_may_be_cut_anyhow(guest: Guest) -> None:
    """The device makes no assumption about the layout of descriptors."""
    device = Device(guest)
    header = HEADER.pack(OUT, 0, 2)
    message = guest.put(header + b"z" * SECTOR)
    status = guest.put(b"\xee")
    cuts = [(0, 5), (5, 30), (35, len(header) + SECTOR - 35)]
    guest.offer(guest.chain([*(Piece(message + at, length) for at, length in cuts), Piece(status, 1, True)]))
    assert b"".join(device.one().buffers) == b"z" * SECTOR
    place = guest.put(HEADER.pack(IN, 0, 2))
    answer = guest.put(b"\xee" * (SECTOR + 1))
    guest.offer(guest.chain([Piece(place, 16), Piece(answer, SECTOR + 1, True)]))
    request = device.one()
    assert [len(buffer) for buffer in request.buffers] == [SECTOR]
    device.queue.finish(request, OK)
    assert guest.get(answer + SECTOR, 1) == b"\0"


def test_requests_without_data(guest: Guest) -> None:
    device = Device(guest)
    guest.ask(FLUSH)
    assert device.one().kind == FLUSH
    guest.ask(DISCARD, 0, RANGE.pack(2, 4, 0))
    request = device.one()
    assert (request.kind, request.offset, request.length, request.buffers) == (DISCARD, 1024, 2048, ())
    guest.ask(WRITE_ZEROES, 0, RANGE.pack(0, SECTORS, 1))
    request = device.one()
    assert (request.kind, request.length, request.flags) == (WRITE_ZEROES, SECTORS * SECTOR, 1)


@pytest.mark.parametrize(
    ("kind", "sector", "data", "length", "status"),
    [
        (IN, SECTORS, b"", SECTOR, FAILED),
        (IN, SECTORS - 1, b"", 2 * SECTOR, FAILED),
        (IN, 2**64 - 1, b"", SECTOR, FAILED),
        (IN, 0, b"", 100, FAILED),
        (IN, 0, b"", 0, OK),
        (IN, SECTORS, b"", 0, OK),
        (OUT, 2**55, bytes(SECTOR), 0, FAILED),
        (DISCARD, 0, RANGE.pack(SECTORS, 1, 0), 0, FAILED),
        (DISCARD, 0, RANGE.pack(0, 1, 1), 0, UNSUPPORTED),
        (DISCARD, 0, RANGE.pack(0, 1, 0) * 2, 0, UNSUPPORTED),
        (DISCARD, 0, b"short", 0, FAILED),
        (WRITE_ZEROES, 0, RANGE.pack(0, 2**32 - 1, 0), 0, FAILED),
        (WRITE_ZEROES, 0, RANGE.pack(0, 1, 2), 0, UNSUPPORTED),
        (99, 0, b"", 0, UNSUPPORTED),
    ],
)
def test_what_is_wrong_with_a_request_is_its_answer(
    guest: Guest, kind: int, sector: int, data: bytes, length: int, status: int
) -> None:
    device = Device(guest)
    asked = guest.ask(kind, sector, data, length=length)
    assert not device.take()
    device.queue.push()
    assert guest.finished() == [(asked.head, 1)]
    assert guest.status(asked) == status
    assert (device.queue.broken, device.queue.answered) == (None, 1)


@pytest.mark.parametrize("kind", [OUT, DISCARD, WRITE_ZEROES])
def test_a_read_only_disk_refuses_changes(guest: Guest, kind: int) -> None:
    device = Device(guest, read_only=True)
    asked = guest.ask(kind, 0, bytes(SECTOR) if kind == OUT else RANGE.pack(0, 1, 0))
    assert not device.take()
    assert guest.status(asked) == FAILED


def test_the_serial_number_is_given(guest: Guest) -> None:
    device = Device(guest)
    asked = guest.ask(GET_ID, length=20)
    assert not device.take()
    assert guest.data(asked) == b"serial".ljust(20, b"\0")
    assert guest.status(asked) == OK


def test_a_header_that_is_too_short_is_answered(guest: Guest) -> None:
    device = Device(guest)
    status = guest.put(b"\xee")
    guest.offer(guest.chain([Piece(guest.put(b"short"), 5), Piece(status, 1, True)]))
    assert not device.take()
    assert guest.get(status, 1) == bytes([FAILED])


# --- what breaks a queue ------------------------------------------------------------------------------------


def _no_status(guest: Guest) -> None:
    guest.offer(guest.chain([Piece(guest.put(HEADER.pack(FLUSH, 0, 0)), 16)]))


def _not_lent(guest: Guest) -> None:
    guest.offer(guest.chain([Piece(guest.guest - 8, 16), Piece(guest.guest, 1, True)]))


def _beyond_its_end(guest: Guest) -> None:
    guest.offer(guest.chain([Piece(guest.guest + guest.size - 8, 16), Piece(guest.guest, 1, True)]))


def _beyond_all(guest: Guest) -> None:
    guest.offer(guest.chain([Piece(2**64 - 8, 16), Piece(guest.guest, 1, True)]))


def _loop(guest: Guest) -> None:
    place = guest.put(HEADER.pack(FLUSH, 0, 0))
    guest.set_descriptor(0, place, 16, NEXT, 1)
    guest.set_descriptor(1, place, 16, NEXT, 0)
    guest.offer(0)


def _far_next(guest: Guest) -> None:
    guest.set_descriptor(0, guest.put(HEADER.pack(FLUSH, 0, 0)), 16, NEXT, guest.queue)
    guest.offer(0)


def _reads_after_writes(guest: Guest) -> None:
    place = guest.put(bytes(64))
    guest.offer(guest.chain([Piece(place, 16), Piece(place, 16, True), Piece(place, 16)]))


def _no_such_head(guest: Guest) -> None:
    guest.offer(guest.queue)


def _too_many(guest: Guest) -> None:
    guest.set_offered(guest.queue + 1)


def _twice(guest: Guest) -> None:
    asked = guest.ask(FLUSH)
    guest.offer(asked.head)


def _odd_table(guest: Guest) -> None:
    guest.set_descriptor(0, guest.put(bytes(64)), 24, INDIRECT)
    guest.offer(0)


def _empty_table(guest: Guest) -> None:
    guest.set_descriptor(0, guest.put(bytes(64)), 0, INDIRECT)
    guest.offer(0)


def _nested_table(guest: Guest) -> None:
    inner = guest.put(DESCRIPTOR.pack(guest.guest, 16, INDIRECT, 0), 16)
    guest.set_descriptor(0, inner, 16, INDIRECT)
    guest.offer(0)


def _table_that_goes_on(guest: Guest) -> None:
    guest.set_descriptor(0, guest.put(bytes(64)), 16, INDIRECT | NEXT, 1)
    guest.offer(0)


def _table_elsewhere(guest: Guest) -> None:
    guest.set_descriptor(0, guest.guest + guest.size - 16, 32, INDIRECT)
    guest.offer(0)


def _table_that_is_not_lent(guest: Guest) -> None:
    guest.set_descriptor(0, 64, 32, INDIRECT)
    guest.offer(0)


def _next_beyond_a_table(guest: Guest) -> None:
    table = guest.put(DESCRIPTOR.pack(guest.guest, 16, NEXT, 1), 16)
    guest.set_descriptor(0, table, 16, INDIRECT)
    guest.offer(0)


def _endless_segments(guest: Guest) -> None:
    table = b"".join(DESCRIPTOR.pack(guest.guest + 32 * i, 16, NEXT, i + 1) for i in range(1100))
    guest.set_descriptor(0, guest.put(table, 16), len(table), INDIRECT)
    guest.offer(0)


def _endless_bytes(guest: Guest) -> None:
    size = guest.size
    table = b"".join(DESCRIPTOR.pack(guest.guest, size, NEXT, i + 1) for i in range(4097))
    guest.set_descriptor(0, guest.put(table, 16), len(table), INDIRECT)
    guest.offer(0)


BROKEN: dict[Callable[[Guest], None], str] = {
    _no_status: "has no place for its status",
    _not_lent: "not lent",
    _beyond_its_end: "not lent",
    _beyond_all: "beyond all addresses",
    _loop: "does not end",
    _far_next: "goes on at a descriptor that there is not",
    _reads_after_writes: "comes after what is to be written",
    _no_such_head: "begins at a descriptor that there is not",
    _too_many: "more is available than there are descriptors",
    _twice: "in flight already",
    _odd_table: "impossible size",
    _empty_table: "impossible size",
    _nested_table: "where none may be",
    _table_that_goes_on: "where none may be",
    _table_elsewhere: "not within one range",
    _table_that_is_not_lent: "not within the memory",
    _next_beyond_a_table: "goes on at a descriptor that there is not",
    _endless_segments: "too many segments",
    _endless_bytes: "too",
}


@pytest.mark.parametrize("deed", BROKEN, ids=lambda deed: deed.__name__.strip("_"))
def test_what_breaks_a_queue(guest: Guest, deed: Callable[[Guest], None]) -> None:
    device = Device(guest)
    deed(guest)
    device.take()
    assert device.queue.broken is not None
    assert BROKEN[deed] in device.queue.broken
    assert not device.take()
    assert not device.queue.listen()


def test_what_was_taken_before_is_finished_all_the_same(guest: Guest) -> None:
    device = Device(guest)
    asked = guest.ask(FLUSH)
    [request] = device.take()
    _no_such_head(guest)
    assert not device.take()
    device.queue.finish(request, OK)
    device.queue.push()
    assert guest.finished() == [(asked.head, 1)]


def test_a_segment_may_go_on_in_the_next_range() -> None:
    guest = Guest(size=2 << 20)
    half = guest.size // 2
    parts = [Memory.from_buffer(memoryview(guest.memory)[at : at + half]) for at in (0, half)]
    # Side by side for the guest, and not so here.
    table = GuestMemory([(parts[1], guest.guest + half, 0), (parts[0], guest.guest, guest.user)])
    descriptors, available, used = _rings(guest)
    queue = Virtqueue(table, guest.queue, descriptors, available, used, 0)
    queue.set_disk(SECTORS * SECTOR, read_only=False, serial=b"")
    header, status = guest.put(HEADER.pack(IN, 0, 0)), guest.put(b"\xee")
    guest.offer(
        guest.chain(
            [Piece(header, 16), Piece(guest.guest + half - 100, SECTOR, True), Piece(status, 1, True)]
        )
    )
    [request] = queue.take(1)
    assert list(map(len, request.buffers)) == [100, SECTOR - 100]
    del request, queue, table, parts
    guest.close()


# --- notifications ------------------------------------------------------------------------------------------


def test_a_guest_that_wants_no_calls_gets_none(guest: Guest) -> None:
    device = Device(guest)
    guest.ask(FLUSH)
    guest.want_no_calls()
    device.queue.finish(device.one(), OK)
    assert not device.queue.push()
    assert not device.queue.push()  # there is nothing either


def test_calls_and_kicks_by_index() -> None:
    guest = Guest(event=True)
    device = Device(guest)
    assert not device.queue.listen()
    assert guest.wakes_at == 0
    guest.want_call_at(1)  # when there are two
    for calls in (False, True, False):
        guest.ask(FLUSH)
        assert device.queue.listen()  # one is there already
        device.queue.finish(device.one(), OK)
        assert device.queue.push() == calls
        assert not device.queue.listen()
    assert guest.wakes_at == 3
    for _ in range(2):
        guest.ask(FLUSH)
    guest.want_call_at(3)
    for request in device.take():
        device.queue.finish(request, OK)
    assert device.queue.push()  # the index is passed
    guest.close()


def test_indices_go_round() -> None:
    guest = Guest(queue=2, start=65_530)
    device = Device(guest, base=65_530)
    for _ in range(20):
        asked = guest.ask(99)
        assert not device.take()
        device.queue.push()
        assert guest.finished() == [(asked.head, 1)]
    assert device.queue.base == 14
    guest.close()


# --- memory -------------------------------------------------------------------------------------------------


def test_rings_must_be_within_the_memory(guest: Guest) -> None:
    table = GuestMemory([(Memory.from_buffer(guest.memory), guest.guest, guest.user)])
    descriptors, available, used = places = _rings(guest)
    for index, wrong in [
        (0, 8),
        (0, guest.size),
        (1, 1),
        (1, guest.size - 8),
        (2, 2),
        (2, guest.size - 8),
        (2, -guest.user),
    ]:
        moved = list(places)
        moved[index] += wrong
        with pytest.raises(ValueError, match="not within the memory, or misaligned"):
            Virtqueue(table, guest.queue, moved[0], moved[1], moved[2], 0)
    for size in (0, 3, 1 << 16):
        with pytest.raises(ValueError, match="a power of two"):
            Virtqueue(table, size, descriptors, available, used, 0)
    del table


def test_ranges_of_memory_are_checked(guest: Guest) -> None:
    memory = Memory.from_buffer(guest.memory)
    with pytest.raises(ValueError, match="overlap"):
        GuestMemory([(memory, 0, 0), (memory, guest.size - 1, 0)])
    with pytest.raises(ValueError, match="beyond all addresses"):
        GuestMemory([(memory, 2**64 - guest.size + 1, 0)])
    with pytest.raises(OverflowError):
        GuestMemory([(memory, 2**64, 0)])
    with pytest.raises(TypeError):
        GuestMemory([memory])  # type: ignore[list-item]
    memory.close()
    with pytest.raises(ValueError, match="closed"):
        GuestMemory([(memory, 0, 0)])


def test_memory_lasts_until_the_last_request_on_it_is_finished(guest: Guest) -> None:
    released: list[bool] = []
    device = Device(guest)
    first = Memory.from_buffer(guest.memory, on_release=lambda: released.append(True))
    device.queue.move(GuestMemory([(first, guest.guest, guest.user)]))
    guest.ask(IN, length=SECTOR)
    request = device.one()
    device.queue.move(device.table)
    first.close()
    assert not released
    device.queue.finish(request, OK)
    del request
    assert released


def test_memory_without_the_rings_breaks_the_queue(guest: Guest) -> None:
    device = Device(guest)
    with pytest.raises(ValueError, match="not within the memory"):
        device.queue.move(GuestMemory([]))
    assert device.queue.broken


def test_requests_are_finished_once_and_by_their_queue(guest: Guest) -> None:
    device, other = Device(guest), Device(guest)
    guest.ask(FLUSH)
    request = device.one()
    with pytest.raises(ValueError, match="another queue"):
        other.queue.finish(request, OK)
    device.queue.finish(request, OK)
    with pytest.raises(ValueError, match="finished"):
        device.queue.finish(request, OK)


# --- what is in flight, tracked -----------------------------------------------------------------------------

STATE = struct.Struct("=B5xHQ")
REGION = struct.Struct("=QHHHH")  # features, version, size, last, used


def _region(guest: Guest) -> bytearray:
    return bytearray(REGION.size + STATE.size * guest.queue)


def test_what_a_dead_process_had_in_flight_is_taken_again_in_order(guest: Guest) -> None:
    region = _region(guest)
    device = Device(guest, tracked=View(Memory.from_buffer(region)))
    for number in range(4):
        guest.ask(OUT, number, bytes(SECTOR))
    requests = device.take()
    for request in requests[1], requests[3]:
        device.queue.finish(request, OK)
    device.queue.push()
    assert len(guest.finished()) == 2
    guest.ask(OUT, 9, bytes(SECTOR))
    assert [request.offset for request in device.take()] == [9 * SECTOR]
    del device, requests, request
    again = Device(guest, base=77, tracked=View(Memory.from_buffer(region)))
    assert again.queue.in_flight == 3
    assert [request.offset // SECTOR for request in again.take()] == [0, 2, 9]
    assert again.queue.base == 5  # by what is in flight and used, and not by what the client has said
    guest.ask(FLUSH)
    assert [request.kind for request in again.take()] == [FLUSH]


def test_a_push_that_was_not_marked_is_not_done_again(guest: Guest) -> None:
    region = _region(guest)
    device = Device(guest, tracked=View(Memory.from_buffer(region)))
    for number in range(3):
        guest.ask(OUT, number, bytes(SECTOR))
    requests = device.take()
    for request in requests[:2]:
        device.queue.finish(request, OK)
    before = bytes(region)
    device.queue.push()
    region[:] = before  # as if it had died in the middle of that
    again = Device(guest, tracked=View(Memory.from_buffer(region)))
    assert [request.offset for request in again.take()] == [2 * SECTOR]


def test_what_was_finished_and_not_pushed_is_done_again(guest: Guest) -> None:
    region = _region(guest)
    device = Device(guest, tracked=View(Memory.from_buffer(region)))
    guest.ask(OUT, 5, bytes(SECTOR))
    device.queue.finish(device.one(), OK)
    again = Device(guest, tracked=View(Memory.from_buffer(region)))
    assert [request.offset for request in again.take()] == [5 * SECTOR]


@pytest.mark.parametrize(
    ("size", "last", "used", "words"),
    [
        (8, 0, 0, "another size"),
        (16, 0, 1, "another time"),
        (16, 0, 2**16 - 17, "another time"),
        (16, 16, 2**16 - 1, "descriptor that there is not"),
    ],
)
def test_a_region_that_is_nonsense_is_refused(
    guest: Guest, size: int, last: int, used: int, words: str
) -> None:
    region = _region(guest)
    REGION.pack_into(region, 0, 0, 1, size, last, used)
    with pytest.raises(ValueError, match=words):
        Device(guest, tracked=View(Memory.from_buffer(region)))
    with pytest.raises(ValueError, match="too small"):
        Device(guest, tracked=View(Memory.from_buffer(bytearray(64))))


# --- whatever they say --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(200))
def test_guests_that_say_anything(seed: int) -> None:
    """Nothing but the memory that was lent is touched (under the sanitizers), and every walk ends."""
    chance = Random(seed)
    guest = Guest(size=1 << 16, queue=8, event=chance.random() < 0.5)
    device = Device(guest)
    held: list[GuestRequest] = []
    for _ in range(60):
        match chance.randrange(6):
            case 0:  # rubbish in the tables
                place = chance.randrange(guest.size - 64)
                guest.memory[place : place + 64] = chance.randbytes(64)
            case 1 | 2:
                address = guest.guest + chance.choice(
                    [0, 8, guest.size - 16, guest.size, chance.randrange(1 << 16)]
                )
                flags = chance.choice([0, NEXT, WRITABLE, NEXT | WRITABLE, INDIRECT, chance.randrange(8)])
                length = chance.choice([0, 1, 16, 512, 1 << 16, 2**32 - 1, chance.randrange(4096)])
                guest.set_descriptor(chance.randrange(8), address, length, flags, chance.randrange(10))
            case 3:
                guest.offer(chance.randrange(10))
            case 4:
                held += device.queue.take(chance.randrange(4))
                for request in held:
                    for buffer in request.buffers:
                        assert device.memory.address <= buffer.address
                        assert buffer.address + len(buffer) <= device.memory.address + guest.size
                        if request.kind == IN:
                            buffer[:] = bytes(len(buffer))
            case _:
                while held and chance.random() < 0.7:
                    device.queue.finish(held.pop(chance.randrange(len(held))), OK)
                device.queue.push()
                device.queue.listen()
        if device.queue.broken is not None:
            held.clear()
            device = Device(guest, base=chance.randrange(1 << 16))
    del device, held
    guest.close()


def test_a_status_is_written_once(guest: Guest) -> None:
    device = Device(guest)
    asked = guest.ask(IN, length=SECTOR)
    request = device.one()
    assert guest.status(asked) == UNANSWERED
    device.queue.finish(request, UNSUPPORTED)
    assert guest.status(asked) == UNSUPPORTED
