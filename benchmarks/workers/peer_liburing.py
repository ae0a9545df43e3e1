"""liburing: a raw ring without asyncio. Its way is to prepare, submit and wait: here for a whole batch."""

import importlib
import os

from benchmarks.workers.measuring import Job, measure_batches, run_loop

liburing = importlib.import_module("liburing")
job = Job.from_arguments()
descriptor = os.open(job.path, os.O_RDWR)
ring, cqe = liburing.Ring(), liburing.Cqe()
liburing.io_uring_queue_init(job.depth, ring)
prepare = liburing.io_uring_prep_read if job.reads else liburing.io_uring_prep_write
memory = [bytearray(job.block_size) for _ in range(job.depth)]


async def do_batch(batch: list[int]) -> None:
    for offset, buffer in zip(batch, memory, strict=True):
        prepare(liburing.io_uring_get_sqe(ring), descriptor, buffer, offset)
    liburing.io_uring_submit(ring)
    for _ in batch:
        liburing.io_uring_wait_cqe(ring, cqe)
        entry = cqe[0]
        if entry.res != job.block_size:  # a failed one raises by itself
            raise OSError(f"short transfer: {entry.res}")
        liburing.io_uring_cqe_seen(ring, entry)


run_loop(job, measure_batches(job, do_batch))
