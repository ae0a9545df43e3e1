"""NBD, the network block device protocol: a server for any block device.

It has no public names yet: `examples/nbd_server.py` is the program.
"""
