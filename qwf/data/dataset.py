"""Named segments of a handler's data. Owns what a segment's name means; computes nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..calendar import parse_date
from ..errors import DataError, SegmentError, suggest
from ..instantiate import init_instance_by_config
from ..storage.fsio import write_atomic
from ..storage.pickles import dump_pickle
from ..types import Segment, Segments
from .handler_base import DataHandlerLP
from .window import check_window

__all__ = ["DatasetH"]

_log = logging.getLogger(__name__)


class DatasetH:
    """A handler's data, cut into segments such as ``"train"``, ``"valid"`` and ``"test"``.

    Data are loaded when they are first asked for. A pickle holds the segments and the handler as
    it was fitted, without data; loaded again, it can be given later dates by `config` and serves
    them with what was fitted before.

    Parameters
    ----------
    handler : dict, str, Path or handler
        A configuration (classes without a module are those of `qwf.data.handler`), the ``file://``
        URI or path of a pickled handler, or one that is used as it is. One that is built here from
        a configuration without a fit window is fitted on the segment ``"train"``.
    segments : dict of str to pair of dates
        Name to (start, end), both inclusive; an open end is None.

    Raises
    ------
    SegmentError
        If a segment is no pair of dates or starts after it ends.

    Examples
    --------
    >>> import pandas as pd
    >>> from qwf.data.handler import PriceHandler
    >>> dates = pd.date_range("2020-01-01", periods=4, name="datetime")
    >>> handler = PriceHandler(pd.DataFrame({"A": [10.0, 11.0, 22.0, 33.0]}, index=dates))
    >>> dataset = DatasetH(handler, {"train": (None, "2020-01-02"), "test": ("2020-01-03", None)})
    >>> dataset.prepare("train", "label", "raw")  # doctest: +NORMALIZE_WHITESPACE
                           LABEL0
    datetime   instrument
    2020-01-01 A              1.0
    2020-01-02 A              0.5
    """

    def __init__(self, handler: Any, segments: Segments) -> None:
        self.segments = _checked_segments(segments)
        self.handler = self._build(handler)
        self._warn_of_look_ahead()

    def _build(self, handler: Any) -> Any:
        if not isinstance(handler, (Mapping, str, os.PathLike)):
            return handler
        built = init_instance_by_config(handler, default_module="qwf.data.handler")
        train = self.segments.get("train")
        if isinstance(handler, Mapping) and isinstance(built, DataHandlerLP) and train is not None:
            start, end = built.fit_start_time, built.fit_end_time
            built.use_fit_window(
                train[0] if start is None else start, train[1] if end is None else end
            )
        return built

    def config(
        self,
        handler_kwargs: Mapping[str, Any] | None = None,
        segments: Segments | None = None,
        *,
        dump_all: bool | None = None,
        recursive: bool = False,
    ) -> None:
        """Change segments and the handler's period, and say what a pickle holds.

        Parameters
        ----------
        handler_kwargs : dict, optional
            For the handler's ``config``: ``start_time``, ``end_time``, ``instruments``, ...
        segments : dict, optional
            They take the place of all segments there were.
        dump_all : bool, optional
            Whether a pickle holds the handler's data, too; passed on if `recursive`.
        recursive : bool, default False
            Whether `dump_all` is for the handler as well. The dataset has no data of its own.

        Raises
        ------
        SegmentError, ConfigError
            If one of them is impossible. Nothing was changed.
        """
        checked = self.segments if segments is None else _checked_segments(segments)
        passed_on = dict(handler_kwargs or {})
        if dump_all is not None and recursive:
            passed_on |= {"dump_all": dump_all, "recursive": True}
        if passed_on:
            self.handler.config(**passed_on)
        self.segments = checked

    def setup_data(self, handler_kwargs: Mapping[str, Any] | None = None) -> None:
        """Load the data now.

        Parameters
        ----------
        handler_kwargs : dict, optional
            For the handler's ``setup_data``; ``{"init_type": "load_state"}`` fits nothing anew.
            Default: the handler is fitted anew.
        """
        self.handler.setup_data(**(handler_kwargs or {}))

    def prepare(
        self,
        segments: str | slice | Segment | Sequence[str],
        col_set: str | Sequence[str] = DataHandlerLP.CS_ALL,
        data_key: str = DataHandlerLP.DK_I,
    ) -> Any:
        """Return the data of one or several segments.

        Parameters
        ----------
        segments : str, list of str, slice or pair of dates
            Names of segments, or a window, both ends inclusive.
        col_set : str or sequence of str, default "__all"
            ``"feature"``, ``"label"``, a list of both, or ``"__all"``; see `DataHandlerLP.fetch`.
        data_key : {"infer", "learn", "raw"}, default "infer"
            How far processed.

        Returns
        -------
        DataFrame or list of DataFrame
            Index levels ``(datetime, instrument)``, sorted, at least one row; a list, in the same
            order, for a list of names.

        Raises
        ------
        SegmentError
            If there is no segment of this name.
        DataError
            If a segment has no data.
        """
        if isinstance(segments, (list, tuple)) and not self._is_window(segments):
            return [self._prepare(name, col_set, data_key) for name in segments]
        return self._prepare(segments, col_set, data_key)

    def to_pickle(self, path: str | os.PathLike[str], *, dump_all: bool = False) -> None:
        """Write the dataset to a file, whole or not at all.

        Parameters
        ----------
        path : str or Path
            File to create or replace. Its directory must exist.
        dump_all : bool, default False
            With the handler's data, which are loaded first if they are not there yet.
        """
        if not dump_all:
            write_atomic(Path(path), dump_pickle(self))
            return
        self.handler.fetch(data_key=DataHandlerLP.DK_R)
        self.handler.config(dump_all=True, recursive=True)
        try:
            content = dump_pickle(self)
        finally:
            self.handler.config(dump_all=False, recursive=True)
        write_atomic(Path(path), content)

    def _is_window(self, segments: Sequence[Any]) -> bool:
        """Tell a pair of dates from a list of names; no segment's name begins with a digit."""
        dates = [not isinstance(item, str) or item[:1].isdigit() for item in segments]
        return len(dates) == 2 and all(dates)

    def _prepare(self, segment: Any, col_set: str | Sequence[str], data_key: str) -> pd.DataFrame:
        start, end = self._window(segment)
        frame: pd.DataFrame = self.handler.fetch(
            slice(start, end), col_set=col_set, data_key=data_key
        )
        if frame.empty:
            period = [getattr(self.handler, name, None) for name in ("start_time", "end_time")]
            raise DataError(
                f"segment {segment!r} ({start} to {end}) has no {data_key} data; the handler's "
                f"period is {period[0] or 'the beginning'} to {period[1] or 'the end'} of what "
                "there is. Move the segment or the period."
            )
        return frame

    def _window(self, segment: Any) -> tuple[Any, Any]:
        if isinstance(segment, slice):
            segment = (segment.start, segment.stop)
        if not isinstance(segment, str):
            return _checked_pair("the segment asked for", segment)
        if segment not in self.segments:
            near = suggest(segment, self.segments)
            raise SegmentError(f"the dataset has no segment {segment!r}; {near}")
        start, end = self.segments[segment]
        return start, end

    def _warn_of_look_ahead(self) -> None:
        fit_end = getattr(self.handler, "fit_end_time", None)
        test_start = self.segments.get("test", (None, None))[0]
        if fit_end is None or test_start is None:
            return
        if parse_date(fit_end) >= parse_date(test_start):
            _log.warning(
                "the processors are fitted until %s, and the test segment starts at %s: what is "
                "measured there was partly seen before.",
                fit_end,
                test_start,
            )


def _checked_segments(segments: Any) -> dict[str, Any]:
    if not isinstance(segments, Mapping):
        raise SegmentError(
            f"segments are {segments!r}; expected a dict like {{'train': (start, end), ...}}."
        )
    for name, pair in segments.items():
        _checked_pair(f"segment {name!r}", pair)
    return dict(segments)


def _checked_pair(what: str, pair: Any) -> tuple[Any, Any]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise SegmentError(
            f"{what} is {pair!r}; expected (start, end), both inclusive, an open end as None."
        )
    check_window(pair[0], pair[1], what)
    return pair[0], pair[1]
