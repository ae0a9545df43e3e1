"""The command line, as a user types it: ``running.py`` starts it as a process."""
