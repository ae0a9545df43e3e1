"""A result as JSON, by the names that fio has for the same."""

import time
from collections.abc import Sequence
from typing import Any

from ..._native.latency import LatencyHistogram
from ..._queues.statistics import OperationStatistics
from .fleet import Point, Result
from .plan import KINDS, Plan

__all__ = ["PERCENTILES", "as_json"]

PERCENTILES = (
    1.0,
    5.0,
    10.0,
    20.0,
    30.0,
    40.0,
    50.0,
    60.0,
    70.0,
    80.0,
    90.0,
    95.0,
    99.0,
    99.5,
    99.9,
    99.95,
    99.99,
)

FIO_NAMES = {"read": "read", "write": "write", "discard": "trim", "flush": "sync"}


def as_json(result: Result, tried: Sequence[tuple[Result, bool]] = ()) -> dict[str, Any]:
    """One job, with what all have done together, as fio has it with group_reporting. *tried*: what a search
    has tried, and whether it was fast enough."""
    job: dict[str, Any] = {"jobname": "bench", "error": 0, "elapsed": round(result.seconds, 3)}
    for name, fio_name in FIO_NAMES.items():
        done = result.operations.get(name, OperationStatistics())
        job[fio_name] = _operation(done, result.seconds)
    busy = result.seconds * result.plan.jobs or 1
    job["usr_cpu"] = round(result.user / busy * 100, 3)
    job["sys_cpu"] = round(result.system / busy * 100, 3)
    found: dict[str, Any] = {
        "timestamp": int(time.time()),
        "complete": result.complete,
        "loop": result.loop,
        "global options": options(result.plan),
        "jobs": [job],
        "intervals": [_interval(point) for point in result.points],
    }
    if result.plan.verify:
        verified = result.verified
        found["verified"] = {
            "blocks": verified.blocks,
            "wrong": verified.wrong,
            "faults": list(verified.faults),
        }
    if tried:
        found["tried"] = [
            {
                "iodepth": each.plan.depth,
                "iops": each.iops,
                "lat_ns": _latency(each.latency),
                "fast_enough": fast_enough,
            }
            for each, fast_enough in tried
        ]
    return found


def options(plan: Plan) -> dict[str, Any]:
    """The plan, by fio's names."""
    rw = next(name for name, value in KINDS.items() if value == (plan.kind, plan.random))
    return {
        "filename": plan.address,
        "rw": rw,
        **({"rwmixread": plan.reads} if plan.kind == "rw" else {}),
        "bs": plan.block_size,
        "iodepth": plan.depth,
        "numjobs": plan.jobs,
        "thread": plan.threads,
        "offset": plan.offset,
        "size": plan.size,
        "runtime": plan.seconds,
        "ramp_time": plan.warmup,
        "rate": plan.rate,
        "rate_iops": plan.iops,
        "fsync": plan.fsync,
        "fua": plan.fua,
        "registered": plan.registered,
        "verify": plan.verify,
        "randseed": plan.seed,
    }


def _operation(done: OperationStatistics, seconds: float) -> dict[str, Any]:
    return {
        "io_bytes": done.bytes,
        "bw_bytes": round(done.bytes / seconds) if seconds else 0,
        "iops": done.completed / seconds if seconds else 0.0,
        "total_ios": done.completed,
        "runtime": round(seconds * 1000),
        "lat_ns": _latency(done.latency),
    }


def _latency(latency: LatencyHistogram) -> dict[str, Any]:
    return {
        "min": round(latency.min * 1e9),
        "max": round(latency.max * 1e9),
        "mean": latency.mean * 1e9,
        "N": latency.count,
        "percentile": {f"{each:.6f}": round(latency.percentile(each) * 1e9) for each in PERCENTILES},
    }


def _interval(point: Point) -> dict[str, Any]:
    done = point.total
    return {
        "start": round(point.start, 3),
        "end": round(point.end, 3),
        "iops": done.completed / point.seconds if point.seconds else 0.0,
        "bw_bytes": round(done.bytes / point.seconds) if point.seconds else 0,
        "lat_ns": {
            "p50": round(done.latency.percentile(50) * 1e9),
            "p99": round(done.latency.percentile(99) * 1e9),
        },
    }
