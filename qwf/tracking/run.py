"""One run on disk: who it is, where it lies, and its record; not what is logged into it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from ..errors import RecorderNotFoundError, RecorderStateError, UnsafeNameError
from ..process import exits
from ..storage import layout
from ..storage.documents import Document
from . import status
from .liveness import Observer
from .metadata import RecorderRecord, local_time
from .store import Store
from .surroundings import read_surroundings

__all__ = ["DEFAULT_RECORDER_NAME", "LISTED", "Run"]

# The attributes that a listing shows of a recorder.
LISTED: Final = ("run_id", "run_name", "status", "parent_id", "started_at", "ended_at")

# Qlib's name; scripts ask for it.
DEFAULT_RECORDER_NAME: Final = "mlflow_recorder"

_R = TypeVar("_R", bound="Run")


class Run:
    """What one ``recorder.json`` tells, and changes of it. Public as `Recorder`.

    Parameters
    ----------
    store : Store
    experiment_id : str
    name : str, optional
    parent_id : str, optional
        The recorder that it belongs to.
    """

    STATUS_S: Final = status.SCHEDULED
    STATUS_R: Final = status.RUNNING
    STATUS_P: Final = status.PAUSED
    STATUS_FI: Final = status.FINISHED
    STATUS_FA: Final = status.FAILED
    # Shown, and never written: its process has died; its file is damaged.
    STATUS_LOST: Final = status.LOST
    STATUS_BROKEN: Final = status.BROKEN
    STATUSES: Final = status.STATUSES

    def __init__(
        self,
        store: Store,
        experiment_id: str,
        name: str | None = None,
        parent_id: str | None = None,
    ) -> None:
        self._store = store
        self.experiment_id = experiment_id
        self.id: str | None = None
        if name is not None and (type(name) is not str or not name):
            raise UnsafeNameError("a recorder", name, "a non-empty string is expected")
        self.name = DEFAULT_RECORDER_NAME if name is None else name
        if parent_id is not None and not Store.is_entry(parent_id):
            raise UnsafeNameError("a parent", parent_id, "parent_id is the id of a recorder")
        self.parent_id = parent_id
        self.status: str = self.STATUS_S
        self._started_at: str | None = None
        self._ended_at: str | None = None

    @classmethod
    def _listed(cls: type[_R], store: Store, experiment_id: str, row: Sequence[Any]) -> _R:
        """Return a recorder as a listing has found it, without asking its file."""
        recorder = cls(store, experiment_id)
        recorder._show_row(row)
        return recorder

    def _show_row(self, row: Sequence[Any]) -> None:
        self.id, self.name, self.status, self.parent_id, self._started_at, self._ended_at = row

    def _take_over(self, other: Run) -> None:
        """Show what another object of the same recorder has found."""
        self.name, self.status, self.parent_id = other.name, other.status, other.parent_id
        self._started_at, self._ended_at = other._started_at, other._ended_at

    def __repr__(self) -> str:
        return f"{type(self).__name__}(info={self.info})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Run):
            return NotImplemented
        return self is other or (self.id is not None and self.id == other.id)

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> tuple[Any, ...]:
        where = (type(self), self._store.root, self.experiment_id, self.id, self.name)
        return _reopened, (*where, self.parent_id)

    @property
    def start_time(self) -> str | None:
        """When it was first started: local time, ``YYYY-MM-DD HH:MM:SS``; None before."""
        return local_time(self._started_at)

    @property
    def end_time(self) -> str | None:
        """When it ended last: local time, ``YYYY-MM-DD HH:MM:SS``; None while it runs."""
        return local_time(self._ended_at)

    @property
    def info(self) -> dict[str, Any]:
        """Qlib's summary: class, id, name, experiment_id, start_time, end_time, status."""
        return {
            "class": "Recorder",
            "id": self.id,
            "name": self.name,
            "experiment_id": self.experiment_id,
            "start_time": self.start_time,
            "end_time": self.end_time,
            "status": self.status,
        }

    # --- where it lies ---

    @property
    def uri(self) -> str:
        """The store that holds this recorder, whatever the active one is."""
        return str(self._store.root)

    @property
    def artifact_uri(self) -> str:
        """The directory of the artifacts; see `get_artifact_uri`."""
        return self.get_artifact_uri()

    def get_artifact_uri(self) -> str:
        """Return the directory of the artifacts.

        Raises
        ------
        RecorderStateError
            If the recorder was never started.
        """
        return str(self._directory / layout.ARTIFACTS)

    def get_local_dir(self) -> str:
        """Return the directory of this recorder, which holds ``artifacts/``.

        Raises
        ------
        RecorderStateError
            If the recorder was never started.
        """
        return str(self._directory)

    @property
    def _directory(self) -> Path:
        return self._store.recorder_directory(self.experiment_id, self._known_id())

    def _known_id(self) -> str:
        if self.id is None:
            raise RecorderStateError(
                f"recorder {self.name!r} was never started, so nothing of it is on disk. "
                "Start it with R.start or start_run first."
            )
        return self.id

    # --- the record ---

    def sessions(self) -> list[dict[str, Any]]:
        """Return one entry per process that has run this recorder, oldest first.

        Each has ``started_at`` and ``ended_at`` (UTC, None while it runs), ``host``, ``pid``,
        ``user``, ``argv``, ``cwd``.
        """
        return [dict(session) for session in self._refreshed().sessions]

    def provenance(self) -> dict[str, Any]:
        """Return in which surroundings this recorder was started or resumed last.

        Returns
        -------
        dict
            ``argv``, ``cwd``, ``host``, ``user``; as far as they were captured ``python``,
            ``implementation``, ``platform``, ``packages`` (name -> version) and ``source``: the
            ``commit``, ``branch``, ``patch`` and ``untracked`` names of the user's repository.
        """
        sessions = self._refreshed().sessions
        return read_surroundings(self._store.root, sessions[-1]) if sessions else {}

    def _read(self) -> Document:
        document = self._store.read_recorder(self.experiment_id, self._known_id())
        if document is None:
            raise RecorderNotFoundError("id", self.id, experiment=self.experiment_id)
        return document

    def _refreshed(self) -> RecorderRecord:
        record = self._store.parse(self.experiment_id, self._known_id(), self._read())
        self._show(record)
        return record

    def _update(self, change: Callable[[Document], Document]) -> Document:
        identity = self._known_id()

        def checked(document: Document) -> Document:
            self._store.parse(self.experiment_id, identity, document)  # a damaged one is refused
            return change(document)

        try:
            document = self._store.update_recorder(self.experiment_id, identity, checked)
        except FileNotFoundError as error:
            raise RecorderNotFoundError("id", identity, experiment=self.experiment_id) from error
        self._show(self._store.parse(self.experiment_id, identity, document))
        return document

    def _show(self, record: RecorderRecord) -> None:
        self.name, self.status = record.name, record.status
        self.parent_id = record.parent_id
        self._started_at, self._ended_at = record.started_at, record.ended_at
        if record.status == self.STATUS_R and not exits.is_open(record.id):
            path = self._directory / layout.RECORDER_FILE
            if Observer().is_lost(record.sessions, path):
                self.status = self.STATUS_LOST


def _reopened(
    cls: type[Run],
    root: Path,
    experiment_id: str,
    recorder_id: str | None,
    name: str,
    parent_id: str | None,
) -> Run:
    """Open a recorder again where it was, in the process that unpickles it."""
    recorder = cls(Store(root), experiment_id, name, parent_id)
    recorder.id = recorder_id
    if recorder_id is not None:
        recorder._refreshed()
    return recorder
