"""Users and groups of the system: their numbers, and becoming one of them."""

import ctypes
import grp
import os
import pwd

__all__ = ["become", "group_number", "user_number"]

PR_SET_NO_NEW_PRIVS = 38
MOST = (1 << 32) - 2  # of the numbers of users and groups


def user_number(user: object) -> int:
    """Of a user's name, or of a number. ValueError: there is none."""
    if (number := _number(user)) is not None:
        return number
    text = str(user)
    try:
        return pwd.getpwnam(text).pw_uid
    except (KeyError, ValueError):
        raise ValueError("a user of this machine") from None


def group_number(group: object) -> int:
    """Of a group's name, or of a number. ValueError: there is none."""
    if (number := _number(group)) is not None:
        return number
    text = str(group)
    try:
        return grp.getgrnam(text).gr_gid
    except (KeyError, ValueError):
        raise ValueError("a group of this machine") from None


def _number(account: object) -> int | None:
    """What is given as a number. ValueError: the kernel has none like it; the greatest means "as it is"."""
    if isinstance(account, int) and not isinstance(account, bool):
        number = account
    elif (text := str(account)).isascii() and text.isdigit():
        number = int(text) if len(text) < 20 else MOST + 1
    else:
        return None
    if not 0 <= number <= MOST:
        raise ValueError(f"a number from 0 to {MOST}")
    return number


def become(user: int, group: int | None) -> None:
    """Be that user, in that group and no other, for good: all threads, without a way to any privilege.

    Without *group*, the user's own.

    Raises:
        OSError: the process may not, or can still go back. It should end then.
    """
    if group is None:
        try:
            group = pwd.getpwuid(user).pw_gid
        except KeyError:
            raise OSError(f"user {user} has no group of its own; name one") from None
    if os.getuid() == 0 or os.getgroups() not in ([], [group]):
        os.setgroups([])
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)
    if os.getresuid() != (user,) * 3 or os.getresgid() != (group,) * 3 or set(os.getgroups()) - {group}:
        raise OSError(f"the process has not become user {user} of group {group}")
    if user != 0:
        try:
            os.setuid(0)
        except PermissionError:
            pass
        else:
            raise OSError(f"the process is user {user}, and can still become root")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"privileges can still be had: {os.strerror(number)}")
