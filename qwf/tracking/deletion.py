"""Moving recorders to the trash: which go together, and which somebody needs now."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from ..errors import RecorderStateError
from ..process import exits
from ..storage import layout
from . import status
from .search import search
from .store import Store
from .table import RecorderTable

__all__ = ["delete_recorders", "refuse_deletion"]

# What serves predictions is not deleted by mistake. The names are Qlib's.
_ONLINE_TAG: Final = "online_status"
_ONLINE: Final = "online"


def delete_recorders(store: Store, recorders: Sequence[tuple[str, str]]) -> list[str]:
    """Move recorders, and those of their experiment that belong to them, to the trash.

    Parameters
    ----------
    store : Store
    recorders : sequence of (str, str)
        Experiment id and recorder id of each; they exist.

    Returns
    -------
    list of str
        The ids of all that were deleted, each before those that belong to it; without what
        another process has deleted meanwhile.

    Raises
    ------
    RecorderStateError
        If one of them is active, here or in another process, or online. Nothing was deleted.

    Notes
    -----
    One rename for each, those that belong to others first: *a crash* leaves some of them.
    """
    tables = {one: search(store, [one]) for one in dict.fromkeys(one for one, _ in recorders)}
    groups: list[tuple[str, list[str]]] = []
    for experiment_id, recorder_id in recorders:
        table = tables[experiment_id]
        taken = {one for of, group in groups if of == experiment_id for one in group}
        family = [one for one in _family(table, recorder_id) if one not in taken]
        refuse_deletion(table, family)
        groups.append((experiment_id, family))
    deleted: list[str] = []
    for experiment_id, family in groups:
        token = layout.new_trash_token()  # what goes together comes back together
        moved = [one for one in reversed(family) if _discard(store, experiment_id, one, token)]
        deleted += reversed(moved)
    return deleted


def _discard(store: Store, experiment_id: str, recorder_id: str, token: str) -> bool:
    try:
        store.discard_recorder(experiment_id, recorder_id, token)
    except FileNotFoundError:
        return False
    return True


def _family(table: RecorderTable, recorder_id: str) -> list[str]:
    """Return a recorder, then those that belong to it, then those that belong to these."""
    children: dict[str | None, list[str]] = {}
    for parent, identity in zip(
        table.column("attributes", "parent_id"), table.column("attributes", "run_id"), strict=True
    ):
        children.setdefault(parent, []).append(identity)
    found, seen = [recorder_id], {recorder_id}
    for one in found:  # it grows meanwhile
        below = [child for child in children.get(one, ()) if child not in seen]
        found += below
        seen.update(below)
    return found


def refuse_deletion(table: RecorderTable, recorder_ids: Iterable[str]) -> None:
    """Refuse to delete recorders that somebody needs now.

    Raises
    ------
    RecorderStateError
        It names the first that runs or is online.
    """
    rows = {one: row for row, one in enumerate(table.column("attributes", "run_id"))}
    statuses = table.column("attributes", "status")
    online = table.column("tags", _ONLINE_TAG)
    for identity in recorder_ids:
        row = rows.get(identity)
        if exits.is_open(identity) or (row is not None and statuses[row] == status.RUNNING):
            raise RecorderStateError(
                f"recorder {identity} is active and cannot be deleted. Nothing was changed. "
                "Leave its R.start block, or call end_run of it, first."
            )
        if row is not None and online[row] == _ONLINE:
            raise RecorderStateError(
                f"recorder {identity} is online and cannot be deleted. Nothing was changed. Take "
                f"it offline first: set its tag {_ONLINE_TAG!r} to 'offline'."
            )
