"""The choice of a map by testing candidates on the detector, and the check of a single map."""
