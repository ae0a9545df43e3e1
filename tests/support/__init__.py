"""Real devices for the tests, and the checks that nothing is left behind."""
