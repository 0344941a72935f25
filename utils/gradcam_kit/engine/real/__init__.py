"""Patches compared with those of real images, and exchanged for them."""
