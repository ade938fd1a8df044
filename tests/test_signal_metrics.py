from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwf.errors import DataError
from qwf.records.signal_metrics import (
    calc_ic,
    calc_long_short_prec,
    calc_long_short_return,
    ic_summary,
    pred_autocorr,
)

LEVELS = ["datetime", "instrument"]
DAYS = pd.bdate_range("2022-01-03", periods=4)
STOCKS = list("ABCDEF")
NAN = float("nan")

VALUE = st.one_of(st.integers(-3, 3).map(float), st.just(NAN))
COLUMN = st.dictionaries(
    st.tuples(st.integers(0, 3), st.sampled_from(STOCKS)), VALUE, min_size=1, max_size=24
)


def series(values: dict[tuple[int, str], float], name: str = "score") -> pd.Series:
    index = pd.MultiIndex.from_tuples([(DAYS[d], s) for d, s in values], names=LEVELS)
    return pd.Series(list(values.values()), index=index, name=name, dtype=float)


def one_day(*values: float) -> pd.Series:
    return series({(0, STOCKS[i]): value for i, value in enumerate(values)})


def pearson(pairs: list[tuple[float, float]]) -> float:
    """Correlate by the definition, in exact steps for small integers."""
    n = len(pairs)
    if n < 2:
        return NAN
    sx, sy = sum(x for x, _ in pairs), sum(y for _, y in pairs)
    cov = n * sum(x * y for x, y in pairs) - sx * sy
    vx = n * sum(x * x for x, _ in pairs) - sx * sx
    vy = n * sum(y * y for _, y in pairs) - sy * sy
    return cov / math.sqrt(vx * vy) if vx and vy else NAN


def mean_rank(value: float, values: list[float]) -> float:
    return sum(v < value for v in values) + (sum(v == value for v in values) + 1) / 2


def assert_days(found: pd.Series, expected: dict[int, float]) -> None:
    assert list(found.index) == [DAYS[day] for day in sorted(expected)]
    assert found.tolist() == pytest.approx(
        [expected[day] for day in sorted(expected)], nan_ok=True, rel=1e-9, abs=1e-12
    )


def rows_of(first: dict[Any, float], second: dict[Any, float]) -> list[tuple[Any, float, float]]:
    """Return (key, first, second) on the union of the rows, as pandas orders it."""
    keys = list(first) if list(first) == list(second) else sorted({*first, *second})
    return [(key, first.get(key, NAN), second.get(key, NAN)) for key in keys]


@settings(max_examples=150, deadline=None)
@given(COLUMN, COLUMN)
def test_ic_is_the_correlation_over_the_stocks_with_both_values(
    pred: dict[Any, float], label: dict[Any, float]
) -> None:
    if not pred.keys() & label.keys():
        with pytest.raises(DataError, match="no row in common"):
            calc_ic(series(pred), series(label))
        return
    ic, ric = calc_ic(series(pred), series(label))
    pairs: dict[int, list[tuple[float, float]]] = {day: [] for day, _ in {**pred, **label}}
    for (day, _), x, y in rows_of(pred, label):
        if not (math.isnan(x) or math.isnan(y)):
            pairs[day].append((x, y))
    assert_days(ic, {day: pearson(both) for day, both in pairs.items()})
    ranked = {
        day: [
            (mean_rank(x, [a for a, _ in both]), mean_rank(y, [b for _, b in both]))
            for x, y in both
        ]
        for day, both in pairs.items()
    }
    assert_days(ric, {day: pearson(both) for day, both in ranked.items()})
    dropped = calc_ic(series(pred), series(label), dropna=True)
    pd.testing.assert_series_equal(dropped[0], ic.dropna())
    pd.testing.assert_series_equal(dropped[1], ric.dropna())


@settings(max_examples=150, deadline=None)
@given(COLUMN, COLUMN, st.sampled_from([0.2, 0.34, 0.5, 1.0]), st.booleans())
def test_long_short_takes_the_highest_and_the_lowest_of_each_day(
    pred: dict[Any, float], label: dict[Any, float], quantile: float, dropna: bool
) -> None:
    if not pred.keys() & label.keys():
        return
    days: dict[int, list[tuple[float, float]]] = {}
    for (day, _), x, y in rows_of(pred, label):
        if not dropna or not (math.isnan(x) or math.isnan(y)):
            days.setdefault(day, []).append((x, y))
    half, average = {}, {}

    def mean(values: list[float]) -> float:
        known = [value for value in values if not math.isnan(value)]
        return sum(known) / len(known) if known else NAN

    for day, rows in days.items():
        k = int(len(rows) * quantile)
        # sorted() keeps the order of equal rows; a missing prediction comes last on both sides.
        high = sorted(rows, key=lambda row: (math.isnan(row[0]), -row[0]))[:k]
        low = sorted(rows, key=lambda row: (math.isnan(row[0]), row[0]))[:k]
        half[day] = (mean([y for _, y in high]) - mean([y for _, y in low])) / 2
        average[day] = mean([y for _, y in rows])
    found = calc_long_short_return(
        series(pred), series(label, "LABEL0"), quantile=quantile, dropna=dropna
    )
    assert_days(found[0], half)
    assert_days(found[1], average)


def test_a_day_with_the_same_prediction_for_all_has_no_ic() -> None:
    # The mean of six times 0.1 is not 0.1 in floating point.
    ic, ric = calc_ic(one_day(*[0.1] * 6), one_day(1, 2, 3, 4, 5, 7))
    assert ic.isna().tolist() == ric.isna().tolist() == [True]


def test_a_label_without_any_value_gives_nan_for_each_day() -> None:
    pred = one_day(1, 2, 3, 4, 5, 6)
    label = pred * NAN
    for metric in (calc_ic, calc_long_short_return, calc_long_short_prec):
        for result in metric(pred, label):
            assert result.isna().tolist() == [True]
        assert [len(result) for result in metric(pred, label, dropna=True)] == [0, 0]


def test_an_infinite_prediction_has_a_rank_and_no_ic() -> None:
    ic, ric = calc_ic(one_day(1, 2, math.inf), one_day(1, 2, 3))
    assert math.isnan(ic.iloc[0])
    assert ric.iloc[0] == pytest.approx(1.0)


def test_the_index_levels_may_stand_in_another_order_and_the_rows_in_any() -> None:
    pred = one_day(1, 2, 4, 3)
    label = one_day(1, 2, 3, 4).iloc[::-1].swaplevel()
    ic, _ = calc_ic(pred, label)
    assert_days(ic, {0: 0.8})


def test_a_frame_of_one_column_is_taken_and_of_two_refused() -> None:
    pred = one_day(1, 2, 3)
    ic, _ = calc_ic(pred.to_frame(), pred.to_frame("LABEL0"))
    assert ic.tolist() == pytest.approx([1.0])
    with pytest.raises(DataError, match=r"label has columns \['a', 'b'\]; expected one"):
        calc_ic(pred, pd.DataFrame({"a": pred, "b": pred}))


def test_the_result_is_named_by_its_days() -> None:
    pred = one_day(1, 2, 3).rename_axis(["date", "stock"])
    ic, _ = calc_ic(pred, pred, date_col="date")
    assert ic.index.name == "date"
    assert isinstance(ic.index, pd.DatetimeIndex)


def test_inputs_are_not_modified() -> None:
    pred, label = one_day(3, 1, 2).iloc[::-1], one_day(1, 2, 3)
    before = pred.copy(deep=True), label.copy(deep=True)
    calc_ic(pred, label)
    calc_long_short_prec(pred, label, quantile=0.5, is_alpha=True)
    pd.testing.assert_series_equal(pred, before[0])
    pd.testing.assert_series_equal(label, before[1])


@pytest.mark.parametrize(
    ("pred", "label", "sentence"),
    [
        ([1.0], one_day(1), "pred is a list; expected a Series"),
        (one_day(1).droplevel(0), one_day(1), r"pred has index levels \['instrument'\]"),
        (one_day(1), one_day(1).map(lambda _: "x"), "label does not hold numbers"),
        (pd.concat([one_day(1)] * 2), one_day(1, 2), r"pred has several rows .*'A'"),
        (
            one_day(1),
            series({(1, "A"): 1.0}),
            "no row in common: pred has 1 rows, the first .*label has 1 rows",
        ),
        (one_day(1), one_day(1).iloc[:0], "label has no rows"),
    ],
)
def test_what_cannot_be_compared_is_refused(pred: Any, label: Any, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        calc_ic(pred, label)


@pytest.mark.parametrize("quantile", [0, -0.2, 20])
def test_a_quantile_that_is_no_share_is_refused(quantile: float) -> None:
    pred = one_day(1, 2, 3)
    with pytest.raises(DataError, match=r"quantile is .*more than 0, at most 1"):
        calc_long_short_return(pred, pred, quantile=quantile)


def test_precision_counts_the_signs_of_the_chosen() -> None:
    pred = one_day(6, 5, 4, 3, 2, 1)
    label = one_day(0.1, -0.1, NAN, 0.1, NAN, -0.2)
    long_precision, short_precision = calc_long_short_prec(pred, label, quantile=0.5)
    assert_days(long_precision, {0: 0.5})
    assert_days(short_precision, {0: 0.5})


def test_precision_of_alpha_compares_with_the_mean_of_the_day() -> None:
    pred, label = one_day(4, 3, 2, 1), one_day(0.4, 0.3, 0.2, 0.1)
    long_precision, short_precision = calc_long_short_prec(pred, label, quantile=0.5, is_alpha=True)
    assert_days(long_precision, {0: 1.0})
    assert_days(short_precision, {0: 1.0})
    assert_days(calc_long_short_prec(pred, label, quantile=0.5)[1], {0: 0.0})


def test_precision_of_too_few_instruments_is_refused() -> None:
    pred = one_day(1, 2, 3)
    with pytest.raises(DataError, match=r"the best 0.2 of 3 instruments: more than 5"):
        calc_long_short_prec(pred, pred)


def test_autocorrelation_compares_with_the_day_that_many_rows_before() -> None:
    days = [[1, 2, 3], [3, 2, 1], [1, 2, 4]]
    pred = series(
        {(d, STOCKS[i]): float(v) for d, row in enumerate(days) for i, v in enumerate(row)}
    )
    first = pearson([(3, 1), (2, 2), (1, 3)])
    assert_days(pred_autocorr(pred), {0: NAN, 1: first, 2: pearson([(1, 3), (2, 2), (4, 1)])})
    assert_days(pred_autocorr(pred, lag=2), {0: NAN, 1: NAN, 2: pearson([(1, 1), (2, 2), (4, 3)])})
    assert_days(pred_autocorr(pred, lag=9), {0: NAN, 1: NAN, 2: NAN})


@pytest.mark.parametrize("lag", [0, -1])
def test_autocorrelation_does_not_look_ahead(lag: int) -> None:
    with pytest.raises(DataError, match="expected 1 or more"):
        pred_autocorr(one_day(1, 2), lag=lag)


def test_autocorrelation_needs_each_row_once() -> None:
    with pytest.raises(DataError, match="several rows"):
        pred_autocorr(pd.concat([one_day(1, 2)] * 2))


def test_ic_summary_of_constant_or_single_days_has_no_icir() -> None:
    mean, icir = ic_summary(pd.Series([0.5, 0.5]))
    assert mean == 0.5
    assert math.isnan(icir)
    assert math.isnan(ic_summary(pd.Series([0.5]))[1])
    assert all(math.isnan(value) for value in ic_summary(pd.Series([], dtype=float)))


def test_later_days_do_not_change_the_metrics_of_earlier_ones() -> None:
    rng = np.random.default_rng(3)
    index = pd.MultiIndex.from_product([DAYS, STOCKS], names=LEVELS)
    pred, label = pd.Series(rng.normal(size=24), index), pd.Series(rng.normal(size=24), index)
    for metric in (calc_ic, calc_long_short_return, calc_long_short_prec):
        for whole, early in zip(metric(pred, label), metric(pred[:12], label[:12]), strict=True):
            pd.testing.assert_series_equal(whole[:2], early, check_freq=False)
