"""`python -m utils.install_into_host`: this library into a host's training folder, or out of it."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from tools.install_into_host import main
    from utils.gradcam_kit.base.command import run_command

    run_command(main)
