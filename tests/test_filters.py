"""What a filter finds and an order sorts: as MLflow answers, and beyond it as SQL means."""

from __future__ import annotations

import gzip
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwf.errors import FilterError
from qwf.tracking.filters import parse_filter, parse_order

ORACLE = json.loads(
    gzip.decompress(
        (Path(__file__).parent / "oracles" / "search" / "mlflow_sqlite.json.gz").read_bytes()
    )
)
# What MLflow refuses and qwf understands, and what that finds.
POORER = {
    "params.model IN ('LGB', 'GRU')": "0 2 3 5 6 8 11",  # there a list is for run_id alone
    "metrics.IC > 0 or params.model = 'LGB'": "0 1 2 3 4 6",  # there is no OR
    "(metrics.IC > 0)": "0 1 2 3 4",  # there are no parentheses
}
# What MLflow accepts and qwf refuses.
WRONG = {
    "metrics.IC > 0 and",  # there whatever was to follow is forgotten in silence
}


class Runs:
    """Rows of dicts as columns, which counts what is asked for."""

    def __init__(self, **families: list[dict[str, Any]]) -> None:
        self.families = families
        self.asked: Counter[tuple[str, str]] = Counter()
        self.count = max((len(rows) for rows in families.values()), default=0)

    def __call__(self, family: str, key: str) -> Sequence[Any]:
        self.asked[family, key] += 1
        rows = self.families.get(family) or [{}] * self.count
        return [row.get(key) for row in rows]

    def find(self, text: str) -> list[int]:
        return parse_filter(text).positions(self, self.count)


def texts(*values: str | None, key: str = "p") -> Runs:
    return Runs(params=[{} if value is None else {key: value} for value in values])


def numbers(*values: float | None) -> Runs:
    return Runs(metrics=[{} if value is None else {"m": value} for value in values])


# --- MLflow's answers ----------------------------------------------------------------------------


LIVING = [run for run in ORACLE["runs"] if run["name"] not in ORACLE["deleted"]]
NAMES = [run["name"] for run in LIVING]


@pytest.fixture
def twelve() -> Runs:
    return Runs(
        params=[run["params"] for run in LIVING],
        tags=[run["tags"] for run in LIVING],
        metrics=[
            {key: float(points[-1][1]) for key, points in run["metrics"].items()} for run in LIVING
        ],
        attributes=[
            {
                "run_id": run["name"],
                "run_name": run["name"],
                "status": run["status"],
                "start_time": run["start_time"],
                "end_time": None if run["status"] == "RUNNING" else run["start_time"] + 500,
            }
            for run in LIVING
        ],
    )


def by_start(names: list[str]) -> list[set[str]]:
    """Return the names in order, those in a row that start together as a set."""
    starts = {run["name"]: run["start_time"] for run in LIVING}
    return [set(group) for _, group in itertools.groupby(names, key=starts.__getitem__)]


def found(runs: Runs, text: str) -> list[str]:
    rows = parse_order(None).sorted(runs.find(text), runs)
    return [NAMES[row] for row in rows]


@pytest.mark.parametrize("case", ORACLE["filters"], ids=lambda case: case["filter"] or "nothing")
def test_a_filter_finds_what_it_finds_in_mlflow(twelve: Runs, case: dict[str, Any]) -> None:
    text = case["filter"]
    if text in POORER:
        assert "error" in case
        assert set(found(twelve, text)) == {f"rec{number}" for number in POORER[text].split()}
    elif "error" in case or text in WRONG:
        with pytest.raises(FilterError):
            parse_filter(text)
    else:
        assert by_start(found(twelve, text)) == by_start(case["ok"])


@pytest.mark.parametrize("case", ORACLE["orders"], ids=lambda case: str(case["order_by"]))
def test_an_order_is_that_of_mlflow(twelve: Runs, case: dict[str, Any]) -> None:
    if "error" in case:
        with pytest.raises(FilterError):
            parse_order(case["order_by"])
        return
    rows = parse_order(case["order_by"]).sorted(range(len(NAMES)), twelve)
    assert by_start([NAMES[row] for row in rows]) == by_start(case["ok"])


# --- what SQL means ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("params.p = 'a'", [0]),
        ("params.p == 'a'", [0]),
        ("params.p != 'a'", [1]),
        ("params.p <> 'a'", [1]),
        ("NOT params.p = 'a'", [1]),
        ("NOT params.p != 'a'", [0]),
        ("NOT NOT params.p = 'a'", [0]),
        ("params.p IN ('a', 'c')", [0]),
        ("params.p NOT IN ('a', 'c')", [1]),
        ("NOT params.p IN ('a')", [1]),
        ("params.p LIKE '%'", [0, 1]),
        ("params.p NOT LIKE 'a%'", [1]),
        ("params.p NOT ILIKE 'A%'", [1]),
        ("params.p IS NULL", [2]),
        ("params.p IS NOT NULL", [0, 1]),
        ("NOT params.p IS NULL", [0, 1]),
        ("params.p = 'a' OR params.p IS NULL", [0, 2]),
        ("NOT (params.p = 'a' AND params.q IS NULL)", [1]),
        ("NOT (params.p = 'a' OR params.q IS NOT NULL)", [1]),
        ("params.q = 'x'", []),
        ("NOT params.q = 'x'", []),
        ("NOT (params.q = 'x' OR params.p = 'b')", []),
    ],
)
def test_a_missing_value_is_found_by_is_null_alone(text: str, rows: list[int]) -> None:
    assert texts("a", "b", None).find(text) == rows


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("metrics.m = 0", [1]),
        ("metrics.m != 0", [0, 2, 3, 4]),
        ("metrics.m > 0", [2, 3]),
        ("metrics.m <= 0", [1, 4]),
        ("NOT metrics.m > 0", [0, 1, 4]),
        ("metrics.m IN (0, .5)", [1, 2]),
        ("metrics.m NOT IN (0, .5)", [0, 3, 4]),
        ("metrics.m = nan", [0]),
        ("metrics.m != NaN", [1, 2, 3, 4]),
        ("NOT metrics.m = nan", [1, 2, 3, 4]),
        ("metrics.m = inf", [3]),
        ("metrics.m < -1e300", [4]),
        ("metrics.m = -Infinity", [4]),
        ("metrics.m IS NULL", [5]),
        ("metrics.m IS NOT NULL", [0, 1, 2, 3, 4]),
    ],
)
def test_nan_is_unequal_to_every_number_and_there(text: str, rows: list[int]) -> None:
    assert numbers(math.nan, -0.0, 0.5, math.inf, -math.inf, None).find(text) == rows


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("metrics.m = 1 OR metrics.m = 2 AND metrics.m = 3", [0]),
        ("(metrics.m = 1 OR metrics.m = 2) AND metrics.m = 3", []),
        ("metrics.m = 3 AND metrics.m = 2 OR metrics.m = 1", [0]),
        ("NOT metrics.m = 1 AND metrics.m < 3", [1]),
        ("NOT (metrics.m = 1 AND metrics.m < 3)", [1, 2]),
        ("NOT metrics.m = 1 OR metrics.m = 1", [0, 1, 2]),
        ("metrics.m = 1 AND NOT metrics.m = 2", [0]),
        ("not(metrics.m=1)and(metrics.m<3)", [1]),
    ],
)
def test_not_binds_closer_than_and_and_that_closer_than_or(text: str, rows: list[int]) -> None:
    assert numbers(1, 2, 3).find(text) == rows


@pytest.mark.parametrize("number", ["1000", "1e3", "1E+3", "+1000", "1000.", "1000.0", "10000e-1"])
def test_numbers_are_written_as_in_python(number: str) -> None:
    assert numbers(999, 1000, 1001).find(f"metrics.m={number}") == [1]


def test_a_number_may_be_negative_or_begin_with_a_point() -> None:
    assert numbers(-0.5, 0.5).find("metrics.m < -.4") == [0]
    assert numbers(-0.5, 0.5).find("metrics.m > .4") == [1]


# --- texts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("params.p > 9", [1, 2]),
        ("params.p >= 10", [1, 2]),
        ("params.p < 10", [0]),
        ("params.p <= 1e1", [0, 1]),
        ("NOT params.p > 9", [0]),
        ("params.p = '9'", [0]),
        ("params.p IN ('10')", [1]),
    ],
)
def test_params_are_greater_or_less_as_numbers_where_they_are_numbers(
    text: str, rows: list[int]
) -> None:
    assert texts("9", "10", "1e3", "many", "nan", "20_01", "", None).find(text) == rows


@pytest.mark.parametrize(
    ("pattern", "rows"),
    [
        ("LGB", [0]),
        ("L%", [0, 3]),
        ("%B", [0]),
        ("%G%", [0]),
        ("L_B", [0]),
        ("___", [0, 1, 4]),
        ("%", [0, 1, 2, 3, 4]),
        ("", [2]),
        ("_", []),
        ("l%", [1]),
        (r"%\%", [3]),
        (r"L1\_2\%", [3]),
        (r"L\_B", []),
        ("%\n%", [4]),
        ("a_b", [4]),
        ("L.B", []),
    ],
)
def test_like_knows_any_text_any_character_and_what_stands_for_itself(
    pattern: str, rows: list[int]
) -> None:
    runs = texts("LGB", "lgb", "", "L1_2%", "a\nb")
    assert runs.find(f"params.p LIKE '{pattern}'") == rows


def test_ilike_ignores_case_and_like_does_not() -> None:
    runs = texts("LGB", "lgb", "ÜB", "üb")
    assert runs.find("params.p LIKE 'l%'") == [1]
    assert runs.find("params.p ILIKE 'l%'") == [0, 1]
    assert runs.find("params.p ILIKE '%ü%'") == [2, 3]
    assert runs.find("params.p NOT ILIKE 'L_B'") == [2, 3]


def test_a_backslash_before_anything_else_is_a_backslash() -> None:
    assert texts("C:\\data", "C:data").find(r"params.p LIKE 'C:\d%'") == [0]
    assert texts("C:\\%", "C:\\x").find(r"params.p LIKE 'C:\\\%'") == [0]


def test_a_pattern_of_many_parts_is_decided_at_once() -> None:
    assert texts("a" * 5000).find(f"params.p LIKE '{'%a' * 30}%b'") == []
    assert texts("a" * 5000).find(f"params.p LIKE '{'%' * 5000}'") == [0]


@pytest.mark.parametrize(
    "text",
    [
        "params.p = 'it''s \"1\"'",
        'params.p = "it\'s ""1"""',
        "params.p IN ('it''s \"1\"')",
        "params.p IN ('x', 'it''s \"1\"',)",
    ],
)
def test_a_quote_within_a_text_is_doubled(text: str) -> None:
    assert texts('it\'s "1"', "it").find(text) == [0]


@pytest.mark.parametrize(
    ("written", "key"),
    [
        ("params.dataset.kwargs.x", "dataset.kwargs.x"),
        ("param.cmd-sys.argv", "cmd-sys.argv"),
        ("parameters.a/b:c", "a/b:c"),
        ("parameter.学习率", "学习率"),
        ("params.1", "1"),
        ("params.in", "in"),
        ("params.`has space`", "has space"),
        ('params."has space"', "has space"),
        ("params.'has space'", "has space"),
        ("`params`.`has space`", "has space"),
        ("`params`.p", "p"),
        ("params.`a``b`", "a`b"),
        ('params."a""b"', 'a"b'),
        ("params.`AND (x = 'y'`", "AND (x = 'y'"),
    ],
)
def test_names_are_bare_or_quoted(written: str, key: str) -> None:
    runs = texts("v", key=key)
    assert runs.find(f"{written}='v'") == [0]
    assert runs.asked == {("params", key): 1}


@pytest.mark.parametrize(
    ("written", "attribute"),
    [
        ("attributes.run_name", "run_name"),
        ("attribute.run_name", "run_name"),
        ("attr.run_name", "run_name"),
        ("run.run_name", "run_name"),
        ("run_name", "run_name"),
        ("`run name`", "run_name"),
        ('"Run name"', "run_name"),
        ("attributes.`Run Name`", "run_name"),
        ("tags.`mlflow.runName`", "run_name"),
        ('tag."mlflow.runName"', "run_name"),
        ("tags.mlflow.runName", "run_name"),
        ("tags.mlflow.parentRunId", "parent_id"),
        ("parent_id", "parent_id"),
        ("run_id", "run_id"),
        ("experiment_id", "experiment_id"),
    ],
)
def test_attributes_have_the_names_that_mlflow_gives_them(written: str, attribute: str) -> None:
    runs = Runs(attributes=[{attribute: "x"}, {attribute: "y"}, {}])
    assert runs.find(f"{written} = 'x'") == [0]
    assert runs.asked == {("attributes", attribute): 1}


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("status = 'FINISHED'", [0]),
        ("status != 'FINISHED'", [1]),
        ("status IN ('FINISHED', 'PAUSED')", [0]),
        ("status LIKE 'F%'", [0, 1]),
        ("status ILIKE 'f%'", [0, 1]),
    ],
)
def test_a_status_is_compared_as_a_text(text: str, rows: list[int]) -> None:
    assert Runs(attributes=[{"status": "FINISHED"}, {"status": "FAILED"}]).find(text) == rows


# --- times ---------------------------------------------------------------------------------------

# As `date -u -d @1700000000` prints it.
MOMENT = "2023-11-14 22:13:20"


@pytest.mark.parametrize(
    "written",
    [
        "1700000000000",
        "1.7e12",
        f"'{MOMENT}'",
        '"2023-11-14T22:13:20"',
        "'2023-11-14T22:13:20Z'",
        "'2023-11-14T22:13:20.0'",
        "'2023-11-14T22:13:20.000000+00:00'",
        "'2023-11-15 06:13:20+08:00'",
        "'2023-11-14 17:13:20-05:00'",
    ],
)
def test_a_moment_is_in_milliseconds_or_a_date_in_utc(written: str) -> None:
    runs = Runs(attributes=[{"start_time": 1700000000000 + shift} for shift in (-1, 0, 1)])
    assert runs.find(f"start_time = {written}") == [1]
    assert runs.find(f"created > {written}") == [2]
    assert runs.find(f"attributes.Created <= {written}") == [0, 1]
    assert runs.find(f"start_time != {written}") == [0, 2]
    assert runs.find(f"start_time IN ({written})") == [1]


def test_a_fraction_of_a_second_counts() -> None:
    runs = Runs(attributes=[{"end_time": 1700000000499}, {"end_time": 1700000000500}, {}])
    assert runs.find(f"end_time >= '{MOMENT}.5'") == [1]
    assert runs.find(f"end_time < '{MOMENT}.499001'") == [0]
    assert runs.find("end_time IS NULL") == [2]


def test_a_date_alone_is_its_midnight() -> None:
    # `date -u -d 2023-11-14 +%s` is 1699920000.
    runs = Runs(attributes=[{"start_time": 1699920000000 + shift} for shift in (-1, 0, 1)])
    assert runs.find("start_time >= '2023-11-14'") == [1, 2]
    assert runs.find("start_time < '2023-11-14'") == [0]
    assert runs.find("start_time >= '2023-11-14 00:00'") == [1, 2]


# --- orders --------------------------------------------------------------------------------------


def ordered(clauses: Any, runs: Runs) -> list[int]:
    return parse_order(clauses).sorted(range(runs.count), runs)


def test_nan_comes_after_the_numbers_and_missing_values_after_that_in_both_directions() -> None:
    runs = numbers(None, math.nan, 2, -math.inf, 1)
    assert ordered("metrics.m", runs) == [3, 4, 2, 1, 0]
    assert ordered("metrics.m DESC", runs) == [2, 4, 3, 1, 0]


def test_ties_are_broken_by_the_newest_start_and_then_by_the_id() -> None:
    runs = Runs(
        attributes=[
            {"run_id": "d", "start_time": 1},
            {"run_id": "a", "start_time": 2},
            {"run_id": "c"},
            {"run_id": "b", "start_time": 2},
        ],
        tags=[{"t": "x"}, {"t": "x"}, {"t": "x"}, {"t": "w"}],
    )
    assert ordered(None, runs) == [1, 3, 0, 2]
    assert ordered([], runs) == ordered("", runs) == [1, 3, 0, 2]
    assert ordered("tags.t", runs) == [3, 1, 0, 2]
    assert ordered("tags.t DESC", runs) == [1, 0, 2, 3]
    assert ordered("start_time", runs) == [0, 1, 3, 2]
    assert ordered("run_id DESC", runs) == [0, 2, 3, 1]


def test_several_columns_are_in_a_list_or_between_commas() -> None:
    runs = Runs(
        params=[{"a b": "x"}, {"a b": "y"}, {"a b": "x"}], metrics=[{"m": m} for m in "123"]
    )
    expected = [1, 2, 0]
    assert ordered(["params.`a b` desc", "metric.m  DESC"], runs) == expected
    assert ordered(("params.`a b` DESC, metrics.m DESC",), runs) == expected
    assert ordered('param."a b" Desc,metrics.m DESC', runs) == expected


def test_only_the_rows_given_are_ordered() -> None:
    assert parse_order("metrics.m").sorted([3, 0, 2], numbers(3, 2, 1, 0)) == [3, 2, 0]


def test_params_are_ordered_as_texts_as_in_mlflow() -> None:
    assert ordered("params.p", texts("9", "10", "B", "a")) == [1, 0, 2, 3]


# --- what is asked for ---------------------------------------------------------------------------


def test_each_column_is_asked_for_once_and_only_if_a_row_needs_it() -> None:
    runs = Runs(metrics=[{"m": 1, "n": 2}] * 3)
    assert runs.find("metrics.m = 1 AND metrics.n = 2 OR metrics.m = 3 AND metrics.n = 1") == [
        0,
        1,
        2,
    ]
    assert runs.asked == {("metrics", "m"): 1, ("metrics", "n"): 1}
    runs.asked.clear()
    assert runs.find("metrics.m = 2 AND metrics.n = 2") == []
    assert runs.find("metrics.m = 1 OR metrics.n = 2") == [0, 1, 2]
    assert runs.asked == {("metrics", "m"): 2}


@pytest.mark.parametrize("blank", ["", " ", "\n\t"])
def test_a_blank_filter_matches_everything_and_asks_for_nothing(blank: str) -> None:
    runs = numbers(1, None)
    assert runs.find(blank) == [0, 1]
    assert not runs.asked


def test_no_rows_are_no_problem() -> None:
    assert parse_filter("params.p = 'x' OR NOT metrics.m > 1").positions(Runs(), 0) == []
    assert parse_order("metrics.m").sorted([], Runs()) == []


def test_what_is_long_but_not_deep_is_understood() -> None:
    runs = numbers(1, 2, 3)
    assert runs.find("(" * 50 + "metrics.m > 1" + ")" * 50) == [1, 2]
    assert runs.find("NOT " * 9999 + "metrics.m > 1") == [0]
    assert runs.find(" AND ".join(["metrics.m > 1"] * 3000)) == [1, 2]
    assert runs.find(" OR ".join(f"metrics.m = {m}" for m in range(3, 3000))) == [2]
    assert runs.find(f"metrics.m IN ({', '.join(map(str, range(2, 9999)))})") == [1, 2]


# --- any condition on any rows -------------------------------------------------------------------

TEXTS = [
    "",
    "a",
    "A",
    "ab",
    "aab",
    "1",
    "2.5",
    "-3e2",
    "nan",
    "1_0",
    "it's",
    '"',
    "%",
    "a\\b",
    "线",
]
NUMBERS = [math.nan, math.inf, -math.inf, -0.0, 0.0, 1.0, 2.5, -300.0]
TIMES = [0, 1, 1700000000000]
COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "LIKE": lambda a, b: like(list(b), list(a)),
    "ILIKE": lambda a, b: like(list(b.lower()), list(a.lower())),
    "IN": lambda a, b: any(a == one for one in b),
}
Row = dict[tuple[str, str], Any]


def like(pattern: list[str], text: list[str]) -> bool:
    if not pattern:
        return not text
    first, *rest = pattern
    if first == "%":
        return any(like(rest, text[skip:]) for skip in range(len(text) + 1))
    if first == "\\" and rest[:1] in (["%"], ["_"], ["\\"]):
        return bool(text) and text[0] == rest[0] and like(rest[1:], text[1:])
    return bool(text) and (first == "_" or first == text[0]) and like(rest, text[1:])


def as_number(text: str) -> float | None:
    try:
        number = float(text.replace("_", "no"))
    except ValueError:
        return None
    return None if math.isnan(number) else number


def truth(tree: Any, row: Row) -> bool | None:
    """Return what a condition is for a row, None for what is unknown, by Kleene's tables."""
    kind, *parts = tree
    if kind == "NOT":
        inner = truth(parts[0], row)
        return None if inner is None else not inner
    if kind in ("AND", "OR"):
        outcomes = [truth(part, row) for part in parts[0]]
        decides: bool = kind == "OR"
        if decides in outcomes:
            return decides
        return None if None in outcomes else not decides
    column, operator, value = parts
    present = row.get(column)
    if operator == "IS NULL":
        return present is None
    if operator == "IS NOT NULL":
        return present is not None
    if column[0] == "params" and operator in ("<", "<=", ">", ">="):
        present = None if present is None else as_number(present)
    if present is None:
        return None
    negated, operator = operator.startswith("NOT "), operator.removeprefix("NOT ")
    return bool(COMPARE[operator](present, value)) != bool(negated)


def quoted(text: str, quote: str) -> str:
    return quote + text.replace(quote, quote * 2) + quote


NAME = {
    ("params", "p"): ["params.p", "param.`p`", 'parameters."p"'],
    ("params", "a b`"): ["params.`a b```", 'params."a b`"', "params.'a b`'"],
    ("metrics", "m.x"): ["metrics.m.x", "metric.`m.x`"],
    ("attributes", "run_name"): ["run_name", "attr.run_name", "`run name`", "tags.mlflow.runName"],
    ("attributes", "end_time"): ["end_time", "run.end_time", "attributes.'end_time'"],
}


@st.composite
def comparisons(draw: st.DrawFn) -> tuple[Any, str]:
    """Return a comparison and one of the ways to write it."""
    column = draw(st.sampled_from(list(NAME)))
    name = draw(st.sampled_from(NAME[column]))
    ordering = ["<", "<=", ">", ">="]
    operators = ["=", "!=", "IN", "NOT IN", "IS NULL", "IS NOT NULL"]
    text = column[0] == "params" or column[1] == "run_name"
    if column[1] != "run_name":
        operators += ordering
    if text:
        operators += ["LIKE", "NOT LIKE", "ILIKE", "NOT ILIKE"]
    operator = draw(st.sampled_from(operators))
    value: Any = None
    written = ""
    if operator.endswith("NULL"):
        pass
    elif text and operator not in ordering:
        pool = st.sampled_from(TEXTS) | st.text("aA%_\\1'\"`线", max_size=5)
        value = draw(st.lists(pool, min_size=1, max_size=3))
        quote = draw(st.sampled_from("'\""))
        written = ", ".join(quoted(one, quote) for one in value)
    else:
        pool_of_numbers = st.sampled_from(NUMBERS[1:]) | st.floats(allow_nan=False)
        value = draw(st.lists(pool_of_numbers, min_size=1, max_size=3))
        written = ", ".join(map(repr, value))
    if operator.endswith("IN"):
        written = f"({written})"
    elif value is not None:
        value = value[0]
        written = (
            written.split(", ")[0] if not text or operator in ordering else quoted(value, quote)
        )
    spelled = draw(st.sampled_from([operator, operator.lower()]))
    blank = draw(st.sampled_from([" ", "\n  "]))
    return ("IS", column, operator, value), f"{name}{blank}{spelled} {written}"


def joined(children: st.SearchStrategy[tuple[Any, str]]) -> st.SearchStrategy[tuple[Any, str]]:
    def negation(inner: tuple[Any, str]) -> tuple[Any, str]:
        return ("NOT", inner[0]), f"NOT ({inner[1]})"

    def chain(word: str, inner: list[tuple[Any, str]]) -> tuple[Any, str]:
        # Without parentheses where AND within OR needs none.
        bare = ("IS", "NOT", "AND") if word == "OR" else ("IS", "NOT")
        written = [text if tree[0] in bare else f"( {text})" for tree, text in inner]
        return (word, [tree for tree, _ in inner]), f" {word} ".join(written)

    several = st.lists(children, min_size=2, max_size=3)
    return (
        children.map(negation)
        | several.map(lambda inner: chain("AND", inner))
        | several.map(lambda inner: chain("OR", inner))
    )


def pools() -> Iterator[tuple[tuple[str, str], st.SearchStrategy[Any]]]:
    for column in NAME:
        values: list[Any] = TEXTS
        if column[0] == "metrics":
            values = NUMBERS
        elif column[1] == "end_time":
            values = TIMES
        yield column, st.sampled_from([None, *values])


ROWS = st.lists(st.fixed_dictionaries(dict(pools())), max_size=12)


@given(st.recursive(comparisons(), joined, max_leaves=8), ROWS)
def test_any_condition_matches_the_rows_of_which_it_is_true(
    condition: tuple[Any, str], rows: list[Row]
) -> None:
    tree, text = condition
    expected = [number for number, row in enumerate(rows) if truth(tree, row) is True]
    filter_ = parse_filter(text)
    assert filter_.positions(lambda *key: [row[key] for row in rows], len(rows)) == expected


@given(st.text(min_size=1), st.text(), st.sampled_from("'\"`"), st.sampled_from("'\""))
def test_any_name_and_any_text_can_be_quoted(key: str, value: str, around: str, quote: str) -> None:
    text = f"params.{quoted(key, around)} = {quoted(value, quote)}"
    assert texts(value, value + "x", key=key).find(text) == [0]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([None, *NUMBERS]), st.sampled_from([None, 1, 2]), st.sampled_from("abc")
        ),
        max_size=12,
    ),
    st.booleans(),
)
def test_any_rows_are_sorted_by_value_then_start_then_id(
    rows: list[tuple[float | None, int | None, str]], descending: bool
) -> None:
    runs = Runs(
        metrics=[{"m": number} for number, _, _ in rows],
        attributes=[{"start_time": start, "run_id": name} for _, start, name in rows],
    )

    def rank(position: int) -> tuple[Any, ...]:
        number, start, name = rows[position]
        sign = -1 if descending else 1
        place = 2 if number is None else 1 if math.isnan(number) else 0
        by_number = sign * number if number is not None and place == 0 else 0
        return place, by_number, start is None, -(start or 0), name, position

    clause = f"metrics.m {'DESC' if descending else 'ASC'}"
    assert ordered(clause, runs) == sorted(range(len(rows)), key=rank)


@pytest.mark.parametrize(
    ("text", "near", "rows"),
    [
        ("status = 'finished'", "'FINISHED'", []),
        ("status != 'KILLED'", "'FAILED'", [0]),
        ("status IN ('FINISHED', 'FAILD')", "'FAILED'", [0]),
    ],
)
def test_a_status_that_no_recorder_has_is_warned_of(
    text: str, near: str, rows: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    assert Runs(attributes=[{"status": "FINISHED"}]).find(text) == rows
    assert near in caplog.text
