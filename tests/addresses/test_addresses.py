"""Addresses: what text means, how it is written again, and what is refused."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import aioblk
import aioblk.nbd
from aioblk import Address, parse_address

from ..conftest import StorageDaemonFactory


def io_uring(path: str, **options: object) -> Address:
    return Address("io_uring", {"path": path, **options})


# --- what they mean -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("disk.img", io_uring("disk.img")),
        ("./a:b", io_uring("./a:b")),
        ("/dev/sdb", io_uring("/dev/sdb")),
        ("100%25 sure?.img", io_uring("100%25 sure?.img")),
        ("a,b", io_uring("a,b")),
        ("a,b/c:d", io_uring("a,b/c:d")),
        ("-x", io_uring("-x")),
        (" ", io_uring(" ")),
        ("io_uring:disk.img", io_uring("disk.img")),
        ("IO-URING:disk.img", io_uring("disk.img")),
        ("io_uring:disk.img?direct=on", io_uring("disk.img", direct=True)),
        (
            "io_uring:a b:c?num-queues=2&bounce_pool_size=1.5M&lost-after=1m",
            io_uring("a b:c", num_queues=2, bounce_pool_size=3 << 19, lost_after=60),
        ),
        ("io_uring:what%3f.img", io_uring("what?.img")),
        ("io_uring:100%25", io_uring("100%")),
        ("io_uring:%FF", io_uring("\udcff")),
        ("io_uring:%C3%A9", io_uring("é")),
        ("io_uring:?fd=3", Address("io_uring", {"fd": 3})),
        ("virtio-blk-vhost-user:blk.sock", Address("virtio-blk-vhost-user", {"path": "blk.sock"})),
        (
            "virtio-blk-vfio-pci:0000:01:00.0",
            Address("virtio-blk-vfio-pci", {"path": "/sys/bus/pci/devices/0000:01:00.0"}),
        ),
        (
            "virtio-blk-vfio-pci:01:00.0",
            Address("virtio-blk-vfio-pci", {"path": "/sys/bus/pci/devices/0000:01:00.0"}),
        ),
        ("virtio-blk-vfio-pci:/sys/x", Address("virtio-blk-vfio-pci", {"path": "/sys/x"})),
        ("nbd://host:10809/export", Address("nbd", {"uri": "nbd://host:10809/export"})),
        ("nbd://host", Address("nbd", {"uri": "nbd://host"})),
        ("NBDS://[::1]/a%2Fb?tls-type=psk", Address("nbd", {"uri": "nbds://[::1]/a%2Fb?tls-type=psk"})),
        ("nbd+unix:///x?socket=/tmp/s", Address("nbd", {"uri": "nbd+unix:///x?socket=/tmp/s"})),
        (
            "slice,offset=1M,length=1G:disk.img",
            Address("slice", {"offset": 1 << 20, "length": 1 << 30}, io_uring("disk.img")),
        ),
        (
            "slice,partition=1:io_uring:disk.img?direct=on",
            Address("slice", {"partition": 1}, io_uring("disk.img", direct=True)),
        ),
        (
            "throttle,bytes=100M/s,read-operations=5K:slice,length=1M:/dev/sdb",
            Address(
                "throttle",
                {"bytes": 100 << 20, "read_operations": 5000},
                Address("slice", {"length": 1 << 20}, io_uring("/dev/sdb")),
            ),
        ),
        ("cow,overlay=/a%3Ab%2Cc:disk.img", Address("cow", {"overlay": "/a:b,c"}, io_uring("disk.img"))),
        ("readonly:nbd://host/x", Address("readonly", {}, Address("nbd", {"uri": "nbd://host/x"}))),
        ("io_uring", Address("io_uring", {})),
    ],
)
def test_what_an_address_means(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address
    assert parse_address(address) is address
    assert hash(parse_address(text)) == hash(address)
    assert pickle.loads(pickle.dumps(address)) == copy.deepcopy(address) == address


def test_a_path_object_is_a_path_whatever_it_has_in_it() -> None:
    for path in ("slice,x=y:disk.img", "io_uring:x", "a?direct=on", "-", "%zz"):
        address = parse_address(Path(path))
        assert address == io_uring(path)
        assert parse_address(str(address)) == address


def test_an_address_is_written_in_one_way() -> None:
    for text, written in {
        "disk.img": "io_uring:disk.img",
        "io_uring:a b:c,d?direct=1&lost-after=0.5": "io_uring:a b:c,d?direct=on&lost-after=0.5",
        "io_uring:?fd=3": "io_uring:?fd=3",
        "virtio-blk-vfio-pci:01:00.0?num-queues=2": "virtio-blk-vfio-pci:0000:01:00.0?num-queues=2",
        "slice,offset=4k:disk.img": "slice,offset=4096:io_uring:disk.img",
        "cow,overlay=/a%3Ab:x": "cow,overlay=/a%3Ab:io_uring:x",
    }.items():
        assert str(parse_address(text)) == written


PATHS = st.text(min_size=1, max_size=20).filter(
    lambda path: all(not "\ud800" <= c <= "\udfff" for c in path)
) | st.binary(min_size=1, max_size=20).map(lambda path: path.decode("utf-8", "surrogateescape"))
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "direct": st.booleans(),
        "num_queues": st.integers(0, 2**31),
        "lost_after": st.floats(0.1, 86400) | st.none(),
        "create": st.integers(0, 2**63),
    },
)
BASES = st.builds(lambda path, options: io_uring(path, **options), PATHS, OPTIONS) | st.builds(
    lambda path: Address("virtio-blk-vhost-user", {"path": path}), PATHS
)
RATES = st.floats(0.1, 1e15)
ADDRESSES = st.recursive(
    BASES,
    lambda bases: (
        st.builds(
            lambda base, offset: Address("slice", {"offset": offset}, base), bases, st.integers(0, 2**63)
        )
        | st.builds(lambda base, overlay: Address("cow", {"overlay": overlay}, base), bases, PATHS)
        | st.builds(
            lambda base, rate, count: Address("throttle", {"bytes": rate, "operations": count}, base),
            bases,
            RATES,
            RATES,
        )
        | st.builds(lambda base: Address("readonly", {}, base), bases)
    ),
    max_leaves=4,
)


@given(ADDRESSES)
@example(io_uring("disk.img?direct=on&%41"))
def test_what_is_written_means_the_same(address: Address) -> None:
    text = str(address)
    assert parse_address(text) == address
    assert text.isprintable()


@example("SLICE,\x1f")
@given(
    st.text(max_size=30)
    | st.lists(
        st.sampled_from(
            [
                "io_uring",
                "slice",
                "cow",
                "nbd",
                ":",
                "//",
                "?",
                "&",
                ",",
                "=",
                "%",
                "%4",
                "%41",
                "direct",
                "on",
                "offset",
                "1M",
                "partition",
                "nbd+unix",
                "socket",
                "host",
                "@",
                "/",
                "..",
                "-",
                "\0",
                "\udcff",
                "\ud800",
                "é",
                " ",
            ]
        ),
        max_size=12,
    ).map("".join)
)
def test_whatever_is_read_is_an_address_or_an_option_error(text: str) -> None:
    try:
        address = parse_address(text)
    except aioblk.OptionError as error:
        refusal: aioblk.OptionError | None = error
    else:
        refusal = None
        assert parse_address(str(address)) == address or "\ud800" in text
    if refusal is not None:
        assert refusal.operation == "address"
        assert refusal.filename is not None
        assert str(refusal).isprintable()


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an address is needed: a path, DRIVER:PATH or LAYER:ADDRESS"),
        ("-", "standard input is no block device; a file of that name is ./-"),
        (
            "disk.img?direct=on",
            r"it is io_uring:disk.img\?direct=on, and a file of that name io_uring:disk.img%3Fdirect=on",
        ),
        ("C:\\disk.img", "at character 1, 'C': no driver or layer 'C'; .* begins with ./"),
        ("0000:01:00.0", "a PCI device is named with its driver: virtio-blk-vfio-pci:0000:01:00.0"),
        ("vhost-user:blk.sock", "Did you mean virtio-blk-vhost-user"),
        ("iouring:x", "Did you mean io_uring"),
        ("slcie,partition=1:/dev/sdb", "Did you mean slice"),
        ("slcie,overlay=/x:/dev/sdb", "Did you mean slice"),
        ("slice", "slice lies over another device: slice:ADDRESS; a file of that name is ./slice"),
        ("slice,partition=1", "slice lies over another device: slice,partition=1:ADDRESS"),
        ("slice:", "at character 7, '': an address is needed"),
        ("slice,:x", "'' is not of the form OPTION=VALUE"),
        ("slice,offset:x", "at character 7, 'offset': 'offset' is not of the form OPTION=VALUE"),
        ("slice,ofset=1:x", "at character 7, 'ofset=1': no property 'ofset'; .* Did you mean offset"),
        ("slice,length=0.1G:x", "length must be a number .* not '0.1G': .* no whole number of bytes"),
        (
            "slice:io_uring:x?offset=1M",
            "no property 'offset'; .* stand before its colon: slice,offset=VALUE:ADDRESS",
        ),
        ("throttle,bytes=fast:x", r"bytes must be a rate \(100M/s\), not 'fast'"),
        ("io_uring,direct=on:x", r"options of io_uring stand behind its path: io_uring:PATH\?OPTION=VALUE"),
        ("io_uring:x?drect=on", "at character 12, 'drect=on': no property 'drect'; .* Did you mean direct"),
        ("io_uring:x?direct=on&direct=off", "at character 22, .* property direct is given twice"),
        ("io_uring:x?path=y", "path is given twice"),
        ("io_uring:x?", "'' is not of the form OPTION=VALUE"),
        (
            "io_uring:100%.img",
            "at character 13, '%.i': % begins an escape of two hex digits; a % itself is %25",
        ),
        ("io_uring:x?lost-after=5y", "lost_after must be a number of seconds or a time .* not '5y'"),
        ("nbd:localhost:10809", "NBD has URIs: nbd://HOST:PORT/EXPORT"),
        ("nbd+unix:///x", r"nbd\+unix:///EXPORT\?socket=PATH"),
        ("nbd:///x", "a host is needed: nbd://HOST:PORT/EXPORT"),
        ("nbd://host/%zz", "two hex digits"),
        ("slice:" * 17 + "x", "no more than 16 layers"),
    ],
)
def test_an_address_that_means_nothing_is_refused(text: str, message: str) -> None:
    with pytest.raises(aioblk.OptionError, match=message) as caught:
        parse_address(text)
    assert caught.value.operation == "address"
    assert caught.value.filename == text


def test_errors_have_no_passwords_and_no_end_of_text() -> None:
    with pytest.raises(aioblk.OptionError, match="NBD has no passwords") as caught:
        parse_address("nbds://somebody:hunter2@host/x")
    assert "hunter2" not in str(caught.value)
    for text in (
        "io_uring:x?" + "a" * 100_000,
        "a" * 100_000 + ":x",
        "slice," + "a" * 100_000 + "=1:x",
        "slice:" * 50_000,
    ):
        with pytest.raises(aioblk.OptionError) as caught:
            parse_address(text)
        assert len(str(caught.value)) < 1000
    with pytest.raises(aioblk.OptionError, match="must be text or a path object, not 3"):
        parse_address(3)  # type: ignore[arg-type]


# --- beside them --------------------------------------------------------------------------------------------


def test_what_is_beside_an_address_goes_to_the_outermost_that_has_it() -> None:
    address = parse_address("slice,length=1M:disk.img", offset="4K", read_only=True, **{"num-queues": 2})
    assert address == Address(
        "slice", {"length": 1 << 20, "offset": 4096}, io_uring("disk.img", read_only=True, num_queues=2)
    )
    twice = parse_address("slice:slice:disk.img", offset=512)
    assert twice == Address("slice", {"offset": 512}, Address("slice", {}, io_uring("disk.img")))


def test_what_an_address_says_may_be_said_again_and_not_be_contradicted() -> None:
    assert parse_address("io_uring:x?read-only=on", read_only=True) == io_uring("x", read_only=True)
    with pytest.raises(aioblk.OptionError, match="read_only is off in the address, and on is asked for"):
        parse_address("io_uring:x?read-only=off", read_only=True)
    with pytest.raises(aioblk.OptionError, match=r"property direct is given twice"):
        parse_address("x", direct=True, DIRECT=True)
    with pytest.raises(aioblk.OptionError, match=r"no property 'drect'; .* Did you mean direct"):
        parse_address("slice:x", drect=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("io_uring:x?num-queues=0", "io_uring 'io_uring:x.num-queues=0': num_queues must be at least 1"),
        ("io_uring:%FF", "path must be UTF-8"),
        ("io_uring:a%00b", "null characters"),
        ("io_uring:", "path or fd is needed"),
        ("virtio-blk-vhost-user:", "path is needed"),
        ("slice,partition=1,offset=0:x", "partition excludes offset and length"),
        ("throttle:x", "a limit is needed, as in throttle,bytes=100M/s"),
        ("throttle,bytes=0:x", "bytes must be positive"),
        ("throttle,burst-bytes=1M:x", "burst_bytes needs bytes"),
        ("readonly:io_uring:x?read-only=off", "read_only is off in the address, and on is asked for"),
        ("cow,overlay=nowhere%3Ax:y", "no driver or layer 'nowhere'"),
    ],
)
def test_what_cannot_be_opened_is_refused_before_it_is(text: str, message: str) -> None:
    with pytest.raises(aioblk.OptionError, match=message):
        aioblk.open(text)


# --- NBD ----------------------------------------------------------------------------------------------------


class Client:
    """Stands for the class of NBD devices."""

    def __init__(
        self,
        uri: str,
        *,
        read_only: bool = False,
        connections: int = 1,
        contexts: tuple[str, ...] = (),
        tls: object = None,
        tls_certificates: str | None = None,
        tls_psk: str | None = None,
        connect_timeout: float | None = None,
        unflushed: str = "lose",
    ) -> None:
        self.said = {name: value for name, value in locals().items() if name != "self" and value}


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aioblk.nbd._client.device.Nbd", Client)


@pytest.mark.usefixtures("client")
def test_what_an_nbd_uri_says_goes_to_the_client() -> None:
    text = (
        "nbds://me@host:1/a%2Fb?tls-hostname=it&connections=4&x-y=1&tls-psk-file=/k&unflushed=report"
        "&contexts=a:b,c:d&connect-timeout=1m&tls-certificates=/pki"
    )
    device: Any = aioblk.open(text, read_only=True)
    assert device.said == {
        "uri": "nbds://me@host:1/a%2Fb?tls-hostname=it&x-y=1",
        "connections": 4,
        "tls_psk": "/k",
        "unflushed": "report",
        "contexts": ("a:b", "c:d"),
        "connect_timeout": 60,
        "tls_certificates": "/pki",
        "read_only": True,
    }
    address = parse_address(text)
    assert parse_address(str(address)) == address
    assert str(parse_address("nbd://h/x", connections=2)) == "nbd://h/x?connections=2"
    assert (
        str(parse_address("nbd+unix:///x?socket=s", connections=2)) == "nbd+unix:///x?socket=s&connections=2"
    )


@pytest.mark.usefixtures("client")
def test_what_no_text_can_stand_for_is_not_written() -> None:
    context = object()
    address = parse_address("nbds://host", tls=context)
    assert address.options["tls"] is context
    assert str(address) == "nbds://host"
    with pytest.raises(aioblk.OptionError, match=r"tls must be given by a program: it cannot be text"):
        parse_address("nbds://host?tls=on")
    with pytest.raises(aioblk.OptionError, match=r"no property 'conections'; .* Did you mean connections"):
        parse_address("nbd://host?conections=2")


# --- opening ------------------------------------------------------------------------------------------------


async def test_addresses_open_devices(scratch_file: Path, storage_daemon: StorageDaemonFactory) -> None:
    devices: dict[str | Path, type] = {
        str(scratch_file): aioblk.IoUring,
        scratch_file: aioblk.IoUring,
        f"io_uring:{scratch_file}?direct=on": aioblk.IoUring,
        f"virtio-blk-vhost-user:{storage_daemon().socket}": aioblk.VirtioBlkVhostUser,
    }
    for address, kind in devices.items():
        async with aioblk.open(address) as device:
            assert isinstance(device, kind)
            assert await device.read(0, 512) == bytes(512)


# --- what no name can be made of, and what was made by hand -------------------------------------------------


@pytest.mark.parametrize("text", ["\ud800", "io_uring:a\udfff", "slice,offset=1:\ud800", "nbd://h/\ud800"])
def test_a_surrogate_that_stands_for_no_byte_is_refused(text: str) -> None:
    with pytest.raises(aioblk.OptionError, match="no byte of a file's name"):
        aioblk.parse_address(text)


@pytest.mark.parametrize("text", ["\udcff", "\udcc3\udca9", "io_uring:%C3\udca9", "io_uring:%ED%A0%80"])
def test_bytes_of_a_name_are_the_same_however_they_came(text: str) -> None:
    address = aioblk.parse_address(text)
    assert aioblk.parse_address(str(address)) == address
    assert "\udcc3" not in str(address.options["path"])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: aioblk.Address("foo", {}), "no driver or layer 'foo'"),
        (lambda: aioblk.Address("nvme_io_uring", {}), "not 'nvme_io_uring'"),
        (lambda: aioblk.Address(5, {}), "not 5"),  # type: ignore[arg-type]
        (lambda: aioblk.Address("io_uring", {"drect": True}), "Did you mean direct"),
        (lambda: aioblk.Address("io_uring", {"read-only": True}), "as in Python"),
        (lambda: aioblk.Address("nbd", {}), "uri is needed"),
        (lambda: aioblk.Address("slice", {}), "a layer lies over an address, not over None"),
        (lambda: aioblk.Address("io_uring", {}, aioblk.parse_address("x")), "a driver lies over nothing"),
    ],
)
def test_an_address_that_could_not_be_opened_cannot_be_made(
    make: Callable[[], aioblk.Address], words: str
) -> None:
    with pytest.raises(aioblk.OptionError, match=words):
        make()


def test_an_address_has_so_many_layers_and_no_more_however_it_was_made() -> None:
    address = aioblk.parse_address("x")
    for _ in range(16):
        address = aioblk.Address("readonly", {}, address)
    with pytest.raises(aioblk.OptionError, match="no more than 16 layers"):
        aioblk.Address("readonly", {}, address)
    assert str(address).count("readonly:") == 16


def test_an_error_of_a_long_address_is_short() -> None:
    with pytest.raises(aioblk.OptionError) as caught:
        aioblk.parse_address("slice," * 10_000)
    assert len(str(caught.value)) < 1000
