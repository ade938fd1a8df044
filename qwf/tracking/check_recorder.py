"""What is wrong in the directory of one recorder: its record, journals and artifacts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ..errors import CorruptRecordError, FormatVersionError, UnsafeNameError
from ..storage import fsio, layout, lock
from ..storage.artifacts import measure_file
from ..storage.documents import Document, is_as_written
from ..storage.findings import UPGRADE, Finding, Remedy, Workbench, newer
from ..storage.journal import read_journal, sound_lines, whole_size
from .liveness import Observer
from .metadata import ArtifactEntry, RecorderRecord, parse_artifact
from .recorder import Recorder
from .status import RUNNING
from .store import Store

__all__ = ["RecorderCheck"]


class RecorderCheck:
    """The check of one recorder.

    Parameters
    ----------
    bench : Workbench
    store : Store
    experiment_id, recorder_id : str
    """

    def __init__(
        self, bench: Workbench, store: Store, experiment_id: str, recorder_id: str
    ) -> None:
        self._bench, self._store = bench, store
        self._experiment_id, self._recorder_id = experiment_id, recorder_id
        self._directory = store.recorder_directory(experiment_id, recorder_id)

    def findings(self) -> Iterator[Finding]:
        """Yield what is wrong; each is set right, if that is wanted, when it is yielded."""
        path = self._directory / layout.RECORDER_FILE
        try:
            document = self._store.read_recorder(self._experiment_id, self._recorder_id)
            if document is None:
                yield self._without_record()
                return
            record = self._store.parse(self._experiment_id, self._recorder_id, document)
        except FormatVersionError as error:
            yield self._bench.finding(path, newer(error), UPGRADE)
            return
        except CorruptRecordError as error:
            remedy = self._bench.parking(self._directory, "the recorder, artifacts and all,")
            yield self._bench.finding(path, error.reason, remedy)
            return
        yield from self._as_written(path)
        yield from self._life(path, record)
        yield from self._journals(running=record.status == RUNNING)
        yield from self._artifacts()

    def _without_record(self) -> Finding:
        names = fsio.list_names(self._directory)
        if layout.ARTIFACTS not in names and not any(map(layout.is_metrics_file, names)):
            return self._bench.foreign(self._directory)
        remedy = self._bench.parking(self._directory, "what is left of the recorder")
        path = self._directory / layout.RECORDER_FILE
        return self._bench.finding(path, "it is missing, beside what a run has saved", remedy)

    def _as_written(self, path: Path) -> Iterator[Finding]:
        if is_as_written(fsio.read_bytes(path)):
            return

        def apply() -> str:
            # As a change of its own, so that the index is told too.
            self._store.update_recorder(self._experiment_id, self._recorder_id, dict)
            return "it was accepted as it is"

        problem = "it does not match its checksum: edited by hand, or damaged"
        yield self._bench.finding(path, problem, Remedy("accepts it as it is", apply))

    def _life(self, path: Path, record: RecorderRecord) -> Iterator[Finding]:
        if record.status != RUNNING or not Observer().is_lost(record.sessions, path):
            return
        last = record.sessions[-1]

        def apply() -> str:
            recorder = Recorder(self._store, self._experiment_id)
            recorder.id = self._recorder_id
            recorder.end_run(Recorder.STATUS_FA)
            return "it was ended FAILED"

        problem = (
            f"its process {last.get('pid')} on {last.get('host')} has died and left it RUNNING"
        )
        yield self._bench.finding(path, problem, Remedy("ends it FAILED", apply))

    # --- journals ---

    def _journals(self, *, running: bool) -> Iterator[Finding]:
        for name in sorted(filter(layout.is_metrics_file, fsio.list_names(self._directory))):
            path = self._directory / name
            remedy = Remedy("keeps its sound lines", partial(self._keep_sound_lines, path))
            try:
                for _ in read_journal(path):
                    pass
            except FormatVersionError as error:
                yield self._bench.finding(path, newer(error), UPGRADE)
                continue
            except CorruptRecordError as error:
                yield self._bench.finding(path, error.reason, remedy)
                continue
            whole, size = whole_size(path)
            if whole < size and not running:
                problem = (
                    f"its last {size - whole} bytes are no whole entry: a process died while it "
                    "wrote them, or they are damaged"
                )
                yield self._bench.finding(path, problem, remedy)

    def _keep_sound_lines(self, path: Path) -> str:
        kept = self._bench.copy_aside(path)
        fsio.write_atomic(path, sound_lines(path))
        return f"its sound lines were kept; the old one is {kept}"

    # --- artifacts ---

    def _entries(self) -> dict[str, ArtifactEntry]:
        document = self._store.read_recorder(self._experiment_id, self._recorder_id)
        forms = {} if document is None else document["artifacts"]  # deleted meanwhile
        return {name: parse_artifact(form) for name, form in forms.items()}

    def _artifacts(self) -> Iterator[Finding]:
        root = self._directory / layout.ARTIFACTS
        try:
            known = {layout.artifact_path(root, name): name for name in self._entries()}
        except UnsafeNameError as error:
            path = self._directory / layout.RECORDER_FILE
            yield self._bench.finding(path, str(error), "correct the name")
            return
        for path in sorted(root.rglob("*")):
            unnamed = path.is_file() and path not in known and not fsio.is_temporary(path.name)
            if unnamed and self._bench.is_old(path):
                offer = f"moves it to {layout.QUARANTINE}/"
                remedy = Remedy(offer, partial(self._park_unnamed, path))
                yield self._bench.finding(path, "no entry of the recorder names it", remedy)
        for path, name in known.items():
            yield from self._artifact(path, name)

    def _artifact(self, path: Path, name: str) -> Iterator[Finding]:
        entry = self._entries().get(name)
        while entry is not None:
            found = measure_file(path) if path.is_file() else None
            before, entry = entry, self._entries().get(name)
            if entry == before:  # else it was saved again meanwhile
                break
        if entry is None:
            return
        again = "save it again, or restore it from a copy"
        if found is None:
            yield self._bench.finding(path, "the file of this artifact is missing", again)
        elif found not in entry.accepted:
            problem = f"damaged: {found}, recorded {entry.digest}"
            yield self._bench.finding(path, problem, again)
        elif entry.replaces is not None and self._bench.is_past(entry.since):
            settle = partial(self._settle, path, name)
            remedy = Remedy("takes the file there as the artifact", settle)
            yield self._bench.finding(path, "it was being overwritten", remedy)

    def _settle(self, path: Path, name: str) -> str:
        with self._locked():
            found = measure_file(path)

            def change(document: Document) -> Document:
                entry = parse_artifact(document["artifacts"][name])
                settled = (entry.settled(found) or entry).as_json()
                return {**document, "artifacts": {**document["artifacts"], name: settled}}

            self._store.update_recorder(self._experiment_id, self._recorder_id, change)
        return "the file there is the artifact"

    def _park_unnamed(self, path: Path) -> str:
        root = self._directory / layout.ARTIFACTS
        with self._locked():
            if path in {layout.artifact_path(root, name) for name in self._entries()}:
                return "it has got an entry meanwhile"
            return self._bench.park(path)

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return lock.hold(self._directory / f".{layout.ARTIFACTS}.lock")
