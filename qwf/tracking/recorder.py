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
    LoadObjectError,
    NotDurableError,
    RecorderStateError,
    UnknownStatusError,
)
from ..process import exits, pulse
from ..storage import fsio, layout
from ..storage.documents import Document
from .artifacts import ArtifactArea, files_below, joined
from .liveness import HEARTBEAT_SECONDS, beat
from .measured import MeasuredRun
from .metadata import (
    ArtifactEntry,
    encode_param,
    new_recorder,
    new_session,
    stored_time,
    utc_now,
)
from .metric_log import MetricLog
from .run import DEFAULT_RECORDER_NAME, Run
from .status import check_transition
from .surroundings import Surroundings

if TYPE_CHECKING:
    pass

__all__ = ["DEFAULT_RECORDER_NAME", "Recorder"]

_logger: Final = logging.getLogger("qwf.tracking")


class Recorder(MeasuredRun):
    """One run of an experiment.

    A recorder is made by an `Experiment`. Before `start_run` it exists only in memory (``id`` is
    None). The attributes ``name``, ``status``, ``start_time`` and ``end_time`` are as of the last
    read; every method that reads looks at the disk.

    Notes
    -----
    *Readers* in other processes see each change whole, as soon as the call that made it returns.
    *A crash* loses nothing that a call returned from; the status is then shown as LOST.
    """

    _session: object = None  # when this process started or resumed it
    _surroundings: Surroundings | None = None

    # --- life cycle ---

    def start_run(self) -> Recorder:
        """Start this recorder, or resume it if it was started before.

        Resuming keeps id, name, start time, params, tags and artifacts, and adds a session.
        """
        exits.leave_if_terminated()
        try:
            if self.id is None:
                self._create()
            else:
                self._resume()
        except NotDurableError:  # it runs all the same
            self._keep()
            raise
        self._keep()
        return self

    def _keep(self) -> None:
        """Have it ended with this process, and its life be seen by others until then."""
        identity = self._known_id()
        if self._surroundings is not None:
            self._surroundings.note_later(identity, self._note_surroundings)
        exits.keep(identity, self._end_at_exit)
        path = self._directory / layout.RECORDER_FILE
        pulse.watch(("heartbeat", identity), partial(beat, path), seconds=HEARTBEAT_SECONDS)

    def _create(self) -> None:
        identity = layout.new_recorder_id()
        document = new_recorder(
            identity,
            self.name,
            self.experiment_id,
            self.STATUS_R,
            parent_id=self.parent_id,
            session=self._new_session(),
        )
        refused: NotDurableError | None = None
        try:
            self._store.create_recorder(self.experiment_id, identity, document)
        except NotDurableError as error:
            refused = error
        self.id, self._session = identity, document["started_at"]
        self._show(self._store.parse(self.experiment_id, identity, document))
        if refused is not None:
            raise refused

    def _resume(self) -> None:
        died_at = self._died_at()
        if self.status == self.STATUS_R and not exits.is_open(self._known_id()):
            _logger.warning("recorder %s is resumed while another process runs it", self.id)
        session = self._new_session()
        self._session = session["started_at"]
        self._update(partial(self._resumed, session=session, died_at=died_at))

    def _died_at(self) -> str | None:
        """Return when a process that has died was last seen alive; None for any other recorder."""
        self._refreshed()
        if self.status != self.STATUS_LOST:
            return None
        return stored_time(fsio.modified_at(self._directory / layout.RECORDER_FILE))

    def _new_session(self) -> dict[str, Any]:
        self._surroundings = Surroundings(self._store.root)
        return {**new_session(), **self._surroundings.references}

    def _note_surroundings(self, answer: dict[str, Any]) -> None:
        # Not `_update`: a thread of its own would show what it has read when another has read more.
        self._store.update_recorder(
            self.experiment_id,
            self._known_id(),
            lambda doc: {**doc, "sessions": self._with_mine(doc, answer)},
        )

    def _with_mine(self, document: Document, facts: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the sessions of a document, with more facts about that of this process."""
        return [
            {**session, **facts} if session["started_at"] == self._session else session
            for session in document.get("sessions", [])
        ]

    def _resumed(
        self, document: Document, *, session: dict[str, Any], died_at: str | None
    ) -> Document:
        check_transition(self.id, document["status"], self.STATUS_R)
        before = document.get("sessions", [])
        sessions = [
            *({**one, "ended_at": one.get("ended_at") or died_at} for one in before),
            session,
        ]
        return {**document, "status": self.STATUS_R, "ended_at": None, "sessions": sessions}

    def _end_at_exit(self, failed: bool) -> None:
        self.end_run(self.STATUS_FA if failed else self.STATUS_FI)

    def pause(self) -> None:
        """Set this recorder aside: PAUSED, until it is resumed by any process.

        Raises
        ------
        RecorderStateError
            If it does not run. Nothing was changed.
        """
        self._known_id()
        self.end_run(self.STATUS_P)

    def _was_paused(self) -> bool:
        """Whether this process has paused it, and nobody has gone on with it since."""
        return not exits.is_open(self._known_id()) and self._refreshed().status == self.STATUS_P

    def end_run(self, status: str = Run.STATUS_S) -> None:
        """End this recorder with a status. One that was never started is left as it is.

        Any process may end a recorder whose own process has died.

        Raises
        ------
        UnknownStatusError
            If the status is none of `STATUSES`. Nothing was changed.
        RecorderStateError
            If the status cannot follow the present one. Nothing was changed.

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
        facts = {} if self._surroundings is None else self._surroundings.finish(self.id)
        moment = (None if exits.is_open(self.id) else self._died_at()) or utc_now()
        ended = partial(self._ended, status=status, moment=moment, facts=facts)
        self._update(partial(ended, summary=self._summary()))
        exits.release(self.id)
        failure = self._logged_meanwhile(log, others) or failure
        pulse.unwatch(("heartbeat", self.id))
        if failure is not None:
            raise failure

    def _ended(
        self,
        document: Document,
        *,
        status: str,
        moment: str,
        facts: dict[str, Any],
        summary: dict[str, Any],
    ) -> Document:
        check_transition(self.id, document["status"], status)
        sessions = [dict(one) for one in self._with_mine(document, facts)]
        for session in sessions:
            # Who ends a recorder without having run it does so for those who cannot any more.
            if session["started_at"] == self._session or self._session is None:
                session["ended_at"] = session.get("ended_at") or moment
        return {
            **document,
            "status": status,
            "ended_at": moment,
            "sessions": sessions,
            "metrics": {**document["metrics"], **summary},
        }

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
