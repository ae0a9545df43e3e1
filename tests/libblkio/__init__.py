"""libblkio as Python, without asyncio: handles, properties, limits, what may be opened."""
