"""The recorders of one experiment: which there are, which one is meant, which one is active."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, overload

from ..errors import MissingArgumentError, RecorderNotFoundError
from .deletion import delete_recorders
from .metrics import histories
from .recorder import DEFAULT_RECORDER_NAME, Recorder
from .run import LISTED
from .search import ACTIVE_ONLY, search
from .store import Store
from .table import RecorderTable
from .trash import restore_recorders

if TYPE_CHECKING:
    import pandas as pd

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
        parent_id: str | None = None,
    ) -> Recorder:
        """Start a recorder and make it the active one of this object.

        Parameters
        ----------
        recorder_id, recorder_name : str, optional
            With `resume`, the recorder to go on with: by id, or the newest of a name (default:
            Qlib's default name). Without it, the name of the new recorder.
        resume : bool, default False
            Go on with an existing recorder; without an id, a new one is made if there is none.
        parent_id : str, optional
            The recorder, of any experiment of the store, that a new one belongs to.

        Raises
        ------
        RecorderNotFoundError
            If `resume` is asked for an id that does not exist. Nothing was started.
        """
        if resume:
            recorder = self._to_resume(recorder_id, recorder_name, parent_id)
        else:
            if recorder_id is not None:
                _logger.warning(
                    "recorder_id %r has no meaning without resume=True; a new recorder is made",
                    recorder_id,
                )
            recorder = self.create_recorder(recorder_name, parent_id)
        recorder.start_run()
        self.active_recorder = recorder
        return recorder

    def _to_resume(
        self, recorder_id: str | None, recorder_name: str | None, parent_id: str | None
    ) -> Recorder:
        if recorder_id is not None:
            return self._by_id(recorder_id)
        newest = self._newest(_named(recorder_name))
        return newest or self.create_recorder(recorder_name, parent_id)

    def end(self, recorder_status: str = Recorder.STATUS_S) -> None:
        """End the active recorder of this object, if there is one; a paused one stays so."""
        if self.active_recorder is not None:
            if not self.active_recorder._was_paused():
                self.active_recorder.end_run(recorder_status)
            self.active_recorder = None

    # --- one recorder ---

    def create_recorder(
        self, recorder_name: str | None = None, parent_id: str | None = None
    ) -> Recorder:
        """Return a recorder that is not started: nothing of it is on disk."""
        return Recorder(self._store, self.id, recorder_name, parent_id)

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
            known = set(self._table().column("attributes", "run_name"))
            raise RecorderNotFoundError("name", name, experiment=self.name, known=sorted(known))
        recorder = self.create_recorder(recorder_name)
        if start:
            recorder.start_run()
            self.active_recorder = recorder
        return recorder

    def _by_id(self, recorder_id: str) -> Recorder:
        document = self._store.read_recorder(self.id, recorder_id)
        if document is None:
            known = self._store.recorder_names(self.id)
            raise RecorderNotFoundError("id", recorder_id, experiment=self.name, known=known)
        recorder = Recorder(self._store, self.id)
        recorder.id = recorder_id
        recorder._show(self._store.parse(self.id, recorder_id, document))
        return recorder

    def _newest(self, name: str) -> Recorder | None:
        table = self._table()
        statuses = table.column("attributes", "status")
        named = [
            row
            for row, one in enumerate(table.column("attributes", "run_name"))
            # The name of a broken one is unknown.
            if one == name and statuses[row] != Recorder.STATUS_BROKEN
        ]
        if len(named) > 1:
            _logger.info("%d recorders are named %r; the newest is meant", len(named), name)
        return self._listed(table.take(named[:1]))[0] if named else None

    # --- deleting ---

    def delete_recorder(
        self, recorder_id: str | None = None, recorder_name: str | None = None
    ) -> list[str]:
        """Move a recorder, and those of this experiment that belong to it, to the store's trash.

        `restore_recorder` brings them back.

        Returns
        -------
        list of str
            The ids of what was deleted, the recorder itself first.

        Raises
        ------
        MissingArgumentError
            If neither id nor name is given.
        RecorderNotFoundError
            If there is none.
        RecorderStateError
            If one of them is active, here or in another process, or online. Nothing was deleted.

        Notes
        -----
        One rename for each, those that belong to others first: *a crash* leaves some of them.
        """
        if recorder_id is None and recorder_name is None:
            raise MissingArgumentError("delete_recorder needs recorder_id or recorder_name.")
        identity = recorder_id
        # A broken one cannot be opened, but named by its id.
        if identity is None or self._store.examine_recorder(self.id, identity) is None:
            identity = self.get_recorder(recorder_id, recorder_name, create=False).id
        assert identity is not None  # found on disk
        deleted = delete_recorders(self._store, [(self.id, identity)])
        if identity not in deleted:  # another process was first
            raise RecorderNotFoundError("id", identity, experiment=self.name)
        return deleted

    def restore_recorder(self, recorder_id: str) -> Recorder:
        """Bring back a deleted recorder, and those that were deleted together with it.

        Raises
        ------
        TrashEntryNotFoundError
            If it is not in the trash of the store.
        RestoreError
            If something else is in its place. Nothing was changed.
        """
        found, *_ = restore_recorders(self._store, [recorder_id])
        restored = Experiment(self._store, found.experiment_id, self.name)
        return restored._shown(str(found.recorder_id))

    def _shown(self, recorder_id: str) -> Recorder:
        """Return a recorder as a listing shows it: also a broken one, which cannot be opened."""
        shown = self.list_recorders().get(recorder_id)
        if shown is None:  # deleted again meanwhile
            raise RecorderNotFoundError("id", recorder_id, experiment=self.name)
        return shown

    # --- many ---

    def _table(self) -> RecorderTable:
        return search(self._store, [self.id])

    @overload
    def list_recorders(
        self,
        rtype: Literal["dict"] = ...,
        max_results: int | None = ...,
        status: str | None = ...,
        filter_string: str = ...,
    ) -> dict[str, Recorder]: ...

    @overload
    def list_recorders(
        self,
        rtype: Literal["list"],
        max_results: int | None = ...,
        status: str | None = ...,
        filter_string: str = ...,
    ) -> list[Recorder]: ...

    def list_recorders(
        self,
        rtype: str = RT_D,
        max_results: int | None = None,
        status: str | None = None,
        filter_string: str = "",
    ) -> dict[str, Recorder] | list[Recorder]:
        """Return the recorders, the one that started last first.

        Parameters
        ----------
        rtype : {"dict", "list"}
            A dict from id to recorder, or a list.
        max_results : int, optional
            At most so many, after the filters.
        status : str, optional
            Only those with this status.
        filter_string : str, default ""
            Only those that match, as ``"metrics.IC > 0.05 and params.model = 'LGB'"``; see
            `search_records`.

        Raises
        ------
        FilterError
            If the filter has a mistake. It tells where.

        Notes
        -----
        Files are read only of recorders that run, or have changed since anybody has listed them.
        A recorder whose process has died has the status ``"LOST"``, one whose file is damaged
        ``"BROKEN"``; the broken come last. Foreign entries are passed over.
        """
        if rtype not in (self.RT_D, self.RT_L):
            raise NotImplementedError(f"rtype is {rtype!r}; expected 'dict' or 'list'.")
        table = search(self._store, [self.id], filter_string=filter_string)
        if status is not None:
            statuses = table.column("attributes", "status")
            table = table.take([row for row, one in enumerate(statuses) if one == status])
        if max_results is not None:
            table = table.take(range(min(max(max_results, 0), len(table))))
        recorders = self._listed(table)
        if rtype == self.RT_L:
            return recorders
        return {str(recorder.id): recorder for recorder in recorders}

    def _listed(self, table: RecorderTable) -> list[Recorder]:
        """Return the recorders of a table; the active one is the very object that is active."""
        columns = [table.column("attributes", name) for name in LISTED]
        found = [Recorder._listed(self._store, self.id, row) for row in zip(*columns, strict=True)]
        active = self.active_recorder
        if active is not None:
            for position, recorder in enumerate(found):
                if recorder.id == active.id and recorder.status != Recorder.STATUS_BROKEN:
                    active._take_over(recorder)
                    found[position] = active
        return found

    def search_records(
        self,
        filter_string: str = "",
        run_view_type: int = ACTIVE_ONLY,
        max_results: int | None = None,
        order_by: str | Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Return the recorders that match as a DataFrame; see `ExpManager.search_records`."""
        found = search(
            self._store,
            [self.id],
            filter_string=filter_string,
            run_view_type=run_view_type,
            max_results=max_results,
            order_by=order_by,
        )
        return found.as_frame()

    def metric_history(self, *keys: str, recorder_ids: Iterable[str] | None = None) -> pd.DataFrame:
        """Return what many recorders have logged, as one DataFrame.

        Parameters
        ----------
        *keys : str
            The metrics wanted; none means all.
        recorder_ids : iterable of str, optional
            Default: all recorders of this experiment.

        Returns
        -------
        DataFrame
            Columns ``recorder_id``, ``key``, ``step``, ``time``, ``value``; see
            `Recorder.metric_history`.
        """
        if recorder_ids is None:
            recorder_ids = self._table().column("attributes", "run_id")
        directories = {one: self._store.recorder_directory(self.id, one) for one in recorder_ids}
        return histories(directories, keys)


def _named(recorder_name: str | None) -> str:
    return DEFAULT_RECORDER_NAME if recorder_name is None else recorder_name
