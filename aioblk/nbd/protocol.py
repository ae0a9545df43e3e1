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
OLDSTYLE: Final = 0x00420281861253  # in the place of IHAVEOPT: a server of before 2011
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
OPT_EXTENDED_HEADERS: Final = 11

OPTION_REPLY: Final = Struct(">QIII")  # magic, option, kind, length of its data
OPTION_REPLY_MAGIC: Final = 0x3E889045565A9

REP_ACK: Final = 1
REP_SERVER: Final = 2
REP_INFO: Final = 3
REP_META_CONTEXT: Final = 4
REP_ERR_UNSUP: Final = 0x80000001
REP_ERR_POLICY: Final = 0x80000002
REP_ERR_INVALID: Final = 0x80000003
REP_ERR_PLATFORM: Final = 0x80000004
REP_ERR_TLS_REQD: Final = 0x80000005
REP_ERR_UNKNOWN: Final = 0x80000006
REP_ERR_SHUTDOWN: Final = 0x80000007
REP_ERR_BLOCK_SIZE_REQD: Final = 0x80000008
REP_ERR_TOO_BIG: Final = 0x80000009
REP_ERR_EXT_HEADER_REQD: Final = 0x8000000A

INFO_EXPORT: Final = 0
INFO_NAME: Final = 1
INFO_DESCRIPTION: Final = 2
INFO_BLOCK_SIZE: Final = 3

EXPORT: Final = Struct(">QH")  # size, transmission flags
EXPORT_NAME_ZEROES: Final = 124  # after it, where OPT_EXPORT_NAME is answered without NO_ZEROES
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
BLOCK_STATUS_PAYLOAD: Final = 1 << 12

BASE_ALLOCATION: Final = b"base:allocation"
STATE_DATA: Final = 0
STATE_HOLE: Final = 1
STATE_ZERO: Final = 2
QEMU_DIRTY_BITMAP: Final = b"qemu:dirty-bitmap:"  # and the name of one
STATE_DIRTY: Final = 1

# --- transmission -------------------------------------------------------------------------------------------

COMMAND: Final = Struct(">IHHQQI")  # magic, flags, command, cookie, offset, length
COMMAND_MAGIC: Final = 0x25609513
EXTENDED_COMMAND: Final = Struct(">IHHQQQ")  # the same, with a longer length
EXTENDED_COMMAND_MAGIC: Final = 0x21E41C71

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
PAYLOAD_LEN: Final = 1 << 5  # the length is that of the data that follow; with extended headers only

STATUS_PAYLOAD: Final = Struct(">Q")  # of a block status: the length asked for; the contexts' numbers follow

SIMPLE_REPLY: Final = Struct(">IIQ")  # magic, error, cookie
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY: Final = Struct(">IHHQI")  # magic, flags, kind, cookie, length of the rest
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF
EXTENDED_REPLY: Final = Struct(
    ">IHHQQQ"
)  # magic, flags, kind, cookie, the command's offset, length of the rest
EXTENDED_REPLY_MAGIC: Final = 0x6E8A278C
REPLY_DONE: Final = 1
REPLY_NONE: Final = 0
REPLY_OFFSET_DATA: Final = 1
REPLY_OFFSET_HOLE: Final = 2
REPLY_BLOCK_STATUS: Final = 5
REPLY_BLOCK_STATUS_EXT: Final = 6
REPLY_ERROR: Final = 0x8001
REPLY_ERROR_OFFSET: Final = 0x8002
REPLY_IS_ERROR: Final = 0x8000
DATA_REPLY: Final = Struct(">IHHQIQ")  # a structured reply and the offset of the data that follow
EXTENDED_DATA_REPLY: Final = Struct(">IHHQQQQ")  # an extended one, the same
HOLE: Final = Struct(">QI")  # offset, length
ERROR: Final = Struct(">IH")  # the error, the length of a text; the text, and maybe an offset, follow
OFFSET: Final = Struct(">Q")
STATUS: Final = U32  # the context's number; extents follow, each of them a length and a state in 32 bits
EXTENDED_STATUS: Final = Struct(">II")  # the context's number, how many extents; these follow, in 64 bits
EXTENT: Final = Struct(">II")  # length, state
EXTENDED_EXTENT: Final = Struct(">QQ")

# The errors a reply can carry have Linux's numbers.
EPERM: Final = 1
EIO: Final = 5
ENOMEM: Final = 12
EINVAL: Final = 22
ENOSPC: Final = 28
EOVERFLOW: Final = 75
ENOTSUP: Final = 95
ESHUTDOWN: Final = 108
