"""Faults with real parts, and what is promised for each: `./run faults`.

tests/faults/ lets each step of a scenario fail in turn, from within. Here what is around a program fails:
backends, servers, files, limits, signals, threads. A fault is a row: its name, a sentence that docs/ keeps, a
scenario that shows it. Each scenario has a process of its own, so that limits, signals and what hangs end
with it::

    row.py       a fault as a row, and what a scenario is given
    backends.py  vhost-user devices: errors, slowness, silence, death
    files.py     files and file systems
    processes.py limits of the process, forks, signals, ends
    threads.py   threads that end while they have requests in flight
    network.py   NBD: the client's server, the server's device and clients
    book.py      all rows, in their order
    alone.py     one fault in this process
    table.py     what was seen, on a terminal and in docs/reliability.md
"""
