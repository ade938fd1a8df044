"""Which bars there are, where they come from, and shifts counted in bars.

A bar is a trading day or, for finer frequencies, the moment of an intraday bar. Knows no segment
and no task; dates that need not be bars are read by `parse_date`.
"""

from __future__ import annotations

import os
import stat
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from .config import C
from .errors import ConfigError, NotSessionError, SessionOutOfBoundsError
from .types import Date

__all__ = [
    "Bars",
    "CalendarReader",
    "D",
    "ProcessCalendar",
    "TradingCalendar",
    "get_calendar",
    "get_date_by_shift",
    "parse_calendar",
    "parse_date",
    "read_calendar",
    "transform_end_date",
]

_INT64: Final = np.iinfo(np.int64)
_NUMBERS: Final = (int, float, np.integer, np.floating, np.bool_)


def parse_date(date: Date) -> pd.Timestamp:
    """Read one moment; a plain date is its midnight, as in pandas.

    Parameters
    ----------
    date : str, date, datetime, datetime64 or Timestamp
        Need not be a bar. Numbers are refused: pandas would read them as nanoseconds of 1970.

    Raises
    ------
    NotSessionError
        If it is no date, is missing (NaT), or carries a time zone, which bars do not.

    Examples
    --------
    >>> parse_date("2020-01-03")
    Timestamp('2020-01-03 00:00:00')
    >>> parse_date(20200103)
    Traceback (most recent call last):
        ...
    qwf.errors.NotSessionError: 20200103 is a number, not a date; write '2020-01-03'.
    """
    if isinstance(date, _NUMBERS):
        raise NotSessionError(f"{date!r} is a number, not a date; write '2020-01-03'.")
    try:
        moment = pd.Timestamp(date)
    except (ValueError, TypeError) as error:
        raise NotSessionError(
            f"{date!r} is not a date: {error}. Write it as '2020-01-03' or '2020-01-03 09:31'."
        ) from error
    if moment is pd.NaT:
        raise NotSessionError(f"{date!r} is not a date, it is missing.")
    if moment.tzinfo is not None:
        raise NotSessionError(
            f"{date!r} has a time zone and bars have none; take it off with tz_localize(None)."
        )
    return moment


def _nanoseconds(date: Date) -> int:
    moment = parse_date(date)
    try:
        return int(moment.value)
    except OverflowError:
        # '9999-12-31' is a common way to write "no end"; it lies after every bar.
        return int(_INT64.max if moment.year > 2000 else _INT64.min)


class Bars:
    """Ascending moments that are found by date or by position. Immutable.

    Parameters
    ----------
    moments : DatetimeIndex
        Validated: ascending, unique, without time zone, in nanoseconds.
    """

    def __init__(self, moments: pd.DatetimeIndex) -> None:
        self._index = moments

    def __len__(self) -> int:
        return len(self._index)

    def __repr__(self) -> str:
        ends = f" from {self._index[0]} to {self._index[-1]}" if len(self) else ""
        return f"<{len(self)} bars{ends}>"

    @cached_property
    def moments(self) -> np.ndarray:
        """The bars as a read-only array of Timestamps."""
        moments: np.ndarray = self._index.astype(object).to_numpy().copy()
        moments.flags.writeable = False
        return moments

    @cached_property
    def _keys(self) -> list[int]:
        # A list, because bisect on an array boxes one number per comparison.
        keys: list[int] = self._index.asi8.tolist()
        return keys

    @property
    def are_days(self) -> bool:
        """Whether every bar is a midnight, as trading days are written."""
        return bool((self._index.normalize() == self._index).all())

    def first_at_or_after(self, date: Date) -> int:
        """Return the position of the first bar not before `date`; ``len`` when there is none."""
        return bisect_left(self._keys, _nanoseconds(date))

    def last_at_or_before(self, date: Date) -> int:
        """Return the position of the last bar not after `date`; ``-1`` when there is none."""
        return bisect_right(self._keys, _nanoseconds(date)) - 1

    def until(self, end_time: Date) -> Bars:
        """Return the bars that are not after a moment."""
        return Bars(self._index[: self.last_at_or_before(end_time) + 1])

    def between(self, start_time: Date | None = None, end_time: Date | None = None) -> np.ndarray:
        """Return the Timestamps between two moments, both inclusive; read-only, perhaps empty."""
        first = 0 if start_time is None else self.first_at_or_after(start_time)
        stop = len(self) if end_time is None else self.last_at_or_before(end_time) + 1
        return self.moments[first:stop]


class TradingCalendar:
    """The bars of one market at one frequency, and those expected later. Immutable.

    Parameters
    ----------
    bars : iterable of dates
        The bars that have happened: ascending, unique, at least one.
    future_bars : iterable of dates, default ()
        The bars expected later, as in Qlib's ``day_future.txt``. It may repeat the bars that have
        happened; whatever is not after the last of them is ignored, so that a position means the
        same bar with and without the future.
    freq : str, default "day"
        The frequency they are asked for by, e.g. ``"day"`` or ``"1min"``.

    Attributes
    ----------
    known : Bars
        The bars that have happened.
    expected : Bars
        `known` followed by the future bars; `known` itself when there are none.

    Raises
    ------
    ConfigError
        If there is no bar, or a value is no date, twice there, or out of order.

    Examples
    --------
    >>> calendar = TradingCalendar(["2020-01-02", "2020-01-03"], ["2020-01-06"])
    >>> len(calendar.known), len(calendar.expected)
    (2, 3)
    >>> TradingCalendar(["2020-01-03", "2020-01-02"])
    Traceback (most recent call last):
        ...
    qwf.errors.ConfigError: bar 1 of the calendar: 2020-01-02 00:00:00 comes after 2020-01-03 \
00:00:00; bars have to be ascending and unique.
    """

    def __init__(
        self, bars: Iterable[Any], future_bars: Iterable[Any] = (), *, freq: str = "day"
    ) -> None:
        known = _parse_bars(bars, lambda position: f"bar {position} of the calendar")
        if not len(known):
            raise ConfigError("the calendar is empty; it needs at least one bar.")
        future = _parse_bars(future_bars, lambda position: f"future bar {position}")
        self.freq = freq
        self.known = Bars(known)
        later = future[future > known[-1]]
        self.expected = Bars(known.append(later)) if len(later) else self.known

    def __repr__(self) -> str:
        return f"TradingCalendar({self.freq!r}, {self.known!r})"

    def view(self, *, future: bool) -> Bars:
        """Return the bars with or without those expected later."""
        return self.expected if future else self.known


def _parse_bars(values: Iterable[Any], where: Callable[[int], str]) -> pd.DatetimeIndex:
    """Read and validate bars; `where` names the value at a position in errors."""
    values = values if isinstance(values, (pd.Index, np.ndarray)) else list(values)
    try:
        bars = _parse_moments(values, where).as_unit("ns")
    except pd.errors.OutOfBoundsDatetime as error:
        raise ConfigError(
            f"{where(0)} to {where(len(values) - 1)}: a date lies outside the years 1678 to 2261."
        ) from error
    if bars.tz is not None:
        raise ConfigError(
            f"{where(0)}: {bars[0]} has a time zone; bars have none. "
            "Convert to exchange time and take the zone off with tz_localize(None)."
        )
    if bars.hasnans:
        raise ConfigError(f"{where(int(np.argmax(bars.isna())))}: the date is missing.")
    wrong = np.flatnonzero(np.diff(bars.asi8) <= 0)
    if len(wrong):
        at = int(wrong[0]) + 1
        relation = "is there twice" if bars[at] == bars[at - 1] else f"comes after {bars[at - 1]}"
        raise ConfigError(
            f"{where(at)}: {bars[at]} {relation}; bars have to be ascending and unique."
        )
    return bars


def _parse_moments(values: Any, where: Callable[[int], str]) -> pd.DatetimeIndex:
    if getattr(getattr(values, "dtype", None), "kind", None) == "M":
        return pd.DatetimeIndex(values)
    if all(isinstance(value, str) for value in values):
        try:
            return pd.DatetimeIndex(pd.to_datetime(list(values), format="ISO8601"))
        except ValueError:
            pass  # some other notation, or an error that the loop below can place
    moments = []
    for position, value in enumerate(values):
        try:
            moments.append(parse_date(value))
        except NotSessionError as error:
            raise ConfigError(f"{where(position)}: {error}") from error
    return pd.DatetimeIndex(moments)


def parse_calendar(source: object, freq: str = "day") -> TradingCalendar:
    """Read a calendar from whatever describes one.

    Parameters
    ----------
    source : object
        One of: a sequence, array or DatetimeIndex of dates; the path of a text file or of a Qlib
        data directory (`read_calendar`); a frame of prices, whose index is a DatetimeIndex or has
        a level named ``datetime`` (any order, dates may repeat); an object with Qlib's
        ``calendar(start_time, end_time, freq, future)``; a `TradingCalendar`.
    freq : str, default "day"
        The frequency that is wanted. Sources that hold bars of one frequency serve it as it is.

    Raises
    ------
    ConfigError
        If the source is none of these, its bars are not valid, or of another frequency.
    """
    if isinstance(source, TradingCalendar):
        if source.freq != freq:
            raise ConfigError(
                f"the calendar holds bars of frequency {source.freq!r} and {freq!r} is asked for; "
                f"pass freq={source.freq!r}."
            )
        return source
    if isinstance(source, (str, os.PathLike)):
        return read_calendar(source, freq)
    if isinstance(source, (pd.DataFrame, pd.Series)):
        return _of_one_frequency(TradingCalendar(_moments_of_panel(source), freq=freq))
    if _is_provider(source):
        return TradingCalendar(*_ask(source, freq), freq=freq)
    if isinstance(source, Iterable):
        return _of_one_frequency(TradingCalendar(source, freq=freq))
    raise ConfigError(
        f"{source!r} is not a calendar; pass a list of dates, a text file, a Qlib data directory, "
        "a frame with an index level 'datetime', or an object with a method 'calendar'."
    )


def _of_one_frequency(calendar: TradingCalendar) -> TradingCalendar:
    if calendar.freq.endswith("min") and calendar.known.are_days:
        raise ConfigError(
            f"bars of frequency {calendar.freq!r} are asked for and the calendar holds days only; "
            "pass freq='day', or a calendar of intraday bars."
        )
    return calendar


def _moments_of_panel(panel: pd.DataFrame | pd.Series) -> pd.Index:
    index = panel.index
    if "datetime" in index.names:
        return index.unique(level="datetime").sort_values()
    if isinstance(index, pd.DatetimeIndex):
        return index.unique().sort_values()
    raise ConfigError(
        f"a frame with index levels {list(index.names)} gives no calendar; expected a level named "
        "'datetime' or a DatetimeIndex. Rename the level or pass a list of dates."
    )


def _is_provider(source: object) -> bool:
    # Not by isinstance: since Python 3.12 it misses what Qlib's D answers through __getattr__.
    provides = callable(getattr(source, "calendar", None))
    return provides and not isinstance(source, (type, pd.DataFrame, pd.Series))


def _ask(provider: Any, freq: str) -> tuple[Any, Any]:
    return (
        provider.calendar(freq=freq, future=False),
        provider.calendar(freq=freq, future=True),
    )


def read_calendar(path: str | os.PathLike[str], freq: str = "day") -> TradingCalendar:
    """Read the bars in a text file or in a Qlib data directory.

    Parameters
    ----------
    path : str or Path
        A text file with one date or datetime a line (empty lines are ignored), or a directory
        with ``calendars/<freq>.txt`` and perhaps ``calendars/<freq>_future.txt``.
    freq : str, default "day"
        The frequency of the bars.

    Raises
    ------
    ConfigError
        If there is no such file, or a line is not a later date than the line above it.
    """
    bars_path, future_path = _calendar_files(os.fspath(path), freq)
    bars = _read_bars(bars_path)
    if future_path is None:
        return _of_one_frequency(TradingCalendar(bars, freq=freq))
    future = _read_bars(future_path) if os.path.exists(future_path) else ()
    return TradingCalendar(bars, future, freq=freq)


def _calendar_files(path: str, freq: str) -> tuple[str, str | None]:
    """Return the file of the bars and, for a directory, the file of the future ones."""
    path = os.path.expanduser(path)
    try:
        is_directory = stat.S_ISDIR(os.stat(path).st_mode)
    except OSError as error:
        raise _unreadable(path, error) from error
    if not is_directory:
        return path, None
    folder = os.path.join(path, "calendars")
    return os.path.join(folder, f"{freq}.txt"), os.path.join(folder, f"{freq}_future.txt")


def _read_bars(path: str) -> pd.DatetimeIndex:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ConfigError(f"the calendar {path} is empty; it needs one date a line.")
    return _parse_bars(
        [text for _, text in numbered], lambda position: f"{path}, line {numbered[position][0]}"
    )


def _unreadable(path: str, error: Exception) -> ConfigError:
    folder = Path(path).parent
    names = sorted(item.name for item in folder.glob("*.txt"))
    there = f" In {folder} there are: {', '.join(names[:8])}." if names else ""
    return ConfigError(
        f"cannot read a calendar from {path}: {error}.{there} Expected a text file with one date a "
        "line, or a Qlib data directory with calendars/<freq>.txt."
    )


class CalendarReader:
    """One source of a calendar and what was last read from it.

    Parameters
    ----------
    origin : object
        What `parse_calendar` reads. Files are read again when they changed, calendar objects are
        asked again and read anew when their number of bars or their ends changed; everything else
        is read once.
    freq : str
        The frequency that is wanted.
    """

    def __init__(self, origin: object, freq: str) -> None:
        self.origin, self.freq = origin, freq
        self._last: tuple[object, TradingCalendar] | None = None

    @property
    def path(self) -> str | None:
        """The path the calendar is read from, if it is."""
        return os.fspath(self.origin) if isinstance(self.origin, (str, os.PathLike)) else None

    def reads(self, origin: object) -> bool:
        """Whether this is the reader of a source: the same object or an equal path."""
        if isinstance(origin, (str, os.PathLike)):
            return self.path == os.fspath(origin)
        return self.origin is origin

    def read(self) -> TradingCalendar:
        """Return the calendar as it is now."""
        revision, parse = self._look()
        if self._last is None or self._last[0] != revision:
            self._last = revision, parse()
        return self._last[1]

    def _look(self) -> tuple[object, Callable[[], TradingCalendar]]:
        """Return something that changes when the source does, taken before it is read."""
        origin = self.origin
        if self.path is not None:
            files = _calendar_files(self.path, self.freq)
            return [_revision(file) for file in files], lambda: parse_calendar(origin, self.freq)
        if _is_provider(origin):
            known, future = _ask(origin, self.freq)
            revision = [(len(bars), *bars[:1], *bars[-1:]) for bars in (known, future)]
            return revision, lambda: TradingCalendar(known, future, freq=self.freq)
        return None, lambda: parse_calendar(origin, self.freq)


def _revision(path: str | None) -> tuple[int, ...] | None:
    if path is None:
        return None
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


_readers: dict[str, CalendarReader] = {}


def get_calendar(freq: str = "day") -> TradingCalendar:
    """Return the calendar of this process, as its source is now.

    The source is the setting ``calendar``, else ``provider_uri``. A file that has grown is read
    again, so a process that lives for weeks sees every new day.

    Raises
    ------
    ConfigError
        If neither setting is there, or the source is not a valid calendar.
    """
    origin = _configured_origin(freq)
    reader = _readers.get(freq)
    if reader is None or not reader.reads(origin):
        reader = _readers[freq] = CalendarReader(origin, freq)
    return reader.read()


def _configured_origin(freq: str) -> object:
    if isinstance(C.calendar, ProcessCalendar):
        raise ConfigError("qwf.init(calendar=D) names itself; pass the source of the dates.")
    if C.calendar is not None:
        return C.calendar
    provider: object = C.provider(freq)
    if provider is not None:
        return provider
    raise ConfigError(
        "this process has no trading calendar. Pass one: qwf.init(calendar=...) with a list of "
        "dates, a text file, a frame or an object with a method 'calendar'; or "
        "qwf.init(provider_uri=...) with a Qlib data directory."
    )


class ProcessCalendar:
    """Qlib's way to ask for bars, answered from the calendar of this process."""

    def calendar(
        self,
        start_time: Date | None = None,
        end_time: Date | None = None,
        freq: str = "day",
        future: bool = False,
    ) -> np.ndarray:
        """Return the bars between two moments.

        Parameters
        ----------
        start_time, end_time : date, optional
            Both inclusive. A plain date is its midnight: with intraday bars an end
            ``"2020-01-03"`` leaves out the bars during that day.
        freq : str, default "day"
            The frequency of the bars.
        future : bool, default False
            Whether to include the bars expected later. Without any, the ordinary calendar.

        Returns
        -------
        ndarray of Timestamp
            Shape (n,), ascending, read-only; empty when no bar lies between.
        """
        return get_calendar(freq).view(future=future).between(start_time, end_time)


D: Final = ProcessCalendar()


def get_date_by_shift(
    trading_date: Date,
    shift: int,
    future: bool = False,
    clip_shift: bool = True,
    freq: str = "day",
    align: str | None = None,
) -> pd.Timestamp:
    """Return the bar that lies `shift` bars after another (before it, when negative).

    Parameters
    ----------
    trading_date : date
        Where to count from.
    shift : int
        How many bars.
    future : bool, default False
        Whether to count on into the bars expected later.
    clip_shift : bool, default True
        Whether a shift beyond the calendar gives its first or last bar.
    freq : str, default "day"
        The frequency of the bars.
    align : {None, "left", "right"}
        What stands for a date that is no bar: nothing, the bar before it, or the bar after it.

    Raises
    ------
    NotSessionError
        If `align` is None and the date is no bar.
    SessionOutOfBoundsError
        If `clip_shift` is off and the shift leaves the calendar.
    """
    bars = get_calendar(freq).view(future=future)
    left, right = bars.last_at_or_before(trading_date), bars.first_at_or_after(trading_date)
    if align not in (None, "left", "right"):
        raise ConfigError(f"align is {align!r}; expected 'left', 'right' or None.")
    if align is None and left != right:
        raise NotSessionError(
            f"{trading_date} is not trading day! The calendar of frequency {freq!r} has {bars!r}; "
            "pass align='left' for the bar before or align='right' for the bar after."
        )
    position = (left if align == "left" else right) + shift
    if clip_shift:
        position = min(max(position, 0), len(bars) - 1)
    if not 0 <= position < len(bars):
        raise SessionOutOfBoundsError(
            f"{shift} bars from {trading_date} is position {position}, outside the calendar of "
            f"{bars!r}; shift less, or pass clip_shift=True for its first or last bar."
        )
    return bars.moments[position]


def transform_end_date(end_date: Date | int | None = None, freq: str = "day") -> Any:
    """Return the end of what is known when a date says "up to now", else the date as it is.

    Parameters
    ----------
    end_date : date, -1 or None
        None, ``-1``, ``"-1"`` and dates after the last bar (not counting bars expected later)
        stand for the last bar.
    freq : str, default "day"
        The frequency of the bars.

    Returns
    -------
    Timestamp or the type of `end_date`
        The last bar, or the input unchanged.
    """
    last = get_calendar(freq).known.moments[-1]
    if end_date is None or str(end_date) == "-1" or last < parse_date(end_date):
        return last
    return end_date
