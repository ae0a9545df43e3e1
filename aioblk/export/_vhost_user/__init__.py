"""A vhost-user-blk device's side of its socket, from the wire inwards.

protocol.py     numbers and layouts, of vhost-user and of virtio-blk
channel.py      messages with descriptors, one after the other
descriptors.py  what descriptors are good for that somebody else has made
lent.py         the memory that a client lends
tracking.py     what is in flight, kept by the client
config.py       a device in virtio-blk's words: its features, and its configuration space
requests.py     from a guest's request to one of the device
ring.py         one queue on the event loop
session.py      one client: what it says, and what becomes of it
"""
