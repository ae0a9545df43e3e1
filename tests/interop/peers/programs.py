"""Programs that pass on what is served, and Linux."""

import os
import subprocess
import sys
from collections.abc import Iterator

from ...support.nbd_server import NbdServer
from .place import FAILED, PASSED, Outcome, place

KERNEL_SECONDS = "900"  # an emulated machine takes three minutes, and longer beside others

SCRIPTS = {
    "nbdkit's nbd plugin": """
        nbdkit --exit-with-parent -U k.sock nbd uri="$uri" --run '
            nbdcopy data "$uri" && nbdcopy "$uri" back && cmp -n 4194304 data back && nbdinfo --map "$uri"'
    """,
    "nbdfuse": """
        mkdir mounted && nbdfuse -P pid mounted/disk "$uri" &
        while ! test -s pid; do sleep 0.1; done
        dd if=data of=mounted/disk bs=64k seek=16 conv=notrunc,fsync &&
            dd if=mounted/disk bs=64k skip=16 count=64 | cmp - data
        status=$?
        umount mounted || fusermount3 -u mounted
        wait
        exit $status
    """,
}


def programs() -> Iterator[tuple[str, Outcome]]:
    """Programs that pass it on."""
    for name, script in SCRIPTS.items():
        with place() as here:
            image = here.directory / "image"
            image.touch()
            os.truncate(image, 16 << 20)
            (here.directory / "data").write_bytes(os.urandom(4 << 20))
            with NbdServer("io_uring", f"path={image}") as server:
                here.environment["uri"] = server.uri
                here.environment["PATH"] = os.environ["PATH"]
                done = here.run("bash", "-c", script)
            yield name, Outcome(FAILED, done.stdout + done.stderr) if done.returncode else Outcome(PASSED)


def kernel() -> Iterator[tuple[str, Outcome]]:
    """Linux's own client, with file systems, in an emulated machine; ./run vm-test has it, too."""
    told = subprocess.run(
        ["vm/run", "tests/vm/test_nbd_kernel.py", "-k", "asyncio"],
        env={"AIOBLK_VM_TIMEOUT": KERNEL_SECONDS, **os.environ, "VENV": sys.prefix},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    yield "file systems", Outcome(FAILED, told.stdout) if told.returncode else Outcome(PASSED)
