"""YAML and weights: a detector on its device."""
