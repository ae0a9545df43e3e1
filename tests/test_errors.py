"""The exception tree: its fields, its words, and what else its members are."""

import copy
import errno
import pickle

import anyio
import pytest

import aioblk
import aioblk.nbd
from aioblk import errors
from aioblk.errors import (
    AlignmentError,
    BlkioError,
    DeviceClosedError,
    DeviceLostError,
    InUseError,
    OptionError,
    PartitionTableError,
    PropertyError,
    RegistrationError,
    StreamBusyError,
    UnsupportedError,
    UsageError,
    request_error,
)

KINDS = [
    BlkioError,
    AlignmentError,
    OptionError,
    PartitionTableError,
    PropertyError,
    UsageError,
    StreamBusyError,
    DeviceClosedError,
    DeviceLostError,
    InUseError,
    UnsupportedError,
    RegistrationError,
]


def test_a_failed_request_says_everything_that_is_known() -> None:
    error = request_error("io_uring", "read", errno.EIO, "the disk is on fire", 4096, 512)
    assert str(error) == (
        "io_uring read at offset 4096, length 512: [Errno 5] Input/output error: the disk is on fire"
    )
    assert (error.errno, error.message, error.driver, error.operation, error.offset, error.length) == (
        errno.EIO,
        "the disk is on fire",
        "io_uring",
        "read",
        4096,
        512,
    )


def test_what_is_not_known_is_left_out() -> None:
    assert (
        str(request_error("io_uring", "flush", errno.EIO)) == "io_uring flush: [Errno 5] Input/output error"
    )
    assert str(BlkioError()) == "[Errno 5] Input/output error"


def test_an_errno_is_not_explained_twice() -> None:
    error = request_error(
        "io_uring", "connect", errno.ENOENT, "No such file or directory (os error 2)", filename="/nope"
    )
    assert error.message is None
    assert str(error) == "io_uring connect '/nope': [Errno 2] No such file or directory"


def test_a_refusal_speaks_for_itself() -> None:
    error = AlignmentError(
        "3 is not a multiple of 512", driver="io_uring", operation="read", offset=3, length=1
    )
    assert str(error) == "io_uring read at offset 3, length 1: 3 is not a multiple of 512"
    assert error.errno == errno.EINVAL


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.EOPNOTSUPP])
def test_an_unsupported_operation_has_a_class_of_its_own(number: int) -> None:
    assert type(request_error("io_uring", "discard", number)) is UnsupportedError
    assert type(request_error("io_uring", "discard", errno.EINVAL)) is BlkioError


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        (AlignmentError, ValueError),
        (OptionError, ValueError),
        (PropertyError, KeyError),
        (UsageError, RuntimeError),
        (StreamBusyError, anyio.BusyResourceError),
        (DeviceClosedError, anyio.ClosedResourceError),
        (DeviceLostError, anyio.BrokenResourceError),
    ],
)
def test_a_failure_is_also_what_others_expect(kind: type[BlkioError], other: type[Exception]) -> None:
    assert issubclass(kind, other)


@pytest.mark.parametrize("kind", KINDS)
def test_every_failure_is_an_os_error_that_can_be_pickled_and_copied(kind: type[BlkioError]) -> None:
    error = kind("because", driver="io_uring", operation="read", offset=1, length=2, filename="/dev/x")
    error.add_note("seen in the test")
    assert isinstance(error, OSError)
    assert error.errno == kind._default_errno
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is kind
        assert str(twin) == str(error)
        assert twin.args == error.args
        assert vars(twin) == vars(error)
        assert twin.filename == "/dev/x"


def test_every_class_is_named_in_the_module() -> None:
    assert {kind.__name__ for kind in KINDS} | {"request_error"} == set(errors.__all__)


def test_what_the_package_does_not_have_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        aioblk.no_such_name  # type: ignore[attr-defined] # noqa: B018 # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        aioblk.nbd.no_such_name  # type: ignore[attr-defined] # noqa: B018 # pyright: ignore[reportAttributeAccessIssue]
