"""`./run ceph-test [up | down | PYTEST ARGUMENTS]`: what is needed beyond one machine, as long as it is."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from aioblk.testing.storage_daemon import StorageDaemon

from .cluster import Cluster, blockdev
from .processes import Processes

HELP = """\
Test aioblk on a device beyond this machine: a real Ceph cluster, and NBD to another network.

    ./run ceph-test             the contract of all drivers on RBD, outages of Ceph and of networks under load
    ./run ceph-test ARGUMENTS   those of pytest: ./run ceph-test tests/ceph/test_rbd_outages.py -k monitor
    ./run ceph-test up          a cluster, an RBD image and a vhost-user device on it, to try things with
    ./run ceph-test down        end that

A cluster has one monitor and one OSD on loopback, and all that is its own in a temporary folder. It takes
some twelve seconds to come up, and half a gigabyte of memory. It ends with the tests, and the folder is
removed. The tests need root, for the other network; up does not.
"""
IMAGE = "disk"
DAEMON = "qemu-storage-daemon"
INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 10.0  # seconds for a test to end in order
TESTS = ("tests/contract", "tests/ceph", "-k", "not uvloop and not eager")
"""Where nothing is asked for: the event loops are alike, one is enough."""


def main() -> int:
    arguments = sys.argv[1:]
    match arguments:
        case ["-h" | "--help" | "help"]:
            print(HELP, end="")
        case ["up"]:
            return bring_up(standing_folder())
        case ["down"]:
            return take_down(standing_folder())
        case ["up" | "down", *_]:
            print(f"ceph-test: {arguments[0]} takes no arguments", file=sys.stderr)
            return 2
        case _:
            return run_tests(arguments)
    return 0


def run_tests(arguments: list[str]) -> int:
    if os.geteuid() != 0:
        print(
            "ceph-test: only root can have another network to test with: sudo ./run ceph-test",
            file=sys.stderr,
        )
        return 1
    for number in INTERRUPTIONS:  # a script that starts it may have them ignored
        signal.signal(number, interrupt)
    folder = Path(tempfile.mkdtemp(prefix="aioblk-ceph-"))
    status = 130
    try:
        print("ceph-test: bringing up a cluster", file=sys.stderr, flush=True)
        cluster = Cluster.create(folder)
        try:
            cluster.new_image(IMAGE)
            with StorageDaemon(blockdev(cluster.configuration, IMAGE), num_queues=2) as daemon:
                there = {"AIOBLK_CEPH": str(folder), "AIOBLK_RBD": str(daemon.socket)}
                status = run_pytest(arguments or list(TESTS), there)
        finally:
            cluster.close()
    except KeyboardInterrupt:
        print("ceph-test: interrupted; the cluster is gone", file=sys.stderr)
    finally:
        shutil.rmtree(folder)
    return status


def run_pytest(arguments: list[str], there: dict[str, str]) -> int:
    """In a process of its own, which hears of Ctrl-C itself, and is waited for."""
    pytest = ("setpriv", "--pdeathsig", "TERM", sys.executable, "-m", "pytest", "-p", "no:cacheprovider")
    with subprocess.Popen([*pytest, "--durations=5", *arguments], env={**os.environ, **there}) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            for number in INTERRUPTIONS:
                signal.signal(number, signal.SIG_IGN)  # from here on all is being ended
            process.send_signal(signal.SIGINT)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:  # a test that waits for what it has stopped
                process.kill()
            raise


def interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


# --- a cluster to try things with ---------------------------------------------------------------------------


def standing_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"aioblk-ceph-{os.getuid()}"


def bring_up(folder: Path) -> int:
    if folder.exists():
        print(
            f"ceph-test: there is one in {folder} already; end it with: ./run ceph-test down", file=sys.stderr
        )
        return 1
    socket = folder / "blk.sock"
    print("ceph-test: bringing up a cluster", file=sys.stderr, flush=True)
    try:
        folder.mkdir(mode=0o700)
        cluster = Cluster.create(folder, stay=True)
        cluster.new_image(IMAGE)
        node = f"driver=rbd,node-name=disk,pool=rbd,image={IMAGE},conf={cluster.configuration}"
        cluster.processes.start(
            DAEMON,
            [
                DAEMON,
                *("--blockdev", f"{node},discard=unmap,cache.direct=on"),
                *(
                    "--export",
                    "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=2,"
                    f"addr.type=unix,addr.path={socket}",
                ),
            ],
        )
        while not socket.exists():
            if not cluster.processes.is_running(DAEMON):
                raise RuntimeError(f"no vhost-user device: {cluster.processes.said(DAEMON)}")
            time.sleep(0.05)
    except BaseException:
        take_down(folder)
        raise
    print(f"""\
A Ceph cluster with an image of 256 MiB is up until you say: ./run ceph-test down

  aioblk info virtio-blk-vhost-user:{socket}
  aioblk bench virtio-blk-vhost-user:{socket}
  aioblk serve nbd virtio-blk-vhost-user:{socket}
  ceph -c {cluster.configuration} status
  rbd -c {cluster.configuration} info {IMAGE}

Its daemons' process ids are in {folder}/*.process, their logs beside them.""")
    return 0


def take_down(folder: Path) -> int:
    if not folder.exists():
        print(f"ceph-test: there is no cluster in {folder}", file=sys.stderr)
        return 1
    Processes(folder).stop_all()
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
