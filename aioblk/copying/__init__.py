"""What is done with whole devices: copying, comparing, checksums, and where they have data."""

from .comparison import Comparison, compare
from .digest import checksum
from .listing import extents
from .transfer import CopyProgress, CopyResult, copy

__all__ = ["Comparison", "CopyProgress", "CopyResult", "checksum", "compare", "copy", "extents"]
