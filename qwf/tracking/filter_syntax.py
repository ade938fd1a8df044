"""The grammar of filters and orders, and what they mean as data.

Follows MLflow's search language; on top of it OR, NOT and parentheses, IN for every column,
IS NULL for every column, params and tags compared as numbers, times written as dates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from ..errors import FilterError
from .filter_columns import (
    ORDERING,
    PATTERN,
    Column,
    Value,
    quoting_hint,
    read_column,
    read_value,
)
from .filter_tokens import Scanner, Token

__all__ = [
    "AllOf",
    "AnyOf",
    "Comparison",
    "Condition",
    "SortKey",
    "parse_condition",
    "parse_sort_keys",
]

# Far more than anyone writes, and far from where Python's own stack ends.
MAX_DEPTH: Final = 50

_UNEQUAL: Final = ("!=", "<>")
_MISSPELT: Final = {"=>": ">=", "=<": "<=", "===": "=", "!==": "!="}


@dataclass(frozen=True)
class Comparison:
    """A column compared with one value, with several (IN) or with none (IS NULL).

    Negated, it is true of the values for which it would be false, not of missing ones.
    """

    column: Column
    operator: str
    values: tuple[Value, ...]
    negated: bool


@dataclass(frozen=True)
class AllOf:
    """Conditions joined by AND."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True)
class AnyOf:
    """Conditions joined by OR."""

    parts: tuple[Condition, ...]


Condition: TypeAlias = "Comparison | AllOf | AnyOf"


@dataclass(frozen=True)
class SortKey:
    """A column to sort by."""

    column: Column
    descending: bool


def parse_condition(text: str) -> Condition:
    """Read a filter; NOT is passed on to the comparisons.

    Raises
    ------
    FilterError
        If it is no filter.
    """
    scanner = Scanner(text, "filter")
    if scanner.token.kind == "end":
        return AllOf(())
    return _Grammar(scanner).whole()


def parse_sort_keys(clauses: Iterable[str]) -> tuple[SortKey, ...]:
    """Read an order: columns separated by commas, each with ASC, DESC or nothing.

    Raises
    ------
    FilterError
        If one of the texts is no order or is empty, or a column is there twice.
    """
    keys: dict[Column, SortKey] = {}
    for text in clauses:
        scanner = Scanner(text, "order")
        _read_sort_key(scanner, keys)
        while scanner.take_if(","):
            _read_sort_key(scanner, keys)
        if scanner.token.kind != "end":
            hint = quoting_hint(scanner.token)
            raise scanner.mistake("ASC, DESC, a comma or the end", hint)
    return tuple(keys.values())


def _read_sort_key(scanner: Scanner, keys: dict[Column, SortKey]) -> None:
    first = scanner.token
    column = read_column(scanner)
    if column in keys:
        raise scanner.mistake("each column once", f"{column} is in the order already.", at=first)
    direction = scanner.take_if("ASC", "DESC")
    keys[column] = SortKey(column, direction is not None and direction.keyword == "DESC")


class _Grammar:
    """One method per level of precedence; each reads as far as its level goes."""

    def __init__(self, scanner: Scanner) -> None:
        self._scanner = scanner
        self._open: list[Token] = []

    def whole(self) -> Condition:
        condition = self._either()
        if self._scanner.token.kind != "end":
            raise self._unfinished()
        return condition

    def _either(self) -> Condition:
        parts = [self._every()]
        while self._scanner.take_if("OR"):
            parts.append(self._every())
        return parts[0] if len(parts) == 1 else AnyOf(tuple(parts))

    def _every(self) -> Condition:
        parts = [self._term()]
        while self._scanner.take_if("AND"):
            parts.append(self._term())
        return parts[0] if len(parts) == 1 else AllOf(tuple(parts))

    def _term(self) -> Condition:
        negative = False
        while self._scanner.take_if("NOT"):
            negative = not negative
        condition = self._group() if self._scanner.token.keyword == "(" else self._comparison()
        return _opposite(condition) if negative else condition

    def _group(self) -> Condition:
        if len(self._open) == MAX_DEPTH:
            raise self._scanner.mistake(f"at most {MAX_DEPTH} parentheses within each other")
        self._open.append(self._scanner.take())
        condition = self._either()
        if not self._scanner.take_if(")"):
            raise self._unfinished()
        self._open.pop()
        return condition

    def _unfinished(self) -> FilterError:
        if self._open:
            hint = f"the parenthesis at position {self._open[-1].position} is not closed."
            return self._scanner.mistake('AND, OR or ")"', hint)
        token = self._scanner.token
        hint = {"&": "write AND.", "|": "write OR.", ",": "write AND."}.get(token.written, "")
        if token.glued and token.kind == "word":
            hint = "a quote within a quoted text is doubled."
        return self._scanner.mistake("AND, OR or the end", hint)

    def _comparison(self) -> Comparison:
        column = read_column(self._scanner)
        operator, negated = _read_operator(self._scanner, column)
        values: tuple[Value, ...] = ()
        if operator == "IN":
            values = self._list(column)
        elif operator != "IS NULL":
            values = (read_value(self._scanner, column, operator),)
        return Comparison(column, operator, values, negated)

    def _list(self, column: Column) -> tuple[Value, ...]:
        if not self._scanner.take_if("("):
            raise self._scanner.mistake("a list in parentheses after IN, as ('a', 'b')")
        values = [read_value(self._scanner, column, "IN")]
        # A comma before the end is how Python writes a tuple of one.
        while self._scanner.take_if(",") and self._scanner.token.keyword != ")":
            values.append(read_value(self._scanner, column, "IN"))
        if not self._scanner.take_if(")"):
            raise self._scanner.mistake('a comma or ")" in the list after IN')
        return tuple(values)


def _opposite(condition: Condition) -> Condition:
    # True where the condition is false. Where that is neither, because a value is missing, this
    # is neither too: so whatever looks for what is true need not know of the third outcome.
    if isinstance(condition, Comparison):
        return replace(condition, negated=not condition.negated)
    parts = tuple(_opposite(part) for part in condition.parts)
    return AnyOf(parts) if isinstance(condition, AllOf) else AllOf(parts)


def _read_operator(scanner: Scanner, column: Column) -> tuple[str, bool]:
    """Return an operator of the column or IS NULL, and whether it is negated."""
    first = scanner.token
    if scanner.take_if("IS"):
        negation = scanner.take_if("NOT")
        if not scanner.take_if("NULL"):
            raise scanner.mistake("NULL or NOT NULL after IS", "values are compared by = or !=.")
        return "IS NULL", negation is not None
    if first.kind == "operator":
        scanner.take()
        negated = first.written in _UNEQUAL
        operator = "=" if negated or first.written == "==" else first.written
    else:
        negated = scanner.take_if("NOT") is not None
        word = scanner.take_if("LIKE", "ILIKE", "IN")
        if negated and not word:
            raise scanner.mistake("LIKE, ILIKE or IN after NOT")
        operator = word.keyword if word else ""
    if operator not in column.operators:
        known = f"{', '.join(column.operators)} or IS NULL after {column}"
        raise scanner.mistake(known, _hint_for_operator(column, first, operator), at=first)
    return operator, negated


def _hint_for_operator(column: Column, token: Token, operator: str) -> str:
    if token.written in _MISSPELT:
        return f"write {_MISSPELT[token.written]}."
    if token.keyword == "BETWEEN":
        return f"write {column} >= ... AND {column} <= ..."
    if operator in PATTERN:
        return f"{column} is a number, and {operator} compares texts."
    if operator in ORDERING:
        return f"{column} is a text, and {operator} compares numbers."
    return quoting_hint(token)
