"""Metrics as they are logged: one journal per process and recorder, written a little later.

What is logged waits in memory for at most a fifth of a second, and only while values come faster
than one in a tenth of it; what the disk refuses waits until it is taken.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from ..errors import MetricsLostError
from ..process import pulse
from ..storage import fsio, layout
from ..storage.journal import JournalWriter
from .metadata import MetricPoint
from .metric_lines import (
    MICROSECONDS,
    Columns,
    Newest,
    Row,
    as_columns,
    as_points,
    encode,
    note_newest,
    read_journals,
    split,
)
from .metric_values import number

__all__ = ["MetricLog", "write_waiting"]

_logger: Final = logging.getLogger("qwf.tracking")

# How long values wait for others to be written with them, and how many at most.
_SECONDS: Final = 0.1
_TOGETHER: Final = 4096
# How long to wait at most before the disk is asked again that has refused, and how many values are
# kept meanwhile.
_PATIENCE: Final = 30.0
_MOST: Final = 1_000_000

_NEVER: Final = 1 << 63

# Those of this process in which something waits.
_waiting: set[MetricLog] = set()
# How many forks lie between this process and the one that has loaded this module.
_forks = 0


def _note_fork() -> None:
    global _forks
    _forks += 1
    _waiting.clear()


os.register_at_fork(after_in_child=_note_fork)


class _Waiting(NamedTuple):
    """What is not written yet: calls as they came, after lines that were made of earlier ones.

    It is replaced as a whole, so that an exception at any moment (Ctrl-C) leaves it true: what it
    holds is what stands behind the first `size` bytes of the journal, or was to stand there.
    """

    rows: list[Row]
    lines: list[bytes]
    points: list[int]  # in each of the lines
    size: int


class MetricLog:
    """What one process logs into one recorder.

    The file is created by the first value, so that a run without metrics has none. Safe to use
    from several threads; a forked child gets a journal of its own.

    Notes
    -----
    A value is written at once if none was in the last tenth of a second. Else it is written with
    those that follow: after a tenth of a second by the next call, or by `pulse` when none comes;
    or when there are thousands, or by `flush`, `close` or `write_waiting`. So a killed process
    loses the last fifth of a second, and only of values that came faster.

    An `OSError` is never raised by logging: what could not be written waits, is tried again and
    again, and that is logged as an error once. Up to a million values are kept; from then on new
    ones are lost, which is logged at once and told by `close`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._moment = 0
        self._begin()

    def _begin(self) -> None:
        # Reentrant, because the handler of a signal may end the run in the middle of a call. After
        # a fork the lock may be held by a thread that is not here any more, and what waits is the
        # parent's.
        self._lock = threading.RLock()
        self._process = _forks
        self._writer: JournalWriter | None = None
        self._waits = _Waiting([], [], [], 0)
        self._unsettled = False  # an append has not returned
        self._count = 0  # of values that wait
        self._most = _TOGETHER  # of values before they are written
        self._due = 0  # when the next call writes
        self._watched = False
        # What this process has logged, so that summing up need not read it again.
        self._files: set[str] = set()
        self._given_up: set[str] = set()  # those of them that are closed and not synced
        self._newest: Newest = {}
        # Since when it is refused.
        self._refused = 0
        self._retry_at = 0.0
        self._lost = 0
        self._news: list[tuple[int, str]] = []

    # --- logging ---

    def append(self, metrics: dict[str, float], step: int) -> None:
        """Log the values of one step; the mapping is kept.

        Raises
        ------
        TypeError
            If a value is no number. Nothing was logged.
        FileNotFoundError
            If the recorder is gone. What waits is lost, and that is logged.
        """
        for value in metrics.values():
            if type(value) is not float:
                metrics = {key: number(key, value) for key, value in metrics.items()}
                break
        if self._process != _forks:
            self._begin()
        with self._lock:
            moment = time.time_ns() // 1000  # as `_now`, which takes longer
            if moment <= self._moment:
                moment = self._moment + 1
            self._moment = moment
            self._waits.rows.append((moment, step, metrics))
            self._count += len(metrics)
            if moment < self._due and self._count < self._most:
                if not self._watched:
                    self._watch()
                return
            error = self._write_or_drop()
        self._tell()
        if isinstance(error, FileNotFoundError):
            raise error

    def extend(self, steps: list[int], values: dict[str, list[float]]) -> None:
        """Log many values of each metric.

        Raises
        ------
        FileNotFoundError
            As `append`.
        """
        if self._process != _forks:
            self._begin()
        error = None
        for part in split(Columns(range(len(steps)), steps, values)):
            with self._lock:
                moments = [self._now()] * len(part.steps)
                error = self._add(part._replace(times=moments))
            self._tell()
            if isinstance(error, FileNotFoundError):
                raise error

    def _add(self, part: Columns) -> OSError | None:
        points = len(part.steps) * len(part.values)
        if self._refused and self._count + points > _MOST:
            self._lose(points)
        else:
            self._encode_rows()
            self._keep([part], [])
        return self._write_or_drop()

    def _now(self) -> int:
        # Never the same and never backwards, so that times tell the order of what one log has
        # logged, and what was logged last is the latest for every reader.
        moment = time.time_ns() // 1000
        if moment <= self._moment:
            moment = self._moment + 1
        self._moment = moment
        return moment

    def _watch(self) -> None:
        self._watched = True
        _waiting.add(self)
        pulse.watch(self, self._beat, seconds=_SECONDS)

    def _unwatch(self) -> None:
        if self._watched and not self._count:
            self._watched = False
            _waiting.discard(self)
            pulse.unwatch(self)

    def _beat(self) -> None:
        if self._process != _forks:
            return
        with self._lock:
            self._unwatch()
            if self._count and time.monotonic() >= self._retry_at:
                self._write()
        self._tell()

    # --- writing; the lock is held ---

    def _write_or_drop(self) -> OSError | None:
        error = None
        if time.monotonic() >= self._retry_at:
            error = self._write()
        if self._refused:
            self._drop()
        if self._count and not self._watched:
            self._watch()
        return error

    def _write(self) -> OSError | None:
        """Write all that waits, with one call of the system; return the error if it is refused."""
        try:
            self._settle()
            self._encode_rows()
            if self._waits.lines:
                self._append()
        except FileNotFoundError as error:
            self._give_up(error)
            return error
        except OSError as error:
            self._abandon()
            self._refuse(error)
            return error
        self._taken()
        return None

    def _append(self) -> None:
        writer = self._writer or self._opened()
        waits = self._waits
        self._unsettled = True
        writer.append(*waits.lines)
        if self._waits is waits:  # else a signal came, and its handler has written
            self._waits = _Waiting(waits.rows, [], [], writer.size)
        self._unsettled = False

    def _opened(self) -> JournalWriter:
        token = f"{time.time_ns():x}-{os.getpid()}-{secrets.token_hex(3)}"
        name = layout.metrics_file(token)
        writer = JournalWriter(self.directory / name)
        self._files.add(name)
        self._waits = self._waits._replace(size=0)
        self._writer = writer
        return writer

    def _settle(self) -> None:
        """Find out what has reached the journal, if an append was interrupted or refused."""
        if not self._unsettled or self._writer is None:
            return
        rows, lines, points, size = self._waits
        written, torn = self._writer.settle(lines, size)
        self._waits = _Waiting(rows, lines[written:], points[written:], self._writer.size)
        self._unsettled = False
        if torn:
            # Half a line may be at the end of the file, which only its last line may be: what
            # follows goes into another one.
            self._abandon()

    def _abandon(self) -> None:
        # Where the size cannot be learned, better twice than never.
        with contextlib.suppress(OSError):
            self._settle()
        writer, self._writer = self._writer, None
        self._unsettled = False
        if writer is None:
            return
        with contextlib.suppress(OSError):
            writer.close()
        if writer.size:
            self._given_up.add(writer.path.name)
        else:
            with contextlib.suppress(OSError):
                fsio.remove_file(writer.path)

    def _encode_rows(self) -> None:
        rows = self._waits.rows
        if rows:
            self._keep(as_columns(rows), rows)

    def _keep(self, columns: Iterable[Columns], rows: list[Row]) -> None:
        """Let columns wait as lines, in place of rows."""
        lines, points = list(self._waits.lines), list(self._waits.points)
        for part in columns:
            note_newest(self._newest, part)
            lines.append(encode(part))
            points.append(len(part.steps) * len(part.values))
        self._waits = _Waiting(self._waits.rows[len(rows) :], lines, points, self._waits.size)
        self._recount()

    def _recount(self) -> None:
        self._count = sum(self._waits.points) + sum(len(row[2]) for row in self._waits.rows)

    # --- what becomes of it; the lock is held ---

    def _taken(self) -> None:
        self._recount()
        self._due = max(self._moment, time.time_ns() // 1000) + int(_SECONDS * MICROSECONDS)
        if self._refused:
            self._refused, self._retry_at, self._most = 0, 0.0, _TOGETHER
            self._report(logging.WARNING, f"its metrics are written again; {self._lost} are lost.")

    def _refuse(self, error: OSError) -> None:
        self._recount()
        self._refused += 1
        self._retry_at = time.monotonic() + min(_SECONDS * 2**self._refused, _PATIENCE)
        self._due, self._most = _NEVER, _MOST
        if self._refused == 1:
            self._report(
                logging.ERROR,
                f"{error} {self._count} values of its metrics wait in memory and are tried again; "
                "they are lost if this process dies before.",
            )

    def _drop(self) -> None:
        """Drop the newest calls beyond the values that are kept."""
        rows = self._waits.rows
        while self._count > _MOST and rows:
            dropped = len(rows.pop()[2])
            self._count -= dropped
            self._lose(dropped)

    def _lose(self, count: int) -> None:
        if not self._lost:
            self._report(
                logging.ERROR,
                f"{self._count} values of its metrics wait for the disk, and no more are kept: "
                "what is logged from now on is lost, until they can be written.",
            )
        self._lost += count

    def _give_up(self, error: OSError) -> None:
        if self._count:
            self._report(
                logging.ERROR, f"{error}. It is gone, and with it {self._count} values of metrics."
            )
        self._lost += self._count
        self._waits, self._count = _Waiting([], [], [], 0), 0
        self._writer, self._unsettled = None, False
        self._refused, self._retry_at, self._due, self._most = 0, 0.0, 0, _TOGETHER
        self._unwatch()

    def _report(self, level: int, sentence: str) -> None:
        self._news.append((level, f"recorder {self.directory.name}: {sentence}"))

    def _tell(self) -> None:
        # Not under the lock: a handler of log records may log metrics itself.
        while self._news:
            _logger.log(*self._news.pop(0))

    # --- being asked ---

    def flush(self) -> OSError | None:
        """Write all that waits; return the error if it is refused, and keep it waiting then."""
        if self._process != _forks:
            return None
        with self._lock:
            error = self._write()
        self._tell()
        return error

    def write_at_exit(self, failed: bool) -> None:
        """Write all that waits; `exits` calls this. That it is refused was logged before."""
        self.flush()

    def unwritten(self) -> list[bytes]:
        """Write all that waits; return the entries that are refused."""
        self.flush()
        with self._lock:
            return list(self._waits.lines)

    def close(self) -> OSError | None:
        """Make everything durable and close the file. A later value opens a new one.

        Returns
        -------
        OSError or None
            What was refused, or a `MetricsLostError` if values were lost before.
        """
        if self._process != _forks:
            return None
        with self._lock:
            error = self._write()
            error = self._sync() or error
            if self._lost:
                error = MetricsLostError(self.directory.name, self._lost, error)
                self._lost = 0
            self._unwatch()
        self._tell()
        return error

    def _sync(self) -> OSError | None:
        writer, self._writer = self._writer, None
        error = None
        try:
            if writer is not None:
                try:
                    writer.sync()
                finally:
                    writer.close()
            for name in tuple(self._given_up):
                with contextlib.suppress(FileNotFoundError):
                    fsio.sync_file(self.directory / name)
                self._given_up.discard(name)
        except OSError as refused:
            error = refused
        return error

    @property
    def is_closed(self) -> bool:
        """Whether nothing was logged since `close`."""
        return self._process != _forks or (self._writer is None and not self._count)

    def summary(self, *, others: bool = True) -> dict[str, MetricPoint]:
        """Return what all journals say of each metric; this one's own are not read again.

        Parameters
        ----------
        others : bool, default True
            Whether to read the journals of other processes and earlier sessions.

        Raises
        ------
        CorruptRecordError
            If one of those is damaged.
        """
        if self._process != _forks:
            self._begin()
        with self._lock:
            self._encode_rows()
            files, newest = frozenset(self._files), dict(self._newest)
        if others:
            for part in read_journals(self.directory, besides=files):
                note_newest(newest, part)
        return as_points(newest)

    def others(self) -> dict[str, int]:
        """Return name -> size of the journals of other processes and earlier sessions."""
        files = self._files if self._process == _forks else ()
        names = filter(layout.is_metrics_file, fsio.list_names(self.directory))
        return {name: fsio.size_of(self.directory / name) for name in set(names).difference(files)}

    def sync_others(self) -> None:
        """Make durable what other processes have logged."""
        for name in self.others():
            with contextlib.suppress(FileNotFoundError):
                fsio.sync_file(self.directory / name)


def write_waiting(directory: Path) -> list[bytes]:
    """Write what this process has logged into a recorder, through whichever of its objects.

    Returns
    -------
    list of bytes
        The entries that the disk refuses; they wait on.
    """
    refused = []
    for log in tuple(_waiting):
        if log.directory.name == directory.name:
            refused += log.unwritten()
    return refused
