"""The host's side: its registry, its detectors' inputs, and patches for its constructors."""
