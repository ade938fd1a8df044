"""The recorders of one experiment: which there are, which one is meant, which one is active."""

from __future__ import annotations

import logging
from typing import Any, Final, Literal, overload

from ..errors import MissingArgumentError, RecorderNotFoundError, RecorderStateError
from . import exits
from .metadata import RecorderRecord
from .recorder import DEFAULT_RECORDER_NAME, Recorder
from .store import Store

__all__ = ["Experiment"]

_logger: Final = logging.getLogger("qwf.tracking")


class Experiment:
    """One experiment of a store; made by an `ExpManager`.

    Attributes
    ----------
    id : str
        The name of its directory, derived from its name.
    name : str
    active_recorder : Recorder or None
        The recorder that was started through this very object and has not ended.
    """

    RT_D: Final = "dict"
    RT_L: Final = "list"

    def __init__(self, store: Store, identity: str, name: str) -> None:
        self._store = store
        self.id = identity
        self.name = name
        self.active_recorder: Recorder | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(id={self.id!r}, name={self.name!r}, store={self.uri!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Experiment):
            return NotImplemented
        return self.id == other.id and self._store == other._store

    def __hash__(self) -> int:
        return hash((self._store, self.id))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._store, self.id, self.name)

    @property
    def uri(self) -> str:
        """The store that holds this experiment."""
        return str(self._store.root)

    @property
    def info(self) -> dict[str, Any]:
        """Qlib's summary: class, id, name, active_recorder, recorders (ids, newest first)."""
        active = self.active_recorder
        return {
            "class": "Experiment",
            "id": self.id,
            "name": self.name,
            "active_recorder": None if active is None else active.id,
            "recorders": list(self.list_recorders()),
        }

    # --- starting and ending ---

    def start(
        self,
        *,
        recorder_id: str | None = None,
        recorder_name: str | None = None,
        resume: bool = False,
    ) -> Recorder:
        """Start a recorder and make it the active one of this object.

        Parameters
        ----------
        recorder_id, recorder_name : str, optional
            With `resume`, the recorder to go on with: by id, or the newest of a name (default:
            Qlib's default name). Without it, the name of the new recorder.
        resume : bool, default False
            Go on with an existing recorder; without an id, a new one is made if there is none.

        Raises
        ------
        RecorderNotFoundError
            If `resume` is asked for an id that does not exist. Nothing was started.
        """
        if resume:
            recorder = self._to_resume(recorder_id, recorder_name)
        else:
            if recorder_id is not None:
                _logger.warning(
                    "recorder_id %r has no meaning without resume=True; a new recorder is made",
                    recorder_id,
                )
            recorder = self.create_recorder(recorder_name)
        recorder.start_run()
        self.active_recorder = recorder
        return recorder

    def _to_resume(self, recorder_id: str | None, recorder_name: str | None) -> Recorder:
        if recorder_id is not None:
            return self._by_id(recorder_id)
        newest = self._newest(_named(recorder_name))
        return newest or self.create_recorder(recorder_name)

    def end(self, recorder_status: str = Recorder.STATUS_S) -> None:
        """End the active recorder of this object, if there is one."""
        if self.active_recorder is not None:
            self.active_recorder.end_run(recorder_status)
            self.active_recorder = None

    # --- one recorder ---

    def create_recorder(self, recorder_name: str | None = None) -> Recorder:
        """Return a recorder that is not started: nothing of it is on disk."""
        return Recorder(self._store, self.id, recorder_name)

    def get_recorder(
        self,
        recorder_id: str | None = None,
        recorder_name: str | None = None,
        create: bool = True,
        start: bool = False,
    ) -> Recorder:
        """Return the recorder that is meant.

        Without id and name it is the active one; if none is active, the newest with the default
        name. An id wins over a name; of several with one name the newest is meant.

        Parameters
        ----------
        recorder_id, recorder_name : str, optional
        create : bool, default True
            Return a new recorder when there is none that is meant (not for an unknown id).
        start : bool, default False
            Start a recorder that was made by this call, and make it active.

        Raises
        ------
        RecorderNotFoundError
            If there is none and `create` is False, or if the id is unknown.
        """
        if recorder_id is None and recorder_name is None and self.active_recorder is not None:
            return self.active_recorder
        if recorder_id is not None:
            return self._by_id(recorder_id)
        newest = self._newest(_named(recorder_name))
        if newest is not None:
            return newest
        if not create:
            name = _named(recorder_name)
            known = [recorder.name for recorder in self.list_recorders(self.RT_L)]
            raise RecorderNotFoundError("name", name, experiment=self.name, known=known)
        recorder = self.create_recorder(recorder_name)
        if start:
            recorder.start_run()
            self.active_recorder = recorder
        return recorder

    def _by_id(self, recorder_id: str) -> Recorder:
        document = self._store.read_recorder(self.id, recorder_id)
        if document is None:
            known = [identity for identity, _ in self._store.list_recorders(self.id)]
            raise RecorderNotFoundError("id", recorder_id, experiment=self.name, known=known)
        record = self._store.parse(self.id, recorder_id, document)
        return Recorder._of(self._store, self.id, recorder_id, record)

    def _newest(self, name: str) -> Recorder | None:
        named = [
            recorder
            for recorder in self.list_recorders(self.RT_L)
            # The name of a broken one is unknown.
            if recorder.name == name and recorder.status != Recorder.STATUS_BROKEN
        ]
        if len(named) > 1:
            _logger.info("%d recorders are named %r; the newest is meant", len(named), name)
        return named[0] if named else None

    def delete_recorder(
        self, recorder_id: str | None = None, recorder_name: str | None = None
    ) -> None:
        """Move a recorder to the store's trash.

        Raises
        ------
        MissingArgumentError
            If neither id nor name is given.
        RecorderNotFoundError
            If there is none.
        RecorderStateError
            If it is active in this process.
        """
        if recorder_id is None and recorder_name is None:
            raise MissingArgumentError("delete_recorder needs recorder_id or recorder_name.")
        recorder = self.get_recorder(recorder_id, recorder_name, create=False)
        assert recorder.id is not None  # found on disk
        if exits.is_open(recorder.id):
            raise RecorderStateError(
                f"recorder {recorder.id} is active and cannot be deleted. End it first."
            )
        self._store.discard_recorder(self.id, recorder.id)

    # --- many ---

    @overload
    def list_recorders(
        self,
        rtype: Literal["dict"] = ...,
        max_results: int | None = ...,
        status: str | None = ...,
    ) -> dict[str, Recorder]: ...

    @overload
    def list_recorders(
        self, rtype: Literal["list"], max_results: int | None = ..., status: str | None = ...
    ) -> list[Recorder]: ...

    def list_recorders(
        self,
        rtype: str = RT_D,
        max_results: int | None = None,
        status: str | None = None,
    ) -> dict[str, Recorder] | list[Recorder]:
        """Return the recorders, the one that started last first.

        Parameters
        ----------
        rtype : {"dict", "list"}
            A dict from id to recorder, or a list.
        max_results : int, optional
            At most so many, after the filter.
        status : str, optional
            Only those with this status.

        Notes
        -----
        One file is read per recorder. A recorder whose file is damaged has the status
        ``"BROKEN"`` and comes last; foreign entries are passed over.
        """
        if rtype not in (self.RT_D, self.RT_L):
            raise NotImplementedError(f"rtype is {rtype!r}; expected 'dict' or 'list'.")
        found = sorted(self._store.list_recorders(self.id), key=_oldest_last)
        recorders = [
            self._listed(identity, record, active=self.active_recorder)
            for identity, record in found
        ]
        if status is not None:
            recorders = [recorder for recorder in recorders if recorder.status == status]
        recorders = recorders[:max_results]
        if rtype == self.RT_L:
            return recorders
        return {str(recorder.id): recorder for recorder in recorders}

    def _listed(
        self, identity: str, record: RecorderRecord | None, *, active: Recorder | None
    ) -> Recorder:
        if active is None or active.id != identity or record is None:
            return Recorder._of(self._store, self.id, identity, record)
        active._show(record)
        return active


def _named(recorder_name: str | None) -> str:
    return DEFAULT_RECORDER_NAME if recorder_name is None else recorder_name


def _oldest_last(entry: tuple[str, RecorderRecord | None]) -> tuple[bool, int, str]:
    identity, record = entry
    if record is None or record.started_at is None:
        return True, 0, identity
    # Fixed-width digits, so the text of a moment is a number that sorts like it.
    return False, -int("".join(filter(str.isdigit, record.started_at))), identity
