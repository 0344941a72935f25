"""`python -m utils.app`: a detector live in a browser."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from utils.gradcam_kit.app.command import HINTS, main
    from utils.gradcam_kit.base.command import run_command

    run_command(main, HINTS)
