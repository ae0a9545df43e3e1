"""Memory that devices reach: regions, the bounce pool, arenas."""
