"""A command's flags, made from the table of options."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any, get_args, get_origin

from ..base.command import OneLineParser, path_text, unknown_value, whole
from ..base.errors import InputError
from .options import Option, method_names, options_of

FEW = 12  # up to this many flags, --help shows all of them


class OptionParser(OneLineParser):
    """Parses all flags of a command. `--help` shows the basic ones, `--help-all` every one."""

    def __init__(self, command: str, description: str, every: bool = False) -> None:
        """`every`: `--help` shows every flag."""
        super().__init__(command if command.startswith("python") else f"python {command}", description)
        self.command = command
        self.options = [(heading, option) for heading, option in options_of(command) if option.flags]
        if len(self.options) > FEW:
            self.lists_all = "--help-all"
            text = f"show all {len(self.options)} flags, not only these"
            self.add_argument(self.lists_all, nargs=0, action=_HelpAll, default=argparse.SUPPRESS, help=text)
        groups = {heading: self.add_argument_group(heading) for heading in dict(self.options)}
        for heading, option in self.options:
            argument = _argument(option)
            if not (every or option.basic or len(self.options) <= FEW):
                argument["help"] = argparse.SUPPRESS
            groups[heading].add_argument(*option.flags, **argument)

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """Parse `args` as argparse does. Raises InputError, also for a flag without another flag that it needs."""
        parsed = super().parse_args(args, namespace)
        for _, option in self.options:
            if option.needs and getattr(parsed, option.name) and not getattr(parsed, option.needs.lstrip("-")):
                raise InputError(f"{option.flags[0]} needs {option.needs}: give both")
        # The module that --detector names may register methods. Then the settings check the name after its import.
        method, names = getattr(parsed, "gradcam_method", None), method_names()
        if method and method not in names and not getattr(parsed, "detector", None):
            raise unknown_value("--gradcam_method", method, names)
        return parsed

    def config(self, parsed: argparse.Namespace) -> dict[str, Any]:
        """Map each YAML key to its flag's value, or to None if the flag is not given."""
        return {option.key: getattr(parsed, option.key) for _, option in self.options if option.key}

    @property
    def flag_names(self) -> dict[str, str]:
        """Each YAML key → the flag that sets it, for messages."""
        return {option.key: option.flags[0] for _, option in self.options if option.key and option.sets}


class _HelpAll(argparse.Action):
    def __call__(self, parser: Any, *_: Any, **__: Any) -> None:
        OptionParser(parser.command, parser.description, every=True).print_help()
        parser.exit()


def _argument(option: Option) -> dict[str, Any]:
    from_yaml = "as the YAML says, else " if option.key else ""
    by_argparse = not option.key and not option.otherwise  # argparse prints a default that it knows
    text = option.default_text if option.sets and not option.required and not by_argparse else ""
    argument: dict[str, Any] = {
        "dest": option.name,
        "default": None if option.key else option.default,
        "help": f"{option.help} (default: {from_yaml}{text})" if text else option.help,
    }
    if option.type is bool:
        return {**argument, "action": "store_true" if option.sets else "store_false"}
    if option.required and not option.key:
        argument["required"] = True
    if option.bare is not None:
        argument.update(nargs="?", const=option.bare)
    kind = get_origin(option.type)
    if kind is tuple:
        argument.update(nargs=len(get_args(option.type)), type=get_args(option.type)[0])
    elif kind is list:
        argument["nargs"] = "+"
    else:
        kind = path_text if option.path and not option.key else option.type  # the settings expand a path that has a key
        argument["type"] = whole(int(option.least)) if option.type is int else kind
    if option.key == "gradcam_method":
        return {**argument, "metavar": f"{{{','.join(option.choices)}}}"}
    return {**argument, "choices": option.choices or None, "metavar": option.metavar}
