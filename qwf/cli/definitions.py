"""Definitions of tasks in a file: JSON or YAML."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Final

from ..errors import CommandLineError
from ..storage.codec import decode, load_json

__all__ = ["read_definitions"]

# YAML 1.1 takes 1e-3 for text, and everybody means the number.
_FLOAT: Final = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+\Z")


def read_definitions(name: str) -> list[dict[str, Any]]:
    """Return the definitions in a file, which holds one or a list of them; ``-`` is standard input.

    JSON may hold tuples, dates and so on in the form in which a pool keeps them.

    Raises
    ------
    CommandLineError
        If it is neither JSON nor YAML, or holds something else.
    """
    data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    try:
        found = _parsed(name, data)
    except ValueError as error:
        said = " ".join(str(error).split())
        raise CommandLineError(f"{name} cannot be read: {said}. Nothing was inserted.") from error
    definitions = found if isinstance(found, list) else [found]
    for number, one in enumerate(definitions):
        if not isinstance(one, dict):
            raise CommandLineError(
                f"{name} holds a {type(one).__name__} as definition {number}; expected a dict, or "
                "a list of dicts. Nothing was inserted."
            )
    return definitions


def _parsed(name: str, data: bytes) -> Any:
    if name.endswith(".json") or (name == "-" and data.lstrip()[:1] in (b"{", b"[")):
        return decode(load_json(data))
    if name == "-" or name.endswith((".yaml", ".yml")):
        return _parse_yaml(data)
    raise CommandLineError(f"{name} is neither .json nor .yaml nor .yml. Nothing was inserted.")


def _parse_yaml(data: bytes) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads floats as YAML 1.2 does."""

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
    try:
        return yaml.load(data, Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
