"""tools/mutants: mutations of the code, each of which the tests must notice."""
