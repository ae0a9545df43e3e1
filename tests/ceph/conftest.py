"""What the tests beyond one machine are given. They are collected where there is a cluster for them."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from aioblk.testing.storage_daemon import StorageDaemon

from ..support.certificates import Authority
from ..support.nbd_server import command
from .cluster import Cluster, blockdev
from .network import PORT, Network

if "AIOBLK_CEPH" not in os.environ:
    collect_ignore_glob = ["test_*.py"]

REMOTE_SIZE = 16 << 20

Daemons = Callable[..., StorageDaemon]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The runner's; whatever a test has stopped is there again for the next module."""
    cluster = Cluster(Path(os.environ["AIOBLK_CEPH"]))
    yield cluster
    cluster.wait_until_served()


@pytest.fixture(scope="module")
def socket() -> Path:
    """The runner's vhost-user device on the image rbd/disk."""
    return Path(os.environ["AIOBLK_RBD"])


@pytest.fixture
def image(cluster: Cluster) -> str:
    """An image of a test's own."""
    return cluster.new_image(f"image-{os.urandom(4).hex()}")


@pytest.fixture
def rbd_daemon(cluster: Cluster, image: str) -> Iterator[Daemons]:
    """Starts daemons that export the test's image, each of them a client of the cluster."""
    with ExitStack() as stack:

        def start(*, configuration: Path | None = None, direct: bool = True) -> StorageDaemon:
            described = blockdev(configuration or cluster.configuration, image, direct=direct)
            return stack.enter_context(StorageDaemon(described, num_queues=2))

        yield start


# --- another network ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    network = Network(tmp_path_factory.mktemp("network"))
    yield network
    network.close()


class Remote:
    """`aioblk serve nbd` over there, on a device of that machine: at :attr:`uri`."""

    def __init__(self, network: Network, device: str, *options: str, scheme: str = "nbd") -> None:
        self._network = network
        self._command = command(device, "--address", network.there, "--port", str(PORT), *options)
        self.uri = f"{scheme}://{network.there}:{PORT}/"
        self.start()

    def start(self) -> None:
        self._network.serve("server", self._command)

    def stop(self) -> None:
        """It says goodbye to its clients."""
        self._network.processes.stop("server")

    def kill(self) -> None:
        self._network.processes.stop("server", signal.SIGKILL)

    def pause(self) -> None:
        self._network.processes.pause("server")

    def resume(self) -> None:
        self._network.processes.resume("server")


@pytest.fixture(scope="class")
def remote_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("remote") / "remote.img"
    path.touch()
    os.truncate(path, REMOTE_SIZE)
    return path


@pytest.fixture(scope="class")
def remote(network: Network, remote_file: Path) -> Iterator[Remote]:
    """A server of a file over there; a test that is in no class has one to itself."""
    server = Remote(network, str(remote_file))
    yield server
    server.stop()


@pytest.fixture(scope="class")
def remote_tls(
    network: Network, remote_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Remote, Path]]:
    """One that lets in who has a certificate, and the directory with such a one."""
    authority = Authority(tmp_path_factory.mktemp("certificates"))
    secured = ("--tls", "require", "--tls-certificates", str(authority.server), "--tls-verify-peer")
    server = Remote(network, str(remote_file), *secured, scheme="nbds")
    yield server, authority.client
    server.stop()
