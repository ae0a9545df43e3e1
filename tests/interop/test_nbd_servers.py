"""The NBD client of servers that others have written: QEMU's and nbdkit."""

import asyncio
import errno
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import aioblk
from aioblk import BlkioError, UnsupportedError
from aioblk.nbd import list_exports
from aioblk.testing.conformance import BlockDeviceConformance, Opener

from ..support.certificates import Authority
from ..support.nbd_peers import directory, nbdkit, peer, qemu_nbd

SIZE = 8 << 20

# Of RFC 7919. Without a file QEMU looks for some of its own, for seconds.
DH_PARAMETERS = """\
-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
"""


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{command[0]} failed: {done.stdout}{done.stderr}"
    return done.stdout


class TestOfQemuNbd(BlockDeviceConformance):
    @pytest.fixture
    def opener(self, scratch_file: Path) -> Iterator[Opener]:
        with qemu_nbd(scratch_file) as uri:
            yield lambda *, read_only=False: aioblk.Nbd(
                uri, read_only=read_only, connections=3, depth=4, lost_after=30.0
            )


class TestOfNbdkit(BlockDeviceConformance):
    @pytest.fixture
    def opener(self) -> Iterator[Opener]:
        with nbdkit("memory", str(SIZE)) as uri:
            yield lambda *, read_only=False: aioblk.Nbd(uri, read_only=read_only, connections=2)


# --- QEMU ---------------------------------------------------------------------------------------------------


async def test_qemu_takes_all_that_there_is(scratch_file: Path) -> None:
    with qemu_nbd(scratch_file) as uri:
        async with aioblk.Nbd(uri, connections=4) as dev:
            assert (dev.capacity, dev.connections) == (SIZE, 4)
            assert dev.limits.supports_fua_natively
            writes = [dev.write(n << 16, bytes([n]) * 65536, fua=n % 2 == 0) for n in range(64)]
            await asyncio.gather(*writes)
            await dev.discard(0, 1 << 20)
            await dev.write_zeroes(1 << 20, 1 << 20)
            await dev.flush()
            read = await asyncio.gather(*(dev.read(n << 16, 65536) for n in range(64)))
            assert [each[0] for each in read[16:]] == [*[0] * 16, *range(32, 64)]
            assert {each.kind async for each in dev.extents(0, 1 << 20)} == {aioblk.ExtentKind.HOLE}
            assert {each.kind async for each in dev.extents(2 << 20, 1 << 20)} == {aioblk.ExtentKind.DATA}


@contextmanager
def exported_by_storage_daemon(image: Path) -> Iterator[str]:
    """By a storage daemon, under a name, with a bitmap that has begun."""
    with directory() as where:
        path = where / "nbd.sock"
        node = {"driver": "qcow2", "node-name": "disk", "discard": "unmap"}
        file = {"driver": "file", "filename": str(image)}
        export = {
            "type": "nbd",
            "id": "export",
            "node-name": "disk",
            "name": "disk",
            "writable": True,
            "description": "a disk",
            "bitmaps": ["since"],
        }
        with peer(
            *("qemu-storage-daemon", "--blockdev", json.dumps({**node, "file": file})),
            *("--nbd-server", f"addr.type=unix,addr.path={path},max-connections=0"),
            *("--export", json.dumps(export)),
            where=path,
        ):
            yield f"nbd+unix:///disk?socket={path}"


async def test_what_has_changed_since_a_bitmap_was_begun(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", image, str(SIZE))
    run("qemu-img", "bitmap", "--add", image, "since")
    with exported_by_storage_daemon(image) as uri:
        async with aioblk.Nbd(uri) as dev:
            await dev.write(1 << 20, b"c" * 65536)
            await dev.flush()
    run("qemu-img", "bitmap", "--disable", image, "since")
    context = "qemu:dirty-bitmap:since"
    with exported_by_storage_daemon(image) as uri:
        (listed,) = await list_exports(uri)
        assert (listed.name, listed.description) == ("disk", "a disk")
        async with aioblk.Nbd(uri, contexts=[context], read_only=True) as dev:
            assert set(dev.contexts) == {"base:allocation", context}
            found = [tuple(each) async for each in dev.block_status(context) if each.flags & 1]
            assert found == [(1 << 20, 65536, 1)]
            assert await dev.read(1 << 20, 65536) == b"c" * 65536
        with pytest.raises(BlkioError, match=r"no metadata context x:y; it has .*qemu:dirty-bitmap:since"):
            await aioblk.Nbd(uri, contexts=["x:y"]).open()


async def test_a_server_of_qemu_that_is_started_again_is_found(scratch_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "nbd.sock"
    command = ("qemu-nbd", "--socket", path, "--persistent", "--shared=0", "--format=raw", scratch_file)
    with peer(*command, where=path):
        dev = await aioblk.Nbd(f"nbd+unix:///?socket={path}", connections=2, reconnect_for=30.0).open()
        await dev.write(0, b"w" * 4096, fua=True)
    path.unlink(missing_ok=True)
    requests = [dev.write(4096 * n, bytes([n]) * 4096) for n in range(1, 9)]
    with peer(*command, where=path):
        await asyncio.gather(*requests)
        assert await dev.read(0, 4096) == b"w" * 4096
        assert await dev.read(8 * 4096, 4096) == b"\x08" * 4096
        await dev.flush()
        assert dev.reconnections >= 1
        await dev.aclose()


# --- nbdkit -------------------------------------------------------------------------------------------------


async def test_nbdkit_without_structured_replies() -> None:
    with nbdkit("--no-sr", "memory", str(SIZE)) as uri:
        async with aioblk.Nbd(uri) as dev:
            assert dev.contexts == ()
            await dev.write(512, b"n" * 512)
            assert await dev.read(0, 1024) == bytes(512) + b"n" * 512


async def test_nbdkit_of_a_newstyle_that_is_not_fixed() -> None:
    """Which has nothing but the name of an export."""
    with nbdkit("--mask-handshake=0", "memory", str(SIZE)) as uri:
        async with aioblk.Nbd(uri) as dev:
            assert (dev.capacity, dev.contexts) == (SIZE, ())
            assert await dev.read(0, 512) == bytes(512)
        with pytest.raises(BlkioError, match="too old to list"):
            await list_exports(uri)
        with pytest.raises(UnsupportedError, match="cannot be asked for x:y"):
            await aioblk.Nbd(uri, contexts=["x:y"]).open()


async def test_nbdkit_of_before_2011() -> None:
    old = nbdkit("--oldstyle", "memory", str(SIZE))
    with old as uri, pytest.raises(UnsupportedError, match="the protocol of before 2011"):
        await aioblk.Nbd(uri).open()


async def test_block_sizes_of_nbdkit_are_kept() -> None:
    policy = "blocksize-minimum=4096", "blocksize-preferred=65536", "blocksize-maximum=131072"
    strict = "blocksize-error-policy=error"
    with nbdkit("--filter=blocksize-policy", "memory", str(SIZE), *policy, strict) as uri:
        async with aioblk.Nbd(uri) as dev:
            limits = dev.limits
            assert (limits.request_alignment, limits.optimal_io_alignment) == (4096, 65536)
            assert limits.max_transfer == 131072
            data = bytes(range(256)) * 4096
            await dev.write(4096, data)
            assert await dev.read(4096, len(data)) == data
            await aioblk.ByteView(dev).write(5, b"anything")
            assert await aioblk.ByteView(dev).read(4, 10) == b"\0anything\0"


async def test_what_nbdkit_cannot_is_refused_or_done_in_another_way() -> None:
    filters = "--filter=nozero", "--filter=fua", "--filter=noextents"
    with nbdkit(*filters, "memory", str(SIZE)) as uri:
        async with aioblk.Nbd(uri) as dev:
            assert not dev.limits.supports_fua_natively
            await dev.write(0, b"f" * 4096, fua=True)
            await dev.write_zeroes(0, 2048)
            assert await dev.read(0, 4096) == bytes(2048) + b"f" * 2048
            assert {each.kind async for each in dev.extents()} == {aioblk.ExtentKind.DATA}


async def test_errors_of_nbdkit_have_their_number() -> None:
    with nbdkit("--filter=error", "memory", str(SIZE), "error-pwrite=ENOSPC", "error-pwrite-rate=1") as uri:
        async with aioblk.Nbd(uri) as dev:
            with pytest.raises(BlkioError) as caught:
                await dev.write(0, bytes(512))
            assert caught.value.errno == errno.ENOSPC
            assert await dev.read(0, 512) == bytes(512)


async def test_pieces_of_nbdkit_for_all_lengths() -> None:
    with nbdkit("-r", "pattern", str(SIZE)) as uri:
        async with aioblk.Nbd(uri, connections=4) as dev:
            assert dev.read_only
            view = aioblk.ByteView(dev)
            for length in (8, 4096, 32760, 32768, 65544, 1 << 20, 3 << 20):
                data = await view.read(0, length)
                assert data == b"".join(n.to_bytes(8, "big") for n in range(0, length, 8))


# --- TLS ----------------------------------------------------------------------------------------------------


async def test_tls_of_qemu_by_certificates(scratch_file: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    (authority.server / "dh-params.pem").write_text(DH_PARAMETERS)
    creds = f"tls-creds-x509,id=tls,endpoint=server,dir={authority.server},verify-peer=on"
    with qemu_nbd(scratch_file, "--object", creds, "--tls-creds=tls") as uri:
        secure = uri.replace("nbd+unix", "nbds+unix") + "&tls-hostname=localhost"
        async with aioblk.Nbd(secure, tls_certificates=authority.client) as dev:
            await dev.write(0, b"q" * (1 << 20))
            assert await dev.read(0, 1 << 20) == b"q" * (1 << 20)
        with pytest.raises(BlkioError, match=r"wants TLS: use nbds:"):
            await aioblk.Nbd(uri).open()


@pytest.mark.parametrize("of", ["qemu", "nbdkit"])
async def test_tls_by_keys(scratch_file: Path, tmp_path: Path, of: str) -> None:
    keys = tmp_path / "keys.psk"
    keys.write_text("alice:" + "2a" * 32 + "\n")
    if sys.version_info < (3, 13):
        with pytest.raises(UnsupportedError, match=r"needs Python 3\.13"):
            aioblk.Nbd("nbds://alice@localhost", tls_psk=keys)
        return
    if of == "qemu":
        (tmp_path / "dh-params.pem").write_text(DH_PARAMETERS)
        creds = f"tls-creds-psk,id=tls,endpoint=server,dir={tmp_path}"
        server = qemu_nbd(scratch_file, "--object", creds, "--tls-creds=tls")
    else:
        server = nbdkit("--tls=require", f"--tls-psk={keys}", "memory", str(SIZE))
    with server as uri:
        secure = uri.replace("nbd+unix://", "nbds+unix://alice@")
        async with aioblk.Nbd(secure, tls_psk=tmp_path) as dev:
            await dev.write(0, b"k" * 4096)
            assert await dev.read(0, 4096) == b"k" * 4096


async def test_tls_of_nbdkit_by_certificates(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificates = f"--tls-certificates={authority.server}"
    with nbdkit("--tls=require", certificates, "--tls-verify-peer", "memory", str(SIZE)) as uri:
        secure = uri.replace("nbd+unix", "nbds+unix")
        async with aioblk.Nbd(secure, tls_certificates=authority.client, connections=2) as dev:
            await asyncio.gather(*(dev.write(n << 16, bytes([n]) * 65536) for n in range(32)))
            assert await dev.read(31 << 16, 65536) == b"\x1f" * 65536
