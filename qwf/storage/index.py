"""A derived index of rows: what was read once need not be read again, by any process or node.

An index is a directory of files of columns (`columns`) and of numbered manifests, each of which
says which of those files hold, and what the owner of the index wants to know beside them. A
manifest is never replaced: the next one gets the next number by `link`, so of two that build on
the same one only one is kept, and nobody needs a lock. Later files win over earlier ones, row by
row. Losing the directory, or finding it damaged, costs time only: somebody begins anew, with an
empty snapshot *before* reading what goes into the next, so that nothing can be published that was
read before others have published something newer.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..errors import CorruptRecordError, FormatVersionError
from ..types import Json
from ..version import INDEX_FORMAT
from . import fsio
from .columns import ColumnFile, Key, encode_columns
from .documents import encode_document, is_as_written, new_document, parse_document
from .reading import read_whole

__all__ = ["ID", "REVISION", "Index", "Rows", "Snapshot"]

# The two columns that every row has.
ID: Final = ("row", "id")
REVISION: Final = ("row", "revision")

_KIND: Final = "qwf-index"
_MANIFEST: Final = "manifest."
_COLUMNS: Final = "columns."

# A file of columns that no manifest names belongs to one that was never committed. Its writer is
# given this long on the file server's clock.
_ORPHAN_SECONDS: Final = 600.0

# How often to look again when manifests or files vanish because a newer one has come.
_ATTEMPTS: Final = 10


class Rows:
    """Rows in memory, with the columns that a `ColumnFile` has on disk."""

    def __init__(self, rows: Sequence[Mapping[Key, Any]]) -> None:
        self.rows = len(rows)
        self._columns: dict[Key, list[Any]] = {}
        for number, row in enumerate(rows):
            for key, value in row.items():
                column = self._columns.get(key)
                if column is None:
                    column = self._columns[key] = [None] * self.rows
                column[number] = value

    def keys(self, family: str) -> list[str]:
        """Return the keys of a family that any row has, in the order in which they come."""
        return [key for of, key in self._columns if of == family]

    def column(self, family: str, key: str) -> list[Any]:
        """Return one value per row; None where there is none."""
        values = self._columns.get((family, key))
        return [None] * self.rows if values is None else values


@dataclass(frozen=True)
class Snapshot:
    """What one manifest says.

    Attributes
    ----------
    number : int
    origin : int
        The number of the one that began anew; all that build on it have the same.
    facts : dict
        What the owner has noted.
    files : tuple of ColumnFile
        Oldest first; a row of a later one replaces that of an earlier one.
    """

    number: int
    origin: int
    facts: dict[str, Json]
    files: tuple[ColumnFile, ...]

    def revisions(self) -> dict[str, int]:
        """Return the revision of each row, by id."""
        found: dict[str, int] = {}
        for file in self.files:
            found.update(zip(file.column(*ID), file.column(*REVISION), strict=True))
        return found


class Index:
    """The index in one directory, which need not exist.

    Parameters
    ----------
    directory : Path
    families : sequence of str
        Of the columns, besides those of `ID` and `REVISION`.
    """

    def __init__(self, directory: Path, families: Sequence[str]) -> None:
        self.directory = directory
        self._families = ("row", *families)
        self._seen = 0  # the highest number when it was looked for last

    def newest(self, known: Snapshot | None = None) -> Snapshot | None:
        """Return the newest snapshot; `known` itself if that is still it.

        None when there is no index, or when it cannot be read: it is then written anew.

        Notes
        -----
        One listing of a directory when nothing has changed.
        """
        for _ in range(_ATTEMPTS):
            try:
                names = fsio.list_names(self.directory)
            except OSError:  # a colleague's, who has closed it to others, or no directory
                return None
            number = self._seen = _highest(names)
            if number == 0:
                if any(name.startswith(_COLUMNS) for name in names):
                    continue  # one went and another came while the names were listed
                return None
            if known is not None and number == known.number:
                if {file.path.name for file in known.files}.issubset(names):
                    return known
                known = None  # somebody has removed the index, and others have made another
            try:
                return self._load(number)
            except FileNotFoundError:
                continue  # there is a newer one
            except (OSError, CorruptRecordError, FormatVersionError):
                return None
        return None

    def _load(self, number: int) -> Snapshot:
        path = self._manifest(number)
        data = read_whole(path)
        if not is_as_written(data):
            raise CorruptRecordError(path, "it does not match its checksum")
        document = parse_document(data, path, kind=_KIND, version=INDEX_FORMAT)
        try:
            names, origin, facts = document["files"], document["origin"], document["facts"]
        except KeyError as error:
            raise CorruptRecordError(path, f"it has no field {error}") from error
        files = tuple(ColumnFile(self.directory / name) for name in names)
        return Snapshot(number, origin, facts, files)

    def verify(self) -> None:
        """Read all of the newest snapshot.

        Raises
        ------
        CorruptRecordError
            If a part of it is damaged.
        """
        for _ in range(_ATTEMPTS):
            number = _highest(fsio.list_names(self.directory))
            try:
                for file in self._load(number).files if number else ():
                    file.verify()
            except FileNotFoundError as error:
                missing = error
                continue
            return
        raise CorruptRecordError(self.directory, f"a file of it is missing ({missing})")

    def begin(self, facts: dict[str, Json]) -> Snapshot | None:
        """Publish a snapshot without rows, in the place of whatever there is.

        To be called when `newest` has found nothing, before what is to be committed is read.

        Returns
        -------
        Snapshot or None
            What to build on. None if somebody else has published one since.
        """
        fsio.make_directories(self.directory)
        names = fsio.list_names(self.directory)
        if _highest(names) != self._seen:
            return None
        # By the clock, so that what a late one adds to an index that was removed is not newer.
        number = max(self._seen + 1, time.time_ns() // 1_000_000)
        snapshot = Snapshot(number, number, facts, ())
        if not self._publish(snapshot):
            return None
        self._tidy(names, snapshot)
        return snapshot

    def commit(
        self,
        base: Snapshot,
        rows: Rows,
        facts: dict[str, Json],
        *,
        without: Collection[str] = (),
    ) -> Snapshot | None:
        """Add rows to a snapshot, unless others have added to it before.

        Parameters
        ----------
        base : Snapshot
            What the new one builds on.
        rows : Rows
            Replace those of the same id. They were read after `base` was.
        facts : dict
            Replace those of `base`.
        without : collection of str
            Ids whose rows are not needed any more.

        Returns
        -------
        Snapshot or None
            None if somebody was faster, or has removed the index. When it returns one, no older
            one is left.

        Raises
        ------
        CorruptRecordError
            If a file of the index that was to be merged is damaged.

        Notes
        -----
        *Readers* see the old or the new snapshot. *A crash* leaves the old one, and maybe files
        that a later commit removes. Files are merged so that there are few: each is at least
        twice as large as the next, so a row is written again about log2(rows) times.
        """
        names = fsio.list_names(self.directory)
        kept, merged = self._split(base.files, rows.rows)
        if _highest(names) != base.number or not {file.path.name for file in base.files}.issubset(
            names
        ):
            return None
        files = list(kept)
        if rows.rows or merged:
            files.append(self._write([*merged, rows], without))
        snapshot = Snapshot(base.number + 1, base.origin, facts, tuple(files))
        if not self._publish(snapshot):
            for file in files[len(kept) :]:
                fsio.remove_file(file.path)
            return None
        if not self._is_newest(snapshot, base):
            fsio.remove_file(self._manifest(snapshot.number))
            return None
        self._tidy(names, snapshot)
        return snapshot

    def _publish(self, snapshot: Snapshot) -> bool:
        document = new_document(
            _KIND,
            INDEX_FORMAT,
            origin=snapshot.origin,
            facts=snapshot.facts,
            files=[file.path.name for file in snapshot.files],
        )
        path = self._manifest(snapshot.number)
        return fsio.create_whole(path, encode_document(document), durable=False)

    def _manifest(self, number: int) -> Path:
        return self.directory / f"{_MANIFEST}{number}"

    def _is_newest(self, snapshot: Snapshot, base: Snapshot) -> bool:
        """Whether a snapshot that was published holds, and nothing older is left.

        Its number is free again when others have gone further and have tidied up, or when the
        whole index was removed meanwhile. Older manifests are removed here, so that nobody can
        come upon one again when the newest is removed: its owner relies on the newest.
        """
        names = fsio.list_names(self.directory)
        if _highest(names) > snapshot.number or self._manifest(base.number).name not in names:
            return False
        for name in names:
            if 0 < _number(name) < snapshot.number:
                fsio.remove_file(self.directory / name)
        return True

    @staticmethod
    def _split(
        files: Sequence[ColumnFile], rows: int
    ) -> tuple[Sequence[ColumnFile], Sequence[ColumnFile]]:
        """Return the files to keep, and those to merge with the new rows."""
        first = len(files)
        while first and files[first - 1].rows < 2 * rows:
            first -= 1
            rows += files[first].rows
        return files[:first], files[first:]

    def _write(self, parts: Sequence[ColumnFile | Rows], without: Collection[str]) -> ColumnFile:
        seen = set(without)
        selected: list[tuple[ColumnFile | Rows, list[int]]] = []
        for part in reversed(parts):
            ids = part.column(*ID)
            selected.append((part, [row for row, one in enumerate(ids) if one not in seen]))
            seen.update(ids)
        count = sum(len(positions) for _, positions in selected)
        columns = {key: _gathered(selected, key) for key in self._keys(parts)}
        path = self.directory / f"{_COLUMNS}{secrets.token_hex(8)}"
        fsio.write_atomic(path, encode_columns(columns, count), durable=False)
        return ColumnFile(path)

    def _keys(self, parts: Iterable[ColumnFile | Rows]) -> list[Key]:
        found: dict[Key, None] = {ID: None, REVISION: None}
        for part in parts:
            for family in self._families:
                found.update(dict.fromkeys((family, key) for key in part.keys(family)))
        return list(found)

    def _tidy(self, names: Iterable[str], snapshot: Snapshot) -> None:
        """Remove what the newest snapshot does not need; that it is gone harms nobody."""
        needed = {file.path.name for file in snapshot.files}
        with contextlib.suppress(OSError):
            now = fsio.modified_at(self._manifest(snapshot.number))
            for name in names:
                path = self.directory / name
                old = 0 < _number(name) < snapshot.number
                if name.startswith(_COLUMNS) and name not in needed:
                    # Merged ones are taken for orphans too: a reader may still be at them.
                    old = now - fsio.modified_at(path) > _ORPHAN_SECONDS
                if old:
                    fsio.remove_file(path)


def _highest(names: Iterable[str]) -> int:
    return max(map(_number, names), default=0)


def _number(name: str) -> int:
    number = name.removeprefix(_MANIFEST)
    return int(number) if number != name and number.isdecimal() else 0


def _gathered(selected: Sequence[tuple[ColumnFile | Rows, list[int]]], key: Key) -> list[Any]:
    values: list[Any] = []
    for part, positions in selected:
        column = part.column(*key)
        values += column if len(positions) == part.rows else [column[row] for row in positions]
    return values
