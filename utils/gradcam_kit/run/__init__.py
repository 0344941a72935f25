"""The run of test_with_gradcam.py: from datasets to files."""
