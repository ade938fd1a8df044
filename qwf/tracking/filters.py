"""Which runs a search finds and in which order: pure functions of columns of values.

A missing value makes a comparison neither true nor false, as in SQL, and only IS NULL finds it. A
metric that is nan is unequal to every number and neither greater nor less, as in MLflow.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias

from .filter_columns import ORDERING, PATTERN, Column
from .filter_syntax import (
    AllOf,
    Comparison,
    Condition,
    SortKey,
    parse_condition,
    parse_sort_keys,
)

__all__ = ["Columns", "Filter", "Order", "parse_filter", "parse_order"]

# (family, key) -> one value per row, None where missing.
Columns: TypeAlias = Callable[[str, str], Sequence[Any]]

# As functions of the value in the filter and then that of the run.
_TURNED_ROUND: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "<": operator.gt,
    "<=": operator.ge,
    ">": operator.lt,
    ">=": operator.le,
}
_TIE_BREAKERS: Final = (
    SortKey(Column("attributes", "start_time"), descending=True),
    SortKey(Column("attributes", "run_id"), descending=False),
)


@dataclass(frozen=True)
class Filter:
    """A condition on runs; made by `parse_filter`."""

    condition: Condition

    def positions(self, column: Columns, count: int) -> list[int]:
        """Return the rows that match, ascending.

        Parameters
        ----------
        column : callable
            ``column(family, key)`` gives one value per row, None where missing. Family is
            "attributes", "params", "tags" (texts), or "metrics" (floats); the attributes
            start_time and end_time are milliseconds since the epoch, all others texts. Asked at
            most once for each column, and not at all when no row needs it.
        count : int
            Number of rows.
        """
        return list(_matching(self.condition, range(count), _Cache(column)))


@dataclass(frozen=True)
class Order:
    """What runs are sorted by, and ties by; made by `parse_order`."""

    keys: tuple[SortKey, ...]

    def sorted(self, positions: Sequence[int], column: Columns) -> list[int]:
        """Return the rows in this order: numbers before nan, and missing values last, both ways.

        Ties are broken by the start, newest first, and then by the id.

        Parameters
        ----------
        positions : sequence of int
            Rows, in any order.
        column : callable
            As in `Filter.positions`.
        """
        values = _Cache(column)
        rows = list(positions)
        for key in reversed((*self.keys, *_TIE_BREAKERS)):
            rows = _sorted_by(key, rows, values[key.column])
        return rows


def parse_filter(text: str) -> Filter:
    """Read a filter in MLflow's search language and a little more.

    Parameters
    ----------
    text : str
        Comparisons joined by AND, OR, NOT and parentheses; blank to match everything. Keywords
        may be in any case. A comparison is a column, an operator and a value:

        - Columns are ``metrics.IC``, ``params.model``, ``tags.owner`` and the attributes run_id,
          run_name, status, experiment_id, parent_id, start_time and end_time, with or without
          ``attributes.`` before them. A name with spaces or other signs than ``_ . - / :`` is
          quoted: ``tags.`has space```.
        - ``= != IN (...) NOT IN (...) LIKE ILIKE NOT LIKE NOT ILIKE`` compare texts, in single or
          double quotes; such a quote is doubled within. In LIKE, ``%`` stands for any text, ``_``
          for any character, and a backslash before one of them takes that away; ILIKE ignores
          case.
        - ``= != < <= > >= IN NOT IN`` compare metrics and times with numbers; ``= nan`` and
          ``!= nan`` tell metrics that are nan from those that are not.
        - ``< <= > >=`` compare params and tags with a number; a text that is none counts as
          missing there.
        - Times are milliseconds since the epoch, or a quoted ``'2023-11-14'`` or
          ``'2023-11-14 22:13:20'``, which is in UTC if no offset follows. A date alone is the
          midnight with which it begins.
        - IS NULL and IS NOT NULL ask whether there is a value. No other comparison matches a
          missing value, under NOT neither.

    Raises
    ------
    FilterError
        If the text is no filter; it says where, and what was expected there.

    Examples
    --------
    >>> runs = {"IC": [0.05, None, 0.01]}
    >>> parse_filter("metrics.IC > 0.02").positions(lambda family, key: runs[key], 3)
    [0]
    >>> parse_filter("NOT metrics.IC > 0.02").positions(lambda family, key: runs[key], 3)
    [2]
    """
    return Filter(parse_condition(text))


def parse_order(clauses: str | Sequence[str] | None) -> Order:
    """Read what runs are to be sorted by.

    Parameters
    ----------
    clauses : str, sequence of str or None
        Columns as in `parse_filter`, each followed by ASC, DESC or nothing, which is ASC. Several
        are separated by commas or are texts of their own. Params and tags are sorted as texts.

    Raises
    ------
    FilterError
        If a text is no order, or a column is in it twice.

    Examples
    --------
    >>> runs = {"IC": [0.05, None, 0.01], "start_time": [1, 2, 3], "run_id": ["a", "b", "c"]}
    >>> parse_order("metrics.IC DESC").sorted(range(3), lambda family, key: runs[key])
    [0, 2, 1]
    """
    if isinstance(clauses, str):
        clauses = [clauses] if clauses.strip() else []
    return Order(parse_sort_keys(clauses or ()))


class _Cache(dict[Column, Sequence[Any]]):
    """The columns that were asked for."""

    def __init__(self, column: Columns) -> None:
        super().__init__()
        self._column = column

    def __missing__(self, key: Column) -> Sequence[Any]:
        values = self[key] = self._column(key.family, key.key)
        return values


# --- matching ------------------------------------------------------------------------------------


def _matching(condition: Condition, rows: Sequence[int], values: _Cache) -> Sequence[int]:
    """Return those of the rows for which the condition is true, in the same order."""
    if isinstance(condition, Comparison):
        return _compared(condition, rows, values[condition.column]) if rows else rows
    if isinstance(condition, AllOf):
        for part in condition.parts:
            rows = _matching(part, rows, values)
        return rows
    matched: set[int] = set()
    rest = rows
    for part in condition.parts:
        matched.update(_matching(part, rest, values))
        rest = [row for row in rest if row not in matched]
    return [row for row in rows if row in matched]


def _compared(comparison: Comparison, rows: Sequence[int], column: Sequence[Any]) -> list[int]:
    if comparison.operator == "IS NULL":
        return [row for row in rows if (column[row] is None) != comparison.negated]
    holds = _test(comparison)
    if comparison.column.is_text and comparison.operator in ORDERING:
        return [
            row
            for row in rows
            if (number := _number(column[row])) is not None and holds(number) != comparison.negated
        ]
    if comparison.negated:
        return [row for row in rows if (value := column[row]) is not None and not holds(value)]
    return [row for row in rows if (value := column[row]) is not None and holds(value)]


def _test(comparison: Comparison) -> Callable[[Any], Any]:
    """Return what tells whether a comparison that is not negated is true of a value."""
    name, value = comparison.operator, comparison.values[0]
    if name == "IN":
        return frozenset(comparison.values).__contains__
    if name == "=":
        return math.isnan if value != value else partial(operator.eq, value)
    if name in PATTERN:
        return _pattern(str(value), ignore_case=name == "ILIKE")
    return partial(_TURNED_ROUND[name], value)


def _number(text: str | None) -> float | None:
    # An underscore is part of a number for Python, and for people of a name: 2020_01.
    if text is None or "_" in text:
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return None if math.isnan(number) else number


def _pattern(pattern: str, *, ignore_case: bool) -> Callable[[str], Any]:
    pieces = [""]
    for part in re.findall(r"\\[%_\\]|.", pattern, re.DOTALL):
        if part == "%":
            pieces.append("")
        else:
            pieces[-1] += "." if part == "_" else re.escape(part[-1])
    first, *between, last = pieces if len(pieces) > 1 else (*pieces, "")
    # Each piece where it first occurs, for good: trying them further on could take for ever.
    found = "".join(
        f"(?=(?P<p{number}>.*?{piece}))(?P=p{number})"
        for number, piece in enumerate(filter(None, between))
    )
    rest = f".*{last}" if len(pieces) > 1 else ""
    flags = re.DOTALL | re.IGNORECASE if ignore_case else re.DOTALL
    return re.compile(f"{first}{found}{rest}", flags).fullmatch


# --- sorting -------------------------------------------------------------------------------------


def _sorted_by(key: SortKey, rows: list[int], column: Sequence[Any]) -> list[int]:
    present = [row for row in rows if (value := column[row]) is not None and value == value]
    # A reversed sort keeps the order of equal ones, too.
    present.sort(key=column.__getitem__, reverse=key.descending)
    nan = [row for row in rows if (value := column[row]) is not None and value != value]
    missing = [row for row in rows if column[row] is None]
    return present + nan + missing
