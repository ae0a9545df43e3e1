"""`./run release`: what a release consists of, built and tried as its users will have it. docs/releases.md.

From the top down::

    __main__.py   the order of it all, and the table at the end
    systems.py    which newly installed systems there are, and which interpreter each has
    wheels.py     wheels, for interpreters of this machine and of those systems
    source.py     the archive of the source, twice, and what is in it
    checks.py     what any file of a release is held to
    steps.py      a step of it: its log, and what becomes of it
    matrix.py     ./run matrix: the suite on all of those systems, and with the oldest dependencies
    chroot        a newly installed Debian or Ubuntu, for one command
    mirror        where Debian's packages are taken from, here and by ./run
"""
