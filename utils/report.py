"""`python -m utils.report`: a run's page again; figure, table and compare."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from utils.gradcam_kit.base.command import run_command
    from utils.gradcam_kit.report.command import main

    run_command(main)
