"""From a YAML and weights to a detector on its device."""
