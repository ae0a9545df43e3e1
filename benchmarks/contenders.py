"""Who takes part, and how each is started and read."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Protocol

from benchmarks import tools
from benchmarks.model import Case, Cell, Operation, Sample
from benchmarks.targets import Target
from benchmarks.workers.measuring import Job

BASELINE = "blkio-bench"
QEMU_IMG_OPERATIONS = {"cached-file": 200_000, "direct-file": 20_000}


class Contender(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def label(self) -> str: ...
    def check(self) -> None:
        """Raise UnavailableError when it cannot run on this machine at all."""

    def why_not(self, case: Case, cell: Cell) -> str | None:
        """Why it cannot take part in a cell; None when it can."""
        ...

    def command(self, cell: Cell, target: Target, seconds: float) -> list[str]: ...
    def parse(self, output: str, cpu_seconds: float) -> Sample:
        """The figures in what the process printed. `cpu_seconds` is its processor time from start to end."""
        ...


@dataclass(frozen=True)
class BlkioBench:
    """libblkio's own benchmark: woken by the completion descriptor, as an event loop is, or busy polling."""

    poll: bool = False

    @property
    def name(self) -> str:
        return "blkio-bench-poll" if self.poll else BASELINE

    @property
    def label(self) -> str:
        return "blkio-bench --poll (C)" if self.poll else "blkio-bench (C)"

    def check(self) -> None:
        tools.blkio_bench()

    def why_not(self, case: Case, cell: Cell) -> str | None:
        return None

    def command(self, cell: Cell, target: Target, seconds: float) -> list[str]:
        return tools.blkio_bench_command(cell, target, seconds, poll=self.poll)

    def parse(self, output: str, cpu_seconds: float) -> Sample:
        return tools.parse_blkio_bench(output, cpu_seconds)


@dataclass(frozen=True)
class Fio:
    name: str = "fio"
    label: str = "fio, io_uring (C)"

    def check(self) -> None:
        tools.fio()

    def why_not(self, case: Case, cell: Cell) -> str | None:
        return None if case.kind == "file" else "Debian's fio has no libblkio engine"

    def command(self, cell: Cell, target: Target, seconds: float) -> list[str]:
        return tools.fio_command(cell, target, seconds)

    def parse(self, output: str, cpu_seconds: float) -> Sample:
        return tools.parse_fio(output)


@dataclass(frozen=True)
class QemuImg:
    """Sequential, because it knows nothing else."""

    name: str = "qemu-img"
    label: str = "qemu-img bench, sequential (C)"

    def check(self) -> None:
        tools.qemu_img()

    def why_not(self, case: Case, cell: Cell) -> str | None:
        return None

    def command(self, cell: Cell, target: Target, seconds: float) -> list[str]:
        operations = QEMU_IMG_OPERATIONS.get(cell.case, 100_000)
        return tools.qemu_img_command(cell, target, max(1, round(operations * seconds)))

    def parse(self, output: str, cpu_seconds: float) -> Sample:
        return tools.parse_qemu_img(output, cpu_seconds)


@dataclass(frozen=True)
class PythonWorker:
    """A program in workers/.

    `files_only`: it knows no other devices. `vhost_only`: it needs what a file's driver does not have.
    `not_direct`: why it cannot use O_DIRECT, by operation; nothing for what it can.
    """

    name: str
    label: str
    module: str
    python: str = sys.executable
    loop: str = "asyncio"
    options: tuple[str, ...] = ()
    files_only: bool = False
    vhost_only: bool = False
    not_direct: Mapping[Operation, str] = field(default_factory=dict[Operation, str])

    def check(self) -> None:
        pass

    def why_not(self, case: Case, cell: Cell) -> str | None:
        if self.files_only and case.kind != "file":
            return "knows files only"
        if self.vhost_only and case.kind == "file":
            return "needs what the driver for files does not have"
        return self.not_direct.get(cell.operation) if case.direct else None

    def command(self, cell: Cell, target: Target, seconds: float) -> list[str]:
        job = Job(
            path=str(target.path),
            kind=target.case.kind,
            capacity=target.capacity,
            operation=cell.operation,
            block_size=cell.block_size,
            depth=cell.depth,
            seconds=seconds,
            direct=target.case.direct,
            loop=self.loop,
            options=self.options,
        )
        return [self.python, "-m", f"benchmarks.workers.{self.module}", json.dumps(asdict(job))]

    def parse(self, output: str, cpu_seconds: float) -> Sample:
        return Sample(**json.loads(output)["sample"])


@functools.cache
def python_version(python: str) -> str:
    """As in 3.13.5, or 3.13.5t for a free-threaded one."""
    code = (
        "import platform, sysconfig;"
        "print(platform.python_version() + 't' * (sysconfig.get_config_var('Py_GIL_DISABLED') or 0))"
    )
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


@dataclass(frozen=True)
class Form:
    """A way to use aioblk. `every_loop`: it is worth measuring on other loops than the first."""

    name: str
    words: str
    module: str
    options: tuple[str, ...] = ()
    every_loop: bool = True


AWAIT = Form("await", "one await each", "aioblk_await")
BATCH = Form("batch", "one await for the batch", "aioblk_batch")
HALVES = Form("halves", "two batches of half the depth in turn", "aioblk_halves", every_loop=False)
BYTES = Form("bytes", "read() into bytes", "aioblk_bytes", every_loop=False)
NO_SPIN = Form("no-spin", "one await each, spin = 0", "aioblk_queue", ("no-spin",), every_loop=False)
SPIN = Form("spin", "one await each, spin = 100 us", "aioblk_queue", ("spin",), every_loop=False)


def aioblk_contenders(pythons: list[str], loops: list[str], forms: list[Form]) -> list[Contender]:
    """aioblk on each interpreter and loop. The labels name what distinguishes them."""
    found: list[Contender] = []
    for python in pythons:
        version = python_version(python)
        for loop in loops:
            for form in forms:
                if loop != loops[0] and not form.every_loop:
                    continue
                name, label = f"aioblk-{form.name}", f"aioblk, {form.words}"
                if loop != loops[0]:
                    name, label = f"{name}-{loop}", f"{label}, {loop}"
                if python != pythons[0]:
                    name, label = f"{name}-{version}", f"{label}, {version}"
                found.append(PythonWorker(name, label, form.module, python, loop, form.options))
    return found


def standard_library() -> list[Contender]:
    return [
        PythonWorker("pread", "os.pread/pwrite in a loop", "pread", files_only=True),
        PythonWorker("executor", "os.pread/pwrite in a thread pool", "executor", files_only=True),
    ]
