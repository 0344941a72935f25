"""What a run leaves on disk: drawn, written and read."""
