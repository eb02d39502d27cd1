"""Data sets: each file reads or makes one, and knows nothing of the others."""
