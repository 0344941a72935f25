"""python -m utils.report RUN_DIR, or figure RUN_DIR: the page of a run, or a figure of some of its samples."""

from __future__ import annotations

from typing import Sequence

from utils.command import run_command


def main(argv: Sequence[str]) -> int:
    """The command that the first argument names; a run's folder of that name is given as ./figure."""
    if argv and argv[0] == "figure":
        from utils.report.paper_figure import main as figure

        return figure(argv[1:])
    from utils.report.page import main as page

    return page(argv)


if __name__ == "__main__":
    run_command(main)
