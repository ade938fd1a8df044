"""A task in a few words, for logs and listings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..storage.codec import NotPlainError, dump_json, encode

__all__ = ["in_short"]

_WIDTH: Final = 60
_SEGMENTS: Final = ("test", "valid", "train")


def in_short(definition: Any) -> str:
    """Return by what a person knows a task: its model and what it is tested on, or how it begins.

    Examples
    --------
    >>> in_short({
    ...     "model": {"class": "LinearModel", "kwargs": {"alpha": 0.1}},
    ...     "dataset": {"kwargs": {"segments": {"test": ("2020-01-01", "2020-03-31")}}},
    ... })
    'LinearModel test 2020-01-01..2020-03-31'
    >>> in_short({"x": 1, "y": [2, 3]})
    '{"x":1,"y":[2,3]}'
    """
    said = [_model_of(definition), _segment_of(definition)]
    text = " ".join(part for part in said if part) or _beginning(definition)
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"


def _model_of(definition: Any) -> str:
    name = _inside(definition, "model", "class")
    return name.rpartition(".")[2] if isinstance(name, str) else ""


def _segment_of(definition: Any) -> str:
    segments = _inside(definition, "dataset", "kwargs", "segments")
    for name in _SEGMENTS:
        segment = _inside(segments, name)
        if isinstance(segment, Mapping):  # as it is stored
            segment = segment.get("$tuple")
        if isinstance(segment, (list, tuple)) and len(segment) == 2:
            return f"{name} {_day(segment[0])}..{_day(segment[1])}"
    return ""


def _day(bound: Any) -> str:
    if isinstance(bound, Mapping):  # as it is stored
        bound = next(iter(bound.values()), "")
    return "" if bound is None else str(bound)[:10]


def _inside(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _beginning(definition: Any) -> str:
    try:
        return dump_json(encode(definition)).decode().strip()
    except (NotPlainError, ValueError):
        return str(definition)
