"""A loop of os.pread or os.pwrite: no concurrency, no event loop; Python's least."""

import mmap
import os

from benchmarks.workers.measuring import Job, measure_blocking

job = Job.from_arguments()
descriptor = os.open(job.path, os.O_RDWR | (os.O_DIRECT if job.direct else 0))
if job.direct:
    aligned = mmap.mmap(-1, job.block_size)  # O_DIRECT wants memory that begins at a page
    transfer = os.preadv if job.reads else os.pwritev
    measure_blocking(job, lambda offset: transfer(descriptor, [aligned], offset))
elif job.reads:
    pread, size = os.pread, job.block_size
    measure_blocking(job, lambda offset: pread(descriptor, size, offset))
else:
    pwrite, data = os.pwrite, os.urandom(job.block_size)
    measure_blocking(job, lambda offset: pwrite(descriptor, data, offset))
