"""Queries find what they find in MongoDB, and say which tasks need not be read."""

from __future__ import annotations

import copy
import datetime
import gzip
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwf.errors import QueryError
from qwf.tasks.queries import Query

STATUSES = ("waiting", "running", "part_done", "done", "failed")


def with_dates(value: Any) -> Any:
    if isinstance(value, list):
        return [with_dates(item) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"$datetime"}:
        return datetime.datetime.fromisoformat(value["$datetime"])
    return {key: with_dates(item) for key, item in value.items()}


ORACLE: dict[str, Any] = with_dates(
    json.loads(
        gzip.decompress(
            (Path(__file__).parent / "oracles" / "queries" / "mongomock.json.gz").read_bytes()
        )
    )
)
DOCUMENTS: list[dict[str, Any]] = ORACLE["documents"]


def statuses_named(query: dict[str, Any]) -> Iterator[Any]:
    """What a query wants the status to equal, or not to equal."""
    for key, value in query.items():
        if key in ("$and", "$or", "$nor"):
            for part in value:
                yield from statuses_named(part)
        elif key == "status":
            operators = value if isinstance(value, dict) else {"$eq": value}
            assert operators.keys() <= {"$eq", "$ne", "$in", "$nin", "$exists", *ORDERS}
            for name in operators.keys() & {"$eq", "$ne"}:
                yield operators[name]
            for name in operators.keys() & {"$in", "$nin"}:
                yield from operators[name]


ORDERS = ("$gt", "$gte", "$lt", "$lte")

# On purpose unlike MongoDB: a status that does not exist is a mistake.
MISTAKEN = [
    case
    for case in ORACLE["cases"]
    if any(one not in STATUSES for one in statuses_named(case["query"]))
]
CASES: list[dict[str, Any]] = [case for case in ORACLE["cases"] if case not in MISTAKEN]


def found(query: Any, *documents: dict[str, Any]) -> list[bool]:
    parsed = Query.parse(query)
    return [parsed.matches(document) for document in documents]


def task(**definition: Any) -> dict[str, Any]:
    return {"_id": "f" * 24, "status": "waiting", "filter": definition, "def": definition}


# --- as MongoDB ----------------------------------------------------------------------------------


def paths(query: dict[str, Any]) -> Iterator[str]:
    for key, value in query.items():
        if key in ("$and", "$or", "$nor"):
            for part in value:
                yield from paths(part)
        else:
            yield key


def leads_astray(value: Any, path: list[str], *, numbered: bool = False) -> bool:
    """Whether mongomock follows a path wrongly, as MongoDB does not.

    It gives up at a value that has no fields, where MongoDB finds the field missing, and at a list
    that was reached by its number in another, where MongoDB goes on with the fields of its items.
    """
    if not path:
        return False
    if isinstance(value, dict):
        return path[0] in value and leads_astray(value[path[0]], path[1:])
    if not isinstance(value, list):
        return True
    if path[0].isdigit():
        number = int(path[0])
        return number < len(value) and leads_astray(value[number], path[1:], numbered=True)
    return numbered or any(leads_astray(one, path) for one in value if isinstance(one, dict))


def test_random_queries_find_what_mongomock_finds() -> None:
    compared = 0
    for case in CASES:
        query, answer = Query.parse(case["query"]), set(case["found"])
        asked = [path.split(".") for path in paths(case["query"])]
        for number, document in enumerate(DOCUMENTS):
            if not any(leads_astray(document, path) for path in asked):
                compared += 1
                assert query.matches(document) is (number in answer), (case["query"], document)
    assert compared > 90_000


def test_what_mongomock_finds_is_never_ruled_out_by_name_or_id_or_status() -> None:
    for case in CASES:
        query = Query.parse(case["query"])
        for number in case["found"]:
            document = DOCUMENTS[number]
            if query.matches(document):
                name = document["_id"], document["status"], document.get("priority")
                assert query.accepts_name(*name)
                assert query.ids is None or document["_id"] in query.ids
                assert query.statuses is None or document["status"] in query.statuses


@pytest.mark.parametrize(
    ("query", "definition", "answer"),
    [
        # Where mongomock is not MongoDB, from MongoDB's manual and the tests of its server.
        ({"filter.a.b": None}, {"a": 4}, True),
        ({"filter.a.b": {"$ne": 1}}, {"a": 4}, True),
        ({"filter.a.b": {"$exists": False}}, {"a": 4}, True),
        ({"filter.a.b": {"$exists": False}}, {"a": [{"b": 1}, {}]}, False),
        ({"filter.a.b": None}, {"a": {}}, True),
        ({"filter.a.b": None}, {"a": [{}]}, True),
        ({"filter.a.b": None}, {"a": {"b": None}}, True),
        ({"filter.a.b": None}, {"a": []}, False),
        ({"filter.a.b": None}, {"a": [None]}, False),
        ({"filter.a.b": None}, {"a": [1, 2]}, False),
        ({"filter.a.b": None}, {"a": {"b": 4}}, False),
        ({"filter.a.b": None}, {"a": {"b": {}}}, False),
        ({"filter.a.b": None}, {"x": 4}, True),
        ({"filter.a.b": {"$gte": None}}, {"x": 4}, True),
        ({"filter.a.b": {"$gt": None}}, {"x": 4}, False),
        ({"filter.a": 1}, {"a": True}, False),
        ({"filter.a": True}, {"a": 1}, False),
        ({"filter.a": 1}, {"a": 1.0}, True),
        ({"filter.a": {"$gt": False}}, {"a": True}, True),
        ({"filter.a": {"$gt": False}}, {"a": 1}, False),
        ({"filter.a": []}, {"a": []}, True),
        ({"filter.a": []}, {"a": [[]]}, True),
        ({"filter.a": {"$in": [["x"]]}}, {"a": ["x"]}, True),
        ({"filter.a.0.b": 2}, {"a": [[{"b": 2}]]}, True),
        ({"filter.a.b": 2}, {"a": [[{"b": 2}]]}, False),
        ({"filter.a.1": 4}, {"a": [5, {"1": 4}]}, True),
        ({"filter.a.1": {"1": 4}}, {"a": [5, {"1": 4}]}, True),
        ({"filter.a": {"$not": {"$gt": 3}}}, {"x": 1}, True),
        ({"filter.a": {"$not": {"$gt": 3, "$lt": 5}}}, {"a": 4}, False),
        ({"filter.a": {"$in": []}}, {"a": 1}, False),
        ({"filter.a": {"$nin": []}}, {"a": 1}, True),
        ({"filter.a": float("nan")}, {"a": float("nan")}, True),
        ({"filter.a": {"$gte": float("nan")}}, {"a": float("nan")}, True),
        ({"filter.a": {"$gte": float("nan")}}, {"a": 1.0}, False),
        ({"filter.a": {"$lt": 1.0}}, {"a": float("nan")}, False),
    ],
)
def test_corners_are_those_of_mongodb(
    query: dict[str, Any], definition: dict[str, Any], answer: bool
) -> None:
    assert found(query, task(**definition)) == [answer]


# --- beyond MongoDB ------------------------------------------------------------------------------

SEGMENTS = {
    "train": (pd.Timestamp("2020-01-01"), pd.Timestamp("2020-06-30")),
    "test": (pd.Timestamp("2020-07-01"), None),
}
ROLLING = {"model": {"class": "LGBModel", "kwargs": {"lr": 0.1}}, "segments": SEGMENTS}


def test_a_whole_definition_is_found_whatever_the_order_of_its_keys() -> None:
    other = {"segments": dict(reversed(SEGMENTS.items())), "model": ROLLING["model"]}
    assert found({"filter": other}, task(**ROLLING)) == [True]
    assert found({"filter": {**other, "model": None}}, task(**ROLLING)) == [False]
    assert found({"filter": {"model": ROLLING["model"]}}, task(**ROLLING)) == [False]


def test_a_tuple_is_found_by_a_list_and_a_list_by_a_tuple() -> None:
    assert found({"filter.a": [1, (2, 3)]}, task(a=(1, [2, 3]))) == [True]
    assert found({"filter.a": (1, 2)}, task(a=[1, 2])) == [True]
    assert found({"filter.a": 2}, task(a=(1, 2))) == [True]
    assert found({"filter.a": (1, 2)}, task(a=[2, 1])) == [False]


@pytest.mark.parametrize(
    "moment",
    [
        pd.Timestamp("2020-03-02"),
        datetime.datetime(2020, 3, 2),
        datetime.date(2020, 3, 2),
        "2020-03-02",
        "2020-03-02 00:00:00",
        np.str_("2020-03-02"),
    ],
)
def test_dates_of_all_kinds_and_iso_text_are_compared_with_dates(moment: Any) -> None:
    early, same, late, none = (
        task(day=day)
        for day in (pd.Timestamp("2020-03-01"), datetime.date(2020, 3, 2),
                    datetime.datetime(2020, 3, 3), None)
    )  # fmt: skip
    assert found({"filter.day": moment}, early, same, late, none) == [False, True, False, False]
    assert found({"filter.day": {"$gt": moment}}, early, same, late, none) == [
        False, False, True, False,
    ]  # fmt: skip
    assert found({"filter.day": {"$lte": moment}}, early, same, late, none) == [
        True, True, False, False,
    ]  # fmt: skip


def test_text_that_is_a_date_is_still_text_for_text() -> None:
    assert found({"filter.day": {"$gte": "2020-03-02"}}, task(day="2020-03-10")) == [True]
    assert found({"filter.day": "2020-03-02"}, task(day="2020-03-02")) == [True]
    # Definitions that differ in this are two tasks, so one is not found by the other.
    assert found({"filter": {"day": "2020-03-02"}}, task(day=pd.Timestamp("2020-03-02"))) == [False]


def test_moments_with_and_without_a_time_zone_differ_and_have_no_order() -> None:
    zoned = task(day=pd.Timestamp("2020-03-02", tz="UTC"))
    for query in ({"$lt": pd.Timestamp("2021-01-01")}, pd.Timestamp("2020-03-02"), "2020-03-02"):
        assert found({"filter.day": query}, zoned) == [False]
    assert found({"filter.day": pd.Timestamp("2020-03-02", tz="UTC")}, zoned) == [True]


def test_not_a_time_equals_itself_and_has_no_order() -> None:
    assert found({"filter.day": pd.NaT}, task(day=pd.NaT)) == [True]
    assert found({"filter.day": {"$lt": pd.Timestamp("2020")}}, task(day=pd.NaT)) == [False]


def test_scalars_of_numpy_find_the_numbers_that_definitions_keep() -> None:
    query = {"filter.a": {"$in": [np.int64(2)]}, "filter.b": np.bool_(True)}
    assert found(query, task(a=2, b=True), task(a=2, b=1)) == [True, False]


def test_objects_that_have_no_order_or_no_equality_are_compared_with_anything() -> None:
    frame = pd.DataFrame({"a": [1.0]})
    documents = [task(a=value) for value in (frame, np.arange(3), {1}, object, b"x", 1 + 2j)]
    for wanted in (1, "x", None, True, [1], {"a": 1}, pd.Timestamp("2020"), frame.copy()):
        assert found({"filter.a": wanted}, *documents) == [False] * 6
    assert found({"filter.a": {"$gt": 1}}, *documents) == [False] * 6
    assert found({"filter.a": frame}, task(a=frame)) == [True]


# --- what has to be read -------------------------------------------------------------------------


class ObjectId:
    """What MongoDB's driver has as ids."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text


@pytest.mark.parametrize(
    ("query", "statuses", "ids"),
    [
        ({}, None, None),
        (None, None, None),
        ({"status": "done"}, {"done"}, None),
        ({"status": {"$in": ["done", "running"]}}, {"done", "running"}, None),
        ({"status": {"$ne": "failed"}}, set(STATUSES) - {"failed"}, None),
        ({"status": {"$nin": ["failed", "done"]}}, {"waiting", "running", "part_done"}, None),
        ({"status": {"$gt": "x"}}, set(), None),
        ({"status": {"$in": []}}, set(), None),
        ({"status": {"$ne": "done", "$in": ["done", "failed"]}}, {"failed"}, None),
        ({"$or": [{"status": "done"}, {"status": "failed"}]}, {"done", "failed"}, None),
        ({"$or": [{"status": "done"}, {"filter.a": 1}]}, None, None),
        ({"$or": [{"status": "done"}, {"status": "failed", "res": 1}]}, {"done", "failed"}, None),
        ({"$nor": [{"status": "done"}]}, set(STATUSES) - {"done"}, None),
        ({"$nor": [{"status": "done", "filter.a": 1}]}, None, None),
        ({"status": {"$not": {"$in": ["done"]}}}, set(STATUSES) - {"done"}, None),
        ({"status": {"$exists": True}}, None, None),
        ({"_id": "aa"}, None, {"aa"}),
        ({"_id": ObjectId("aa")}, None, {"aa"}),
        ({"_id": {"$in": ["aa", ObjectId("bb")]}}, None, {"aa", "bb"}),
        ({"_id": {"$in": ("aa", "bb"), "$ne": "aa"}}, None, {"aa", "bb"}),
        ({"_id": {"$in": {"aa", "bb"}, "$eq": "aa"}}, None, {"aa"}),
        ({"_id": {"$in": []}}, None, set()),
        ({"_id": None}, None, set()),
        ({"_id": {"$ne": "aa"}}, None, None),
        ({"_id": {"$gt": "aa"}}, None, None),
        ({"$and": [{"_id": {"$in": ["aa", "bb"]}}, {"_id": {"$in": ["bb", "cc"]}}]}, None, {"bb"}),
        ({"$or": [{"_id": "aa"}, {"_id": "bb"}]}, None, {"aa", "bb"}),
        ({"$or": [{"_id": "aa"}, {"status": "done"}]}, None, None),
        ({"$nor": [{"_id": "aa"}]}, None, None),
        ({"_id": "aa", "status": "done", "filter.a": 1}, {"done"}, {"aa"}),
    ],
)  # fmt: skip
def test_a_query_says_which_statuses_and_ids_it_can_match(
    query: dict[str, Any] | None, statuses: set[str] | None, ids: set[str] | None
) -> None:
    parsed = Query.parse(query)
    assert (parsed.statuses, parsed.ids) == (statuses, ids)


@pytest.mark.parametrize(
    ("query", "document", "result"),
    [
        ({}, False, False),
        ({"_id": "aa", "status": {"$ne": "done"}, "priority": {"$gte": 3}}, False, False),
        ({"filter.a": 1}, True, False),
        ({"def.a": 1}, True, False),
        ({"$or": [{"status": "done"}, {"filter.a": {"$not": {"$gt": 1}}}]}, True, False),
        ({"res.ic": {"$gt": 0.1}}, True, True),
        ({"error": {"$exists": True}}, True, True),
    ],
)
def test_a_query_says_what_has_to_be_read(
    query: dict[str, Any], document: bool, result: bool
) -> None:
    parsed = Query.parse(query)
    assert (parsed.needs_document, parsed.needs_result) == (document, result)


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ({}, False),
        ({"status": "done"}, False),
        ({"filter.a": 1}, False),
        ({"_id": {"$ne": "aa"}}, True),
        ({"$or": [{"status": "done"}, {"priority": 3}]}, True),
    ],
)
def test_a_query_says_whether_more_of_names_than_the_status_counts(
    query: dict[str, Any], name: bool
) -> None:
    assert Query.parse(query).needs_name is name


@pytest.mark.parametrize(
    ("query", "accepted"),
    [
        ({}, True),
        ({"priority": 5}, True),
        ({"priority": {"$gt": 5}}, False),
        ({"priority": {"$exists": False}}, False),
        ({"filter.a": 1}, True),
        ({"filter.a": 1, "status": "done"}, False),
        ({"$or": [{"status": "done"}, {"filter.a": 1}]}, True),
        ({"$or": [{"status": "done"}, {"priority": {"$lt": 5}}]}, False),
        ({"$nor": [{"status": "waiting"}, {"filter.a": 1}]}, False),
        ({"_id": {"$in": ["bb"]}}, False),
        ({"_id": {"$in": ["aa"]}}, True),
    ],
)
def test_a_name_is_refused_by_what_it_tells_alone(query: dict[str, Any], accepted: bool) -> None:
    assert Query.parse(query).accepts_name("aa", "waiting", 5) is accepted


def test_a_task_without_priority_has_none() -> None:
    for query in ({"priority": None}, {"priority": {"$exists": False}}, {"priority": {"$ne": 1}}):
        assert Query.parse(query).accepts_name("aa", "waiting", None)
    assert not Query.parse({"priority": {"$gte": 0}}).accepts_name("aa", "waiting", None)


def test_ids_that_are_objects_find_the_ids_that_are_text() -> None:
    document = {**task(), "_id": "aa"}
    for query in (ObjectId("aa"), {"$in": [ObjectId("aa")]}, {"$ne": ObjectId("bb")}):
        assert found({"_id": query}, document) == [True]


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "place", "message"),
    [
        ({"staus": "done"}, "staus", "did you mean 'status'"),
        ({"model.class": "LGBModel"}, "model.class", "did you mean 'filter.model.class'"),
        ({"filter.a": {"$gte": 1, "$lowest": 2}}, "filter.a: $lowest", "no such operator"),
        ({"filter.a": {"$regex": "x"}}, "filter.a: $regex", "no such operator"),
        ({"filter.a": {"$gte": 1, "b": 2}}, "filter.a", "'b' stand side by side"),
        ({"$where": "1"}, "$where", "no such operator"),
        ({1: "x"}, "1", "no such operator"),
        ({"$or": []}, "$or", "list of one query or more"),
        ({"$or": {"status": "done"}}, "$or", "list of one query or more"),
        ({"$and": ["done"]}, "$and", "a dict is expected"),
        ({"_id": {"$in": "aa"}}, "_id: $in", "a list, and not a str"),
        ({"_id": ["aa"]}, "_id: $eq", "an id is text"),
        ({"filter.a": {"$not": 1}}, "filter.a: $not", "dict of operators"),
        ({"filter.a": {"$gt": [1]}}, "filter.a: $gt", "a list has no order"),
        ({"filter..a": 1}, "filter..a", "an empty part"),
        ("done", "the query", "a dict is expected"),
        ([("status", "done")], "the query", "a dict is expected"),
        ({"status": "dne"}, "status: $eq", "no status 'dne'; did you mean 'done'?"),
        ({"status": {"$in": ["done", "faild"]}}, "status: $in", "did you mean 'failed'?"),
        ({"status": {"$nin": ["part-done"]}}, "status: $nin", "did you mean 'part_done'?"),
        ({"status": {"$not": {"$ne": "x"}}}, "status: $ne", "'waiting'"),
        ({"$or": [{"_id": "aa"}, {"status": None}]}, "status: $eq", "no status None"),
        ({"status": ["done"]}, "status: $eq", "no status ['done']"),
    ],
)
def test_a_mistake_is_named_with_its_place(query: Any, place: str, message: str) -> None:
    with pytest.raises(QueryError) as caught:
        Query.parse(query)
    assert caught.value.place == place
    assert message in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_status_that_does_not_exist_is_refused_wherever_it_stands() -> None:
    assert len(MISTAKEN) > 50
    for case in MISTAKEN:
        with pytest.raises(QueryError, match="there is no status"):
            Query.parse(case["query"])


def test_regular_expressions_are_refused() -> None:
    import re

    with pytest.raises(QueryError, match="regular expressions"):
        Query.parse({"filter.a": {"$in": [re.compile("x")]}})


def test_the_callers_query_is_neither_changed_nor_seen_to_change() -> None:
    query: dict[str, Any] = {
        "_id": {"$in": [ObjectId("aa")]},
        "$or": [{"filter": {"a": [1, {"b": 2}]}}],
        "status": {"$ne": "done"},
    }
    before = copy.copy(query["_id"]["$in"])
    parsed = Query.parse(query)
    assert query["_id"]["$in"] == before
    assert query["status"] == {"$ne": "done"}
    query["$or"][0]["filter"]["a"][1]["b"] = 3
    query["_id"]["$in"].clear()
    assert parsed.matches({"_id": "aa", "status": "waiting", "filter": {"a": [1, {"b": 2}]}})


# --- laws ----------------------------------------------------------------------------------------

some = st.sampled_from(CASES).map(lambda case: case["query"])
document = st.sampled_from(DOCUMENTS)


@given(some, some, document)
def test_groups_of_queries_are_their_logic(
    one: dict[str, Any], other: dict[str, Any], tried: dict[str, Any]
) -> None:
    both = found(one, tried) + found(other, tried)
    assert found({"$and": [one, other]}, tried) == [all(both)]
    assert found({"$or": [one, other]}, tried) == [any(both)]
    assert found({"$nor": [one, other]}, tried) == [not any(both)]


@given(some, document)
def test_a_name_that_is_refused_belongs_to_no_task_that_matches(
    query: dict[str, Any], tried: dict[str, Any]
) -> None:
    parsed = Query.parse(query)
    accepted = parsed.accepts_name(tried["_id"], tried["status"], tried.get("priority"))
    assert accepted or not parsed.matches(tried)
    if not parsed.needs_document:
        assert accepted is parsed.matches(tried)
