"""What `./run coverage` measures, and which branches of the C core need no test."""
