"""Metrics over time: one journal per process that logs, merged when read."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CorruptRecordError
from ..storage import fsio, layout
from ..storage.codec import dump_json
from ..storage.journal import JournalWriter, read_journal
from .metadata import MetricPoint

__all__ = ["MetricLog", "Observation", "latest", "read_observations"]


class Observation(NamedTuple):
    """One logged value; `time` in seconds since the epoch."""

    time: float
    step: int
    key: str
    value: float


class MetricLog:
    """The journal into which one process logs the metrics of one recorder.

    The file is created by the first value, so that a run without metrics has none. Safe to use
    from several threads; a forked child gets a journal of its own.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._writer: JournalWriter | None = None
        self._pid = os.getpid()
        self._moment = 0.0
        # What this process has logged, so that summing up need not read it again.
        self._files: set[str] = set()
        self._newest: dict[str, tuple[int, float, float]] = {}  # step, time, value

    def append(self, metrics: Mapping[str, Any], step: int) -> None:
        """Append the values of one step.

        Raises
        ------
        TypeError
            If a value is no number. Nothing was logged.
        WriteError
            If the disk is full. Nothing was logged, and later calls work.
        """
        # By hand, because `json` would take as long as all the rest of the call.
        numbers, values = {}, []
        for key, value in metrics.items():
            number = numbers[key] = value if type(value) is float else _number(key, value)
            # JSON has no NaN; `float` reads these words back.
            text = repr(number) if number - number == 0 else f'"{number!r}"'
            values.append(f"{_json_name(key)}:{text}")
        if os.getpid() != self._pid:
            self._begin_in_this_process()
        with self._lock:
            # Never backwards, so that what was logged last is the latest for every reader.
            moment = time.time()
            if moment < self._moment:
                moment = self._moment
            self._moment = moment
            entry = f"[{moment:.6f},{step},{{{','.join(values)}}}]\n".encode()
            try:
                (self._writer or self._opened()).append(entry)
            except OSError:
                # Half a line may be at the end of the file, which only its last line may be:
                # what follows goes into another one.
                with contextlib.suppress(OSError):
                    self._finish()
                raise
            for key, number in numbers.items():
                known = self._newest.get(key)
                if known is None or step >= known[0]:
                    self._newest[key] = step, moment, number

    def _begin_in_this_process(self) -> None:
        # After a fork the lock may be held by a thread that is not here any more.
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._writer, self._files, self._newest = None, set(), {}

    def _opened(self) -> JournalWriter:
        if self._writer is None:
            token = f"{time.time_ns():x}-{self._pid}-{secrets.token_hex(3)}"
            name = layout.metrics_file(token)
            self._writer = JournalWriter(self._directory / name)
            self._files.add(name)
        return self._writer

    def _finish(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.sync()
            finally:
                writer.close()

    def close(self) -> None:
        """Make everything durable and close the file. A later value opens a new one."""
        if self._pid == os.getpid():
            with self._lock:
                self._finish()

    def summary(self, *, others: bool = True) -> dict[str, MetricPoint]:
        """Return what `latest` finds in all journals; this one's own are not read again.

        Parameters
        ----------
        others : bool, default True
            Whether to read the journals of other processes and earlier sessions.

        Raises
        ------
        CorruptRecordError
            If one of those is damaged.
        """
        if os.getpid() != self._pid:
            self._begin_in_this_process()
        with self._lock:
            files, newest = frozenset(self._files), dict(self._newest)
        own = [
            Observation(round(moment, 6), step, key, value)
            for key, (step, moment, value) in newest.items()
        ]
        before = read_observations(self._directory, besides=files) if others else ()
        return latest([*before, *own])

    def others(self) -> dict[str, int]:
        """Return name -> size of the journals of other processes and earlier sessions."""
        files = self._files if os.getpid() == self._pid else ()
        names = filter(layout.is_metrics_file, fsio.list_names(self._directory))
        return {name: fsio.size_of(self._directory / name) for name in set(names).difference(files)}

    def sync_others(self) -> None:
        """Make durable what other processes have logged."""
        for name in self.others():
            with contextlib.suppress(FileNotFoundError):
                fsio.sync_file(self._directory / name)


def _number(key: str, value: object) -> float:
    if isinstance(value, (str, bytes)):
        raise TypeError(
            f"metric {key!r} is {value!r}; expected a number. Nothing was logged; "
            "texts belong into set_tags or log_params."
        )
    try:
        return float(value)  # type: ignore[arg-type]  # numbers of NumPy, torch, Decimal ...
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(
            f"metric {key!r} is a {type(value).__name__}; expected a number that a float can "
            "hold. Nothing was logged."
        ) from error


@functools.lru_cache(maxsize=1024)
def _json_name(key: str) -> str:
    return dump_json(key).decode().rstrip("\n")


def read_observations(directory: Path, *, besides: Collection[str] = ()) -> Iterator[Observation]:
    """Yield everything logged into a recorder's directory, in order of time.

    Parameters
    ----------
    directory : Path
    besides : collection of str
        Names of journals that are passed over.

    Raises
    ------
    CorruptRecordError
        If a journal is damaged.
    """
    found: list[Observation] = []
    names = filter(layout.is_metrics_file, fsio.list_names(directory))
    for name in sorted(set(names).difference(besides)):
        path = directory / name
        for entry in read_journal(path):
            found.extend(_parse(entry, path))
    found.sort(key=lambda one: one.time)
    yield from found


def _parse(entry: Any, path: Path) -> list[Observation]:
    try:
        moment, step, values = entry
        return [
            Observation(float(moment), int(step), key, float(value))
            for key, value in values.items()
        ]
    except (TypeError, ValueError, AttributeError) as error:
        raise CorruptRecordError(path, f"{entry!r} is not an entry of metrics") from error


def latest(observations: Iterable[Observation]) -> dict[str, MetricPoint]:
    """Return per metric the value of the highest step, and of those the last logged."""
    newest: dict[str, Observation] = {}
    for one in observations:
        known = newest.get(one.key)
        if known is None or (one.step, one.time) >= (known.step, known.time):
            newest[one.key] = one
    return {
        key: MetricPoint(value=one.value, step=one.step, time=one.time)
        for key, one in newest.items()
    }
