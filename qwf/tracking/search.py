"""Which recorders match: filters and orders over the recorders of some or all experiments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..errors import SearchArgumentError
from ..storage import fsio, layout
from ..storage.index import ID, Rows
from .catalog import catalog_of
from .filters import parse_filter, parse_order
from .metadata import index_row
from .store import Examined, Store
from .table import Identified, RecorderTable
from .trash import TrashEntry, list_trash

__all__ = ["ACTIVE_ONLY", "ALL", "DELETED_ONLY", "search"]

# The view types of MLflow.
ACTIVE_ONLY = 1
DELETED_ONLY = 2
ALL = 3


def search(
    store: Store,
    experiment_ids: Sequence[str] | None = None,
    *,
    filter_string: str = "",
    run_view_type: int = ACTIVE_ONLY,
    max_results: int | None = None,
    order_by: str | Sequence[str] | None = None,
) -> RecorderTable:
    """Return the recorders that match, in the order asked for.

    Parameters
    ----------
    store : Store
    experiment_ids : sequence of str, optional
        Default: all experiments. One that does not exist has no recorders.
    filter_string : str, default ""
        See `parse_filter`.
    run_view_type : {1, 2, 3}
        Recorders that are there, deleted ones, or both.
    max_results : int, optional
        At most so many.
    order_by : str or sequence of str, optional
        As ``"metrics.IC DESC"``; by default, and among equals, the one that started last is first.

    Raises
    ------
    FilterError
        If the filter or the order has a mistake. It tells where. Nothing was read.
    """
    if not isinstance(filter_string, str):
        raise SearchArgumentError(f"filter_string is {filter_string!r}; expected a text.")
    wanted, order = parse_filter(filter_string), parse_order(order_by)
    if run_view_type not in (ACTIVE_ONLY, DELETED_ONLY, ALL):
        raise SearchArgumentError(
            f"run_view_type is {run_view_type!r}; expected 1 (recorders that are there), "
            "2 (deleted ones) or 3 (both)."
        )
    if max_results is not None and (type(max_results) is not int or max_results < 1):
        raise SearchArgumentError(
            f"max_results is {max_results!r}; expected a positive whole number, or None for all."
        )
    tables = []
    if run_view_type != DELETED_ONLY:
        tables += list(_present(store, experiment_ids))
    if run_view_type != ACTIVE_ONLY:
        tables.append(_deleted(store, experiment_ids))
    table = tables[0] if len(tables) == 1 else RecorderTable(tables).newest_first()
    positions = wanted.positions(table.column, table.rows)
    if order_by:
        positions = order.sorted(positions, table.column)
    if max_results is None and len(positions) == table.rows and not order_by:
        return table
    return table.take(positions[:max_results])


def _present(store: Store, experiment_ids: Sequence[str] | None) -> Iterator[RecorderTable]:
    if experiment_ids is None:
        experiment_ids = [record.id for record in store.list_experiments()]
    for identity in dict.fromkeys(experiment_ids):
        if store.is_entry(identity) and store.check_version():
            yield catalog_of(store, identity).table()


def _deleted(store: Store, experiment_ids: Sequence[str] | None) -> RecorderTable:
    """Return the recorders in the trash, alone or with their experiment; each is read."""
    parts = []
    for entry in list_trash(store):
        if experiment_ids is not None and entry.experiment_id not in experiment_ids:
            continue
        rows = [
            {**index_row(*found), ID: identity}
            for identity, found in _inside(store, entry)
            if isinstance(found, tuple)
        ]
        parts.append(Identified(Rows(rows), entry.experiment_id))
    return RecorderTable(parts).newest_first()


def _inside(store: Store, entry: TrashEntry) -> Iterator[tuple[str, Examined]]:
    if entry.recorder_id is not None:
        yield entry.recorder_id, store.examine_at(entry.path)
        return
    directory = entry.path / layout.RECORDERS
    for name in fsio.list_names(directory):
        yield name, store.examine_at(directory / name)
