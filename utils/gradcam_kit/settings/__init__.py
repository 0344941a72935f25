"""Settings: YAML files, flags, the table of options."""
