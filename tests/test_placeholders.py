"""Filling, finding, merging and flattening of configurations."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwf.errors import ConfigError, PlaceholderError
from qwf.instantiate import (
    FLATTEN_TUPLE,
    S_DROP,
    deepcopy_basic_type,
    fill_placeholder,
    find_placeholders,
    flatten_dict,
    get_item_from_obj,
    hash_args,
    update_config,
)

KEYS = st.sampled_from(["a", "b", "c"])
LEAVES = st.one_of(
    st.none(),
    st.integers(0, 3),
    st.sampled_from(
        ["x", "<MODEL>", "<a>", "<b.0>", "<a.b>", "<nowhere>", "text <MODEL>", "<>", "<<a>"]
    ),
)
CONFIGS = st.recursive(
    LEAVES,
    lambda child: st.one_of(
        st.dictionaries(KEYS, child, max_size=3),
        st.lists(child, max_size=3),
        st.lists(child, max_size=3).map(tuple),
    ),
    max_leaves=12,
)
DICTS = st.dictionaries(KEYS, CONFIGS, max_size=3)


class Live:
    """Something that must be handed on and never copied."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise AssertionError("copied")

    __copy__ = __deepcopy__


def parts(config: Any) -> list[Any]:
    """List all dicts and lists in a configuration."""
    if isinstance(config, dict):
        return [config, *(found for child in config.values() for found in parts(child))]
    if isinstance(config, (list, tuple)):
        own = [config] if isinstance(config, list) else []
        return [*own, *(found for child in config for found in parts(child))]
    return []


@settings(max_examples=200, deadline=None)
@given(DICTS)
def test_filling_changes_nothing_that_was_given(config: dict[str, Any]) -> None:
    model = Live()
    before = copy.deepcopy(config)
    filled = fill_placeholder(config, {"<MODEL>": model})
    assert config == before
    assert not {id(part) for part in parts(config)} & {id(part) for part in parts(filled)}
    assert not [name for _, name in find_placeholders(filled) if name == "<MODEL>"]


@settings(max_examples=200, deadline=None)
@given(DICTS)
def test_each_placeholder_found_stands_at_its_path(config: dict[str, Any]) -> None:
    for path, name in find_placeholders(config):
        assert get_item_from_obj(config, path) == name


def test_training_one_task_twice_fills_in_each_model() -> None:
    task = {"record": {"class": "SignalRecord", "kwargs": {"model": "<MODEL>"}}}
    first, second = Live(), Live()
    for model in (first, second):
        filled = fill_placeholder(task, {"<MODEL>": model})
        assert filled["record"]["kwargs"]["model"] is model
    assert task["record"]["kwargs"] == {"model": "<MODEL>"}


def test_live_objects_are_shared_and_tuples_are_entered() -> None:
    handler, model = Live(), Live()
    Pair = namedtuple("Pair", "left right")
    config = {"handler": handler, "t": ("<M>", [("<M>",)]), "pair": Pair("<M>", 1)}
    filled = fill_placeholder(config, {"<M>": model})
    assert filled["handler"] is handler
    assert filled["t"] == (model, [(model,)])
    assert filled["pair"] == Pair(model, 1)
    assert type(filled["pair"]) is Pair


def test_the_type_of_a_dict_is_kept() -> None:
    filled = fill_placeholder(OrderedDict(a="<M>"), {"<M>": 1})
    assert filled == OrderedDict(a=1)
    assert type(filled) is OrderedDict


def test_the_value_given_for_a_placeholder_is_not_searched() -> None:
    given_value = {"name": "<M>"}
    assert fill_placeholder({"a": "<M>"}, {"<M>": given_value})["a"] is given_value


def test_a_path_is_looked_up_in_the_configuration() -> None:
    task = {
        "dataset": {
            "kwargs": {
                "handler": {"kwargs": {"fit_start_time": "<dataset.kwargs.segments.train.0>"}},
                "segments": {"train": ("2008-01-01", "2014-12-31")},
            }
        }
    }
    filled = fill_placeholder(task, {})
    assert filled["dataset"]["kwargs"]["handler"]["kwargs"] == {"fit_start_time": "2008-01-01"}


def test_what_is_found_at_a_path_is_filled_too_in_any_order() -> None:
    config = {"a": "<b>", "b": ["<c>", "<MODEL>"], "c": "<MODEL>"}
    assert fill_placeholder(config, {"<MODEL>": 7}) == {"a": [7, 7], "b": [7, 7], "c": 7}


def test_a_given_placeholder_beats_a_path() -> None:
    assert fill_placeholder({"a": 1, "b": "<a>"}, {"<a>": 2})["b"] == 2


@pytest.mark.parametrize(
    "config",
    [
        {"a": "<nowhere>"},
        {"a": "<a>"},
        {"a": ["<a>", 1]},
        {"a": "<b>", "b": "<a>"},
        {"a": "<b>", "b": {"c": ["<b>"]}},
        {"a": "<b.9>", "b": [0]},
        {"a": "<b.c>", "b": [0]},
    ],
)
def test_what_leads_nowhere_or_back_to_itself_stays_with_an_info_in_the_log(
    config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="qwf"):
        assert fill_placeholder(config, {}) == config
    assert f"placeholder {find_placeholders(config)[0][1]}" in caplog.text


def test_only_a_whole_string_is_a_placeholder() -> None:
    config = {"a": "<M> and more", "b": "see <M>", "c": "<M"}
    assert fill_placeholder(config, {"<M>": 1}) == config
    assert find_placeholders(config) == []


def test_a_configuration_may_be_a_list_or_one_placeholder() -> None:
    assert fill_placeholder(["<M>", {"a": "<0>"}], {"<M>": 1}) == [1, {"a": 1}]
    assert fill_placeholder("<M>", {"<M>": 1}) == 1


@pytest.mark.parametrize("name", ["MODEL", "<MODEL> ", "", "<>", 3])
def test_a_key_that_is_no_placeholder_is_refused_as_qlib_does(name: Any) -> None:
    config = {"a": name}
    with pytest.raises(PlaceholderError, match=r"cannot fill .*expected a placeholder") as caught:
        fill_placeholder(config, {name: 1})
    assert isinstance(caught.value, AssertionError)
    assert isinstance(caught.value, KeyError)
    assert config == {"a": name}


def test_placeholders_are_listed_in_the_order_in_which_they_stand() -> None:
    config = {"record": [{"kwargs": {"model": "<MODEL>", "n": 1}}, ("<PRED>",)], "x": "<DATASET>"}
    assert find_placeholders(config) == [
        ("record.0.kwargs.model", "<MODEL>"),
        ("record.1.0", "<PRED>"),
        ("x", "<DATASET>"),
    ]


@pytest.mark.parametrize(
    ("path", "kind", "sentence"),
    [
        ("segment.train", KeyError, r"no key 'segment'; did you mean 'segments'\?"),
        ("segments.train.2", IndexError, "position 2 of a list of 2"),
        ("segments.train.first", ValueError, "'first' cannot be looked up in a list"),
        ("segments.train.0.1", ConfigError, "'1' cannot be looked up in a int"),
        ("segments.train.-1", ValueError, "'-1' cannot be looked up"),
    ],
)
def test_a_path_to_nothing_says_where_it_ends(
    path: str, kind: type[Exception], sentence: str
) -> None:
    with pytest.raises(kind, match=sentence) as caught:
        get_item_from_obj({"segments": {"train": [1, 2]}}, path)
    assert path in str(caught.value)


# --- merging ---------------------------------------------------------------------------------


def merged_by_paths(base: Any, ext: Any) -> Any:
    """Say what a merge is without doing it in place: the model for the test below."""
    if not isinstance(ext, dict):
        return ext
    result = dict(base) if isinstance(base, dict) else {}
    kept = {key for key, value in ext.items() if not (isinstance(value, str) and value == S_DROP)}
    order = [key for key in result if key not in ext or key in kept]
    order += [key for key in ext if key in kept and key not in result]
    return {
        key: merged_by_paths(result.get(key), ext[key]) if key in kept else result[key]
        for key in order
    }


EXTENSIONS = st.recursive(
    st.one_of(st.integers(0, 3), st.just(S_DROP), st.lists(st.integers(0, 3), max_size=2)),
    lambda child: st.dictionaries(KEYS, child, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(DICTS, st.dictionaries(KEYS, EXTENSIONS, max_size=3))
def test_update_merges_dicts_and_replaces_the_rest(
    base: dict[str, Any], ext: dict[str, Any]
) -> None:
    before = copy.deepcopy((base, ext))
    merged = update_config(base, ext)
    assert merged == merged_by_paths(base, ext)
    assert (base, ext) == before
    given_parts = {id(part) for part in [*parts(base), *parts(ext)]}
    assert not given_parts & {id(part) for part in parts(merged)}
    assert S_DROP not in json.dumps(merged)


@settings(max_examples=100, deadline=None)
@given(DICTS, DICTS, DICTS)
def test_updates_are_applied_one_after_another(
    base: dict[str, Any], one: dict[str, Any], two: dict[str, Any]
) -> None:
    assert update_config(base, [one, two]) == update_config(update_config(base, one), two)
    assert update_config(base, {}) == base
    assert update_config(base, []) == base
    assert update_config(update_config(base, one), one) == update_config(base, one)


def test_update_shares_live_objects_and_compares_none() -> None:
    class Ambiguous:
        def __eq__(self, other: object) -> bool:
            raise AssertionError("compared")

        __hash__ = None  # type: ignore[assignment]

    frame, handler = Ambiguous(), Live()
    merged = update_config({"a": 1, "handler": handler}, {"a": frame})
    assert merged["a"] is frame
    assert merged["handler"] is handler


def test_update_drops_what_is_not_there_without_a_trace() -> None:
    assert update_config({"a": 1}, {"b": S_DROP, "c": {"d": S_DROP}}) == {"a": 1, "c": {}}


@pytest.mark.parametrize("ext", [3, "a", [{"a": 1}, None]])
def test_update_with_something_else_than_a_dict_is_refused(ext: Any) -> None:
    base = {"a": 0}
    with pytest.raises(TypeError, match="expected two dicts"):
        update_config(base, ext)
    assert base == {"a": 0}


# --- copying, flattening, digest -------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(CONFIGS)
def test_a_copy_is_equal_and_shares_no_dict_or_list(config: Any) -> None:
    copied = deepcopy_basic_type(config)
    assert copied == config
    assert not {id(part) for part in parts(config)} & {id(part) for part in parts(copied)}


def leaves(config: Any) -> list[Any]:
    if isinstance(config, dict):
        return [leaf for child in config.values() for leaf in leaves(child)]
    return [config]


@settings(max_examples=100, deadline=None)
@given(DICTS)
def test_flattening_keeps_each_value_at_its_path(config: dict[str, Any]) -> None:
    flat = flatten_dict(config)
    assert list(flat.values()) == leaves(config)
    for path, value in flat.items():
        assert get_item_from_obj(config, path) is value
    assert flatten_dict(flat) == flat
    assert list(flatten_dict(config, sep=FLATTEN_TUPLE).values()) == leaves(config)


def test_flattening_with_a_prefix_and_another_separator() -> None:
    assert flatten_dict({"a": {"b": 1}, "c": {}}, parent_key="p", sep="/") == {"p/a/b": 1}
    assert flatten_dict({"": {"a": 1}, "a": 2}) == {".a": 1, "a": 2}
    assert flatten_dict({0: {1: "x"}, "": {1: "y"}}, sep=FLATTEN_TUPLE) == {
        (0, 1): "x",
        ("", 1): "y",
    }


@pytest.mark.parametrize("config", [{1: 2}, {"a": {None: 1}}])
def test_flattening_refuses_keys_that_are_not_strings(config: dict[Any, Any]) -> None:
    with pytest.raises(TypeError, match=r"cannot flatten a dict with key (1|None) of type"):
        flatten_dict(config)


def test_the_digest_is_the_one_that_qlib_computes() -> None:
    # printf '[{"a": [1, 2], "b": null}, "x"]' | md5sum
    assert hash_args({"b": None, "a": (1, 2)}, "x") == "165255f865ec2b5f4eac6b71d1e103ff"
    assert hash_args(1) != hash_args("1")
