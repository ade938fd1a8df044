"""What all commands have in common: their parser, their options, kinds of values."""

from __future__ import annotations

import argparse
import re
from typing import Any, Final

__all__ = ["Command", "add", "add_group", "count", "seconds", "seconds_of"]

_FORMS: Final = {"json": "print one JSON document (NaN is null there)", "csv": "print CSV"}
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


class _Formatter(argparse.HelpFormatter):
    """Wraps paragraphs and leaves indented lines, the examples, as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        lines = text.splitlines()
        return "\n".join(line if line[:1] == " " else fill(line, width, indent) for line in lines)


class Command(argparse.ArgumentParser):
    """One command; its options may stand before, between and after its other arguments."""

    def __init__(self, *, group: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        self._plain = group

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as `argparse` does, options anywhere."""
        # Mixing, argparse forgets that what follows -- is no option.
        if self._plain or "--" in (args or ()):
            return super().parse_known_args(args, namespace)
        self._plain = True  # while argparse parses it twice
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._plain = False


def add_group(commands: Any, name: str, text: str) -> Any:
    """Add a command that has commands of its own; return what those are added to."""
    group = commands.add_parser(name, help=text, description=text, group=True)
    return group.add_subparsers(
        dest="action", required=True, metavar="COMMAND", parser_class=Command
    )


def add(
    commands: Any,
    name: str,
    call: str,
    text: str,
    *,
    example: str,
    more: str = "",
    uri: bool = True,
    tables: str = "json csv",
) -> argparse.ArgumentParser:
    """Add one command that calls ``module.function`` with what was parsed."""
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}. {more}".strip(),
        epilog=f"example:\n  {example}",
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    command.set_defaults(call=tuple(call.split(".")))
    command.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )
    if uri:
        command.add_argument(
            "--uri", metavar="DIR", help="the store; default: QWF_URI, else ./qwf_store"
        )
    if tables:
        forms = command.add_mutually_exclusive_group()
        for form in tables.split():
            forms.add_argument(f"--{form}", action="store_true", help=_FORMS[form])
    return command


def seconds_of(age: str) -> float:
    """Return the seconds of an age.

    Examples
    --------
    >>> seconds_of("90s"), seconds_of("1.5h"), seconds_of("2w")
    (90.0, 5400.0, 1209600.0)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", age, flags=re.ASCII)
    if found is None:
        raise argparse.ArgumentTypeError(
            f"{age!r} is no age; expected a number and one of s, m, h, d, w, such as 30d"
        )
    return float(found[1]) * _UNITS[found[2]]


def seconds(text: str) -> float:
    """Return a length of time, in plain seconds or with a unit.

    Examples
    --------
    >>> seconds("0.5"), seconds("10m")
    (0.5, 600.0)
    """
    if re.fullmatch(r"\d+(?:\.\d+)?", text, flags=re.ASCII):
        return float(text)
    return seconds_of(text)


def count(text: str) -> int:
    """Return a number of things, which may be none."""
    if not re.fullmatch(r"\d+", text, flags=re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is no count; expected 0, 1, 2, ...")
    return int(text)
