"""What users log, checked and as plain numbers: values become floats, steps whole numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..errors import UnsafeNameError

__all__ = ["check_name", "column_of_steps", "columns_of_values", "number", "whole_step"]

# Kinds of NumPy's dtypes.
_WHOLE: Final = ("i", "u")
_NUMBERS: Final = ("f", "b", *_WHOLE)


def number(key: str, value: object) -> float:
    """Return a value as a float.

    Raises
    ------
    TypeError
        If it is no number, or none that a float can hold.
    """
    if isinstance(value, (str, bytes)):
        raise TypeError(
            f"metric {key!r} is {value!r}; expected a number. Nothing was logged; "
            "texts belong into set_tags or log_params."
        )
    try:
        return float(value)  # type: ignore[arg-type]  # numbers of NumPy, torch, Decimal ...
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(
            f"metric {key!r} is a {type(value).__name__}; expected a number that a float can "
            "hold. Nothing was logged."
        ) from error


def whole_step(step: object) -> int:
    """Return a step as a whole number.

    Raises
    ------
    TypeError
        If it is none of 64 bits.
    """
    try:
        whole = int(step)  # type: ignore[call-overload]  # refused below
    except (TypeError, ValueError, OverflowError):
        whole = None
    if whole is None or whole != step or not -(2**63) <= whole < 2**63:
        raise TypeError(
            f"step is {step!r}; expected a whole number of at most 64 bits. Nothing was logged."
        )
    return int(whole)


def check_name(key: object) -> None:
    """Refuse what cannot be the name of a metric.

    Raises
    ------
    UnsafeNameError
        If it is no text, or empty.
    """
    if not isinstance(key, str) or not key:
        raise UnsafeNameError("a metric", key, "a non-empty string is expected")


def columns_of_values(metrics: Any) -> dict[str, list[float]]:
    """Return name -> values of a frame, or of a mapping of sequences.

    Raises
    ------
    TypeError
        If it is neither, or a value is no number.
    ValueError
        If a name is impossible or appears twice, or the lengths differ.
    """
    if not isinstance(metrics, Mapping) and not _is_frame(metrics):
        raise TypeError(
            f"metrics are a {type(metrics).__name__}; expected a DataFrame, or a mapping from "
            "names to sequences of numbers. Nothing was logged."
        )
    columns: dict[str, list[float]] = {}
    for key, values in metrics.items():
        check_name(key)
        if key in columns:
            raise UnsafeNameError("a metric", key, "there are two columns of this name")
        columns[key] = _column(key, values)
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"metrics have the lengths {lengths}, not one. Nothing was logged.")
    return columns


def _is_frame(metrics: object) -> bool:
    return getattr(metrics, "ndim", None) == 2 and hasattr(metrics, "columns")


def _kind(array: object) -> object:
    return getattr(getattr(array, "dtype", None), "kind", None)


def _column(key: str, values: Any) -> list[float]:
    array = values.to_numpy() if hasattr(values, "to_numpy") else values
    dimensions = getattr(array, "ndim", 1)
    if dimensions != 1:
        raise TypeError(
            f"metric {key!r} has {dimensions} dimensions; expected 1. Nothing was logged."
        )
    if _kind(array) in _NUMBERS:
        return array.astype("float64").tolist()  # type: ignore[no-any-return]  # NumPy's
    return [value if type(value) is float else number(key, value) for value in _listed(key, array)]


def _listed(what: str, values: Any) -> list[Any]:
    if isinstance(values, (str, bytes, Mapping, set, frozenset)):
        values = None
    try:
        return list(values)
    except TypeError as error:
        raise TypeError(
            f"{what!r} is a {type(values).__name__}; expected a sequence. Nothing was logged."
        ) from error


def column_of_steps(metrics: Any, steps: Any, length: int) -> list[int]:
    """Return the steps of a history: those given, else a frame's index of integers, else 0, 1 ...

    Raises
    ------
    TypeError
        If one of them is no whole number.
    ValueError
        If there are more or fewer than values.
    """
    if steps is None:
        steps = metrics.index if _is_frame(metrics) else None
        if _kind(steps) not in _WHOLE:
            return list(range(length))
    array = steps.to_numpy() if hasattr(steps, "to_numpy") else steps
    if _kind(array) in _WHOLE:
        array = array.tolist()
    column = [
        step if type(step) is int and -(2**63) <= step < 2**63 else whole_step(step)
        for step in _listed("steps", array)
    ]
    if len(column) != length:
        raise ValueError(
            f"there are {len(column)} steps for {length} values of each metric. Nothing was logged."
        )
    return column
