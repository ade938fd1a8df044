"""Placeholders: ``<MODEL>`` stands for an object, ``<a.b.0>`` for a value of the configuration."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ..errors import ConfigError, PlaceholderError, suggest
from .configs import is_container, with_children

__all__ = ["fill_placeholder", "find_placeholders", "get_item_from_obj"]

_PLACEHOLDER: Final = re.compile(r"<([^<>]+)>")

_log = logging.getLogger("qwf.instantiate")


def fill_placeholder(config: Any, config_extend: Mapping[Any, Any]) -> Any:
    """Return a copy of a configuration with its placeholders replaced.

    A placeholder is a whole string in angle brackets. One that is a key of `config_extend` stands
    for its value there; another is read as a path in the configuration itself and stands for what
    is found there, with its placeholders replaced in turn. Where nothing is found, or the
    placeholder itself, it stays as it is (see `find_placeholders`).

    Parameters
    ----------
    config : dict or list
        The configuration. It is not changed.
    config_extend : dict
        ``{"<NAME>": value}``. The values are neither copied nor searched for placeholders.

    Returns
    -------
    dict or list
        Dicts, lists and tuples are new; all other objects are those of `config`.

    Raises
    ------
    PlaceholderError
        If a key of `config_extend` is not a placeholder. It is an AssertionError, too, as in Qlib.

    Examples
    --------
    >>> task = {"handler": {"fit_end": "<segments.train.1>"}, "segments": {"train": (2008, 2014)}}
    >>> record = {"model": "<MODEL>", "task": task}
    >>> fill_placeholder(record, {"<MODEL>": 7})["model"], record["model"]
    (7, '<MODEL>')
    >>> fill_placeholder(task, {})["handler"]
    {'fit_end': 2014}
    """
    for name in config_extend:
        if not isinstance(name, str) or not _PLACEHOLDER.fullmatch(name):
            raise PlaceholderError(
                f"cannot fill {name!r}: expected a placeholder such as '<MODEL>'. "
                f"Write it as '<{name}>'. Nothing was changed."
            )
    return _fill(config, config, config_extend, ())


class _CircleError(Exception):
    """A placeholder stands in what it stands for."""


def _fill(value: Any, config: Any, extend: Mapping[Any, Any], asked: tuple[str, ...]) -> Any:
    if is_container(value):
        return with_children(value, lambda child: _fill(child, config, extend, asked))
    match = _PLACEHOLDER.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value
    if value in extend:
        return extend[value]
    if value in asked:
        raise _CircleError(value)
    try:
        found = get_item_from_obj(config, match[1])
        return _fill(found, config, extend, (*asked, value))
    except (LookupError, ConfigError):
        _log.info("placeholder %s is neither given nor a path in the configuration", value)
    except _CircleError as circle:
        if circle.args[0] != value:
            raise
        _log.info("placeholder %s leads back to itself", value)
    return value


def find_placeholders(config: Any) -> list[tuple[str, str]]:
    """List the placeholders in a configuration.

    Returns
    -------
    list of (path, placeholder)
        In the order in which they stand there; the path can be given to `get_item_from_obj`.

    Examples
    --------
    >>> find_placeholders({"record": [{"kwargs": {"model": "<MODEL>", "topk": 50}}]})
    [('record.0.kwargs.model', '<MODEL>')]
    """
    return list(_placeholders(config, ()))


def _placeholders(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    if is_container(value):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _placeholders(child, (*path, str(key)))
    elif isinstance(value, str) and _PLACEHOLDER.fullmatch(value):
        yield ".".join(path), value


def get_item_from_obj(config: Any, name_path: str) -> Any:
    """Return what stands at a path of a configuration.

    Parameters
    ----------
    config : dict, list or tuple
        The configuration.
    name_path : str
        Keys, and positions of lists and tuples, joined by dots.

    Raises
    ------
    KeyError
        If a dict on the path lacks the key (the class is `PlaceholderError`).
    IndexError
        If a list on the path is too short.
    ValueError
        If something on the path has no parts, or a position is not a number (`ConfigError`).

    Examples
    --------
    >>> get_item_from_obj({"segments": {"test": ("2017-01-01", "2020-08-01")}}, "segments.test.1")
    '2020-08-01'
    """
    found = config
    for part in name_path.split("."):
        if isinstance(found, Mapping):
            if part not in found:
                raise PlaceholderError(
                    f"there is nothing at {name_path!r} in the configuration: no key {part!r}; "
                    f"{suggest(part, found)}"
                )
            found = found[part]
        elif isinstance(found, (list, tuple)) and part.isdecimal():
            if int(part) >= len(found):
                raise IndexError(
                    f"there is nothing at {name_path!r} in the configuration: position {part} of "
                    f"a {type(found).__name__} of {len(found)}."
                )
            found = found[int(part)]
        else:
            raise ConfigError(
                f"there is nothing at {name_path!r} in the configuration: {part!r} cannot be "
                f"looked up in a {type(found).__name__}."
            )
    return found
