"""The object gateway: what it answers to curl, to browsers, to programs that count on its entity tags, and to
those that mean harm."""

import asyncio
import email
import email.policy
import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import object_gateway
import pytest
from _gateway.problems import ProblemError
from _gateway.ranges import MOST_RANGES, Part, parse_range
from _gateway.versions import Versions

import aioblk
from aioblk.testing import Fault, Faulty, MemoryDevice, Recorder

from ..support.http import TIME_LIMIT, Answer, Client, connected

SIZE = 3 << 20
LARGE = 1 << 40
"""More than the buffers of sockets."""
PROGRAM = (sys.executable, str(Path(object_gateway.__file__)))


def content(length: int = SIZE) -> bytes:
    return bytes(range(251)) * (length // 251 + 1)


@asynccontextmanager
async def gateway(device: aioblk.BlockDevice, *options: str) -> AsyncGenerator[int]:
    """The port of one that ends at the end, and has nothing under way then."""
    parsed = object_gateway.parse_options(["a-device", *options])
    async with object_gateway.serving(device, parsed) as server:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.create_task(server.serve([listener]))
            try:
                yield listener.getsockname()[1]
            finally:
                server.end()
                async with asyncio.timeout(TIME_LIMIT):
                    await serving
                for timer in server.timers:
                    timer.cancel()


@pytest.fixture
async def disk() -> AsyncGenerator[MemoryDevice]:
    """Blocks of 512 bytes, and not all of its bytes at multiples of what else there is."""
    async with MemoryDevice(SIZE, limits=aioblk.Limits(request_alignment=512)) as device:
        await device.write(0, content()[:SIZE])
        yield device


@pytest.fixture
async def port(disk: MemoryDevice) -> AsyncGenerator[int]:
    async with gateway(disk) as port:
        yield port


@pytest.fixture
async def client(port: int) -> AsyncGenerator[Client]:
    async with connected(port) as client:
        yield client


async def curl(*arguments: str | Path, given: bytes | None = None) -> bytes:
    process = await asyncio.create_subprocess_exec(
        *("curl", "--silent", "--show-error", "--fail", "--max-time", str(TIME_LIMIT), *map(str, arguments)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    told, errors = await process.communicate(given)
    assert process.returncode == 0, errors
    return told


def problem(answer: Answer) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/problem+json"
    told: dict[str, Any] = json.loads(answer.body)
    assert told["status"] == answer.status
    return told


# --- curl ---------------------------------------------------------------------------------------------------


async def test_curl_gets_all_of_it_and_goes_on_with_half_of_it(port: int, tmp_path: Path) -> None:
    url, file = f"http://127.0.0.1:{port}/disk", tmp_path / "copy"
    await curl("--output", file, url)
    assert file.read_bytes() == content()[:SIZE]
    os.truncate(file, 1_000_001)
    await curl("--continue-at", "-", "--output", file, url)
    assert file.read_bytes() == content()[:SIZE]


async def test_curl_gets_ranges(port: int) -> None:
    url = f"http://127.0.0.1:{port}/disk"
    assert await curl("--range", "1000-300999", url) == content()[1000:301000]
    assert await curl("--range", "-100", url) == content()[:SIZE][-100:]
    head, _, body = (await curl("--include", "--range", "0-99,700-,100-199,-5", url)).partition(b"\r\n\r\n")
    fields = head.partition(b"\r\n")[2]
    assert int(email.message_from_bytes(fields)["content-length"]) == len(body)
    message = email.message_from_bytes(fields + b"\r\n\r\n" + body, policy=email.policy.HTTP)
    found = [(part["content-range"], part.get_payload(decode=True)) for part in message.iter_parts()]
    assert found == [
        (f"bytes 0-199/{SIZE}", content()[:200]),
        (f"bytes 700-{SIZE - 1}/{SIZE}", content()[700:SIZE]),
    ]


async def test_curl_uploads_and_goes_on_with_what_broke_off(
    port: int, disk: MemoryDevice, tmp_path: Path
) -> None:
    url, file = f"http://127.0.0.1:{port}/disk", tmp_path / "new"
    new = os.urandom(1_000_001)
    file.write_bytes(new)
    await curl("--upload-file", file, url)
    assert await disk.read(0, SIZE) == new + content()[1_000_001:SIZE]
    await disk.write_zeroes(512_000, 512_000)
    await curl("--continue-at", "512000", "--upload-file", file, url)
    assert (await disk.read(0, SIZE))[:1_000_001] == new
    await curl("--upload-file", "-", f"{url}?offset=2000001", given=new)
    assert (await disk.read(0, SIZE))[2_000_001:3_000_002] == new


async def test_curl_zeroes_flushes_and_asks_what_there_is(port: int, disk: MemoryDevice) -> None:
    url = f"http://127.0.0.1:{port}/disk"
    options = json.loads(await curl("--request", "OPTIONS", url))
    assert options["features"] == ["extents", "zero", "discard", "flush"]
    assert (options["size"], options["block_size"]) == (SIZE, 512)
    zero = {"op": "zero", "offset": 1000, "size": 1_000_000, "flush": True}
    await curl("--request", "PATCH", "--data", json.dumps(zero), url)
    await curl("--request", "DELETE", f"{url}?offset=2000000&size=1000")
    await curl("--request", "PATCH", "--data", '{"op": "flush"}', url)
    expected = bytearray(content()[:SIZE])
    expected[1000:1_001_000] = bytes(1_000_000)
    expected[2_000_000:2_001_000] = bytes(1000)
    assert await disk.read(0, SIZE) == expected


# --- browsers -----------------------------------------------------------------------------------------------

CHROMIUM = {
    "Accept": "*/*",
    "Accept-Encoding": "identity;q=1, *;q=0",
    "Connection": "keep-alive",
    "Sec-Fetch-Dest": "video",
    "Sec-Fetch-Mode": "no-cors",
}
FIREFOX = {
    "Accept": "video/webm,video/ogg,video/*;q=0.9,application/ogg;q=0.7,audio/*;q=0.6,*/*;q=0.5",
    "Accept-Encoding": "identity",
    "Connection": "keep-alive",
    "Sec-Fetch-Dest": "video",
}


@pytest.mark.parametrize("browser", [CHROMIUM, FIREFOX], ids=["Chromium", "Firefox"])
async def test_browsers_play_and_seek(disk: MemoryDevice, browser: dict[str, str]) -> None:
    """All is asked for as a range, and dropped when somebody seeks; then the rest, if still the same."""
    async with gateway(disk, "--content-type", "video/mp4") as port:
        async with connected(port) as playing:
            playing.begin("GET", "/disk", {**browser, "Range": "bytes=0-"})
            status, headers = await playing.head()
            assert (status, headers["content-range"]) == (206, f"bytes 0-{SIZE - 1}/{SIZE}")
            assert (headers["content-type"], headers["accept-ranges"]) == ("video/mp4", "bytes")
            assert await playing.reader.readexactly(1000) == content()[:1000]
        async with connected(port) as seeking:
            asked = {**browser, "If-Range": headers["etag"], "Range": "bytes=2000000-"}
            found = await seeking.ask("GET", "/disk", asked)
            assert (found.status, found.body) == (206, content()[2_000_000:SIZE])
            assert found.headers["etag"] == headers["etag"]
            await seeking.ask("PUT", "/disk", {}, b"another film")
            found = await seeking.ask("GET", "/disk", asked)
            assert (found.status, len(found.body)) == (200, SIZE)
            assert found.headers["etag"] != headers["etag"]


# --- entity tags --------------------------------------------------------------------------------------------


async def test_what_is_known_is_not_sent_again(client: Client) -> None:
    tag = (await client.ask("HEAD", "/disk")).headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        answer = await client.ask("GET", "/disk", {"If-None-Match": known})
        assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", tag)
    await client.ask("DELETE", "/disk?offset=0&size=1")
    assert (await client.ask("GET", "/disk", {"If-None-Match": tag})).status == 200
    assert (await client.ask("PUT", "/disk", {"If-None-Match": "*"}, b"first")).status == 412


async def test_of_two_who_saw_the_same_version_one_is_refused(port: int, disk: MemoryDevice) -> None:
    async with connected(port) as one, connected(port) as other:
        tag = (await one.ask("HEAD", "/disk")).headers["etag"]
        answers = await asyncio.gather(
            one.ask("PUT", "/disk", {"If-Match": tag}, b"1" * 700_000),
            other.ask("PUT", "/disk", {"If-Match": tag}, b"2" * 700_000),
        )
        assert sorted(answer.status for answer in answers) == [200, 412]
        [done] = [answer for answer in answers if answer.status == 200]
        assert len(set(await disk.read(0, 512 * 1367))) == 1
        again = await one.ask("PATCH", "/disk", {"If-Match": done.headers["etag"]}, b'{"op":"zero","size":9}')
        assert again.status == 200
        weak = await one.ask("DELETE", "/disk?offset=0&size=1", {"If-Match": f"W/{again.headers['etag']}"})
        assert "If-Match does not hold" in problem(weak)["detail"]


async def test_a_part_has_a_version_of_its_own(client: Client) -> None:
    first, second = "/disk?offset=0&size=4096", "/disk?offset=2097152&size=4096"
    tags = [(await client.ask("HEAD", path)).headers["etag"] for path in (first, second, "/disk")]
    changed = await client.ask("PUT", second, {"If-Match": tags[1]}, b"x" * 4096)
    assert changed.status == 200
    now = [(await client.ask("GET", path)).headers["etag"] for path in (first, second, "/disk")]
    assert now[0] == tags[0]
    assert now[1] == changed.headers["etag"] != tags[1]
    assert now[2] != tags[2]
    middle = await client.ask("GET", second, {"Range": "bytes=-96"})
    assert (middle.status, middle.headers["content-range"]) == (206, "bytes 4000-4095/4096")


async def test_what_is_being_changed_has_no_version(client: Client, port: int) -> None:
    tag = (await client.ask("HEAD", "/disk")).headers["etag"]
    async with connected(port) as writer:
        writer.begin("PUT", "/disk", {"Content-Length": "600000", "Expect": "100-continue"})
        assert (await writer.head())[0] == 100  # from now on it may change
        for headers in ({}, {"If-None-Match": tag}):
            answer = await client.ask("GET", "/disk?size=100", headers)
            assert answer.status == 200
            assert "etag" not in answer.headers
            assert answer.headers["cache-control"] == "no-store"
        assert (await client.ask("GET", "/disk", {"If-Match": tag})).status == 412
        beside = await client.ask("GET", "/disk?offset=2097152", {"Range": "bytes=0-1"})
        assert "etag" in beside.headers
        writer.writer.write(bytes(600_000))
        assert (await writer.answer()).status == 200
    assert (await client.ask("HEAD", "/disk")).headers["etag"] != tag


async def test_who_has_changed_the_same_meanwhile_is_not_hidden_behind_a_tag(
    client: Client, port: int
) -> None:
    async with connected(port) as writer:
        writer.begin("PUT", "/disk", {"Content-Length": "6", "Expect": "100-continue"})
        assert (await writer.head())[0] == 100
        assert "etag" not in (await client.ask("PUT", "/disk", {}, b"beside")).headers
        writer.writer.write(b"behind")
        assert "etag" not in (await writer.answer()).headers
    assert "etag" in (await client.ask("HEAD", "/disk")).headers


async def test_a_download_that_a_change_overtakes_is_cut_short(caplog: pytest.LogCaptureFixture) -> None:
    async with (
        MemoryDevice(LARGE) as large,
        gateway(large) as port,
        connected(port, limit=4096) as slow,
        connected(port) as client,
    ):
        slow.begin("GET", "/disk", {})
        status, headers = await slow.head()
        assert (status, headers["content-length"]) == (200, str(LARGE))
        assert (await client.ask("DELETE", f"/disk?offset={LARGE // 2}&size=1000")).status == 200
        elsewhere = await client.ask("DELETE", f"/disk?offset=0&size={LARGE // 2}")
        assert elsewhere.status == 200
        assert await slow.is_sent_away()
    assert "a change of bytes" in caplog.text


async def test_where_others_write_there_are_no_tags(disk: MemoryDevice) -> None:
    async with gateway(disk, "--shared") as port, connected(port) as client:
        answer = await client.ask("GET", "/disk", {"If-Range": '"any"', "Range": "bytes=0-1"})
        assert (answer.status, answer.headers.get("etag")) == (200, None)
        assert (await client.ask("GET", "/disk", {"Range": "bytes=0-1"})).status == 206


def test_versions_of_units_that_are_larger_than_one() -> None:
    versions = Versions(1 << 50)
    change = versions.begin(Part(1 << 40, 1))
    assert versions.of(Part(0, 1 << 50)) is None
    assert versions.of(Part(1 << 45, 1)) == 0
    assert versions.end(change, Part(1 << 40, 1)) is not None
    assert versions.of(Part(1 << 40, 1)) == versions.of(Part(0, 1 << 50)) == 2


# --- ranges -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ("bytes=0-0", [(0, 1)]),
        ("bytes=-1", [(999, 1)]),
        ("bytes=-5000", [(0, 1000)]),
        ("bytes=990-5000", [(990, 10)]),
        ("BYTES = 5-", [(5, 995)]),
        ("bytes=, 1-2 ,,\t5-6,", [(1, 2), (5, 2)]),
        ("bytes=5-6,1-2", [(5, 2), (1, 2)]),
        ("bytes=5-9,1-2,3-4,2000-", [(1, 9)]),
        ("bytes=" + ",".join(f"0-{end}" for end in range(MOST_RANGES)), [(0, MOST_RANGES)]),
        ("seconds=1-2", None),
        ("bytes", None),
    ],
)
def test_ranges(asked: str, given: list[tuple[int, int]] | None) -> None:
    assert parse_range(asked, 1000) == given


@pytest.mark.parametrize(
    "asked",
    [
        *("bytes=", "bytes=-", "bytes=-0", "bytes=1000-", "bytes=5-2", "bytes=--5", "bytes=-5-", "bytes=a-b"),
        *("bytes=1 -2", "bytes=+1-2", "bytes=\u0661-\u0662", "bytes=0x1-2", f"bytes=0-{'9' * 20}"),
        "bytes=" + ",".join(f"0-{end}" for end in range(10_000)),
    ],
)
def test_what_is_no_range_cannot_be_satisfied(asked: str) -> None:
    with pytest.raises(ProblemError) as caught:
        parse_range(asked, 1000)
    assert caught.value.status == 416
    assert caught.value.headers == {"Content-Range": "bytes */1000"}


async def test_of_nothing_there_is_no_range() -> None:
    async with MemoryDevice(0) as empty, gateway(empty) as port, connected(port) as client:
        assert (await client.ask("GET", "/disk")).body == b""
        assert (await client.ask("GET", "/disk", {"Range": "bytes=0-"})).status == 416
        assert json.loads((await client.ask("GET", "/disk/extents")).body) == []


async def test_head_knows_no_ranges(client: Client) -> None:
    answer = await client.ask("HEAD", "/disk", {"Range": "bytes=0-9"})
    assert (answer.status, answer.headers["content-length"]) == (200, str(SIZE))


# --- holes --------------------------------------------------------------------------------------------------


async def test_holes_are_told_as_imageio_does(tmp_path: Path) -> None:
    file = tmp_path / "sparse"
    with file.open("wb") as image:
        image.truncate(1 << 20)
        image.seek(65536)
        image.write(b"x" * 65536)
    async with aioblk.IoUring(file, read_only=True) as dev, gateway(dev) as port, connected(port) as client:
        extents = json.loads((await client.ask("GET", "/disk/extents")).body)
        assert [(each["start"], each["length"], each["zero"]) for each in extents] == [
            (0, 65536, True),
            (65536, 65536, False),
            (131072, 917504, True),
        ]
        [part] = json.loads((await client.ask("GET", "/disk/extents?offset=70000&size=10")).body)
        assert part == {"start": 70000, "length": 10, "zero": False, "hole": False}
        assert (await client.ask("GET", "/disk/extents?context=dirty")).status == 404
        refused = await client.ask("PUT", "/disk", {}, b"x")
        assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


async def test_a_device_that_knows_no_holes_is_data(client: Client) -> None:
    assert [each["zero"] for each in json.loads((await client.ask("GET", "/disk/extents")).body)] == [False]


# --- durability, and what goes wrong ------------------------------------------------------------------------


async def test_who_asks_for_no_flush_gets_none(disk: MemoryDevice) -> None:
    recorder = Recorder(disk)
    async with gateway(recorder) as port, connected(port) as client:

        def flushes() -> int:
            return [each.operation for each in recorder.records].count("flush")

        await client.ask("PUT", "/disk?flush=n", {}, b"x")
        await client.ask("PATCH", "/disk", {}, b'{"op": "zero", "size": 1}')
        assert flushes() == 0
        await client.ask("PUT", "/disk", {}, b"x")
        assert flushes() == 1
        await client.ask("PATCH", "/disk", {}, b'{"op": "discard", "size": 512, "flush": true}')
        assert flushes() == 2
        await client.ask("PATCH", "/disk", {}, b'{"op": "flush"}')
        assert flushes() == 3
    assert flushes() == 4  # at the end, for whoever has forgotten


async def test_an_error_before_the_first_byte_is_the_answer(disk: MemoryDevice) -> None:
    faulty = Faulty(disk, Fault(operations={"read"}, error=errno.EIO))
    async with gateway(faulty) as port, connected(port) as client:
        told = problem(await client.ask("GET", "/disk"))
        assert (told["status"], told["errno"]) == (500, "EIO")
        faulty.lose("pulled")
        lost = await client.ask("GET", "/disk")
        assert (lost.status, lost.headers["retry-after"]) == (503, "1")
        await faulty.reconnect()


async def test_an_error_after_it_cuts_the_answer_short(
    disk: MemoryDevice, caplog: pytest.LogCaptureFixture
) -> None:
    faulty = Faulty(disk, Fault(operations={"read"}, after=5, error=errno.EIO))
    async with gateway(faulty) as port, connected(port) as client:
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await client.ask("GET", "/disk")
    assert "is cut short" in caplog.text


async def test_what_the_device_refuses_says_how_far_it_came(disk: MemoryDevice) -> None:
    faulty = Faulty(disk, Fault(operations={"write"}, after=2, error=errno.ENOSPC))
    async with gateway(faulty) as port, connected(port) as client:
        answer = await client.ask("PUT", "/disk?offset=512", {}, b"n" * 1_000_000)
        told = problem(answer)
        assert (told["status"], told["errno"], told["offset"]) == (507, "ENOSPC", 512)
        assert await disk.read(512, told["written"]) == b"n" * told["written"]
        assert 0 < told["written"] < 1_000_000


@pytest.mark.parametrize("sent", [0, 700_000])
async def test_a_put_that_breaks_off_leaves_what_is_said(
    disk: MemoryDevice, sent: int, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(disk)
    async with gateway(recorder) as port, connected(port) as client:
        client.begin("PUT", "/disk?offset=1000", {"Content-Length": "1000000"})
        client.writer.write(b"n" * sent)
        await client.writer.drain()
        while sum(record.length for record in recorder.changes) < sent // 2:
            await disk.flush()
    said = re.search(r"of 1000000 bytes for offset 1000, (\d+) were written, and not flushed", caplog.text)
    assert said
    written = int(said[1])
    assert (written > 0) == (sent > 0)
    expected = content()[:1000] + b"n" * written + content()[1000 + written : SIZE]
    assert await disk.read(0, SIZE) == expected


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status"),
    [
        ("PUT", "/disk", {"Content-Range": "bytes 0-9/*"}, b"x" * 9, 400),
        ("PUT", "/disk", {"Content-Range": "bytes 9-0/*"}, b"x", 400),
        ("PUT", "/disk", {"Content-Range": "bytes 0-9/5"}, b"x" * 10, 400),
        ("PUT", "/disk", {"Content-Range": "bytes -1-8/*"}, b"x" * 10, 400),
        ("PUT", "/disk", {"Content-Range": f"bytes {SIZE}-{SIZE}/*"}, b"x", 416),
        ("PUT", f"/disk?offset={SIZE}", {}, b"x", 416),
        ("PUT", "/disk?offset=-1", {}, b"x", 400),
        ("PUT", "/disk?size=1e3", {}, b"x", 400),
        ("PUT", "/disk?size=5", {}, b"x", 400),
        ("PUT", "/disk?flush=maybe", {}, b"x", 400),
        ("GET", f"/disk?size={SIZE + 1}", {}, b"", 416),
        ("GET", "/disk?offset=99999999999999999999", {}, b"", 400),
        ("GET", "/nothing", {}, b"", 404),
        ("POST", "/disk", {}, b'{"op": "zero", "size": 1}', 405),  # which any page of the web could have sent
        ("DELETE", "/disk", {}, b"", 400),
        ("DELETE", "/disk?offset=0", {}, b"", 400),
        ("PATCH", "/disk", {}, b'{"op": "zero"}', 400),
        ("PATCH", "/disk", {}, b'{"op": "zero", "size": -1}', 400),
        ("PATCH", "/disk", {}, b'{"op": "zero", "size": true}', 400),
        ("PATCH", "/disk", {}, b'{"op": "zero", "size": 1, "flush": "n"}', 400),
        ("PATCH", "/disk", {}, b'{"op": "zero", "size": 1e30}', 400),
        ("PATCH", "/disk", {}, b'{"op": ["zero"], "size": 1}', 400),
        ("PATCH", "/disk", {}, f'{{"op": "zero", "size": {SIZE + 1}}}'.encode(), 416),
        ("PATCH", "/disk", {}, b"[" * 4000, 400),
        ("PATCH", "/disk", {}, b"[]", 400),
        ("PATCH", "/disk", {}, b"\xff", 400),
        ("PATCH", "/disk", {}, b" " * 5000, 413),
        ("PUT", "/disk/extents", {}, b"x", 405),
    ],
)
async def test_what_is_wrong_is_refused_and_changes_nothing(
    client: Client,
    disk: MemoryDevice,
    method: str,
    path: str,
    headers: dict[str, str],
    body: bytes,
    status: int,
) -> None:
    answer = await client.ask(method, path, headers, body)
    assert problem(answer)["status"] == status
    assert await disk.read(0, SIZE) == content()[:SIZE]
    assert (await client.ask("HEAD", "/disk")).status == 200  # on the same connection


async def test_who_does_not_know_the_token_gets_nothing(disk: MemoryDevice, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    async with gateway(disk, "--token-file", str(file)) as port, connected(port) as client:
        for headers in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "Basic s3cret"}):
            assert (await client.ask("GET", "/disk/extents", headers)).status == 401
        assert (await client.ask("HEAD", "/disk", {"Authorization": "Bearer s3cret"})).status == 200


# --- clients that mean harm, or do it -----------------------------------------------------------------------


async def test_a_body_that_drips_is_not_waited_for(disk: MemoryDevice) -> None:
    async with gateway(disk, "--patience", "0.2") as port, connected(port) as client:
        client.begin("PUT", "/disk", {"Content-Length": "1000"})

        async def drip() -> None:
            while True:
                client.writer.write(b"x")
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        answer = await client.answer()
        dripping.cancel()
        assert (answer.status, problem(answer)["written"]) == (408, 0)
        assert await client.is_sent_away()


@pytest.mark.parametrize("sent", [b"", b"GET /disk HTTP/1.1\r\nX: "], ids=["nothing", "half a header"])
async def test_who_sends_no_request_is_sent_away(disk: MemoryDevice, sent: bytes) -> None:
    async with gateway(disk, "--patience", "0.2") as port, connected(port) as client:
        client.writer.write(sent)
        assert await client.is_sent_away()


async def test_who_takes_nothing_is_sent_away(caplog: pytest.LogCaptureFixture) -> None:
    async with (
        MemoryDevice(LARGE) as large,
        gateway(large, "--patience", "0.2") as port,
        connected(port, limit=4096) as client,
    ):
        client.begin("GET", "/disk", {})
        while "it takes too little" not in caplog.text:
            await large.flush()
        assert await client.is_sent_away()


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /disk HTTP/1.1\r\nX: " + b"x" * 300_000,
        b"GET /" + b"x" * 300_000,
        b"GET /disk HTTP/1.1\r\n" + b"X: y\r\n" * 60_000,
        b"PUT /disk HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 300_000,
        b"PUT /disk HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX: " + b"x" * 300_000,
    ],
    ids=["value", "path", "fields", "extension", "trailer"],
)
async def test_a_giant_header_is_not_kept(client: Client, sent: bytes) -> None:
    for _ in range(10):
        client.writer.write(sent)
    assert await client.is_sent_away()


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: -5",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Content-Length: 99999999999999999999999",
        "Content-Length: five",
        "Transfer-Encoding: gzip",
    ],
)
async def test_a_length_that_lies_is_no_request(client: Client, disk: MemoryDevice, head: str) -> None:
    client.writer.write(f"PUT /disk HTTP/1.1\r\nHost: g\r\n{head}\r\n\r\nhello".encode())
    assert (await client.head())[0] == 400
    assert await client.is_sent_away()
    assert await disk.read(0, SIZE) == content()[:SIZE]


async def test_a_body_that_goes_on_is_no_part_of_it(client: Client, disk: MemoryDevice) -> None:
    client.writer.write(b"PUT /disk HTTP/1.1\r\nHost: g\r\nContent-Length: 5\r\n\r\nhello, and more\r\n\r\n")
    assert (await client.head())[0] in (200, 400)  # what follows is a request, and a bad one
    assert await client.is_sent_away()
    assert await disk.read(0, SIZE) in (b"hello" + content()[5:SIZE], content()[:SIZE])


async def test_chunks_beyond_their_range_are_refused(client: Client, disk: MemoryDevice) -> None:
    headers = {"Transfer-Encoding": "chunked", "Content-Range": "bytes 10-14/*"}
    client.begin("PUT", "/disk", headers)
    client.writer.write(b"8\r\nhello, a\r\n0\r\n\r\n")
    assert problem(await client.answer()) | {"title": ""} == {
        "title": "",
        "status": 400,
        "detail": "the body does not end after 5 bytes",
        "offset": 10,
        "written": 5,
    }
    client.begin("PUT", "/disk", headers)
    client.writer.write(b"2\r\nHE\r\n0\r\n\r\n")
    assert problem(await client.answer())["written"] == 2
    assert (await disk.read(0, 512))[:20] == content()[:10] + b"HEllo" + content()[15:20]


async def test_thousands_of_ranges_cost_one_refusal(client: Client) -> None:
    answer = await client.ask("GET", "/disk", {"Range": "bytes=" + ",".join(["0-"] * 5000)})
    assert problem(answer)["status"] == 416


# --- many at a time -----------------------------------------------------------------------------------------


async def test_a_client_may_have_so_many_requests_and_no_more(disk: MemoryDevice) -> None:
    async with gateway(disk, "--requests", "2", "--clients", "2") as port, AsyncExitStack() as stack:

        async def begun(source: str) -> Client:
            client = await stack.enter_async_context(connected(port, source=source))
            client.begin("PUT", "/disk", {"Content-Length": "9", "Expect": "100-continue"})
            return client

        waiting = [await begun("127.0.0.1") for _ in range(2)]
        assert [(await client.head())[0] for client in waiting] == [100, 100]
        refused = await (await begun("127.0.0.1")).answer()
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert (await (await begun("127.0.0.2")).head())[0] == 100
        assert (await (await begun("127.0.0.3")).answer()).status in (503, 429)
        waiting[0].writer.write(b"123456789")
        assert (await waiting[0].answer()).status == 200
        assert (await waiting[0].ask("HEAD", "/disk")).status == 200


async def test_who_asks_for_much_does_not_hold_up_others() -> None:
    """Downloads that nobody takes keep no memory that another client was promised."""
    async with (
        MemoryDevice(LARGE) as large,
        gateway(large, "--requests", "24", "--clients", "2", "--memory", "2M") as port,
        AsyncExitStack() as stack,
    ):
        for _ in range(20):
            greedy = await stack.enter_async_context(connected(port, limit=4096))
            greedy.begin("GET", "/disk", {})
            await greedy.head()
        async with connected(port, source="127.0.0.2") as polite:
            for offset in range(10):
                answer = await polite.ask("GET", f"/disk?offset={offset}&size=1000000")
                assert len(answer.body) == 1_000_000


async def test_requests_in_a_row_are_answered_in_order(client: Client) -> None:
    for number in range(20):
        client.begin("GET", f"/disk?offset={number}&size=1", {})
    bodies = [(await client.answer()).body for _ in range(20)]
    assert b"".join(bodies) == content()[:20]


# --- the end ------------------------------------------------------------------------------------------------


async def test_the_end_waits_for_what_is_under_way(disk: MemoryDevice) -> None:
    async with AsyncExitStack() as stack:
        async with gateway(disk) as port:
            client = await stack.enter_async_context(connected(port))
            idle = await stack.enter_async_context(connected(port))
            assert (await idle.ask("HEAD", "/disk")).status == 200
            client.begin("PUT", "/disk", {"Content-Length": "5", "Expect": "100-continue"})
            assert (await client.head())[0] == 100
            asyncio.get_running_loop().call_later(0.05, client.writer.write, b"hello")
        assert (await client.answer()).status == 200
    assert (await disk.read(0, 512))[:5] == b"hello"


async def test_the_end_does_not_wait_for_ever(disk: MemoryDevice, caplog: pytest.LogCaptureFixture) -> None:
    async with AsyncExitStack() as stack:
        async with gateway(disk, "--drain", "0.2") as port:
            client = await stack.enter_async_context(connected(port))
            client.begin("PUT", "/disk", {"Content-Length": "5", "Expect": "100-continue"})
            assert (await client.head())[0] == 100
        assert await client.is_sent_away()
    assert "is not waited for any longer" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_program_says_where_it_is_and_ends_in_order(scratch_file: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [*PROGRAM, "io_uring", f"path={scratch_file}", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        size, _, url = program.stdout.readline().partition(" bytes at ")
        try:
            with urllib.request.urlopen(url.strip(), timeout=TIME_LIMIT) as answer:
                assert answer.read() == bytes(int(size))
            program.send_signal(number)
            _, errors = program.communicate(timeout=TIME_LIMIT)
        finally:
            program.kill()
    assert (program.returncode, errors) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("io_uring", "path=nothing"), "object_gateway: .*nothing.*No such file or directory"),
        (
            ("io_uring", "path=x", "--memory", "1M"),
            "--memory must be a number, and at least 16777216, not 1048576",
        ),
        (("io_uring", "path=x", "--patience", "inf"), "--patience must be a number, and at least 0, not inf"),
        (("io_uring", "path=x", "--certificate", "c"), "--certificate and --key belong together"),
        (("io_urin", "path=x"), "object_gateway: .*io_uring"),
    ],
)
def test_the_program_says_what_is_wrong(arguments: tuple[str, ...], said: str) -> None:
    done = subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, timeout=TIME_LIMIT)
    assert done.returncode in (1, 2)
    assert re.search(said, done.stderr)
    assert "Traceback" not in done.stderr
