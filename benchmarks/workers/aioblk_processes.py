"""Two processes at a time, each with one loop on the same file.

Their rates are added. They are started together and do the same, warm-up, throughput, latency; what they are
apart is small beside a second.
"""

import json
import subprocess
import sys
from statistics import mean

PROCESSES = 2

command = [sys.executable, "-m", "benchmarks.workers.aioblk_await", sys.argv[1]]
processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)]
outputs = [process.communicate()[0] for process in processes]
if any(process.returncode for process in processes):
    sys.exit("one of the processes failed")
results = [json.loads(output) for output in outputs]
samples = [result["sample"] for result in results]
sample = {
    "rate": sum(sample["rate"] for sample in samples),
    **{name: max(sample[name] for sample in samples) for name in ("p50", "p99", "p999")},
    **{name: mean(sample[name] for sample in samples) for name in ("mean", "cpu")},
}
print(json.dumps({**results[0], "sample": sample}), flush=True)
