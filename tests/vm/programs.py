"""Programs of the guest's."""

import asyncio
from pathlib import Path

__all__ = ["FailedError", "run"]


class FailedError(Exception):
    """Of a program."""


async def run(*command: str | Path) -> str:
    """What it has said."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    told = (await process.communicate())[0].decode()
    if process.returncode:
        raise FailedError(f"{' '.join(map(str, command))}: {told}")
    return told
