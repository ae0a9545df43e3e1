"""A process without io_uring, as in many containers: a seccomp filter refuses io_uring_setup."""

import ctypes
import struct

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
IO_URING_SETUP = 425  # the same number on every architecture

LOAD_SYSTEM_CALL, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, FAIL_WITH = 0x7FFF0000, 0x00050000


def forbid_io_uring(number: int) -> None:
    """Let io_uring_setup(2) fail with errno *number* in this process from now on; nothing undoes it."""
    instructions = (
        (LOAD_SYSTEM_CALL, 0, 0, 0),
        (JUMP_IF_EQUAL, 0, 1, IO_URING_SETUP),
        (RETURN, 0, 0, FAIL_WITH | number),
        (RETURN, 0, 0, ALLOW),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in instructions))
    program = struct.pack("H6xQ", len(instructions), ctypes.addressof(code))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    zero = ctypes.c_ulong(0)
    for operation, argument, pointer in (
        (PR_SET_NO_NEW_PRIVS, 1, zero),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_char_p(program)),
    ):
        if prctl(operation, ctypes.c_ulong(argument), pointer, zero, zero) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
