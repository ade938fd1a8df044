"""Which columns of runs there are, how they are named, and which values each is compared with."""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Final, TypeAlias

from ..errors import FilterError, suggest
from .filter_tokens import Scanner, Token
from .status import BROKEN, LOST, STATUSES

__all__ = [
    "ORDERING",
    "PATTERN",
    "Column",
    "Value",
    "quoting_hint",
    "read_column",
    "read_value",
]

_logger: Final = logging.getLogger("qwf.tracking")

FAMILIES: Final = {
    name: family
    for family, names in {
        "metrics": "metrics metric",
        "params": "params param parameters parameter",
        "tags": "tags tag",
        "attributes": "attributes attribute attr run",
    }.items()
    for name in names.split()
}
TIMES: Final = ("start_time", "end_time")
ATTRIBUTES: Final = ("run_id", "run_name", "status", "experiment_id", "parent_id", *TIMES)
ATTRIBUTE_ALIASES: Final = {
    "created": "start_time",
    "Created": "start_time",
    "run name": "run_name",
    "Run name": "run_name",
    "Run Name": "run_name",
}
# MLflow keeps these as tags, and its users ask for them as such.
TAG_ALIASES: Final = {"mlflow.runName": "run_name", "mlflow.parentRunId": "parent_id"}
_SHOWN_STATUSES: Final = (*STATUSES, LOST, BROKEN)

ORDERING: Final = ("<", "<=", ">", ">=")
EQUALITY: Final = ("=", "IN")
PATTERN: Final = ("LIKE", "ILIKE")
_WORDS: Final = ("AND", "OR", "NOT", "LIKE", "ILIKE", "IN", "IS", "NULL", "BETWEEN", "ASC", "DESC")

_BARE_KEY: Final = re.compile(r"[\w./:-]+")
_MOMENT: Final = re.compile(
    r"(?P<day>[0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[ T](?P<minute>[0-9]{2}:[0-9]{2})(?P<second>:[0-9]{2}(?:\.[0-9]{1,6})?)?"
    r"(?P<zone>Z|[+-][0-9]{2}:[0-9]{2})?)?"
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)

Value: TypeAlias = "str | float"


@dataclass(frozen=True)
class Column:
    """One value per run: a metric, param, tag or attribute."""

    family: str
    key: str

    @property
    def is_time(self) -> bool:
        """Whether the values are moments, in milliseconds."""
        return self.family == "attributes" and self.key in TIMES

    @property
    def is_text(self) -> bool:
        """Whether the values are texts and not numbers."""
        return self.family != "metrics" and not self.is_time

    @property
    def operators(self) -> tuple[str, ...]:
        """What the values can be compared by, apart from IS NULL; each may be negated."""
        if not self.is_text:
            return (*EQUALITY, *ORDERING)
        if self.family == "attributes":
            return (*EQUALITY, *PATTERN)
        return (*EQUALITY, *ORDERING, *PATTERN)

    def __str__(self) -> str:
        if _BARE_KEY.fullmatch(self.key):
            return f"{self.family}.{self.key}"
        return f"{self.family}.`{self.key.replace('`', '``')}`"


def read_column(scanner: Scanner) -> Column:
    """Take a column: a family, a dot and a name, either of them quoted or not; or an attribute.

    Raises
    ------
    FilterError
        If there is none, or no such family or attribute.
    """
    first = scanner.token
    if first.kind == "word" and first.keyword not in _WORDS:
        scanner.take()
        name, dot, key = first.written.partition(".")
    elif first.kind == "quoted" and first.written[0] != "'":
        scanner.take()
        name, dot, key = first.value, "", ""
        following = scanner.token
        if following.written[:1] == "." and following.glued:
            dot, key = ".", scanner.take().written[1:]
    else:
        swapped = first.kind in ("number", "quoted")
        raise scanner.mistake(
            "a column, as metrics.IC or params.model",
            "the column stands before the value it is compared with." if swapped else "",
        )
    if not dot:
        return _named(scanner, first, "attributes", name)
    if name not in FAMILIES:
        raise scanner.mistake(
            "metrics, params, tags or attributes before the dot",
            suggest(name.lower(), sorted(set(FAMILIES.values()))),
            at=first,
        )
    key = key or _read_quoted_key(scanner)
    return _named(scanner, first, FAMILIES[name], key)


def _read_quoted_key(scanner: Scanner) -> str:
    token = scanner.token
    if token.kind != "quoted" or not token.glued or not token.value:
        raise scanner.mistake("a name directly after the dot")
    return scanner.take().value


def _named(scanner: Scanner, first: Token, family: str, key: str) -> Column:
    if family == "tags" and key in TAG_ALIASES:
        return Column("attributes", TAG_ALIASES[key])
    if family != "attributes":
        return Column(family, key)
    name = ATTRIBUTE_ALIASES.get(key, key)
    if name not in ATTRIBUTES:
        raise _unknown_attribute(scanner, first, key)
    return Column(family, name)


def _unknown_attribute(scanner: Scanner, first: Token, key: str) -> FilterError:
    hint = suggest(key.lower(), ATTRIBUTES)
    if first.value in FAMILIES:
        hint = f"a dot and a name follow it directly, as {first.value}.x."
    elif first.value == key:
        others = ", ".join(str(Column(family, key)) for family in ("params", "metrics", "tags"))
        hint += f" Others are written with their family: {others}."
    return scanner.mistake("an attribute of runs", hint, at=first)


def quoting_hint(token: Token) -> str:
    """Return what to do if the token was meant to be part of the name before it."""
    if token.kind not in ("word", "other"):
        return ""
    return f"if {token} is part of a name, quote the name, as in tags.`has space`."


def read_value(scanner: Scanner, column: Column, operator: str) -> Value:
    """Take a value with which the operator can compare the column.

    Raises
    ------
    FilterError
        If it is of another type, or none that the column can have.
    """
    token = scanner.token
    quoted = token.kind == "quoted" and token.written[0] != "`"
    value: Value
    if column.is_text and operator not in ORDERING:
        if not quoted:
            raise scanner.mistake(f"a quoted text as {_quote(token)}", _hint_for_missing(token))
        value = _checked_text(scanner, column, operator)
    elif column.is_time and quoted:
        value = _moment(scanner, operator)
    elif token.kind != "number":
        expected = "a number"
        if column.is_time:
            expected += " of milliseconds or a quoted date as '2023-11-14 22:13:20'"
        raise scanner.mistake(expected, _hint_for_number(column, token))
    else:
        value = _checked_number(scanner, column, operator)
    scanner.take()
    return value


def _quote(token: Token) -> str:
    text = token.value if token.kind in ("word", "number", "quoted") else "x"
    return "'" + text.replace("'", "''") + "'"


def _hint_for_missing(token: Token) -> str:
    missing = token.keyword in ("NULL", "NONE")
    return "whether a value is missing is asked by IS NULL." if missing else ""


def _hint_for_number(column: Column, token: Token) -> str:
    if token.kind != "quoted":
        return _hint_for_missing(token)
    if _is_number(token.value):
        return f"write {token.value} without quotes."
    if column.is_text:
        return "texts are greater or less only as numbers; compare them by =, LIKE or IN."
    return ""


def _is_number(text: str) -> bool:
    token = Scanner(text, "filter").token
    return token.kind == "number" and token.written == text


def _checked_text(scanner: Scanner, column: Column, operator: str) -> str:
    text = scanner.token.value
    asks_status = column == Column("attributes", "status") and operator in EQUALITY
    if asks_status and text not in _SHOWN_STATUSES:
        # No mistake of the filter: it may have been written for MLflow, which knows KILLED.
        near = suggest(text.upper(), _SHOWN_STATUSES)
        _logger.warning("no recorder can have the status %r that is asked for; %s", text, near)
    return text


def _checked_number(scanner: Scanner, column: Column, operator: str) -> float:
    number = float(scanner.token.written)
    if math.isnan(number) and (operator != "=" or column.family != "metrics"):
        raise scanner.mistake(
            "a number", "nan is neither greater nor less than any; ask for metrics by = nan."
        )
    return number


def _moment(scanner: Scanner, operator: str) -> float:
    text = scanner.token.value
    found = _MOMENT.fullmatch(text)
    if found is None:
        hint = f"write {text} without quotes." if _is_number(text) else ""
        raise scanner.mistake("a date as '2023-11-14' or '2023-11-14 22:13:20'", hint)
    if operator in EQUALITY and not found["minute"]:
        raise scanner.mistake(
            f"a date and time for {operator}",
            "a date alone is its midnight; a day is from >= its date to < the next one.",
        )
    try:
        return _milliseconds(found)
    except ValueError as error:
        raise scanner.mistake("a date that exists", f"{error}.") from error


def _milliseconds(found: re.Match[str]) -> float:
    # The parts one by one, because Python 3.10 reads fewer forms than later ones.
    second, _, fraction = (found["second"] or ":00").partition(".")
    zone = (found["zone"] or "Z").replace("Z", "+00:00")
    minute = found["minute"] or "00:00"
    moment = datetime.fromisoformat(
        f"{found['day']}T{minute}{second}.{fraction.ljust(6, '0')}{zone}"
    )
    return (moment - _EPOCH) / timedelta(milliseconds=1)
