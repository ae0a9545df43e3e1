"""libblkio as Python, without asyncio: instances, properties, limits, options, refusals."""
