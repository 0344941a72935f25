"""Two runs of the same data side by side."""
