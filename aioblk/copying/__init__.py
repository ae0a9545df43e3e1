"""What is done with whole devices: copying, comparing, checksums, and where they have data."""

from ._journal import sync_directory
from .comparison import Comparison, compare
from .digest import checksum
from .listing import map_extents
from .transfer import CopyProgress, CopyResult, copy

__all__ = [
    "Comparison",
    "CopyProgress",
    "CopyResult",
    "checksum",
    "compare",
    "copy",
    "map_extents",
    "sync_directory",
]
