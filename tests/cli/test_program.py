"""The frame of all commands: help, versions, how they end, and what is missing."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import aioblk.cli.program
from aioblk.cli._load.fleet import WORKER
from aioblk.cli.program import COMMANDS, program
from aioblk.cli.running import LOOPS, LoopName, Terminated, run
from aioblk.errors import BlkioError

from ..support.scripts import run_script
from .running import PATIENCE, command, variables
from .running import aioblk as run_aioblk


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """What the command "added" raises, the last one first."""
    errors: list[BaseException] = []

    @click.command("added")
    def added() -> None:
        raise errors.pop()

    original = program.get_command

    def get(ctx: click.Context, name: str) -> click.Command | None:
        return added if name == "added" else original(ctx, name)

    monkeypatch.setattr(aioblk.cli.program, "COMMANDS", {**COMMANDS, "added": "Fails."})
    monkeypatch.setattr(program, "get_command", get)
    return errors


def test_help_names_every_command_and_imports_none() -> None:
    script = """
        import sys
        from aioblk.cli.program import COMMANDS, program
        try:
            program.main(["--help"])
        except SystemExit as end:
            assert end.code == 0
        loaded = {f"aioblk.cli.{name}" for name in COMMANDS} | {"rich", "matplotlib", "uvloop"}
        assert not loaded & set(sys.modules), loaded & set(sys.modules)
    """
    shown = run_script(script).stdout
    for name, sentence in COMMANDS.items():
        assert f"  {name} " in shown
        assert sentence.split()[0] in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_with_an_example(name: str) -> None:
    result = CliRunner().invoke(program, [name, "--help"])
    assert result.exit_code == 0
    assert f"aioblk {name} " in result.output.partition("Usage:")[2].partition("\n")[2]


def test_the_version_is_that_of_the_package() -> None:
    done = run_aioblk("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"aioblk {aioblk.__version__}\n", "")


@pytest.mark.parametrize("arguments", [["infos"], ["info", "--jsn"], ["info", "--json", "a", "b"]])
def test_wrong_arguments_end_with_2_and_say_what_is_right(arguments: list[str]) -> None:
    result = CliRunner().invoke(program, arguments)
    assert result.exit_code == 2
    assert "Usage: aioblk" in result.stderr
    assert result.stdout == ""


def test_a_command_that_does_not_exist_is_told_with_the_nearest() -> None:
    result = CliRunner().invoke(program, ["infos"])
    assert "no command 'infos'" in result.stderr
    assert "Did you mean info?" in result.stderr


def test_what_does_not_open_is_a_line_on_stderr(tmp_path: Path) -> None:
    done = run_aioblk("info", tmp_path / "nothing")
    assert done.returncode == 1
    assert done.stderr.startswith("aioblk: ")
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "nothing") in done.stderr


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (BlkioError("one\ntwo", errno=5), 1, "aioblk: [Errno 5] Input/output error: one two\n"),
        (FileNotFoundError(2, "No such file", "x"), 1, "aioblk: [Errno 2] No such file: 'x'\n"),
        (click.ClickException("three"), 1, "aioblk: three\n"),
        (KeyboardInterrupt(), 130, "aioblk: interrupted\n"),
        (
            ModuleNotFoundError(name="rich.table"),
            1,
            "aioblk: this needs rich.table: pip install aioblk[cli]\n",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_are_a_line_and_a_status(
    added: list[BaseException], error: BaseException, status: int, line: str
) -> None:
    added.append(error)
    result = CliRunner().invoke(program, ["added"])
    assert (result.exit_code, result.stdout) == (status, "")
    assert result.stderr.lstrip("\n") == line


def test_what_is_a_mistake_of_ours_has_its_traceback(added: list[BaseException]) -> None:
    added.append(ModuleNotFoundError(name="aioblk.nothing"))
    assert isinstance(CliRunner().invoke(program, ["added"]).exception, ModuleNotFoundError)


def test_a_reader_that_has_gone_ends_it_as_other_programs(scratch_file: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        command("info", "--json", scratch_file),
        stdout=writer,
        stderr=subprocess.PIPE,
        env={**os.environ, **variables()},
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_without_the_extra_it_says_how_to_have_it() -> None:
    script = """
        import runpy, sys
        sys.modules["click"] = None
        try:
            runpy.run_module("aioblk", run_name="__main__")
        except SystemExit as end:
            assert end.code == 1
    """
    assert run_script(script).stderr == "aioblk: the command line needs click: pip install aioblk[cli]\n"


def test_completion_knows_the_commands() -> None:
    words = {"_AIOBLK_COMPLETE": "bash_complete", "COMP_WORDS": "aioblk inf", "COMP_CWORD": "1"}
    assert "plain,info" in run_aioblk(environment=words).stdout


# --- coroutines ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS)
def test_a_coroutine_runs_on_the_loop_that_is_wanted(loop: LoopName) -> None:
    async def which() -> str:
        return type(asyncio.get_running_loop()).__module__.partition(".")[0]

    assert run(which(), loop) == {"asyncio": "asyncio"}.get(loop, "uvloop")


def test_without_uvloop_it_is_asyncio_unless_uvloop_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def which() -> str:
        return type(asyncio.get_running_loop()).__module__

    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert run(which(), "auto").startswith("asyncio")
    with pytest.raises(ModuleNotFoundError):
        run(which(), "uvloop")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)], ids=str
)
def test_signals_end_a_coroutine_in_order(
    loop: LoopName, number: signal.Signals, raised: type[BaseException]
) -> None:
    ended = []

    async def main() -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(await asyncio.sleep(0, "in order"))

    with pytest.raises(raised):
        run(main(), loop)
    assert ended == ["in order"]
    assert Terminated().code == 143


# --- what the caller has made of stdin, stdout and stderr ---------------------------------------------------


@pytest.mark.parametrize("closed", ["0", "1", "2", "12", "012"])
def test_no_device_takes_the_place_of_a_stream_that_is_closed(tmp_path: Path, closed: str) -> None:
    source, copied = tmp_path / "disk.img", tmp_path / "copy.img"
    source.write_bytes(b"content" * 100)
    closing = " ".join(f"{number}>&-" for number in closed)
    for arguments, status in (
        (("copy", source, copied), 0),
        (("checksum", source), 1 if "1" in closed else 0),
        (("checksum", tmp_path / "missing"), 1),
    ):
        done = subprocess.run(
            ["/bin/sh", "-c", f'exec "$@" {closing}', "sh", *command(*arguments)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env={**os.environ, **variables()},
        )
        assert done.returncode == status, done.stderr
        if status and "2" not in closed:
            assert "missing" in done.stderr or "standard output" in done.stderr
    assert copied.read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(("info",), 1), (("--help",), 1), (("info", "missing"), 1), (("compare", "disk.img", "disk.img"), 2)],
    ids=str,
)
def test_output_that_is_not_taken_is_a_failure_with_its_name(
    tmp_path: Path, arguments: tuple[str, ...], status: int
) -> None:
    (tmp_path / "disk.img").touch()
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command(*arguments),
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
            env={**os.environ, **variables()},
        )
    assert (done.returncode, done.stderr) == (
        status,
        "aioblk: standard output: [Errno 28] No space left on device\n",
    )


@pytest.mark.parametrize("arguments", [("info",), ("--help",), ("info", "--help"), ("--version",)], ids=str)
def test_a_reader_that_is_gone_ends_whatever_prints_as_sigpipe_does(arguments: tuple[str, ...]) -> None:
    done = _without_a_reader("stdout", *arguments)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize(("arguments", "status"), [(("bogus",), 2), (("info", "missing"), 1)], ids=str)
def test_errors_that_nobody_reads_leave_the_status_as_it_is(arguments: tuple[str, ...], status: int) -> None:
    assert _without_a_reader("stderr", *arguments).returncode == status


def _without_a_reader(stream: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(
            command(*arguments),
            stdout=writer if stream == "stdout" else subprocess.PIPE,
            stderr=writer if stream == "stderr" else subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
            env={**os.environ, **variables()},
        )
    finally:
        os.close(writer)


def test_what_a_terminal_would_obey_is_not_printed_in_errors(tmp_path: Path) -> None:
    path = tmp_path / "red\x1b[31m"
    path.write_bytes(b"content")
    done = run_aioblk("copy", path, path.with_name("copy\x1b]0;x\x07"))
    again = run_aioblk("copy", path, path.with_name("copy\x1b]0;x\x07"))
    assert (done.returncode, again.returncode) == (0, 1)
    assert r"copy\x1b]0;x\x07 is there already" in again.stderr
    assert r"No such option '--\x1b[31m'" in run_aioblk("copy", "--\x1b[31m").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["checksum", "-a", "md55"], "there is no algorithm 'md55'"),
        (["bench", "--direct"], "direct is off in the address, and on is asked for"),
        (["serve", "nbd", "--tls-verify-peer"], "tls-verify-peer needs tls-certificates"),
        (["map", "--nonsense"], "No such option"),
    ],
)
def test_what_is_asked_for_wrongly_has_a_status_of_its_own(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(4096))
    result = run_aioblk(*arguments, f"io_uring:{disk}?direct=off")
    assert result.returncode == 2
    assert message in result.stderr


INTERRUPTS = """
import signal, sys
class Interrupts:
    def find_spec(self, name, *_):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)
            print("it goes on", flush=True)
sys.meta_path.insert(0, Interrupts())
"""
"""Has Ctrl-C come as a module is imported."""


@pytest.mark.parametrize(
    "module", ["aioblk", "aioblk._native._core", "aioblk.cli.output", "aioblk.cli.checksum"]
)
def test_ctrl_c_while_it_is_imported_ends_it_without_a_word(module: str, tmp_path: Path) -> None:
    text = INTERRUPTS.format(module=module) + f"sys.argv = ['aioblk', 'checksum', {str(tmp_path)!r}]\n"
    text += "import _aioblk\n_aioblk.main()\n"
    ended = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, env={**os.environ, **variables()}
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")


def test_ctrl_c_is_ignored_as_whoever_starts_it_wants_it() -> None:
    text = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    text += INTERRUPTS.format(module="aioblk.cli.output") + "sys.argv = ['aioblk', '--version']\n"
    text += "import _aioblk\n_aioblk.main()\n"
    ended = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, env={**os.environ, **variables()}
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("it goes on\naioblk ")


def test_ctrl_c_is_nothing_to_a_process_of_bench_while_it_is_imported() -> None:
    stops = "import os\nclass Stops:\n    def find_spec(self, *_):\n        os._exit(0)\n"
    text = f"{stops}{INTERRUPTS.format(module='aioblk')}sys.meta_path.insert(1, Stops())\n{WORKER}"
    ended = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "it goes on\n", "")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_loop_without_descriptors_is_a_line_on_stderr(loop: str, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(4096))
    text = f"""
import os, resource, sys
from aioblk.cli import bench, program, running
import rich.console, uvloop
low = os.open(os.devnull, os.O_RDONLY)
resource.setrlimit(resource.RLIMIT_NOFILE, (low + 1 + {{spare}}, low + 1 + {{spare}}))
os.close(low)
sys.argv = ["aioblk", "bench", "--loop", {loop!r}, "--runtime", "0.01", {str(tmp_path / "disk")!r}]
program.program.main()
"""
    for spare in (0, 3, 8):
        ended = subprocess.run(
            [sys.executable, "-c", text.format(spare=spare)],
            capture_output=True,
            text=True,
            env={**os.environ, **variables()},
        )
        assert ended.returncode == 1, ended.stderr
        assert ended.stderr.startswith("aioblk: [Errno 24] Too many open files: ")
        assert ended.stderr.endswith("; see ulimit -n\n")
        assert ended.stderr.count("\n") == 1
