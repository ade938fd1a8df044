"""How a long loop shows how far it is: a bar when `tqdm` is installed, else a log line at times."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

__all__ = ["Meter"]

_logger: Final = logging.getLogger("qwf.progress")

# Often enough for a person, seldom enough for a log file.
_SECONDS_BETWEEN_LINES: Final = 5.0


class Meter:
    """Counts what is done of a number of things, in whatever order, and says when all will be.

    Where `tqdm` is installed and standard error is a terminal it is a bar. Elsewhere the logger
    ``qwf.progress`` gets a line at level INFO every few seconds and one at the end.

    Parameters
    ----------
    total : int
    what : str
        What is being done, such as ``"train csi300"``.
    clock : callable
        Returns seconds.

    Examples
    --------
    >>> with Meter(20, "train e") as meter:
    ...     meter.count()
    ...     meter.count(failed=True)
    ...     str(meter).rsplit(",", 2)[0]
    'train e: 1 of 20 done, 1 failed'
    """

    def __init__(
        self, total: int, what: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total, self.what = total, what
        self.done = self.failed = 0
        self._clock = clock
        self._begun = self._last_line = clock()
        self._bar: Any = None

    def __enter__(self) -> Meter:
        self._bar = _bar(self.total, self.what)
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self.total:
            _logger.info("%s: %s after %s", self.what, self._counts(), _in_words(self.seconds))

    def __str__(self) -> str:
        left = self.seconds_left
        about = "" if left is None else f", {_rate(self.seconds, self.ended)}"
        about += "" if left is None else f", about {_in_words(left)} left"
        return f"{self.what}: {self._counts()}{about}"

    def count(self, *, failed: bool = False) -> None:
        """Note that one more has ended, well or not."""
        if failed:
            self.failed += 1
        else:
            self.done += 1
        if self._bar is not None:
            if failed:
                self._bar.set_postfix(failed=self.failed)
            self._bar.update()
        elif self._clock() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = self._clock()
            _logger.info("%s", self)

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return self._clock() - self._begun

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at the rate so far; None while there is no rate."""
        return None if self.ended == 0 else self.seconds / self.ended * (self.total - self.ended)

    @property
    def ended(self) -> int:
        """How many have ended, well or not."""
        return self.done + self.failed

    def _counts(self) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.done} of {self.total} done{failed}"


def _bar(total: int, what: str) -> Any:
    """Return a bar on standard error; None when there is no `tqdm` or nobody to watch it."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return None
    # No thread that watches bars: what follows may fork.
    kind = type("Bar", (tqdm,), {"monitor_interval": 0})
    bar = kind(total=total, desc=what, disable=None)  # None: disabled where there is no terminal
    return None if bar.disable else bar


def _rate(seconds: float, number: int) -> str:
    """Return how many there are in a unit of time in which there is more than one."""
    per_second = number / max(seconds, 1e-9)
    for unit, length in (("s", 1), ("min", 60), ("h", 3600)):
        if per_second * length >= 1:
            return f"{per_second * length:.3g} per {unit}"
    return f"{per_second * 86400:.2g} per day"


def _in_words(seconds: float) -> str:
    """Return a length of time to two digits or so, as a person would say it."""
    if seconds <= 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes <= 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
