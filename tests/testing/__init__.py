"""The testing kit does what it says."""
