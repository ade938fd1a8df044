"""The entries of a journal of metrics, written and read; FORMAT.md is its twin.

Times are whole microseconds since the epoch, because these are exact as integers and as text.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from ..errors import CorruptRecordError
from ..storage import fsio, layout
from ..storage.codec import dump_json, load_json
from ..storage.journal import read_batches
from ..types import Json
from .metadata import MetricPoint

__all__ = [
    "MICROSECONDS",
    "Columns",
    "Newest",
    "Points",
    "Row",
    "as_columns",
    "as_points",
    "encode",
    "note_newest",
    "read_entries",
    "read_journals",
    "split",
]

MICROSECONDS: Final = 1_000_000

# A line is read whole, and lost whole when it is damaged.
_POINTS_OF_A_LINE: Final = 10_000

# One call: time, step, name -> value.
Row: TypeAlias = tuple[int, int, dict[str, float]]

# Name -> step, time, value: what a metric is, see `note_newest`.
Newest: TypeAlias = dict[str, tuple[int, int, float]]


class Columns(NamedTuple):
    """Several calls with the same metrics, oldest first.

    A value that was read may be text, ``"nan"`` or ``"inf"``, as in the file.
    """

    times: Sequence[int]
    steps: Sequence[int]
    values: dict[str, list[float]]


class Points(NamedTuple):
    """Single values, oldest first."""

    times: list[int]
    steps: list[int]
    keys: list[str]
    values: list[float]


# --- writing ---------------------------------------------------------------------------------


def as_columns(rows: Sequence[Row]) -> Iterator[Columns]:
    """Yield what was logged, calls with the same metrics together.

    The times of the rows tell in which order they were logged, whatever becomes of it here.
    """
    names = [tuple(row[2]) for row in rows]
    if names.count(names[0]) == len(names):  # nearly always
        yield from _limited(names[0], rows)
        return
    groups: dict[tuple[str, ...], list[Row]] = {}
    for name, row in zip(names, rows, strict=True):
        groups.setdefault(name, []).append(row)
    for name, group in groups.items():
        yield from _limited(name, group)


def _limited(names: tuple[str, ...], rows: Sequence[Row]) -> Iterator[Columns]:
    times, steps, values = zip(*rows, strict=True)
    columns = {name: list(map(operator.itemgetter(name), values)) for name in names}
    yield from split(Columns(times, steps, columns))


def split(columns: Columns) -> Iterator[Columns]:
    """Yield the same values in pieces that are not too long for a line."""
    times, steps, values = columns
    size = max(1, _POINTS_OF_A_LINE // max(1, len(values)))
    for start in range(0, len(steps), size):
        piece = slice(start, start + size)
        yield Columns(times[piece], steps[piece], {key: one[piece] for key, one in values.items()})


def encode(columns: Columns) -> bytes:
    """Return the entry for some values, by hand: `json` would take twice as long."""
    times, steps, values = columns
    if len(steps) == 1:
        inside = ",".join(f"{_name(key)}:{_listed(one)[1:-1]}" for key, one in values.items())
        second, rest = divmod(times[0], MICROSECONDS)
        return f"[{second}.{rest:06d},{steps[0]},{{{inside}}}]\n".encode()
    inside = ",".join(f"{_name(key)}:{_listed(one)}" for key, one in values.items())
    since = [times[0], *map(operator.sub, times[1:], times)]
    return f"[{_compact(since)},{_compact(list(steps))},{{{inside}}}]\n".encode()


def _listed(values: list[float]) -> str:
    text = _compact(values)
    if "n" in text:  # JSON has no NaN and no infinity; `float` reads these words back
        quoted = [value if value - value == 0 else repr(value) for value in values]
        text = _compact(quoted).replace("'", '"')
    return text


def _compact(values: Sequence[object]) -> str:
    return str(values).replace(" ", "")


@functools.lru_cache(maxsize=1024)
def _name(key: str) -> str:
    return dump_json(key).decode().rstrip("\n")


# --- the value of a metric -------------------------------------------------------------------


def note_newest(newest: Newest, part: Columns | Points) -> None:
    """Take over what some values change: that of the highest step, and of those the last logged."""
    if isinstance(part, Points):
        for moment, step, key, value in zip(*part, strict=True):
            known = newest.get(key)
            if known is None or (step, moment) >= known[:2]:
                newest[key] = step, moment, value
        return
    times, steps, values = part
    last = len(steps) - 1
    step = max(steps)
    while steps[last] != step:
        last -= 1
    for key, column in values.items():
        known = newest.get(key)
        if known is None or (step, times[last]) >= known[:2]:
            newest[key] = step, times[last], column[last]


def as_points(newest: Newest) -> dict[str, MetricPoint]:
    """Return the value of each metric as a record holds it."""
    return {
        key: MetricPoint(value=float(value), step=step, time=moment / MICROSECONDS)
        for key, (step, moment, value) in newest.items()
    }


# --- reading ---------------------------------------------------------------------------------


def read_journals(directory: Path, *, besides: Collection[str] = ()) -> Iterator[Columns | Points]:
    """Yield what the journals of a recorder hold, each in the order in which it was written.

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
    names = filter(layout.is_metrics_file, fsio.list_names(directory))
    for name in sorted(set(names).difference(besides)):
        path = directory / name
        for entries in read_batches(path):
            yield from _parts(entries, path)


def read_entries(bodies: Iterable[bytes], directory: Path) -> Iterator[Columns | Points]:
    """Yield what entries hold that were not written yet."""
    yield from _parts(list(map(load_json, bodies)), directory)


def _parts(entries: list[Json], path: Path) -> Iterator[Columns | Points]:
    many = list(map(_has_many, entries))
    if not any(many):  # the usual journal of a slow loop, with a line per call
        yield _points(path, entries)
        return
    for is_many, several in itertools.groupby(zip(many, entries, strict=True), lambda one: one[0]):
        found = [entry for _, entry in several]
        if is_many:
            yield from map(functools.partial(_columns, path), found)
        else:
            yield _points(path, found)


def _has_many(entry: Any) -> bool:
    return type(entry) is list and len(entry) > 1 and type(entry[1]) is list


def _columns(path: Path, entry: Any) -> Columns:
    try:
        since, steps, values = entry
        times = list(itertools.accumulate(since))
        lengths = {len(steps), len(times), *map(len, values.values())}
    except (TypeError, ValueError, AttributeError) as error:
        raise _strange(path, entry) from error
    if len(lengths) > 1 or not times:
        raise _strange(path, entry)
    return Columns(times, steps, values)


def _points(path: Path, entries: list[Any]) -> Points:
    try:
        single = {len(entry) for entry in entries} <= {3}
        times = [entry[0] for entry in entries for _ in entry[2]]
        steps = [entry[1] for entry in entries for _ in entry[2]]
        keys = [key for entry in entries for key in entry[2]]
        values = [value for entry in entries for value in entry[2].values()]
        exact = [round(moment * MICROSECONDS) for moment in times]
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise CorruptRecordError(path, f"an entry is none of metrics ({error!r})") from error
    if not single:
        raise CorruptRecordError(path, "an entry is none of metrics")
    return Points(exact, steps, keys, values)


def _strange(path: Path, entry: object) -> CorruptRecordError:
    return CorruptRecordError(path, f"{str(entry)[:200]} is not an entry of metrics")
