"""Which tasks a query means: the part of MongoDB's language that a task pool understands.

Pure: a query is parsed once, and then asked about names of tasks or about whole ones.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import numbers
import operator
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import QueryError, suggest
from ..pool.tokens import STATUSES

__all__ = ["Query"]

# What a task of a pool may have; the first three stand in the name of its file.
_IN_NAME: Final = frozenset({"_id", "status", "priority"})
_FIELDS: Final = (*sorted(_IN_NAME), "def", "filter", "res", "error")
_MISSING: Final = object()
_ISO_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d.*)?", re.ASCII)

# Whether the values at a path (`_MISSING` among them where there is none) satisfy an operator.
_Test = Callable[[list[Any]], bool]


@dataclass(frozen=True)
class Query:
    """A parsed query; it never changes, and does not see later changes of what it was made from.

    Attributes
    ----------
    statuses : frozenset of str or None
        No task of another status matches; None if any may.
    ids : frozenset of str or None
        No other task matches; None if any may.
    needs_name : bool
        Whether id or priority is asked for, besides the status.
    needs_document : bool
        Whether more is asked than id, status and priority, which a task's name tells.
    needs_result : bool
        Whether the result or the error is asked for, which lie in files of their own.

    Examples
    --------
    >>> query = Query.parse({"status": {"$ne": "failed"}, "filter.model.class": "LGBModel"})
    >>> sorted(query.statuses)
    ['done', 'part_done', 'running', 'waiting']
    >>> query.matches({"status": "done", "filter": {"model": {"class": "LGBModel"}}})
    True
    """

    statuses: frozenset[str] | None
    ids: frozenset[str] | None
    needs_name: bool
    needs_document: bool
    needs_result: bool
    _condition: _Condition = field(repr=False)

    @classmethod
    def parse(cls, query: Mapping[str, Any] | None) -> Query:
        """Understand a query.

        Parameters
        ----------
        query : mapping or None
            Conditions that all hold: a value (equality), or operators ``$eq $ne $in $nin $gt $gte
            $lt $lte $exists $not``, by the dotted path of a field; ``$and $or $nor`` with a list of
            such queries. Empty or None: every task.

        Returns
        -------
        Query

        Raises
        ------
        QueryError
            If there is no such field, operator or status, or a value is of the wrong kind.

        Notes
        -----
        As in MongoDB a list matches if it equals the value or contains one that does, None matches
        what is missing, and unlike types neither equal nor compare. Unlike there, the order of keys
        does not matter, tuples equal lists, and text that is an ISO date is compared with dates;
        and a status that does not exist is refused, where MongoDB finds nothing: a `wait` for it
        would return at once.
        """
        condition = _parse_query({} if query is None else query, "the query")
        allowed = frozenset(
            one for one in STATUSES if condition.decide({"status": one}, {"status"}) is not False
        )
        fields = condition.fields()
        return cls(
            statuses=None if len(allowed) == len(STATUSES) else allowed,
            ids=condition.ids(),
            needs_name=not fields.isdisjoint({"_id", "priority"}),
            needs_document=not fields <= _IN_NAME,
            needs_result=not fields.isdisjoint({"res", "error"}),
            _condition=condition,
        )

    def accepts_name(self, id: str, status: str, priority: int | None) -> bool:
        """Return whether a task of which only this is known may match."""
        known: dict[str, Any] = {"_id": id, "status": status}
        if priority is not None:
            known["priority"] = priority
        return self._condition.decide(known, _IN_NAME) is not False

    def matches(self, document: Mapping[str, Any]) -> bool:
        """Return whether a task matches, of which the document tells all that is asked."""
        return self._condition.decide(document, None) is True


# --- conditions ------------------------------------------------------------------------------

_Known = set[str] | frozenset[str] | None  # the fields that are known; None: all


@dataclass(frozen=True)
class _Condition:
    """All, any or none of some conditions."""

    kind: str
    parts: tuple[_Condition, ...] = ()

    def decide(self, document: Mapping[str, Any], known: _Known) -> bool | None:
        """Return whether it holds; None if that depends on a field that is not known."""
        answers = {part.decide(document, known) for part in self.parts}
        if self.kind == "$and":
            return False if False in answers else None if None in answers else True
        some = True if True in answers else None if None in answers else False
        return some if self.kind == "$or" or some is None else not some

    def fields(self) -> frozenset[str]:
        """Return the fields that it asks for."""
        return frozenset().union(*(part.fields() for part in self.parts))

    def ids(self) -> frozenset[str] | None:
        """Return the ids outside of which it cannot hold; None if it says nothing of them."""
        found = [part.ids() for part in self.parts]
        limits = [ids for ids in found if ids is not None]
        if self.kind == "$and" and limits:
            return functools.reduce(operator.and_, limits)
        if self.kind == "$or" and len(limits) == len(found):
            return frozenset().union(*limits)
        return None


@dataclass(frozen=True)
class _Field(_Condition):
    """One test of what is found at one path."""

    path: tuple[str, ...] = ()
    test: _Test = bool
    only: frozenset[str] | None = None

    def decide(self, document: Mapping[str, Any], known: _Known) -> bool | None:
        if known is not None and self.path[0] not in known:
            return None
        return self.test(list(_reach(document, self.path)))

    def fields(self) -> frozenset[str]:
        return frozenset(self.path[:1])

    def ids(self) -> frozenset[str] | None:
        return self.only


def _parse_query(query: object, place: str) -> _Condition:
    if not isinstance(query, Mapping):
        raise QueryError(place, f"it is a {type(query).__name__}, and a dict is expected")
    parts = [_parse_entry(key, value) for key, value in query.items()]
    return parts[0] if len(parts) == 1 else _Condition("$and", tuple(parts))


def _parse_entry(key: object, value: Any) -> _Condition:
    if key in ("$and", "$or", "$nor"):
        name = str(key)
        if not isinstance(value, (list, tuple)) or not value:
            raise QueryError(name, "its value is a list of one query or more")
        return _Condition(name, tuple(_parse_query(one, name) for one in value))
    if not isinstance(key, str) or key[:1] == "$":
        groups = ("$and", "$or", "$nor")
        raise QueryError(str(key), f"there is no such operator here; {suggest(key, groups)}")
    path = tuple(key.split("."))
    if path[0] not in _FIELDS:
        raise QueryError(key, f"a task has no such field; {_field_meant(path)}")
    if "" in path:
        raise QueryError(key, "its path has an empty part")
    return _parse_condition(key, path, value)


def _field_meant(path: tuple[str, ...]) -> str:
    if len(path) > 1:
        return f"did you mean {'.'.join(('filter', *path))!r}?"
    return suggest(path[0], _FIELDS)


def _parse_condition(key: str, path: tuple[str, ...], value: Any) -> _Condition:
    if not _has_operators(value):
        return _parse_operator(key, path, "$eq", value)
    plain = [name for name in value if not _is_operator(name)]
    if plain:
        raise QueryError(key, f"operators and the field {plain[0]!r} stand side by side")
    parts = tuple(_parse_operator(key, path, name, one) for name, one in value.items())
    return parts[0] if len(parts) == 1 else _Condition("$and", parts)


def _has_operators(value: object) -> bool:
    return isinstance(value, Mapping) and any(_is_operator(key) for key in value)


def _is_operator(key: object) -> bool:
    return isinstance(key, str) and key[:1] == "$"


def _parse_operator(key: str, path: tuple[str, ...], name: str, value: Any) -> _Condition:
    place = f"{key}: {name}"
    if name == "$not":
        if not _has_operators(value):
            raise QueryError(place, "its value is a dict of operators")
        return _Condition("$nor", (_parse_condition(key, path, value),))
    if name == "$exists":
        return _Field(name, path=path, test=_exists(bool(value)))
    if name in ("$in", "$nin"):
        return _parse_choice(place, path, name, value)
    wanted = _operand(place, path, value)
    if name in ("$eq", "$ne"):
        return _choice(place, path, [wanted], negated=name == "$ne")
    if name not in _ORDERS:
        known = ("$eq", "$ne", "$in", "$nin", "$exists", "$not", *_ORDERS)
        raise QueryError(place, f"there is no such operator; {suggest(name, known)}")
    if _kind(wanted) in (list, dict, object):
        raise QueryError(place, f"a {type(value).__name__} has no order")
    return _Field(name, path=path, test=_compared(_ORDERS[name], wanted))


def _parse_choice(place: str, path: tuple[str, ...], name: str, value: Any) -> _Condition:
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise QueryError(place, f"its value is a list, and not a {type(value).__name__}")
    wanted = [_operand(place, path, one) for one in value]
    return _choice(place, path, wanted, negated=name == "$nin")


def _choice(place: str, path: tuple[str, ...], wanted: list[Any], *, negated: bool) -> _Condition:
    if negated:
        return _Condition("$nor", (_choice(place, path, wanted, negated=False),))
    if path == ("status",):
        _refuse_unknown_statuses(place, wanted)
    only = None
    if path == ("_id",):
        only = frozenset(one for one in wanted if isinstance(one, str))
    return _Field("$in", path=path, test=_equal_to_one(wanted), only=only)


def _refuse_unknown_statuses(place: str, wanted: list[Any]) -> None:
    for one in wanted:
        if not (isinstance(one, str) and one in STATUSES):
            raise QueryError(place, f"there is no status {one!r}; {suggest(one, STATUSES)}")


def _operand(place: str, path: tuple[str, ...], value: Any) -> Any:
    """Return a copy of a value that has to be found; an id as text."""
    if isinstance(value, re.Pattern):
        raise QueryError(place, "regular expressions are not supported")
    if path != ("_id",) or value is None:
        return _copied(value)
    if isinstance(value, (Mapping, list, tuple)):
        raise QueryError(place, f"an id is text, and not a {type(value).__name__}")
    return str(value)


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copied(item) for item in value]
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, (numpy.bool_, numpy.number)):
        return value.item()
    return value


# --- operators -------------------------------------------------------------------------------

_ORDERS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}


def _exists(wanted: bool) -> _Test:
    return lambda found: any(value is not _MISSING for value in found) is wanted


def _equal_to_one(wanted: list[Any]) -> _Test:
    dates = [date for date in map(_iso_date, wanted) if date is not None]
    # Text by the thousand, as ids are, is not compared one by one.
    texts = frozenset(one for one in wanted if isinstance(one, str))
    others = [one for one in wanted if not isinstance(one, str)]

    def is_wanted(value: Any) -> bool:
        if isinstance(value, str):
            return value in texts
        more = dates if isinstance(value, datetime.date) else ()
        return any(_equal(value, one) for one in (*others, *more))

    return lambda found: any(map(is_wanted, _with_items(found)))


def _compared(order: Callable[[Any, Any], bool], wanted: Any) -> _Test:
    date = _iso_date(wanted)

    def holds(found: list[Any]) -> bool:
        return any(
            _ordered(order, value, wanted) or (date is not None and _ordered(order, value, date))
            for value in _with_items(found)
        )

    return holds


def _ordered(order: Callable[[Any, Any], bool], value: Any, wanted: Any) -> bool:
    kind = _kind(wanted)
    if _kind(value) is not kind:
        return False
    if kind is None or _is_nan(value):  # they have no order, and equal themselves
        return order(0, 0) and _equal(value, wanted)
    if kind is datetime.date:
        value, wanted = _moment(value), _moment(wanted)
    # A moment with a time zone and one without.
    with contextlib.suppress(TypeError):
        return bool(order(value, wanted))
    return False


def _reach(value: Any, path: Sequence[str]) -> Iterator[Any]:
    """Yield what is at a path; of a list both its items by number and the fields of its items."""
    if not path:
        yield value
    elif isinstance(value, Mapping):
        if path[0] in value:
            yield from _reach(value[path[0]], path[1:])
        else:
            yield _MISSING
    elif isinstance(value, (list, tuple)):
        number = int(path[0]) if path[0].isdecimal() else None
        if number is not None and number < len(value):
            yield from _reach(value[number], path[1:])
        for item in value:
            if isinstance(item, Mapping) and (number is None or path[0] in item):
                yield from _reach(item, path)
    else:
        yield _MISSING


def _with_items(found: list[Any]) -> Iterator[Any]:
    for value in found:
        yield value
        if isinstance(value, (list, tuple)):
            yield from value


# --- values ----------------------------------------------------------------------------------


def _kind(value: object) -> type | None:
    """Return the type that stands for all that a value may be compared with."""
    if value is None or value is _MISSING:
        return None
    if isinstance(value, (list, tuple)):
        return list
    if isinstance(value, Mapping):
        return dict
    for kind in (bool, str, numbers.Real, datetime.date):
        if isinstance(value, kind):
            return kind
    return object


def _equal(one: Any, other: Any) -> bool:
    kind = _kind(one)
    if kind is not _kind(other) or (kind is object and type(one) is not type(other)):
        return False
    if kind is None or one is other:
        return True
    if kind is list:
        return len(one) == len(other) and all(map(_equal, one, other))
    if kind is dict:
        return len(one) == len(other) and all(
            key in other and _equal(item, other[key]) for key, item in one.items()
        )
    if kind is datetime.date:
        one, other = _moment(one), _moment(other)
    with contextlib.suppress(TypeError, ValueError):  # frames of other columns do not even compare
        return bool(one == other) or (_is_nan(one) and _is_nan(other))
    return False


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and value != value


def _moment(date: datetime.date) -> datetime.datetime:
    if isinstance(date, datetime.datetime):
        return date
    return datetime.datetime(date.year, date.month, date.day)


def _iso_date(value: object) -> datetime.datetime | None:
    """Return the moment that a text stands for: JSON, and so a command line, has no dates."""
    if isinstance(value, str) and _ISO_DATE.fullmatch(value):
        with contextlib.suppress(ValueError):
            return datetime.datetime.fromisoformat(value)
    return None
