"""`python -m utils.gradcam_kit.settings.options_page > docs/options.md`: the table of options for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import get_origin

from .options import APP, DEMO, EVALUATE, OPTIONS, Option, options_of

HEAD = """# Options

This page is written by `python -m utils.gradcam_kit.settings.options_page`. `--help` shows the flags to begin with,
`--help-all` every flag. Flags win over `config/test_config.yaml`, which wins over the detector's YAML (as in the host).
See also: how [datasets](datasets.md) lie on disk, which [map](reading_maps.md) to ask for, how maps are
[measured](faithfulness.md), and [single images](report.md).
"""
COLUMNS = "| Flag | YAML key | Default | What |\n|---|---|---|---|"
RESUME = """A run that is continued with `--resume` may have other values of {}:
no output depends on them. Any other option has to be what it was.
"""


def page() -> str:
    """docs/options.md."""
    first = list(options_of(EVALUATE))
    known = [option for _, option in first]
    free = [option for option in OPTIONS.values() if not option.outputs]
    parts = [HEAD, f"## {EVALUATE}\n", *_tables(first), RESUME.format(_flags(free))]
    for command in (DEMO, APP):
        options = list(options_of(command))
        own = [(heading, option) for heading, option in options if option not in known]
        shared = [option for _, option in options if option in known]
        parts += [f"## {command}\n", *_tables(own), f"As for {EVALUATE}: {_flags(shared)}.\n"]
    return "\n".join(parts)


def _flags(options: Iterable[Option]) -> str:
    return ", ".join(f"`{option.flags[0]}`" for option in options if option.flags)


def _tables(options: list[tuple[str, Option]]) -> Iterator[str]:
    for heading in dict(options):
        rows = [_row(option) for its, option in options if its == heading]
        yield "\n".join([f"### {heading[0].upper()}{heading[1:]}\n", COLUMNS, *rows, ""])


def _row(option: Option) -> str:
    several = " ..." if get_origin(option.type) in (list, tuple) else ""
    flags = ", ".join(f"`{flag}`" for flag in option.flags)
    value = f" {option.metavar}{several}" if option.metavar and option.flags else ""
    key = f"`{option.key}`" if option.key else ""
    choices = f"; allowed: {', '.join(f'`{choice}`' for choice in option.choices)}" if option.choices else ""
    what = option.help.replace("<", "&lt;") + choices
    return f"| {flags}{value} | {key} | {option.default_text} | {what} |"


if __name__ == "__main__":
    print(page(), end="")
