"""The interleaved rounds: A B C A B C, each sample in a process of its own."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from benchmarks.contenders import Contender
from benchmarks.model import Case, Cell, Record, describe_cell
from benchmarks.paths import ROOT
from benchmarks.targets import Target, open_target, pin

GRACE = 15.0
"""Seconds a process may take beside what was asked of it, before it counts as hung."""


class ContenderError(Exception):
    """A contender's process did not bring a figure; the message is for the table's foot."""


def measure(
    cells: Mapping[Case, list[Cell]],
    contenders: list[Contender],
    *,
    rounds: int,
    seconds: float,
    directory: Path,
    file_size: int,
    known: Iterable[Record],
    progress: Callable[[str], None],
) -> Iterator[Record]:
    """Measure every contender in every cell once a round: what the machine does meanwhile hits all alike.

    Samples that are `known` are not taken again; nor are those of who has failed, or hung, in the cell.
    """
    done = {(record.round, record.cell, record.contender) for record in known}
    failed = {(record.cell, record.contender) for record in known if record.failure}
    for number in range(1, rounds + 1):
        for case in cells:
            samples = [
                (cell, contender)
                for cell in cells[case]
                for contender in contenders
                if contender.why_not(case, cell) is None
                and (number, cell, contender.name) not in done
                and (cell, contender.name) not in failed
            ]
            if not samples:
                continue
            with open_target(case, directory, file_size) as target:
                for cell, contender in samples:
                    progress(f"round {number} of {rounds}: {describe_cell(cell)}, {contender.label}")
                    record = take_sample(contender, cell, target, number, seconds)
                    if record.failure:
                        failed.add((cell, contender.name))
                    yield record


def take_sample(contender: Contender, cell: Cell, target: Target, number: int, seconds: float) -> Record:
    command = [*pin(target.case.client_cpu), *contender.command(cell, target, seconds)]
    busy_before, start = machine_cpu_seconds(), time.monotonic()
    try:
        output, own_cpu = run_process(command, seconds * 3 + GRACE)
        elapsed = time.monotonic() - start
        sample = contender.parse(output, own_cpu)
    except ContenderError as failure:
        return Record(contender.name, cell, number, failure=str(failure))
    except (ValueError, LookupError, TypeError) as error:
        return Record(contender.name, cell, number, failure=f"output not understood: {error!r}")
    foreign = max(0.0, machine_cpu_seconds() - busy_before - own_cpu) / elapsed
    return Record(contender.name, cell, number, sample=replace(sample, foreign_load=round(foreign, 2)))


def run_process(command: list[str], timeout: float) -> tuple[str, float]:
    """What it printed, and the processor time it took.

    Raises:
        ContenderError: it failed, or did not end within `timeout` seconds.
    """
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, start_new_session=True
        )
        status, cpu = wait_for(process, timeout)
        output.seek(0)
        errors.seek(0)
        if status is None:
            raise ContenderError(f"did not end within {timeout:.0f} s")
        if status:
            raise ContenderError(describe_failure(status, errors.read()))
        return output.read(), cpu


def wait_for(process: subprocess.Popen[bytes], timeout: float) -> tuple[int | None, float]:
    """Exit status (None when it had to be killed; negative for a signal) and processor time."""
    descriptor = os.pidfd_open(process.pid)
    timed_out = True
    try:
        timed_out = not readable(descriptor, timeout)
    finally:
        if timed_out:
            os.killpg(process.pid, signal.SIGKILL)
        _, wait_status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(wait_status)
        os.close(descriptor)
    return None if timed_out else process.returncode, usage.ru_utime + usage.ru_stime


def readable(descriptor: int, timeout: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def describe_failure(status: int, errors: str) -> str:
    last_line = next((line.strip() for line in reversed(errors.splitlines()) if line.strip()), "no message")
    how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    return f"{how}: {last_line[:200]}"


def machine_cpu_seconds() -> float:
    """Processor time that the whole machine has spent on anything since it was started."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    idle, waiting = fields[3], fields[4]
    return (sum(fields[:8]) - idle - waiting) / os.sysconf("SC_CLK_TCK")
