"""Metrics as they are read: the value of each, and the history of one or many recorders."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import CorruptRecordError
from .metadata import MetricPoint
from .metric_lines import (
    Columns,
    Newest,
    Points,
    as_points,
    note_newest,
    read_entries,
    read_journals,
)
from .metric_log import write_waiting

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

__all__ = ["History", "current", "histories", "history", "read_history"]


class History(NamedTuple):
    """What was logged, as arrays of one length, oldest first.

    Attributes
    ----------
    keys : ndarray of str objects
    steps : ndarray of int64
    times : ndarray of int64
        Microseconds since the epoch.
    values : ndarray of float64
    """

    keys: np.ndarray
    steps: np.ndarray
    times: np.ndarray
    values: np.ndarray


def _parts(directory: Path) -> Iterator[Columns | Points]:
    refused = write_waiting(directory)
    yield from read_journals(directory)
    yield from read_entries(refused, directory)


def current(directory: Path) -> dict[str, MetricPoint]:
    """Return per metric the value of the highest step, and of those the last logged.

    Raises
    ------
    CorruptRecordError
        If a journal is damaged.
    """
    newest: Newest = {}
    for part in _parts(directory):
        note_newest(newest, part)
    return as_points(newest)


def read_history(directory: Path, keys: Collection[str] = ()) -> History:
    """Return what was logged into a recorder.

    Parameters
    ----------
    directory : Path
    keys : collection of str
        The metrics wanted; none means all.

    Raises
    ------
    CorruptRecordError
        If a journal is damaged.
    """
    import numpy as np

    wanted = frozenset(keys)
    try:
        found = _joined([_arrays(part, wanted) for part in _parts(directory)])
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, CorruptRecordError):
            raise
        raise CorruptRecordError(directory, f"a journal holds no metrics ({error!r})") from error
    if np.all(found.times[1:] >= found.times[:-1]):
        return found
    return _taken(found, np.argsort(found.times, kind="stable"))


def _arrays(part: Columns | Points, wanted: frozenset[str]) -> History:
    import numpy as np

    steps, times = np.array(part.steps, np.int64), np.array(part.times, np.int64)
    if isinstance(part, Points):
        found = History(np.array(part.keys, object), steps, times, np.array(part.values, float))
        if not wanted:
            return found
        chosen = np.fromiter(map(wanted.__contains__, part.keys), bool, len(part.keys))
        return _taken(found, chosen)
    names = [key for key in part.values if not wanted or key in wanted]
    values = np.array([part.values[key] for key in names], float)
    return History(
        keys=np.tile(np.array(names, object), len(steps)),
        steps=np.repeat(steps, len(names)),
        times=np.repeat(times, len(names)),
        values=values.T.ravel(),
    )


def _taken(found: History, rows: np.ndarray) -> History:
    keys, steps, times, values = (column[rows] for column in found)
    return History(keys, steps, times, values)


def _joined(parts: Iterable[History]) -> History:
    import numpy as np

    whole = np.array([], np.int64)
    empty = History(np.array([], object), whole, whole, np.array([], float))
    keys, steps, times, values = map(np.concatenate, zip(empty, *parts, strict=True))
    return History(keys, steps, times, values)


def history(directory: Path, keys: Collection[str] = ()) -> pd.DataFrame:
    """Return what was logged into a recorder, oldest first; see `Recorder.metric_history`.

    Raises
    ------
    CorruptRecordError
        If a journal is damaged.
    """
    import pandas as pd

    return pd.DataFrame(_series(read_history(directory, keys)))


def histories(directories: Mapping[str, Path], keys: Collection[str] = ()) -> pd.DataFrame:
    """Return what was logged into several recorders.

    Parameters
    ----------
    directories : mapping of str to Path
        Id of a recorder -> its directory.
    keys : collection of str
        The metrics wanted; none means all.

    Returns
    -------
    DataFrame
        Column ``recorder_id`` (str), then those of `history`; the recorders in the order given,
        each oldest first.

    Raises
    ------
    CorruptRecordError
        If a journal is damaged.
    """
    import numpy as np
    import pandas as pd

    found = [read_history(directory, keys) for directory in directories.values()]
    lengths = [len(one.keys) for one in found]
    ids = np.repeat(np.array(list(directories), object), lengths)
    return pd.DataFrame({"recorder_id": _texts(ids), **_series(_joined(found))})


def _series(found: History) -> dict[str, pd.Series]:
    import pandas as pd

    moments = found.times.astype("datetime64[us]").astype("datetime64[ns]")
    return {
        "key": _texts(found.keys),
        "step": pd.Series(found.steps),
        "time": pd.Series(moments).dt.tz_localize("UTC"),
        "value": pd.Series(found.values),
    }


def _texts(column: np.ndarray) -> pd.Series:
    import pandas as pd

    return pd.Series(column, dtype=object)
