"""A device's life: connecting, closing, losing, coming back."""
