"""Both ways of asking the kernel what is mapped say the same."""

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Iterator

import pytest

from aioblk._memory.process_map import Mapping, mappings_between

PAGE = mmap.PAGESIZE
ASKED_AND_READ = ["asked", "read"]


@pytest.fixture(params=ASKED_AND_READ)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel of this machine answers, or as one does that does not know the question."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))

    if request.param == "read":
        monkeypatch.setattr(fcntl, "ioctl", refuse)


@pytest.fixture
def file() -> Iterator[int]:
    fd = os.memfd_create("aioblk-test")
    os.ftruncate(fd, 8 * PAGE)
    yield fd
    os.close(fd)


def address_of(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


@pytest.mark.usefixtures("way")
def test_memory_of_a_file(file: int) -> None:
    memory = mmap.mmap(file, 3 * PAGE, offset=2 * PAGE)
    start, status = address_of(memory), os.fstat(file)
    device = (os.major(status.st_dev), os.minor(status.st_dev))
    whole = Mapping(start, start + 3 * PAGE, True, 2 * PAGE, device, status.st_ino)
    assert mappings_between(start, start + 3 * PAGE) == [whole]
    assert mappings_between(start + PAGE, start + PAGE + 1) == [whole]
    assert mappings_between(start, start) == []


@pytest.mark.usefixtures("way")
def test_memory_that_others_do_not_see(file: int) -> None:
    private = mmap.mmap(file, PAGE, flags=mmap.MAP_PRIVATE)
    [mapping] = mappings_between(address_of(private), address_of(private) + PAGE)
    assert (mapping.shared, mapping.inode) == (False, os.fstat(file).st_ino)


@pytest.mark.usefixtures("way")
def test_memory_without_a_file() -> None:
    anonymous = mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = address_of(anonymous)
    [mapping] = mappings_between(start, start + PAGE)
    assert mapping.start <= start < mapping.end
    assert (mapping.shared, mapping.offset, mapping.device, mapping.inode) == (False, 0, (0, 0), 0)


@pytest.mark.usefixtures("way")
def test_nothing_is_mapped_at_the_beginning_and_at_the_end() -> None:
    assert mappings_between(0, PAGE) == []
    assert [each for each in mappings_between((1 << 64) - PAGE, (1 << 64) - 1) if each.inode] == []


def test_both_ways_say_the_same_of_the_whole_process(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = mmap.mmap(-1, PAGE)  # shared, of a file without a name
    middle = address_of(memory)
    asked = mappings_between(middle - (1 << 30), middle + (1 << 30))
    monkeypatch.setattr(fcntl, "ioctl", lambda *_: _raise(errno.ENOTTY))
    read = mappings_between(middle - (1 << 30), middle + (1 << 30))
    files = [mapping for mapping in read if mapping.inode]  # the heap may have grown meanwhile
    assert files == [mapping for mapping in asked if mapping.inode]
    assert any(mapping.start <= middle < mapping.end and mapping.shared for mapping in files)


def test_an_error_that_is_no_refusal_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "ioctl", lambda *_: _raise(errno.ENOMEM))
    with pytest.raises(OSError, match="memory"):
        mappings_between(0, PAGE)


def _raise(number: int) -> None:
    raise OSError(number, os.strerror(number))
