"""What of a copy is done, in a file, so that another process can go on with it."""

import contextlib
import os
import reprlib
import stat
from typing import Any, TypeAlias, cast, final

from ..errors import BlkioError, OptionError
from ..layers.block_device import BlockDevice
from ._place import file_of, place_of

__all__ = ["Identity", "Journal", "identity_of"]

KIND = "aioblk copy, version 1"
LARGEST = 1 << 16  # bytes

Identity: TypeAlias = dict[str, Any]


def identity_of(device: BlockDevice, *, is_source: bool) -> Identity:
    """What tells a device from another one, and from itself after a change, as far as can be told.

    Of a destination, what copying changes is left out.
    """
    identity: Identity = {"size": device.capacity} if is_source else {}
    file = file_of(device)
    if file is None:
        what = place_of(device).what
        # an object's number says nothing to another process
        return identity | ({"name": list(what)} if isinstance(what[0], str) else {})
    status = os.fstat(file)
    if stat.S_ISBLK(status.st_mode):
        return identity | {"disk": f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"}
    identity["file"] = [status.st_dev, status.st_ino]
    return identity | ({"modified": status.st_mtime_ns} if is_source else {})


def _in_words(identity: object) -> str:
    """Of a journal, which may hold anything."""
    if not isinstance(identity, dict):
        return "nothing" if identity is None else reprlib.repr(identity)
    entries = cast("dict[object, object]", identity)
    return ", ".join(f"{key} {reprlib.repr(value)}" for key, value in entries.items()) or "another process's"


@final
class Journal:
    """The file, which is there from when the copy begins until it is done."""

    def __init__(self, path: str | os.PathLike[str], source: Identity, destination: Identity) -> None:
        """Nothing is read or written yet."""
        from pathlib import Path  # as JSON below: most copies have no journal

        self.path = Path(path)
        self._sides = {"source": source, "destination": destination}

    def load(self) -> int:
        """How many bytes from the beginning are done; 0: there is no journal yet.

        Raises:
            OptionError: the file is no journal, or that of another copy: it is left as it is.
            BlkioError: it cannot be read.
        """

        try:
            entries = _entries(self._read())
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise self._failed(error) from error
        done = None if entries is None else entries.get("done")
        if entries is None or type(done) is not int or done < 0:
            raise self._wrong("it is no journal of a copy; name another file")
        for side, identity in self._sides.items():
            if entries.get(side) != identity:
                was, now = _in_words(entries.get(side)), _in_words(identity)
                raise self._wrong(
                    f"it is of a copy whose {side} was another one, or has been changed since: {was} then,"
                    f" and {now} now. Give the same {side}, or remove it to copy anew"
                )
        return done

    def _read(self) -> bytes:
        """Nothing, if it is no file: a pipe has nobody who writes to it, and a terminal waits for a line."""
        with open(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb") as file:
            is_file = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            return file.read(LARGEST) if is_file else b""  # it may be an image, by mistake

    def save(self, done: int) -> None:
        """It takes the place of the one before as a whole, or not at all, and is on stable storage.

        Raises:
            BlkioError: it cannot be written.
        """
        import json

        text = json.dumps({"kind": KIND, **self._sides, "done": done})
        new = self.path.with_name(f".{self.path.name}.new")
        try:
            new.unlink(missing_ok=True)  # of a copy that was killed, or a link that somebody has put there
            with new.open("x") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            raise self._failed(error) from error
        sync_directory(self.path)

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
            sync_directory(self.path)

    def _failed(self, error: OSError) -> BlkioError:
        return BlkioError(
            "the journal cannot be kept there",
            errno=error.errno,
            driver="copy",
            operation="resume",
            filename=str(self.path),
        )

    def _wrong(self, message: str) -> OptionError:
        return OptionError(message, driver="copy", operation="resume", filename=str(self.path))


def _entries(text: bytes) -> Identity | None:
    """None: it is not what :meth:`Journal.save` has written, whoever has."""
    import json

    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or cast(Identity, found).get("kind") != KIND:
        return None
    return cast(Identity, found)


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Make the name of a file durable that was made, renamed or removed.

    Raises:
        BlkioError: it failed.
    """
    parent = os.path.dirname(os.path.abspath(path))
    directory = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    except OSError as error:
        raise BlkioError(errno=error.errno, operation="flush", filename=parent) from error
    finally:
        os.close(directory)
