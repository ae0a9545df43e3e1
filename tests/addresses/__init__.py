"""Devices by their addresses: text, what it means, and what it opens."""
