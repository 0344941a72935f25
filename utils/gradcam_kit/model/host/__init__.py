"""What a host tree brings with it: its registry, what its detectors are given, weights that are not loaded."""
