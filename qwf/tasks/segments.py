"""Segments of bars: aligned to the calendar, shifted along it, cut before a test.

Dates go in, bars come out; the arithmetic is on positions in the calendar. Knows no task.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any, Final, cast, overload

import numpy as np
import pandas as pd

from ..calendar import Bars, CalendarReader, TradingCalendar, get_calendar, parse_date
from ..errors import ConfigError, SegmentError, SessionOutOfBoundsError
from ..types import Date, Segment

__all__ = ["TimeAdjuster"]

_logger: Final = logging.getLogger("qwf.tasks")

_ADVICE: Final = "Change the segment, or give qwf a calendar that covers it."


class TimeAdjuster:
    """Moves dates and segments along a calendar.

    Every method reads the calendar as it is now; nothing of it is kept by a pickle, so an object
    loaded weeks later sees the days since.

    Parameters
    ----------
    future : bool, default True
        Whether to count on into the bars expected later.
    end_time : date, optional
        Bars after this moment do not exist for this object.
    freq : str, default "day"
        The frequency of the bars.
    calendar : optional
        What `qwf.calendar.parse_calendar` reads. Default: the calendar of this process. A pickle
        keeps a path; any other calendar is left out, and the loaded object takes the calendar of
        its process.

    Examples
    --------
    >>> days = ["2020-01-02", "2020-01-03", "2020-01-06", "2020-01-07"]
    >>> adjuster = TimeAdjuster(calendar=days)
    >>> adjuster.align_time("2020-01-04"), adjuster.align_time("2020-01-04", "end")
    (Timestamp('2020-01-06 00:00:00'), Timestamp('2020-01-03 00:00:00'))
    >>> adjuster.shift(("2020-01-02", "2020-01-03"), 1)
    (Timestamp('2020-01-03 00:00:00'), Timestamp('2020-01-06 00:00:00'))
    """

    SHIFT_SD: Final = "sliding"
    SHIFT_EX: Final = "expanding"

    def __init__(
        self,
        future: bool = True,
        end_time: Date | None = None,
        freq: str = "day",
        calendar: object = None,
    ) -> None:
        self._future, self._freq = future, freq
        self._reader = None if calendar is None else CalendarReader(calendar, freq)
        self._held: TradingCalendar | None = None
        self._cut: tuple[Bars, Bars] | None = None
        self.set_end_time(end_time)

    def __getstate__(self) -> dict[str, Any]:
        path = None if self._reader is None else self._reader.path
        return {
            "future": self._future,
            "end_time": self._end_time,
            "freq": self._freq,
            "calendar": path,
        }

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # the state is the arguments

    def __deepcopy__(self, memo: dict[int, Any]) -> TimeAdjuster:
        # A copy in this process keeps the calendar it was given; only a pickle leaves it out.
        origin = None if self._reader is None else self._reader.origin
        return type(self)(self._future, self._end_time, self._freq, origin)

    def __copy__(self) -> TimeAdjuster:
        return self.__deepcopy__({})

    @property
    def freq(self) -> str:
        """The frequency of the bars."""
        return self._freq

    @property
    def trading_calendar(self) -> TradingCalendar:
        """The calendar as it is now, without regard to `future` and `end_time`."""
        if self._held is not None:
            return self._held
        return get_calendar(self._freq) if self._reader is None else self._reader.read()

    @property
    def bars(self) -> Bars:
        """The bars this object counts on."""
        bars = self.trading_calendar.view(future=self._future)
        if self._end_time is None:
            return bars
        if self._cut is None or self._cut[0] is not bars:
            self._cut = bars, bars.until(self._end_time)
        return self._cut[1]

    @property
    def cals(self) -> np.ndarray:
        """The bars this object counts on, as a read-only array of Timestamps."""
        return self.bars.moments

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Answer from one reading of the calendar for a while."""
        before, self._held = self._held, self.trading_calendar
        try:
            yield
        finally:
            self._held = before

    def set_end_time(self, end_time: Date | None = None) -> None:
        """Let bars after a moment not exist; None lets them all exist."""
        self._end_time = None if end_time is None else parse_date(end_time)
        self._cut = None

    def get(self, idx: int | None) -> pd.Timestamp | None:
        """Return the bar at a position.

        Returns
        -------
        Timestamp or None
            None for None and for a position after the last bar.

        Raises
        ------
        SessionOutOfBoundsError
            If the position is negative.
        """
        return _at(self.bars, idx)

    def max(self) -> pd.Timestamp:
        """Return the last bar.

        Raises
        ------
        SessionOutOfBoundsError
            If `end_time` is before the first bar.
        """
        bars = self.bars
        if not len(bars):
            raise SessionOutOfBoundsError(
                f"there is no bar until {self._end_time}; the calendar begins later, with "
                f"{self.trading_calendar.known!r}. Set a later end_time."
            )
        return bars.moments[-1]

    def align_idx(self, time_point: Date | None, tp_type: str = "start") -> int | None:
        """Return the position of the bar that stands for a date.

        Parameters
        ----------
        time_point : date or None
            Need not be a bar.
        tp_type : {"start", "end"}
            Whether the first bar not before the date or the last bar not after it.

        Returns
        -------
        int or None
            None for None; the number of bars for a start after the last bar; ``-1`` for an end
            before the first bar.
        """
        return _position(self.bars, time_point, tp_type)

    def align_time(self, time_point: Date | None, tp_type: str = "start") -> pd.Timestamp | None:
        """Return the bar that stands for a date; None for None.

        Raises
        ------
        SessionOutOfBoundsError
            If it is a start after the last bar or an end before the first one.
        """
        return _aligned(self.bars, time_point, tp_type)

    @overload
    def align_seg(
        self, segment: Mapping[str, Segment]
    ) -> dict[str, tuple[pd.Timestamp | None, pd.Timestamp | None]]: ...

    @overload
    def align_seg(self, segment: Segment) -> tuple[pd.Timestamp | None, pd.Timestamp | None]: ...

    def align_seg(self, segment: Mapping[str, Segment] | Segment) -> Any:
        """Return a segment, or each segment of a dict, with its ends moved inwards to bars.

        Returns
        -------
        tuple of Timestamp, or dict of them
            Open ends stay None.

        Raises
        ------
        SessionOutOfBoundsError
            If a segment starts after the last bar or ends before the first one.
        SegmentError
            If it is not a pair.
        """
        if isinstance(segment, Mapping):
            return {name: self._align_named(name, item) for name, item in segment.items()}
        start, end = _pair(segment)
        bars = self.bars
        return _aligned(bars, start, "start"), _aligned(bars, end, "end")

    def _align_named(self, name: str, segment: Segment) -> Any:
        try:
            return self.align_seg(segment)
        except (SegmentError, SessionOutOfBoundsError) as error:
            raise type(error)(f"segment {name!r}: {error}") from error

    def cal_interval(self, time_point_A: Date, time_point_B: Date) -> int:  # noqa: N803
        """Return how many bars A lies after B; both are moved forward to bars.

        Raises
        ------
        TypeError
            If one of them is None: an open end has no distance to anything.
        """
        bars = self.bars
        a, b = _position(bars, time_point_A, "start"), _position(bars, time_point_B, "start")
        if a is None or b is None:
            raise TypeError(
                f"there is no interval between {time_point_A!r} and {time_point_B!r}; "
                "both have to be dates."
            )
        return a - b

    def truncate(
        self, segment: Segment, test_start: Date, days: int
    ) -> tuple[pd.Timestamp | None, pd.Timestamp | None]:
        """Cut a segment so that nothing of it is later than `days` bars before a test.

        Both ends are moved forward to bars first, as in Qlib; align a segment whose end may be a
        holiday before. Of a segment that lies wholly after the bound, the bound itself is left.

        Parameters
        ----------
        segment : pair of dates
            An open end is cut to the bound; an open start stays None.
        test_start : date
            The first bar of the test, or a date before it that is none.
        days : int
            Number of bars: the last bar left is the `days`-th before the test.

        Raises
        ------
        SegmentError
            If there are not so many bars before the test, or it has no start.
        SessionOutOfBoundsError
            If the segment ends before the first bar.
        """
        start, end = _pair(segment)
        bars = self.bars
        test = _position(bars, test_start, "start")
        if test is None:
            raise SegmentError(
                f"cannot cut the segment {_text(segment)} before a test without a start; "
                "give the test segment a start date."
            )
        bound = test - days
        if bound < 0:
            raise SegmentError(
                f"nothing is left of the segment {_text(segment)}: it may not come nearer than "
                f"{days} bars to the test that starts at {test_start}, and the calendar has "
                f"{test} bars before that. Start the test later or leave fewer bars out."
            )
        _aligned(bars, end, "end")
        first = None if start is None else bars.first_at_or_after(start)
        last = bound if end is None else min(bars.first_at_or_after(end), bound)
        if first is not None and first > bound:
            _logger.warning(
                "segment %s lies after the last bar it may have, %s, %d bars before the test that "
                "starts at %s; only that bar is left of it",
                _text(segment), bars.moments[min(bound, len(bars) - 1)], days, test_start,
            )  # fmt: skip
            first = bound
        return _at(bars, first), _at(bars, last)

    def shift(
        self, seg: Segment, step: int, rtype: str = SHIFT_SD
    ) -> tuple[pd.Timestamp | None, pd.Timestamp | None]:
        """Move a segment along the calendar.

        Parameters
        ----------
        seg : pair of dates
            Its ends are moved inwards to bars first; open ends stay open.
        step : int
            How many bars.
        rtype : {"sliding", "expanding"}
            Whether both ends move, or the end only.

        Returns
        -------
        tuple of Timestamp
            An end that moves past the last bar becomes None.

        Raises
        ------
        SessionOutOfBoundsError
            If the start, or either end when moving back, leaves the calendar. It is a KeyError.
        ConfigError
            If `rtype` is neither.
        """
        check_rolling_type(rtype)
        start, end = _pair(seg)
        bars = self.bars
        first, last = _position(bars, start, "start"), _position(bars, end, "end")
        if last == -1:
            _aligned(bars, end, "end")
        if first is not None and rtype == self.SHIFT_SD:
            first += step
        if last is not None:
            last += step
        too_early = any(position is not None and position < 0 for position in (first, last))
        if too_early or (first is not None and first >= len(bars)):
            raise SessionOutOfBoundsError(
                f"the segment {_text(seg)} {rtype} by {step} bars is out of the calendar of "
                f"{bars!r}. {_ADVICE}"
            )
        return _at(bars, first), _at(bars, last)


def check_rolling_type(rtype: str) -> None:
    """Refuse what is neither "expanding" nor "sliding"."""
    known = (TimeAdjuster.SHIFT_EX, TimeAdjuster.SHIFT_SD)
    if rtype not in known:
        raise ConfigError(f"rtype is {rtype!r}; expected {known[0]!r} or {known[1]!r}.")


def _pair(segment: object) -> tuple[Date | None, Date | None]:
    if not isinstance(segment, (tuple, list)) or len(segment) != 2:
        raise SegmentError(
            f"{segment!r} is not a segment; expected a pair (start, end) of dates or None."
        )
    return segment[0], segment[1]


def _text(segment: Segment) -> str:
    start, end = _pair(segment)
    return f"({start}, {end})"


def _position(bars: Bars, date: Date | None, end_type: str) -> int | None:
    if end_type not in ("start", "end"):
        raise ConfigError(f"tp_type is {end_type!r}; expected 'start' or 'end'.")
    if date is None:
        return None
    return bars.first_at_or_after(date) if end_type == "start" else bars.last_at_or_before(date)


def _aligned(bars: Bars, date: Date | None, end_type: str) -> pd.Timestamp | None:
    position = _position(bars, date, end_type)
    if position is None or 0 <= position < len(bars):
        return _at(bars, position)
    bound = "end {} is before the first" if end_type == "end" else "start {} is after the last"
    raise SessionOutOfBoundsError(
        f"the {bound.format(date)} bar of the calendar of {bars!r}. {_ADVICE}"
    )


def _at(bars: Bars, position: int | None) -> pd.Timestamp | None:
    if position is None or position >= len(bars):
        return None
    if position < 0:
        raise SessionOutOfBoundsError(
            f"there is no bar at position {position}; the calendar has {bars!r}. "
            "Positions count from 0; use max() for the last bar."
        )
    return cast("pd.Timestamp", bars.moments[position])
