"""The tools written in C: finding, building and reading them."""

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from benchmarks.model import Cell, Sample
from benchmarks.paths import PRIVATE_LIBBLKIO, WORK
from benchmarks.targets import Target, UnavailableError

EXAMPLES = "share/doc/libblkio-dev/examples"


@functools.cache
def blkio_bench() -> Path:
    """libblkio's benchmark, compiled from the example that its development package brings."""
    sources = [prefix / EXAMPLES / "blkio-bench.c" for prefix in (Path("/usr"), PRIVATE_LIBBLKIO)]
    source = next((path for path in sources if path.exists()), None)
    if source is None:
        raise UnavailableError("the examples of libblkio-dev, with blkio-bench.c, are not installed")
    program = WORK / "blkio-bench"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        WORK.mkdir(parents=True, exist_ok=True)
        directories = sorted(str(file.parent) for file in PRIVATE_LIBBLKIO.glob("lib/**/blkio.pc"))
        path = ":".join([*directories, os.environ.get("PKG_CONFIG_PATH", "")])
        found = subprocess.run(
            ["pkg-config", "--cflags", "--libs", "blkio"],
            env={**os.environ, "PKG_CONFIG_PATH": path},
            capture_output=True,
            text=True,
        )
        if found.returncode:
            raise UnavailableError("pkg-config does not find blkio")
        flags = shlex.split(found.stdout)
        rpath = [f"-Wl,-rpath,{flag[2:]}" for flag in flags if flag.startswith("-L")]
        subprocess.run(["cc", "-O2", "-o", program, source, *flags, *rpath, "-pthread"], check=True)
    return program


def blkio_bench_command(cell: Cell, target: Target, seconds: float, *, poll: bool) -> list[str]:
    driver = "io_uring" if target.case.kind == "file" else "virtio-blk-vhost-user"
    return [
        str(blkio_bench()),
        f"--iodepth={cell.depth}",
        f"--readwrite=rand{cell.operation}",
        f"--blocksize={cell.block_size}",
        f"--runtime={max(1, round(seconds))}",
        *(["--poll"] if poll else []),
        driver,
        f"path={target.path}",
        *(["direct=true"] if target.case.direct else []),
    ]


def parse_blkio_bench(output: str, cpu_seconds: float) -> Sample:
    figures = json.loads(output)["aggregate"]
    operations = figures["calls"] * figures["mean_completions"]  # which is rounded to 0 when it polls
    cpu = cpu_seconds / operations * 1e6 if operations else None
    return Sample(rate=figures["kiops"] * 1000, mean=figures["mean_lat_us"], cpu=cpu)


def fio() -> Path:
    found = shutil.which("fio")
    if not found:
        raise UnavailableError("fio is not installed")
    return Path(found)


def fio_command(cell: Cell, target: Target, seconds: float) -> list[str]:
    """fio on io_uring: submitting and reaping in batches as blkio-bench does; the page cache stays warm."""
    return [
        str(fio()),
        "--name=bench",
        f"--filename={target.path}",
        "--ioengine=io_uring",
        f"--rw=rand{cell.operation}",
        f"--bs={cell.block_size}",
        f"--iodepth={cell.depth}",
        f"--iodepth_batch_submit={cell.depth}",
        "--iodepth_batch_complete_min=1",
        f"--iodepth_batch_complete_max={cell.depth}",
        f"--direct={int(target.case.direct)}",
        "--invalidate=0",
        "--norandommap",
        "--randrepeat=0",
        "--time_based",
        f"--runtime={seconds}s",
        "--percentile_list=50:99:99.9",
        "--lat_percentiles=1",
        "--clat_percentiles=0",
        "--thread",
        "--output-format=json",
    ]


def parse_fio(output: str) -> Sample:
    job = json.loads(output[output.index("{") :])["jobs"][0]
    figures = max((job["read"], job["write"]), key=lambda direction: direction["total_ios"])
    latency = figures["lat_ns"]
    percentiles = latency.get("percentile", {})
    p50, p99, p999 = (percentiles[key] / 1000 for key in ("50.000000", "99.000000", "99.900000"))
    cpu = (job["usr_cpu"] + job["sys_cpu"]) / 100 / figures["iops"] * 1e6  # from percent of the running time
    return Sample(rate=figures["iops"], mean=latency["mean"] / 1000, p50=p50, p99=p99, p999=p999, cpu=cpu)


@functools.cache
def qemu_img() -> Path:
    """qemu-img of a QEMU with libblkio, which Debian's has from trixie on."""
    found = shutil.which("qemu-img")
    if not found:
        raise UnavailableError("qemu-img is not installed")
    attempt = subprocess.run(
        [found, "info", "--image-opts", "driver=io_uring,filename=/dev/null"], capture_output=True, text=True
    )
    if "nknown driver" in attempt.stderr:
        raise UnavailableError(
            "this QEMU has no libblkio drivers (Debian: package qemu-block-extra, from trixie on)"
        )
    return Path(found)


def qemu_img_command(cell: Cell, target: Target, operations: int) -> list[str]:
    if target.case.kind == "file":
        image = f"driver=io_uring,filename={target.path},cache.direct={'on' if target.case.direct else 'off'}"
    else:
        image = f"driver=virtio-blk-vhost-user,path={target.path},cache.direct=on"
    return [
        *(str(qemu_img()), "bench", "--image-opts", image),
        *("-c", str(operations), "-d", str(cell.depth), "-s", str(cell.block_size)),
        *(["-w"] if cell.operation == "write" else []),
        *(["-t", "none"] if target.case.direct or target.case.kind != "file" else []),
    ]


def parse_qemu_img(output: str, cpu_seconds: float) -> Sample:
    operations = re.search(r"Sending (\d+)", output)
    seconds = re.search(r"Run completed in ([0-9.]+) seconds", output)
    if not operations or not seconds:
        raise ValueError(output)
    return Sample(rate=int(operations[1]) / float(seconds[1]), cpu=cpu_seconds / int(operations[1]) * 1e6)
