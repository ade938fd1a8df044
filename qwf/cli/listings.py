"""``qwf rec list`` and ``search``, and how recorders are shown as rows wherever they are."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..errors import suggest
from ..storage.layout import decode_name, encode_name
from ..tracking.manager import ExpManager
from ..tracking.table import RecorderTable
from .opening import find_experiment, open_manager
from .parser import ATTRIBUTES
from .printing import (
    note,
    print_csv,
    print_json,
    print_text,
    show_duration,
    show_minute,
    show_number,
    stored_time,
)
from .tables import Column

__all__ = ["Listing", "list_recorders"]

_ACTIVE: Final = 1  # Qlib's numbers of views
_DELETED: Final = 2

# What fits a screen, and the eye.
_ROWS: Final = 50
_METRICS: Final = 4


def list_recorders(options: Namespace) -> int:
    """Print the recorders that are asked for."""
    manager = open_manager(options.uri)
    names = _experiments(manager, options)
    found = Listing.of(
        manager,
        names or None,
        filter_string=options.filter,
        order_by=options.order_by,
        run_view_type=_DELETED if options.deleted else _ACTIVE,
    )
    if options.status:
        found = found.with_status(options.status)
    for_programs = options.json or options.csv
    limit = options.max if options.max is not None else 0 if for_programs else _ROWS
    shown = found.take(range(len(found))[: limit or None])
    _note_unknown(options.columns or (), found)
    if options.json:
        print_json(shown.documents(options.columns))
    elif options.csv:
        print_csv(shown.all_columns(options.columns))
    elif len(shown):
        print_text(shown.columns(options.columns, name_experiments=len(names) != 1))
    else:
        note("there is no such recorder.")
    if len(shown) < len(found):
        note(f"... and {len(found) - len(shown):,} more; --max 0 for all.")
    return 0


def _experiments(manager: ExpManager, options: Namespace) -> dict[str, str]:
    """Return id and name of the experiments that are asked for."""
    if options.deleted:  # they may have been deleted themselves
        return {encode_name(name): name for name in options.experiments}
    found = [find_experiment(manager, name) for name in options.experiments]
    return {one.id: one.name for one in found}


def _note_unknown(columns: Sequence[tuple[str, str]], found: Listing) -> None:
    """Tell of columns that nothing has: a slip, or a metric that is not logged yet."""
    for family, key in columns:
        missing = len(found) and found.values(family, key).count(None) == len(found)
        if missing and family != "attributes":
            near = suggest(key, found.table.keys(family))
            note(f"none of these recorders has {family}.{key}; {near}")


@dataclass(frozen=True)
class Listing:
    """Recorders with the names of their experiments.

    Attributes
    ----------
    table : RecorderTable
    names : mapping
        Id of an experiment -> its name.
    """

    table: RecorderTable
    names: Mapping[str, str]

    @classmethod
    def of(cls, manager: ExpManager, names: Mapping[str, str] | None, **search: Any) -> Listing:
        """Return the recorders of some experiments, or of all; see `ExpManager.search`."""
        if names is None:
            known = {one.id: name for name, one in manager.list_experiments().items()}
            return cls(manager.search(None, **search), known)
        return cls(manager.search(list(names), **search), names)

    def __len__(self) -> int:
        return len(self.table)

    def take(self, positions: Iterable[int]) -> Listing:
        """Return some of them, in the order given."""
        return Listing(self.table.take(list(positions)), self.names)

    def with_status(self, statuses: Sequence[str]) -> Listing:
        """Return those with one of the statuses."""
        return self.take(row for row, one in enumerate(self.attribute("status")) if one in statuses)

    def attribute(self, key: str) -> list[Any]:
        """Return one attribute of each; times as they are stored, and the duration in seconds."""
        if key == "experiment":
            ids = self.table.column("attributes", "experiment_id")
            return [self.names.get(identity) or decode_name(identity) for identity in ids]
        if key == "duration":
            starts = self.table.column("attributes", "start_time")
            ends = self.table.column("attributes", "end_time")
            return [_duration(start, end) for start, end in zip(starts, ends, strict=True)]
        values = self.table.column("attributes", key)
        return [stored_time(one) for one in values] if key in _TIMES else values

    @property
    def statuses(self) -> Counter[str]:
        """How many there are of each status."""
        return Counter(self.attribute("status"))

    @property
    def last_start(self) -> str | None:
        """When the last one was started."""
        return max((one for one in self.attribute("start_time") if one is not None), default=None)

    # --- for people ---

    def columns(
        self, chosen: Sequence[tuple[str, str]] | None = None, *, name_experiments: bool = False
    ) -> list[Column]:
        """Return what a table shows: the chosen columns, or those metrics that most have."""
        keys = self._usual_metrics() if chosen is None else chosen
        others = 3 if chosen is None else 7
        return [
            self._shown("run_id", importance=9),
            *([self._shown("experiment", importance=5)] if name_experiments else []),
            self._shown("run_name", importance=6),
            self._shown("status", importance=8),
            self._shown("start_time", importance=4),
            self._shown("duration", importance=1),
            *(self._shown(key, family, importance=max(others, 5)) for family, key in keys[:1]),
            *(self._shown(key, family, importance=others) for family, key in keys[1:]),
        ]

    def _usual_metrics(self) -> list[tuple[str, str]]:
        def missing(key: str) -> int:
            return self.table.column("metrics", key).count(None)

        keys = sorted(self.table.keys("metrics"), key=missing)
        return [("metrics", key) for key in keys[:_METRICS]]

    def _shown(self, key: str, family: str = "attributes", *, importance: int) -> Column:
        return Column(
            name=_HEADS.get(key, key) if family == "attributes" else key,
            values=self.values(family, key),
            show=show_number if family == "metrics" else _SHOW.get(key, str),
            whole=key == "status" or key in _TIMES,
            number=family == "metrics" or key == "duration",
            keep_end=key in ("run_id", "parent_id"),
            importance=importance,
        )

    def values(self, family: str, key: str) -> list[Any]:
        """Return one column; None where a recorder has nothing."""
        return self.attribute(key) if family == "attributes" else self.table.column(family, key)

    # --- for programs ---

    def all_columns(self, chosen: Sequence[tuple[str, str]] | None = None) -> list[Column]:
        """Return every attribute and the chosen columns, or else all there are."""
        return [
            *(Column(name=key, values=self.attribute(key)) for key in ATTRIBUTES),
            *(
                Column(name=f"{family}.{key}", values=self.table.column(family, key))
                for family, key in self._data_keys(chosen)
            ),
        ]

    def documents(self, chosen: Sequence[tuple[str, str]] | None = None) -> list[dict[str, Any]]:
        """Return the same as one object per recorder, without what it lacks."""
        attributes = {key: self.attribute(key) for key in ATTRIBUTES}
        data = {
            (family, key): self.table.column(family, key) for family, key in self._data_keys(chosen)
        }
        return [
            {
                **{key: values[row] for key, values in attributes.items()},
                **{
                    of: {
                        key: values[row]
                        for (family, key), values in data.items()
                        if family == of and values[row] is not None
                    }
                    for of in _DATA
                },
            }
            for row in range(len(self))
        ]

    def _data_keys(self, chosen: Sequence[tuple[str, str]] | None) -> list[tuple[str, str]]:
        if chosen is None:
            return [(family, key) for family in _DATA for key in self.table.keys(family)]
        return [(family, key) for family, key in chosen if family != "attributes"]


_HEADS: Final = {"run_id": "id", "run_name": "name", "start_time": "started", "end_time": "ended"}
_SHOW: Final = {"start_time": show_minute, "end_time": show_minute, "duration": show_duration}
_TIMES: Final = ("start_time", "end_time")
_DATA: Final = ("metrics", "params", "tags")


def _duration(start: int | None, end: int | None) -> float | None:
    return None if start is None or end is None else (end - start) / 1000
