"""Are the maps true? Metrics, controls, intervals."""
