"""Networks that read clips of frames: how their layers lie in time and space, and the maps that follow from them."""
