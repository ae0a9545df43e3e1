"""What asyncio lacks: fair waiting, steadfast tasks, calls in threads, shields, time."""
