"""Explaining of clips."""
