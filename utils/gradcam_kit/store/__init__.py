"""A run's files: written and read."""
