"""Every public operation that is awaited, as a table: how it is called, held up, and looked at afterwards."""

from . import copying, devices, export, layers, made, memory, nbd, nbd_client, services  # noqa: F401 (they fill the table)
from .scene import OPERATIONS, Ground, Operation, Scene, Wait

__all__ = ["OPERATIONS", "Ground", "Operation", "Scene", "Wait"]
