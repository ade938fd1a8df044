"""All recorders of one experiment as a table, without reading again what has not changed.

A recorder that has ended is put into the index, and its file is not read again by anybody until a
mark in ``changes/`` announces another revision: every change of an ended recorder makes one before
it is committed (`Store.update_recorder`). One that runs is read at each listing. Which recorders
there are, their directory tells; it is listed again when its modification time has changed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeAlias

from ..errors import CorruptRecordError, FormatVersionError, QwfError
from ..storage import fsio, layout
from ..storage.columns import ColumnFile, Key
from ..storage.index import ID, REVISION, Index, Rows, Snapshot
from .liveness import Observer
from .metadata import index_row
from .metrics import current
from .status import BROKEN, LOST, RUNNING
from .store import Examined, Store
from .table import FAMILIES, Identified, Part, RecorderTable, Selected

__all__ = ["Catalog", "catalog_of", "marks_of", "names_of"]

_logger: Final = logging.getLogger("qwf.tracking")

# So many files are read again at a listing before it is worth writing an index.
_FEW: Final = 16

# The grain of a file server's clock, with a margin: two changes of a directory within it may
# leave the same modification time.
_GRAIN_SECONDS: Final = 2.0

# Of so many marks those that the index has are removed; each listing lists them.
_MOST_MARKS: Final = 64

# So many are put into the index at once, so that a listing of all for the first time needs no more
# memory for more of them, and one that is killed has not read in vain.
_AT_ONCE: Final = 8192

# Names that are not in the index, as foreign ones, are remembered up to this number.
_MOST_OTHERS: Final = 1000

# A filesystem on which a small file takes longer to read is read by several threads at once.
_SLOW_SECONDS: Final = 0.0005
_THREADS: Final = 16

# The name of a recorder whose file is damaged, and with it its name.
_BROKEN_NAME: Final = "(broken)"

# Values of columns that one experiment keeps in memory; beyond that they are read again.
_MOST_VALUES: Final = 4_000_000


# Inode and modification time of a directory; None if it is not there.
_Stamp: TypeAlias = "tuple[int, int] | None"


class _Segment:
    """A file of columns of the index, whose columns are kept when they were read."""

    def __init__(
        self, file: ColumnFile, reread: Callable[[Sequence[dict[Key, Any]]], Rows]
    ) -> None:
        self._file, self._reread = file, reread
        self.name = file.path.name
        self.rows = file.rows
        self._columns: dict[Key, list[Any]] = {}
        self._instead: Rows | None = None
        self.is_damaged = False
        self.ids: list[str] = self.column(*ID)
        self.revisions: list[int] = self.column(*REVISION)
        self.column("attributes", "status")  # what everybody asks for, while the file is there

    def keys(self, family: str) -> Iterable[str]:
        return self._file.keys(family) if self._instead is None else self._instead.keys(family)

    def column(self, family: str, key: str) -> list[Any]:
        values = self._columns.get((family, key))
        if values is None:
            values = self._read(family, key)
            if len(self._columns) * self.rows > _MOST_VALUES:
                self._columns.clear()
            self._columns[family, key] = values
        return values

    def _read(self, family: str, key: str) -> list[Any]:
        if self._instead is None:
            try:
                return self._file.column(family, key)
            except (OSError, CorruptRecordError) as error:
                if family == ID[0]:
                    raise
                self.is_damaged = not isinstance(error, FileNotFoundError)
                # Removed or damaged after it was opened: the recorders themselves tell.
                columns = {**self._columns, ID: self.ids, REVISION: self.revisions}
                known = [
                    {key: column[row] for key, column in columns.items()}
                    for row in range(self.rows)
                ]
                self._instead = self._reread(known)
                self._columns.clear()
        return self._instead.column(family, key)


class _Going:
    """Recorders that have not ended; their metrics are in journals, and read when asked for."""

    def __init__(self, rows: Sequence[dict[Key, Any]], directories: Sequence[Path]) -> None:
        self._plain = Rows(rows)
        self._directories = directories
        self._metrics: list[dict[str, float]] | None = None
        self.rows = len(rows)

    def keys(self, family: str) -> Iterable[str]:
        if family != "metrics":
            return self._plain.keys(family)
        return {key for one in self._latest() for key in one}

    def column(self, family: str, key: str) -> list[Any]:
        if family != "metrics":
            return self._plain.column(family, key)
        return [one.get(key) for one in self._latest()]

    def _latest(self) -> list[dict[str, float]]:
        if self._metrics is None:
            self._metrics = [_metrics_of(directory) for directory in self._directories]
        return self._metrics


def _metrics_of(directory: Path) -> dict[str, float]:
    try:
        points = current(directory)
    except (CorruptRecordError, FormatVersionError) as error:
        _logger.warning("%s", error)
        return {}
    return {key: point.value for key, point in points.items()}


def marks_of(store: Store, experiment_id: str) -> dict[str, int]:
    """Return the highest revision that is announced for each recorder that had ended before."""
    return _announced(fsio.list_names(store.experiment_directory(experiment_id) / layout.CHANGES))


def _announced(names: Iterable[str]) -> dict[str, int]:
    marks: dict[str, int] = {}
    for name in names:
        parsed = layout.parse_change_mark(name)
        if parsed is not None:
            marks[parsed[0]] = max(parsed[1], marks.get(parsed[0], 0))
    return marks


class Catalog:
    """The recorders of one experiment; shared by all threads of this process.

    Notes
    -----
    Nothing that this holds decides anything: recorders are changed and loaded from their files.
    """

    def __init__(self, store: Store, experiment_id: str) -> None:
        self._store = store
        self._experiment_id = experiment_id
        self._directory = store.experiment_directory(experiment_id) / layout.RECORDERS
        self._changes = store.experiment_directory(experiment_id) / layout.CHANGES
        self._index = Index(store.index_directory(experiment_id), FAMILIES)
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._snapshot: Snapshot | None = None
        self._is_damaged = False  # a file of it
        self._segments: list[_Segment] = []
        # Ended recorders that this process has read and that are in no snapshot yet.
        self._read: dict[str, dict[Key, Any]] = {}
        self._known: dict[str, int] = {}  # revision per ended recorder
        self._names: set[str] = set()
        self._others: set[str] = set()  # names of what is not known to have ended
        self._inode = 0  # of the directory that all this is about
        self._changed: _Stamp = None  # of the marks, when they were listed last
        self._stamp: _Stamp = None
        self._seen_at = 0.0  # when this stamp was seen first
        self._trusted = False  # whether no change can hide behind the stamp
        self._table: RecorderTable | None = None
        self._writable = True

    def table(self) -> RecorderTable:
        """Return all recorders that there are, the one that started last first.

        Notes
        -----
        Files are read for recorders that run or have changed since the index was written. Three
        directories are asked what is new in them. Nobody is waited for; *readers* that race with
        a change see the recorder before or after it.
        """
        with self._lock:
            changed = _stamp_of(self._changes)
            names = fsio.list_names(self._changes)
            marks, crowded = _announced(names), len(names) > _MOST_MARKS
            # In this order: a mark that is gone is in the snapshot which is looked for now.
            newest = self._index.newest(self._snapshot)
            stamp = _stamp_of(self._directory)
            if stamp is None:
                self._forget()
                return RecorderTable([])
            self._look_at_snapshot(newest, stamp[0], changed)
            self._look_for_names(stamp)
            self._begin_index(crowded)
            doubtful = {
                one for one, revision in marks.items() if self._known.get(one, 0) < revision
            }
            going, broken = self._look_at(self._others | (doubtful & self._names), marks)
            table = self._assembled(going, broken)
            self._write_index(marks, crowded or len(doubtful) >= _FEW)
            return table

    # --- what is new ---

    def _look_at_snapshot(self, newest: Snapshot | None, inode: int, changed: _Stamp) -> None:
        if newest is not None and (
            # Rows of another directory, which was here before or of which this is a copy.
            newest.facts.get("inode") != inode
            or self._is_damaged
            or any(segment.is_damaged for segment in self._segments)
        ):
            newest = None
        if not self._goes_on(newest, inode, changed):
            self._forget()
        if newest is not None and newest is not self._snapshot:
            try:
                self._take(newest)
            except (OSError, CorruptRecordError):
                self._forget()
        self._inode, self._changed = inode, changed

    def _goes_on(self, newest: Snapshot | None, inode: int, changed: _Stamp) -> bool:
        """Whether what is known can still be held against the marks.

        They are removed when a snapshot takes them into account. When it is gone, or one that
        was begun anew stands in its place, nobody can tell which there have been.
        """
        before = self._snapshot
        if newest is None:
            here = (inode, changed) == (self._inode, self._changed)
            return before is None and not self._writable and here
        return (
            before is not None and before.origin == newest.origin and before.number <= newest.number
        )

    def _take(self, snapshot: Snapshot) -> None:
        """Know what a snapshot knows, besides what was read in this process since."""
        kept = {segment.name: segment for segment in self._segments}
        segments = [
            kept.get(file.path.name) or _Segment(file, self._reread) for file in snapshot.files
        ]
        known: dict[str, int] = {}
        for segment in segments:
            known.update(zip(segment.ids, segment.revisions, strict=True))
        facts = snapshot.facts
        others, gone = names_of(facts.get("others")), names_of(facts.get("gone"))
        first = self._stamp is None
        for one in gone:
            known.pop(one, None)
        for one, row in list(self._read.items()):
            if row[REVISION] <= known.get(one, 0):
                del self._read[one]
            else:
                known[one] = row[REVISION]
        self._snapshot, self._segments, self._known = snapshot, segments, known
        self._table = None
        directory = facts.get("directory")
        if first and isinstance(directory, list):
            self._stamp, self._trusted = (int(directory[0]), int(directory[1])), True  # type: ignore[arg-type]  # written by us
            self._names, self._others = set(known) | others, others
        else:
            self._others = {one for one in self._names if one not in known}

    def _look_for_names(self, stamp: tuple[int, int]) -> None:
        """List the recorders again, unless nothing can have come or gone."""
        now = time.monotonic()
        if stamp != self._stamp:
            self._stamp, self._seen_at, self._trusted = stamp, now, False
        if self._trusted:
            return
        self._trusted = now - self._seen_at > _GRAIN_SECONDS or self._is_quiet(stamp)
        names = set(fsio.list_names(self._directory))
        gone = self._known.keys() - names
        if names != self._names or gone:  # a snapshot may know some that this process never saw
            self._names = names
            for one in gone:
                del self._known[one]
                self._read.pop(one, None)
            self._others = names - self._known.keys()
            self._table = None

    def _is_quiet(self, stamp: tuple[int, int]) -> bool:
        """Whether the directory was last changed so long ago that another change would show."""
        if self._snapshot is None or not self._writable:
            return False
        try:
            now = fsio.server_time(self._index.directory / "now")
        except OSError:
            return False
        return now - stamp[1] / 1e9 > _GRAIN_SECONDS

    # --- reading ---

    def _look_at(self, names: Collection[str], marks: dict[str, int]) -> tuple[_Going, list[str]]:
        """Read recorders; keep those that have ended, return the others."""
        lost: set[str] = set()
        going: list[dict[Key, Any]] = []
        broken: list[str] = []
        for name, found in self._judged(sorted(names), lost):
            if found is None:  # a foreign entry, or deleted meanwhile
                self._unlearn(name)
                continue
            if isinstance(found, Exception):
                broken.append(name)
                self._unlearn(name)
                continue
            record, revision = found
            row = index_row(record, revision)
            if record.status == RUNNING:
                if name in lost:
                    row["attributes", "status"] = LOST
                going.append(row)
                self._unlearn(name)
            elif self._known.get(name) != revision:
                self._read[name], self._known[name] = row, revision
                self._others.discard(name)
                self._table = None
                if len(self._read) % _AT_ONCE == 0:
                    self._write_index(marks)
        return _Going(going, [self._directory / row[ID] for row in going]), broken

    def _judged(self, names: Sequence[str], lost: set[str]) -> Iterator[tuple[str, Examined]]:
        """Read recorders; add to `lost` those that run, but whose process does not."""
        observer = Observer()
        for name, found in self._documents(names):
            if isinstance(found, tuple) and found[0].status == RUNNING:
                path = self._directory / name / layout.RECORDER_FILE
                if observer.is_lost(found[0].sessions, path):
                    # It may have come to its end, and its process to its own, since it was read.
                    again = self._document(name)
                    if isinstance(again, tuple) and again[1] == found[1]:
                        lost.add(name)
                    yield name, again
                    continue
            yield name, found

    def _unlearn(self, name: str) -> None:
        """Forget that a recorder has ended."""
        if self._known.pop(name, None) is not None:
            self._read.pop(name, None)
            self._others.add(name)
            self._table = None

    def _documents(self, names: Sequence[str]) -> Iterator[tuple[str, Examined]]:
        begin = time.perf_counter()
        for name in names[:_FEW]:
            yield name, self._document(name)
        if len(names) <= _FEW:
            return
        if time.perf_counter() - begin < _SLOW_SECONDS * _FEW:
            for name in names[_FEW:]:
                yield name, self._document(name)
            return
        with ThreadPoolExecutor(_THREADS) as pool:
            rest = names[_FEW:]
            yield from zip(rest, pool.map(self._document, rest), strict=True)

    def _document(self, name: str) -> Examined:
        return self._store.examine_at(self._directory / name) if Store.is_entry(name) else None

    def _reread(self, known: Sequence[dict[Key, Any]]) -> Rows:
        """Return rows from the recorders' files, in the place of a file of columns that is gone.

        Of one that is not there any more, what is known is all that there is.
        """
        rows = []
        for row in known:
            found = self._document(row[ID])
            rows.append(index_row(*found) if isinstance(found, tuple) else row)
        return Rows(rows)

    # --- the table ---

    def _assembled(self, going: _Going, broken: Sequence[str]) -> RecorderTable:
        if self._table is None:
            self._table = RecorderTable([*self._ended()]).newest_first()
        if not going.rows and not broken:
            return self._table
        rows = [
            {ID: name, ("attributes", "run_name"): _BROKEN_NAME, ("attributes", "status"): BROKEN}
            for name in broken
        ]
        parts: list[Part] = [self._identified(going), self._table, self._identified(Rows(rows))]
        return RecorderTable(parts).newest_first()

    def _ended(self) -> Iterator[Identified]:
        missing = dict(self._known)
        fresh = [row for one, row in self._read.items() if missing.pop(one, None) is not None]
        yield self._identified(Rows(fresh[::-1]))
        for segment in reversed(self._segments):
            positions = []
            for position, one in enumerate(segment.ids):
                if missing.pop(one, None) is not None:
                    positions.append(position)
            whole = len(positions) == segment.rows
            yield self._identified(segment if whole else Selected(segment, positions))

    def _identified(self, part: Part) -> Identified:
        return Identified(part, self._experiment_id)

    # --- writing ---

    def _begin_index(self, crowded: bool) -> None:
        """Have something to build on, before anything is read that goes into the index."""
        much = crowded or len(self._others) >= _FEW
        if self._snapshot is None and self._writable and much:
            with self._writing():
                self._snapshot = self._index.begin(self._facts())

    def _facts(self) -> dict[str, Any]:
        return {"others": [], "gone": [], "directory": None, "inode": self._inode}

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except CorruptRecordError:
            self._is_damaged = True  # the next listing begins anew
        except (OSError, QwfError) as error:
            # A store that may only be read, or a full disk: the next process reads all again.
            self._writable = isinstance(error, FileNotFoundError)
            _logger.debug("no index of %s is written: %s", self._directory, error)

    def _write_index(self, marks: dict[str, int], wanted: bool = False) -> None:
        """Put into the index what has ended, if it is much, or if there are too many marks."""
        if self._snapshot is None or not self._writable:
            return
        if wanted and not self._read:
            self._remove_spent(marks)
        much = len(self._read) >= _FEW or (wanted and bool(self._read))
        if not much and not self._is_worth_a_stamp(self._snapshot):
            return
        facts = self._facts()
        indexed = {one for segment in self._segments for one in segment.ids} | self._read.keys()
        facts["gone"] = sorted(indexed - self._known.keys())
        if len(self._others) + len(facts["gone"]) <= _MOST_OTHERS:
            facts["others"] = sorted(self._others)
            facts["directory"] = list(self._stamp or ()) if self._trusted else None
        rows = Rows(list(self._read.values())[::-1])  # the newest first, as they are shown
        with self._writing():
            written = self._index.commit(self._snapshot, rows, facts, without=facts["gone"])
            if written is not None:
                self._take(written)
                self._remove_spent(marks)

    def _is_worth_a_stamp(self, snapshot: Snapshot) -> bool:
        """Whether others would list many names in vain because the snapshot trusts no stamp."""
        return (
            self._trusted
            and len(self._names) > _MOST_OTHERS >= len(self._others)
            and snapshot.facts.get("directory") != list(self._stamp or ())
        )

    def _remove_spent(self, marks: dict[str, int]) -> None:
        """Remove the marks of revisions that the snapshot has."""
        with contextlib.suppress(OSError):
            for name in fsio.list_names(self._changes):
                parsed = layout.parse_change_mark(name)
                if parsed is not None and parsed[1] <= min(
                    marks.get(parsed[0], 0), self._known.get(parsed[0], 0)
                ):
                    fsio.remove_file(self._changes / name)


def _stamp_of(directory: Path) -> _Stamp:
    try:
        return fsio.stamp(directory)
    except (FileNotFoundError, NotADirectoryError):
        return None


def names_of(fact: object) -> set[str]:
    """Return the names that a fact of an index holds."""
    return set(fact) if isinstance(fact, list) else set()


# --- one catalog per experiment ----------------------------------------------------------------

_MOST_CATALOGS: Final = 64
_catalogs: OrderedDict[tuple[Path, str], Catalog] = OrderedDict()
_catalogs_lock = threading.Lock()


def _forget_catalogs() -> None:
    global _catalogs_lock
    _catalogs_lock = threading.Lock()
    _catalogs.clear()


# A thread of the parent may hold one of the locks at the moment of the fork.
os.register_at_fork(after_in_child=_forget_catalogs)


def catalog_of(store: Store, experiment_id: str) -> Catalog:
    """Return the catalog of an experiment, the same object while it is in use."""
    key = store.root, experiment_id
    with _catalogs_lock:
        found = _catalogs.pop(key, None) or Catalog(store, experiment_id)
        _catalogs[key] = found
        if len(_catalogs) > _MOST_CATALOGS:
            _catalogs.popitem(last=False)
    return found
