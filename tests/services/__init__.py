"""The examples that are services, used by real clients, mistreated and killed."""
