"""Finding descriptors by what they are, and what is left of them."""

import contextlib
import errno
import os
import resource
from collections.abc import Iterator

import pytest

from aioblk._libblkio.own_descriptors import count_spare, find_linked

MANY = 100


@contextlib.contextmanager
def few_descriptors(left: int) -> Iterator[None]:
    """The limit is so low that there are only so many."""
    places = [os.open(os.devnull, os.O_RDONLY) for _ in range(left + 1)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for place in places:
        os.close(place)
    resource.setrlimit(resource.RLIMIT_NOFILE, (places[left], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_every_descriptor_of_a_kind_is_found() -> None:
    before = set(find_linked("/memfd:searched"))
    made = [os.memfd_create("searched") for _ in range(MANY)]
    others = [os.memfd_create("sought")]
    try:
        assert set(find_linked("/memfd:searched")) - before == set(made)
    finally:
        for fd in made + others:
            os.close(fd)
    assert set(find_linked("/memfd:searched")) == before


def test_without_a_descriptor_the_table_cannot_be_read() -> None:
    with few_descriptors(0), pytest.raises(OSError, match="/proc/self/fd") as refused:
        find_linked("socket:[")
    assert refused.value.errno == errno.EMFILE


@pytest.mark.parametrize("left", [0, 1, 2])
def test_what_is_left_is_counted(left: int) -> None:
    with few_descriptors(left):
        assert count_spare(3) == (left, errno.EMFILE)


def test_counting_what_is_left_takes_nothing() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    assert count_spare(MANY) == (MANY, 0)
    assert sorted(os.listdir("/proc/self/fd")) == before
