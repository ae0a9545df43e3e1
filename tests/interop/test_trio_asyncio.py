"""trio-asyncio gives trio a loop for devices, up to CPython 3.13: it has not learned of later ones."""

import re
from pathlib import Path

import pytest

import aioblk
from aioblk.testing.storage_daemon import StorageDaemon

from ..support.scripts import run_module, run_script


@pytest.mark.parametrize("order", ["trio_first", "trio_last"])
@pytest.mark.parametrize(
    "program",
    [
        "each_call_by_itself",
        "functions_of_asyncio",
        "what_trio_calls_itself_is_refused",
        "private_memory_is_left_at_once",
        "callers_memory_is_waited_for",
        "what_asyncio_has_opened_is_closed_when_trio_cancels",
        "what_trio_has_opened_needs_a_shield_to_be_closed",
    ],
)
def test_by_way_of_trio_asyncio(
    program: str, order: str, slow_daemon: StorageDaemon, scratch_file: Path
) -> None:
    pid = str(slow_daemon.pid)
    run_module("tests.interop.by_trio_asyncio", order, program, slow_daemon.socket, pid, scratch_file)


def test_the_program_of_the_documentation_runs(scratch_file: Path) -> None:
    page = (Path(aioblk.__file__).parents[1] / "docs" / "cancellation.md").read_text()
    [program] = re.findall(
        r"^<!-- not run: trio-asyncio.*?```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE
    )
    scratch_file.write_bytes(bytes([1]) * (3 << 20))
    done = run_script(program.replace("disk.img", str(scratch_file)))
    assert done.stdout == f"{3 << 20}\n"
