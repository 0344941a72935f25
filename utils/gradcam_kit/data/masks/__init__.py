"""Masks, landmarks and clicks that belong to an image."""
