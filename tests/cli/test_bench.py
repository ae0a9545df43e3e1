"""``aioblk bench``, as a user types it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from aioblk.cli._load.pattern import MAGIC
from aioblk.cli.program import program
from aioblk.testing.plugin import VhostUserDaemons

from .running import aioblk as run_aioblk
from .running import command, variables

SHORT = ("--runtime", "60ms", "--warmup", "10ms")


def bench(*arguments: str | Path, columns: int = 160) -> Result:
    runner = CliRunner(env={"COLUMNS": str(columns)})
    return runner.invoke(program, ["bench", *SHORT, *map(str, arguments)])


def as_json(*arguments: str | Path) -> dict[str, Any]:
    result = bench("--json", *arguments)
    assert result.exit_code == 0, result.stderr
    told: dict[str, Any] = json.loads(result.stdout)
    return told


# --- measuring ----------------------------------------------------------------------------------------------


def test_what_was_measured_is_told_by_the_names_of_fio(scratch_file: Path) -> None:
    told = as_json(
        "--rw", "randrw", "--mix", "70", "--iodepth", "4", "--jobs", "2", "--fsync", "8", scratch_file
    )
    [job] = told["jobs"]
    for name in ("read", "write", "sync"):
        done = job[name]
        assert done["total_ios"] == done["lat_ns"]["N"] > 0
        assert done["lat_ns"]["min"] <= done["lat_ns"]["percentile"]["50.000000"] <= done["lat_ns"]["max"]
    assert job["read"]["io_bytes"] == 4096 * job["read"]["total_ios"]
    assert job["trim"]["total_ios"] == 0
    assert job["read"]["total_ios"] > job["write"]["total_ios"]
    asked = told["global options"]
    assert (asked["rw"], asked["rwmixread"], asked["iodepth"], asked["numjobs"]) == ("randrw", 70, 4, 2)
    assert told["complete"] is True
    assert told["intervals"][-1]["end"] == pytest.approx(job["read"]["runtime"] / 1000, abs=0.01)


@pytest.mark.parametrize("columns", [60, 160])
def test_what_was_measured_is_told_as_a_table(scratch_file: Path, columns: int) -> None:
    result = bench("--iodepth", "2", "--loop", "asyncio", scratch_file, columns=columns)
    assert result.exit_code == 0
    for words in ("4 KiB blocks, depth 2, 1 job on asyncio", "p99.99", "processor:"):
        assert words in result.stdout
    assert "MiB/s" in result.stdout or "GiB/s" in result.stdout


def test_a_vhost_user_device_is_shared_by_threads(storage_daemon: VhostUserDaemons) -> None:
    daemon = storage_daemon(num_queues=2)
    address = f"virtio-blk-vhost-user:{daemon.socket}"
    told = as_json("--jobs", "2", "--iodepth", "2", "--bounce", address)
    assert told["global options"]["thread"] is True
    assert told["jobs"][0]["read"]["total_ios"] > 0
    assert "--jobs 3 wants as many queues, and the device has 2" in bench("--jobs", "3", address).stderr


def test_all_jobs_of_a_device_begin_however_many_there_are(storage_daemon: VhostUserDaemons) -> None:
    jobs = min(32, (os.cpu_count() or 1) + 4) + 2  # more than the threads of an executor, and than regions
    address = f"virtio-blk-vhost-user:{storage_daemon(num_queues=jobs).socket}"
    assert as_json("--jobs", str(jobs), address)["jobs"][0]["read"]["total_ios"] > 0


def test_layers_can_be_measured(scratch_file: Path) -> None:
    told = as_json(f"slice,offset=1M,length=1M:{scratch_file}")
    assert told["global options"]["size"] == 1 << 20
    assert told["jobs"][0]["read"]["lat_ns"]["N"] > 0


def test_the_highest_depth_that_is_fast_enough_is_looked_for(scratch_file: Path) -> None:
    told = as_json("--latency-target", "10s", "--iodepth", "2", scratch_file)
    assert [each["iodepth"] for each in told["tried"]] == [1, 2]
    assert told["global options"]["iodepth"] == 2
    result = bench("--latency-target", "1ns", "--latency-percentile", "50", scratch_file)
    assert result.exit_code == 1
    assert "p50 is above the target even with one request at a time" in result.stderr


def test_holes_are_noted(tmp_path: Path) -> None:
    path = tmp_path / "holes"
    path.touch()
    os.truncate(path, 1 << 20)
    assert "consists mostly of holes" in bench(path).stderr


def test_a_range_is_kept_to(scratch_file: Path) -> None:
    as_json("--rw", "randwrite", "--offset", "1M", "--size", "64K", "--bs", "512", scratch_file)
    data = scratch_file.read_bytes()
    assert not any(data[: 1 << 20])
    assert not any(data[(1 << 20) + (64 << 10) :])
    assert MAGIC in data


def test_a_plot_is_drawn(scratch_file: Path, tmp_path: Path) -> None:
    picture = tmp_path / "plot.svg"
    done = run_aioblk("bench", *SHORT, "--plot", picture, scratch_file)
    assert (done.returncode, done.stderr.count("\n")) == (0, 0)
    drawn = picture.read_text()
    assert drawn.startswith("<?xml")
    for words in ("randread, 4 KiB, depth 1, 1 job", "percent of the requests", "IOPS", "p99"):
        assert words in drawn


def test_a_plot_that_could_be_drawn_leaves_no_file_where_nothing_was_measured(tmp_path: Path) -> None:
    assert bench("--plot", tmp_path / "x.svg", tmp_path / "missing").exit_code == 1
    assert not (tmp_path / "x.svg").exists()


def test_without_matplotlib_nothing_is_measured(scratch_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = bench("--plot", "x.svg", scratch_file)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "pip install aioblk[cli]" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mix", "70"], "--mix goes with rw"),
        (["--rw", "rw", "--mix", "nan"], "--mix must be a number"),
        (["--runtime", "0"], "--runtime 0"),
        (["--rate", "0"], "--rate 0"),
        (["--iodepth", "65536", "--jobs", "256", "--bs", "1M"], "in flight want 16 TiB of memory"),
        (["--fua"], "--fua and --fsync go with what writes only"),
        (["--verify"], "--verify goes with what writes only"),
        (["--verify", "--rw", "write", "--bs", "100"], "multiple of 512"),
        (["--verify", "--rw", "write", "--bs", "1M", "--iodepth", "9"], "of which the range has 8"),
        (["--bs", "16M"], "--bs 16 MiB is more than the range has: 8 MiB of the device's 8 MiB"),
        (["--bs", "0"], "--bs 0: requests of nothing"),
        (["--offset", "8M", "--size", "1M"], "the range ends at 9437184, the device at 8388608"),
        (["--offset", "9M"], "0 B of the device's 8 MiB, from offset 9437184 on"),
        (["--direct", "--bs", "100"], "--bs 100 is not a multiple of"),
        (["--bs", "4 apples"], "apples"),
        (["--plot", "x.gif"], "none of .svg, .png and .pdf"),
        (["--plot", "/nowhere/x.svg"], "/nowhere/x.svg cannot be written: No such file or directory"),
        (["--plot", "/sys/x.svg"], "/sys/x.svg cannot be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_measured_is_a_usage_error(
    scratch_file: Path, arguments: list[str], said: str
) -> None:
    result = bench(*arguments, scratch_file)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in " ".join(result.stderr.split())


# --- what is not overwritten --------------------------------------------------------------------------------


def refused(path: str | Path, *arguments: str) -> str:
    """What is said against writing."""
    before = Path(path).read_bytes()
    result = bench("--rw", "randwrite", *arguments, path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert Path(path).read_bytes() == before
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_what_is_recognised_is_not_overwritten_unasked(scratch_file: Path) -> None:
    subprocess.run(["sfdisk", "-q", scratch_file], input="label: gpt\nsize=1M\n", text=True, check=True)
    said = refused(scratch_file)
    assert "holds a GPT partition table, at offset 512. Nothing was written; --overwrite" in said
    assert "a GPT partition table" in refused(scratch_file, "--offset", "4M")
    assert bench("--rw", "randwrite", "--overwrite", scratch_file).exit_code == 0


@pytest.mark.parametrize("kind", ["write", "randrw", "trim"])
def test_what_is_not_recognised_is_not_overwritten_either(scratch_file: Path, kind: str) -> None:
    with scratch_file.open("r+b") as file:
        os.pwrite(file.fileno(), b"Dear diary", 5 << 20)
    assert "from offset 5242880 on" in refused(scratch_file, "--rw", kind, "--offset", "5M")


def test_what_a_benchmark_has_left_is_overwritten(scratch_file: Path) -> None:
    for arguments in (("--bs", "512"), ("--verify",), ()):
        assert bench("--rw", "randwrite", *arguments, scratch_file).exit_code == 0
    assert MAGIC in scratch_file.read_bytes()


def test_what_is_in_use_is_not_written_to(scratch_file: Path) -> None:
    with scratch_file.open("r+b") as file, subprocess.Popen(["sleep", "60"], stdin=file) as process:
        for arguments in ((), ("--overwrite",)):
            assert f"is open for writing in process {process.pid} (sleep)" in refused(
                scratch_file, *arguments
            )
        assert bench("--rw", "randwrite", "--even-if-in-use", scratch_file).exit_code == 0
        process.kill()


def test_a_disk_that_somebody_has_claimed_is_not_written_to(loop_device: Path) -> None:
    claim = os.open(loop_device, os.O_RDONLY | os.O_EXCL)
    try:
        assert "aioblk: " in refused(loop_device)
    finally:
        os.close(claim)


def test_a_file_behind_a_loop_device_is_not_written_to(loop_device: Path, scratch_file: Path) -> None:
    assert f"is behind the loop device {loop_device}" in refused(scratch_file)


def test_a_device_that_is_read_only_is_not_written_to(scratch_file: Path) -> None:
    result = bench("--rw", "write", f"io_uring:{scratch_file}?read-only=on")
    assert result.exit_code == 1
    assert "read-only" in result.stderr


# --- an early end -------------------------------------------------------------------------------------------


def long_run(*arguments: str | Path) -> "subprocess.Popen[str]":
    """One that has begun to measure, in a process group of its own."""
    process = subprocess.Popen(
        command("bench", "--runtime", "100s", "--warmup", "0s", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables()},
        start_new_session=True,
    )
    assert process.stderr is not None
    assert "IOPS" in process.stderr.readline()
    return process


def test_ctrl_c_shows_what_there_is_so_far(scratch_file: Path) -> None:
    with long_run("--jobs", "2", scratch_file) as process:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, errors = process.communicate()
    assert process.returncode == 130
    assert "2 jobs" in out
    assert errors.endswith("aioblk: interrupted\n")
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_jobs_end_with_their_parent(scratch_file: Path) -> None:
    with long_run(scratch_file) as process:
        process.kill()
        process.communicate()  # until nobody has stderr open any more
    assert process.returncode == -signal.SIGKILL


def test_a_job_that_is_killed_is_told(scratch_file: Path) -> None:
    with long_run(scratch_file) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        _, errors = process.communicate()
    assert process.returncode == 1
    assert "a job's process ended with status -9" in errors


def test_a_device_that_dies_is_told(storage_daemon: VhostUserDaemons, scratch_file: Path) -> None:
    daemon = storage_daemon(scratch_file)
    with long_run(f"virtio-blk-vhost-user:{daemon.socket}") as process:
        daemon.kill()
        _, errors = process.communicate()
    assert process.returncode == 1
    assert "lost" in errors
