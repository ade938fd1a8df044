"""Raw data of one period, and their processing as it was learnt from one fit window.

Owns what is fitted, on which rows, and what a pickle leaves out. Knows no price and no segment.
"""

from __future__ import annotations

import copy
import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, TypeAlias

import numpy as np
import pandas as pd

from ..errors import ConfigError, DataError, LookAheadError, suggest
from ..instantiate import init_instance_by_config
from ..storage.fsio import write_atomic
from ..storage.pickles import dump_pickle
from ..types import Date
from .processors import Processor
from .window import check_window, date_level, parse_bound, rows_between

__all__ = ["DataHandlerLP"]

_LEVELS: Final = ["datetime", "instrument"]

# One date, or a window with both ends inclusive.
Selector: TypeAlias = "Date | slice | tuple[Date | None, Date | None]"


class DataHandlerLP(ABC):
    """Raw data, the same processed for inference, and processed further for learning.

    Derive from it and write `load` to bring data of one's own. Data are loaded when they are first
    asked for. Steps to be fitted see the rows of the fit window only, and in them no label that
    was not known yet at its end.

    Parameters
    ----------
    instruments : str or sequence of str, optional
        Which instruments, as `load` understands it.
    start_time, end_time : date, optional
        First and last moment of the data, both inclusive. Default: all there is.
    infer_processors : sequence of dict, str or Processor
        Steps from raw data (``"raw"``) to those for inference (``"infer"``): configurations, names
        from `qwf.data.processors`, or instances, which are copied.
    learn_processors : sequence of dict, str or Processor
        Further steps from there to the data for learning (``"learn"``).
    fit_start_time, fit_end_time : date, optional
        The fit window, both inclusive. Without an end, no step can be fitted.

    Raises
    ------
    SegmentError
        If a window has an end that is no date, or starts after it ends.
    ConfigError
        If a step for learning only stands among the `infer_processors`.
    """

    IT_FIT_SEQ: ClassVar = "fit_seq"
    IT_FIT_IND: ClassVar = "fit_ind"
    IT_LS: ClassVar = "load_state"
    DK_R: ClassVar = "raw"
    DK_I: ClassVar = "infer"
    DK_L: ClassVar = "learn"
    CS_ALL: ClassVar = "__all"
    CS_RAW: ClassVar = "__raw"

    # What `config` may change.
    _settings: ClassVar[tuple[str, ...]] = ("instruments", "start_time", "end_time")
    # Bars after a row until its label is known. A class with labels says so in its instances.
    label_bars: int = 0

    def __init__(
        self,
        instruments: str | Sequence[str] | None = None,
        start_time: Date | None = None,
        end_time: Date | None = None,
        infer_processors: Sequence[Any] | None = (),
        learn_processors: Sequence[Any] | None = (),
        fit_start_time: Date | None = None,
        fit_end_time: Date | None = None,
    ) -> None:
        check_window(start_time, end_time, f"the period of {type(self).__name__}")
        self.instruments = instruments
        self.start_time = start_time
        self.end_time = end_time
        self.use_fit_window(fit_start_time, fit_end_time)
        self.infer_processors = [self._build(step) for step in infer_processors or ()]
        self.learn_processors = [self._build(step) for step in learn_processors or ()]
        for step in self.infer_processors:
            if hasattr(step, "is_for_infer") and not step.is_for_infer():
                raise ConfigError(
                    f"{type(step).__name__} needs labels and stands among the infer_processors; "
                    "move it to the learn_processors."
                )
        self._frames: dict[str, pd.DataFrame] | None = None
        self._fitted = False
        self._dump_all = False

    @abstractmethod
    def load(self) -> pd.DataFrame:
        """Return the raw data of `instruments` from `start_time` to `end_time`.

        Returns
        -------
        DataFrame
            Index levels ``(datetime, instrument)``, sorted by datetime, unique; column levels
            (group, name), the groups ``"feature"`` and ``"label"``. A feature may use nothing from
            after its row's datetime.
        """

    def use_fit_window(self, start: Date | None, end: Date | None) -> None:
        """Set the fit window; both ends inclusive. What is fitted already stays."""
        check_window(start, end, f"the fit window of {type(self).__name__}")
        self.fit_start_time = start
        self.fit_end_time = end

    def config(
        self, *, dump_all: bool | None = None, recursive: bool = False, **settings: Any
    ) -> None:
        """Change the period or instruments, and say what a pickle holds.

        Data are loaded anew when they are next asked for; what is fitted stays.

        Parameters
        ----------
        dump_all : bool, optional
            Whether a pickle holds the data, too. At first it does not.
        recursive : bool, default False
            Qlib's parameter; a handler has no parts that it could be passed to.
        **settings
            ``instruments``, ``start_time``, ``end_time``.

        Raises
        ------
        ConfigError, SegmentError
            If a setting is unknown, or the period impossible. Nothing was changed.
        """
        for name in settings:
            if name not in self._settings:
                raise ConfigError(
                    f"{type(self).__name__} has no setting {name!r} to change; "
                    f"{suggest(name, self._settings)} Nothing was changed."
                )
        start = settings.get("start_time", self.start_time)
        end = settings.get("end_time", self.end_time)
        check_window(start, end, f"the period of {type(self).__name__}")
        if dump_all is not None:
            self._dump_all = dump_all
        if settings:
            self.__dict__.update(settings)
            self._frames = None

    def setup_data(self, init_type: str = IT_FIT_SEQ) -> None:
        """Load the data of the present period and process them.

        Parameters
        ----------
        init_type : {"fit_seq", "fit_ind", "load_state"}, default "fit_seq"
            ``fit_seq`` fits each step on what the step before it made, ``fit_ind`` each one on the
            raw data; ``load_state`` fits nothing and uses the steps as they were fitted before.

        Raises
        ------
        LookAheadError
            If a step has to be fitted and there is no end of the fit window.
        DataError
            If the data are not as `load` promises, if the fit window holds none of them, or
            ``load_state`` is asked for before anything was fitted. Nothing was changed.
        """
        known = (self.IT_FIT_SEQ, self.IT_FIT_IND, self.IT_LS)
        if init_type not in known:
            raise ConfigError(f"there is no init_type {init_type!r}; {suggest(init_type, known)}")
        # Copies, so that a failure leaves the steps as they were fitted before.
        infer_steps = copy.deepcopy(self.infer_processors)
        learn_steps = copy.deepcopy(self.learn_processors)
        if init_type == self.IT_LS and not self._fitted:
            self._refuse_unfitted([*infer_steps, *learn_steps])
        raw = self._checked(self.load())
        bars = date_level(raw.index).unique()
        if init_type == self.IT_FIT_IND:
            for step in (*infer_steps, *learn_steps):
                self._fit(step, raw, bars)
        fit = functools.partial(self._fit, bars=bars) if init_type == self.IT_FIT_SEQ else None
        infer = _run(infer_steps, raw, fit)
        learn = _run(learn_steps, infer, fit)
        self.infer_processors, self.learn_processors = infer_steps, learn_steps
        self._frames = {self.DK_R: raw, self.DK_I: infer, self.DK_L: learn}
        self._fitted = True

    def fetch(
        self,
        selector: Selector = slice(None),
        *,
        col_set: str | Sequence[str] = CS_ALL,
        data_key: str = DK_I,
    ) -> pd.DataFrame:
        """Return rows of the data, loading them first if they are not there.

        Parameters
        ----------
        selector : slice, pair or date, default all
            A window, both ends inclusive, or one moment.
        col_set : str or sequence of str, default "__all"
            A column group, which gives the plain names in it; ``"__all"``, the plain names of all
            groups; a list of groups or ``"__raw"``, columns with both levels.
        data_key : {"raw", "infer", "learn"}, default "infer"
            How far processed.

        Returns
        -------
        DataFrame
            Index levels ``(datetime, instrument)``, sorted; perhaps empty.
        """
        if self._frames is None:
            self.setup_data(self.IT_LS if self._fitted else self.IT_FIT_SEQ)
        frames: Mapping[str, pd.DataFrame] = self._frames or {}
        if data_key not in frames:
            raise DataError(f"there is no data_key {data_key!r}; {suggest(data_key, frames)}")
        frame = frames[data_key]
        if isinstance(selector, slice):
            start, end = selector.start, selector.stop
        else:
            start, end = selector if isinstance(selector, (tuple, list)) else (selector, selector)
        rows = rows_between(frame.index, start, end, "the window asked for")
        return _select_columns(frame.iloc[rows], col_set)

    def to_pickle(self, path: str | os.PathLike[str], *, dump_all: bool = False) -> None:
        """Write the handler to a file, whole or not at all.

        Parameters
        ----------
        path : str or Path
            File to create or replace. Its directory must exist.
        dump_all : bool, default False
            With the data, which are loaded first if they are not there yet.
        """
        if dump_all and self._frames is None:
            self.setup_data(self.IT_LS if self._fitted else self.IT_FIT_SEQ)
        before, self._dump_all = self._dump_all, dump_all
        try:
            content = dump_pickle(self)
        finally:
            self._dump_all = before
        write_atomic(Path(path), content)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if not self._dump_all:
            state["_frames"] = None
        state["_dump_all"] = False
        return state

    def _build(self, step: Any) -> Any:
        if callable(step):
            return copy.deepcopy(step)
        window = {"fit_start_time": self.fit_start_time, "fit_end_time": self.fit_end_time}
        return init_instance_by_config(step, "qwf.data.processors", try_kwargs=window)

    def _checked(self, frame: pd.DataFrame) -> pd.DataFrame:
        name = type(self).__name__
        if frame.columns.nlevels != 2 or list(frame.index.names) != _LEVELS:
            raise DataError(
                f"{name}.load returned index levels {list(frame.index.names)} and columns of "
                f"{frame.columns.nlevels} levels; expected {_LEVELS} and (group, name)."
            )
        if frame.empty:
            raise DataError(
                f"{name} has no data from {self.start_time or 'the beginning'} to "
                f"{self.end_time or 'the end'}; change start_time or end_time."
            )
        if not date_level(frame.index).is_monotonic_increasing:
            raise DataError(
                f"{name}.load returned rows that are not sorted by datetime; sort them."
            )
        return frame

    def _refuse_unfitted(self, steps: Iterable[Any]) -> None:
        names = [type(step).__name__ for step in steps if _learns(step)]
        if names:
            raise DataError(
                f"load_state needs fitted processors, and {', '.join(names)} of this "
                f"{type(self).__name__} never were; call setup_data() first."
            )

    def _fit(self, step: Any, frame: pd.DataFrame, bars: pd.DatetimeIndex) -> None:
        """Fit a step on the rows of the fit window; `bars` are all dates of the raw data."""
        if not _learns(step):
            return
        what = f"the fit window of {type(step).__name__}"
        own_start = parse_bound(getattr(step, "fit_start_time", None), what)
        own_end = parse_bound(getattr(step, "fit_end_time", None), what)
        start, end = check_window(self.fit_start_time, self.fit_end_time, what)
        starts = [moment for moment in (start, own_start) if moment is not None]
        ends = [moment for moment in (end, own_end) if moment is not None]
        if not ends:
            raise LookAheadError(
                f"{type(step).__name__} has to be fitted and {type(self).__name__} has no "
                "fit_end_time: it would learn from the future of every row. Pass fit_end_time, the "
                "end of the training segment."
            )
        first, last = max(starts, default=None), min(ends)
        rows = frame.iloc[rows_between(frame.index, first, last, what)]
        if rows.empty:
            raise DataError(
                f"{what}, {first or 'the beginning'} to {last}, holds none of the rows from "
                f"{bars[0]} to {bars[-1]}; move it, or start_time and end_time."
            )
        step.fit(self._without_later_labels(rows, bars[: bars.searchsorted(last, side="right")]))

    def _without_later_labels(self, rows: pd.DataFrame, bars: pd.DatetimeIndex) -> pd.DataFrame:
        """Blank the labels that were not known at the last of these bars."""
        labels = np.asarray(rows.columns.get_level_values(0) == "label")
        if not self.label_bars or not labels.any():
            return rows
        unknown = np.asarray(date_level(rows.index).isin(bars[-self.label_bars :]))
        values = rows.to_numpy(copy=True)
        values[np.ix_(unknown, labels)] = np.nan
        return pd.DataFrame(values, index=rows.index, columns=rows.columns)


def _learns(step: Any) -> bool:
    if isinstance(step, Processor):
        return type(step).fit is not Processor.fit
    return hasattr(step, "fit")


def _run(
    steps: Iterable[Any],
    frame: pd.DataFrame,
    fit: Callable[[Any, pd.DataFrame], None] | None,
) -> pd.DataFrame:
    for step in steps:
        if fit is not None:
            fit(step, frame)
        # A step of the user's own may write into what it gets.
        frame = step(frame if isinstance(step, Processor) else frame.copy())
    return frame


def _select_columns(frame: pd.DataFrame, col_set: str | Sequence[str]) -> pd.DataFrame:
    if col_set == DataHandlerLP.CS_RAW:
        return frame
    if col_set == DataHandlerLP.CS_ALL:
        return frame.droplevel(0, axis=1)
    groups = frame.columns.get_level_values(0)
    asked = [col_set] if isinstance(col_set, str) else list(col_set)
    for group in asked:
        if group not in groups:
            known = [*groups.unique(), DataHandlerLP.CS_ALL, DataHandlerLP.CS_RAW]
            raise DataError(f"there is no column set {group!r}; {suggest(group, known)}")
    chosen = frame.iloc[:, np.concatenate([np.flatnonzero(groups == group) for group in asked])]
    return chosen.droplevel(0, axis=1) if isinstance(col_set, str) else chosen
