"""The artifacts of one recorder: files under ``artifacts/``, known by the entries of its record.

The record decides what exists. A new artifact's file is in place before its entry is committed; an
overwritten one is first announced (its entry holds both digests), then replaced, then settled. At
every moment, and after a crash at any of them, the file is whole and its digest is a recorded one.

Names are taken by ``link``, which never replaces, and an announced artifact belongs to who has
announced it, so that writers exclude each other also where locks do not.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ..errors import (
    ArtifactCorruptError,
    ArtifactNotFoundError,
    LockTimeoutError,
    NotDurableError,
    QwfError,
    UnsafeNameError,
    WriteError,
)
from ..storage import fsio, layout, lock, trees
from ..storage.artifacts import FILE, Digest, dump_object, load_object, measure, measure_file
from ..storage.documents import Document
from .metadata import ArtifactEntry, parse_artifact

__all__ = ["ArtifactArea", "Staged", "files_below", "joined"]

# A reader that meets a writer looks again; a writer that overwrites without pause could always win.
_READ_ATTEMPTS: Final = 20

_logger: Final = logging.getLogger("qwf.tracking")


def joined(artifact_path: str | None, name: str) -> str:
    """Return the name of an artifact below an artifact path."""
    return f"{artifact_path.rstrip('/')}/{name}" if artifact_path else name


def files_below(directory: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files below a directory of the user's, each with its name relative to it."""
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            yield path.relative_to(directory).as_posix(), path


@dataclass(frozen=True)
class Staged:
    """An artifact whose bytes are in a durable private file, not yet under its name."""

    name: str
    path: Path
    temporary: Path
    entry: ArtifactEntry


@contextlib.contextmanager
def _dropping_on_error(staged: Iterable[Staged]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for one in staged:
            fsio.drop_private(one.temporary)
        raise


class ArtifactArea:
    """The artifacts below one recorder's directory.

    Parameters
    ----------
    directory : Path
        The recorder's directory.
    read : callable
        Returns the recorder's present document.
    update : callable
        Commits a change of it and returns it.
    """

    def __init__(
        self,
        directory: Path,
        *,
        read: Callable[[], Document],
        update: Callable[[Callable[[Document], Document]], Document],
    ) -> None:
        self.directory = directory
        self.root = directory / layout.ARTIFACTS
        self._read = read
        self._update = update

    def entries(self) -> dict[str, ArtifactEntry]:
        """Return what the record says of each artifact."""
        forms = self._read()["artifacts"]
        return {name: parse_artifact(form) for name, form in forms.items()}

    # --- writing ---

    def save_objects(self, objects: Mapping[str, Any]) -> None:
        """Save objects under names; if one cannot be saved, none is."""
        _refuse_collisions(objects, self._read()["artifacts"])
        encoded = {name: dump_object(name, obj) for name, obj in objects.items()}
        staged: list[Staged] = []
        with _dropping_on_error(staged):
            for name, (kind, data) in encoded.items():
                path = self._prepared(name)
                temporary = fsio.write_temporary(path, data)
                staged.append(Staged(name, path, temporary, ArtifactEntry(kind, measure(data))))
            self._publish(staged)

    def save_files(self, files: Mapping[str, Path]) -> None:
        """Copy the user's files to names; if one cannot be read, none is kept."""
        _refuse_collisions(files, self._read()["artifacts"])
        staged: list[Staged] = []
        with _dropping_on_error(staged):
            for name, source in files.items():
                path = self._prepared(name)
                temporary, size, sha256 = trees.copy_whole(source, path)
                entry = ArtifactEntry(FILE, Digest(size, sha256))
                staged.append(Staged(name, path, temporary, entry))
            self._publish(staged)

    def _prepared(self, name: str) -> Path:
        path = layout.artifact_path(self.root, name)
        for place in (path, *path.parents):
            if place == self.directory:
                break
            if place.is_symlink():
                raise UnsafeNameError("an artifact", name, f"{place} is a link out of the store")
        fsio.make_directories(path.parent)
        return path

    def _publish(self, staged: list[Staged]) -> None:
        """Give staged artifacts their names, and commit their entries, all at once."""
        if not staged:
            return
        lock_path = self.directory / f".{layout.ARTIFACTS}.lock"
        patience = lock.Patience(self.directory / layout.ARTIFACTS, lock.LOCK_SECONDS)
        placed: set[str] = set()
        with lock.hold(lock_path), self._withdrawing_on_error(staged, placed):
            while not self._announced(staged, placed):
                patience.wait()
            for one in staged:
                if one.name in placed:
                    _keep(one)
            overwriting = [one for one in staged if one.name not in placed]
            if overwriting:
                self._overwrite(overwriting)

    @contextlib.contextmanager
    def _withdrawing_on_error(self, staged: list[Staged], placed: set[str]) -> Iterator[None]:
        """Take back names that were given to new artifacts whose entries were not committed."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError, QwfError):
                left = placed - self.entries().keys()
                for one in staged:
                    if one.name in left and fsio.is_same_file(one.temporary, one.path):
                        fsio.remove_file(one.path)
            raise

    def _announced(self, staged: list[Staged], placed: set[str]) -> bool:
        """Place what is new and commit all entries; False while another writer is in the way."""
        known = self.entries()
        _refuse_collisions([one.name for one in staged], known)
        for one in staged:
            if not self._is_ours(one, known.get(one.name), placed):
                return False
        for parent in {one.path.parent for one in staged if one.name in placed}:
            fsio.secure_names(parent, parent)
        overwrites = any(one.name in known for one in staged)  # only those say since when
        since = fsio.server_time(self.directory / layout.RECORDER_FILE) if overwrites else 0.0
        forms = {}
        for one in staged:
            before = _on_disk(one.path, known[one.name]) if one.name in known else None
            forms[one.name] = replace(one.entry, replaces=before, since=since).as_json()
        return self._commit(known, forms)

    def _is_ours(self, one: Staged, entry: ArtifactEntry | None, placed: set[str]) -> bool:
        """Whether this writer may go on with an artifact: its name is taken, or nobody is at it."""
        if entry is None:
            if one.name in placed or _take_name(one):
                placed.add(one.name)
                return True
            return False
        if one.name in placed:  # we slept so long that our file was dropped and another saved
            raise LockTimeoutError(one.path, lock.ABANDONED_SECONDS)
        record = self.directory / layout.RECORDER_FILE
        return entry.replaces is None or lock.is_abandoned(record, since=entry.since)

    def _commit(self, known: Mapping[str, ArtifactEntry], forms: Mapping[str, Any]) -> bool:
        """Commit entries if those there are still the known ones."""
        seen = {name: known[name].as_json() if name in known else None for name in forms}

        def change(document: Document) -> Document:
            present = document["artifacts"]
            if any(present.get(name) != form for name, form in seen.items()):
                raise _OvertakenError
            return {**document, "artifacts": {**present, **forms}}

        try:
            self._update(change)
        except _OvertakenError:
            return False
        except NotDurableError as error:
            # No file may be replaced on the word of an announcement that may be lost.
            self._take_back(seen, forms)
            raise WriteError(error.path, error) from error
        return True

    def _take_back(self, seen: Mapping[str, Any], forms: Mapping[str, Any]) -> None:
        """Undo the commit of entries, but for those that others have changed since."""

        def change(document: Document) -> Document:
            present = dict(document["artifacts"])
            for name, form in forms.items():
                if present.get(name) == form:
                    del present[name]
                    if seen[name] is not None:
                        present[name] = seen[name]
            return {**document, "artifacts": present}

        with contextlib.suppress(NotDurableError):  # it is in effect
            self._update(change)

    def _overwrite(self, staged: list[Staged]) -> None:
        """Replace the files of announced artifacts, and settle their entries."""
        before = self.entries()
        try:
            for one in staged:
                if before[one.name].digest == one.entry.digest:  # else we were taken for dead
                    fsio.replace_with(one.temporary, one.path, durable=False)
                else:
                    fsio.drop_private(one.temporary)
            for parent in {one.path.parent for one in staged}:
                fsio.fsync_directory(parent)
        except OSError:
            with contextlib.suppress(OSError, QwfError):
                self._settle(staged)  # each by what is on disk now: some old, some new
            raise
        try:
            with contextlib.suppress(NotDurableError):  # at the worst they are announced again
                self._settle(staged)
        except OSError as error:
            # The artifacts are saved: their entries accept the new bytes. Whoever saves them next
            # settles the entries, and so does the check.
            _logger.warning("the artifacts are saved, but their entries stay announced: %s", error)

    def _settle(self, staged: list[Staged]) -> None:
        """Make the entries say which bytes are there."""
        on_disk = {one.name: measure_file(one.path) for one in staged if fsio.exists(one.path)}

        def change(document: Document) -> Document:
            present = dict(document["artifacts"])
            for one in staged:
                entry, found = parse_artifact(present[one.name]), on_disk.get(one.name)
                if found == one.entry.digest:  # also if others have announced theirs meanwhile
                    present[one.name] = one.entry.as_json()
                elif entry.digest == one.entry.digest and found is not None:
                    present[one.name] = (entry.settled(found) or entry).as_json()
            return {**document, "artifacts": present}

        self._update(change)

    # --- reading ---

    def load(self, name: str, **reading: Any) -> Any:
        """Load an artifact; `reading` is passed to `qwf.storage.artifacts.load_object`."""
        return self._settled(name, lambda path, entry: load_object(path, entry.accepted, **reading))

    def verified_path(self, name: str) -> Path:
        """Return the file that holds an artifact, once its bytes are those recorded."""

        def check(path: Path, entry: ArtifactEntry) -> Path:
            found = measure_file(path)
            if found not in entry.accepted:
                raise ArtifactCorruptError(path, expected=str(entry.digest), found=str(found))
            return path

        return self._settled(name, check)  # type: ignore[no-any-return]  # what `check` returns

    def _settled(self, name: str, read: Callable[[Path, ArtifactEntry], Any]) -> Any:
        """Read one artifact; if its entry changed meanwhile, read again."""
        path = layout.artifact_path(self.root, name)
        entry = self._entry(name)
        for _ in range(_READ_ATTEMPTS):
            try:
                return read(path, entry)
            except (ArtifactCorruptError, FileNotFoundError) as error:
                before, entry = entry, self._entry(name)
                if entry == before:
                    raise self._damage(path, entry, error) from error
        return read(path, entry)

    @staticmethod
    def _damage(path: Path, entry: ArtifactEntry, error: Exception) -> Exception:
        if isinstance(error, ArtifactCorruptError):
            return error
        return ArtifactCorruptError(path, expected=str(entry.digest), found="the file is missing")

    def _entry(self, name: str) -> ArtifactEntry:
        entries = self.entries()
        if name not in entries:
            raise ArtifactNotFoundError(name, recorder=self.directory.name, known=list(entries))
        return entries[name]

    def list_below(self, artifact_path: str | None = None) -> list[str]:
        """Return names of artifacts and directories one level below a path, sorted."""
        prefix = f"{artifact_path.strip('/')}/" if artifact_path else ""
        below = (name for name in self._read()["artifacts"] if name.startswith(prefix))
        return sorted({prefix + name[len(prefix) :].partition("/")[0] for name in below})

    def copy_out(self, name: str, target: Path) -> Path:
        """Copy an artifact, or a directory of them, to a directory of the user's."""
        names = self._names_at(name)
        for one in names:
            destination = target.joinpath(*layout.split_artifact_name(one))
            fsio.make_directories(destination.parent)
            copied, _, _ = trees.copy_whole(self.verified_path(one), destination)
            fsio.replace_with(copied, destination, durable=False)
        return target.joinpath(*layout.split_artifact_name(name))

    def path_of(self, name: str) -> Path:
        """Return where an artifact, or a directory of them, lies in the store."""
        for one in self._names_at(name):
            self.verified_path(one)
        return layout.artifact_path(self.root, name)

    def _names_at(self, name: str) -> list[str]:
        known = self.entries()
        if name in known:
            return [name]
        layout.split_artifact_name(name)
        inside = [one for one in known if one.startswith(f"{name}/")]
        if not inside:
            raise ArtifactNotFoundError(name, recorder=self.directory.name, known=list(known))
        return inside


def _refuse_collisions(names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names that are none, or would have to be a file and a directory at once."""
    wanted, present = list(names), set(known)
    files = present.union(wanted)
    directories = {parent: name for name in files for parent in _parents(name)}
    for name in wanted:
        layout.split_artifact_name(name)
        inside = next((parent for parent in _parents(name) if parent in files), None)
        other = directories.get(name) or inside
        if other is not None:
            reason = f"there is {other!r}, and one name cannot be a file and a directory"
            raise UnsafeNameError("an artifact", name, reason)


def _parents(name: str) -> Iterator[str]:
    position = name.find("/")
    while position >= 0:
        yield name[:position]
        position = name.find("/", position + 1)


class _OvertakenError(Exception):
    """Another writer has changed an entry since it was read."""


def _take_name(staged: Staged) -> bool:
    """Give a new artifact its name; False while a file of another writer has it."""
    trees.remove_empty_directories(staged.path)  # left by a write that failed below this name
    if fsio.create_exclusive(staged.temporary, staged.path, durable=False):
        return True
    with contextlib.suppress(FileNotFoundError):
        if lock.is_abandoned(staged.path):  # no entry names it: its writer died before that
            fsio.remove_file(staged.path)
    return False


def _keep(staged: Staged) -> None:
    """Drop the private name of a new artifact; put the file back if somebody has dropped it."""
    if fsio.is_same_file(staged.temporary, staged.path):
        fsio.drop_private(staged.temporary)
    else:
        fsio.replace_with(staged.temporary, staged.path)


def _on_disk(path: Path, entry: ArtifactEntry) -> ArtifactEntry | None:
    """Return what is there now, before it is replaced."""
    if entry.replaces is None:
        return entry
    try:  # an earlier overwrite was cut off: the file tells on which side of its rename
        return entry.settled(measure_file(path))
    except FileNotFoundError:
        return None
