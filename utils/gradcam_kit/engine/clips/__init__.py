"""Networks that read clips of frames: their layers in time and space, and their maps."""
