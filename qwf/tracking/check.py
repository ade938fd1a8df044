"""What is wrong in a store, and what can be set right without losing anything.

Repairing removes what unfinished writes left, finishes what was announced, writes anew what can be
derived, and moves damaged records and unknown files into ``quarantine/``. It never deletes what a
user has saved, and leaves damaged artifacts and files of a newer qwf where they are.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from ..errors import CorruptRecordError, FormatVersionError, UnsafeNameError
from ..storage import fsio, layout, lock
from ..storage.artifacts import measure_file
from ..storage.codec import load_json
from ..storage.documents import Document, encode_document, is_as_written, read_document
from ..storage.journal import read_journal, sound_lines, whole_size
from ..version import EXPERIMENT_FORMAT, STORE_FORMAT
from .metadata import (
    EXPERIMENT_KIND,
    STORE_KIND,
    ArtifactEntry,
    new_experiment,
    new_store,
    parse_artifact,
)
from .recorder import Recorder
from .store import Store

__all__ = ["Finding", "check_store"]

_CLAIM: Final = re.compile(r".+\.json\.\d+")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong in a store.

    Attributes
    ----------
    path : str
        Where, below the store.
    problem : str
    action : str
        What was done about it, or what can be done.
    repaired : bool
        Whether nothing of it is left.
    """

    path: str
    problem: str
    action: str
    repaired: bool = False


@dataclass(frozen=True)
class _Remedy:
    """What `--repair` would do, and the function that does it and tells what it did."""

    offer: str
    apply: Callable[[], str]


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
        Empty for a sound store.

    Notes
    -----
    Reads every artifact once, to compare its digest. May run beside writers.
    """
    examiner = _Examiner(root, repair=repair, older_than_seconds=older_than_seconds)
    return list(examiner.examine())


class _Examiner:
    def __init__(self, root: Path, *, repair: bool, older_than_seconds: float) -> None:
        self._root = root
        self._store = Store(root)
        self._repair = repair
        self._older_than = older_than_seconds
        self._now = _server_time(root)

    def examine(self) -> Iterator[Finding]:
        if not self._store.check_version():
            yield self._finding(self._root, "there is no store here", "name another directory")
            return
        path = self._root / layout.STORE_FILE
        yield from self._document(path, STORE_KIND, STORE_FORMAT, new_store)
        yield from self._leftovers()
        for name in sorted(fsio.list_names(self._root / layout.EXPERIMENTS)):
            directory = self._store.experiment_directory(name)
            yield from self._unless_deleted(directory, self._experiment(name))

    @staticmethod
    def _unless_deleted(directory: Path, findings: Iterator[Finding]) -> Iterator[Finding]:
        try:
            yield from findings
        except FileNotFoundError:
            if fsio.exists(directory):
                raise

    def _finding(self, path: Path, problem: str, remedy: _Remedy | str) -> Finding:
        where = path.relative_to(self._root).as_posix()
        if isinstance(remedy, str):
            return Finding(where, problem, remedy)
        if self._repair:
            return Finding(where, problem, remedy.apply(), repaired=True)
        return Finding(where, problem, f"--repair {remedy.offer}")

    # --- documents ---

    def _document(
        self, path: Path, kind: str, version: int, fresh: Callable[[], Document]
    ) -> Iterator[Finding]:
        """Look at a document that can be written anew without losing what a user has saved."""
        try:
            read_document(path, kind=kind, version=version)
            yield from self._as_written(path)
        except FileNotFoundError:
            yield self._finding(path, "it is missing", self._rewriting(path, fresh))
        except CorruptRecordError as error:
            yield self._finding(path, error.reason, self._rewriting(path, fresh))

    def _rewriting(self, path: Path, fresh: Callable[[], Document]) -> _Remedy:
        def apply() -> str:
            kept = f"; the old one is {self._copy_aside(path)}" if path.exists() else ""
            fsio.write_atomic(path, encode_document(fresh()))
            return f"it was written anew{kept}"

        return _Remedy("writes it anew", apply)

    def _as_written(self, path: Path) -> Iterator[Finding]:
        data = fsio.read_bytes(path)
        if is_as_written(data):
            return

        def apply() -> str:
            fsio.write_atomic(path, encode_document(load_json(data)))  # type: ignore[arg-type]  # parsed before
            return "it was accepted as it is"

        problem = "it does not match its checksum: edited by hand, or damaged"
        yield self._finding(path, problem, _Remedy("accepts it as it is", apply))

    # --- what unfinished writes left ---

    def _leftovers(self) -> Iterator[Finding]:
        for directory, names, files in os.walk(self._root):
            below = Path(directory).relative_to(self._root).parts
            claims = layout.ARTIFACTS not in below  # there, names are the user's
            for name in [*names, *files]:
                path = Path(directory, name)
                unfinished = fsio.is_temporary(name) or (claims and _CLAIM.fullmatch(name))
                if unfinished and self._is_old(path):
                    remedy = _Remedy("removes it", partial(self._remove, path))
                    yield self._finding(path, "an unfinished write left it", remedy)
            kept = (name for name in names if not fsio.is_temporary(name))
            names[:] = [name for name in kept if name != layout.QUARANTINE]

    def _is_old(self, path: Path) -> bool:
        try:
            return self._now - path.lstat().st_mtime >= self._older_than
        except FileNotFoundError:
            return False

    @staticmethod
    def _remove(path: Path) -> str:
        fsio.remove_tree(path)
        return "it was removed"

    # --- experiments and recorders ---

    def _experiment(self, name: str) -> Iterator[Finding]:
        directory = self._store.experiment_directory(name)
        path = directory / layout.EXPERIMENT_FILE
        try:
            if self._store.read_experiment(name) is None:
                return  # a foreign entry
        except FormatVersionError as error:
            yield self._finding(path, _newer(error), "upgrade qwf")
            return
        fresh = partial(new_experiment, name, layout.decode_name(name))
        yield from self._document(path, EXPERIMENT_KIND, EXPERIMENT_FORMAT, fresh)
        for recorder_id in sorted(fsio.list_names(directory / layout.RECORDERS)):
            place = self._store.recorder_directory(name, recorder_id)
            yield from self._unless_deleted(place, self._recorder(name, recorder_id))

    def _recorder(self, experiment_id: str, recorder_id: str) -> Iterator[Finding]:
        directory = self._store.recorder_directory(experiment_id, recorder_id)
        path = directory / layout.RECORDER_FILE
        try:
            document = self._store.read_recorder(experiment_id, recorder_id)
            if document is None:
                return  # a foreign entry
            self._store.parse(experiment_id, recorder_id, document)
        except FormatVersionError as error:
            yield self._finding(path, _newer(error), "upgrade qwf")
            return
        except CorruptRecordError as error:
            offer = "moves the recorder, artifacts and all, to quarantine/"
            yield self._finding(path, error.reason, _Remedy(offer, partial(self._park, directory)))
            return
        yield from self._as_written(path)
        yield from self._journals(directory, running=document["status"] == Recorder.STATUS_R)
        yield from self._artifacts(experiment_id, recorder_id)

    def _journals(self, directory: Path, *, running: bool) -> Iterator[Finding]:
        for name in sorted(filter(layout.is_metrics_file, fsio.list_names(directory))):
            path = directory / name
            remedy = _Remedy("keeps its sound lines", partial(self._keep_sound_lines, path))
            try:
                list(read_journal(path))
            except FormatVersionError as error:
                yield self._finding(path, _newer(error), "upgrade qwf")
                continue
            except CorruptRecordError as error:
                yield self._finding(path, error.reason, remedy)
                continue
            whole, size = whole_size(path)
            if whole < size and not running:
                problem = (
                    f"its last {size - whole} bytes are no whole entry: a process died while it "
                    "wrote them, or they are damaged"
                )
                yield self._finding(path, problem, remedy)

    def _keep_sound_lines(self, path: Path) -> str:
        kept = self._copy_aside(path)
        fsio.write_atomic(path, sound_lines(path))
        return f"its sound lines were kept; the old one is {kept}"

    # --- artifacts ---

    def _artifacts(self, experiment_id: str, recorder_id: str) -> Iterator[Finding]:
        directory = self._store.recorder_directory(experiment_id, recorder_id)
        root = directory / layout.ARTIFACTS

        def entries() -> dict[str, ArtifactEntry]:
            document = self._store.read_recorder(experiment_id, recorder_id)
            forms = {} if document is None else document["artifacts"]  # deleted meanwhile
            return {name: parse_artifact(form) for name, form in forms.items()}

        try:
            known = {layout.artifact_path(root, name): name for name in entries()}
        except UnsafeNameError as error:
            yield self._finding(directory / layout.RECORDER_FILE, str(error), "correct the name")
            return
        for path in sorted(root.rglob("*")):
            unnamed = path.is_file() and path not in known and not fsio.is_temporary(path.name)
            if unnamed and self._is_old(path):
                park = partial(self._park_unnamed, path, directory, entries)
                remedy = _Remedy("moves it to quarantine/", park)
                yield self._finding(path, "no entry of the recorder names it", remedy)
        for path, name in known.items():
            settle = partial(self._settle, path, name, (experiment_id, recorder_id), directory)
            yield from self._artifact(path, name, entries, settle)

    def _artifact(
        self,
        path: Path,
        name: str,
        entries: Callable[[], dict[str, ArtifactEntry]],
        settle: Callable[[], str],
    ) -> Iterator[Finding]:
        entry = entries().get(name)
        while entry is not None:
            found = measure_file(path) if path.exists() else None
            before, entry = entry, entries().get(name)
            if entry == before:  # else it was saved again meanwhile
                break
        if entry is None:
            return
        again = "save it again, or restore it from a copy"
        if found is None:
            yield self._finding(path, "the file of this artifact is missing", again)
        elif found not in entry.accepted:
            yield self._finding(path, f"damaged: {found}, recorded {entry.digest}", again)
        elif entry.replaces is not None and self._now - entry.since >= self._older_than:
            remedy = _Remedy("takes the file there as the artifact", settle)
            yield self._finding(path, "it was being overwritten", remedy)

    def _settle(self, path: Path, name: str, recorder: tuple[str, str], directory: Path) -> str:
        with lock.hold(directory / f".{layout.ARTIFACTS}.lock"):
            found = measure_file(path)

            def change(document: Document) -> Document:
                entry = parse_artifact(document["artifacts"][name])
                settled = (entry.settled(found) or entry).as_json()
                return {**document, "artifacts": {**document["artifacts"], name: settled}}

            self._store.update_recorder(*recorder, change)
        return "the file there is the artifact"

    def _park_unnamed(
        self, path: Path, directory: Path, entries: Callable[[], dict[str, ArtifactEntry]]
    ) -> str:
        root = directory / layout.ARTIFACTS
        with lock.hold(directory / f".{layout.ARTIFACTS}.lock"):
            if path in {layout.artifact_path(root, name) for name in entries()}:
                return "it has got an entry meanwhile"
            return self._park(path)

    # --- quarantine ---

    def _park(self, path: Path) -> str:
        return f"it was moved to {self._set_aside(path)}"

    def _set_aside(self, path: Path) -> str:
        """Move an entry to the quarantine and return where it is, below the store."""
        name = self._quarantine_name(path)
        fsio.move(path, self._root / layout.QUARANTINE / name)
        return f"{layout.QUARANTINE}/{name}"

    def _copy_aside(self, path: Path) -> str:
        """Copy a file to the quarantine, so that at every moment there is one of them."""
        target = self._root / layout.QUARANTINE / self._quarantine_name(path)
        copied, _, _ = fsio.copy_whole(path, target)
        fsio.replace_with(copied, target)
        return f"{layout.QUARANTINE}/{target.name}"

    def _quarantine_name(self, path: Path) -> str:
        fsio.make_directories(self._root / layout.QUARANTINE)
        return layout.trash_name(path.relative_to(self._root).as_posix().replace("/", "@"))


def _server_time(root: Path) -> float:
    try:
        return fsio.server_time(root / layout.STORE_FILE)
    except OSError:  # a store that may only be read: nobody writes to it either
        return time.time()


def _newer(error: FormatVersionError) -> str:
    return f"it has format version {error.found}, newer than this qwf reads ({error.readable})"
