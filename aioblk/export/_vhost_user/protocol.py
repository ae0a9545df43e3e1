"""Numbers and layouts of vhost-user, and of virtio-blk, as their specifications have them."""

import struct
from enum import IntEnum
from typing import Final

# --- messages -----------------------------------------------------------------------------------------------

HEADER: Final = struct.Struct("=III")  # kind, flags, bytes that follow
VERSION: Final = 1
VERSION_MASK: Final = 3
IS_REPLY: Final = 1 << 2
WANTS_REPLY: Final = 1 << 3
LONGEST: Final = 4096  # bytes that follow; nothing that is known is half as long
MOST_DESCRIPTORS: Final = 8


class Kind(IntEnum):
    """What clients say."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SET_BACKEND_REQ_FD = 21
    GET_CONFIG = 24
    SET_CONFIG = 25
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38


CONFIG_CHANGED: Final = 2  # said to clients

U64: Final = struct.Struct("=Q")
TWO_NUMBERS: Final = struct.Struct("=II")  # a queue, and something of it
NO_DESCRIPTOR: Final = 1 << 8  # beside a queue
ADDRESSES: Final = struct.Struct("=IIQQQQ")  # queue, flags, descriptors, used, available, log
REGION: Final = struct.Struct("=QQQQ")  # guest address, length, client's address, offset in the file
ONE_REGION: Final = struct.Struct("=8xQQQQ")
TABLE: Final = struct.Struct("=I4x")  # regions that follow
CONFIG: Final = struct.Struct("=III")  # offset, length, flags
LONGEST_CONFIG: Final = 256
INFLIGHT: Final = struct.Struct("=QQHH4x")  # length, offset in the file, queues, their size
INFLIGHT_SHORT: Final = struct.Struct("=QQHH")  # as some send it

MOST_REGIONS: Final = 509  # as many as QEMU has slots for


class ProtocolFeature(IntEnum):
    """Of vhost-user, by their bits."""

    MQ = 0
    REPLY_ACK = 3
    BACKEND_REQ = 5
    CONFIG = 9
    INFLIGHT_SHMFD = 12
    CONFIGURE_MEM_SLOTS = 15


PROTOCOL_FEATURES: Final = sum(1 << feature for feature in ProtocolFeature)

# --- virtio -------------------------------------------------------------------------------------------------


class Feature(IntEnum):
    """Of virtio-blk and virtio, by their bits."""

    SIZE_MAX = 1
    SEG_MAX = 2
    RO = 5
    BLK_SIZE = 6
    FLUSH = 9
    TOPOLOGY = 10
    MQ = 12
    DISCARD = 13
    WRITE_ZEROES = 14
    INDIRECT_DESC = 28
    EVENT_IDX = 29
    PROTOCOL_FEATURES = 30
    VERSION_1 = 32


SECTOR: Final = 512
LARGEST_QUEUE: Final = 32768
SEGMENTS: Final = 126
LONGEST_RANGE: Final = 64 << 20  # bytes that are discarded or zeroed at once
SERIAL: Final = 20  # bytes

# capacity, largest segment, segments, block size; the exponent of the physical block, the alignment offset,
# smallest and optimal I/O; queues; sectors and ranges of a discard, and its alignment; sectors and ranges of
# zeroes, and whether they unmap
SPACE: Final = struct.Struct("<QII4xIBBHIBxHIIIIIB3x")

READ: Final = 0
WRITE: Final = 1
FLUSH: Final = 4
DISCARD: Final = 11
WRITE_ZEROES: Final = 13
KINDS: Final = {
    READ: "read",
    WRITE: "write",
    FLUSH: "flush",
    DISCARD: "discard",
    WRITE_ZEROES: "write_zeroes",
}
UNMAP: Final = 1

OK: Final = 0
FAILED: Final = 1
UNSUPPORTED: Final = 2
