"""Masks, landmarks and clicks beside an image."""
