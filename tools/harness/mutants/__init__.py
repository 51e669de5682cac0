"""tools/mutants: a fixed list of mutations of the code, each of which the tests must notice."""
