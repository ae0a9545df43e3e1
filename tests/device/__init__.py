"""A device's life: opening, closing, losing, coming back, and what outlives what."""
