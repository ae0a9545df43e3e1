"""The campaigns by name: `./run campaign` lists them, `./run campaign NAME` runs one."""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


@dataclass(frozen=True)
class Campaign:
    """A command to which arguments can be added, mostly pytest's, and what bounds it to a few minutes."""

    name: str
    words: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict[str, str])
    short_environment: dict[str, str] = field(default_factory=dict[str, str])
    short_arguments: tuple[str, ...] = ()

    def run(self, *, short: bool, arguments: list[str]) -> int:
        """Its exit status."""
        bounds = self.short_arguments if short else ()
        environment = os.environ | self.environment | (self.short_environment if short else {})
        return subprocess.run([*self.command, *bounds, *arguments], cwd=ROOT, env=environment).returncode


def tests(path: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "pytest", "-o", "faulthandler_timeout=3600", path)


def fuzz(program: str) -> tuple[str, ...]:
    """A quarter of an hour, unless --minutes says otherwise; --seed repeats one seed."""
    return (str(HERE / "sanitized.sh"), "-m", "tests.campaigns.fuzz.search", program)


CAMPAIGNS = (
    Campaign(
        "endurance",
        "a million mixed requests on each driver: every byte right, and nothing grows",
        tests("tests/campaigns/drivers_endurance.py"),
        short_environment={"AIOBLK_CAMPAIGN_REQUESTS": "50000"},
    ),
    Campaign(
        "contract-model",
        "100,000 random operations on each driver, against a model",
        tests("tests/contract/test_model.py"),
        environment={"AIOBLK_OPERATIONS": "100000"},
        short_environment={"AIOBLK_OPERATIONS": "10000"},
    ),
    Campaign(
        "memory-machines",
        "the state machines of the memory layer, ten thousand examples each",
        tests("tests/campaigns/memory_machines.py"),
        short_environment={"AIOBLK_CAMPAIGN_EXAMPLES": "200"},
    ),
    Campaign(
        "request-models",
        "the properties of the request path, five thousand examples each",
        tests("tests/campaigns/native_models.py"),
        short_environment={"AIOBLK_CAMPAIGN_EXAMPLES": "200"},
    ),
    Campaign(
        "sanitizers",
        "the whole suite on compiled code under AddressSanitizer and UndefinedBehaviorSanitizer",
        (str(HERE / "asan.sh"),),
        short_arguments=(
            "tests/native/test_requests.py",
            "tests/native/test_cancellation.py",
            "tests/device/test_use_after.py",
        ),
    ),
    Campaign(
        "reentrancy",
        "hostile code, from within whatever calls it, under the sanitizers; --minutes 60, --seed N",
        fuzz("reentrancy"),
        short_arguments=("--minutes", "0.33"),
    ),
    Campaign(
        "api",
        "random calls of everything public in any state, under the sanitizers; --minutes 60, --seed N",
        fuzz("api"),
        short_arguments=("--minutes", "0.33"),
    ),
    Campaign(
        "nbd-sessions",
        "clients that say anything NBD has words for, with any values, or damaged; ten minutes",
        tests("tests/campaigns/nbd_sessions.py"),
        short_environment={"AIOBLK_CAMPAIGN_SECONDS": "30"},
    ),
    Campaign(
        "nbd-client",
        "NBD servers that do anything, or die with what is in their caches; ten minutes",
        tests("tests/campaigns/nbd_client.py"),
        short_environment={"AIOBLK_CAMPAIGN_SECONDS": "10"},
    ),
    Campaign(
        "hostile-backend",
        "a vhost-user backend that breaks every rule, by seed; --minutes 15, --seed N",
        (sys.executable, "-m", "tests.hostile.search"),
        short_arguments=("--minutes", "1"),
    ),
    Campaign(
        "durability",
        "power failures at every moment of random workloads on a real daemon; --workloads 1000, --seed N",
        (sys.executable, "-m", "tests.durability.search"),
        short_arguments=("--workloads", "100"),
    ),
    Campaign(
        "hostile-client",
        "clients and guests of an export that do anything, under the sanitizers; --minutes 60, --seed N",
        (str(HERE / "sanitized.sh"), "-m", "tests.export.hostile"),
        short_arguments=("--minutes", "0.33"),
    ),
    Campaign(
        "free-threaded",
        "the whole suite on a free-threaded CPython, built from Debian's source package",
        (str(HERE / "free_threaded.sh"),),
        short_arguments=("tests/native/test_threads.py", "tests/queues/test_queues.py"),
    ),
    Campaign(
        "races",
        "threads that share a device, on a free-threaded CPython under ThreadSanitizer",
        (str(HERE / "free_threaded.sh"), "tests/native/test_threads.py", "tests/queues/test_queues.py"),
        environment={"SANITIZE": "thread"},
    ),
)
BY_NAME = {campaign.name: campaign for campaign in CAMPAIGNS}


def main() -> int:
    parser = argparse.ArgumentParser(
        "./run campaign",
        description="Run a search that takes too long for every day. Without a name: list them.",
        epilog="Other arguments go to pytest: ./run campaign endurance --short -k io_uring",
    )
    parser.add_argument("name", nargs="?", choices=[*BY_NAME, "all"])
    parser.add_argument("--short", action="store_true", help="bounded to a few minutes")
    chosen, others = parser.parse_known_args()
    if chosen.name is None:
        width = max(map(len, BY_NAME))
        for campaign in CAMPAIGNS:
            print(f"{campaign.name:{width}}  {campaign.words}")
        return 0
    campaigns = CAMPAIGNS if chosen.name == "all" else (BY_NAME[chosen.name],)
    failed = False
    for campaign in campaigns:
        print(f"campaign {campaign.name}: {campaign.words}", file=sys.stderr, flush=True)
        start = time.monotonic()
        status = campaign.run(short=chosen.short, arguments=others)
        end = "passed" if status == 0 else f"FAILED with status {status}"
        print(f"campaign {campaign.name} {end} after {time.monotonic() - start:.0f} s", file=sys.stderr)
        failed |= status != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
