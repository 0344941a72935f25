"""`python -m utils.dataset_json`: a folder of images or a CSV as the hosts' dataset JSON."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from utils.gradcam_kit.base.command import run_command
    from utils.gradcam_kit.data.dataset_json import main

    run_command(main)
