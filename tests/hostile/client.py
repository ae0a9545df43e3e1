"""Works on hostile backends, and says of each how it ended: python -m tests.hostile.client KEY...

A key is a seed, or the name of a deed. A process that crashes or hangs has said nothing of the one it was at.
"""

import faulthandler
import sys
import tempfile
from pathlib import Path

from .backend import Nursery
from .deeds import plan_of
from .known import may_hang

LIMIT = 15.0  # seconds for one, after which it hangs
KNOWN_LIMIT = 5.0  # where it is known to hang


def main() -> None:
    nursery = Nursery()  # before there are threads
    import asyncio
    import warnings

    from .work import play

    warnings.simplefilter("ignore", ResourceWarning)
    faulthandler.enable()
    with tempfile.TemporaryDirectory(prefix="aioblk-") as directory:
        for number, key in enumerate(sys.argv[1:]):
            plan, path = plan_of(key), Path(directory) / f"{number}"
            nursery.begin(plan, path)
            faulthandler.dump_traceback_later(KNOWN_LIMIT if may_hang(plan) else LIMIT, exit=True)
            end = asyncio.run(play(plan, path))
            faulthandler.cancel_dump_traceback_later()
            nursery.end()
            print(end.replace("\n", " "), flush=True)
    nursery.close()


if __name__ == "__main__":
    main()
