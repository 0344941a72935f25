"""What can be set: YAML, flags, options."""
