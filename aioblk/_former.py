"""Modules under the paths that they had before, for programs that import from there. Each warns."""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.abc import Loader
else:  # its module takes longer to import than all else here
    Loader = object

__all__ = ["FORMER", "FormerPaths"]

FORMER = {
    "arena": "_memory.arena",
    "bounce": "_memory.bounce",
    "byte_view": "layers.byte_view",
    "device": "_device.device",
    "extents": "_device.extents",
    "in_flight": "services.in_flight",
    "limits": "_libblkio.limits",
    "memory": "_memory.regions",
    "socket_stream": "services.socket_stream",
    "zones": "layers.zones",
}


class FormerPaths(Loader):
    """Finds and loads them, where Python finds nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, module = fullname.rpartition(".")
        return ModuleSpec(fullname, self) if package == __package__ and module in FORMER else None

    def create_module(self, spec: ModuleSpec) -> None:
        """As Python would by itself; nobody sees it."""

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__.rpartition(".")[2]
        warnings.warn(
            f"aioblk.{name} is at another place now; import the names of it from aioblk itself",
            DeprecationWarning,
            stacklevel=2,
        )
        sys.modules[module.__name__] = importlib.import_module(f"{__package__}.{FORMER[name]}")
