"""Measurements of aioblk beside libblkio's own benchmark, other tools in C and other Python libraries.

`./run bench --help` explains how to run them; RESULTS.md holds the figures of real runs.

    __main__.py    the commands and their options
    model.py       what is measured (Case, Cell) and what comes out (Sample, Record, Run)
    targets.py     what is read and written: a scratch file, a vhost-user export of qemu-storage-daemon
    contenders.py  who takes part: tools in C and the Python programs in workers/
    plan.py        which cells a command measures;  conduct.py  a whole run;  journal.py  keeps it as it goes
    rounds.py      the interleaved rounds: each sample in a process of its own
    summary.py     medians, spread, ratios;  bars.py  what aioblk must reach;  standing.py  who is ahead of it
    tables.py, pictures.py, report.py   what a run looks like on a terminal, as a plot, in RESULTS.md
    instructions.py                     what is judged by instructions
    fairness.py, occasional.py          what is judged by limits;  limits.py  how
    profiling.py   where the time of an operation goes
    peers.py, memory.py, queues.py      more contenders: other libraries; ways for memory to reach a device;
                                        several queues, several loops, ways to wait
    workers/       one small program for each Python contender
"""
