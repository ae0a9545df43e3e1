"""A vhost-user-blk backend that misbehaves by seed, what works on it, and the search through the seeds.

deeds.py says what it may do, backend.py does it, client.py works on it in a process of its own, and search.py
tells how that ended: ./run campaign hostile-backend. known.py has what libblkio does not survive.
"""
