"""What befalls the disk of a simulated history: weather, deaths, power failures, and another backend."""

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import final

from .devices import new_disk
from .history import History
from .library import Death, Driver, Place, Simulator
from .loop import SimulatedLoop
from .oracle import Oracle

__all__ = ["CALM", "SIZE", "Fate"]

SIZE = 256 << 10  # of the disk, in bytes
CALM = dict.fromkeys(
    (
        *("late", "batch", "reorder", "fail", "transient", "broken", "spurious", "full", "map", "open"),
        *("die", "haunt", "zeroless", "resize", "props"),
    ),
    0,
)


@final
class Fate:
    """Of the one disk, and whether it is a reason for losing the device."""

    def __init__(
        self,
        history: History,
        simulator: Simulator,
        loop: SimulatedLoop,
        directory: Path,
        tell: Callable[[str], None],
    ) -> None:
        self._history = history
        self._simulator = simulator
        self._loop = loop
        self._tell = tell
        self.disk = new_disk(simulator, history.driver, directory, SIZE)
        self.disk.override(**history.properties)
        self.oracle = Oracle(history.sectors, repeats=bool(history.options.get("reconnect_for")))
        self._is_vhost_user = history.driver is Driver.VHOST_USER
        self.is_serving = True
        """Whether a vhost-user backend runs."""
        kinds = {action.kind for action in history.actions}
        self.may_stay_silent = history.options["lost_after"] is None and bool(
            kinds & {"silence", "break_down"}
            or ("power_failure" in kinds and not self._is_vhost_user)
            or {"die", "broken"} & set(history.weather)
        )
        """Whether the device may answer nothing any more, and nobody was asked to notice."""
        self._has_reason = "slow_thread" in history.loop
        if self._has_reason:  # a call that takes too long has a living device given up
            simulator.configure(abandons=1)
        self._deaths = simulator.counts["device dies"]
        self._survived = 0  # deaths that nobody need notice

    def change_weather(self, weather: Mapping[str, int]) -> None:
        self._simulator.configure(**CALM, floor=SIZE)
        if weather:
            self._simulator.configure(**weather)

    # --- whether the device may be lost ---------------------------------------------------------------------

    @property
    def may_lose(self) -> bool:
        """Whether anything has happened for which a device may be lost."""
        if not self._has_reason:
            self._has_reason = self._simulator.counts["device dies"] > self._deaths + self._survived
        return self._has_reason

    def allow_giving_up(self) -> None:
        """The user gives up a device that may be alive."""
        self._has_reason = True
        self._simulator.configure(abandons=1)

    @property
    def _comes_back_surely(self) -> bool:
        """Whether the end of a backend's process is no reason for losing the device, if another one comes."""
        history = self._history
        return (history.options.get("reconnect_for") or 0) > 10 and not (history.loop or history.weather)

    # --- death, and another backend -------------------------------------------------------------------------

    def _die(self, death: Death) -> None:
        self._tell(f"the disk: {death.name}")
        self.disk.die(death, errno.EIO)

    def kill(self, dice: tuple[float, ...]) -> None:
        """The backend's process, which a vhost-user disk has."""
        deaths = self._simulator.counts["device dies"]
        self._die(Death.KILLED)
        if self._serve_later(dice) and self._comes_back_surely:
            self._survived += self._simulator.counts["device dies"] - deaths

    def _serve_later(self, dice: tuple[float, ...]) -> bool:
        """The backend has ended; whether another one comes by itself."""
        self.is_serving = False
        comes = dice[0] < 0.7
        if comes:
            self._loop.call_later(dice[1] * 4, self.serve_again)
        return comes

    def serve_again(self) -> None:
        """Another backend, where there may be none, or one that serves somebody who is gone."""
        if self._is_vhost_user and (not self.is_serving or self.may_lose):
            self._tell("another backend listens")
            self.disk.restart()
        self.is_serving = True

    def fail_power(self, dice: tuple[float, ...]) -> None:
        self._tell("the power fails")
        self.disk.power_failure()
        self.oracle.power_failure()
        if self._is_vhost_user:
            self._serve_later(dice)

    # --- one by one -----------------------------------------------------------------------------------------

    @contextmanager
    def holding(self) -> Iterator[None]:
        """The disk does nothing but what :meth:`do_one` says."""
        self._simulator.configure(hold=1)
        try:
            yield
        finally:
            self._simulator.configure(hold=0)

    def do_one(self) -> None:
        """What has been asked for first, if there is anything."""
        there = [each for each in self._simulator.requests() if each.place is Place.AT_DEVICE]
        if there:
            self._simulator.complete(min(there, key=lambda each: each.id))

    async def do_hang_up(self, dice: tuple[float, ...]) -> None:
        if self._is_vhost_user:
            self._die(Death.HUNG_UP)

    async def do_silence(self, dice: tuple[float, ...]) -> None:
        self._die(Death.SILENT)

    async def do_break_down(self, dice: tuple[float, ...]) -> None:
        self._die(Death.BROKEN)

    async def do_serve(self, dice: tuple[float, ...]) -> None:
        self.serve_again()

    async def do_power_failure(self, dice: tuple[float, ...]) -> None:
        self.fail_power(dice)
