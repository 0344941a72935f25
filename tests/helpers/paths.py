"""Where the repository's files are, and the names of its commands."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "test_with_gradcam.py"
DEMO = "utils/gradcam_demo.py"
