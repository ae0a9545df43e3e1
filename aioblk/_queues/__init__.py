"""A queue on an event loop, one in a thread, and all that a device has."""
