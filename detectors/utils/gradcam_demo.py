"""`python detectors/utils/gradcam_demo.py`: utils/gradcam_demo.py under the path of the first guide."""

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).resolve().parents[2] / "utils" / "gradcam_demo.py"), run_name="__main__")
