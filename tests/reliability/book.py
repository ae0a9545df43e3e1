"""All faults, in the order of the table."""

from . import backends, files, flushes, network, processes, threads
from .row import FAULTS

__all__ = ["FAULTS", "backends", "files", "flushes", "network", "processes", "threads"]
