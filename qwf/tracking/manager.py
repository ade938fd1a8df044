"""The experiments of a store, and which run is active where: per thread, task and manager."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from ..config import C, add_guard
from ..errors import (
    AmbiguousRecorderError,
    CorruptRecordError,
    ExpAlreadyExistError,
    ExperimentNotFoundError,
    FormatVersionError,
    MissingArgumentError,
    QwfError,
    RecorderInitializationError,
    RecorderNotFoundError,
    RecorderStateError,
    UnknownStatusError,
)
from ..process import exits
from ..storage import layout
from .deletion import refuse_deletion
from .experiment import Experiment
from .metadata import ExperimentRecord
from .recorder import Recorder
from .search import ACTIVE_ONLY, search
from .store import Store
from .table import RecorderTable
from .trash import restore_experiment, restore_recorders

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ExpManager", "default_manager"]

_logger: Final = logging.getLogger("qwf.tracking")


@dataclass(frozen=True)
class _Place:
    """A store, and the uri by which it was given."""

    uri: str
    store: Store

    @classmethod
    def at(cls, uri: str | PathLike[str], *, base: str | PathLike[str] = "") -> _Place:
        """Resolve a uri now: a later chdir does not move a store."""
        return cls(fspath(uri), Store(layout.parse_uri(uri, base=base)))


@dataclass(eq=False)
class _Layer:
    """One entry of what is active: a started run, or (without experiment) another store."""

    manager: ExpManager
    place: _Place
    experiment: Experiment | None
    parent_id: str | None = None  # in another store: what belongs to it, as if it were active here
    closed: bool = False  # its ``with`` block was left

    @property
    def over(self) -> bool:
        """Whether it has ended, maybe in another context, which could not remove it here."""
        ended = self.experiment is not None and self.experiment.active_recorder is None
        return self.closed or ended


# Innermost last. A new thread starts with none, an asyncio task with its creator's.
_layers: ContextVar[tuple[_Layer, ...]] = ContextVar("qwf_active", default=())


class ExpManager:
    """Creates, finds, starts and ends the experiments of a store.

    Parameters
    ----------
    uri : str or path
        The directory of the store, or a ``file:`` URI. A relative one is resolved now.
    default_exp_name : str, default "Experiment"
        The experiment that is meant when none is named.

    Notes
    -----
    A run that is started while another is active becomes the active one, and when it ends the
    other is active again. What is active belongs to the thread or asyncio task that started it.
    """

    def __init__(
        self,
        uri: str | PathLike[str],
        default_exp_name: str = "Experiment",
        *,
        base: str | PathLike[str] = "",
    ) -> None:
        self.default_exp_name = default_exp_name
        self._default_place = _Place.at(uri, base=base)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(uri={self.uri!r})"

    # --- where ---

    @property
    def default_uri(self) -> str:
        """The store that is meant outside of `uri_context` and ``start_exp(uri=...)``."""
        return self._default_place.uri

    @default_uri.setter
    def default_uri(self, uri: str | PathLike[str]) -> None:
        self._default_place = _Place.at(uri)

    @property
    def uri(self) -> str:
        """The store that is meant here and now, as it was given."""
        return self._place.uri

    @property
    def store(self) -> Store:
        """The store that is meant here and now."""
        return self._place.store

    @property
    def _place(self) -> _Place:
        own = self._own_layers()
        return own[-1].place if own else self._default_place

    @contextlib.contextmanager
    def uri_context(self, uri: str | PathLike[str], parent_id: str | None = None) -> Iterator[None]:
        """Mean another store for the length of a ``with`` block, in this thread or task.

        Parameters
        ----------
        uri : str or path
        parent_id : str, optional
            The recorder there, maybe of another process, that runs started in the block belong to.
        """
        layer = _Layer(self, _Place.at(uri), None, parent_id)
        _push(layer)
        try:
            yield
        finally:
            layer.closed = True
            _remove(layer)

    # --- what is active ---

    def _own_layers(self) -> list[_Layer]:
        return [layer for layer in _layers.get() if layer.manager is self and not layer.over]

    def _active_layer(self) -> _Layer | None:
        for layer in reversed(_layers.get()):
            if layer.manager is self and layer.experiment is not None and not layer.over:
                return layer
        return None

    @property
    def active_experiment(self) -> Experiment | None:
        """The experiment started last and not ended, in this thread or task."""
        layer = self._active_layer()
        return None if layer is None else layer.experiment

    @property
    def parent_id(self) -> str | None:
        """The recorder that a run which is started here and now belongs to, if there is one."""
        for layer in reversed(self._own_layers()):
            owner = layer.parent_id
            if layer.experiment is not None and layer.experiment.active_recorder is not None:
                owner = layer.experiment.active_recorder.id
            if owner is not None:
                return owner if layer.place.store == self.store else None
        return None

    def start_exp(
        self,
        *,
        experiment_id: str | None = None,
        experiment_name: str | None = None,
        recorder_id: str | None = None,
        recorder_name: str | None = None,
        uri: str | PathLike[str] | None = None,
        resume: bool = False,
        parent_id: str | None = None,
    ) -> Experiment:
        """Start a recorder and make its experiment the active one.

        Parameters
        ----------
        experiment_id, experiment_name : str, optional
            The experiment; created when only a name is given and it does not exist.
        recorder_id, recorder_name, resume
            See `Experiment.start`.
        uri : str or path, optional
            Another store, until this run ends.
        parent_id : str, optional
            The recorder that a new one belongs to; default: the one that is active.

        Returns
        -------
        Experiment
            Its ``active_recorder`` is RUNNING.

        Raises
        ------
        ExperimentNotFoundError, RecorderNotFoundError
            If an id does not exist. Then nothing was started, and what was active is as before.
        """
        return self._start(
            uri=uri,
            experiment_id=experiment_id,
            experiment_name=experiment_name,
            recorder_id=recorder_id,
            recorder_name=recorder_name,
            resume=resume,
            parent_id=parent_id,
        )[1]

    def _start(
        self,
        *,
        uri: str | PathLike[str] | None = None,
        experiment_id: str | None = None,
        experiment_name: str | None = None,
        parent_id: str | None = None,
        **recorder: Any,
    ) -> tuple[_Layer, Experiment]:
        with contextlib.ExitStack() as stack:
            if uri is not None:
                stack.enter_context(self.uri_context(uri))
            experiment = self._find_or_create(experiment_id, experiment_name)
            parent_id = self.parent_id if parent_id is None else parent_id
            experiment.start(parent_id=parent_id, **recorder)
            # The run keeps the store it was started in, whatever becomes the default.
            layer = _Layer(self, self._place, experiment)
        _push(layer)
        return layer, experiment

    @contextlib.contextmanager
    def run(self, final_status: str = Recorder.STATUS_FI, **start: Any) -> Iterator[Experiment]:
        """Run a ``with`` block as one run, with the arguments of `start_exp`.

        It ends with the status when the block ends well, else FAILED, in whatever thread or task
        the block is left. Runs that were started inside and not ended end before it. When one of
        them cannot be ended the others are all the same, and the first error is raised, unless
        the block itself has raised one.
        """
        layer, experiment = self._start(**start)
        try:
            yield experiment
        except BaseException:
            try:
                self._end_through(layer, Recorder.STATUS_FA)
            except (OSError, QwfError) as error:  # what was raised in the block matters more
                _logger.error("a run could not be ended FAILED: %s", error)  # noqa: TRY400
            raise
        self._end_through(layer, final_status)

    def end_exp(self, recorder_status: str = Recorder.STATUS_S) -> None:
        """End the active recorder with a status; what was active before it is active again.

        Raises
        ------
        UnknownStatusError
            If a run is active and the status is none of the recorder's. It stays active.
        """
        layer = self._active_layer()
        if layer is None or layer.experiment is None:
            return
        if recorder_status not in Recorder.STATUSES:
            raise UnknownStatusError(recorder_status, Recorder.STATUSES)
        _end(layer, recorder_status)

    def _end_through(self, layer: _Layer, recorder_status: str) -> None:
        runs = [one for one in _layers.get() if one.manager is self and one.experiment is not None]
        # A generator may be closed, or a fixture torn down, in a context that lacks the layer.
        ending = runs[runs.index(layer) :] if layer in runs else [layer]
        layer.closed = True
        errors = []
        for one in reversed(ending):
            try:
                _end(one, recorder_status)
            except (OSError, QwfError) as error:  # for example, its recorder was deleted
                errors.append(error)
        if errors:
            raise errors[0]

    # --- experiments ---

    def create_exp(self, experiment_name: str | None = None) -> Experiment:
        """Create an experiment.

        Raises
        ------
        MissingArgumentError
            If no name is given.
        ExpAlreadyExistError
            If it exists.
        """
        if experiment_name is None:
            raise MissingArgumentError("create_exp needs an experiment_name.")
        store = self.store
        return _experiment(store, store.create_experiment(experiment_name))

    def get_exp(
        self,
        *,
        experiment_id: str | None = None,
        experiment_name: str | None = None,
        create: bool = True,
        start: bool = False,
    ) -> Experiment:
        """Return the experiment that is meant.

        Without id and name it is the active one; if none is active, the default one. An id wins
        over a name.

        Parameters
        ----------
        experiment_id, experiment_name : str, optional
        create : bool, default True
            Create the experiment when there is none of that name (an id cannot be created).
        start : bool, default False
            If nothing is active, start a new recorder in it and make it active.

        Raises
        ------
        ExperimentNotFoundError
            If there is none, and none was to be created.
        """
        active = self.active_experiment
        if experiment_id is None and experiment_name is None and active is not None:
            return active
        name = experiment_name
        if experiment_id is None and name is None:
            name = self.default_exp_name
        if create:
            experiment = self._find_or_create(experiment_id, name)
        else:
            experiment = self._find(experiment_id, name)
        if active is not None and active == experiment:
            return active
        if active is None and start:
            experiment.start()
            _push(_Layer(self, self._place, experiment))
        return experiment

    def find_exp(self) -> Experiment | None:
        """Return the experiment that is meant when none is named, or None; creates nothing."""
        with contextlib.suppress(ExperimentNotFoundError):
            return self.get_exp(create=False)
        return None

    def _find(self, experiment_id: str | None, name: str | None) -> Experiment:
        store = self.store
        if experiment_id is not None:
            record = store.read_experiment(experiment_id)
            what, value = "id", experiment_id
        else:
            value = self.default_exp_name if name is None else name
            record = store.find_experiment(value)
            what = "name"
        if record is None:
            found = store.list_experiments()
            known = [one.id if what == "id" else one.name for one in found]
            raise ExperimentNotFoundError(what, value, store=store.root, known=known)
        return _experiment(store, record)

    def _find_or_create(self, experiment_id: str | None, name: str | None) -> Experiment:
        try:
            return self._find(experiment_id, name)
        except ExperimentNotFoundError:
            if experiment_id is not None and name is None:
                raise
        wanted = self.default_exp_name if name is None else name
        with contextlib.suppress(ExpAlreadyExistError):  # another process was first
            return self.create_exp(wanted)
        return self._find(None, wanted)

    def list_experiments(self) -> dict[str, Experiment]:
        """Return name -> experiment, newest first."""
        store = self.store
        found = {}
        for record in store.list_experiments():
            # A directory that somebody has copied has the name of another in its file.
            own = record.id == layout.encode_name(record.name)
            found[record.name if own else record.id] = _experiment(store, record)
        return found

    def delete_exp(
        self, experiment_id: str | None = None, experiment_name: str | None = None
    ) -> None:
        """Move an experiment to the store's trash. Its name can be used again.

        Raises
        ------
        MissingArgumentError
            If neither id nor name is given.
        ExperimentNotFoundError
            If there is none.
        RecorderStateError
            If one of its recorders is active, here or in another process, or online. Nothing was
            changed.
        """
        if experiment_id is None and experiment_name is None:
            raise MissingArgumentError("delete_exp needs experiment_id or experiment_name.")
        experiment = self._find(experiment_id, experiment_name)
        table = search(self.store, [experiment.id])
        active = [one for one in table.column("attributes", "run_id") if exits.is_open(one)]
        if active:
            raise RecorderStateError(
                f"experiment {experiment.name!r} is active and cannot be deleted: this process "
                f"runs its recorders {active}. Nothing was changed. Leave the R.start block, or "
                "call end_run of the recorder, first."
            )
        refuse_deletion(table, table.column("attributes", "run_id"))
        try:
            self.store.discard_experiment(experiment.id)
        except FileNotFoundError:  # another process was first
            raise ExperimentNotFoundError("name", experiment.name, store=self.store.root) from None

    def restore_exp(self, experiment_name: str) -> Experiment:
        """Bring back the experiment of a name (or id) that was deleted last.

        Raises
        ------
        TrashEntryNotFoundError
            If there is none in the trash.
        RestoreError
            If there is one of that name again. Nothing was changed.
        """
        return self._find(restore_experiment(self.store, experiment_name).experiment_id, None)

    # --- recorders of all experiments ---

    def search(
        self,
        experiment_ids: str | Sequence[str] | None = None,
        filter_string: str = "",
        run_view_type: int = ACTIVE_ONLY,
        max_results: int | None = None,
        order_by: str | Sequence[str] | None = None,
    ) -> RecorderTable:
        """Return the recorders that match, as columns; see `search_records`."""
        ids = [experiment_ids] if isinstance(experiment_ids, str) else experiment_ids
        return search(
            self.store,
            ids,
            filter_string=filter_string,
            run_view_type=run_view_type,
            max_results=max_results,
            order_by=order_by,
        )

    def search_records(
        self, experiment_ids: str | Sequence[str] | None = None, **kwargs: Any
    ) -> pd.DataFrame:
        """Return the recorders that match as a DataFrame.

        Parameters
        ----------
        experiment_ids : str or sequence of str, optional
            Default: all experiments.
        filter_string : str, default ""
            MLflow's language, with ``OR``, ``NOT``, parentheses, ``IN`` and ``IS NULL``:
            ``"metrics.IC > 0.05 and (params.model = 'LGB' or tags.mark IS NOT NULL)"``.
        run_view_type : {1, 2, 3}, default 1
            Recorders that are there, deleted ones, or both.
        max_results : int, optional
            At most so many.
        order_by : str or sequence of str, optional
            As ``"metrics.IC DESC"``; by default, and among equals, newest first.

        Returns
        -------
        DataFrame
            One row per recorder: ``run_id``, ``run_name``, ``experiment_id``, ``status``,
            ``start_time``, ``end_time``, ``parent_id``, ``metrics.*``, ``params.*``, ``tags.*``;
            NaN or None where a recorder has no such value.

        Raises
        ------
        FilterError
            If the filter or the order has a mistake. It tells where.
        """
        return self.search(experiment_ids, **kwargs).as_frame()

    def find_recorder(self, recorder_id: str) -> Recorder:
        """Return a recorder of any experiment.

        Parameters
        ----------
        recorder_id : str
            Its id, or a beginning or ending of it that no other has.

        Raises
        ------
        RecorderNotFoundError
            If there is none.
        AmbiguousRecorderError
            If several have it.
        """
        found = self.store.recorders_named(recorder_id)
        if len(found) > 1:
            raise AmbiguousRecorderError(recorder_id, [name for _, name in found])
        if not found:
            names = [name for _, name in self.store.recorders_named("")]
            raise RecorderNotFoundError("id", recorder_id, experiment="any", known=names)
        ((experiment_id, name),) = found
        experiment = self._find(experiment_id, None)
        try:
            return experiment.get_recorder(name)
        except (CorruptRecordError, FormatVersionError):
            return experiment._shown(name)

    def restore_recorder(self, recorder_id: str) -> Recorder:
        """Bring back a deleted recorder; see `Experiment.restore_recorder`."""
        found, *_ = restore_recorders(self.store, [recorder_id])
        return self._find(found.experiment_id, None)._shown(str(found.recorder_id))


def _experiment(store: Store, record: ExperimentRecord) -> Experiment:
    return Experiment(store, record.id, record.name)


# The active runs of all threads and tasks, which no single context can see; those of a thread that
# has died are nobody's, and disappear with its context. A forked child has its parent's in its
# context, but they are not its own to protect.
_runs: WeakSet[_Layer] = WeakSet()
os.register_at_fork(after_in_child=_runs.clear)


def _push(layer: _Layer) -> None:
    _layers.set((*(one for one in _layers.get() if not one.closed), layer))
    if layer.experiment is not None:
        _runs.add(layer)


def _remove(layer: _Layer) -> None:
    _layers.set(tuple(one for one in _layers.get() if one is not layer))
    _runs.discard(layer)


def _end(layer: _Layer, recorder_status: str) -> None:
    if layer.experiment is None:
        return
    try:
        layer.experiment.end(recorder_status)
    finally:
        layer.experiment.active_recorder = None
        _remove(layer)


# --- the manager of this process -------------------------------------------------------------

_default: tuple[tuple[Any, ...], ExpManager] | None = None


def default_manager() -> ExpManager:
    """Return the manager of the store that `qwf.init` or ``QWF_URI`` says.

    It is made anew after each `qwf.init`; without any, it is that of ``./qwf_store``.
    """
    global _default
    if _default is not None and _default[0][0] == C.generation:
        last = _layers.get()[-1:]
        # While a run is active here no setting changes; to ask the environment takes longer than
        # to log a metric.
        if last and last[0].experiment and last[0].manager is _default[1] and not last[0].over:
            return _default[1]
    key = (C.generation, C.uri, C.default_exp_name)
    if _default is None or _default[0] != key:
        _default = key, ExpManager(C.uri, C.default_exp_name, base=C.origin)
    return _default[1]


def _refuse_while_active() -> None:
    manager = None if _default is None else _default[1]
    active = [
        run.name
        for run in (layer.experiment for layer in list(_runs) if layer.manager is manager)
        if run and run.active_recorder and exits.is_open(str(run.active_recorder.id))
    ]
    if active:
        raise RecorderInitializationError(
            f"the settings cannot change while experiments are active: {active}. Nothing was "
            "changed. Leave the R.start block, or call R.end_exp(), first."
        )


add_guard(_refuse_while_active)
