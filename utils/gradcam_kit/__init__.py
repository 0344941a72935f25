"""Where in the face a deepfake detector found its evidence: the library behind `utils/gradcam.py`."""
