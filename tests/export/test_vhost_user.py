"""VhostUser: what clients and their guests have of a device, one after the other, until the very end."""

import asyncio
import contextlib
import errno
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import aioblk
from aioblk.export import Disk, VhostUser
from aioblk.testing import Fault, Faulty, MemoryDevice

from ..support.gate import Gate
from ..support.guest import (
    DISCARD,
    FAILED,
    FLUSH,
    GET_ID,
    IN,
    OK,
    OUT,
    RANGE,
    SECTOR,
    UNANSWERED,
    UNSUPPORTED,
    WRITE_ZEROES,
    Guest,
)
from ..support.turns import turns, until
from ..support.vhost_user_client import (
    ADD_MEM_REG,
    CONFIG,
    GET_CONFIG,
    GET_FEATURES,
    GET_INFLIGHT_FD,
    GET_MAX_MEM_SLOTS,
    GET_QUEUE_NUM,
    GET_VRING_BASE,
    HEADER,
    INFLIGHT,
    REM_MEM_REG,
    SET_BACKEND_REQ_FD,
    SET_CONFIG,
    SET_INFLIGHT_FD,
    SET_MEM_TABLE,
    SET_VRING_ENABLE,
    TWO,
    Client,
    readable,
)

CAPACITY = 1 << 20
BLOCK = 4096


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "blk.sock"


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.close()


@pytest.fixture
async def disk() -> AsyncIterator[MemoryDevice]:
    async with MemoryDevice(CAPACITY) as disk:
        yield disk


# --- by way of libblkio -------------------------------------------------------------------------------------


async def test_a_device_is_what_it_serves(disk: MemoryDevice, place: Path) -> None:
    async with (
        VhostUser(disk, place, queues=2) as export,
        aioblk.VirtioBlkVhostUser(place, num_queues=2) as device,
    ):
        assert (device.capacity, device.read_only) == (CAPACITY, False)
        await device.write(BLOCK, b"x" * BLOCK)
        assert await disk.read(BLOCK, BLOCK) == b"x" * BLOCK == await device.read(BLOCK, BLOCK)
        await device.write_zeroes(BLOCK, BLOCK)
        assert await device.read(BLOCK, BLOCK) == bytes(BLOCK)
        await device.discard(0, BLOCK)
        await device.flush()
        seen = export.statistics()
        assert (seen.clients, seen.clients_total, seen.in_flight) == (1, 1, 0)
        assert seen.requests == {"read": 2, "write": 1, "flush": 1, "discard": 1, "write_zeroes": 1}
        assert seen.bytes["read"] == 2 * BLOCK
    assert place.name not in os.listdir(place.parent)


async def test_clients_come_one_after_the_other(disk: MemoryDevice, place: Path) -> None:
    async with VhostUser(disk, place) as export:
        for number in range(3):
            async with aioblk.VirtioBlkVhostUser(place) as device:
                await device.write(number * BLOCK, bytes([number]) * BLOCK)
        assert export.statistics().clients_total == 3
    assert disk.content()[2 * BLOCK] == 2


async def test_a_second_client_waits_for_the_first(disk: MemoryDevice, place: Path) -> None:
    async with VhostUser(disk, place), Client(place) as first, Client(place) as second:
        await first.number(GET_FEATURES)
        waits = asyncio.create_task(second.number(GET_FEATURES))
        assert await first.number(GET_QUEUE_NUM) == 1
        assert not waits.done()
        first.close()
        assert await waits


@pytest.mark.parametrize("of_device", [False, True])
async def test_what_is_read_only_refuses_changes(place: Path, guest: Guest, of_device: bool) -> None:
    async with (
        MemoryDevice(CAPACITY, read_only=of_device) as disk,
        VhostUser(disk, place, read_only=not of_device),
    ):
        async with aioblk.VirtioBlkVhostUser(place, read_only=True) as device:
            assert device.read_only
            await device.read(0, BLOCK)
        async with Client(place, guest) as client:
            assert await client.number(GET_FEATURES) >> 5 & 1
            await client.set_up()
            asked = await client.request(OUT, 0, bytes(SECTOR))
            assert guest.status(asked) == FAILED


async def test_errors_reach_the_guest(place: Path, guest: Guest, disk: MemoryDevice) -> None:
    faulty = Faulty(
        disk,
        Fault(operations={"read"}, error=errno.EIO, times=1),
        Fault(operations={"discard"}, error=errno.ENOTSUP),
    )
    async with VhostUser(faulty, place) as export, Client(place, guest) as client:
        await client.set_up()
        assert guest.status(await client.request(IN, length=SECTOR)) == FAILED
        assert guest.status(await client.request(IN, length=SECTOR)) == OK
        assert guest.status(await client.request(DISCARD, 0, RANGE.pack(0, 8, 0))) == UNSUPPORTED
        assert export.statistics().errors == {"EIO": 1, errno.errorcode[errno.ENOTSUP]: 1}


# --- what is said of the device -----------------------------------------------------------------------------


async def test_the_configuration_says_what_the_device_is(place: Path) -> None:
    limits = aioblk.Limits(request_alignment=4096, optimal_io_alignment=16384, discard_alignment=8192)
    async with (
        MemoryDevice(CAPACITY, limits=limits) as disk,
        VhostUser(disk, place, queues=3),
        Client(place) as client,
    ):
        assert await client.number(GET_QUEUE_NUM) == 3
        assert await client.number(GET_MAX_MEM_SLOTS) == 509
        reply = await client.ask(GET_CONFIG, CONFIG.pack(0, 96, 0) + bytes(96))
        assert CONFIG.unpack_from(reply) == (0, 96, 0)
        space = reply[CONFIG.size :]
        assert struct.unpack_from("<QII", space) == (CAPACITY // SECTOR, 0, 126)
        assert struct.unpack_from("<IBBHI", space, 20) == (4096, 2, 0, 4, 4)
        assert struct.unpack_from("<H", space, 34) == (3,)
        assert struct.unpack_from("<IIIIIB", space, 36) == (131072, 1, 16, 131072, 1, 1)
        assert not any(space[60:])
        part = await client.ask(GET_CONFIG, CONFIG.pack(20, 4, 0) + bytes(4))
        assert part[CONFIG.size :] == struct.pack("<I", 4096)


async def test_the_serial_number(disk: MemoryDevice, place: Path, guest: Guest) -> None:
    async with VhostUser(disk, place, serial="disk-7"), Client(place, guest) as client:
        await client.set_up()
        asked = await client.request(GET_ID, length=20)
        assert guest.data(asked) == b"disk-7".ljust(20, b"\0")


async def test_a_client_is_told_of_another_capacity(place: Path, guest: Guest) -> None:
    limits = aioblk.Limits(can_grow=True)
    async with MemoryDevice(CAPACITY, limits=limits) as disk, VhostUser(disk, place) as export:
        ours, theirs = socket.socketpair()
        async with Client(place, guest) as client:
            await client.set_up()
            with ours, theirs:
                ours.setblocking(False)
                assert await client.tell(SET_BACKEND_REQ_FD, b"", [theirs.fileno()])
                asked = await client.request(OUT, CAPACITY // SECTOR, b"y" * SECTOR)
                assert guest.status(asked) == FAILED  # though the device could grow
                assert export.resized() == CAPACITY
                await disk.write(CAPACITY, bytes(BLOCK))
                assert export.resized() == CAPACITY + BLOCK
                await readable(ours.fileno())
                assert HEADER.unpack(ours.recv(64)) == (2, 1, 0)
            reply = await client.ask(GET_CONFIG, CONFIG.pack(0, 8, 0) + bytes(8))
            assert struct.unpack("<Q", reply[CONFIG.size :]) == ((CAPACITY + BLOCK) // SECTOR,)
            asked = await client.request(OUT, CAPACITY // SECTOR, b"y" * SECTOR)
            assert guest.status(asked) == OK
            export.resized()


async def test_without_flushes_writes_are_durable_when_they_are_done(place: Path, guest: Guest) -> None:
    asked: list[tuple[str, bool]] = []

    class Writes:
        capacity = CAPACITY

        async def read(self, offset: int, length: int) -> bytes:
            return bytes(length)

        async def write(self, offset: int, data: memoryview) -> None:
            asked.append(("write", False))

        async def flush(self) -> None:
            asked.append(("flush", True))

    async with VhostUser(Writes(), place):
        async with Client(place, guest) as client:
            client.features &= ~(1 << 9)
            await client.set_up()
            await client.request(OUT, 0, bytes(SECTOR))
        assert [kind for kind, _ in asked] == ["write", "flush"]


# --- memory -------------------------------------------------------------------------------------------------


async def test_nothing_is_copied_on_devices_that_take_memory(place: Path, guest: Guest) -> None:
    limits = aioblk.Limits(request_alignment=512, needs_mem_regions=True, max_mem_regions=8)
    async with (
        MemoryDevice(CAPACITY, limits=limits) as disk,
        VhostUser(disk, place),
        Client(place, guest) as client,
    ):
        await client.set_up()
        await client.request(OUT, 0, b"z" * BLOCK)
        assert guest.data(await client.request(IN, 0, length=BLOCK)) == b"z" * BLOCK
        assert disk.statistics().bounced_bytes == 0
        assert await client.tell(REM_MEM_REG, client.region(guest), [guest.fd])


async def test_memory_comes_and_goes(disk: MemoryDevice, place: Path) -> None:
    first, second = Guest(), Guest(guest=1 << 40)
    async with VhostUser(disk, place, queues=2), Client(place, first, second) as client:
        await client.set_up()
        assert not await client.tell(ADD_MEM_REG, client.region(first), [first.fd])  # it overlaps
        assert await client.tell(REM_MEM_REG, client.region(second), [second.fd])
        await readable(client.errors[1])  # whose rings were there
        assert not await client.tell(REM_MEM_REG, client.region(second))
        asked = await client.request(OUT, 0, bytes(SECTOR))
        assert first.status(asked) == OK
        # All at once, in the older way; the queue goes on where it is.
        table = b"".join(
            struct.pack("=QQQQ", each.guest, each.size, each.user, 0) for each in (first, second)
        )
        assert await client.tell(SET_MEM_TABLE, struct.pack("=II", 2, 0) + table, [first.fd, second.fd])
        asked = await client.request(OUT, 0, bytes(SECTOR))
        assert first.status(asked) == OK
    first.close()
    second.close()


async def test_memory_that_could_be_taken_away_can_be_refused(
    disk: MemoryDevice, place: Path, tmp_path: Path
) -> None:
    sealed = Guest()
    with (tmp_path / "memory").open("w+b") as file:
        file.truncate(sealed.size)
        async with VhostUser(disk, place, only_sealed=True), Client(place, sealed) as client:
            await client.negotiate()
            assert await client.tell(ADD_MEM_REG, client.region(sealed), [sealed.fd])
            with pytest.raises(PermissionError):
                os.ftruncate(sealed.fd, 0)  # that it could be is over
            assert await client.tell(REM_MEM_REG, client.region(sealed))
            assert not await client.tell(ADD_MEM_REG, client.region(sealed), [file.fileno()])
        async with VhostUser(disk, place), Client(place, sealed) as client:
            await client.negotiate()
            assert await client.tell(ADD_MEM_REG, client.region(sealed), [file.fileno()])
    sealed.close()


# --- queues -------------------------------------------------------------------------------------------------


async def test_what_is_available_together_is_begun_together(disk: MemoryDevice, place: Path) -> None:
    guest = Guest(queue=64, event=True)
    async with VhostUser(disk, place), Client(place, guest) as client:
        await client.set_up()
        asked = [guest.ask(OUT, number, bytes([number]) * SECTOR) for number in range(16)]
        guest.want_call_at(15)  # once, by the last one
        client.kick()
        await client.called()
        assert len(guest.finished()) == 16
        assert {guest.status(each) for each in asked} == {OK}
    assert disk.content()[15 * SECTOR] == 15
    guest.close()


async def test_a_broken_queue_leaves_the_others_alone(disk: MemoryDevice, place: Path, caplog: Any) -> None:
    guests = Guest(), Guest(guest=1 << 40)
    async with VhostUser(disk, place, queues=2) as export, Client(place, *guests) as client:
        await client.set_up()
        guests[0].offer(99)
        client.kick(0)
        await readable(client.errors[0])
        assert guests[1].status(await client.request(OUT, 0, bytes(SECTOR), queue=1)) == OK
        assert export.statistics().broken == 1
        assert "queue 0 is stopped: a chain begins at a descriptor that there is not" in caplog.text
        assert TWO.unpack(await client.ask(GET_VRING_BASE, TWO.pack(0, 0)))[0] == 0
    for guest in guests:
        guest.close()


async def test_a_queue_is_stopped_when_its_requests_are_done(place: Path, guest: Guest) -> None:
    async with Gate(CAPACITY) as disk, VhostUser(disk, place) as export, Client(place, guest) as client:
        await client.set_up()
        await client.request(FLUSH)
        disk.hold()
        asked = guest.ask(OUT, 0, bytes(SECTOR))
        client.kick()
        await until(lambda: export.statistics().in_flight)
        stopping = asyncio.create_task(client.ask(GET_VRING_BASE, TWO.pack(0, 0)))
        await turns(10)
        assert not stopping.done()
        disk.release()
        assert TWO.unpack(await stopping) == (0, 2)
        assert guest.status(asked) == OK
        # It begins again where it was.
        guest.finished()
        await client.start(base=2)
        assert guest.status(await client.request(FLUSH)) == OK


async def test_a_queue_that_is_disabled_takes_nothing_until_it_is_not(
    disk: MemoryDevice, place: Path, guest: Guest
) -> None:
    async with VhostUser(disk, place), Client(place, guest) as client:
        await client.set_up()
        assert await client.tell(SET_VRING_ENABLE, TWO.pack(0, 0))
        asked = guest.ask(FLUSH)
        client.kick()
        await client.number(GET_QUEUE_NUM)  # the kick comes before or within that
        await turns(5)
        assert guest.status(asked) == UNANSWERED
        assert await client.tell(SET_VRING_ENABLE, TWO.pack(0, 1))
        await client.called()
        assert guest.status(asked) == OK


async def test_requests_wait_for_their_share(place: Path) -> None:
    limit = aioblk.InFlight(requests=3)
    guest = Guest(queue=64)
    with limit.share() as share:
        async with (
            Gate(CAPACITY) as disk,
            VhostUser(disk, place, in_flight=share) as export,
            Client(place, guest) as client,
        ):
            await client.set_up()
            disk.hold()
            for number in range(8):
                guest.ask(OUT, number, bytes(SECTOR))
            client.kick()
            await until(lambda: export.statistics().in_flight == 8)
            assert (limit.requests, disk.statistics().in_flight) == (3, 3)
            disk.release()
            done: list[Any] = []
            while len(done) < 8:
                await client.called()
                done += guest.finished()
            assert limit.requests == 0
    guest.close()


# --- the end ------------------------------------------------------------------------------------------------


async def test_what_is_in_flight_is_finished_before_a_client_is_sent_away(place: Path, guest: Guest) -> None:
    async with Gate(CAPACITY) as disk:
        export = VhostUser(disk, place)
        await export.__aenter__()
        async with Client(place, guest) as client:
            await client.set_up()
            disk.hold()
            asked = guest.ask(OUT, 0, b"w" * SECTOR)
            client.kick()
            await until(lambda: export.statistics().in_flight)
            leaving = asyncio.create_task(export.__aexit__(None, None, None))
            await turns(10)
            assert not leaving.done()
            disk.release()
            await leaving
            await client.until_hung_up()
            assert guest.status(asked) == OK
            assert guest.finished() == [(asked.head, 1)]


async def test_a_device_that_never_finishes_holds_nobody_up(
    place: Path, guest: Guest, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it does late goes nowhere: the memory lasts until then, and the next client has its own."""
    monkeypatch.setattr("aioblk.export._vhost_user.session.DEVICE_GRACE", 0.01)
    async with Gate(CAPACITY) as disk, VhostUser(disk, place, drain=0.0) as export:
        async with Client(place, guest) as client:
            await client.set_up()
            disk.hold()
            asked = guest.ask(OUT, 0, bytes(SECTOR))
            client.kick()
            await until(lambda: export.statistics().in_flight)
        async with Client(place) as following:
            assert await following.number(GET_QUEUE_NUM) == 1
            assert "does not finish what it has been given" in caplog.text
            disk.release()
            await turns(5)
        assert guest.status(asked) == UNANSWERED


async def test_a_client_that_goes_leaves_nothing_behind(place: Path, guest: Guest) -> None:
    """Its requests are finished before the next one is served: they could be done once more by that."""
    async with Gate(CAPACITY) as disk, VhostUser(disk, place) as export:
        async with Client(place, guest) as client:
            await client.set_up()
            disk.hold()
            guest.ask(OUT, 0, b"v" * SECTOR)
            client.kick()
            await until(lambda: export.statistics().in_flight)
        async with Client(place) as following:
            waits = asyncio.create_task(following.number(GET_FEATURES))
            await turns(10)
            assert not waits.done()
            disk.release()
            assert await waits


async def test_a_device_that_is_lost_ends_it_and_answers_nothing(
    place: Path, guest: Guest, disk: MemoryDevice
) -> None:
    faulty = Faulty(disk)
    async with VhostUser(faulty, place) as export, Client(place, guest) as client:
        await client.set_up()
        faulty.lose("the cable was pulled")
        asked = guest.ask(OUT, 0, bytes(SECTOR))
        client.kick()
        with pytest.raises(aioblk.DeviceLostError, match="cable"):
            await export.served()
        await client.until_hung_up()
        assert guest.status(asked) == UNANSWERED
        assert not guest.finished()
    with pytest.raises(aioblk.DeviceLostError):
        await VhostUser(faulty, place).__aenter__()


async def test_what_was_not_answered_is_done_by_who_serves_it_next(place: Path, disk: MemoryDevice) -> None:
    """The client keeps account of what is in flight: nothing is lost, and it is done in the same order."""
    guest = Guest(queue=16)
    faulty = Faulty(disk)
    region = -1
    async with VhostUser(faulty, place) as export, Client(place, guest) as client:
        await client.negotiate()
        await client.lend()
        client.send(GET_INFLIGHT_FD, INFLIGHT.pack(0, 0, 1, guest.queue))
        _, body, [region] = await client.receive()
        assert await client.tell(SET_INFLIGHT_FD, body, [region])
        await client.start()
        assert guest.status(await client.request(OUT, 0, b"a" * SECTOR)) == OK
        faulty.lose("killed")
        asked = [guest.ask(OUT, 1, bytes([number]) * SECTOR) for number in range(3)]
        client.kick()
        with pytest.raises(aioblk.DeviceLostError):
            await export.served()
        assert not guest.finished()
    async with VhostUser(disk, place), Client(place, guest) as client:
        await client.negotiate()
        await client.lend()
        assert await client.tell(SET_INFLIGHT_FD, body, [region])
        await client.start(base=0)  # which is not what counts
        done: list[Any] = []
        while len(done) < 3:
            await client.called()
            done += guest.finished()
        assert {guest.status(each) for each in asked} == {OK}
        assert (await disk.read(SECTOR, 1))[0] == 2  # the last of them
    os.close(region)
    guest.close()


async def test_it_is_served_until_it_is_left(disk: MemoryDevice, place: Path) -> None:
    export = VhostUser(disk, place)
    with pytest.raises(aioblk.UsageError, match="not open yet"):
        await export.served()
    async with export:
        waits = asyncio.create_task(export.served())
        with pytest.raises(aioblk.UsageError, match="entered once"):
            await export.__aenter__()
        with pytest.raises(OSError, match="in use"):
            await VhostUser(disk, place).__aenter__()
        cancelled = asyncio.create_task(export.served())
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        assert not waits.done()
    await waits
    assert "left" in repr(export)


async def test_what_cannot_be_served(disk: MemoryDevice, place: Path) -> None:
    for wrong in ({"queues": 0}, {"queues": 257}, {"serial": "x" * 21}, {"drain": -1.0}):
        with pytest.raises(aioblk.OptionError, match=next(iter(wrong))):
            VhostUser(disk, place, **wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="BlockDevice is needed"):
        VhostUser(object(), place)  # type: ignore[arg-type]


# --- objects of a program's own -----------------------------------------------------------------------------


class Own:
    """A disk in a bytearray."""

    def __init__(self) -> None:
        self.data = bytearray(64 * SECTOR)
        self.calls: list[str] = []

    @property
    def capacity(self) -> int:
        return len(self.data)

    async def read(self, offset: int, length: int) -> bytes:
        self.calls.append("read")
        await asyncio.sleep(0)
        if offset == 8 * SECTOR:
            return b"too short"
        if offset == 9 * SECTOR:
            raise RuntimeError("a mistake")
        return bytes(self.data[offset : offset + length])

    async def write(self, offset: int, data: memoryview) -> None:
        self.calls.append("write")
        self.data[offset : offset + len(data)] = data


async def test_an_object_with_coroutines_is_a_disk(place: Path, guest: Guest) -> None:
    own = Own()
    assert isinstance(own, Disk)
    async with VhostUser(own, place) as export, Client(place, guest) as client:
        await client.set_up()
        assert guest.status(await client.request(OUT, 2, b"o" * BLOCK, cuts=2)) == OK
        assert guest.data(await client.request(IN, 2, length=BLOCK)) == b"o" * BLOCK
        assert guest.status(await client.request(WRITE_ZEROES, 0, RANGE.pack(2, 1, 0))) == OK
        assert own.data[2 * SECTOR : 4 * SECTOR] == bytes(SECTOR) + b"o" * SECTOR
        assert guest.status(await client.request(DISCARD, 0, RANGE.pack(0, 1, 0))) == OK
        assert guest.status(await client.request(FLUSH)) == OK
        for sector in (8, 9):
            assert guest.status(await client.request(IN, sector, length=SECTOR)) == FAILED
        assert export.statistics().errors == {"EIO": 2}


# --- nonsense -----------------------------------------------------------------------------------------------

NONSENSE: dict[str, tuple[bytes, str]] = {
    "a wrong version": (HEADER.pack(1, 2, 0), "with the flags 0x2"),
    "a reply": (HEADER.pack(1, 5, 0), "with the flags 0x5"),
    "a long message": (HEADER.pack(1, 1, 5000), "a message of 5000 bytes"),
    "no such message": (HEADER.pack(99, 1, 0), "there is no message 99"),
    "half a message": (HEADER.pack(2, 1, 8) + bytes(4), "hangs up in the middle"),
    "half a head": (b"\1\0", "hangs up in the middle"),
    "a short body": (HEADER.pack(2, 1, 4) + bytes(4), "message 2 with 4 bytes"),
    "no such queue": (HEADER.pack(8, 1, 8) + TWO.pack(1, 16), "queue 1, and there are 1"),
    "no such size": (HEADER.pack(8, 1, 8) + TWO.pack(0, 17), "cannot have 17 descriptors"),
    "features that are not offered": (HEADER.pack(2, 1, 8) + b"\xff" * 8, "are not offered"),
    "protocol features that are not offered": (HEADER.pack(16, 1, 8) + b"\xff" * 8, "are not offered"),
    "a configuration beyond all": (HEADER.pack(24, 1, 12) + CONFIG.pack(250, 10, 0), "in the configuration"),
    "a change of it": (HEADER.pack(SET_CONFIG, 1, 12) + bytes(12), "cannot be changed"),
    "memory without a descriptor": (HEADER.pack(37, 1, 40) + bytes(40), "without its descriptor"),
    "a table without descriptors": (HEADER.pack(5, 1, 8) + struct.pack("=II", 3, 0), "does not say which"),
    "a kick without a descriptor": (HEADER.pack(12, 1, 8) + bytes(8), "what is no eventfd"),
    "polling": (HEADER.pack(12, 1, 8) + struct.pack("=Q", 0x100), "has to be kicked"),
    "an account of too many queues": (
        HEADER.pack(GET_INFLIGHT_FD, 1, 24) + INFLIGHT.pack(0, 0, 9, 8),
        "there are no 9 queues",
    ),
    "an account that is nowhere": (
        HEADER.pack(SET_INFLIGHT_FD, 1, 24) + INFLIGHT.pack(4096, 0, 1, 8),
        "does not say where",
    ),
    "a base that there is not": (HEADER.pack(10, 1, 8) + TWO.pack(0, 1 << 16), "cannot begin at 65536"),
}


@pytest.mark.parametrize("what", NONSENSE)
async def test_who_says_nonsense_is_sent_away(
    disk: MemoryDevice, place: Path, what: str, caplog: Any
) -> None:
    said, words = NONSENSE[what]
    async with VhostUser(disk, place):
        async with Client(place) as client:
            client.socket.send(said)
            if "half" in what:
                client.socket.shutdown(socket.SHUT_WR)
            await client.until_hung_up()
        assert words in caplog.text
        async with Client(place) as client:
            assert await client.number(GET_QUEUE_NUM) == 1


async def test_descriptors_of_other_kinds_are_refused(disk: MemoryDevice, place: Path, guest: Guest) -> None:
    reading, writing = os.pipe()
    async with VhostUser(disk, place):
        for kind in (12, 13, 14):
            async with Client(place) as client:
                client.send(kind, bytes(8), [reading])
                await client.until_hung_up()
        async with Client(place, guest) as client:
            await client.negotiate()
            assert not await client.tell(ADD_MEM_REG, client.region(guest), [reading])
            assert not await client.tell(SET_BACKEND_REQ_FD, b"", [reading])
            # Its own would be kept open by who waits for it to be closed.
            assert not await client.tell(SET_BACKEND_REQ_FD, b"", [client.socket.fileno()])
            small = os.memfd_create("small")
            assert not await client.tell(ADD_MEM_REG, client.region(guest), [small])
            os.close(small)
            client.send(99, b"", [reading] * 8)
            await client.until_hung_up()
        async with Client(place) as client:
            client.send(GET_FEATURES, b"", [reading] * 100)
            await client.until_hung_up()
    os.close(reading)
    os.close(writing)


async def test_a_client_that_takes_no_answers_is_sent_away(
    disk: MemoryDevice, place: Path, caplog: Any
) -> None:
    async with VhostUser(disk, place), Client(place) as client:
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while "does not take its answers" not in caplog.text:
                client.send(GET_FEATURES)
                await asyncio.sleep(0)
        await client.until_hung_up()
        assert "does not take its answers" in caplog.text


async def test_a_kick_that_is_full_blocks_nobody(disk: MemoryDevice, place: Path, guest: Guest) -> None:
    async with VhostUser(disk, place), Client(place, guest) as client:
        await client.set_up()
        os.eventfd_write(client.kicks[0], 2**64 - 2)
        os.eventfd_write(client.calls[0], 2**64 - 2)
        asked = guest.ask(FLUSH)
        await until(lambda: guest.status(asked) != UNANSWERED)
        assert await client.number(GET_QUEUE_NUM) == 1


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "aioblk.export")
