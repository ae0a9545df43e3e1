"""The examples that are services: promises, protocol, attacks and deaths."""
