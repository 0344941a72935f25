"""The live app: try a detector in a browser with `python -m utils.app`."""
