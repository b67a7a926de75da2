"""Many runs: the published tables, training their cells, and showing what was measured."""
