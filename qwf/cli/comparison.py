"""``qwf rec compare``: in what recorders differ."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..errors import CommandLineError
from ..tracking.manager import ExpManager
from .listings import Listing
from .opening import find_experiment, open_manager
from .printing import note, print_csv, print_json, print_text, show_duration, show_time
from .tables import Column

__all__ = ["compare"]

# Of the attributes, those that say more than that they are two runs.
_TELLING: Final = ("run_name", "experiment", "status")
_SHOW: Final = {"start_time": show_time, "end_time": show_time, "duration": show_duration}
_FAMILIES: Final = ("params", "metrics", "tags")

# A short id is its last part, of eight hex digits.
_SHORT: Final = 8


@dataclass(frozen=True)
class _Line:
    """What one attribute, param, metric or tag is in each of the recorders."""

    name: str
    values: list[Any]

    @property
    def differs(self) -> bool:
        # As text: NaN is like NaN, and what is missing is not like what is empty.
        return len(set(map(repr, self.values))) > 1

    @property
    def texts(self) -> list[str | None]:
        """Return the values for people."""
        if any(isinstance(value, float) for value in self.values) and self.name not in _SHOW:
            return _told_apart(self.values)
        show = _SHOW.get(self.name, str)
        return [None if value is None else show(value) for value in self.values]


def _told_apart(values: Sequence[float | None]) -> list[str | None]:
    """Return numbers with as many digits as tell apart those that differ, but at least six."""
    texts: list[str | None] = []
    for digits in (6, 9, 12, 17):
        texts = [None if value is None else f"{value:.{digits}g}" for value in values]
        if len(set(texts)) == len(set(map(repr, values))):
            break
    return texts


def compare(options: Namespace) -> int:
    """Print what differs, or everything."""
    listing = _chosen(options)
    ids = listing.attribute("run_id")
    lines = _lines(listing, everything=options.all)
    if not options.all:
        lines = [line for line in lines if line.differs]
    if options.json:
        rows = [{"key": line.name, "values": line.values} for line in lines]
        print_json({"recorders": ids, "rows": rows})
    elif options.csv:
        names = [line.name for line in lines]
        print_csv(_oriented(ids, names, [line.values for line in lines], options))
    elif lines:
        names = [line.name for line in lines]
        texts = [line.texts for line in lines]
        print_text(_oriented(_short(ids), names, texts, options))
    else:
        note("they do not differ.")
    return 0


def _chosen(options: Namespace) -> Listing:
    """Return the recorders that are to be compared, in the order in which they were named."""
    by_search = bool(options.filter or options.experiment)
    if by_search == bool(options.ids):
        raise CommandLineError("compare takes either ids, or --filter and --experiment.")
    manager = open_manager(options.uri)
    if by_search:
        only = [find_experiment(manager, name) for name in options.experiment or ()]
        names = {one.id: one.name for one in only} or None
        listing = Listing.of(manager, names, filter_string=options.filter)
    else:
        listing = _named(manager, options.ids)
    if len(listing) < 2:
        raise CommandLineError(f"to compare takes two recorders or more; this is {len(listing)}.")
    return listing


def _named(manager: ExpManager, ids: Sequence[str]) -> Listing:
    recorders = dict.fromkeys(manager.find_recorder(identity) for identity in ids)
    names = {
        one.experiment_id: manager.get_exp(experiment_id=one.experiment_id, create=False).name
        for one in recorders
    }
    listing = Listing.of(manager, names)
    known = listing.attribute("run_id")
    return listing.take([known.index(one.id) for one in recorders])


def _lines(listing: Listing, *, everything: bool) -> list[_Line]:
    attributes = (*_TELLING, *_SHOW, "parent_id") if everything else _TELLING
    return [
        *(_Line(key, listing.attribute(key)) for key in attributes),
        *(
            _Line(f"{family}.{key}", listing.values(family, key))
            for family in _FAMILIES
            for key in listing.table.keys(family)
        ),
    ]


def _oriented(
    ids: Sequence[str], names: Sequence[str], grid: Sequence[Sequence[Any]], options: Namespace
) -> list[Column]:
    """Return the columns: one per recorder, or with ``--transpose`` one per line."""
    if options.transpose:
        first = Column(name="recorder", values=ids, importance=1)
        others = zip(names, grid, strict=True)
    else:
        first = Column(name="key", values=names, keep_end=True, importance=1)
        others = zip(ids, zip(*grid, strict=True) if grid else [()] * len(ids), strict=True)
    return [first, *(Column(name=name, values=values) for name, values in others)]


def _short(ids: Sequence[str]) -> list[str]:
    """Return the endings of ids, if they tell them apart."""
    endings = [identity[-_SHORT:] for identity in ids]
    return endings if len(set(endings)) == len(endings) else list(ids)
