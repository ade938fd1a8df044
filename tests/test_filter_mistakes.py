"""What is no filter or order is refused with the place, what was expected, and what to write."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwf.errors import FilterError, QwfError
from qwf.tracking.filters import parse_filter, parse_order

MISTAKES = [
    # filter, what stands at the position, what the message has to say
    ("metric_s.x > 0", "metric_s.x", "did you mean 'metrics'?"),
    ("METRICS.x > 0", "METRICS.x", "did you mean 'metrics'?"),
    ("dataset.name = 'x'", "dataset.name", "'params'"),
    ("stats = 'FINISHED'", "stats", "did you mean 'status'?"),
    ("Status = 'FINISHED'", "Status", "did you mean 'status'?"),
    ("attributes.stat_time > 0", "attributes.stat_time", "did you mean 'start_time'?"),
    ("model = 'LGB'", "model", "params.model, metrics.model, tags.model"),
    ("`a b` = 'x'", "`a b`", "params.`a b`"),
    ("params", "params", "as params.x"),
    ("metrics .x > 0", "metrics", "as metrics.x"),
    ("metrics. x > 0", "x", "a name directly after the dot"),
    ("params. = 'x'", "=", "a name directly after the dot"),
    ("params.`` = 'x'", "``", "a name directly after the dot"),
    (".model = 'x'", ".model", "before the dot"),
    ("0 < metrics.x", "0", "stands before the value"),
    ("'LGB' = params.model", "'LGB'", "stands before the value"),
    ("= 'x'", "=", "a column"),
    ("metrics.x", "", "found the end, expected =, IN, <, <=, >, >= or IS NULL after metrics.x"),
    ("metrics.x >", "", "found the end, expected a number"),
    ("metrics.x > 0 AND", "", "found the end, expected a column"),
    ("metrics.x > 0 and and metrics.y > 0", "and metrics.y", "found and, expected a column"),
    ("NOT", "", "found the end, expected a column"),
    ("metrics.x > 0 metrics.y > 0", "metrics.y", "expected AND, OR or the end"),
    ("metrics.x > 0, metrics.y > 0", ",", "write AND."),
    ("metrics.x > 0 & metrics.y > 0", "&", "write AND."),
    ("metrics.x > 0 || metrics.y > 0", "||", "write OR."),
    ("metrics.x > 0;", ";", "expected AND, OR or the end"),
    ("(metrics.x > 0", "", "the parenthesis at position 0 is not closed."),
    ("metrics.x > 0)", ")", 'found ")", expected AND, OR or the end'),
    ("()", ")", "expected a column"),
    ("metrics.x => 0", "=>", "write >=."),
    ("metrics.x ! = 0", "!", "expected =, IN"),
    ("metrics.x BETWEEN 0 AND 1", "BETWEEN", "write metrics.x >= ... AND metrics.x <= ..."),
    ("metrics.x > '0'", "'0'", "write 0 without quotes."),
    ("metrics.x = 'high'", "'high'", "expected a number"),
    ("metrics.x > 1_000", "1_000", "expected a number"),
    ("metrics.x > 0x10", "0x10", "expected a number"),
    ("metrics.x > 0.1.2", "0.1.2", "expected a number"),
    ("metrics.x > - 1", "- 1", "expected a number"),
    ("metrics.x > nan", "nan", "ask for metrics by = nan."),
    ("metrics.x IN (1, nan)", "nan", "ask for metrics by = nan."),
    ("metrics.x LIKE '0%'", "LIKE", "metrics.x is a number"),
    ("metrics.x NOT LIKE '0%'", "NOT", "metrics.x is a number"),
    ("metrics.x = NULL", "NULL", "asked by IS NULL"),
    ("params.x = None", "None", "asked by IS NULL"),
    ("params.x IS 'a'", "'a'", "expected NULL or NOT NULL"),
    ("params.x NOT NULL", "NULL", "expected LIKE, ILIKE or IN"),
    ("params.model = LGB", "LGB", "expected a quoted text as 'LGB'"),
    ("params.model = `LGB`", "`LGB`", "expected a quoted text as 'LGB'"),
    ("params.layers = 2", "2", "expected a quoted text as '2'"),
    ("params.layers IN ('1', 2)", "2", "expected a quoted text as '2'"),
    ("params.lr > '0.1'", "'0.1'", "write 0.1 without quotes."),
    ("params.model > 'A'", "'A'", "compare them by =, LIKE or IN."),
    ("tags.t = params.p", "params.p", "expected a quoted text as 'params.p'"),
    ("run_name > 3", ">", "attributes.run_name is a text"),
    ("params.x LIKE 3", "3", "expected a quoted text as '3'"),
    ("params.x IN 'a'", "'a'", "a list in parentheses"),
    ("params.x IN ()", ")", "expected a quoted text"),
    ("params.x IN ('a' 'b')", "'b'", "expected a comma"),
    ("params.x IN ('a', 'b'", "", 'expected a comma or ")"'),
    ("params.x = 'LGB", "'LGB", "another ' that closes"),
    ("params.x = 'a''b", "'a''b", "another ' that closes"),
    ('params.x = "', '"', 'another " that closes'),
    ("params.`x = 'a'", "`x", "another ` that closes"),
    (r"params.x = 'it\'s'", "s'", "a quote within a quoted text is doubled."),
    ("tags.has space = 'x'", "space", "as in tags.`has space`"),
    ("metrics.m@1 > 0", "@", "as in tags.`has space`"),
    ("start_time > '1700000000000'", "'17", "write 1700000000000 without quotes."),
    ("start_time > 'yesterday'", "'yes", "a date as '2023-11-14'"),
    ("start_time > '2023-11-31'", "'2023", "expected a date that exists"),
    ("start_time > '2023-11-14 25:00'", "'2023", "expected a date that exists"),
    ("start_time = '2023-11-14'", "'2023", "a date alone is its midnight"),
    ("start_time > nan", "nan", "expected a number"),
    ("start_time LIKE '2023%'", "LIKE", "is a number"),
]


@pytest.mark.parametrize(("text", "rest", "says"), MISTAKES, ids=[case[0] for case in MISTAKES])
def test_a_mistake_says_where_it_is_and_what_was_expected(text: str, rest: str, says: str) -> None:
    with pytest.raises(FilterError) as caught:
        parse_filter(text)
    message, shown, caret = str(caught.value).split("\n")
    assert says in message
    position = caught.value.position
    assert f"the filter has a mistake at position {position}: found " in message
    assert text[position:].startswith(rest)
    assert position == len(text) or rest
    assert shown.strip() == text.strip()
    assert caret.index("^") == position + 2


@pytest.mark.parametrize(
    ("clause", "position", "says"),
    [
        ("metrics.x SIDEWAYS", 10, "expected ASC, DESC, a comma or the end"),
        ("metrics.x ASC DESC", 14, "expected ASC, DESC, a comma or the end"),
        ("tags.has space DESC", 9, "as in tags.`has space`"),
        ("metric_s.x", 0, "did you mean 'metrics'?"),
        ("stat_time", 0, "did you mean 'start_time'?"),
        ("metrics.x, run_id, metric.x DESC", 19, "metrics.x is in the order already."),
        ("metrics.x,", 10, "expected a column"),
        (" ", 1, "expected a column"),
        ("DESC", 0, "expected a column"),
    ],
)
def test_a_mistake_in_an_order_says_so(clause: str, position: int, says: str) -> None:
    with pytest.raises(FilterError, match="the order has a mistake") as caught:
        parse_order(["run_name", clause])
    assert caught.value.position == position
    assert says in str(caught.value)


def test_a_filter_error_is_a_value_error_with_facts_that_survives_pickling() -> None:
    with pytest.raises(ValueError, match="found LGB") as caught:
        parse_filter("params.model = LGB")
    assert isinstance(caught.value, QwfError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert (again.text, again.position, again.found) == ("params.model = LGB", 15, "LGB")


def test_the_caret_stands_below_the_mistake_in_long_wide_and_many_lines() -> None:
    def lines(text: str) -> list[str]:
        with pytest.raises(FilterError) as caught:
            parse_filter(text)
        return str(caught.value).split("\n")[1:]

    assert lines("metrics.x > 0\n\tAND params.p = a\nOR run_id = 'b'") == [
        "   AND params.p = a",
        "                  ^",
    ]
    assert lines("params.学习率 = a") == ["  params.学习率 = a", " " * 18 + "^"]
    shown, caret = lines(
        " AND ".join(["metrics.x > 0"] * 50) + " AND params.p = here AND " + "x" * 99
    )
    assert shown[caret.index("^") :].startswith("here")
    assert len(shown) < 120


@pytest.mark.parametrize("depth", [51, 5000])
def test_too_many_parentheses_are_a_mistake_and_not_the_end_of_the_stack(depth: int) -> None:
    for opening in ("(", "NOT ("):
        with pytest.raises(FilterError, match="at most 50 parentheses"):
            parse_filter(opening * depth + "metrics.m > 0" + ")" * depth)


@given(st.text("amp.s`'\"()=<>! ,01-ANDORTIKELU\n线", max_size=25))
def test_any_text_is_a_filter_or_a_mistake_within_it(text: str) -> None:
    mistakes = []
    for parse in (parse_filter, parse_order):
        try:
            parse(text)
        except FilterError as error:
            mistakes.append(error)
    assert all(0 <= mistake.position <= len(text) for mistake in mistakes)
    assert all(str(mistake).count("\n") == 2 for mistake in mistakes)
