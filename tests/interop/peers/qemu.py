"""QEMU's own tests."""

import re
import sys
from collections.abc import Iterator

from .place import DECLINED, FAILED, PASSED, Outcome, place, program_path
from .sources import fetch


def qemu_iotests() -> Iterator[tuple[str, Outcome]]:
    """Those for raw images over NBD, with this server where qemu-nbd would be."""
    files = fetch("qemu", "*/tests/qemu-iotests/*", "*/python/qemu/*")
    tests = files / "tests/qemu-iotests"
    with place() as here:
        for directory in ("images", "sockets"):
            (here.directory / directory).mkdir()
        here.environment.update(
            TEST_DIR=str(here.directory / "images"),
            SOCK_DIR=str(here.directory / "sockets"),
            QEMU_NBD_PROG=str(here.directory / "stand-ins/qemu-nbd"),
            QEMU_PROG=program_path("qemu-system-x86_64"),
            QEMU_IMG_PROG=program_path("qemu-img"),
            QEMU_IO_PROG=program_path("qemu-io"),
            QSD_PROG=program_path("qemu-storage-daemon"),
        )
        for path in sorted([*tests.glob("[0-9][0-9][0-9]"), *tests.glob("tests/*")]):
            text = path.read_text(errors="replace")
            if not re.search(r"_supported_proto.*\b(nbd|generic)\b|supported_protocols=.*nbd", text):
                continue
            before = here.servers_met()
            check = (sys.executable, "check", "-raw", "-nbd", path.name)
            done = here.run(*check, cwd=tests)
            outcome = _judge_iotest(done.stdout, here.servers_met() > before)
            if outcome.word == FAILED:
                theirs = here.without_stand_ins(QEMU_NBD_PROG=program_path("qemu-nbd"))
                if _judge_iotest(theirs.run(*check, cwd=tests).stdout, True).word != PASSED:
                    outcome = Outcome(DECLINED, "it fails here with qemu-nbd, too")
            yield path.name, outcome


def _judge_iotest(told: str, has_met: bool) -> Outcome:
    if declined := re.search(r" not run .*?\.\.\. +(.*)", told):
        return Outcome(DECLINED, declined[1].strip())
    if "Passed all 1" in told:
        return Outcome(PASSED) if has_met else Outcome(DECLINED, "it starts no server of raw images")
    return Outcome(FAILED, told)
