"""Try a detector live in a browser: `python -m utils.app`."""
