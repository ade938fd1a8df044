"""Which rows lie between two dates. Both ends belong to the window; an open end is None."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ..calendar import parse_date
from ..errors import NotSessionError, SegmentError
from ..types import Date

__all__ = ["check_window", "date_level", "parse_bound", "rows_between"]


def parse_bound(date: Date | None, what: str) -> pd.Timestamp | None:
    """Read one end of a window; a plain date is its midnight, None stays None.

    Raises
    ------
    SegmentError
        If it is no date. `what` names the end in the sentence.
    """
    if date is None:
        return None
    try:
        return parse_date(date)
    except NotSessionError as error:
        raise SegmentError(f"{what}: {error}") from error


def check_window(
    start: Date | None, end: Date | None, what: str
) -> tuple[pd.Timestamp | None, pd.Timestamp | None]:
    """Read both ends of a window.

    Raises
    ------
    SegmentError
        If an end is no date, or the start is after the end.

    Examples
    --------
    >>> check_window("2020-01-02", None, "segment 'test'")
    (Timestamp('2020-01-02 00:00:00'), None)
    >>> check_window("2021-01-02", "2020-01-02", "'test'")
    Traceback (most recent call last):
        ...
    qwf.errors.SegmentError: 'test' starts at 2021-01-02, after its end 2020-01-02; swap them.
    """
    first = parse_bound(start, f"the start of {what}")
    last = parse_bound(end, f"the end of {what}")
    if first is not None and last is not None and first > last:
        raise SegmentError(f"{what} starts at {start}, after its end {end}; swap them.")
    return first, last


def date_level(index: pd.Index) -> pd.DatetimeIndex:
    """Return the dates of an index, one per row: the level ``datetime``, or the index itself."""
    return index.get_level_values("datetime") if "datetime" in index.names else index


def rows_between(index: pd.Index, start: Date | None, end: Date | None, what: str) -> slice:
    """Return the positions of the rows between two dates.

    Parameters
    ----------
    index : Index
        Sorted by date, with a level ``datetime`` or of dates itself.
    start, end : date or None
        Both inclusive. They need not be bars.
    what : str
        Names the window in errors.
    """
    first, last = check_window(start, end, what)
    dates = date_level(index)
    begin = 0 if first is None else _position(dates, first, side="left")
    stop = len(dates) if last is None else _position(dates, last, side="right")
    return slice(begin, stop)


def _position(dates: Any, moment: pd.Timestamp, *, side: str) -> int:
    # '9999-12-31' is a common way to write "no end"; it does not fit into nanoseconds.
    within = min(max(moment, pd.Timestamp.min), pd.Timestamp.max).as_unit("ns")
    return int(dates.searchsorted(within, side=side))
