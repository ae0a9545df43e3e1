"""The NBD server through the eyes of the clients people use: libnbd's, QEMU's, fio."""

import filecmp
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ..support.certificates import Authority
from ..support.nbd_exports import SIZE
from ..support.nbd_server import NbdServer

if TYPE_CHECKING:
    from ..conftest import StorageDaemonFactory

TIME_LIMIT = 60


def run(*command: str | Path) -> str:
    """What the command prints; it must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT)
    assert done.returncode == 0, f"{command[0]} failed: {done.stdout}{done.stderr}"
    return done.stdout


def test_nbdinfo_sees_what_is_offered(server: NbdServer) -> None:
    listed: dict[str, Any] = json.loads(run("nbdinfo", "--json", "--no-content", server.uri))
    assert listed["protocol"] == "newstyle-fixed"
    assert listed["structured"]
    (export,) = listed["exports"]
    assert export["export-size"] == SIZE
    assert export["contexts"] == ["base:allocation"]
    can = {name for name, value in export.items() if name.startswith("can_") and value}
    assert can == {
        *(
            "can_cache",
            "can_df",
            "can_fast_zero",
            "can_flush",
            "can_fua",
            "can_multi_conn",
            "can_trim",
            "can_zero",
        )
    }
    assert export["block_size_minimum"] in (1, 512)
    assert export["block_size_maximum"] == 32 << 20
    assert "exports" in json.loads(run("nbdinfo", "--json", "--list", server.uri))


def test_every_byte_of_a_file_is_served_around_the_page_cache(tmp_path: Path) -> None:
    """A million bytes are no whole number of blocks."""
    image, source, copy = (tmp_path / name for name in ("image", "source", "copy"))
    image.write_bytes(bytes(1_000_000))
    source.write_bytes(bytes(range(250)) * 4000)
    with NbdServer("io_uring", f"path={image}", "direct=true") as server:
        assert run("nbdinfo", "--size", server.uri).strip() == "1000000"
        run("nbdcopy", source, server.uri)
        run("nbdcopy", server.uri, copy)
    assert filecmp.cmp(source, image, shallow=False)
    assert filecmp.cmp(source, copy, shallow=False)


def test_extended_headers_are_used_by_whoever_knows_them(server: NbdServer) -> None:
    """libnbd from 1.18 on; what it is told is the same with and without."""
    version = tuple(map(int, run("nbdinfo", "--version").split()[1].split(".")[:2]))
    listed: dict[str, Any] = json.loads(run("nbdinfo", "--json", "--no-content", server.uri))
    assert listed.get("extended", False) == (version >= (1, 18))
    whole = json.loads(run("nbdinfo", "--map=base:allocation", "--json", server.uri))
    assert sum(extent["length"] for extent in whole) == SIZE
    run("qemu-io", "-f", "raw", "-c", f"write -z 0 {SIZE}", "-c", f"read -P 0 0 {SIZE}", server.uri)


def test_nbdinfo_maps_holes(file_server: NbdServer, image: Path) -> None:
    with image.open("r+b") as file:
        file.seek(1 << 20)
        file.write(bytes(range(256)) * 256)
    extents = json.loads(run("nbdinfo", "--map", "--json", file_server.uri))
    assert [(extent["offset"], extent["length"], extent["description"]) for extent in extents] == [
        (0, 1 << 20, "hole,zero"),
        (1 << 20, 64 << 10, "data"),
        ((1 << 20) + (64 << 10), SIZE - (1 << 20) - (64 << 10), "hole,zero"),
    ]


def test_devices_without_holes_are_data_all_over(image: Path, storage_daemon: "StorageDaemonFactory") -> None:
    with NbdServer("virtio-blk-vhost-user", f"path={storage_daemon(image).socket}") as server:
        (extent,) = json.loads(run("nbdinfo", "--map", "--json", server.uri))
    assert (extent["length"], extent["description"]) == (SIZE, "data")


def test_nbdcopy_in_and_out(server: NbdServer, source: Path, tmp_path: Path) -> None:
    run("nbdcopy", "--flush", source, server.uri)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, server.uri)
    run("nbdcopy", server.uri, tmp_path / "copy")
    assert filecmp.cmp(source, tmp_path / "copy", shallow=False)


def test_nbdcopy_with_many_requests_and_connections(server: NbdServer, source: Path, tmp_path: Path) -> None:
    options = ("--connections=4", "--requests=32", "--request-size=16384")
    run("nbdcopy", *options, "--allocated", source, server.uri)
    run("nbdcopy", *options, server.uri, tmp_path / "copy")
    assert filecmp.cmp(source, tmp_path / "copy", shallow=False)


def test_qemu_img_converts_both_ways(server: NbdServer, source: Path, tmp_path: Path) -> None:
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, server.uri)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, server.uri)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", server.uri, tmp_path / "copy.qcow2")
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", source, tmp_path / "copy.qcow2")


def test_qemu_io_patterns(server: NbdServer) -> None:
    commands = [
        "write -P 0xaa 0 1M",
        "write -P 0xbb 512 512",
        "write -P 0xcc 1000 3000",  # QEMU makes whole blocks of it where the server wants them
        "write -f -P 0xdd 2M 64k",
        "aio_write -P 0xee 3M 8M",
        "aio_flush",
        "write -z 64k 64k",
        "write -z -u 2M 4k",
        "write -z -n 128k 4k",
        "discard 4M 1M",
        "flush",
        "read -P 0xaa 0 512",
        "read -P 0xbb 512 488",
        "read -P 0xcc 1000 3000",
        "read -P 0xaa 4000 60k",
        "read -P 0 64k 64k",
        "read -P 0 128k 4k",
        "read -P 0xaa 132k 124k",
        "read -P 0 2M 4k",
        "read -P 0xdd 2052k 60k",
        "read -P 0xee 3M 1M",
        "read -P 0xee 5M 6M",
        "readv -P 0xee 5M 64k 128k 512",
    ]
    output = run(
        "qemu-io", "-f", "raw", *(word for command in commands for word in ("-c", command)), server.uri
    )
    assert "failed" not in output


@pytest.mark.parametrize("block_size", ["4k", "64k"])
def test_fio_verifies_what_it_wrote(server: NbdServer, block_size: str, tmp_path: Path) -> None:
    """Four connections, each with 32 writes in flight on a part of its own, then as many reads."""
    report = tmp_path / "report.json"
    run(
        *("fio", "--name=verify", "--ioengine=nbd", f"--uri={server.uri}", "--numjobs=4", "--iodepth=32"),
        *("--rw=randwrite", f"--bs={block_size}", "--size=4M", "--offset_increment=4M"),
        *("--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--group_reporting"),
        *(f"--aux-path={tmp_path}", "--output-format=json", f"--output={report}"),
    )
    text = report.read_text()
    (job,) = json.loads(text[text.index("{") :])["jobs"]
    assert job["error"] == 0
    assert job["write"]["io_bytes"] == job["read"]["io_bytes"] == SIZE


def test_a_read_only_export_cannot_be_written_to(image: Path) -> None:
    with NbdServer("io_uring", f"path={image}", "--read-only", name="backup 1") as server:
        assert server.uri.endswith(f"/backup%201?socket={server.socket}")
        (export,) = json.loads(run("nbdinfo", "--json", "--no-content", server.uri))["exports"]
        assert export["export-name"] == "backup 1"
        assert export["is_read_only"]
        refused = subprocess.run(["nbdcopy", image, server.uri], capture_output=True, text=True)
        assert refused.returncode != 0


def test_clients_come_by_tcp_as_well(image: Path) -> None:
    with NbdServer("io_uring", f"path={image}", "--port", "0") as server:
        assert run("nbdinfo", "--size", server.uri).strip() == str(SIZE)


# --- TLS ----------------------------------------------------------------------------------------------------


def test_certificates_of_libnbd_and_qemu(image: Path, source: Path, tmp_path: Path) -> None:
    pki = Authority(tmp_path)
    copy = tmp_path / "copy"
    certificates = "--tls-certificates", str(pki.server), "--tls-verify-peer"
    with NbdServer("io_uring", f"path={image}", "--port", "0", *certificates) as server:
        host, port = server.address
        uri = f"nbds://{host}:{port}/?tls-certificates={pki.client}"
        assert run("nbdinfo", "--size", uri).strip() == str(SIZE)
        run("nbdcopy", source, uri)
        run("nbdcopy", uri, copy)
        assert filecmp.cmp(source, copy, shallow=False)
        credentials = f"tls-creds-x509,id=tls,endpoint=client,dir={pki.client}"
        options = f"driver=nbd,server.type=inet,server.host={host},server.port={port},tls-creds=tls"
        run(
            "qemu-img",
            "compare",
            "--object",
            credentials,
            "--image-opts",
            options,
            f"driver=raw,file.filename={source}",
        )
        plain = subprocess.run(["nbdinfo", f"nbd://{host}:{port}"], capture_output=True, text=True)
        assert plain.returncode != 0
        assert "not supported" in plain.stderr


def test_keys_of_gnutls(image: Path, source: Path, tmp_path: Path) -> None:
    """Where Python has them."""
    keys = tmp_path / "keys.psk"
    keys.write_text(f"alice:{'2a' * 32}\nbob:{'17' * 32}\n")
    others = tmp_path / "others.psk"
    others.write_text(f"alice:{'00' * 32}\ncarol:{'17' * 32}\n")
    if sys.version_info < (3, 13):
        with pytest.raises(RuntimeError, match=r"need Python 3\.13"):
            NbdServer("io_uring", f"path={image}", "--port", "0", "--tls-psk", str(keys))
        return
    with NbdServer("io_uring", f"path={image}", "--port", "0", "--tls-psk", str(keys)) as server:
        where = "{}:{}".format(*server.address)
        for user in ("alice", "bob"):
            uri = f"nbds://{user}@{where}/?tls-psk-file={keys}"
            assert run("nbdinfo", "--size", uri).strip() == str(SIZE)
        run("nbdcopy", source, uri)
        assert filecmp.cmp(source, image, shallow=False)
        for user in ("alice", "carol"):
            refused = subprocess.run(
                ["nbdinfo", f"nbds://{user}@{where}/?tls-psk-file={others}"], capture_output=True
            )
            assert refused.returncode != 0
