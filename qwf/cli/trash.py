"""``qwf gc``: emptying the trash."""

from __future__ import annotations

from argparse import Namespace

from ..tracking.trash import collect_garbage
from .opening import open_manager
from .printing import note, print_table, show_size, show_time
from .tables import Column

__all__ = ["collect"]


def collect(options: Namespace) -> int:
    """Remove what is old enough, or say what would be removed."""
    store = open_manager(options.uri).store
    removed = collect_garbage(store, older_than_seconds=options.older_than, dry_run=options.dry_run)
    entries, sizes = [one.entry for one in removed], [one.size for one in removed]
    moments = [f"{one.deleted_at.replace(tzinfo=None).isoformat()}Z" for one in entries]
    columns = [
        Column(name="kind", values=[one.kind for one in entries]),
        Column(name="name", values=[one.name for one in entries], importance=3),
        Column(
            name="id",
            values=[one.recorder_id or one.experiment_id for one in entries],
            keep_end=True,
            importance=2,
        ),
        Column(name="deleted", values=moments, show=show_time, whole=True),
        Column(name="size", values=sizes, show=show_size, number=True, importance=1),
    ]
    if removed or options.json or options.csv:
        print_table(columns, options)
    would_be = "would be " if options.dry_run else ""
    note(f"{len(removed)} {would_be}removed, {show_size(sum(sizes))}.")
    return 0
