"""How good a signal was: statistics per day of predictions against labels, as pure functions.

Every number of a day is made from the rows of that day alone (`pred_autocorr`: and of earlier
ones). The formulas and answers are those of Qlib's ``qlib.contrib.eva.alpha``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from ..errors import DataError

__all__ = [
    "calc_ic",
    "calc_long_short_prec",
    "calc_long_short_return",
    "ic_summary",
    "pred_autocorr",
]

Floats: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"
Ints: TypeAlias = "np.ndarray[Any, np.dtype[np.intp]]"


def calc_ic(
    pred: pd.Series, label: pd.Series, date_col: str = "datetime", dropna: bool = False
) -> tuple[pd.Series, pd.Series]:
    """Correlate predictions with labels across the instruments of each day.

    IC is Pearson's correlation, rank IC is Spearman's (Pearson's of the ranks, ties share their
    mean rank), each over the instruments that have both a prediction and a label on the day.

    Parameters
    ----------
    pred, label : Series or DataFrame of one column
        Index levels ``(datetime, instrument)``, in any row order; they need not have the same rows.
    date_col : str, default "datetime"
        Name of the index level that holds the days.
    dropna : bool, default False
        Leave out the days that have no correlation.

    Returns
    -------
    ic, ric : Series
        float64, index `date_col`, ascending: each day of either input. NaN on a day with fewer
        than two common instruments, or on which one side is the same for all of them; the IC
        (not the rank IC) also on a day with an infinite value.

    Raises
    ------
    DataError
        If the inputs are not columns of numbers, or have no row in common.

    Examples
    --------
    >>> index = pd.MultiIndex.from_product(
    ...     [pd.DatetimeIndex(["2022-01-03"]), ["A", "B", "C"]], names=["datetime", "instrument"]
    ... )
    >>> ic, ric = calc_ic(pd.Series([1.0, 2.0, 9.0], index), pd.Series([0.1, 0.2, 0.3], index))
    >>> ic.round(4).tolist(), ric.round(4).tolist()
    ([0.9177], [1.0])
    """
    rows = _Rows.of(pred, label, date_col).complete()
    ic = _correlation(rows.day, len(rows.days), rows.pred, rows.label)
    by_rank = _mean_ranks(rows.pred, rows.bounds), _mean_ranks(rows.label, rows.bounds)
    ric = _correlation(rows.day, len(rows.days), *by_rank)
    series = pd.Series(ic, index=rows.days), pd.Series(ric, index=rows.days)
    return (series[0].dropna(), series[1].dropna()) if dropna else series


def calc_long_short_return(
    pred: pd.Series,
    label: pd.Series,
    date_col: str = "datetime",
    quantile: float = 0.2,
    dropna: bool = False,
) -> tuple[pd.Series, pd.Series]:
    """Return what the best predictions earned against the worst, and what all earned on average.

    With n rows on a day, k = floor(n * quantile): half the difference between the mean label of
    the k highest and of the k lowest predictions. Of equal predictions the first row is taken.

    Parameters
    ----------
    pred, label : Series or DataFrame of one column
        Index levels ``(datetime, instrument)``; the label is the return of the holding period.
    date_col : str, default "datetime"
        Name of the index level that holds the days.
    quantile : float, default 0.2
        Share of the day's rows on either side, more than 0 and at most 1.
    dropna : bool, default False
        First drop rows that lack the prediction or the label. Else they count in n, a row without
        prediction is chosen last, and labels that are NaN are left out of the means.

    Returns
    -------
    long_short, average : Series
        In the unit of the label; index `date_col`, ascending. NaN where k is 0 or no label is
        known.

    Raises
    ------
    DataError
        If the inputs are not columns of numbers, have no row in common, or the quantile is not one.

    Examples
    --------
    >>> index = pd.MultiIndex.from_product(
    ...     [pd.DatetimeIndex(["2022-01-03"]), list("ABCDE")], names=["datetime", "instrument"]
    ... )
    >>> pred = pd.Series([5.0, 4.0, 3.0, 2.0, 1.0], index)
    >>> long_short, average = calc_long_short_return(pred, pred / 100)
    >>> long_short.tolist(), average.round(4).tolist()
    ([0.02], [0.03])
    """
    rows = _Rows.of(pred, label, date_col)
    if dropna:
        rows = rows.complete(keep_days=False)
    high, low = rows.extremes(quantile)
    long_short = (rows.mean_label(high) - rows.mean_label(low)) / 2
    average = rows.mean_label(np.arange(len(rows.day)))
    return (
        pd.Series(long_short, index=rows.days),
        pd.Series(average, index=rows.days, name="label"),
    )


def calc_long_short_prec(
    pred: pd.Series,
    label: pd.Series,
    date_col: str = "datetime",
    quantile: float = 0.2,
    dropna: bool = False,
    is_alpha: bool = False,
) -> tuple[pd.Series, pd.Series]:
    """Return how often the best predictions rose and the worst fell.

    The rows on either side are those of `calc_long_short_return`; precision is the share of them
    whose label is above (long) or below (short) zero, among those that have a label.

    Parameters
    ----------
    pred, label, date_col, quantile, dropna
        As in `calc_long_short_return`.
    is_alpha : bool, default False
        First subtract the day's mean from each label.

    Returns
    -------
    long_precision, short_precision : Series
        Between 0 and 1; index `date_col`, ascending. NaN where no row is chosen or has a label.

    Raises
    ------
    DataError
        As in `calc_long_short_return`, or if there are too few instruments for the quantile.

    Examples
    --------
    >>> index = pd.MultiIndex.from_product(
    ...     [pd.DatetimeIndex(["2022-01-03"]), list("ABCDE")], names=["datetime", "instrument"]
    ... )
    >>> pred = pd.Series([5.0, 4.0, 3.0, 2.0, 1.0], index)
    >>> long_precision, short_precision = calc_long_short_prec(pred, pred / 100, quantile=0.4)
    >>> long_precision.item(), short_precision.item()
    (1.0, 0.0)
    """
    rows = _Rows.of(pred, label, date_col)
    if is_alpha:
        rows.label = rows.label - rows.mean_label(np.arange(len(rows.day)))[rows.day]
    largest = int(np.diff(rows.bounds).max(initial=0))
    if dropna:
        rows = rows.complete(keep_days=False)
    high, low = rows.extremes(quantile)
    if int(1 / quantile) >= largest:
        raise DataError(
            f"cannot choose the best {quantile:g} of {largest} instruments: more than "
            f"{int(1 / quantile)} are needed. Give a larger quantile or more instruments."
        )
    return (
        pd.Series(rows.share(high, rows.label > 0), index=rows.days, name="label"),
        pd.Series(rows.share(low, rows.label < 0), index=rows.days, name="label"),
    )


def pred_autocorr(
    pred: pd.Series, lag: int = 1, inst_col: str = "instrument", date_col: str = "datetime"
) -> pd.Series:
    """Correlate the predictions of each day with those of `lag` days before.

    Parameters
    ----------
    pred : Series or DataFrame of one column
        Index levels ``(datetime, instrument)``, each row once.
    lag : int, default 1
        How far back, counted in days that `pred` has.
    inst_col, date_col : str
        Names of the index levels.

    Returns
    -------
    Series
        float64, Pearson's correlation over the instruments known on both days; index `date_col`,
        ascending. NaN on the first `lag` days.

    Raises
    ------
    DataError
        If `pred` is not a column of numbers, has a row twice, or the lag is not positive.
    """
    if lag < 1:
        raise DataError(
            f"lag is {lag!r}; expected 1 or more: a day is compared with one before it."
        )
    values = _column("pred", pred, date_col)
    for level in (inst_col, date_col):
        _need_level("pred", values, level)
    _need_unique("pred", values)
    wide = values.unstack(inst_col).sort_index()
    today = _numbers("pred", wide)
    before = np.full_like(today, np.nan)
    before[lag:] = today[:-lag]
    known = ~np.isnan(today) & ~np.isnan(before)
    day = np.nonzero(known)[0]
    return pd.Series(_correlation(day, len(wide), today[known], before[known]), index=wide.index)


def ic_summary(ic: pd.Series) -> tuple[float, float]:
    """Return the mean of a daily IC, and its mean divided by its standard deviation (ICIR).

    The standard deviation has one degree of freedom; days that are NaN are left out. ICIR is NaN
    when there are fewer than two days or all of them are equal.

    Examples
    --------
    >>> ic_summary(pd.Series([0.0, 1.0, 2.0, float("nan")]))
    (1.0, 1.0)
    """
    mean, deviation = float(ic.mean()), float(ic.std())
    return mean, mean / deviation if deviation > 0 else float("nan")


@dataclass
class _Rows:
    """The rows of both inputs, side by side, days ascending and the rows of a day together.

    `day` numbers the day of each row among `days`; row ``bounds[d]`` is the first of day ``d``.
    """

    days: pd.Index
    day: Ints
    pred: Floats
    label: Floats

    @classmethod
    def of(cls, pred: Any, label: Any, date_col: str) -> _Rows:
        both = _side_by_side(_column("pred", pred, date_col), _column("label", label, date_col))
        day, days = pd.factorize(both.index.get_level_values(date_col), sort=True)
        columns = _numbers("pred", both["pred"]), _numbers("label", both["label"])
        if (day < 0).any() or (np.diff(day) < 0).any():
            order = np.argsort(day, kind="stable")
            order = order[np.searchsorted(day[order], 0) :]
            day, columns = day[order], (columns[0][order], columns[1][order])
        return cls(days.rename(date_col), day, *columns)

    @property
    def bounds(self) -> Ints:
        return np.searchsorted(self.day, np.arange(len(self.days) + 1))

    def complete(self, *, keep_days: bool = True) -> _Rows:
        """Return the rows that have both values; days without any may be kept as empty days."""
        known = ~np.isnan(self.pred) & ~np.isnan(self.label)
        day, days = self.day[known], self.days
        if not keep_days:
            used, day = np.unique(day, return_inverse=True)
            days = days[used]
        return _Rows(days, day, self.pred[known], self.label[known])

    def extremes(self, quantile: float) -> tuple[Ints, Ints]:
        """Return the row numbers of the highest and of the lowest predictions of each day."""
        if not 0 < quantile <= 1:
            raise DataError(
                f"quantile is {quantile!r}; expected a share of the rows: more than 0, at most 1."
            )
        bounds = self.bounds
        wanted = (np.diff(bounds) * quantile).astype(np.intp)
        place = np.arange(len(self.day)) - bounds[self.day]
        chosen = place < wanted[self.day]
        return _day_order(-self.pred, bounds)[chosen], _day_order(self.pred, bounds)[chosen]

    def mean_label(self, chosen: Ints) -> Floats:
        """Return the mean label of the chosen rows of each day."""
        chosen = chosen[~np.isnan(self.label[chosen])]
        return _day_mean(self.day[chosen], len(self.days), self.label[chosen])

    def share(self, chosen: Ints, holds: np.ndarray[Any, np.dtype[np.bool_]]) -> Floats:
        """Return the share of the chosen rows with a label for which `holds`, of each day."""
        chosen = chosen[~np.isnan(self.label[chosen])]
        return _day_mean(self.day[chosen], len(self.days), holds[chosen].astype(np.float64))


def _column(what: str, values: Any, date_col: str) -> pd.Series:
    if isinstance(values, pd.DataFrame):
        if values.shape[1] != 1:
            raise DataError(
                f"{what} has columns {values.columns.tolist()!r}; expected one. Choose it, as in "
                "frame.iloc[:, 0]."
            )
        values = values.iloc[:, 0]
    if not isinstance(values, pd.Series):
        raise DataError(
            f"{what} is a {type(values).__name__}; expected a Series with index levels "
            "('datetime', 'instrument')."
        )
    _need_level(what, values, date_col)
    return values


def _need_level(what: str, values: pd.Series, level: str) -> None:
    if level not in values.index.names:
        raise DataError(
            f"{what} has index levels {list(values.index.names)!r} and none is called {level!r}. "
            "Name it with rename_axis, or say which level it is."
        )


def _need_unique(what: str, values: pd.Series) -> None:
    if not values.index.is_unique:
        twice = values.index[values.index.duplicated()][0]
        raise DataError(f"{what} has several rows {twice!r}; expected one. Drop the others.")


def _numbers(what: str, values: Any) -> Floats:
    try:
        numbers: Floats = values.to_numpy(dtype="float64", na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} does not hold numbers: {error}.") from error
    return numbers


def _side_by_side(pred: pd.Series, label: pd.Series) -> pd.DataFrame:
    """Return columns pred and label on the rows of either."""
    names, others = list(pred.index.names), list(label.index.names)
    if names != others and len(names) > 1 and sorted(map(str, names)) == sorted(map(str, others)):
        label = label.reorder_levels(names)
    if not pred.index.equals(label.index):
        _need_unique("pred", pred)
        _need_unique("label", label)
    both = pd.DataFrame({"pred": pred, "label": label})
    if len(both) == len(pred) + len(label):
        raise DataError(
            "pred and label have no row in common: pred has "
            f"{_shown(pred)}, label has {_shown(label)}. Compare the names of their instruments "
            "and the time of day of their dates."
        )
    return both


def _shown(values: pd.Series) -> str:
    return f"{len(values)} rows, the first {values.index[0]!r}" if len(values) else "no rows"


def _day_mean(day: Ints, n_days: int, values: Floats) -> Floats:
    with np.errstate(invalid="ignore"):
        return np.bincount(day, values, n_days) / np.bincount(day, minlength=n_days)


def _correlation(day: Ints, n_days: int, x: Floats, y: Floats) -> Floats:
    """Return Pearson's correlation within each day; no value may be NaN."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        x, y = _centered(day, n_days, x), _centered(day, n_days, y)
        covariance = np.bincount(day, x * y, n_days)
        variances = np.bincount(day, x * x, n_days), np.bincount(day, y * y, n_days)
        return np.clip(covariance / np.sqrt(variances[0]) / np.sqrt(variances[1]), -1, 1)


def _centered(day: Ints, n_days: int, values: Floats) -> Floats:
    """Return the values less the mean of their day."""
    first = np.empty(n_days)
    first[day[::-1]] = values[::-1]
    # Sums from the day's first value: the mean of equal values is then exactly that value, and a
    # constant day has no correlation rather than a random one.
    shifted = values - first[day]
    return shifted - _day_mean(day, n_days, shifted)[day]


def _day_order(values: Floats, bounds: Ints) -> Ints:
    """Return the row numbers, ascending by value within each day; ties by row, NaN last."""
    order = np.empty(len(values), dtype=np.intp)
    # One short sort per day is several times faster than one long sort by day and value.
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        order[start:stop] = np.argsort(values[start:stop], kind="stable") + start
    return order


def _mean_ranks(values: Floats, bounds: Ints) -> Floats:
    """Return the rank of each value within its day, from 1; equal values share their mean rank."""
    order = _day_order(values, bounds)
    ascending = values[order]
    new = np.ones(len(values) + 1, dtype=bool)
    new[1:-1] = ascending[1:] != ascending[:-1]
    new[bounds] = True
    edges = np.flatnonzero(new)
    run = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
    start = np.repeat(bounds[:-1], np.diff(bounds))
    ranks = np.empty(len(values))
    ranks[order] = (edges[run] + edges[run + 1] + 1) / 2 - start
    return ranks
