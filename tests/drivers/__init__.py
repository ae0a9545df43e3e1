"""What a user names: the driver classes and their options."""
