"""What a user names: the driver classes, their options, and opening by name."""
