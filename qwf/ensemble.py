"""How several predictions become one: pure functions of frames.

Knows no recorder, no file and no model; who collects the frames decides their order, newest first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from .errors import DataError

__all__ = [
    "AverageEnsemble",
    "Ensemble",
    "Group",
    "RollingEnsemble",
    "RollingGroup",
    "SingleKeyEnsemble",
]

DATETIME = "datetime"


class Ensemble(ABC):
    """Something that merges the values of a dict into one object."""

    @abstractmethod
    def __call__(self, ensemble_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Merge the values of `ensemble_dict`. The inputs are not modified."""


class SingleKeyEnsemble(Ensemble):
    """Take the only value out of a dict that has one key."""

    def __call__(self, ensemble_dict: Any, recursion: bool = True) -> Any:
        """Unwrap dicts of one key.

        Parameters
        ----------
        ensemble_dict : Any
            What is not a dict is returned as it is; so is a dict with no or several keys.
        recursion : bool, default True
            Unwrap the values too, innermost first.

        Returns
        -------
        Any
            The value of the only key, or a dict. The input is not modified.

        Examples
        --------
        >>> SingleKeyEnsemble()({"pred": {"a": {"b": 1}, "c": 2}})
        {'a': 1, 'c': 2}
        >>> SingleKeyEnsemble()({"pred": {"a": {"b": 1}, "c": 2}}, recursion=False)
        {'a': {'b': 1}, 'c': 2}
        """
        if not isinstance(ensemble_dict, dict):
            return ensemble_dict
        merged = ensemble_dict
        if recursion:
            merged = {key: self(value) for key, value in ensemble_dict.items()}
        return next(iter(merged.values())) if len(merged) == 1 else merged


class RollingEnsemble(Ensemble):
    """Join the pieces of a rolling prediction into one; where two overlap, the later piece holds.

    Later is the piece whose first ``datetime`` is later. Of two pieces that begin together, the one
    that stands first in the dict holds: recorders are listed newest first, so that a repeated
    training replaces the one before it. (Qlib lets the oldest one hold.)
    """

    def __call__(self, ensemble_dict: Mapping[Any, Any]) -> Any:
        """Join the pieces.

        Parameters
        ----------
        ensemble_dict : Mapping[Any, DataFrame or Series]
            One frame of shape (n_i, k) per rolling step, with an index level ``datetime`` and the
            same other levels in each. They need not be sorted. Within one frame, the last of
            several rows with the same index holds. Keys are only used to name a bad frame.

        Returns
        -------
        DataFrame or Series
            Shape (n, k) with n <= sum(n_i); index unique and sorted, levels in the order of the
            first frame. The inputs are not modified.

        Raises
        ------
        DataError
            If there are no frames, or one of them is not a frame like the others.

        Notes
        -----
        A value that is NaN in the piece that holds stays NaN: it is that model's answer.

        Examples
        --------
        >>> days = pd.DatetimeIndex(["2022-01-03", "2022-01-04", "2022-01-05"], name="datetime")
        >>> old, new = pd.Series([1, 1], days[:2]), pd.Series([2, 2], days[1:])
        >>> list(RollingEnsemble()({"new": new, "old": old}))
        [1, 2, 2]
        """
        frames = _checked(ensemble_dict)
        if len({type(frame) for frame in frames}) > 1:
            kinds = {key: type(frame).__name__ for key, frame in ensemble_dict.items()}
            raise DataError(
                f"cannot join Series with DataFrames: {kinds!r}. Give all of one kind "
                "(Series.to_frame makes a frame)."
            )
        # pandas warns about empty pieces in concat, and they have no first date to be ordered by.
        pieces = [frame for frame in frames if len(frame)] or frames[:1]
        pieces.reverse()
        try:
            pieces.sort(key=lambda frame: frame.index.get_level_values(DATETIME).min())
        except TypeError as error:
            raise DataError(
                f"cannot order the pieces of {list(ensemble_dict)!r} by their first {DATETIME!r}: "
                f"{error}. Convert the level of each with pandas.to_datetime."
            ) from error
        joined = pd.concat(pieces)
        return joined[~joined.index.duplicated(keep="last")].sort_index()


class AverageEnsemble(Ensemble):
    """Average the predictions of several models after making each one standard within its day."""

    def __call__(self, ensemble_dict: Mapping[Any, Any]) -> pd.Series:
        r"""Average the standardized members.

        For member *m*, day *t* and instrument *i*

        .. math:: z_{m,t,i} = (x_{m,t,i} - \bar x_{m,t}) / s_{m,t}, \quad
                  y_{t,i} = \mathrm{mean}_m\, z_{m,t,i}

        with the mean and the standard deviation (one degree of freedom) over the instruments that
        the member has on the day, as in Qlib's ``qlib.model.ens.ensemble.AverageEnsemble``.

        Parameters
        ----------
        ensemble_dict : Mapping[Any, DataFrame or Series or Mapping]
            Predictions, perhaps in nested dicts, with an index level ``datetime`` and the same
            other levels in each; each column is a member. Of several rows with the same index in
            one frame, the last counts.

        Returns
        -------
        Series
            float64, without name; one row for each row of any member; index unique and sorted,
            levels in the order of the first frame. NaN where no member has a standardized value:
            also on a day on which a member has one instrument, or the same value for all of them.

        Raises
        ------
        DataError
            If there are no frames, or one of them is not a frame of numbers like the others.

        Examples
        --------
        >>> index = pd.MultiIndex.from_product(
        ...     [pd.DatetimeIndex(["2022-01-03"]), list("ABC")], names=["datetime", "instrument"]
        ... )
        >>> AverageEnsemble()({"one model": pd.Series([1.0, 2.0, 3.0], index)}).tolist()
        [-1.0, 0.0, 1.0]
        """
        nested = isinstance(ensemble_dict, Mapping)
        frames = _checked(dict(_leaves(ensemble_dict, ())) if nested else ensemble_dict)
        members = pd.concat([_unique(frame) for frame in frames], axis=1).sort_index()
        try:
            values = members.to_numpy(dtype="float64", na_value=np.nan)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"cannot average columns {members.columns.tolist()!r}: they have to hold numbers, "
                f"and {error}."
            ) from error
        days, _ = pd.factorize(members.index.get_level_values(DATETIME))
        standard = np.column_stack([_standardize(column, days) for column in values.T])
        known = ~np.isnan(standard)
        with np.errstate(invalid="ignore"):
            average = np.where(known, standard, 0.0).sum(axis=1) / known.sum(axis=1)
        return pd.Series(average, index=members.index)


class Group:
    """Split a dict into groups, then merge each group into one object.

    Parameters
    ----------
    group_func : callable, optional
        Takes the dict (and further arguments), returns ``{group: {key: object}}``.
    ens : callable, optional
        Merges one ``{key: object}``, as an `Ensemble` does.
    """

    def __init__(
        self,
        group_func: Callable[..., Any] | None = None,
        ens: Callable[..., Any] | None = None,
    ) -> None:
        self._group_func = group_func
        self._ens_func = ens

    def group(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """Return ``{group: {key: object}}``; a subclass may override it."""
        if self._group_func is None:
            raise NotImplementedError(
                f"{type(self).__name__} cannot group: it was made without group_func. "
                "Pass one, or override the method `group`."
            )
        grouped: dict[Any, Any] = self._group_func(*args, **kwargs)
        return grouped

    def reduce(self, *args: Any, **kwargs: Any) -> Any:
        """Return one object for one group; a subclass may override it."""
        if self._ens_func is None:
            raise NotImplementedError(
                f"{type(self).__name__} cannot merge a group: it was made without ens. "
                "Pass one, or override the method `reduce`."
            )
        return self._ens_func(*args, **kwargs)

    def __call__(
        self,
        ungrouped_dict: Any,
        n_jobs: int = 1,
        verbose: int = 0,
        *args: Any,
        **kwargs: Any,
    ) -> dict[Any, Any]:
        """Group and merge.

        Parameters
        ----------
        ungrouped_dict : dict
            What to group. It is not modified.
        n_jobs, verbose : int
            Accepted for Qlib's scripts. The groups are merged one after another: pandas already
            does the work of one group faster than it could be sent to another process.
        *args, **kwargs
            Passed to `group`.

        Returns
        -------
        dict
            ``{group: merged object}``, in the order in which the groups appear.
        """
        grouped = self.group(ungrouped_dict, *args, **kwargs)
        return {key: self.reduce(members) for key, members in grouped.items()}


class RollingGroup(Group):
    """Group by all but the last part of the key, which is the rolling step, and join the steps.

    Parameters
    ----------
    ens : callable, optional
        Merges the steps of one group; a `RollingEnsemble` when not given.

    Examples
    --------
    >>> RollingGroup(ens=list)({("A", "B", "R1"): 1, ("A", "B", "R2"): 2, ("A", "C", "R1"): 3})
    {('A', 'B'): ['R1', 'R2'], ('A', 'C'): ['R1']}
    """

    def __init__(self, ens: Callable[..., Any] | None = None) -> None:
        super().__init__(ens=RollingEnsemble() if ens is None else ens)

    def group(self, rolling_dict: Mapping[tuple[Any, ...], Any]) -> dict[Any, Any]:
        """Return ``{(A, B): {R: object}}`` for ``{(A, B, R): object}``; ``(A, R)`` gives ``(A,)``.

        Raises
        ------
        TypeError
            If a key is not a tuple.
        """
        grouped: dict[Any, Any] = {}
        for key, member in rolling_dict.items():
            if not isinstance(key, tuple):
                raise TypeError(
                    f"cannot group by rolling step: key {key!r} is a {type(key).__name__}, "
                    "expected a tuple that ends with the step, as in ('model', 'step'). Let "
                    "rec_key_func return tuples."
                )
            grouped.setdefault(key[:-1], {})[key[-1]] = member
        return grouped


def _checked(members: Mapping[Any, Any]) -> list[Any]:
    """Return the frames with their index levels in one order, or say which one is unfit."""
    if not isinstance(members, Mapping):
        raise DataError(f"expected a dict of frames, not {type(members).__name__}.")
    if not members:
        raise DataError("there are no predictions to merge: the dict of frames is empty.")
    levels: list[Any] = []
    frames = []
    for key, frame in members.items():
        if not isinstance(frame, (pd.DataFrame, pd.Series)):
            raise DataError(
                f"cannot merge {key!r}: expected a DataFrame or Series, not {type(frame).__name__}."
            )
        names = list(frame.index.names)
        if DATETIME not in names:
            raise DataError(
                f"cannot merge {key!r}: its index levels are {names!r} and none is called "
                f"{DATETIME!r}. Rename the level that holds the dates (frame.rename_axis)."
            )
        levels = levels or names
        if names != levels:
            if sorted(map(str, names)) != sorted(map(str, levels)):
                raise DataError(
                    f"cannot merge {key!r}: its index levels are {names!r}, those of the first "
                    f"frame are {levels!r}."
                )
            frame = frame.reorder_levels(levels)
        frames.append(frame)
    return frames


def _leaves(
    members: Mapping[Any, Any], path: tuple[Any, ...]
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield (path of keys, frame) of nested dicts."""
    for key, member in members.items():
        if isinstance(member, Mapping):
            yield from _leaves(member, (*path, key))
        else:
            yield (*path, key), member


def _unique(frame: Any) -> Any:
    return frame if frame.index.is_unique else frame[~frame.index.duplicated(keep="last")]


def _standardize(
    values: np.ndarray[Any, np.dtype[np.float64]], days: np.ndarray[Any, np.dtype[np.intp]]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return (value - mean) / std of each day; a day is a non-negative code in `days`."""
    result = np.full(len(values), np.nan)
    valid = ~np.isnan(values) & (days >= 0)
    if not valid.any():
        return result
    value, day = values[valid], days[valid]
    count = np.bincount(day)
    first = np.empty(len(count))
    first[day[::-1]] = value[::-1]
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        # Sums from the day's first value, so that a constant day has a deviation of exactly zero.
        shifted = value - first[day]
        centered = shifted - (np.bincount(day, shifted) / count)[day]
        deviation = np.sqrt(np.bincount(day, centered**2) / (count - 1))
        result[valid] = centered / deviation[day]
    return result
