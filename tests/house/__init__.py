"""The house as a whole: its plan, its documentation, its words, its benchmarks, the tests' own tools."""
