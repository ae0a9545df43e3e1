"""Tasks that run the loop that runs them, as in notebooks: asyncio forbids it, nest_asyncio lets them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATCHES = ["nest_asyncio2"] + (["nest_asyncio"] if sys.version_info < (3, 14) else [])


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize(
    "program",
    [
        "patched_after_a_direct_wake",
        "patched_at_first",
        "patched_within_a_turn",
        "patched_before_it_submits",
        "nested_in_nested",
        "waiting_for_the_next_to_be_woken",
        "another_loop_within",
    ],
)
def test_a_task_may_run_its_loop_where_asyncio_is_patched(
    program: str, patch: str, scratch_file: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.interop.nested_loops", patch, program, str(scratch_file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
