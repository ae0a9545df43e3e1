"""The compiled floor: ``_blkio`` binds all of libblkio, ``_core`` is the path of a request."""
