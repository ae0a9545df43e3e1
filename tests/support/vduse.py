"""The VDUSE device of the guest of ``vm/run``: its backend can be killed, and put back."""

import fcntl
import os
import signal
import subprocess
from pathlib import Path

from .polling import wait_until

NAME = "vduse0"
DESTROY_DEV = 0x41008103  # _IOW(VDUSE_BASE, 3, char[256])


def kill_backend() -> None:
    """End the daemon as a crash would."""
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (directory / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended
        if arguments[0].endswith(b"qemu-storage-daemon") and any(b"vduse-blk" in word for word in arguments):
            os.kill(int(directory.name), signal.SIGKILL)
            return
    raise RuntimeError("no daemon serves the VDUSE device")


def restore_backend() -> None:
    """Another daemon for the same device, which nobody may have open. What is written to it stays."""
    subprocess.run(["vdpa", "dev", "del", NAME], check=True)
    with open("/dev/vduse/control", "wb") as control:
        wait_until(lambda: _destroyed(control.fileno()))
    subprocess.run(
        "qemu-storage-daemon"
        " --blockdev driver=file,filename=/run/vduse.img,node-name=file,discard=unmap"
        f" --export type=vduse-blk,id=export,node-name=file,name={NAME},writable=on,num-queues=2"
        " </dev/null >/dev/null 2>&1 &",
        shell=True,
        check=True,
    )
    timeout = Path(f"/sys/class/vduse/{NAME}/msg_timeout")
    wait_until(timeout.exists)
    timeout.write_text("3")
    wait_until(
        lambda: subprocess.run(["vdpa", "dev", "add", "name", NAME, "mgmtdev", "vduse"]).returncode == 0
    )
    wait_until(Path(os.environ["AIOBLK_VM_VDPA"]).exists)


def _destroyed(control: int) -> bool:
    try:
        fcntl.ioctl(control, DESTROY_DEV, NAME.encode().ljust(256, b"\0"))
    except OSError:
        return not Path(f"/sys/class/vduse/{NAME}").exists()
    return True
