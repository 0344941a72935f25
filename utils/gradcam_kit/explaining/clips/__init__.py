"""Clips of frames explained."""
