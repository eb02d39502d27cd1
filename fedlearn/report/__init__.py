"""Reports of runs: one schema, one builder and one template set, terminal tables, comparison of runs."""
