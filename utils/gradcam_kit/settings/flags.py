"""The flags of a command, from the table of options."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any, get_args, get_origin

from ..base.command import OneLineParser, path_text, unknown_value, whole
from ..base.errors import InputError
from .options import Option, method_names, options_of

FEW = 12  # flags that --help shows at once


class OptionParser(OneLineParser):
    """Knows all flags of a command. `--help` shows those that a newcomer needs, `--help-all` (`every`) the rest too."""

    def __init__(self, command: str, description: str, every: bool = False) -> None:
        """`every`: `--help` shows every flag."""
        super().__init__(description)
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
        """As argparse. Raises InputError, also for a flag that means nothing without another."""
        parsed = super().parse_args(args, namespace)
        for _, option in self.options:
            if option.needs and getattr(parsed, option.name) and not getattr(parsed, option.needs.lstrip("-")):
                raise InputError(f"{option.flags[0]} needs {option.needs}: give both")
        # A module of the user's, named by --detector, may register methods: then the settings check, once it is there.
        method, names = getattr(parsed, "gradcam_method", None), method_names()
        if method and method not in names and not getattr(parsed, "detector", None):
            raise unknown_value("--gradcam_method", method, names)
        return parsed

    def config(self, parsed: argparse.Namespace) -> dict[str, Any]:
        """YAML key → what its flag says, None where it is not given."""
        return {option.key: getattr(parsed, option.key) for _, option in self.options if option.key}

    @property
    def flag_names(self) -> dict[str, str]:
        """YAML key → the flag that sets it, for messages."""
        return {option.key: option.flags[0] for _, option in self.options if option.key and option.sets}


class _HelpAll(argparse.Action):
    def __call__(self, parser: Any, *_: Any, **__: Any) -> None:
        OptionParser(parser.command, parser.description, every=True).print_help()
        parser.exit()


def _argument(option: Option) -> dict[str, Any]:
    """What argparse is told of an option."""
    from_yaml = "as the YAML says, else " if option.key else ""
    by_argparse = not option.key and not option.otherwise  # it adds a default that it knows
    text = option.default_text if option.sets and not option.required and not by_argparse else ""
    told: dict[str, Any] = {
        "dest": option.name,
        "default": None if option.key else option.default,
        "help": f"{option.help} (default: {from_yaml}{text})" if text else option.help,
    }
    if option.type is bool:
        return {**told, "action": "store_true" if option.sets else "store_false"}
    if option.required and not option.key:
        told["required"] = True
    if option.bare is not None:
        told.update(nargs="?", const=option.bare)
    kind = get_origin(option.type)
    if kind is tuple:
        told.update(nargs=len(get_args(option.type)), type=get_args(option.type)[0])
    elif kind is list:
        told["nargs"] = "+"
    else:
        kind = path_text if option.path and not option.key else option.type  # with a key the settings do it
        told["type"] = whole(int(option.least)) if option.type is int else kind
    if option.key == "gradcam_method":
        return {**told, "metavar": f"{{{','.join(option.choices)}}}"}
    return {**told, "choices": option.choices or None, "metavar": option.metavar}
