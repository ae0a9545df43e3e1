"""What a power failure may leave on real parts, and whether what was acknowledged as durable is among it.

write_log.py reads a log of all that reached a disk, daemon.py has QEMU keep one, replay.py goes through the
states that a power failure may leave, workload.py is a random program that knows what it was promised,
records.py the log store of the examples as another, and search.py tries one after the other: ./run campaign
durability.
"""
