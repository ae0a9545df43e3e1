"""``aioblk serve nbd``: its file, its signals, systemd, another user, logs, metrics."""

import asyncio
import configparser
import contextlib
import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from aioblk import OptionError
from aioblk.cli import serve_metrics
from aioblk.cli.program import program
from aioblk.cli.serve_settings import SETTINGS, Settings, read_file
from aioblk.cli.service_manager import ServiceManager, sockets_handed_in
from aioblk.nbd import Server

from ..nbd import wire
from ..nbd.wire import Client
from ..support.nbd_exports import SIZE, new_image
from ..support.nbd_server import ROOT, NbdServer, command

TIME_LIMIT = 30


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return new_image(tmp_path)


def names(server: NbdServer) -> list[bytes]:
    with Client(server.socket) as client:
        client.greet()
        return [reply.data[4:] for reply in client.ask(wire.LIST)[:-1]]


# --- the command line ---------------------------------------------------------------------------------------


def test_the_help_names_every_option_and_shows_how_it_is_used() -> None:
    shown = CliRunner().invoke(program, ["serve", "nbd", "--help"], terminal_width=100).output
    for setting in SETTINGS:
        assert f"--{setting.name}" in shown
    assert "aioblk serve nbd disk.img" in shown
    assert "nbdinfo nbd://localhost" in shown


def test_names_descriptions_and_a_default_on_the_command_line(tmp_path: Path) -> None:
    one, two = tmp_path / "one.img", tmp_path / "two=2.img"
    one.write_bytes(b"1" * 4096)
    two.write_bytes(b"2" * 8192)
    devices = f"io_uring:{two}", f"first=io_uring:{one}?read-only=on", "--default", "first"
    with NbdServer("--loop=asyncio", *devices) as server:
        assert names(server) == [b"", b"first"]
        with Client(server.socket).connect() as client:
            assert client.call(wire.READ, 0, 1).data == b"2"
        with Client(server.socket) as client:
            client.greet()
            assert client.go(b"first")[-1].kind == wire.ACK
            assert client.call(wire.WRITE, 0, 1, data=b"x").error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a", "b"], "two exports have no name: write NAME=DEVICE"),
        (["x=a", "x=b"], "two exports are called 'x'"),
        (["x=a", "y=b", "--description", "z"], "--description is of one export"),
        (["a", "--adress", "b"], "Did you mean.*--address"),
        (["a", "--tls", "maybe"], "it must be off or allow or require, not 'maybe'"),
        (["a", "--rate", "fast"], "it must be a rate such as 100M/s, 1.5G/min or 500, not 'fast'"),
        (["a", "--rate", "1/min"], "it must be positive, not '1/min'"),
        (["a", "--clients", "many"], "it must be a whole number, not 'many'"),
        (["a", "--clients", "0"], "clients must be at least 1, not 0"),
        (["a", "--clients", "9" * 5000], "it must be a whole number, not '9"),
        (["a", "--memory", "1K"], "memory must be at least 1048576, not 1024"),
        (["a", "--rate", "0"], "it must be positive, not '0'"),
        (["a", "--metrics-port", "70000"], "it must be from 0 to 65535, not '70000'"),
        (["a", "--allow-user", "4294967295"], "it must be a number from 0 to 4294967294, not '4294967295'"),
        (
            ["a", "--idle", "inf"],
            "it must be a number of seconds or a time such as 250ms or 1h30m, not 'inf'",
        ),
        (["a", "--drain", "2000000"], "drain must be at most 1e\\+06 seconds, not 2e\\+06"),
        (["a", "--group", "kvm"], "group is the group of another user: name that"),
    ],
)
def test_wrong_arguments_end_with_2(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(program, ["serve", "nbd", *arguments])
    assert result.exit_code == 2
    assert re.search(words, result.output, re.DOTALL)


# --- the file -----------------------------------------------------------------------------------------------


def test_a_file_may_say_everything(tmp_path: Path) -> None:
    path = tmp_path / "nbd.toml"
    path.write_text(
        """
        [listen]
        address = ["::1", "127.0.0.1"]
        [limits]
        memory = "1G"
        least-rate = 512
        rate = "10M/s"
        operations = "5K/s"
        idle = "1h30m"
        patience = 2.5
        allow = ["10.0.0.0/8"]
        [process]
        json-log = true
        [exports.disk]
        device = "disk.img"
        read-only = true
        [exports.""]
        device = "other.img"
        """
    )
    exports, values = read_file(str(path))
    assert [(each.name, each.address, each.read_only) for each in exports] == [
        ("disk", "disk.img", True),
        ("", "other.img", False),
    ]
    assert values["memory"] == 1 << 30
    assert values["least-rate"] == 512
    assert (values["rate"], values["operations"]) == (10 << 20, 5000)
    assert (values["idle"], values["patience"]) == (5400, 2.5)
    assert values["address"] == ("::1", "127.0.0.1")
    assert [str(network) for network in values["allow"]] == ["10.0.0.0/8"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "[listen]\nadress = 'x'",
            r"\[listen\] has no 'adress'; there are address, port, unix. Did you mean",
        ),
        ("[server]", "has no 'server'; there are listen, tls, limits, process, exports"),
        ("[exports.x]\ndevise = 'x'", r"\[exports.x\] has no 'devise'; .*Did you mean device"),
        ("[exports.x]\nread-only = true", r"\[exports.x\] needs a device"),
        ("[exports.'']\ndevice = 7", r'\[exports.""\] device must be text, not 7'),
        ("exports = 3", r"\[exports\] must be a table, not 3"),
        ("[exports]\nx = 'disk.img'", r"\[exports.x\] must be a table, not 'disk.img'"),
        ("[limits]\nclients = '3x'", r"\[limits\] clients must be a whole number, not '3x'"),
        ("[limits]\nclients = true", r"\[limits\] clients must be a whole number, not True"),
        ("[limits]\nclients = [1, 2]", r"\[limits\] clients is one value, not \[1, 2\]"),
        (
            "[limits]\nidle = 'long'",
            r"\[limits\] idle must be a number of seconds or a time such as .*, not 'long'",
        ),
        ("[process]\nverbose = 'yes'", r"\[process\] verbose must be true or false, not 'yes'"),
        ("[limits", "Expected ']'"),
        ("[limits]\nclients = '" + "9" * 5000 + "'", r"\[limits\] clients must be a whole number"),
        ("[limits]\nidle = 1" + "0" * 400, r"\[limits\] idle must be a number of seconds"),
        ("[limits]\nrate = 0", r"\[limits\] rate must be positive, not 0"),
        ("[limits]\nallow = []", r"\[limits\] allow must name somebody, not \[\]; leave it out"),
        ("[limits]\nallow-group = []", r"\[limits\] allow-group must name somebody"),
        ("[limits]\nallow-user = -5", r"\[limits\] allow-user must be a number from 0 to 4294967294"),
        ("[listen]\nport = 70000", r"\[listen\] port must be from 0 to 65535, not 70000"),
        ("[listen]\nunix = 'a\0b'", "nbd.toml: .*character"),
        ('[listen]\nunix = "\\u0000b"', r"\[listen\] unix must be text without zero bytes"),
        (
            "[exports.x]\ndevice = 'x'\n[exports." + "y" * 5000 + "]\ndevice = 'x'",
            "name must have at most 4096",
        ),
        (
            "[exports.x]\ndevice = 'x'\ndefault = true\n[exports.y]\ndevice = 'x'\ndefault = true",
            r"\[exports\] has several that are default: x, y",
        ),
        ("a = " + "[" * 3000, "it is nested too deeply"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "nbd.toml"
    path.write_text(text)
    with pytest.raises(OptionError, match=words) as refused:
        read_file(str(path))
    assert str(path) in str(refused.value)


def test_a_file_is_judged_together_with_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "nbd.toml"
    path.write_text("[limits]\nclients = 0\n[exports.x]\ndevice = 'x'\ndescription = ''")
    result = CliRunner().invoke(program, ["serve", "nbd", "--config", str(path)])
    assert result.exit_code == 2
    assert re.search(r"nbd\.toml and the command line: clients must be at least 1", result.output)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tls": "off", "tls-certificates": "somewhere"},
        {"tls": "allow", "tls-certificates": "somewhere"},
        {"tls-psk": "somewhere"},
    ],
)
def test_peers_that_are_to_be_verified_cannot_come_without_a_certificate(options: dict[str, str]) -> None:
    """However that came about, everybody would be let in."""
    settings = Settings.of((), {"tls-verify-peer": True, **options})
    with pytest.raises(OptionError, match="tls-verify-peer needs tls-certificates, and TLS that is required"):
        settings.tls()


def test_hosts_and_paths_that_can_be_none_are_refused_in_words(image: Path) -> None:
    for arguments, words in [
        (("--port", "0", "--address", "a..b"), r"cannot listen at 'a\.\.b': .*label empty"),
        (("--port", "0", "--address", "x" * 70), "cannot listen at 'xxx.*label.* too long"),
        (("--port", "0", "--metrics-port", "0", "--metrics-address", "a..b"), r"metrics at 'a\.\.b', port 0"),
        (("--user", "nobody", "--group", "nobodys"), "cannot become one of group nobodys: it is not a group"),
    ]:
        with pytest.raises(RuntimeError, match=words) as refused:
            NbdServer("io_uring", f"path={image}", *arguments)
        assert "Traceback" not in str(refused.value)


def test_a_socket_may_be_called_as_files_may_be(image: Path, tmp_path: Path) -> None:
    place = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.sock")
    with NbdServer("io_uring", f"path={image}", "--unix", place) as server:
        assert server.uri.endswith("/%FF.sock")
        with Client(Path(place)).connect() as client:
            assert client.call(wire.FLUSH).error == 0


def test_a_hang_up_while_the_file_is_read_has_it_read_once_more(tmp_path: Path, image: Path) -> None:
    """What is read from a pipe, which holds it up: the second reading begins when the first one is over."""
    path, place = tmp_path / "nbd.toml", tmp_path / "nbd.sock"
    text = f"[listen]\nunix = ['{place}']\n[exports.%s]\ndevice = '{image}'\n"
    path.write_text(text % "first")
    with NbdServer("--config", str(path)) as server:
        server.socket = place
        server.expect("the export 'first' is removed")
        server.expect("the export 'second' is (added|removed)")
        server.expect("the export 'third' is added")
        path.unlink()
        os.mkfifo(path)
        os.kill(server.pid, signal.SIGHUP)
        with path.open("w") as pipe:  # when it is being read
            os.kill(server.pid, signal.SIGHUP)
            with Client(place).connect(name=b"first") as client:  # it has had a turn, and the signal
                assert client.call(wire.FLUSH).error == 0
            path.unlink()
            path.write_text(text % "third")
            pipe.write(text % "second")
        _until(lambda: names(server) == [b"third"])


def test_a_hang_up_has_the_file_read_again(tmp_path: Path, image: Path) -> None:
    other = tmp_path / "other.img"
    other.write_bytes(b"o" * 4096)
    path, place = tmp_path / "nbd.toml", tmp_path / "nbd.sock"

    def write(text: str) -> None:
        path.write_text(f"[listen]\nunix = ['{place}']\n{text}")

    third = tmp_path / "third.img"
    third.write_bytes(b"t" * 4096)
    write(f"[exports.stays]\ndevice = '{image}'\n[exports.goes]\ndevice = '{third}'\n")
    with NbdServer("--config", str(path)) as server:
        server.socket = place
        assert names(server) == [b"stays", b"goes"]
        with Client(place) as stays, Client(place) as goes:
            stays.greet()
            assert stays.go(b"stays")[-1].kind == wire.ACK
            goes.greet()
            assert goes.go(b"goes")[-1].kind == wire.ACK
            server.expect("nothing is reloaded: .*has no 'nonsense'")
            write("nonsense = 3")
            os.kill(server.pid, signal.SIGHUP)
            _until(lambda: server.complaints("nothing is reloaded"))
            server.expect("clients: what has changed there comes with the next start")
            server.expect("the export 'goes' is removed")
            server.expect("the export 'comes' is added")
            server.expect("the export 'absent' is not added: .*No such file")
            write(
                f"[limits]\nclients = 7\n[exports.stays]\ndevice = '{image}'\n"
                f"[exports.absent]\ndevice = '/nowhere'\n[exports.comes]\ndevice = '{other}'\n"
            )
            os.kill(server.pid, signal.SIGHUP)
            assert goes.is_closed_by_server()
            _until(lambda: names(server) == [b"stays", b"comes"])
            assert stays.call(wire.FLUSH).error == 0
            assert goes.is_closed_by_server()


def _until(condition: object) -> None:
    limit = time.monotonic() + TIME_LIMIT
    assert callable(condition)
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)  # another process: there is no event to wait for


# --- systemd ------------------------------------------------------------------------------------------------

# Does what systemd does: hands in a socket as descriptor 3, and runs the rest in the same process.
LAUNCHER = """
import os, sys
descriptor, *command = sys.argv[1:]
os.dup2(int(descriptor), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES="nbd")
os.execvp(command[0], command)
"""


@pytest.fixture
def notified(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(TIME_LIMIT)
        yield listener


def test_sockets_are_handed_in_and_systemd_is_told(
    tmp_path: Path, image: Path, notified: socket.socket
) -> None:
    place = tmp_path / "handed.sock"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(place))
        listener.listen()
        os.set_inheritable(listener.fileno(), True)
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "WATCHDOG_USEC": "200000",
        }
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", LAUNCHER, str(listener.fileno()), *command(f"disk={image}")],
                env=environment,
                pass_fds=[listener.fileno()],
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(process.kill)
        with Client(place) as client:  # it waits in the socket until there is a server
            client.greet()
            assert client.go(b"disk")[-1].kind == wire.ACK
        told = [notified.recv(4096).decode() for _ in range(3)]
        assert told == ["READY=1\nSTATUS=serving 'disk'", "WATCHDOG=1", "WATCHDOG=1"]
        process.send_signal(signal.SIGHUP)
        while not (line := notified.recv(4096).decode()).startswith("RELOADING=1\nMONOTONIC_USEC="):
            assert line == "WATCHDOG=1"
        while not (line := notified.recv(4096).decode()).startswith("READY=1"):
            assert line == "WATCHDOG=1"
        process.terminate()
        while not (line := notified.recv(4096).decode()).startswith("STOPPING=1"):
            assert line == "WATCHDOG=1"
        assert process.wait(TIME_LIMIT) == 0
        assert process.stdout is not None
        assert process.stdout.read() == f"{SIZE} bytes of {image} at nbd+unix:///disk?socket={place}\n"
    assert place.exists()  # it is systemd's


def test_what_was_handed_to_somebody_else_is_left_alone() -> None:
    environment = {"LISTEN_FDS": "2", "LISTEN_PID": "1", "LISTEN_FDNAMES": "a:b", "HOME": "/"}
    assert sockets_handed_in(environment) == []
    assert environment == {"HOME": "/"}


def test_nobody_is_told_where_nobody_listens(tmp_path: Path) -> None:
    ServiceManager({}).ready("unheard")
    gone = {"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "1000"}
    with contextlib.closing(ServiceManager(gone)) as manager:
        manager.ready("unheard")
        assert manager.watchdog == 0.001
    manager.ready("unheard")
    assert ServiceManager({"WATCHDOG_USEC": "1000"}).watchdog is None
    other = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}
    with contextlib.closing(ServiceManager(other)) as manager:
        assert manager.watchdog is None


@pytest.mark.parametrize("interval", ["0", "", "-1", "²", "soon", "9" * 30])
def test_a_watchdog_that_wants_nothing_that_can_be_had_is_fed_nothing(interval: str) -> None:
    """Fed every 0 seconds, it would keep the loop busy."""
    environment = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": interval}
    with contextlib.closing(ServiceManager(environment)) as manager:
        assert manager.watchdog is None


def test_the_watchdog_is_fed_also_without_a_descriptor_left(
    tmp_path: Path, notified: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or clients that take them all would have the server killed."""
    with contextlib.closing(ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "notify")})) as manager:

        def none_left(*_: object, **__: object) -> socket.socket:
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr("aioblk.cli.service_manager.socket.socket", none_left)
        manager.tell("WATCHDOG=1")
        assert notified.recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize("number", ["abc", "-1", "²", "1 2", "9" * 5000])
def test_sockets_whose_number_is_none_are_refused(number: str) -> None:
    with pytest.raises(OptionError, match="LISTEN_FDS must be the number of sockets"):
        sockets_handed_in({"LISTEN_FDS": number, "LISTEN_PID": str(os.getpid())})


UNIT = re.compile(r"```ini\n(.*?)```", re.DOTALL)


def units() -> list[tuple[str, str]]:
    """Those of docs/nbd.md, in order."""
    found = UNIT.findall((ROOT / "docs/nbd.md").read_text())
    return list(zip(("aioblk-nbd.service", "aioblk-nbd@.socket", "aioblk-nbd@.service"), found, strict=True))


def test_the_unit_files_of_the_documentation_are_right(tmp_path: Path) -> None:
    """By systemd's own judgement where it is there, and by what this program takes in any case."""
    for name, text in units():
        parser = configparser.RawConfigParser(strict=True)
        parser.optionxform = str  # type: ignore[assignment, method-assign]
        parser.read_string(text)
        assert "Unit" in parser
        if name.endswith(".service"):
            words = parser["Service"]["ExecStart"].split()
            assert words[1:5] == ["-m", "aioblk", "serve", "nbd"]
            result = CliRunner().invoke(program, [*words[3:], "--clients", "0"])
            assert result.exit_code == 2  # by what is added, or a file that is not here
            assert "clients must be" in result.output or "No such file" in result.output
        for elsewhere in ("/usr/bin/python3", "/bin/kill"):  # systemd wants to see them where it looks
            text = text.replace(elsewhere, sys.executable)
        (tmp_path / name).write_text(text)
    if shutil.which("systemd-analyze"):
        paths = [str(tmp_path / name) for name, _ in units()]
        checked = subprocess.run(["systemd-analyze", "verify", *paths], capture_output=True, text=True)
        about_ours = [line for line in checked.stderr.splitlines() if "aioblk" in line]
        assert not about_ours, about_ours


def test_the_file_of_the_documentation_is_taken(tmp_path: Path) -> None:
    [text] = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/nbd.md").read_text(), re.DOTALL)
    path = tmp_path / "nbd.toml"
    path.write_text(text)
    exports, values = read_file(str(path))
    assert [export.name for export in exports] == ["root", "iso"]
    assert values["clients"] == 50


# --- another user -------------------------------------------------------------------------------------------


def test_it_becomes_another_user_for_good(image: Path) -> None:
    """When the device is open, which that user could not. Who may not do that refuses to serve."""
    os.chmod(image, 0o600)
    if os.geteuid() != 0:
        with pytest.raises(RuntimeError, match="cannot become root: Operation not permitted"):
            NbdServer("io_uring", f"path={image}", "--user", "root")
        return
    with NbdServer("io_uring", f"path={image}", "--port", "0", "--user", "nobody") as server:
        with Client(server.address).connect() as client:
            assert client.call(wire.WRITE, 0, 3, data=b"abc").error == 0
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{server.pid}/status").read_text().splitlines()
        )
        nobody = {"65534"}
        assert set(status["Uid"].split()) == nobody
        assert len({*status["Gid"].split()}) == 1
        assert status["Groups"].split() == []
        assert status["NoNewPrivs"].strip() == "1"
        for task in Path(f"/proc/{server.pid}/task").iterdir():
            assert f"Uid:{status['Uid']}\n" in (task / "status").read_text()


# --- logs and metrics ---------------------------------------------------------------------------------------


def test_a_log_of_json_has_a_line_for_each_thing(image: Path) -> None:
    with NbdServer("io_uring", f"path={image}", "--json-log", "--verbose") as server:
        server.expect(".")
        with Client(server.socket).connect() as client:
            assert client.call(wire.READ, 0, 4096).error == 0
        _until(lambda: server.complaints("4096 bytes read"))
        lines = [json.loads(line) for line in server.errors().splitlines()]
        assert all({"time", "level", "logger", "message"} == line.keys() for line in lines)
        mine = [line for line in lines if line["message"].startswith(f"client 1 (process {os.getpid()} of")]
        assert {line["logger"] for line in mine} == {"aioblk.nbd"}
        assert any("uses export ''" in line["message"] for line in mine)


def test_a_log_for_the_journal_has_levels_and_no_time(image: Path) -> None:
    with NbdServer("io_uring", f"path={image}", "--verbose", environment={"JOURNAL_STREAM": "8:1"}) as server:
        server.expect("^<6>client 1 ")
        with Client(server.socket).connect():
            pass
        _until(lambda: server.complaints("^<6>client 1 .*: connected"))
        _until(lambda: server.complaints("0 bytes read"))


def test_metrics_are_served(image: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    metrics = "--metrics-port", str(port)
    with NbdServer("io_uring", f"path={image}", *metrics) as server:
        with Client(server.socket).connect() as client:
            assert client.call(wire.READ, 0, 4096).error == 0
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=TIME_LIMIT) as page:
            text = page.read().decode()
    assert 'aioblk_nbd_io_bytes_total{export="",operation="read"} 4096.0' in text
    assert "aioblk_nbd_connections_accepted_total 1.0" in text


async def test_who_says_nothing_to_metrics_holds_no_thread_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_metrics, "PATIENCE", 0.05)
    before = set(threading.enumerate())
    async with Server() as server:
        where, end = serve_metrics.serve_metrics(server, "127.0.0.1", 0)

        def try_it() -> str:
            address = urllib.parse.urlsplit(where)
            with socket.create_connection(
                (address.hostname, address.port or 0), timeout=TIME_LIMIT
            ) as silent:
                assert silent.recv(1) == b""  # it was sent away
            with urllib.request.urlopen(where, timeout=TIME_LIMIT) as page:
                text: str = page.read().decode()
            end()
            return text

        assert "aioblk_nbd_connections 0.0" in await asyncio.to_thread(try_it)
    listening = [thread for thread in set(threading.enumerate()) - before if "serve_forever" in thread.name]
    assert listening == []
