"""Plain data comes back from JSON equal, types included; the rest is refused with its place."""

from __future__ import annotations

import datetime
import enum
import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwf.storage import codec
from qwf.storage.codec import NotPlainError, canonical, decode, dump_json, encode, load_json
from qwf.types import Json

moments = st.datetimes(
    min_value=datetime.datetime(1700, 1, 1), max_value=datetime.datetime(2200, 1, 1)
).map(lambda moment: moment.replace(fold=0))
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True)
    | st.text()
    | st.dates()
    | moments
    | moments.map(pd.Timestamp)
    | moments.map(lambda moment: pd.Timestamp(moment, tz="Asia/Shanghai"))
)
keys = st.text() | st.integers() | st.booleans() | st.none() | st.tuples(st.integers(), st.text())
plain = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(other)) or (
            one == other and math.copysign(1, one) == math.copysign(1, other)
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one), list(other)) and same(list(one.values()), list(other.values()))
    return bool(one == other)


@given(plain)
def test_plain_data_round_trips_exactly(value: Any) -> None:
    assert same(decode(load_json(dump_json(encode(value)))), value)


def test_not_a_time_and_units_round_trip() -> None:
    assert decode(encode(pd.NaT)) is pd.NaT
    moment = pd.Timestamp("2020-01-01").as_unit("s")
    assert decode(encode(moment)).unit == "s"
    assert decode(encode(pd.Timestamp("2020-01-01 00:00:00.123456789"))).nanosecond == 789


class Colour(enum.IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": [1, {2}]}, "a[1]"),
        ({"model": {"class": dict}}, "model.class"),
        ([np.float64(1)], "[0]"),
        ((1, Colour.RED), "[1]"),
        ({"x": Text("y")}, "x"),
        ({"x": b"bytes"}, "x"),
    ],
)
def test_what_is_not_plain_is_refused_with_its_place(value: object, place: str) -> None:
    with pytest.raises(NotPlainError) as caught:
        encode(value)
    assert caught.value.place == place


def test_an_integer_too_long_to_print_is_refused() -> None:
    with pytest.raises(NotPlainError, match="is a int"):
        encode([10**5000])


def test_a_structure_that_contains_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(NotPlainError):
        encode(value)


def test_an_unknown_kind_of_value_is_refused() -> None:
    with pytest.raises(ValueError, match="newer qwf"):
        decode({"$quaternion": [1, 2, 3, 4]})


def test_text_that_utf8_cannot_hold_is_escaped() -> None:
    assert load_json(dump_json({"x": "\ud800"})) == {"x": "\ud800"}


PAIR = "\ud800\udc00"  # two code points; JSON has one spelling for them and for U+10000


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (PAIR, ""),
        ({"x": ["a" + PAIR]}, "x[0]"),
        ({"x": {PAIR: 1}}, "x." + PAIR),
        ({1: 2, PAIR: 3}, f"the key {PAIR!r}"),
    ],
)
def test_text_that_json_would_change_is_refused(value: object, place: str) -> None:
    with pytest.raises(NotPlainError, match="pair of surrogates") as caught:
        encode(value)
    assert caught.value.place == place


@given(st.text(st.characters(min_codepoint=0xD7FF, max_codepoint=0x10001, exclude_categories=())))
def test_text_with_surrogates_comes_back_the_same_or_is_refused(text: str) -> None:
    try:
        form = encode({text: text})
    except NotPlainError:
        return
    assert decode(load_json(dump_json(form))) == {text: text}


# --- further kinds -------------------------------------------------------------------------------


def sets_too(value: object, place: str) -> Json:
    if isinstance(value, set):
        return {"$set": sorted(value)}
    raise NotPlainError(place, value)


def test_a_caller_may_have_further_kinds_wherever_a_value_may_stand() -> None:
    value = {"a": {1}, "b": [{2}, ({3}, {4: {5}})]}
    form = load_json(dump_json(encode(value, other=sets_too)))
    assert decode(form, {"$set": set}) == value


def test_a_further_kind_is_unknown_to_who_was_not_told_of_it() -> None:
    with pytest.raises(ValueError, match="unknown kind of value"):
        decode(encode([{1}], other=sets_too))


def test_what_a_caller_does_not_take_is_refused_with_its_place() -> None:
    with pytest.raises(NotPlainError) as caught:
        encode({"a": [{1}, len]}, "task", sets_too)
    assert caught.value.place == "task.a[1]"


def test_a_key_is_never_of_a_further_kind() -> None:
    with pytest.raises(NotPlainError) as caught:
        encode({len: 1}, other=lambda value, place: "x")
    assert caught.value.place == f"the key {len!r}"


def test_a_dict_that_looks_like_a_further_kind_comes_back_as_the_dict() -> None:
    value = {"$set": [1]}
    assert decode(encode(value, other=sets_too), {"$set": set}) == value


def reordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reordered(item) for key, item in reversed(value.items())}
    if isinstance(value, (list, tuple)):
        return type(value)(map(reordered, value))
    return value


@given(plain)
def test_the_canonical_text_does_not_tell_the_order_of_keys_and_all_else(value: Any) -> None:
    text = canonical(encode(value))
    assert canonical(encode(reordered(value))) == text
    if b"$map" not in text:
        # Without keys to sort pairs by, any JSON reader has it back.
        assert canonical(json.loads(text.decode(errors="surrogatepass"))) == text


def test_the_canonical_text_is_the_same_for_ever() -> None:
    value = {"b": (1, 2.5, None), "a": {"é": [True, "\ud800"]}, "c": {2: "x", 1: "y"}}
    assert canonical(encode(value)) == (
        b'{"a":{"\xc3\xa9":[true,"\xed\xa0\x80"]},"b":{"$tuple":[1,2.5,null]},'
        b'"c":{"$map":[[1,"y"],[2,"x"]]}}'
    )


@pytest.mark.parametrize(
    "value",
    [
        {"a": (1, [2, (3,)]), "b": [], "c": ((),)},
        {"text": '"$tuple":', "more": ["$tuple", '{"$tuple": [1]}']},
        {"a": {"$tuple": (1,)}},
        {"a": float("nan"), "b": (1,)},
        [{1: (2,)}],
    ],
)
def test_what_has_only_tuples_is_read_by_the_short_way_as_by_the_long_one(value: object) -> None:
    data = codec.dump_json(codec.encode(value))
    if codec.only_tuples(data):
        assert codec.load_with_tuples(data) == value
        assert "(" not in repr(codec.load_with_lists(data))
    assert codec.decode(codec.load_json(data)) == value or "nan" in repr(value)


def test_only_tuples_is_said_of_nothing_else() -> None:
    def said(value: object) -> bool:
        return codec.only_tuples(codec.dump_json(codec.encode(value)))

    assert said({"a": (1, (2,)), "b": "x$"})
    assert not said({"a": {"$tuple": 1}})
    assert not said({"a": float("inf")})
    assert not said(['"$tuple":'])
