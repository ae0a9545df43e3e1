"""Buffers whose length is known without looking at their memory: most are of these kinds."""

from .._memory.regions import MemoryRegion
from .._native._core import View

__all__ = ["PLAIN"]

PLAIN: frozenset[type] = frozenset({bytes, bytearray, View, MemoryRegion})
"""Their items are bytes."""
