"""Opening a device: a connection is made in a thread, in time, and a session of it."""

import asyncio
import contextlib
import errno
import functools
import logging
import weakref

from .._libblkio.options import DriverOptions
from .._libblkio.properties import VHOST_USER
from .._libblkio.subject import Subject, complete
from .._queues.bound import BoundQueues
from .._sync.blocking import run_blocking
from .._sync.scopes import shielded
from .._sync.tasks import start_steadfast_task
from ..errors import BlkioError
from .connection import Connection, connect_first, remove_created
from .life import Life
from .loss import Loss
from .session import Alarm, Session

__all__ = ["open_device"]

CONNECT_NOTICE = 1.0  # seconds that opening may take without a word

log: logging.Logger = logging.getLogger("aioblk")


async def open_device(options: DriverOptions, subject: Subject, device: weakref.ref[object]) -> Life:
    """Connect, and begin *device*'s life on the running loop. From the connection on, in one turn.

    Whatever fails, and a task that is cancelled, leaves nothing open, and no file that was to be created.
    """
    connection = await _connect(options, subject)
    queues = BoundQueues(subject)
    try:
        _require_visible_backend(options, subject, connection)
        alarm = Alarm()
        session = Session(options, subject, connection, queues, alarm, device)
        loss = Loss(session, connection.peer)
        alarm.is_heard_by(loss)
        life = Life(session, loss)
        loss.watch()
        return life
    except BaseException:
        queues.dispose()
        giving_back = start_steadfast_task(asyncio.get_running_loop(), _give_back(options, connection))
        with shielded():
            await asyncio.wait([giving_back])
        raise


async def _connect(options: DriverOptions, subject: Subject) -> Connection:
    """In time. Who waits for a backend that serves another client is told so."""
    limit, notice = options.connect_timeout, None
    if options.driver == VHOST_USER:
        notice = asyncio.get_running_loop().call_later(
            CONNECT_NOTICE,
            log.warning,
            "%r has not been opened for %g s: a backend serves one client at a time, and this one may be"
            " busy with another; waiting (connect_timeout limits that)",
            subject.filename,
            CONNECT_NOTICE,
        )
    timeout = asyncio.timeout(limit)
    try:
        async with timeout:
            return await run_blocking(
                functools.partial(connect_first, options), undo=functools.partial(_undo, options)
            )
    except BlkioError as error:
        complete(error, driver=options.driver, operation="connect", filename=subject.filename)
        raise
    except TimeoutError:
        if not timeout.expired():
            raise
        raise BlkioError(
            f"it was not opened within {limit:g} seconds (connect_timeout); a backend serves one client"
            " at a time, and this one may be busy with another",
            errno=errno.ETIMEDOUT,
            driver=options.driver,
            operation="connect",
            filename=subject.filename,
        ) from None
    finally:
        if notice is not None:
            notice.cancel()


def _undo(options: DriverOptions, connection: Connection) -> None:
    connection.close()
    remove_created(options)


async def _give_back(options: DriverOptions, connection: Connection) -> None:
    undo = functools.partial(_undo, options, connection)
    with contextlib.suppress(BlkioError):  # what came first counts
        try:
            await run_blocking(undo)
        except BlkioError as error:
            if error.errno != errno.EAGAIN:  # "no thread is to be had": nothing was called
                raise
            undo()


def _require_visible_backend(options: DriverOptions, subject: Subject, connection: Connection) -> None:
    peer = connection.peer
    if options.reconnect_for is not None and (peer is None or peer.process is None):
        raise subject.unsupported(
            "connect",
            "the backend's process cannot be seen from here (is it in a container?); unless it is seen to"
            " end, nothing can be made again: reconnect_for is not possible",
        )
