"""test_with_gradcam.py, from data sets to files."""
