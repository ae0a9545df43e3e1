"""What services have beside devices: limits of what is in flight, streams of messages."""
