"""What asyncio lacks: fair waiting, tasks that nobody cancels, calls in threads, shields, time."""
