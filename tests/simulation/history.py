"""What is to happen in one simulated history: a device, the weather, and what its user does. All of it data.

A history is drawn from a seed, can be written down, and stays a history when parts of it are left out: every
action carries the dice that it is carried out with, and asks nobody else.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any, final

from .library import Driver

__all__ = ["ACTIONS", "RINGS", "Action", "History", "draw"]

DICE = 6


@final
@dataclass(frozen=True, slots=True)
class Action:
    """Something that the user does, or that befalls the disk."""

    kind: str
    dice: tuple[float, ...]


@final
@dataclass(frozen=True)
class History:
    seed: int
    driver: Driver
    options: Mapping[str, Any]
    """Of the device."""
    properties: Mapping[str, int]
    """Of the disk, where they are not the usual ones."""
    weather: Mapping[str, int]
    """Of the disk: see Simulator.configure(); per mille."""
    loop: Mapping[str, int]
    """Of threads and the loop: see SimulatedLoop."""
    sectors: int
    """How many are used."""
    view: bool
    """Whether requests go by way of a ByteView, over a device of larger blocks."""
    actions: tuple[Action, ...] = field(repr=False)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "History":
        """ValueError: it is none."""
        values = json.loads(text)
        try:
            values["driver"] = Driver(values["driver"])
            values["actions"] = tuple(Action(each["kind"], tuple(each["dice"])) for each in values["actions"])
            history = cls(**values)
            history._refuse_the_unknown()
        except (TypeError, KeyError) as error:
            raise ValueError(f"something is missing, or too much: {error}") from None
        return history

    def _refuse_the_unknown(self) -> None:
        kinds = {action.kind for action in self.actions}
        for named, known in ((kinds, ACTIONS), (self.weather, _WEATHER), (self.loop, _LOOP)):
            if unknown := set(named) - set(known):
                raise ValueError(f"nobody knows {', '.join(sorted(unknown))}")
        if any(len(action.dice) != DICE for action in self.actions):
            raise ValueError(f"an action has {DICE} dice")


# How often each is done beside the others, and in what share of histories it is done at all.
ACTIONS: Mapping[str, tuple[float, float]] = {
    "read": (10, 0.95),
    "write": (12, 0.95),
    "write_zeroes": (3, 0.6),
    "discard": (2, 0.4),
    "flush": (4, 0.8),
    "read_many": (2, 0.5),
    "write_many": (2, 0.5),
    "cancel": (8, 0.6),
    "give_up": (2, 0.5),
    "await_some": (8, 0.8),
    "await_all": (0.7, 0.5),
    "enter_region": (2, 0.6),
    "leave_region": (1.5, 0.6),
    "arena": (3, 0.45),
    "bind_queue": (2, 0.5),
    "close_queue": (1, 0.5),
    "add_queue": (1, 0.3),
    "remove_queue": (1, 0.3),
    "detach": (0.7, 0.35),
    "attach": (2, 0.9),
    "close": (0.3, 0.25),
    "abandon": (0.25, 0.15),
    "reconnect": (6, 0.97),
    "kill": (0.4, 0.35),
    "hang_up": (0.25, 0.15),
    "silence": (0.25, 0.15),
    "break_down": (0.25, 0.15),
    "serve": (3, 0.95),
    "power_failure": (0.3, 0.3),
    "cancel_job": (1, 0.4),
    "truncate": (0.5, 0.3),
    "acquire": (3, 0.4),
    "give": (3, 0.95),
    "refresh_capacity": (1, 0.3),
    "pass_time": (1, 0.5),
    "collect": (0.3, 0.2),
}

_WEATHER: Mapping[str, tuple[int, ...]] = {
    "late": (0, 1, 3, 8),
    "batch": (0, 0, 1, 2, 5),
    "reorder": (0, 1, 1),
    "fail": (0, 0, 0, 20, 100),
    "transient": (0, 0, 30, 200),
    "spurious": (0, 0, 50, 300),
    "full": (0, 0, 50, 300),
    "map": (0, 0, 0, 100, 400),
    "open": (0, 0, 0, 100),
    "die": (0, 0, 0, 0, 0, 1),
    "broken": (0, 0, 0, 0, 0, 1),
    "haunt": (0, 0, 20),
    "zeroless": (0, 0, 0, 1),
    "resize": (0, 0, 0, 0, 30),
    "props": (0, 0, 0, 0, 0, 300),
}

_LOOP: Mapping[str, tuple[int, ...]] = {
    "no_thread": (0, 0, 0, 50),
    "slow_thread": (0, 0, 50, 300),
    "busy": (0, 0, 0, 1),
}

_PROPERTIES: Mapping[str, tuple[int, ...]] = {
    "max_segments": (0, 0, 1, 2, 5),
    "max_segment_len": (0, 0, 0, 1024, 4096),
    "max_transfer": (0, 0, 0, 2048, 8192),
    "max_write_zeroes_len": (0, 0, 1024, 4096),
    "max_discard_len": (0, 0, 1536, 4096),
    "discard_alignment": (0, 0, 0, 1024),
    "max_mem_regions": (0, 0, 5, 8),
}

_DRIVERS = (
    (Driver.VHOST_USER,) * 5
    + (Driver.VHOST_VDPA, Driver.VFIO_PCI) * 2
    + (Driver.IO_URING, Driver.NVME_IO_URING)
)


RINGS = (Driver.IO_URING, Driver.NVME_IO_URING)


def draw(seed: int, length: int = 220) -> History:
    """The history of a seed."""
    random = Random(seed)
    driver = random.choice(_DRIVERS)
    view = driver not in RINGS and random.random() < 0.15
    return History(
        seed=seed,
        driver=driver,
        options=_draw_options(random, driver) | _draw_pace(seed),
        properties=_draw_properties(random, driver, view=view),
        weather=_some_of(random, _WEATHER) if random.random() < 0.9 else {},
        loop=_some_of(random, _LOOP) if random.random() < 0.8 else {},
        sectors=random.choice((8, 32, 128)),
        view=view,
        actions=_draw_actions(random, length),
    )


OF_QUEUES = ("spin", "kicks", "rounds")
"""Those of the options that are not the device's, but its queues'."""


def _draw_pace(seed: int) -> dict[str, Any]:
    """How the turns of a queue go, of which the queue decides part by itself."""
    return ({"kicks": True} if seed % 3 == 0 else {}) | ({"rounds": False} if seed % 5 == 0 else {})


def _some_of(random: Random, choices: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    drawn = {name: random.choice(values) for name, values in choices.items()}
    return {name: value for name, value in drawn.items() if value}


def _draw_properties(random: Random, driver: Driver, *, view: bool) -> dict[str, int]:
    if driver in RINGS:
        return {}
    properties = _some_of(random, _PROPERTIES)
    moved = "max_segments" in properties  # no matter what: another draw would change what seeds mean
    if moved and "discard_alignment" in properties:
        properties["discard_alignment_offset"] = 512
    if view:
        alignment = random.choice((1024, 4096))
        for name in ("max_transfer", "max_segment_len", "max_write_zeroes_len", "max_discard_len"):
            if name in properties:
                properties[name] = max(properties[name], 4096)
        for name in ("request_alignment", "discard_alignment", "optimal_io_alignment", "optimal_io_size"):
            properties[name] = alignment
        if moved:  # the units of discards do not begin at 0
            properties["discard_alignment"] = 2 * alignment
            properties["discard_alignment_offset"] = alignment
            if "max_discard_len" in properties:
                properties["max_discard_len"] = max(properties["max_discard_len"], 2 * alignment)
    return properties


def _draw_options(random: Random, driver: Driver) -> dict[str, Any]:
    options: dict[str, Any] = {
        "bounce_pool_size": random.choice((1 << 16, 1 << 16, 1 << 20)),
        "lost_after": random.choice((None, 2.0, 2.0, 60.0)),
        "num_queues": random.choice((1, 2, 3)),
    }
    if random.random() < 0.15:
        options["spin"] = random.choice((1e-5, 1e-4, 1e-3))
    if driver in RINGS:
        options["num_entries"] = random.choice((1, 2, 8, 128))
    else:
        options["queue_size"] = random.choice((4, 8, 32, 256))
        options["num_poll_queues"] = random.choice((0, 0, 0, 0, 0, 1))
    if driver is Driver.VHOST_USER:
        options["reconnect_for"] = random.choice((None, 3.0, 60.0))
    return options


def _draw_actions(random: Random, length: int) -> tuple[Action, ...]:
    weights = {
        kind: weight * random.choice((0.5, 1, 2))
        for kind, (weight, share) in ACTIONS.items()
        if random.random() < share
    }
    weights.setdefault("write", 10)
    kinds = random.choices(list(weights), list(weights.values()), k=length)
    return tuple(Action(kind, tuple(random.random() for _ in range(DICE))) for kind in kinds)
