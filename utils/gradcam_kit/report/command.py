"""`python -m utils.report`: a run's page; with `figure` or `table`, one for a paper; with `compare`, two runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..base.allowed import FIGURE_COLUMNS, FIGURE_FONTS, FIGURE_FORMATS
from ..base.command import OneLineParser, positive
from ..base.errors import InputError

RUN = "a run's folder, its --gradcam_output_dir"


def main(argv: Sequence[str]) -> int:
    """Run the command that the first argument names. A run's folder with such a name is given as ./figure."""
    commands = {"figure": figure, "compare": compare, "table": table}
    if argv and argv[0] in commands:
        commands[argv[0]](argv[1:])
    else:
        page(argv)
    return 0


def page(argv: Sequence[str]) -> None:
    """Rewrite a run's page and all missing files. Raises InputError, as do the other commands."""
    p = OneLineParser(
        "python -m utils.report RUN",
        "Rewrite a run's page, index.html, and any missing files from the run's database. Other commands,"
        " each with its own --help:"
        " figure (samples for a paper), table (measurements for a paper), compare (two runs of the same data).",
    )
    p.add_argument("run_dir", type=Path, help=RUN)
    p.add_argument(
        "--anonymous", type=Path, metavar="DIR", help="write a page to share into this new folder, without absolute"
        " paths, user or machine names, or file hashes; the run's own page stays"
    )  # fmt: skip
    args = p.parse_args(argv)
    from ..run.exports import write_files
    from .page import write_anonymous, write_report

    if args.anonymous is not None:
        print(write_anonymous(args.run_dir, args.anonymous))
        return
    write_files(args.run_dir)
    print(write_report(args.run_dir))


def figure(argv: Sequence[str]) -> None:
    p = OneLineParser(
        "python -m utils.report figure RUN -o FILE",
        "Draw samples of a run as a figure for a paper: images x (original, mask, layers).",
    )
    p.add_argument(
        "run_dirs", type=Path, nargs="+", metavar="run_dir", help=RUN + "; several runs must hold the same images"
    )
    p.add_argument(
        "--samples", nargs="+", default=[], metavar="I", help="numbers i of the folders sample<i>/, or @FILE, a CSV"
        " of samples chosen on the page; none: the first three of the page"
    )  # fmt: skip
    p.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help=f"{', '.join(FIGURE_FORMATS)}")
    p.add_argument("--dataset", help="needed if the run has several")
    p.add_argument("--layers", nargs="+", metavar="LAYER", help="default: all layers of the run")
    p.add_argument("--methods", nargs="+", metavar="METHOD", help="methods to show, in this order")
    p.add_argument("--column", choices=tuple(FIGURE_COLUMNS), default="double", help="width of a text column")
    p.add_argument("--width", type=float, metavar="INCHES", help="instead of --column")
    p.add_argument(
        "--font_size", type=positive, default=8, metavar="POINTS", help="size of text; smaller if it does not fit"
    )
    p.add_argument("--font", choices=FIGURE_FONTS, default="sans", help="serif goes with Times")
    p.add_argument(
        "--titles", nargs="+", default=[], metavar="TITLE", help="titles for all columns, instead of the defaults"
    )
    p.add_argument("--letters", action="store_true", help="put (a), (b), ... before the titles")
    args = p.parse_args(argv)
    from .figure import FigureStyle, write_figure
    from .paper import chosen_samples

    width = FIGURE_COLUMNS[args.column] if args.width is None else args.width
    style = FigureStyle(
        width=width, font_size=args.font_size, titles=args.titles, font=args.font, lettered=args.letters
    )
    samples = chosen_samples(args.samples, args.dataset) if args.samples else []
    write_figure(args.run_dirs, args.output, samples, args.dataset, args.layers, args.methods, style)


def table(argv: Sequence[str]) -> None:
    """Write a table for a paper: detection by forgery, or the results of --evaluate_explanations."""
    p = OneLineParser(
        "python -m utils.report table RUN -o FILE",
        "Write a table for a paper, as LaTeX (booktabs) or CSV: forgeries x runs, with intervals and DF40's"
        " group means; or maps x metrics, from --evaluate_explanations.",
    )
    p.add_argument("run_dirs", type=Path, nargs="+", metavar="run_dir", help=RUN)
    p.add_argument(
        "--of",
        choices=("detection", "explanations"),
        help="default: explanations if one run with --evaluate_explanations is given, else detection",
    )
    p.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help=".tex or .csv")
    p.add_argument(
        "--metrics", nargs="+", metavar="METRIC", help="default: all for explanations, auc for detection in .tex"
    )
    p.add_argument("--dataset", help="needed if the run has several")
    args = p.parse_args(argv)
    from .paper import SOURCE, write_detection_table, write_explanation_table

    (first, *others), output = args.run_dirs, args.output
    of = args.of or ("explanations" if not others and (first / SOURCE).is_file() else "detection")
    if of == "detection":
        write_detection_table(args.run_dirs, output, args.metrics, args.dataset)
    elif others:
        raise InputError("--of explanations: give one run with --evaluate_explanations")
    else:
        write_explanation_table(first, output, args.metrics, args.dataset)


def compare(argv: Sequence[str]) -> None:
    p = OneLineParser(
        "python -m utils.report compare RUN RUN -o DIR",
        "Compare two runs of the same data: metrics with paired intervals, the frames on which they"
        " disagree, their maps side by side. For two checkpoints, methods or detectors.",
    )
    p.add_argument("run_a", type=Path, help=RUN)
    p.add_argument("run_b", type=Path, help="another one")
    p.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="new folder for the page (index.html)"
    )
    p.add_argument("--samples", type=positive, default=60, metavar="N", help="maximum samples shown per dataset")
    p.add_argument(
        "--anonymous", action="store_true", help="make a page to share: no paths or hashes; the runs are called A and B"
    )
    args = p.parse_args(argv)
    from .comparison import write_comparison

    write_comparison(args.run_a, args.run_b, args.output, args.samples, args.anonymous)
