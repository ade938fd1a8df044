"""What is wrong in a store, and what can be set right without losing anything.

Repairing removes what unfinished writes left, finishes what was announced, and moves what is
damaged or unknown into ``quarantine/``; it never deletes what a user has saved.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from ..errors import QwfError
from ..storage import fsio, layout
from ..storage.artifacts import measure
from ..storage.documents import Document, is_as_written
from ..storage.journal import whole_size
from .metadata import ArtifactEntry, parse_artifact
from .metrics import read_observations
from .recorder import Recorder
from .store import Store

__all__ = ["Finding", "check_store"]

_CLAIM: Final = re.compile(r".+\.json\.\d+")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: `path` below the store, what it is, and whether it was repaired."""

    path: str
    problem: str
    repaired: bool = False


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

    def examine(self) -> Iterator[Finding]:
        if not self._store.check_version():
            yield self._finding(self._root / layout.STORE_FILE, "there is no store here")
            return
        yield from self._as_written(self._root / layout.STORE_FILE)
        yield from self._leftovers()
        experiments = self._root / layout.EXPERIMENTS
        for name in sorted(fsio.list_names(experiments)):
            yield from self._experiment(name)

    def _finding(
        self, path: Path, problem: str, mend: Callable[[], object] | None = None
    ) -> Finding:
        if self._repair and mend is not None:
            mend()
            return Finding(self._relative(path), problem, repaired=True)
        return Finding(self._relative(path), problem)

    def _relative(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()

    def _as_written(self, path: Path) -> Iterator[Finding]:
        if not is_as_written(fsio.read_bytes(path)):
            yield self._finding(path, "it does not match its checksum: damaged, or edited by hand")

    def _leftovers(self) -> Iterator[Finding]:
        for directory, names, files in os.walk(self._root):
            claims = layout.ARTIFACTS not in Path(directory).parts  # there, names are the user's
            for name in [*names, *files]:
                if fsio.is_temporary(name) or (claims and _CLAIM.fullmatch(name)):
                    yield from self._leftover(Path(directory, name))
            names[:] = [
                one for one in names if not fsio.is_temporary(one) and one != layout.QUARANTINE
            ]

    def _leftover(self, path: Path) -> Iterator[Finding]:
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.lstat().st_mtime >= self._older_than:
                yield self._finding(
                    path, "an unfinished write left it", lambda: fsio.remove_tree(path)
                )

    def _experiment(self, name: str) -> Iterator[Finding]:
        directory = self._store.experiment_directory(name)
        try:
            if self._store.read_experiment(name) is None:
                return  # a foreign entry
        except QwfError as error:
            path = directory / layout.EXPERIMENT_FILE
            yield self._finding(path, str(error))
            return
        yield from self._as_written(directory / layout.EXPERIMENT_FILE)
        for recorder_id in sorted(fsio.list_names(directory / layout.RECORDERS)):
            yield from self._recorder(name, recorder_id)

    def _recorder(self, experiment_id: str, recorder_id: str) -> Iterator[Finding]:
        directory = self._store.recorder_directory(experiment_id, recorder_id)
        try:
            document = self._store.read_recorder(experiment_id, recorder_id)
            if document is None:
                return  # a foreign entry
            self._store.parse(experiment_id, recorder_id, document)
        except QwfError as error:
            yield self._finding(
                directory / layout.RECORDER_FILE, str(error), lambda: self._set_aside(directory)
            )
            return
        yield from self._as_written(directory / layout.RECORDER_FILE)
        if document["status"] != Recorder.STATUS_R:
            yield from self._torn_journals(directory)
        try:
            list(read_observations(directory))
        except QwfError as error:
            yield self._finding(directory, str(error))
        yield from self._artifacts(experiment_id, recorder_id, document)

    def _torn_journals(self, directory: Path) -> Iterator[Finding]:
        for name in sorted(filter(layout.is_metrics_file, fsio.list_names(directory))):
            path = directory / name
            whole, size = whole_size(path)
            if whole < size:
                yield self._finding(
                    path,
                    f"its last {size - whole} bytes are no whole entry: a process died while "
                    "it wrote them, or they are damaged",
                    partial(self._cut, path, whole),
                )

    def _cut(self, path: Path, size: int) -> None:
        data = fsio.read_bytes(path)
        self._set_aside(path)
        fsio.write_atomic(path, data[:size])

    def _artifacts(
        self, experiment_id: str, recorder_id: str, document: Document
    ) -> Iterator[Finding]:
        root = self._store.recorder_directory(experiment_id, recorder_id) / layout.ARTIFACTS
        entries = {name: parse_artifact(form) for name, form in document["artifacts"].items()}
        known = {layout.artifact_path(root, name): name for name in entries}
        for path in sorted(root.rglob("*")):
            if path.is_file() and path not in known and not fsio.is_temporary(path.name):
                yield self._finding(
                    path,
                    "no entry of the recorder names it",
                    partial(self._set_aside, path),
                )
        for path, name in known.items():
            yield from self._artifact(path, name, entries[name], (experiment_id, recorder_id))

    def _artifact(
        self, path: Path, name: str, entry: ArtifactEntry, recorder: tuple[str, str]
    ) -> Iterator[Finding]:
        try:
            found = measure(fsio.read_bytes(path))
        except FileNotFoundError:
            yield self._finding(path, "the file of this artifact is missing")
            return
        if found not in entry.accepted:
            yield self._finding(path, f"damaged: {found}, recorded {entry.digest}")
        elif entry.replaces is not None:
            settled = ArtifactEntry(entry.kind, found).as_json()

            def settle(document: Document) -> Document:
                return {**document, "artifacts": {**document["artifacts"], name: settled}}

            yield self._finding(
                path,
                "it was being overwritten",
                lambda: self._store.update_recorder(*recorder, settle),
            )

    def _set_aside(self, path: Path) -> None:
        quarantine = self._root / layout.QUARANTINE
        fsio.make_directories(quarantine)
        flat = self._relative(path).replace("/", "@")[-150:]
        fsio.move(path, quarantine / layout.trash_name(flat))
