"""What is wrong in a store, and what can be set right without losing anything.

Repairing finishes what was announced, ends runs whose process has died, writes anew what can be
derived, and moves damaged records, unknown files and what unfinished writes left into
``quarantine/``. It deletes nothing, and leaves damaged artifacts, foreign entries and files of a
newer qwf where they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from ..errors import CorruptRecordError, FormatVersionError
from ..storage import fsio, layout
from ..storage.documents import is_as_written, read_document
from ..storage.findings import UPGRADE, Finding, Workbench, newer
from ..storage.index import Index
from ..version import EXPERIMENT_FORMAT, PROVENANCE_FORMAT, STORE_FORMAT
from .catalog import marks_of, names_of
from .check_recorder import RecorderCheck
from .metadata import EXPERIMENT_KIND, STORE_KIND, new_experiment, new_store
from .store import Store
from .surroundings import PROVENANCE_KIND
from .table import FAMILIES

__all__ = ["Finding", "check_store"]

# What belongs into the directory of a store, and into that of an experiment.
_OF_STORE: Final = {
    layout.STORE_FILE,
    layout.EXPERIMENTS,
    layout.TRASH,
    layout.QUARANTINE,
    layout.INDEX,
    layout.PROVENANCE,
    layout.TASKS,  # has a check of its own
}


def check_store(
    root: Path, *, repair: bool = False, older_than_seconds: float = 3600.0
) -> list[Finding]:
    """Look at every file of a store.

    Parameters
    ----------
    root : Path
        The store.
    repair : bool, default False
        Set right what can be; otherwise nothing is changed.
    older_than_seconds : float, default 3600
        What unfinished writes left is only reported when it is this old: a younger one may
        belong to a living writer.

    Returns
    -------
    list of Finding
        Empty for a sound store without foreign entries.

    Notes
    -----
    Reads every artifact once, to compare its digest. May run beside writers.
    """
    store = Store(root)
    bench = Workbench(root, repair=repair, older_than_seconds=older_than_seconds)
    return list(_StoreCheck(bench, store).findings())


class _StoreCheck:
    def __init__(self, bench: Workbench, store: Store) -> None:
        self._bench, self._store, self._root = bench, store, store.root

    def findings(self) -> Iterator[Finding]:
        if not self._store.check_version():
            problem, action = "there is no store here", "name another directory"
            yield self._bench.finding(self._root, problem, action)
            return
        path = self._root / layout.STORE_FILE
        yield from self._bench.document(path, STORE_KIND, STORE_FORMAT, new_store)
        for name in sorted(_shown(self._root)):
            if name not in _OF_STORE:
                yield self._bench.foreign(self._root / name)
        yield from self._leftovers()
        for name in sorted(_shown(self._root / layout.EXPERIMENTS)):
            directory = self._store.experiment_directory(name)
            yield from self._unless_deleted(directory, self._experiment(name))
        for place, findings in (
            (layout.INDEX, self._indexes()),
            (layout.TRASH, self._trash()),
            (layout.PROVENANCE, self._provenance()),
        ):
            yield from self._unless_deleted(self._root / place, findings)

    def _unless_deleted(self, directory: Path, findings: Iterator[Finding]) -> Iterator[Finding]:
        """Pass findings on; what cannot be looked at is one, so that the rest is looked at."""
        try:
            yield from findings
        except OSError as error:
            if fsio.exists(directory):
                problem = f"it cannot be checked to its end: {error}"
                yield self._bench.finding(directory, problem, "look at the disk")

    # --- what unfinished writes left ---

    def _leftovers(self) -> Iterator[Finding]:
        for directory, names, files in os.walk(self._root):
            below = Path(directory).relative_to(self._root).parts
            claims = layout.ARTIFACTS not in below  # there, names are the user's
            for name in [*names, *files]:
                path = Path(directory, name)
                yield from self._bench.leftover(path, claims=claims)
            kept = (name for name in names if not fsio.is_temporary(name))
            names[:] = [name for name in kept if name != layout.QUARANTINE]
            if not below and layout.TASKS in names:
                names.remove(layout.TASKS)

    # --- experiments and recorders ---

    def _experiment(self, name: str) -> Iterator[Finding]:
        directory = self._store.experiment_directory(name)
        path = directory / layout.EXPERIMENT_FILE
        try:
            if self._store.read_experiment(name) is None:
                recorders = _shown(directory / layout.RECORDERS)
                if not any(self._store.examine_recorder(name, one) for one in recorders):
                    yield self._bench.foreign(directory)
                    return
        except FormatVersionError as error:
            yield self._bench.finding(path, newer(error), UPGRADE)
            return
        fresh = partial(new_experiment, name, layout.decode_name(name))
        yield from self._bench.document(path, EXPERIMENT_KIND, EXPERIMENT_FORMAT, fresh)
        for recorder_id in sorted(_shown(directory / layout.RECORDERS)):
            place = self._store.recorder_directory(name, recorder_id)
            check = RecorderCheck(self._bench, self._store, name, recorder_id)
            yield from self._unless_deleted(place, check.findings())

    # --- what is derived, deleted or shared ---

    def _indexes(self) -> Iterator[Finding]:
        for name in sorted(_shown(self._root / layout.INDEX)):
            directory = self._store.index_directory(name)
            if fsio.exists(self._store.experiment_directory(name)):
                problem = self._problem_of_index(name, directory)
            else:
                problem = "its experiment is not there any more"
            if problem is not None:
                yield self._bench.finding(directory, problem, self._bench.parking(directory))

    def _problem_of_index(self, experiment_id: str, directory: Path) -> str | None:
        index = Index(directory, FAMILIES)
        try:
            index.verify()
        except (CorruptRecordError, FormatVersionError) as error:
            return f"{error} It is derived and not needed"
        snapshot = index.newest()
        if snapshot is None:
            return None
        marks = marks_of(self._store, experiment_id)
        gone = names_of(snapshot.facts.get("gone"))
        for identity, revision in snapshot.revisions().items():
            found = self._store.examine_recorder(experiment_id, identity)
            # Of one that was announced to change, or has not ended, the index is not believed.
            believed = marks.get(identity, 0) <= revision and identity not in gone
            if believed and isinstance(found, tuple) and found[1] != revision:
                return (
                    f"it does not agree with the file of {identity}, which was replaced by other "
                    "means than qwf; it is derived and not needed"
                )
        return None

    def _trash(self) -> Iterator[Finding]:
        for name in sorted(_shown(self._root / layout.TRASH)):
            path = self._root / layout.TRASH / name
            if layout.parse_trash_name(name) is None:
                yield self._bench.foreign(path)
            elif isinstance(found := self._store.examine_at(path), Exception):
                reason = getattr(found, "reason", str(found))
                yield self._bench.finding(path, reason, self._bench.parking(path))
            else:
                yield from self._unless_deleted(path, self._deleted_documents(path))

    def _deleted_documents(self, entry: Path) -> Iterator[Finding]:
        """Look at what a deleted recorder, or experiment with its recorders, says of itself."""
        directories = [entry]
        for name in sorted(_shown(entry / layout.RECORDERS)):
            directories.append(entry / layout.RECORDERS / name)
        for directory in directories:
            for name in (layout.EXPERIMENT_FILE, layout.RECORDER_FILE):
                path = directory / name
                if fsio.exists(path) and not is_as_written(fsio.read_bytes(path)):
                    problem = "it does not match its checksum: edited by hand, or damaged"
                    yield self._bench.finding(path, problem, "restore it, then check again")

    def _provenance(self) -> Iterator[Finding]:
        for name in sorted(_shown(self._root / layout.PROVENANCE)):
            path = self._root / layout.PROVENANCE / name
            try:
                read_document(path, kind=PROVENANCE_KIND, version=PROVENANCE_FORMAT)
                sound = is_as_written(fsio.read_bytes(path))
                problem = None if sound else "it does not match its checksum"
            except OSError as error:
                problem = f"it cannot be read ({error.strerror})"
            except FormatVersionError as error:
                yield self._bench.finding(path, newer(error), UPGRADE)
                continue
            except CorruptRecordError as error:
                problem = error.reason
            if problem is not None:
                yield self._bench.finding(path, problem, self._bench.parking(path))


def _shown(directory: Path) -> list[str]:
    """Return the names in a directory but the hidden ones, which many programs leave everywhere."""
    try:
        return [name for name in fsio.list_names(directory) if name[:1] != "."]
    except NotADirectoryError:
        return []
