"""What other people's clients are given: NBD servers, and a file to copy to them. What scenes are made of."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aioblk.testing.storage_daemon import StorageDaemon

from ..support.nbd_exports import file_server, image, server, source  # noqa: F401 (fixtures)
from .operations import Ground

collect_ignore = [] if sys.version_info < (3, 14) else ["test_trio_asyncio.py"]
"""It cannot be imported there."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported") / "exported.img"


@pytest.fixture(scope="module")
def one_daemon(exported: Path) -> Iterator[StorageDaemon]:
    """For a module's tests, one after the other: each leaves it as it was."""
    Ground.write_content(exported)
    with StorageDaemon({"driver": "file", "filename": str(exported)}) as daemon:
        yield daemon


@pytest.fixture
def ground(
    tmp_path: Path, exported: Path, one_daemon: StorageDaemon, monkeypatch: pytest.MonkeyPatch
) -> Ground:
    return Ground(tmp_path, one_daemon, exported, monkeypatch)
