"""The NBD protocol's numbers and layouts (the project's doc/proto.md has the whole story).

Plain integers, not enumerations: they are looked at for every command.
"""

from struct import Struct
from typing import Final

U16: Final = Struct(">H")
U32: Final = Struct(">I")

# --- handshake ----------------------------------------------------------------------------------------------

GREETING: Final = Struct(">QQH")  # NBDMAGIC, IHAVEOPT, handshake flags
NBDMAGIC: Final = 0x4E42444D41474943
IHAVEOPT: Final = 0x49484156454F5054
FIXED_NEWSTYLE: Final = 1
NO_ZEROES: Final = 2

OPTION: Final = Struct(">QII")  # IHAVEOPT, option, length of its data

OPT_EXPORT_NAME: Final = 1
OPT_ABORT: Final = 2
OPT_LIST: Final = 3
OPT_STARTTLS: Final = 5
OPT_INFO: Final = 6
OPT_GO: Final = 7
OPT_STRUCTURED_REPLY: Final = 8
OPT_LIST_META_CONTEXT: Final = 9
OPT_SET_META_CONTEXT: Final = 10

OPTION_REPLY: Final = Struct(">QIII")  # magic, option, kind, length of its data
OPTION_REPLY_MAGIC: Final = 0x3E889045565A9

REP_ACK: Final = 1
REP_SERVER: Final = 2
REP_INFO: Final = 3
REP_META_CONTEXT: Final = 4
REP_ERR_UNSUP: Final = 0x80000001
REP_ERR_POLICY: Final = 0x80000002
REP_ERR_INVALID: Final = 0x80000003
REP_ERR_TLS_REQD: Final = 0x80000005
REP_ERR_UNKNOWN: Final = 0x80000006
REP_ERR_TOO_BIG: Final = 0x80000009

INFO_EXPORT: Final = 0
INFO_NAME: Final = 1
INFO_DESCRIPTION: Final = 2
INFO_BLOCK_SIZE: Final = 3

EXPORT: Final = Struct(">QH")  # size, transmission flags
BLOCK_SIZES: Final = Struct(">HIII")  # INFO_BLOCK_SIZE, minimum, preferred, maximum

HAS_FLAGS: Final = 1 << 0
READ_ONLY: Final = 1 << 1
SEND_FLUSH: Final = 1 << 2
SEND_FUA: Final = 1 << 3
SEND_TRIM: Final = 1 << 5
SEND_WRITE_ZEROES: Final = 1 << 6
SEND_DF: Final = 1 << 7
CAN_MULTI_CONN: Final = 1 << 8
SEND_CACHE: Final = 1 << 10
SEND_FAST_ZERO: Final = 1 << 11

BASE_ALLOCATION: Final = b"base:allocation"
BASE_ALLOCATION_ID: Final = 1
STATE_DATA: Final = 0
STATE_HOLE: Final = 1
STATE_ZERO: Final = 2

# --- transmission -------------------------------------------------------------------------------------------

COMMAND: Final = Struct(">IHHQQI")  # magic, flags, command, cookie, offset, length
COMMAND_MAGIC: Final = 0x25609513

READ: Final = 0
WRITE: Final = 1
DISC: Final = 2
FLUSH: Final = 3
TRIM: Final = 4
CACHE: Final = 5
WRITE_ZEROES: Final = 6
BLOCK_STATUS: Final = 7

FUA: Final = 1 << 0
NO_HOLE: Final = 1 << 1
DF: Final = 1 << 2  # "do not fragment"
REQ_ONE: Final = 1 << 3
FAST_ZERO: Final = 1 << 4

SIMPLE_REPLY: Final = Struct(">IIQ")  # magic, error, cookie
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY: Final = Struct(">IHHQI")  # magic, flags, kind, cookie, length of the rest
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF
REPLY_DONE: Final = 1
REPLY_NONE: Final = 0
REPLY_OFFSET_DATA: Final = 1
REPLY_BLOCK_STATUS: Final = 5
REPLY_ERROR: Final = 0x8001
DATA_REPLY: Final = Struct(">IHHQIQ")  # a structured reply and the offset of the data that follow
ERROR: Final = Struct(">IH")  # the error, the length of a text
EXTENT: Final = Struct(">II")  # length, state

# The errors a reply can carry have Linux's numbers.
EPERM: Final = 1
EIO: Final = 5
ENOMEM: Final = 12
EINVAL: Final = 22
ENOSPC: Final = 28
ENOTSUP: Final = 95
ESHUTDOWN: Final = 108
