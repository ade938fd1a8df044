"""Errors of calendars, segments and data."""

from __future__ import annotations

from .base import QwfError

__all__ = [
    "DataError",
    "LookAheadError",
    "NotSessionError",
    "SegmentError",
    "SessionOutOfBoundsError",
]


class SessionOutOfBoundsError(QwfError, KeyError, IndexError):
    """A date or shift that lies outside the calendar."""


class NotSessionError(QwfError, ValueError):
    """A date that has to be a trading day or bar and is not."""


class LookAheadError(QwfError, ValueError):
    """What was asked for would use data from after the moment it may see."""


class SegmentError(QwfError, ValueError):
    """A segment that is unknown, empty, or starts after it ends."""


class DataError(QwfError, ValueError):
    """Prices, features or labels that cannot be used as they are."""
