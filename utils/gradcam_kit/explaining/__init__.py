"""A model as all that explains it sees it, and what an explanation is."""
