"""Five detectors, and forgeries whose place is known: what a map that is faithful has to find."""
