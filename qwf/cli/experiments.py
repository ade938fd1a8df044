"""``qwf exp``: list, show, delete and restore experiments."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping

from .listings import Listing
from .opening import find_experiment, open_manager
from .printing import (
    command_line,
    print_csv,
    print_facts,
    print_json,
    print_lines,
    print_text,
    show_minute,
    show_time,
)
from .tables import Column, printable

__all__ = ["delete_experiment", "list_experiments", "restore_experiment", "show_experiment"]

_NEWEST = 10


def list_experiments(options: Namespace) -> int:
    """Print every experiment with its recorders by status and its last start."""
    manager = open_manager(options.uri)
    experiments = manager.list_experiments()
    listing = Listing(manager.search(), {})
    rows: dict[str, list[int]] = {experiment.id: [] for experiment in experiments.values()}
    for row, identity in enumerate(listing.attribute("experiment_id")):
        rows.setdefault(identity, []).append(row)
    parts = {name: listing.take(rows[one.id]) for name, one in experiments.items()}
    # Those that were never used come last, in the order of the manager: newest first.
    names = sorted(parts, key=lambda name: parts[name].last_start or "", reverse=True)
    ids = [experiments[name].id for name in names]
    totals = [len(parts[name]) for name in names]
    counts = [parts[name].statuses for name in names]
    starts = [parts[name].last_start for name in names]
    if options.json:
        keys = ("name", "id", "recorders", "by_status", "last_start")
        facts = zip(names, ids, totals, counts, starts, strict=True)
        print_json([dict(zip(keys, one, strict=True)) for one in facts])
        return 0
    columns = [
        Column(name="name", values=names, importance=3),
        Column(name="recorders", values=totals, number=True, importance=2),
        Column(name="by status", values=[_counted(count) for count in counts]),
        Column(name="last start", values=starts, show=show_minute, whole=True, importance=1),
    ]
    (print_csv if options.csv else print_text)(columns)
    return 0


def _counted(count: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {status}" for status, number in sorted(count.items()))


def show_experiment(options: Namespace) -> int:
    """Print what is known of one experiment, and its newest recorders."""
    manager = open_manager(options.uri)
    experiment = find_experiment(manager, options.name)
    record = manager.store.read_experiment(experiment.id)
    created = record.created_at if record is not None else ""
    listing = Listing.of(manager, {experiment.id: experiment.name})
    metrics = listing.table.keys("metrics")
    newest = listing.take(range(min(len(listing), _NEWEST)))
    if options.json:
        document = {
            "name": experiment.name,
            "id": experiment.id,
            "created_at": created or None,
            "recorders": len(listing),
            "by_status": listing.statuses,
            "metrics": metrics,
            "newest": newest.documents(),
        }
        print_json(document)
        return 0
    print_facts(
        {
            "experiment": experiment.name,
            "id": experiment.id,
            "created": show_time(created) if created else "",
            "recorders": " = ".join(filter(None, [str(len(listing)), _counted(listing.statuses)])),
            "metrics": ", ".join(metrics),
        }
    )
    if len(newest):
        print_lines(["", "newest recorders"])
        print_text(newest.columns(), indent="  ")
    return 0


def delete_experiment(options: Namespace) -> int:
    """Move an experiment to the trash, and say how it comes back."""
    manager = open_manager(options.uri)
    experiment = find_experiment(manager, options.name)
    count = len(Listing.of(manager, {experiment.id: experiment.name}))
    manager.delete_exp(experiment_id=experiment.id)
    print(f"Moved to the trash: experiment {printable(experiment.name)} (recorders: {count})")
    print(f"To have it back: {command_line(options, 'exp', 'restore', experiment.name)}")
    return 0


def restore_experiment(options: Namespace) -> int:
    """Bring an experiment back from the trash."""
    experiment = open_manager(options.uri).restore_exp(experiment_name=options.name)
    print(f"Restored: experiment {printable(experiment.name)}")
    return 0
