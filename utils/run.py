"""`python -m utils.run merge`: join the shards of a run."""

import importlib
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from utils.gradcam_kit.base.command import run_command
    from utils.gradcam_kit.run.merging import main

    run_command(main)
else:  # version 1.1 had a folder of this name
    sys.modules[__name__] = importlib.import_module("utils.gradcam_kit.run")
