"""`python -m utils.gradcam_kit.settings.options_page > docs/options.md`: write the table of options as a page."""

from __future__ import annotations

from textwrap import fill
from typing import get_origin

from .options import EVALUATE, HERE, OPTIONS, TABLE, Option

HEAD = """# Options

This page is written by `python -m utils.gradcam_kit.settings.options_page`. `--help` shows the basic flags,
`--help-all` every flag. Flags win over `config/test_config.yaml`, which wins over the detector's YAML.

A resumed run may change
{}
"""
COLUMNS = "| Flag | YAML key | Default | Meaning |\n|---|---|---|---|"


def page() -> str:
    free = ", ".join(f"`{[*option.flags, option.key][0]}`" for option in OPTIONS.values() if not option.outputs)
    parts = [HEAD.format(fill(f"{free}: no output depends on them.", 120, break_on_hyphens=False))]
    for heading, commands, options in sorted(TABLE, key=lambda group: EVALUATE not in group[1]):
        title = f"## {heading[0].upper()}{heading[1:]} ({', '.join(f'`{command}`' for command in commands)})\n"
        parts.append("\n".join([title, COLUMNS, *map(_row, options), ""]))
    return "\n".join(parts)


def _row(option: Option) -> str:
    several = " ..." if get_origin(option.type) in (list, tuple) else ""
    flags = ", ".join(f"`{flag}`" for flag in option.flags)
    value = f" {option.metavar}{several}" if option.metavar and option.flags else ""
    key = f"`{option.key}`" if option.key else ""
    choices = f"; allowed: {', '.join(f'`{choice}`' for choice in option.choices)}" if option.choices else ""
    here = [f"; {of}: {change['default'] or 'required'}" for (of, name), change in HERE.items() if name == option.name]
    default = option.default_text + "".join(here)
    return f"| {flags}{value} | {key} | {default} | {option.help.replace('<', '&lt;')}{choices} |"


if __name__ == "__main__":
    print(page(), end="")
