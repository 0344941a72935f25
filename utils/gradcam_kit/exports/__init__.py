"""Other formats of a finished run."""
