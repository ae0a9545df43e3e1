"""NBD, the network block device protocol: a server for any block device."""
