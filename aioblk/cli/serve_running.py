"""``aioblk serve nbd`` as it runs: what it opens, the signals it obeys, the end, which comes in any case."""

import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, final

from ..errors import BlkioError, DeviceLostError
from ..nbd import Export, Server
from .accounts import become, group_number, user_number
from .output import lose_output
from .serve_settings import ExportSettings, Settings
from .service_manager import ServiceManager, sockets_handed_in

__all__ = ["serve"]

log: logging.Logger = logging.getLogger("aioblk.nbd")

GRACE = 5.0  # seconds, beyond those of clients, for all else to end

Read = Callable[[], Settings]
"""The settings, as they are now."""


async def serve(settings: Settings, read_again: Read) -> int:
    """Serve until a signal ends it, or a device is lost for good; the exit status.

    Raises:
        OSError: something could not be opened, or listened at.
    """
    with contextlib.closing(ServiceManager(os.environ)) as manager:
        handed_in = sockets_handed_in(os.environ)
        return await _Service(settings, read_again, manager).run(handed_in)


@final
class _Service:
    def __init__(self, settings: Settings, read_again: Read, manager: ServiceManager) -> None:
        self._settings = settings
        self._read_again = read_again
        self._manager = manager
        self._server = Server(policy=settings.policy(), tls=settings.tls())
        self._open: dict[str, tuple[ExportSettings, contextlib.AsyncExitStack]] = {}
        self._serving: asyncio.Task[None] | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._reload_again = False
        self._signalled = False
        self._status = 0

    async def run(self, handed_in: list[Any]) -> int:
        loop = asyncio.get_running_loop()
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._close_devices)
            server = await stack.enter_async_context(self._server)
            for export in self._settings.exports:
                await self._add(export)
            for listener in handed_in:
                server.listen_on(listener)
            await self._listen(is_handed=bool(handed_in))
            self._serve_metrics(stack)
            if self._settings["user"] is not None:
                self._become()
            gc.collect()
            gc.freeze()  # what there is now stays: nobody need look through it again and again
            self._serving = asyncio.create_task(server.serve())
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self._on_signal)
            loop.add_signal_handler(signal.SIGHUP, self._on_hang_up)
            self._announce()
            self._manager.ready(self._what_is_served())
            self._manager.keep_fed(loop)
            try:
                await self._serving
            except asyncio.CancelledError:
                if not self._signalled:
                    raise
            except (DeviceLostError, BlkioError) as lost:
                log.error("%s: the server ends", lost)
                self._status = 1
            self._begin_to_end()
            if server.lost:
                self._status = 1
            if self._reloading is not None:
                await asyncio.wait([self._reloading])
        return self._status

    # --- the beginning --------------------------------------------------------------------------------------

    async def _add(self, export: ExportSettings) -> None:
        async with contextlib.AsyncExitStack() as stack:
            device = await stack.enter_async_context(export.device(lock=not self._settings["no-lock"]))
            await self._server.add(
                Export(
                    device,
                    export.name,
                    export.description,
                    read_only=export.read_only,
                    default=export.default,
                )
            )
            self._open[export.name] = export, stack.pop_all()

    async def _remove(self, name: str) -> None:
        _, device = self._open.pop(name)
        try:
            await self._server.remove(name)
        finally:
            await device.aclose()

    async def _close_devices(self) -> None:
        for _, device in self._open.values():
            await device.aclose()

    async def _listen(self, *, is_handed: bool) -> None:
        settings = self._settings
        for path in settings["unix"]:
            self._server.listen_at_path(path)
        addresses: tuple[str, ...] = settings["address"]
        if not addresses and not settings["unix"] and not is_handed:
            addresses = ("127.0.0.1",)
        for address in addresses:
            await self._server.listen("" if address == "*" else address, settings["port"])

    def _become(self) -> None:
        user, group = self._settings["user"], self._settings["group"]
        what = user
        try:
            new_user, new_group = user_number(user), None
            if group is not None:
                what = f"one of group {group}"
                new_group = group_number(group)
                what = f"{user} of group {group}"
        except ValueError as error:
            raise OSError(errno.EINVAL, f"cannot become {what}: it is not {error}") from None
        try:
            become(new_user, new_group)
        except OSError as error:
            raise OSError(
                error.errno or errno.EINVAL, f"cannot become {what}: {error.strerror or error}"
            ) from None

    def _serve_metrics(self, stack: contextlib.AsyncExitStack) -> None:
        if self._settings["metrics-port"] is None:
            return
        from .serve_metrics import serve_metrics  # for what it needs, an extra

        where, end = serve_metrics(
            self._server, self._settings["metrics-address"], self._settings["metrics-port"]
        )
        stack.push_async_callback(asyncio.to_thread, end)
        log.info("metrics are at %s", where)

    def _announce(self) -> None:
        """Whoever does not listen is served all the same."""
        try:
            self._print_uris()
        except OSError:
            lose_output()

    def _print_uris(self) -> None:
        for name, (export, _) in self._open.items():
            for uri in self._server.uris(name):
                print(f"{self._server.size_of(name)} bytes of {export.address} at {uri}", flush=True)

    def _what_is_served(self) -> str:
        names = ", ".join(repr(name) for name in self._server.exports)
        return f"serving {names}" if names else "serving nothing"

    # --- reloading ------------------------------------------------------------------------------------------

    def _on_hang_up(self) -> None:
        if self._signalled:
            return
        self._reload_again = True  # what is read now may be out of date already
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.create_task(self._reload_while_wanted())

    async def _reload_while_wanted(self) -> None:
        while self._reload_again and not self._signalled:
            self._reload_again = False
            self._manager.reloading()
            try:
                await self._reload()
            except Exception:
                log.exception("reloading failed")
            if not self._signalled:
                self._manager.ready(self._what_is_served())

    async def _reload(self) -> None:
        """Add and remove exports as the settings say now, and read certificates again. What is wrong is said,
        and changes nothing."""
        try:
            settings = await asyncio.to_thread(self._read_again)
            tls = await asyncio.to_thread(settings.tls)
        except OSError as error:
            log.error("nothing is reloaded: %s", error)
            return
        self._server.tls = tls
        changed = [
            name
            for name, value in settings.values.items()
            if value != self._settings.values[name] and not name.startswith("tls")
        ]
        if changed:
            log.warning("%s: what has changed there comes with the next start", ", ".join(changed))
        wanted = {export.name: export for export in settings.exports}
        for name, (export, _) in list(self._open.items()):
            if wanted.get(name) != export:
                log.warning("the export %r is removed", name)
                try:
                    await self._remove(name)
                except OSError as error:
                    log.error("the device of the export %r is not closed well: %s", name, error)
        for name, export in wanted.items():
            if name not in self._open:
                try:
                    await self._add(export)
                except OSError as error:
                    log.error("the export %r is not added: %s", name, error)
                else:
                    log.warning("the export %r is added", name)

    # --- the end --------------------------------------------------------------------------------------------

    def _on_signal(self) -> None:
        if self._signalled:
            os._exit(1)
        self._signalled = True
        self._begin_to_end()
        if self._serving is not None:
            self._serving.cancel()

    def _begin_to_end(self) -> None:
        """It comes in any case, whatever clients and devices do."""
        self._manager.stopping("ending")
        asyncio.get_running_loop().call_later(self._settings["drain"] + GRACE, self._give_up)

    def _give_up(self) -> None:
        log.error("a device does not close: the server ends without it")
        sys.stderr.flush()
        os._exit(1)
