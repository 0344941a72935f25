"""The report of a run: page, regions, mean maps, figures and tables for papers."""
