"""What a hostile backend does, as data: a plan for each seed."""

import random
from dataclasses import dataclass

from ..support.vhost_user import Kind

__all__ = ["AT_MESSAGES", "AT_REQUESTS", "CONFIGURATION", "MESSAGES", "Deed", "Plan", "plan_of"]

MESSAGES = {kind.name: kind.value for kind in Kind if kind is not Kind.GET_VRING_BASE}
"""What libblkio sends."""

# Each deed, and whether what the backend says of the data is true all the same: then every byte is verified.
AT_MESSAGES = {
    "hangs up": True,
    "hangs up in the middle of an answer": True,
    "dies": True,
    "says nothing": True,
    "refuses": True,  # where there is an acknowledgement; elsewhere the value is 1
    "answers another message": True,
    "answers without the flag of an answer": True,
    "answers too little": True,
    "answers too much": True,
    "announces 4 GiB": True,
    "answers garbage": True,
    "answers twice": True,
    "answers byte by byte": True,
    "answers a random value": True,
    "brings descriptors": True,
}

AT_REQUESTS = {
    "hangs up": True,
    "dies": True,
    "stops": True,  # takes nothing any more
    "stops for a while": True,
    "is slow": True,
    "forgets a request": True,
    "fails without doing it": True,
    "gives a status that does not exist": True,
    "writes no status": False,  # nor does it do anything: libblkio takes that for a success
    "is done before it begins": False,
    "gives a wrong length": True,
    "names another request": False,
    "names a request that nobody has made": False,
    "names an id beyond the queue": False,
    "names a request twice": False,
    "goes ahead in the used ring": False,
    "goes back in the used ring": False,
    "wants no kicks": True,
    "sends no events": True,
    "sends events for nothing": True,
    "takes its events back": True,
    "takes its events back and makes reading block": True,
    "fills the kick": True,
    "ties descriptors into a ring": False,
    "points descriptors out of the table": False,
    "writes garbage over the descriptors": False,
    "writes garbage over the available ring": False,
    "writes garbage over the used ring": False,
    "writes garbage over the headers": False,
    "writes garbage over lent memory": False,
    "punches holes into lent memory": False,
    "cuts off lent memory": False,
    "cuts off the rings": False,
    "has another capacity": True,
}

# Offset in virtio-blk's configuration, bytes, and what it is set to.
CONFIGURATION = {
    "capacity": (0, 8, (0, 1, 7, 1 << 54, (1 << 63) - 1, (1 << 64) - 1)),
    "size_max": (8, 4, (0, 1, 511, (1 << 32) - 1)),
    "seg_max": (12, 4, (0, 1, 2, 1 << 16, (1 << 32) - 1)),
    "blk_size": (20, 4, (0, 1, 3, 513, 4096, 1 << 31, (1 << 32) - 1)),
    "physical_block_exp": (24, 1, (1, 31, 32, 64, 255)),
    "alignment_offset": (25, 1, (1, 255)),
    "min_io_size": (26, 2, (1, 3, 65535)),
    "opt_io_size": (28, 4, (1, 3, (1 << 32) - 1)),
    "writeback": (32, 1, (1, 255)),
    "num_queues": (34, 2, (0, 1, 65535)),
    "max_discard_sectors": (36, 4, (0, 1, (1 << 32) - 1)),
    "max_discard_seg": (40, 4, (0, (1 << 32) - 1)),
    "discard_sector_alignment": (44, 4, (0, 3, (1 << 32) - 1)),
    "max_write_zeroes_sectors": (48, 4, (0, 1, (1 << 32) - 1)),
    "max_write_zeroes_seg": (52, 4, (0, (1 << 32) - 1)),
}


@dataclass(frozen=True)
class Deed:
    """*what* is done at the *nth* message of a kind, or from the nth request on with the chance *rate*."""

    what: str
    message: str = ""
    nth: int = 0
    rate: float = 1.0
    field: str = ""
    value: int = 0

    @property
    def is_honest(self) -> bool:
        if self.field:
            return True
        return (AT_MESSAGES if self.message else AT_REQUESTS)[self.what]

    def __str__(self) -> str:
        if self.field:
            return f"has {self.field} {self.value}"
        where = f"at {self.message}" if self.message else f"at {self.rate:.0%} of requests"
        return f"{self.what} {where} from the {self.nth + 1}. on"


@dataclass(frozen=True)
class Plan:
    """Of one seed: what the backend does in its first life, and in the second, and how the client is set."""

    key: str
    lives: tuple[tuple[Deed, ...], ...]
    reconnects: bool
    queue_size: int
    bounce_pool_size: int

    @property
    def is_honest(self) -> bool:
        return all(deed.is_honest for life in self.lives for deed in life)

    def __str__(self) -> str:
        lives = "; then ".join(", ".join(map(str, life)) or "behaves" for life in self.lives)
        return f"{lives}{' (reconnects)' if self.reconnects else ''}"


def plan_of(key: str) -> Plan:
    """What is played with a seed; or with the name of a deed that alone: from the fourth request on, or "at"
    a message.
    """
    if not key.isdigit():
        what, _, message = key.partition(" at ")
        nth = 2 if message == "ADD_MEM_REG" else 0  # when the rings and the client's own memory are mapped
        deed = Deed(what, message, nth) if message else Deed(what, nth=3)
        return Plan(key, ((deed,),), reconnects=False, queue_size=16, bounce_pool_size=64 << 10)
    chance = random.Random(int(key))
    first = tuple(_deed(chance) for _ in range(chance.choice((1, 1, 1, 2, 3))))
    second = (_deed(chance),) if chance.random() < 0.3 else ()
    return Plan(
        key,
        (first, second),
        reconnects=chance.random() < 0.4,
        queue_size=chance.choice((4, 16, 64, 128)),
        bounce_pool_size=chance.choice((64 << 10, 256 << 10, 1 << 20)),
    )


def _deed(chance: random.Random) -> Deed:
    kind = chance.random()
    if kind < 0.25:
        # most messages come once; memory is mapped several times, the configuration asked for more than once
        message = chance.choice([*MESSAGES, "GET_CONFIG", "ADD_MEM_REG", "REM_MEM_REG"])
        often = 4 if message in ("GET_CONFIG", "ADD_MEM_REG") else 1
        return Deed(chance.choice(list(AT_MESSAGES)), message, chance.randrange(often))
    if kind < 0.35:
        field = chance.choice(list(CONFIGURATION))
        return Deed("", field=field, value=chance.choice(CONFIGURATION[field][2]))
    what = chance.choice(list(AT_REQUESTS))
    return Deed(what, nth=chance.choice((0, 1, 3, 10, 25)), rate=chance.choice((1.0, 0.5, 0.1)))
