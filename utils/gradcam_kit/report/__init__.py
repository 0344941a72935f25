"""A finished run: page, regions, mean maps, exports."""
