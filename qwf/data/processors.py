"""Steps between raw and prepared data, under Qlib's names; each keeps what it has learnt.

A step gets and returns a frame with index levels ``(datetime, instrument)`` and column levels
``(group, name)``, and never modifies the one it gets.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import ConfigError, DataError, suggest
from ..types import Date
from .window import check_window, date_level, rows_between

__all__ = [
    "CSRankNorm",
    "CSZScoreNorm",
    "DropnaLabel",
    "DropnaProcessor",
    "Fillna",
    "Processor",
    "RobustZScoreNorm",
    "ZScoreNorm",
]

# Of a normal distribution, the standard deviation is 1.4826 times the median absolute deviation.
_MAD_TO_DEVIATION: Final = 1.4826
# Added to the deviation so that a constant column is not divided by zero; Qlib's value.
_EPSILON: Final = 1e-12
_CLIP: Final = 3.0
# Turns ranks in [-0.5, 0.5] into values with a standard deviation of about 1 (sqrt(12) = 3.464).
_RANK_SCALE: Final = 3.46

_Columns = NDArray[np.bool_]
_Values = NDArray[np.float64]


class Processor:
    """A step that learns nothing, and the base of those that do.

    A step that overrides `fit` is fitted by its handler, on rows of the fit window alone.
    """

    def fit(self, df: pd.DataFrame) -> None:
        """Learn from these rows."""

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        """Return the processed frame; the one given is not modified."""
        raise NotImplementedError

    def is_for_infer(self) -> bool:
        """Whether the step can be used where labels are not known yet."""
        return True


def _columns_of(df: pd.DataFrame, group: str | None) -> _Columns:
    """Return which columns belong to a group; all of them for None."""
    if group is None:
        return np.ones(df.shape[1], dtype=bool)
    groups = df.columns.get_level_values(0)
    chosen = np.asarray(groups == group)
    if not chosen.any():
        raise DataError(
            f"the data have no column group {group!r}; {suggest(group, groups.unique())}"
        )
    return chosen


def _with_values(df: pd.DataFrame, columns: _Columns, values: Any) -> pd.DataFrame:
    whole = df.to_numpy(copy=True)
    whole[:, columns] = values
    return pd.DataFrame(whole, index=df.index, columns=df.columns)


class DropnaProcessor(Processor):
    """Drop the rows with a missing value.

    Parameters
    ----------
    fields_group : str, optional
        Look only at the columns of this group, e.g. ``"feature"``.
    """

    def __init__(self, fields_group: str | None = None) -> None:
        self.fields_group = fields_group

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        """Return the complete rows."""
        missing = df.loc[:, _columns_of(df, self.fields_group)].isna().any(axis=1)
        return df[~missing.to_numpy()]


class DropnaLabel(DropnaProcessor):
    """Drop the rows whose label is missing; for learning only."""

    def __init__(self, fields_group: str = "label") -> None:
        super().__init__(fields_group)

    def is_for_infer(self) -> bool:
        """Return False: where one predicts, labels are not known yet."""
        return False


class Fillna(Processor):
    """Replace missing values by a number.

    Parameters
    ----------
    fields_group : str, optional
        Only in the columns of this group.
    fill_value : float, default 0
        The number.
    """

    def __init__(self, fields_group: str | None = None, fill_value: float = 0) -> None:
        self.fields_group = fields_group
        self.fill_value = fill_value

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        """Return the frame without missing values in the group."""
        columns = _columns_of(df, self.fields_group)
        values = df.to_numpy()[:, columns]
        return _with_values(df, columns, np.where(np.isnan(values), self.fill_value, values))


class _FittedScale(Processor):
    """Subtract a centre from each column and divide by a scale, both learnt.

    Attributes
    ----------
    mean_train, std_train : ndarray of float, shape (columns,)
        Centre and scale, once fitted; Qlib's names.
    """

    mean_train: _Values | None = None
    std_train: _Values | None = None

    def __init__(
        self,
        fit_start_time: Date | None = None,
        fit_end_time: Date | None = None,
        fields_group: str | None = None,
    ) -> None:
        check_window(fit_start_time, fit_end_time, f"the fit window of {type(self).__name__}")
        self.fit_start_time = fit_start_time
        self.fit_end_time = fit_end_time
        self.fields_group = fields_group
        self.columns: list[Any] = []

    def fit(self, df: pd.DataFrame) -> None:
        """Learn from the rows in the step's own fit window, of these.

        Raises
        ------
        DataError
            If a column has no value there.
        """
        what = f"the fit window of {type(self).__name__}"
        rows = rows_between(df.index, self.fit_start_time, self.fit_end_time, what)
        columns = _columns_of(df, self.fields_group)
        names = df.columns[columns].tolist()
        values = df.to_numpy()[rows][:, columns]
        learnt = []
        for name, column in zip(names, values.T, strict=True):
            known = column[~np.isnan(column)]
            if not len(known):
                raise DataError(
                    f"{type(self).__name__} cannot be fitted: column {name!r} has no value in the "
                    f"{len(column)} rows from {_span(df.index[rows])}. Move the fit window, or the "
                    "start of the data, so that it holds some."
                )
            learnt.append(self._learn(known))
        self.mean_train, self.std_train = (np.array(part) for part in zip(*learnt, strict=True))
        self.columns = names

    def _learn(self, known: _Values) -> tuple[float, float]:
        """Return centre and scale of the values of one column, none of them missing."""
        raise NotImplementedError

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        columns = _columns_of(df, self.fields_group)
        if self.mean_train is None or self.std_train is None:
            raise DataError(f"{type(self).__name__} is used before it was fitted; call fit first.")
        found = df.columns[columns].tolist()
        if found != self.columns:
            raise DataError(
                f"{type(self).__name__} was fitted on the columns {self.columns} and gets {found}; "
                "fit it again, or give it the same columns in the same order."
            )
        scaled = (df.to_numpy()[:, columns] - self.mean_train) / self.std_train
        return _with_values(df, columns, self._bound(scaled))

    def _bound(self, scaled: _Values) -> _Values:
        return scaled


def _span(index: pd.Index) -> str:
    dates = date_level(index)
    return f"{dates[0]} to {dates[-1]}" if len(dates) else "an empty window"


class ZScoreNorm(_FittedScale):
    """Standardise each column: ``(x - mean) / std``, with the mean and std (ddof 0) of the window.

    A column that is constant in the window stays as it is (Qlib's rule).

    Parameters
    ----------
    fit_start_time, fit_end_time : date, optional
        Both inclusive. Within a handler, its own fit window applies as well.
    fields_group : str, optional
        Only the columns of this group.
    """

    def _learn(self, known: _Values) -> tuple[float, float]:
        deviation = float(np.std(known))
        # Rounding may leave a constant column with a deviation that is not quite zero.
        if (known == known[0]).all():
            return 0.0, 1.0
        return float(np.mean(known)), deviation


class RobustZScoreNorm(_FittedScale):
    """Standardise each column: ``(x - median) / ((MAD + 1e-12) * 1.4826)``, clipped to +-3.

    MAD is the median of ``|x - median|`` over the window. Rousseeuw and Croux, Journal of the
    American Statistical Association 88 (1993) 1273-1283, give 1.4826; clip and 1e-12 are Qlib's.

    Parameters
    ----------
    fit_start_time, fit_end_time : date, optional
        Both inclusive. Within a handler, its own fit window applies as well.
    fields_group : str, optional
        Only the columns of this group.
    clip_outlier : bool, default True
        Clip the result to [-3, 3].
    """

    def __init__(
        self,
        fit_start_time: Date | None = None,
        fit_end_time: Date | None = None,
        fields_group: str | None = None,
        *,
        clip_outlier: bool = True,
    ) -> None:
        super().__init__(fit_start_time, fit_end_time, fields_group)
        self.clip_outlier = clip_outlier

    def _learn(self, known: _Values) -> tuple[float, float]:
        median = float(np.median(known))
        deviation = float(np.median(np.abs(known - median)))
        return median, (deviation + _EPSILON) * _MAD_TO_DEVIATION

    def _bound(self, scaled: _Values) -> _Values:
        return np.clip(scaled, -_CLIP, _CLIP) if self.clip_outlier else scaled


class CSZScoreNorm(Processor):
    """Standardise each column within each bar, over the instruments of the bar.

    ``"zscore"``: ``(x - mean) / std`` with ddof 1. ``"robust"``: ``(x - median) / MAD / 1.4826``,
    clipped to +-3. Where the deviation is zero, or one instrument alone has a value, the result is
    NaN (Qlib's formulas).

    Parameters
    ----------
    fields_group : str, optional
        Only the columns of this group.
    method : {"zscore", "robust"}, default "zscore"
        Which formula.
    """

    def __init__(self, fields_group: str | None = None, method: str = "zscore") -> None:
        if method not in ("zscore", "robust"):
            raise ConfigError(
                f"CSZScoreNorm has no method {method!r}; {suggest(method, ('zscore', 'robust'))}"
            )
        self.fields_group = fields_group
        self.method = method

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        """Return the standardised frame."""
        columns = _columns_of(df, self.fields_group)
        chosen = df.loc[:, columns]
        if self.method == "zscore":
            bars = chosen.groupby(level="datetime")
            scaled = (chosen - bars.transform("mean")) / _nonzero(bars.transform("std"))
            return _with_values(df, columns, scaled.to_numpy())
        centred = chosen - chosen.groupby(level="datetime").transform("median")
        deviation = centred.abs().groupby(level="datetime").transform("median")
        scaled = centred / _nonzero(deviation) / _MAD_TO_DEVIATION
        return _with_values(df, columns, np.clip(scaled.to_numpy(), -_CLIP, _CLIP))


def _nonzero(deviation: pd.DataFrame) -> pd.DataFrame:
    return deviation.where(deviation != 0)


class CSRankNorm(Processor):
    """Replace each value by its rank within its bar: ``(percent rank - 0.5) * 3.46``.

    Ties share their mean rank. 3.46 gives the uniform ranks a standard deviation of about 1; the
    formula is Qlib's.

    Parameters
    ----------
    fields_group : str, optional
        Only the columns of this group.
    """

    def __init__(self, fields_group: str | None = None) -> None:
        self.fields_group = fields_group

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        """Return the ranked frame."""
        columns = _columns_of(df, self.fields_group)
        ranks = df.loc[:, columns].groupby(level="datetime").rank(pct=True)
        return _with_values(df, columns, (ranks.to_numpy() - 0.5) * _RANK_SCALE)
