"""What was deleted: listing it, bringing it back, and removing for good what is old."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from ..errors import (
    CorruptRecordError,
    FormatVersionError,
    RestoreError,
    TrashEntryNotFoundError,
)
from ..storage import fsio, layout, trees
from ..storage.documents import read_document
from ..version import EXPERIMENT_FORMAT, RECORDER_FORMAT
from .metadata import EXPERIMENT_KIND, RECORDER_KIND
from .store import Store

__all__ = [
    "Removed",
    "TrashEntry",
    "collect_garbage",
    "list_trash",
    "restore_experiment",
    "restore_recorders",
]


@dataclass(frozen=True)
class TrashEntry:
    """One deleted experiment or recorder.

    Attributes
    ----------
    kind : {"experiment", "recorder"}
    name : str
        Of the experiment or recorder.
    experiment_id : str
    recorder_id : str or None
        None for an experiment.
    deleted_at : datetime
        In UTC, by the clock of who deleted it.
    token : str
        The same for all that were deleted together.
    path : Path
        Where it is.
    """

    kind: Literal["experiment", "recorder"]
    name: str
    experiment_id: str
    recorder_id: str | None
    deleted_at: datetime
    token: str
    path: Path


@dataclass(frozen=True)
class Removed:
    """One entry of the trash that was removed for good, or would be; and its size in bytes."""

    entry: TrashEntry
    size: int


def list_trash(store: Store) -> list[TrashEntry]:
    """Return what is in the trash of a store, deleted last first; without foreign entries.

    Notes
    -----
    Reads one file per entry.
    """
    found = list(_entries(store)) if store.check_version() else []
    return sorted(found, key=lambda entry: (entry.deleted_at, entry.path.name), reverse=True)


def _entries(store: Store) -> Iterator[TrashEntry]:
    for name in fsio.list_names(store.root / layout.TRASH):
        parsed = layout.parse_trash_name(name)
        if parsed is None:
            continue
        entry, token, moment = parsed
        path = store.root / layout.TRASH / name
        if fsio.exists(path / layout.RECORDER_FILE):
            fields = _fields(path / layout.RECORDER_FILE, RECORDER_KIND, RECORDER_FORMAT)
            experiment_id, _, recorder_id = entry.rpartition("@")
            if layout.is_cut(entry):
                experiment_id = fields.get("experiment_id", experiment_id)
                recorder_id = fields.get("id", recorder_id)
            shown = fields.get("name", recorder_id)
            yield TrashEntry("recorder", shown, experiment_id, recorder_id, moment, token, path)
        elif path.is_dir():
            fields = _fields(path / layout.EXPERIMENT_FILE, EXPERIMENT_KIND, EXPERIMENT_FORMAT)
            identity = fields.get("id", entry) if layout.is_cut(entry) else entry
            shown = fields.get("name", layout.decode_name(identity))
            yield TrashEntry("experiment", shown, identity, None, moment, token, path)


def _fields(path: Path, kind: str, version: int) -> dict[str, Any]:
    """Return the fields of a document; none if it is missing or damaged."""
    try:
        return read_document(path, kind=kind, version=version)
    except (OSError, CorruptRecordError, FormatVersionError):
        return {}


# --- bringing back -----------------------------------------------------------------------------


def restore_experiment(store: Store, name: str) -> TrashEntry:
    """Bring back the experiment of a name (or id) that was deleted last.

    Raises
    ------
    TrashEntryNotFoundError
        If there is none in the trash.
    RestoreError
        If there is an experiment of its id again. Nothing was changed.
    """
    entries = [entry for entry in list_trash(store) if entry.kind == "experiment"]
    for entry in entries:
        if name in (entry.name, entry.experiment_id):
            _bring_back(store, entry)
            return entry
    known = [entry.name for entry in entries]
    raise TrashEntryNotFoundError("experiment", name, store=store.root, known=known)


def restore_recorders(store: Store, recorder_ids: Sequence[str]) -> list[TrashEntry]:
    """Bring back recorders and those that were deleted together with them.

    Parameters
    ----------
    store : Store
    recorder_ids : sequence of str
        Ids, or a beginning or ending of one that no other in the trash has.

    Returns
    -------
    list of TrashEntry
        What was brought back, those that were asked for first.

    Raises
    ------
    TrashEntryNotFoundError
        If one is not in the trash. Nothing was changed.
    RestoreError
        If an experiment is not there, or another recorder has the id. Nothing was changed.

    Notes
    -----
    *A crash* leaves some of several in the trash; the next call brings them back.
    """
    entries = [entry for entry in list_trash(store) if entry.kind == "recorder"]
    wanted = list(dict.fromkeys(_meant(store, entries, one) for one in recorder_ids))
    tokens = {one.token for one in wanted}
    others = [one for one in entries if one.token in tokens and one not in wanted]
    for entry in (*wanted, *others):
        _refuse_if_taken(store, entry)
    # Those that were asked for come last, so that after a crash they can be asked for again.
    for entry in (*others, *wanted):
        _bring_back(store, entry)
    return [*wanted, *others]


def _meant(store: Store, entries: Sequence[TrashEntry], recorder_id: str) -> TrashEntry:
    """Return the entry of a recorder; of several with one id, what was deleted last."""
    known = {str(entry.recorder_id): entry for entry in reversed(entries)}
    if recorder_id in known:
        return known[recorder_id]
    near = [one for one in known if one.startswith(recorder_id) or one.endswith(recorder_id)]
    if not recorder_id or len(near) != 1:
        raise TrashEntryNotFoundError(
            "recorder", recorder_id, store=store.root, known=near or list(known)
        )
    return known[near[0]]


def _target(store: Store, entry: TrashEntry) -> Path:
    if entry.recorder_id is None:
        return store.experiment_directory(entry.experiment_id)
    return store.recorder_directory(entry.experiment_id, entry.recorder_id)


def _refuse_if_taken(store: Store, entry: TrashEntry) -> None:
    target = _target(store, entry)
    if fsio.exists(target):
        raise RestoreError(
            f"{entry.kind} {entry.name!r} cannot be brought back: there is {target} again. Nothing "
            "was changed. Delete or rename what is there first."
        )
    if entry.recorder_id is not None and not fsio.exists(target.parent):
        raise RestoreError(
            f"recorder {entry.recorder_id} cannot be brought back: its experiment "
            f"{entry.experiment_id!r} is not there. Nothing was changed. Restore or create the "
            "experiment first."
        )


def _bring_back(store: Store, entry: TrashEntry) -> None:
    _refuse_if_taken(store, entry)
    try:
        fsio.move(entry.path, _target(store, entry))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY):
            raise
        raise RestoreError(
            f"{entry.kind} {entry.name!r} cannot be brought back: another process has just "
            "restored or removed it, or deleted its experiment. Look at what is there now."
        ) from error


# --- removing for good -------------------------------------------------------------------------


def collect_garbage(
    store: Store, *, older_than_seconds: float, dry_run: bool = False
) -> list[Removed]:
    """Remove for good what was deleted long ago.

    Parameters
    ----------
    store : Store
    older_than_seconds : float
        How long ago, on the file server's clock and on that of who deleted it.
    dry_run : bool, default False
        Only tell what would be removed.

    Returns
    -------
    list of Removed
        With the bytes of each.

    Notes
    -----
    What others restore or remove meanwhile is passed over. *A crash* leaves an entry whole, or
    under a private name that the next call removes.
    """
    if not dry_run:
        _finish_removing(store.root / layout.TRASH)
    due = list_trash(store)
    if not due:
        return []
    now = fsio.server_time(store.root / layout.STORE_FILE)
    removed = []
    for entry in due:
        with contextlib.suppress(FileNotFoundError):
            if now - _deleted_at(entry) < older_than_seconds:
                continue
            one = Removed(entry, _size_below(entry.path))
            if not dry_run:
                trees.remove_tree(fsio.make_private(entry.path))
            removed.append(one)
    return removed


def _finish_removing(trash: Path) -> None:
    """Remove what a call that was killed has begun to remove."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(trash):
            if fsio.is_temporary(name):
                trees.remove_tree(trash / name)


def _deleted_at(entry: TrashEntry) -> float:
    # The later of two times: not every filesystem notes when an entry was moved.
    return max(fsio.moved_at(entry.path), entry.deleted_at.timestamp())


def _size_below(path: Path) -> int:
    size = 0
    for directory, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                size += os.lstat(os.path.join(directory, name)).st_size
    return size
