"""Linux defaults of the hooks."""
