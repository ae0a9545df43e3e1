"""A real Ceph cluster of one monitor and one OSD on loopback, with RBD images: all of it in one folder.

Debian's packages serve: ceph-mon, ceph-osd, ceph-common. It is up in some twelve seconds, needs no manager
and no root, and has no replicas: it shows how Ceph behaves, and is no place to keep anything. Whoever knows
the folder has the cluster: what one process has started, another one stops and starts again.
"""

import os
import signal
import socket
import subprocess
import uuid
from pathlib import Path
from typing import Self

from .processes import TIME_LIMIT, Processes

MONITOR, OSD = "mon.a", "osd.0"
POOL = "rbd"
IMAGE_SIZE = 256 << 20
STORE_SIZE = 8 << 30  # of a sparse file
WATCH_TIMEOUT = 3  # seconds until a client that has died is known to be dead; Ceph's default is 30

CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{port}/0
mon initial members = a
public network = 127.0.0.0/8
auth cluster required = none
auth service required = none
auth client required = none
run dir = {folder}
log file = {folder}/$name.log
osd pool default size = 1
osd pool default min size = 1
osd crush chooseleaf type = 0

[mon]
mon data = {folder}/mon
mon allow pool size one = true
mon data avail crit = 1
admin socket = {folder}/$name.asok

[osd]
osd data = {folder}/osd
osd objectstore = bluestore
bluestore block size = {store_size}
osd memory target = 1073741824
osd client watch timeout = {watch_timeout}
admin socket = {folder}/$name.asok
"""


class Cluster:
    """The one in *folder*."""

    def __init__(self, folder: Path, *, stay: bool = False) -> None:
        """:param stay: What is started outlives this process."""
        self.folder = folder.absolute()
        self.configuration = self.folder / "ceph.conf"
        self.processes = Processes(self.folder, stay=stay)

    @classmethod
    def create(cls, folder: Path, *, stay: bool = False) -> Self:
        """A new one, up, with an empty pool. Whatever fails leaves nothing running."""
        folder.mkdir(exist_ok=True)
        for name in ("mon", "osd"):
            (folder / name).mkdir()
        cluster = cls(folder, stay=stay)
        identity = str(uuid.uuid4())
        port = _free_port()
        cluster.configuration.write_text(
            CONFIGURATION.format(
                fsid=identity,
                port=port,
                folder=cluster.folder,
                store_size=STORE_SIZE,
                watch_timeout=WATCH_TIMEOUT,
            )
        )
        try:
            cluster._bring_up(identity, port)
        except BaseException:
            cluster.close()
            raise
        return cluster

    def _bring_up(self, identity: str, port: int) -> None:
        osd = str(uuid.uuid4())
        monmap = str(self.folder / "monmap")
        _run(["monmaptool", "--create", "--fsid", identity, "--addv", "a", f"[v2:127.0.0.1:{port}]", monmap])
        conf = ("-c", str(self.configuration))
        _run(["ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, *conf])
        self.start(MONITOR)
        self.ceph("osd", "new", osd)
        _run(["ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd, *conf])
        self.ceph("osd", "crush", "add", OSD, "1.0", "host=here", "root=default")
        self.start(OSD)
        self.ceph("osd", "pool", "create", POOL, "8", "8", "replicated")

    # --- its daemons ----------------------------------------------------------------------------------------

    def start(self, daemon: str) -> None:
        """MONITOR or OSD. Whoever asks it for something waits until it is there."""
        kind, _, number = daemon.partition(".")
        self.processes.start(daemon, [f"ceph-{kind}", "-f", "-i", number, "-c", str(self.configuration)])

    def stop(self, daemon: str, how: signal.Signals = signal.SIGTERM) -> None:
        """SIGTERM has it say goodbye, SIGKILL is a crash."""
        self.processes.stop(daemon, how)

    def wait_until_served(self) -> None:
        """Until the OSD does what it is asked. The monitor may think that it is up when it has crashed."""
        self.rbd("ls")

    def close(self) -> None:
        """End whatever is running; the folder stays."""
        self.processes.stop_all()

    # --- what it is asked -----------------------------------------------------------------------------------

    def ceph(self, *arguments: str) -> str:
        return _run(["ceph", "-c", str(self.configuration), *arguments])

    def rbd(self, *arguments: str) -> str:
        return _run(["rbd", "-c", str(self.configuration), *arguments])

    def new_image(self, name: str, size: int = IMAGE_SIZE, *, features: str | None = None) -> str:
        """Of zeroes; with the features of images by default, an exclusive lock among them, or others."""
        chosen = () if features is None else ("--image-feature", features)
        self.rbd("create", "--size", f"{size >> 20}M", *chosen, f"{POOL}/{name}")
        return name

    def blocklist(self) -> list[str]:
        """The clients that the cluster takes nothing from any more."""
        return [line.split()[0] for line in self.ceph("osd", "blocklist", "ls").splitlines() if line.strip()]

    def configured(self, name: str, **settings: object) -> Path:
        """The configuration with settings of a client, at another path: ``rados_osd_op_timeout=5``."""
        path = self.folder / f"{name}.conf"
        lines = [f"{key.replace('_', ' ')} = {value}" for key, value in settings.items()]
        path.write_text("\n".join([self.configuration.read_text(), "[client]", *lines, ""]))
        return path


def blockdev(configuration: Path, image: str, *, direct: bool = True) -> dict[str, object]:
    """The image as a node of QEMU. *direct*: what is acknowledged is in the cluster, not in a cache."""
    return {
        "driver": "rbd",
        "pool": POOL,
        "image": image,
        "conf": str(configuration),
        "discard": "unmap",
        "cache": {"direct": direct},
    }


def _run(command: list[str]) -> str:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        env=_environment(),
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}: {done.stderr[-4000:]}")
    return done.stdout


def _environment() -> dict[str, str]:
    """Ceph's command is in the system's Python, and knows nothing of ours."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))
    }


def _free_port() -> int:
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        port: int = any_port.getsockname()[1]
        return port
