"""What happens now and then beside the requests and must not be slow either: memory comes and goes."""

import math
from pathlib import Path

from rich.console import Console

from benchmarks import limits
from benchmarks.limits import Limit
from benchmarks.model import CASES
from benchmarks.progress import steps
from benchmarks.rounds import ContenderError
from benchmarks.targets import UnavailableError, check_target, open_target
from benchmarks.workers.measuring import Job

LIMITS = {
    "vhost-split-cores": {
        "map_alone_ms": Limit("vhost-user, two cores: libblkio alone, map and unmap 1 MiB, ms", math.inf),
        "register_ms": Limit("vhost-user, two cores: register memory of one's own and leave it, ms", 0.2),
        "allocate_ms": Limit("vhost-user, two cores: allocate 1 MiB of device memory and leave it, ms", 0.2),
    },
    "cached-file": {
        "hand_over_ms": Limit("a call that does nothing, in a thread that waits for one, ms", math.inf),
        "open_alone_ms": Limit("a file: libblkio alone, create, connect, start and destroy, ms", math.inf),
        "open_ms": Limit("a file: open and close it, ms", 0.4),
    },
}


def measure(console: Console, *, rounds: int, seconds: float, directory: Path, file_size: int) -> bool:
    """Print the figures; True when all medians keep their limits."""
    all_kept = True
    for name, kept in LIMITS.items():
        case = CASES[name]
        samples: list[dict[str, float]] = []
        try:
            check_target(case, directory)
            with steps(rounds) as begin:
                for number in range(1, rounds + 1):
                    begin(f"round {number} of {rounds}: {case.title}, now and then")
                    with open_target(case, directory, file_size) as target:
                        job = Job(str(target.path), case.kind, target.capacity, "read", 4096, 1, seconds)
                        samples.append(limits.run_worker("aioblk_occasional", job, case.client_cpu))
        except (ContenderError, UnavailableError) as error:
            console.print(f"{case.title}: {error}", highlight=False, markup=False)
            return False
        all_kept &= limits.show(console, kept, samples)
    return all_kept
