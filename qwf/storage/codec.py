"""Plain Python data ↔ JSON, exactly: what comes back equals what went in, types included.

JSON has no tuples, dates, NaN or keys that are not strings; these are written as an object with one
``$`` key. What cannot be written exactly is refused with its place, never approximated.
"""

from __future__ import annotations

import datetime
import functools
import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from ..types import Json

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "NotPlainError",
    "canonical",
    "decode",
    "dump_json",
    "encode",
    "load_json",
    "load_with_lists",
    "load_with_tuples",
    "only_tuples",
]

# CPython refuses to print larger ones in decimal.
_MAX_INT_BITS: Final = 13_000
# JSON spells a character outside the basic plane as these two, and reads them as that character.
_SURROGATE_PAIR: Final = re.compile(r"[\ud800-\udbff][\udc00-\udfff]")

# Asked for what is not plain, with its place: the form it takes, an object with one "$" key.
Other: TypeAlias = Callable[[object, str], Json] | None
# By their "$" key, what reads the forms that `Other` gave.
Others: TypeAlias = Mapping[str, Callable[[Any], Any]] | None


class NotPlainError(TypeError):
    """A value that is not plain data; `place` says where in the whole it stands."""

    def __init__(self, place: str, value: object) -> None:
        super().__init__(place, value)
        self.place, self.value = place, value

    def __str__(self) -> str:
        place = self.place or "the value"
        if type(self.value) is str:
            return f"{place} is text with a pair of surrogates, which JSON reads as one character"
        return f"{place} is a {type(self.value).__name__}, not plain data"


def encode(value: object, place: str = "", other: Other = None) -> Json:
    """Return the JSON form of plain data.

    Plain are None, bool, int, float, str, list, tuple, dict, date, datetime and
    ``pandas.Timestamp``, by exact type (a subclass would come back as its base).

    Parameters
    ----------
    value : object
    place : str, default ""
        Where the value stands, for the message.
    other : callable, optional
        Is given what is not plain, and its place. It returns a JSON form with one ``$`` key that
        `decode` is told of, or a plain scalar in its stead, or raises `NotPlainError`.

    Raises
    ------
    NotPlainError
        If the value, or one inside it, is not plain; also for a structure nested without end, and
        for text that JSON would change.

    Examples
    --------
    >>> encode({"train": ("2020-01-01", None), 3: float("nan")})
    {'$map': [['train', {'$tuple': ['2020-01-01', None]}], [3, {'$float': 'nan'}]]}
    >>> decode(encode((1, [2.5])))
    (1, [2.5])
    """
    try:
        return _encode(value, place, other)
    except RecursionError:
        raise NotPlainError(place, value) from None


def _encode(value: Any, place: str, other: Other) -> Json:
    kind = type(value)
    if value is None or kind is bool or (kind is str and value.isascii()):
        return value  # type: ignore[no-any-return]  # narrowed by exact type, which mypy cannot see
    encoder = _ENCODERS.get(kind)
    if encoder is None and _is_timestamp(value):
        encoder = _encode_timestamp
    if encoder is None:
        if other is None:
            raise NotPlainError(place, value)
        return other(value, place)
    return encoder(value, place, other)


def _encode_text(value: str, place: str, _: Other = None) -> str:
    if not value.isascii() and _SURROGATE_PAIR.search(value):
        raise NotPlainError(place, value)
    return value


def _encode_int(value: int, place: str, _: Other) -> Json:
    if value.bit_length() > _MAX_INT_BITS:
        raise NotPlainError(place, value)
    return value


def _encode_float(value: float, _: str, __: Other) -> Json:
    return value if math.isfinite(value) else {"$float": repr(value)}


def _encode_list(value: list[Any], place: str, other: Other) -> Json:
    return [_encode(item, f"{place}[{number}]", other) for number, item in enumerate(value)]


def _encode_tuple(value: tuple[Any, ...], place: str, other: Other) -> Json:
    return {
        "$tuple": [_encode(item, f"{place}[{number}]", other) for number, item in enumerate(value)]
    }


def _encode_dict(value: dict[Any, Any], place: str, other: Other) -> Json:
    if all(type(key) is str for key in value) and not any(key[:1] == "$" for key in value):
        fields: dict[str, Json] = {}
        for key, item in value.items():
            inside = f"{place}.{key}" if place else key
            fields[key if key.isascii() else _encode_text(key, inside)] = _encode(
                item, inside, other
            )
        return fields
    pairs: list[Json] = []
    for key, item in value.items():
        inside = f"{place}[{key!r}]"
        pairs.append([_encode(key, f"the key {key!r}", None), _encode(item, inside, other)])
    return {"$map": pairs}


def _encode_date(value: datetime.date, _: str, __: Other) -> Json:
    return {"$date": value.isoformat()}


def _encode_datetime(value: datetime.datetime, place: str, _: Other) -> Json:
    if (value.tzinfo is not None and value.tzinfo is not datetime.timezone.utc) or value.fold:
        raise NotPlainError(place, value)
    return {"$datetime": value.isoformat()}


_ENCODERS: Final[dict[type, Callable[[Any, str, Other], Json]]] = {
    str: _encode_text,
    int: _encode_int,
    float: _encode_float,
    list: _encode_list,
    tuple: _encode_tuple,
    dict: _encode_dict,
    datetime.date: _encode_date,
    datetime.datetime: _encode_datetime,
}


def _is_timestamp(value: object) -> bool:
    # A Timestamp can only be here if its module is loaded; importing pandas costs half a second.
    pandas = sys.modules.get("pandas")
    return pandas is not None and (
        type(value) is pandas.Timestamp or value is getattr(pandas, "NaT", None)
    )


def _encode_timestamp(value: pd.Timestamp, place: str, _: Other) -> Json:
    zone = None if value.tzinfo is None else str(value.tzinfo)
    form: list[Json] = [str(value.tz_localize(None)), getattr(value, "unit", None), zone]
    back = _decode_timestamp(form)
    same = back is value or (back == value and type(back.tzinfo) is type(value.tzinfo))
    if not same or getattr(value, "fold", False):
        raise NotPlainError(place, value)
    return {"$timestamp": form}


def _decode_timestamp(form: list[Any]) -> Any:
    import pandas as pd

    text, unit, zone = form
    moment = pd.Timestamp(text)
    if unit is not None and moment is not pd.NaT:
        moment = moment.as_unit(unit)
    if zone is None:
        return moment
    try:
        return moment.tz_localize(zone)
    except (KeyError, ValueError, TypeError):
        return moment


_NESTED: Final = frozenset({list, dict})
_DECODERS: Final[dict[str, Callable[[Any], Any]]] = {
    "$float": float,
    "$date": datetime.date.fromisoformat,
    "$datetime": datetime.datetime.fromisoformat,
    "$timestamp": _decode_timestamp,
}


def decode(form: Json, others: Others = None) -> Any:
    """Return the data that `encode` was given.

    Parameters
    ----------
    form : Json
    others : mapping, optional
        By further ``$`` keys, what reads the forms that `encode` was given by its `other`.

    Raises
    ------
    ValueError
        If `form` holds a ``$`` key that this release does not know.
    """
    if isinstance(form, list):
        return [decode(item, others) if type(item) in _NESTED else item for item in form]
    if not isinstance(form, dict):
        return form
    if len(form) == 1:
        ((key, inner),) = form.items()
        if key[:1] == "$":
            return _decode_kind(key, inner, others)
    return {
        key: decode(item, others) if type(item) in _NESTED else item for key, item in form.items()
    }


def _decode_kind(key: str, form: Any, others: Others) -> Any:
    if key == "$tuple":
        return tuple([decode(item, others) for item in form])
    if key == "$map":
        return {decode(name, others): decode(item, others) for name, item in form}
    decoder = _DECODERS.get(key) or (others or {}).get(key)
    if decoder is None:
        raise ValueError(f"unknown kind of value {key!r}; it was written by a newer qwf")
    return decoder(form)


def dump_json(value: Json, *, indent: int | None = None) -> bytes:
    """Return JSON text in UTF-8 with a final newline."""
    try:
        return f"{_encoder(indent, ensure_ascii=False).encode(value)}\n".encode()
    except UnicodeEncodeError:  # a lone surrogate, which only the escaped form can hold
        return f"{_encoder(indent, ensure_ascii=True).encode(value)}\n".encode()


@functools.cache
def _encoder(
    indent: int | None, *, ensure_ascii: bool, sort_keys: bool = False
) -> json.JSONEncoder:
    # `json.dumps` would make one for every call.
    separators = (",", ":") if indent is None else (",", ": ")
    return json.JSONEncoder(
        ensure_ascii=ensure_ascii,
        allow_nan=False,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def canonical(form: Json) -> bytes:
    """Return the one JSON text of a form, whatever the order of the keys in it: for hashes.

    Examples
    --------
    >>> canonical({"b": [1.0, None], "a": "x"})
    b'{"a":"x","b":[1.0,null]}'
    """
    encoder = _encoder(None, ensure_ascii=False, sort_keys=True)
    # Lone surrogates, which UTF-8 itself refuses, have to differ too.
    return encoder.encode(_with_sorted_maps(form)).encode(errors="surrogatepass")


def _with_sorted_maps(form: Any) -> Any:
    if isinstance(form, list):
        return [_with_sorted_maps(item) for item in form]
    if not isinstance(form, dict):
        return form
    if form.keys() == {"$map"}:
        pairs = [[key, _with_sorted_maps(item)] for key, item in form["$map"]]
        return {"$map": sorted(pairs, key=lambda pair: canonical(pair[0]))}
    return {key: _with_sorted_maps(item) for key, item in form.items()}


def only_tuples(data: bytes) -> bool:
    """Whether JSON text holds no kind of value that JSON does not know itself but tuples."""
    return data.count(b'"$') == data.count(_TUPLE_KEY)


def load_with_tuples(data: bytes) -> Any:
    """Return the data in JSON text that has `only_tuples`, faster than `decode`."""
    return _WITH_TUPLES.decode(data.decode())


def load_with_lists(data: bytes) -> Any:
    """Return the same with lists in place of tuples."""
    return _WITH_LISTS.decode(data.decode())


def _tuple_or_fields(fields: dict[str, Any]) -> Any:
    return tuple(fields["$tuple"]) if "$tuple" in fields else fields


def _list_or_fields(fields: dict[str, Any]) -> Any:
    return fields.get("$tuple", fields)


_TUPLE_KEY: Final = b'"$tuple":'
_WITH_TUPLES: Final = json.JSONDecoder(object_hook=_tuple_or_fields)
_WITH_LISTS: Final = json.JSONDecoder(object_hook=_list_or_fields)


def load_json(data: bytes) -> Json:
    """Parse JSON text.

    Raises
    ------
    ValueError
        If it is no JSON, or not UTF-8.
    """
    form: Json = json.loads(data.decode())
    return form
