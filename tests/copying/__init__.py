"""What is done with whole devices: copies, comparisons, checksums, maps of holes."""
