"""Queues on loops and in threads, and what all of a device's queues have in common."""
