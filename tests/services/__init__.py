"""What services have beside devices."""
