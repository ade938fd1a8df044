from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwf.ensemble import (
    AverageEnsemble,
    Ensemble,
    Group,
    RollingEnsemble,
    RollingGroup,
    SingleKeyEnsemble,
)
from qwf.errors import DataError

DAYS = pd.bdate_range("2022-01-03", periods=6)
STOCKS = ["A", "B", "C", "D"]
LEVELS = ["datetime", "instrument"]

# A piece is a list of (day number, stock, value); rows may be repeated and in any order.
ROWS = st.tuples(
    st.integers(0, len(DAYS) - 1),
    st.sampled_from(STOCKS),
    st.one_of(st.integers(-5, 5).map(float), st.just(float("nan"))),
)
PIECES = st.dictionaries(st.text(max_size=3), st.lists(ROWS, max_size=12), min_size=1, max_size=5)


def frame_of(rows: list[tuple[int, str, float]], swapped: bool = False) -> pd.DataFrame:
    index = pd.MultiIndex.from_arrays(
        [DAYS[[day for day, _, _ in rows]], pd.Index([stock for _, stock, _ in rows], dtype=str)],
        names=LEVELS,
    )
    frame = pd.DataFrame({"score": [value for _, _, value in rows]}, index=index, dtype=float)
    return frame.swaplevel() if swapped else frame


def cells(frame: Any) -> dict[tuple[int, str], Any]:
    """Return {(day number, stock): value or None}, and check that no row is repeated."""
    assert frame.index.is_unique
    values = frame["score"] if isinstance(frame, pd.DataFrame) else frame
    return {
        (DAYS.get_loc(day), stock): None if np.isnan(value) else float(value)
        for (day, stock), value in values.items()
    }


def day_frame(values: dict[str, float], day: int = 0) -> pd.Series:
    return frame_of([(day, stock, value) for stock, value in values.items()])["score"]


@settings(max_examples=150, deadline=None)
@given(PIECES, st.booleans())
def test_rolling_ensemble_keeps_for_each_row_the_value_of_the_piece_that_begins_last(
    pieces: dict[str, list[tuple[int, str, float]]], swapped: bool
) -> None:
    frames = {
        key: frame_of(rows, swapped and number > 0)
        for number, (key, rows) in enumerate(pieces.items())
    }
    before = {key: frame.copy(deep=True) for key, frame in frames.items()}
    joined = RollingEnsemble()(frames)

    expected: dict[tuple[int, str], tuple[tuple[int, int], Any]] = {}
    for number, rows in enumerate(pieces.values()):
        if not rows:
            continue
        # Begins later, or stands earlier in the dict; within a piece the last row.
        rank = (min(day for day, _, _ in rows), -number)
        for day, stock, value in rows:
            if (day, stock) not in expected or rank >= expected[day, stock][0]:
                expected[day, stock] = (rank, None if np.isnan(value) else value)
    assert cells(joined) == {key: value for key, (_, value) in expected.items()}
    assert joined.index.is_monotonic_increasing
    assert list(joined.index.names) == LEVELS
    for key, frame in frames.items():
        pd.testing.assert_frame_equal(frame, before[key])


@settings(max_examples=150, deadline=None)
@given(PIECES)
def test_average_ensemble_is_the_mean_of_the_z_scores_of_the_day(
    pieces: dict[str, list[tuple[int, str, float]]],
) -> None:
    frames = {key: frame_of(rows) for key, rows in pieces.items()}
    before = {key: frame.copy(deep=True) for key, frame in frames.items()}
    average = AverageEnsemble()(frames)

    scores: dict[tuple[int, str], list[float]] = {}
    for rows in pieces.values():
        member = {(day, stock): value for day, stock, value in rows}
        for day, stock in member:
            scores.setdefault((day, stock), [])
        for day in {day for day, _ in member}:
            known = {s: v for (d, s), v in member.items() if d == day and not np.isnan(v)}
            if len(set(known.values())) < 2:
                continue
            mean, deviation = statistics.mean(known.values()), statistics.stdev(known.values())
            for stock, value in known.items():
                scores[day, stock].append((value - mean) / deviation)
    found = cells(average)
    assert found.keys() == scores.keys()
    for key, zs in scores.items():
        if zs:
            assert found[key] == pytest.approx(statistics.mean(zs), rel=1e-9, abs=1e-12)
        else:
            assert found[key] is None
    assert average.index.is_monotonic_increasing
    assert average.name is None
    for key, frame in frames.items():
        pd.testing.assert_frame_equal(frame, before[key])


def test_a_row_that_only_an_older_piece_has_is_kept() -> None:
    old = frame_of([(0, "A", 1.0), (2, "A", 1.0), (2, "B", 1.0)])
    new = frame_of([(1, "A", 2.0), (2, "A", 2.0)])
    joined = RollingEnsemble()({"new": new, "old": old})
    assert cells(joined) == {(0, "A"): 1.0, (1, "A"): 2.0, (2, "A"): 2.0, (2, "B"): 1.0}


def test_the_newest_of_two_trainings_of_one_step_holds() -> None:
    newest, oldest = day_frame({"A": 2.0}), day_frame({"A": 1.0, "B": 1.0})
    joined = RollingEnsemble()({"trained today": newest, "trained yesterday": oldest})
    assert cells(joined) == {(0, "A"): 2.0, (0, "B"): 1.0}


def test_columns_that_only_some_pieces_have_are_nan_elsewhere() -> None:
    one = frame_of([(0, "A", 1.0)])
    two = frame_of([(1, "A", 2.0)]).assign(other=3.0)
    joined = RollingEnsemble()({"1": one, "2": two})
    assert joined["score"].tolist() == [1.0, 2.0]
    assert joined["other"].isna().tolist() == [True, False]


def test_pieces_without_instruments_are_joined_by_day() -> None:
    ics = {
        name: pd.Series([value, value], index=DAYS[start : start + 2].rename("datetime"))
        for name, start, value in [("new", 1, 2.0), ("old", 0, 1.0)]
    }
    assert RollingEnsemble()(ics).tolist() == [1.0, 2.0, 2.0]


def test_empty_pieces_add_nothing_and_alone_give_an_empty_frame() -> None:
    empty, one = frame_of([]), frame_of([(0, "A", 1.0)])
    assert cells(RollingEnsemble()({"e": empty, "1": one})) == {(0, "A"): 1.0}
    assert RollingEnsemble()({"e": empty}).shape == (0, 1)
    assert AverageEnsemble()({"e": empty}).shape == (0,)


def test_a_constant_day_has_no_score_whatever_the_constant_is() -> None:
    # The mean of seven times 0.1 is not 0.1 in floating point.
    index = pd.MultiIndex.from_product([DAYS, list("ABCDEFG")], names=LEVELS)
    assert AverageEnsemble()({"m": pd.Series(0.1, index)}).isna().all()


def test_a_member_without_a_score_leaves_the_average_to_the_others() -> None:
    average = AverageEnsemble()(
        {"constant": day_frame({"A": 5.0, "B": 5.0}), "m": day_frame({"A": 1.0, "B": 3.0})}
    )
    assert average.tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5])


def test_three_values_become_minus_one_zero_one_in_nested_dicts_too() -> None:
    member = day_frame({"A": 1.0, "B": 2.0, "C": 3.0})
    assert AverageEnsemble()({"x": {("m", 1): member}, "y": {}}).tolist() == [-1.0, 0.0, 1.0]


@pytest.mark.parametrize("ensemble", [RollingEnsemble(), AverageEnsemble()])
@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({}, "dict of frames is empty"),
        ([1], "expected a dict of frames, not list"),
        ({"m": 3}, "cannot merge .*'m'.*: expected a DataFrame or Series, not int"),
        (
            {"m": pd.Series([1.0], index=pd.Index(["A"], name="instrument"))},
            r"cannot merge .*'m'.*levels are \['instrument'\] and none is called 'datetime'",
        ),
        (
            {
                "m": day_frame({"A": 1.0}),
                "ic": pd.Series([1.0], index=DAYS[:1].rename("datetime")),
            },
            r"cannot merge .*'ic'.*levels are \['datetime'\], those of the first",
        ),
    ],
)
def test_what_cannot_be_merged_is_named(ensemble: Ensemble, members: Any, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        ensemble(members)


def test_series_and_frames_are_not_joined() -> None:
    with pytest.raises(DataError, match=r"'a': 'DataFrame', 'b': 'Series'.*to_frame"):
        RollingEnsemble()({"a": frame_of([(0, "A", 1.0)]), "b": day_frame({"A": 1.0})})


def test_dates_that_cannot_be_ordered_are_refused() -> None:
    text = pd.Series([1.0], index=pd.Index(["2022-01-03"], name="datetime", dtype=object))
    dates = pd.Series([1.0], index=DAYS[:1].rename("datetime"))
    with pytest.raises(DataError, match=r"by their first 'datetime'.*to_datetime"):
        RollingEnsemble()({"text": text, "dates": dates})


def test_an_average_of_words_is_refused() -> None:
    words = day_frame({"A": 1.0}).astype(object).map(lambda _: "good")
    with pytest.raises(DataError, match="have to hold numbers"):
        AverageEnsemble()({"m": words})


def test_single_key_ensemble_returns_what_is_not_a_dict_and_keeps_the_input() -> None:
    given_dict = {"a": {"b": 1}}
    assert SingleKeyEnsemble()(given_dict) == 1
    assert given_dict == {"a": {"b": 1}}
    assert SingleKeyEnsemble()([1]) == [1]
    assert SingleKeyEnsemble()({}) == {}
    assert SingleKeyEnsemble()({"a": {}}) == {}


def test_group_groups_and_reduces_with_the_functions_given() -> None:
    def by_first_letter(values: dict[str, int], last: bool = False) -> dict[str, dict[str, int]]:
        grouped: dict[str, dict[str, int]] = {}
        for key, value in values.items():
            grouped.setdefault(key[-1] if last else key[0], {})[key] = value
        return grouped

    group = Group(by_first_letter, ens=lambda members: sum(members.values()))
    values = {"ax": 1, "by": 2, "ay": 4}
    assert group(values) == {"a": 5, "b": 2}
    assert group(values, n_jobs=2, verbose=0, last=True) == {"x": 1, "y": 6}
    assert group.group(values) == {"a": {"ax": 1, "ay": 4}, "b": {"by": 2}}
    assert group.reduce({"a": 1, "b": 2}) == 3


def test_a_group_without_functions_says_what_is_missing() -> None:
    with pytest.raises(NotImplementedError, match="group_func"):
        Group(ens=len)({"a": 1})
    with pytest.raises(NotImplementedError, match="without ens"):
        Group(group_func=dict)({"a": 1})


def test_rolling_group_splits_off_the_last_part_of_the_key() -> None:
    group = RollingGroup(ens=lambda members: members)
    assert group({("A", "B", 1): "x", ("A", "B", 2): "y", ("A", "C", 1): "z"}) == {
        ("A", "B"): {1: "x", 2: "y"},
        ("A", "C"): {1: "z"},
    }
    assert group({("A", 1): "x"}) == {("A",): {1: "x"}}


def test_rolling_group_joins_by_default() -> None:
    merged = RollingGroup()({("m", 1): frame_of([(0, "A", 1.0)]), ("m", 2): frame_of([])})
    assert cells(merged[("m",)]) == {(0, "A"): 1.0}


def test_rolling_group_refuses_a_key_that_is_not_a_tuple() -> None:
    with pytest.raises(TypeError, match="key 'm' is a str, expected a tuple"):
        RollingGroup()({"m": frame_of([])})


def test_two_hundred_overlapping_shuffled_pieces_make_one_sorted_whole() -> None:
    days = pd.bdate_range("2020-01-01", periods=220)
    index = pd.MultiIndex.from_product([days, [f"S{i:02d}" for i in range(40)]], names=LEVELS)
    whole = pd.DataFrame({"score": np.arange(len(index), dtype=float)}, index=index)
    pieces = {
        i: whole.iloc[i * 40 : (i + 20) * 40].sample(frac=1, random_state=i) for i in range(200)
    }
    joined = RollingEnsemble()(pieces)
    pd.testing.assert_frame_equal(joined, whole.iloc[: 219 * 40], check_freq=False)
