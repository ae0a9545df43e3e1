"""What descriptors are good for that somebody else has made.

Nothing on the loop's thread may block for one, and memory that is mapped from one must not go away: reading
it would end this process by SIGBUS.
"""

import fcntl
import os
import stat

EVENTFD = "anon_inode:[eventfd]"


def is_eventfd(descriptor: int) -> bool:
    """Any other could block who writes 8 bytes to it, or take them for something else."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}") == EVENTFD
    except OSError:
        return False


def is_file(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def cannot_shrink(descriptor: int) -> bool:
    """Whether the file keeps its size for good: it is memory that is sealed, or that can be and is now.

    To look at the size of any other file says nothing of what it will be when its memory is used.
    """
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        if not seals & fcntl.F_SEAL_SHRINK:
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    except OSError:  # it is a file that knows no seals, or takes no more
        return False
    return True
