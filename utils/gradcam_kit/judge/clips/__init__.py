"""Judging maps of clips: in time, and in time and space."""
