"""Which map to draw: candidates tried by cause, a choice, the check of a single map. Needs torch alone."""
