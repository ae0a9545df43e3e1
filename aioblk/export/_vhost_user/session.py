"""One client: what it says, and what becomes of it."""

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import ClassVar, Final, final

from ..._native._core import GuestMemory
from ..._sync.tasks import SteadfastTasks
from ...errors import DeviceClosedError, DeviceLostError
from ...layers._loss import give_up
from ...services.in_flight import InFlightShare
from ...services.socket_stream import DisconnectedError
from ..disk import Served
from ..statistics import Counts
from . import protocol
from .channel import Channel, Message
from .config import capacity_of, features_of, space_of
from .descriptors import is_eventfd
from .lent import LentMemory, RefusedError
from .protocol import Feature, Kind, ProtocolFeature
from .requests import Requests
from .ring import Ring, Terms
from .tracking import Tracking, new_region

log = logging.getLogger("aioblk.export")

WITH_REPLIES: Final = frozenset(kind for kind in Kind if kind.name.startswith("GET_"))
"""What has an answer of its own, which does not say whether it was done."""

DEVICE_GRACE = 2.0  # seconds, beyond the others, for a device to finish when it has been given up


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a client is offered."""

    device: Served
    owner: object
    """What was given to be served, which may be able to be told of memory."""
    queues: int
    read_only: bool
    serial: bytes
    only_sealed: bool
    drain: float
    share: InFlightShare | None
    counts: Counts

    @property
    def disk(self) -> tuple[int, bool, bytes]:
        return capacity_of(self.device), self.read_only, self.serial


@final
class Session:
    """A client that is there."""

    def __init__(self, connection: socket.socket, offer: Offer) -> None:
        self._connection = connection
        self._channel = Channel(connection)
        self._offer = offer
        self._requests = Requests(offer.device)
        terms = Terms(self._requests, offer.counts, offer.share, self._lose)
        self._rings = [Ring(number, terms) for number in range(offer.queues)]
        self._lent = self._new_memory()
        self._lent.on_change = self._move
        self._tracking: Tracking | None = None
        self._backend: socket.socket | None = None
        self._features = 0
        self._protocol_features = 0
        self._work = SteadfastTasks("serve")
        self.lost: DeviceLostError | DeviceClosedError | None = None
        """Why the device is not there any more, if that is why the session ends."""

    def _new_memory(self) -> LentMemory:
        return LentMemory(self._offer.owner, only_sealed=self._offer.only_sealed)

    @property
    def in_flight(self) -> int:
        return sum(ring.in_flight for ring in self._rings)

    async def run(self) -> None:
        """Until the client hangs up, or the device is lost.

        Raises:
            DisconnectedError: it says what cannot be.
        """
        while (message := await self._channel.receive()) is not None:
            try:
                await self._hear(message)
            finally:
                message.close()
            await asyncio.sleep(0)  # whatever it has to say, others have their turn

    async def end(self) -> None:
        """Finish what is in flight, and hang up. It goes on when the caller is cancelled."""
        await self._work.finish(self._end())

    def _lose(self, error: DeviceLostError | DeviceClosedError) -> None:
        if self.lost is None:
            self.lost = error
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)

    async def _end(self) -> None:
        for ring in self._rings:
            ring.abandon()
        if not await self._is_idle(self._offer.drain):
            log.error("the device does not finish what it has been given, and is given up")
            give_up(self._offer.owner, "the client is gone")
            await self._is_idle(DEVICE_GRACE)
        for ring in self._rings:
            ring.close()
        self._lent.on_change = None
        await self._lent.clear()
        if self._tracking is not None:
            self._tracking.close()
        if self._backend is not None:
            self._backend.close()
        self._connection.close()

    async def _is_idle(self, patience: float) -> bool:
        """Whether all that has begun is over, after so many seconds at most."""
        waiting = [asyncio.create_task(ring.until_idle()) for ring in self._rings]
        _, late = await asyncio.wait(waiting, timeout=patience)  # a steadfast task has no other time-outs
        for task in late:
            task.cancel()
        return not late

    def resize(self) -> None:
        """The device has another capacity."""
        for ring in self._rings:
            ring.set_disk(self._offer.disk)
        if self._backend is not None:
            with contextlib.suppress(DisconnectedError):
                Channel(self._backend).send(protocol.CONFIG_CHANGED, b"", reply=False)

    # --- messages -------------------------------------------------------------------------------------------

    def _has(self, feature: Feature) -> bool:
        return bool(self._features >> feature & 1)

    async def _hear(self, message: Message) -> None:
        wants = message.wants_reply and self._protocol_features >> ProtocolFeature.REPLY_ACK & 1
        try:
            handler = self.HANDLERS.get(message.kind)
            if handler is None:
                raise RefusedError(f"there is no message {message.kind}")
            reply = await handler(self, message)
        except RefusedError as error:
            if not wants or message.kind in WITH_REPLIES:
                raise DisconnectedError(str(error)) from None
            log.warning("the client is refused: %s", str(error))  # whoever keeps the record keeps no memory
            reply = protocol.U64.pack(1)
        except struct.error:
            raise DisconnectedError(
                f"the client sends message {message.kind} with {len(message.body)} bytes"
            ) from None
        if reply is None and wants:
            reply = protocol.U64.pack(0)
        if reply is not None:
            self._channel.send(message.kind, reply)

    def _ring(self, number: int) -> Ring:
        if number >= len(self._rings):
            raise DisconnectedError(f"the client speaks of queue {number}, and there are {len(self._rings)}")
        return self._rings[number]

    def _ring_at_rest(self, number: int) -> Ring:
        ring = self._ring(number)
        if ring.is_started:
            raise RefusedError(f"queue {number} is in use and cannot be changed")
        return ring

    def _start(self, number: int) -> None:
        tracked = None if self._tracking is None else self._tracking.of(number)
        self._rings[number].start(
            self._lent.table,
            event_index=self._has(Feature.EVENT_IDX),
            tracked=tracked,
            disk=self._offer.disk,
        )

    def _move(self, table: GuestMemory) -> None:
        for ring in self._rings:
            ring.move(table)

    # --- features -------------------------------------------------------------------------------------------

    @property
    def _offered(self) -> int:
        offer = self._offer
        return features_of(offer.device, read_only=offer.read_only, queues=offer.queues)

    async def _get_features(self, _message: Message) -> bytes:
        return protocol.U64.pack(self._offered)

    async def _set_features(self, message: Message) -> None:
        (features,) = protocol.U64.unpack(message.body)
        if features & ~self._offered:
            raise RefusedError(f"the features {features:#x} are not offered")
        self._features = features
        self._requests.write_through = not self._has(Feature.FLUSH)

    async def _get_protocol_features(self, _message: Message) -> bytes:
        return protocol.U64.pack(protocol.PROTOCOL_FEATURES)

    async def _set_protocol_features(self, message: Message) -> None:
        (features,) = protocol.U64.unpack(message.body)
        if features & ~protocol.PROTOCOL_FEATURES:
            raise RefusedError(f"the protocol features {features:#x} are not offered")
        self._protocol_features = features

    async def _do_nothing(self, _message: Message) -> None:
        return None

    async def _get_queue_num(self, _message: Message) -> bytes:
        return protocol.U64.pack(len(self._rings))

    # --- configuration --------------------------------------------------------------------------------------

    async def _get_config(self, message: Message) -> bytes:
        offset, length, flags = protocol.CONFIG.unpack_from(message.body)
        if length > protocol.LONGEST_CONFIG or offset > protocol.LONGEST_CONFIG - length:
            raise RefusedError(f"there are not {length} bytes from {offset} on in the configuration")
        space = space_of(self._offer.device, queues=len(self._rings)).ljust(protocol.LONGEST_CONFIG, b"\0")
        return protocol.CONFIG.pack(offset, length, flags) + space[offset : offset + length]

    async def _set_config(self, _message: Message) -> None:
        raise RefusedError("the configuration cannot be changed")

    async def _set_backend(self, message: Message) -> None:
        descriptor = self._only_descriptor(message)
        try:
            backend = socket.socket(fileno=descriptor)
        except OSError:
            os.close(descriptor)
            raise RefusedError("what is said to the client goes through a socket") from None
        if _is_other_end(backend, self._connection):
            # It would be kept open by who waits for it to be closed.
            backend.close()
            raise RefusedError("what is said to the client goes through a socket of its own")
        if self._backend is not None:
            self._backend.close()
        self._backend = backend

    # --- memory ---------------------------------------------------------------------------------------------

    async def _set_mem_table(self, message: Message) -> None:
        (count,) = protocol.TABLE.unpack_from(message.body)
        regions = message.body[protocol.TABLE.size :]
        if count != len(message.descriptors) or len(regions) < count * protocol.REGION.size:
            raise DisconnectedError(f"the client lends {count} ranges of memory, and does not say which")
        lent = self._new_memory()
        try:
            for index in range(count):
                region = protocol.REGION.unpack_from(regions, index * protocol.REGION.size)
                guest, length, user, offset = region
                await lent.add(message.descriptors[index], guest, length, user, offset)
        except BaseException:
            await self._work.finish(lent.clear())
            raise
        before, self._lent = self._lent, lent
        before.on_change, lent.on_change = None, self._move
        self._move(lent.table)
        await before.clear()

    async def _get_max_mem_slots(self, _message: Message) -> bytes:
        return protocol.U64.pack(protocol.MOST_REGIONS)

    async def _add_mem_reg(self, message: Message) -> None:
        guest, length, user, offset = protocol.ONE_REGION.unpack(message.body)
        if len(message.descriptors) != 1:
            raise DisconnectedError("the client lends memory without its descriptor")
        await self._lent.add(message.descriptors[0], guest, length, user, offset)

    async def _rem_mem_reg(self, message: Message) -> None:
        guest, length, user, _offset = protocol.ONE_REGION.unpack(message.body)
        await self._lent.remove(guest, length, user)

    # --- queues ---------------------------------------------------------------------------------------------

    async def _set_vring_num(self, message: Message) -> None:
        number, size = protocol.TWO_NUMBERS.unpack(message.body)
        ring = self._ring_at_rest(number)
        if not 0 < size <= protocol.LARGEST_QUEUE or size & (size - 1):
            raise RefusedError(f"a queue cannot have {size} descriptors")
        ring.size = size

    async def _set_vring_addr(self, message: Message) -> None:
        number, _flags, descriptors, used, available, _log = protocol.ADDRESSES.unpack(message.body)
        self._ring_at_rest(number).addresses = descriptors, available, used

    async def _set_vring_base(self, message: Message) -> None:
        number, base = protocol.TWO_NUMBERS.unpack(message.body)
        if base > 0xFFFF:
            raise RefusedError(f"a queue of its kind cannot begin at {base}")
        self._ring_at_rest(number).base = base

    async def _get_vring_base(self, message: Message) -> bytes:
        number, _ = protocol.TWO_NUMBERS.unpack(message.body)
        return protocol.TWO_NUMBERS.pack(number, await self._ring(number).stop())

    async def _set_vring_enable(self, message: Message) -> None:
        number, enabled = protocol.TWO_NUMBERS.unpack(message.body)
        ring = self._ring(number)
        ring.enabled = bool(enabled)
        if ring.enabled:
            self._start(number)
            ring.go_on()

    async def _set_vring_kick(self, message: Message) -> None:
        number, descriptor = self._eventfd(message)
        if descriptor is None:
            raise RefusedError("a queue has to be kicked: it is not looked at otherwise")
        ring = self._ring(number)
        ring.set_kick(descriptor)
        if not self._has(Feature.PROTOCOL_FEATURES):
            ring.enabled = True
        self._start(number)

    async def _set_vring_call(self, message: Message) -> None:
        number, descriptor = self._eventfd(message)
        self._ring(number).set_call(descriptor)

    async def _set_vring_err(self, message: Message) -> None:
        number, descriptor = self._eventfd(message)
        self._ring(number).set_error(descriptor)

    def _eventfd(self, message: Message) -> tuple[int, int | None]:
        """The queue, and the descriptor for it, if there is one: taken from the message."""
        (value,) = protocol.U64.unpack(message.body)
        number = value & 0xFF
        self._ring(number)
        if value & protocol.NO_DESCRIPTOR:
            return number, None
        if len(message.descriptors) != 1 or not is_eventfd(message.descriptors[0]):
            raise DisconnectedError("the client sends what is no eventfd")
        descriptor = self._only_descriptor(message)
        os.set_blocking(descriptor, False)
        return number, descriptor

    def _only_descriptor(self, message: Message) -> int:
        if len(message.descriptors) != 1:
            raise DisconnectedError(f"the client sends {len(message.descriptors)} descriptors, and not one")
        return message.descriptors.pop()

    # --- what is in flight ----------------------------------------------------------------------------------

    async def _get_inflight(self, message: Message) -> None:
        _, _, queues, size = protocol.INFLIGHT_SHORT.unpack_from(message.body)
        if not 0 < queues <= len(self._rings) or not 0 < size <= protocol.LARGEST_QUEUE:
            raise RefusedError(f"there are no {queues} queues of {size}")
        try:
            descriptor, length = new_region(queues, size)
        except OSError as error:
            raise RefusedError(f"there is no place for what is in flight: {error.strerror}") from None
        try:
            body = protocol.INFLIGHT.pack(length, 0, queues, size)[: len(message.body)]
            self._channel.send(message.kind, body, descriptors=[descriptor])
        finally:
            os.close(descriptor)

    async def _set_inflight(self, message: Message) -> None:
        length, offset, queues, size = protocol.INFLIGHT_SHORT.unpack_from(message.body)
        if any(ring.is_started for ring in self._rings):
            raise RefusedError("queues are in use, and what is in flight cannot be kept elsewhere now")
        if len(message.descriptors) != 1:
            raise DisconnectedError("the client keeps what is in flight, and does not say where")
        tracking = Tracking(
            message.descriptors[0], length, offset, queues, size, only_sealed=self._offer.only_sealed
        )
        if self._tracking is not None:
            self._tracking.close()
        self._tracking = tracking

    HANDLERS: ClassVar[dict[int, Callable[["Session", Message], Awaitable[bytes | None]]]] = {
        Kind.GET_FEATURES: _get_features,
        Kind.SET_FEATURES: _set_features,
        Kind.SET_OWNER: _do_nothing,
        Kind.RESET_OWNER: _do_nothing,
        Kind.SET_MEM_TABLE: _set_mem_table,
        Kind.SET_VRING_NUM: _set_vring_num,
        Kind.SET_VRING_ADDR: _set_vring_addr,
        Kind.SET_VRING_BASE: _set_vring_base,
        Kind.GET_VRING_BASE: _get_vring_base,
        Kind.SET_VRING_KICK: _set_vring_kick,
        Kind.SET_VRING_CALL: _set_vring_call,
        Kind.SET_VRING_ERR: _set_vring_err,
        Kind.GET_PROTOCOL_FEATURES: _get_protocol_features,
        Kind.SET_PROTOCOL_FEATURES: _set_protocol_features,
        Kind.GET_QUEUE_NUM: _get_queue_num,
        Kind.SET_VRING_ENABLE: _set_vring_enable,
        Kind.SET_BACKEND_REQ_FD: _set_backend,
        Kind.GET_CONFIG: _get_config,
        Kind.SET_CONFIG: _set_config,
        Kind.GET_INFLIGHT_FD: _get_inflight,
        Kind.SET_INFLIGHT_FD: _set_inflight,
        Kind.GET_MAX_MEM_SLOTS: _get_max_mem_slots,
        Kind.ADD_MEM_REG: _add_mem_reg,
        Kind.REM_MEM_REG: _rem_mem_reg,
    }


def _is_other_end(one: socket.socket, connection: socket.socket) -> bool:
    """Whether what one sends may come out of the connection, which has the name of the listening socket."""
    try:
        return one.family == connection.family and one.getpeername() == connection.getsockname()
    except OSError:  # it is not connected
        return False
