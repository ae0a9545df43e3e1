"""What lies over any block device."""
