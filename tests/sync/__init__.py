"""What asyncio lacks: fair waiting, calls in threads and who owns their results."""
