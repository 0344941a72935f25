"""python -m utils.report RUN_DIR"""

from utils.command import run_command
from utils.report.page import main

if __name__ == "__main__":
    run_command(main)
