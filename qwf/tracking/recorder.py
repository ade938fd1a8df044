"""One run: its life cycle, params, metrics, tags and artifacts."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..config import C
from ..errors import (
    CorruptRecordError,
    FormatVersionError,
    LoadObjectError,
    NotDurableError,
    RecorderNotFoundError,
    RecorderStateError,
    UnknownStatusError,
    UnsafeNameError,
)
from ..storage import layout
from ..storage.documents import Document
from . import exits
from .artifacts import ArtifactArea, files_below, joined
from .metadata import (
    ArtifactEntry,
    RecorderRecord,
    encode_param,
    local_time,
    new_recorder,
    new_session,
    utc_now,
)
from .metric_log import MetricLog, write_waiting
from .metric_values import column_of_steps, columns_of_values, whole_step
from .metrics import current, history
from .store import Store

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["DEFAULT_RECORDER_NAME", "Recorder"]

# Qlib's name; scripts ask for it.
DEFAULT_RECORDER_NAME: Final = "mlflow_recorder"

# Shown for a recorder whose file is damaged, and with it its name.
_BROKEN_NAME: Final = "(broken)"

_logger: Final = logging.getLogger("qwf.tracking")


class Recorder:
    """One run of an experiment.

    A recorder is made by an `Experiment`. Before `start_run` it exists only in memory (``id`` is
    None). The attributes ``name``, ``status``, ``start_time`` and ``end_time`` are as of the last
    read; every method that reads looks at the disk.

    Notes
    -----
    *Readers* in other processes see each change whole, as soon as the call that made it returns.
    *A crash* loses nothing that a call returned from, but the last moment of a burst of metrics
    (see `log_metrics`); it leaves the status RUNNING.
    """

    STATUS_S: Final = "SCHEDULED"
    STATUS_R: Final = "RUNNING"
    STATUS_FI: Final = "FINISHED"
    STATUS_FA: Final = "FAILED"
    # Shown for a recorder whose file is damaged; never written.
    STATUS_BROKEN: Final = "BROKEN"
    STATUSES: Final = (STATUS_S, STATUS_R, STATUS_FI, STATUS_FA)

    def __init__(self, store: Store, experiment_id: str, name: str | None = None) -> None:
        self._store = store
        self.experiment_id = experiment_id
        self.id: str | None = None
        if name is not None and (type(name) is not str or not name):
            raise UnsafeNameError("a recorder", name, "a non-empty string is expected")
        self.name = DEFAULT_RECORDER_NAME if name is None else name
        self.status: str = self.STATUS_S
        self._started_at: str | None = None
        self._ended_at: str | None = None
        self._session: object = None  # when this process started or resumed it
        self._metric_log: MetricLog | None = None

    @classmethod
    def _of(
        cls, store: Store, experiment_id: str, recorder_id: str, record: RecorderRecord | None
    ) -> Recorder:
        """Return the recorder that a listing found; without a record it is a broken one."""
        recorder = cls(store, experiment_id, name=_BROKEN_NAME if record is None else record.name)
        recorder.id = recorder_id
        recorder.status = cls.STATUS_BROKEN
        if record is not None:
            recorder._show(record)
        return recorder

    def __repr__(self) -> str:
        return f"{type(self).__name__}(info={self.info})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Recorder):
            return NotImplemented
        return self is other or (self.id is not None and self.id == other.id)

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> tuple[Any, ...]:
        where = (type(self), self._store.root, self.experiment_id, self.id, self.name)
        return _reopened, where

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

    # --- life cycle ---

    def start_run(self) -> Recorder:
        """Start this recorder, or resume it if it was started before.

        Resuming keeps id, name, start time, params, tags and artifacts, and adds a session.
        """
        try:
            if self.id is None:
                self._create()
            else:
                session = new_session(utc_now())
                self._session = session["started_at"]
                self._update(partial(self._resumed, session=session))
        except NotDurableError:  # it runs all the same
            exits.keep(self._known_id(), self._end_at_exit)
            raise
        exits.keep(self._known_id(), self._end_at_exit)
        return self

    def _create(self) -> None:
        identity = layout.new_recorder_id()
        document = new_recorder(identity, self.name, self.experiment_id, self.STATUS_R)
        refused: NotDurableError | None = None
        try:
            self._store.create_recorder(self.experiment_id, identity, document)
        except NotDurableError as error:
            refused = error
        self.id, self._session = identity, document["started_at"]
        self._show(self._store.parse(self.experiment_id, identity, document))
        if refused is not None:
            raise refused

    def _resumed(self, document: Document, *, session: dict[str, Any]) -> Document:
        sessions = [*document.get("sessions", []), session]
        return {**document, "status": self.STATUS_R, "ended_at": None, "sessions": sessions}

    def _end_at_exit(self, failed: bool) -> None:
        self.end_run(self.STATUS_FA if failed else self.STATUS_FI)

    def end_run(self, status: str = STATUS_S) -> None:
        """End this recorder with a status. One that was never started is left as it is.

        Raises
        ------
        UnknownStatusError
            If the status is none of `STATUSES`. Nothing was changed.

        Notes
        -----
        When this returns, everything logged is on stable storage, and the last value of each
        metric stands in the recorder's one file.
        """
        if status not in self.STATUSES:
            raise UnknownStatusError(status, self.STATUSES)
        if self.id is None:
            return
        failure = self._close_metrics()
        log = self._metric_log or MetricLog(self._directory)
        others = log.others()
        log.sync_others()
        self._update(partial(self._ended, status=status, summary=self._summary()))
        if log.others() != others:
            # Another process has logged meanwhile and saw the run still going. From now on it
            # sees that it has ended, and sums up itself.
            self._sum_up()
        exits.release(self.id)
        failure = self._logged_meanwhile(log, others) or failure
        if failure is not None:
            raise failure

    def _ended(self, document: Document, *, status: str, summary: dict[str, Any]) -> Document:
        now = utc_now()
        sessions = [dict(one) for one in document.get("sessions", [])]
        for session in sessions:
            if session["started_at"] == self._session:
                session["ended_at"] = now
        return {
            **document,
            "status": status,
            "ended_at": now,
            "sessions": sessions,
            "metrics": {**document["metrics"], **summary},
        }

    def _sum_up(self) -> None:
        summary = self._summary()
        self._update(lambda doc: {**doc, "metrics": {**doc["metrics"], **summary}})

    # --- params, tags ---

    def log_params(self, /, **params: Any) -> None:
        """Store params, with their types; they read back as text, as in Qlib.

        There is no limit of length. Another value for a param that exists replaces it, and is
        logged as a warning.
        """
        if not params:
            return
        forms = {key: encode_param(value) for key, value in params.items()}

        def change(document: Document) -> Document:
            before = document["params"]
            changed = [key for key, form in forms.items() if before.get(key, form) != form]
            if changed:
                _logger.warning("recorder %s: params %s get another value", self.id, changed)
            return {**document, "params": {**before, **forms}}

        self._update(change)

    def list_params(self) -> dict[str, str]:
        """Return the params as text."""
        return {key: str(value) for key, value in self._refreshed().params.items()}

    def set_tags(self, /, **tags: Any) -> None:
        """Set tags, as text; a tag that exists is replaced."""
        texts = {key: str(value) for key, value in tags.items()}
        if texts:
            self._update(lambda doc: {**doc, "tags": {**doc["tags"], **texts}})

    def delete_tags(self, /, *keys: str) -> None:
        """Delete tags.

        Raises
        ------
        RecorderStateError
            If there is no such tag. Nothing was deleted.
        """

        def change(document: Document) -> Document:
            missing = [key for key in keys if key not in document["tags"]]
            if missing:
                raise RecorderStateError(
                    f"recorder {self.id} has no tags {missing}; it has {sorted(document['tags'])}. "
                    "Nothing was deleted."
                )
            kept = {key: text for key, text in document["tags"].items() if key not in keys}
            return {**document, "tags": kept}

        self._update(change)

    def list_tags(self) -> dict[str, str]:
        """Return the tags."""
        return dict(self._refreshed().tags)

    # --- metrics ---

    def log_metrics(self, /, step: int | None = None, **metrics: Any) -> None:
        """Log the values of metrics at a step (None means 0).

        Raises
        ------
        TypeError
            If a value is no number, or the step no whole number of 64 bits. Nothing was logged,
            and later calls work.
        RecorderNotFoundError
            If the recorder was deleted.

        Notes
        -----
        *Readers* in this process see a value at once, others after a fifth of a second at most.
        *A crash* or ``kill -9`` loses that fifth, and only of values that come faster than ten
        times a second. The loss of power loses nothing from before the last `end_run`.

        *A full or failing disk* is never raised here: values wait in memory, up to a million, and
        are tried again. That is logged as an error; if it lasts until `end_run`, that raises it.
        (A run that has ended raises it at once.)
        """
        if not metrics:
            return
        if "" in metrics:
            raise UnsafeNameError("a metric", "", "a non-empty string is expected")
        if type(step) is not int or not -(2**63) <= step < 2**63:
            step = 0 if step is None else whole_step(step)
        log = self._metric_log or self._new_log()
        try:
            log.append(metrics, step)
        except FileNotFoundError as error:
            raise RecorderNotFoundError("id", self.id, experiment=self.experiment_id) from error
        # The `end_run` of this process sums up. One elsewhere may have been already.
        if not exits.is_open(self.id or ""):
            self._logged_beside(log)

    def log_metric_history(self, metrics: Any, steps: Any = None) -> None:
        """Log many values of each metric at once.

        Parameters
        ----------
        metrics : DataFrame or mapping of str to sequence
            Name -> values, all of one length: lists, arrays, series. NaN is a value.
        steps : sequence of int, optional
            The step of each row. Default: the index of the frame if it is one of integers, else
            0, 1, 2 ...

        Raises
        ------
        TypeError, ValueError
            If a name, value or step is impossible, or the lengths differ. Nothing was logged.
        RecorderNotFoundError
            If the recorder was deleted.

        Notes
        -----
        As for `log_metrics`, but written at once.
        """
        columns = columns_of_values(metrics)
        length = len(next(iter(columns.values()), ()))
        column = column_of_steps(metrics, steps, length)
        if not length:
            return
        log = self._metric_log or self._new_log()
        try:
            log.extend(column, columns)
        except FileNotFoundError as error:
            raise RecorderNotFoundError("id", self.id, experiment=self.experiment_id) from error
        if not exits.is_open(self._known_id()):
            self._logged_beside(log)

    def _new_log(self) -> MetricLog:
        self._metric_log = MetricLog(self._directory)
        return self._metric_log

    def _logged_beside(self, log: MetricLog) -> None:
        """Finish logging into a run that no `end_run` of this process will end."""
        if self._refreshed().status == self.STATUS_R:
            self._write_at_exit(log.flush())
            return
        failure = self._close_metrics()
        self._sum_up()
        if failure is not None:
            raise failure

    def _logged_meanwhile(self, log: MetricLog, others: dict[str, int]) -> OSError | None:
        """Catch up on threads of this process that have logged while it ended the run."""
        known = self._metric_log is None or self._metric_log.is_closed
        failure = self._close_metrics()
        if not known or log.others() != others:
            self._sum_up()
        return failure

    def list_metrics(self) -> dict[str, float]:
        """Return the value of each metric at its highest step (of equal steps, the last logged)."""
        record = self._refreshed()
        ended = record.status in (self.STATUS_FI, self.STATUS_FA)
        points = record.metrics if ended else current(self._directory)
        return {key: point.value for key, point in points.items()}

    def metric_history(self, *keys: str) -> pd.DataFrame:
        """Return what was logged, oldest first.

        Parameters
        ----------
        *keys : str
            The metrics wanted; none means all.

        Returns
        -------
        DataFrame
            Columns ``key`` (str), ``step`` (int), ``time`` (datetime64[ns, UTC]), ``value``
            (float); one row per value.
        """
        return history(self._directory, keys)

    def _close_metrics(self) -> OSError | None:
        """Make what this process has logged durable; return the error if that fails."""
        write_waiting(self._directory)  # through other objects than this one
        failure = None if self._metric_log is None else self._metric_log.close()
        self._write_at_exit(failure)
        return failure

    def _write_at_exit(self, failure: OSError | None) -> None:
        """Have the end of the program try again what was refused."""
        key, log = f"metrics of {self.id}", self._metric_log
        if failure is None or log is None or log.is_closed:
            exits.release(key)
        else:
            exits.keep(key, log.write_at_exit)

    def _summary(self) -> dict[str, Any]:
        log = self._metric_log or MetricLog(self._directory)
        try:
            points = log.summary()
        except (CorruptRecordError, FormatVersionError) as error:
            # The status has to become true all the same; the check tells of the damage again.
            _logger.error("%s The metrics of recorder %s may be incomplete.", error, self.id)  # noqa: TRY400
            points = log.summary(others=False)
        return {
            key: {
                "value": one.value if one.value - one.value == 0 else repr(one.value),
                "step": one.step,
                "time": one.time,
            }
            for key, one in points.items()
        }

    # --- artifacts ---

    def save_objects(
        self,
        /,
        local_path: str | Path | None = None,
        artifact_path: str | None = None,
        **objects: Any,
    ) -> None:
        """Save objects, or the user's files, as artifacts; existing ones are replaced.

        Parameters
        ----------
        local_path : path, optional
            A file, or a directory whose contents are copied.
        artifact_path : str, optional
            Where below the artifacts; may contain ``/``.
        **objects
            Name and object. Frames and series are kept as parquet, plain data as JSON, the rest
            as pickle, whatever the name ends in.

        Raises
        ------
        ValueError
            If both `local_path` and objects are given, or neither.
        SaveObjectError
            If an object cannot be pickled; then none of them was saved.
        WriteError
            If the disk is full or read-only. The artifact it names is as before; of several that
            were to be replaced, those before it may be new.

        Notes
        -----
        *Readers* get each artifact old or new, whole. *A crash* leaves each old or new.
        """
        if (local_path is None) == (not objects):
            raise ValueError(
                "save_objects takes either local_path or objects as keywords, "
                f"and got {'both' if objects else 'neither'}. Nothing was saved."
            )
        if local_path is None:
            named = {joined(artifact_path, name): obj for name, obj in objects.items()}
            self._artifacts().save_objects(named)
            return
        source = Path(local_path)
        if not source.exists():
            raise FileNotFoundError(
                errno.ENOENT, "cannot save what is not there; nothing was saved", str(source)
            )
        if source.is_dir():
            files = {joined(artifact_path, name): path for name, path in files_below(source)}
        else:
            files = {joined(artifact_path, source.name): source}
        self._artifacts().save_files(files)

    def log_artifact(self, local_path: str | Path, artifact_path: str | None = None) -> None:
        """Copy a file, or a directory under its own name, to the artifacts."""
        source = Path(local_path)
        below = joined(artifact_path, source.resolve().name) if source.is_dir() else artifact_path
        self.save_objects(local_path=source, artifact_path=below)

    def load_object(self, name: str, unpickler: Callable[[Any], Any] | None = None) -> Any:
        """Load an artifact.

        Parameters
        ----------
        name : str
            Its path below the artifacts, as ``"prediction/pred.pkl"``.
        unpickler : callable, optional
            ``unpickler(file).load()`` makes the object; default: the pickle policy of `qwf.init`.

        Raises
        ------
        LoadObjectError
            For any failure: `ArtifactNotFoundError` when there is none of this name,
            `ArtifactCorruptError` when its bytes are not those saved, `PickleRefusedError` when
            the policy forbids it.
        """
        try:
            return self._artifacts().load(
                name, policy=C.pickle_policy, allow=C.pickle_allow, unpickler=unpickler
            )
        except LoadObjectError:
            raise
        except (OSError, ValueError) as error:
            raise LoadObjectError(f"cannot load {name!r} of recorder {self.id}: {error}") from error

    def list_artifacts(self, artifact_path: str | None = None) -> list[str]:
        """Return the names of artifacts and of directories of them, one level, sorted.

        The names are relative to the root of the artifacts; an unknown path gives ``[]``.
        """
        return self._artifacts().list_below(artifact_path)

    def artifacts(self) -> dict[str, ArtifactEntry]:
        """Return name -> kind and digest of every artifact, at any depth."""
        return self._artifacts().entries()

    def download_artifact(self, path: str, dst_path: str | Path | None = None) -> str:
        """Return a local path of an artifact or of a directory of them.

        Parameters
        ----------
        path : str
            Its name.
        dst_path : path, optional
            A directory to copy it into; created when missing. Without it, the returned path
            lies in the store and must not be written to.

        Raises
        ------
        LoadObjectError
            If there is none of this name, or it is damaged.
        """
        area = self._artifacts()
        if dst_path is None:
            return str(area.path_of(path))
        return str(area.copy_out(path, Path(dst_path)))

    def _artifacts(self) -> ArtifactArea:
        return ArtifactArea(self._directory, read=self._read, update=self._update)

    # --- the record ---

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
        self._started_at, self._ended_at = record.started_at, record.ended_at


def _reopened(
    cls: type[Recorder], root: Path, experiment_id: str, recorder_id: str | None, name: str
) -> Recorder:
    """Open a recorder again where it was, in the process that unpickles it."""
    recorder = cls(Store(root), experiment_id, name)
    recorder.id = recorder_id
    if recorder_id is not None:
        recorder._refreshed()
    return recorder
