"""From tasks to trained recorders: what one training does, and when each part of it is done."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Final

from .config import C
from .errors import PlaceholderError, suggest
from .instantiate import (
    auto_filter_kwargs,
    fill_placeholder,
    find_placeholders,
    flatten_dict,
    get_callable_kwargs,
    init_instance_by_config,
)
from .progress import track
from .tracking.manager import default_manager
from .tracking.recorder import Recorder
from .types import Task

__all__ = [
    "DelayTrainerR",
    "Trainer",
    "TrainerR",
    "begin_task_train",
    "end_task_train",
    "task_train",
]

_logger: Final = logging.getLogger("qwf.trainer")

# Where the class of a record is looked for when the task does not say.
_RECORDS: Final = "qwf.records"

# Filled by training, in the records of a task; a record may fill others itself.
_FILLED: Final = ("<MODEL>", "<DATASET>")
_LEFT_TO_RECORDS: Final = ("<PRED>",)


# --- one training ----------------------------------------------------------------------------


def task_train(
    task_config: Task, experiment_name: str | None, recorder_name: str | None = None
) -> Recorder:
    """Train the model of a task and generate its records, as one run.

    Parameters
    ----------
    task_config : dict
        ``model``, ``dataset``: configurations or objects; ``record``: one or several
        configurations; ``reweighter``: an object, optional. It is not changed.
    experiment_name : str
        Created when it does not exist.
    recorder_name : str, optional

    Returns
    -------
    Recorder
        Ended FINISHED, with the params of the task, the tag ``hostname`` and the artifacts
        ``task``, ``params.pkl`` (the model), ``dataset`` (without data) and those of the records.

    Raises
    ------
    PlaceholderError
        If the task holds a placeholder that nothing fills. Nothing was started.
    Exception
        Whatever the model, dataset or a record raises; the recorder is then FAILED.
    """
    checked = _checked(task_config)
    with _run(
        Recorder.STATUS_FI, experiment_name=experiment_name, recorder_name=recorder_name
    ) as rec:
        _log_task(rec, task_config)
        _execute(rec, checked)
    return rec


def begin_task_train(
    task_config: Task, experiment_name: str | None, recorder_name: str | None = None
) -> Recorder:
    """Start the run of a task without training it.

    Returns
    -------
    Recorder
        With the params and the artifact ``task``; its status is SCHEDULED until
        `end_task_train` has trained it.
    """
    _checked(task_config)
    with _run(
        Recorder.STATUS_S, experiment_name=experiment_name, recorder_name=recorder_name
    ) as rec:
        _log_task(rec, task_config)
    return rec


def end_task_train(rec: Recorder, experiment_name: str | None = None, **kwargs: Any) -> Recorder:
    """Train the task that `begin_task_train` left in a recorder.

    Parameters
    ----------
    rec : Recorder
        Goes on in its own store and experiment.
    experiment_name : str, optional
        Qlib's scripts pass it; the recorder knows its experiment.

    Returns
    -------
    Recorder
        `rec`, now FINISHED.
    """
    task_config = rec.load_object("task")
    checked = _checked(task_config)
    where = {"uri": rec.uri, "experiment_id": rec.experiment_id, "recorder_id": rec.id}
    try:
        with _run(Recorder.STATUS_FI, resume=True, **where) as active:
            active.set_tags(hostname=socket.gethostname())
            _execute(active, checked)
    finally:
        rec.list_tags()  # reads the record, so that the caller's object shows the new status
    return rec


@contextlib.contextmanager
def _run(final_status: str, **start: Any) -> Iterator[Recorder]:
    """Give a run that ends with a status when the block ends well, and FAILED otherwise."""
    with default_manager().run(final_status, **start) as experiment:
        recorder = experiment.active_recorder
        assert recorder is not None  # it was started
        try:
            yield recorder
        except BaseException:
            if experiment.active_recorder is None:  # the model itself has ended the run
                recorder.end_run(Recorder.STATUS_FA)
            raise


def _checked(task_config: Task) -> Task:
    """Return the task with its own values filled in; refuse what nothing will fill."""
    if not isinstance(task_config, Mapping):
        raise TypeError(f"a task has to be a dict, not {type(task_config).__name__}.")
    for key in ("model", "dataset"):
        if key not in task_config:
            raise KeyError(f"the task has no {key!r}; {suggest(key, task_config)}")
    filled: Task = fill_placeholder(dict(task_config), {})
    for where, placeholder in find_placeholders(filled):
        allowed = (*_FILLED, *_LEFT_TO_RECORDS) if where.startswith("record") else ()
        if placeholder not in allowed:
            raise PlaceholderError(
                f"the task's {where} is {placeholder!r}, which nothing fills; "
                f"{suggest(placeholder, allowed)} Nothing was started."
            )
    _refuse_unknown_classes(filled)
    return filled


def _refuse_unknown_classes(task: Task) -> None:
    """Find every class of a task now: a record's would else be missed only after the training."""
    for config in (task["model"], task["dataset"], *_records(task)):
        # A file is a pickled object, which says itself what it is.
        if isinstance(config, dict) or (isinstance(config, str) and "://" not in config):
            get_callable_kwargs(config, default_module=_RECORDS)


def _records(task: Task) -> list[Any]:
    records = task.get("record", [])
    return list(records) if isinstance(records, (list, tuple)) else [records]


def _log_task(rec: Recorder, task_config: Task) -> None:
    rec.log_params(**flatten_dict(task_config))
    rec.save_objects(task=task_config)
    rec.set_tags(hostname=socket.gethostname())


def _execute(rec: Recorder, task: Task) -> None:
    model = _built(task["model"])
    dataset = _built(task["dataset"])
    auto_filter_kwargs(model.fit, warning=False)(dataset, reweighter=task.get("reweighter"))
    rec.save_objects(**{"params.pkl": model, "dataset": _without_data(dataset, task["dataset"])})
    records = task.get("record", [])
    if isinstance(records, (Mapping, str)) or not isinstance(records, (list, tuple)):
        records = [records]
    for config in fill_placeholder(
        list(records), dict(zip(_FILLED, (model, dataset), strict=True))
    ):
        record = init_instance_by_config(
            config,
            default_module=_RECORDS,
            try_kwargs={"model": model, "dataset": dataset},
            recorder=rec,
        )
        record.generate()


def _built(config: Any) -> Any:
    """Return the object that a configuration describes; an object is one already."""
    if isinstance(config, (Mapping, str, Path)):
        return init_instance_by_config(config)
    return config


def _without_data(dataset: Any, config: Any) -> Any:
    """Return what is saved of a dataset: itself without its data, or else how to build it."""
    if hasattr(dataset, "config"):
        auto_filter_kwargs(dataset.config, warning=False)(dump_all=False, recursive=True)
        return dataset
    return config if isinstance(config, Mapping) else dataset


# --- trainers --------------------------------------------------------------------------------


class Trainer:
    """Trains a list of tasks in one step (`train`) or two (`train`, then `end_train`)."""

    def __init__(self) -> None:
        self.delay = False

    def train(self, tasks: Any, *args: Any, **kwargs: Any) -> list[Recorder]:
        """Start the training of tasks and return their recorders, in the same order."""
        raise NotImplementedError(f"{type(self).__name__} has no train()")

    def end_train(self, models: Any, *args: Any, **kwargs: Any) -> list[Recorder]:
        """Finish what `train` has started."""
        return _as_recorders(models)

    def is_delay(self) -> bool:
        """Whether the models are trained by `end_train` only."""
        return self.delay

    def has_worker(self) -> bool:
        """Whether other processes can do the training by `worker`."""
        return False

    def worker(self) -> None:
        """Train what others have started."""
        raise NotImplementedError(f"{type(self).__name__} has no workers")

    def __call__(self, *args: Any, **kwargs: Any) -> list[Recorder]:
        """Do both steps; an ``experiment_name`` holds for both."""
        named = {key: kwargs[key] for key in ("experiment_name",) if key in kwargs}
        return self.end_train(self.train(*args, **kwargs), **named)


def _as_recorders(models: Recorder | list[Recorder]) -> list[Recorder]:
    return [models] if isinstance(models, Recorder) else list(models)


class TrainerR(Trainer):
    """Trains tasks one after the other, each as a run of an experiment.

    Parameters
    ----------
    experiment_name : str, optional
        Where the recorders go, unless `train` is told another.
    train_func : callable
        ``train_func(task, experiment_name, recorder_name=..., **kwargs)`` returns a recorder.
    call_in_subproc : bool, default False
        Train each task in a process of its own, which gives all its memory back. When it dies,
        `BrokenProcessPool` is raised. A recorder that was given to `end_train` is then FAILED;
        one that the process has made itself stays RUNNING, as after every crash.
    default_rec_name : str, optional
        The name of the recorders.
    """

    STATUS_KEY: Final = "train_status"
    STATUS_BEGIN: Final = "begin_task_train"
    STATUS_END: Final = "end_task_train"

    def __init__(
        self,
        experiment_name: str | None = None,
        train_func: Callable[..., Recorder] = task_train,
        call_in_subproc: bool = False,
        default_rec_name: str | None = None,
    ) -> None:
        super().__init__()
        self.experiment_name = experiment_name
        self.default_rec_name = default_rec_name
        self.train_func = train_func
        self._call_in_subproc = call_in_subproc

    def train(
        self,
        tasks: Task | list[Task],
        train_func: Callable[..., Recorder] | None = None,
        experiment_name: str | None = None,
        **kwargs: Any,
    ) -> list[Recorder]:
        """Train tasks, in order.

        Parameters
        ----------
        tasks : dict or list of dict
        train_func, experiment_name : optional
            Instead of those of the trainer.
        **kwargs
            Passed to the train function.

        Returns
        -------
        list of Recorder
            In the order of the tasks, tagged ``train_status``.
        """
        todo = [tasks] if isinstance(tasks, Mapping) else list(tasks)
        train = train_func or self.train_func
        name = self.experiment_name if experiment_name is None else experiment_name
        recorders = []
        for task in track(todo, f"train {name}"):
            arguments = {"recorder_name": self.default_rec_name, **kwargs}
            if self._call_in_subproc:
                recorder = _in_subprocess(train, task, name, **arguments)
            else:
                recorder = train(task, name, **arguments)
            recorder.set_tags(**{self.STATUS_KEY: self.STATUS_BEGIN})
            recorders.append(recorder)
        return recorders

    def end_train(self, models: Recorder | list[Recorder], **kwargs: Any) -> list[Recorder]:
        """Tag the recorders as trained and return them."""
        recorders = _as_recorders(models)
        for recorder in recorders:
            recorder.set_tags(**{self.STATUS_KEY: self.STATUS_END})
        return recorders


class DelayTrainerR(TrainerR):
    """Like `TrainerR`, but `train` only prepares, and `end_train` trains.

    Parameters
    ----------
    experiment_name : str, optional
    train_func, end_train_func : callable
        What `train` and `end_train` do with one task or recorder.
    **kwargs
        See `TrainerR`.
    """

    def __init__(
        self,
        experiment_name: str | None = None,
        train_func: Callable[..., Recorder] = begin_task_train,
        end_train_func: Callable[..., Recorder] = end_task_train,
        **kwargs: Any,
    ) -> None:
        super().__init__(experiment_name, train_func, **kwargs)
        self.end_train_func = end_train_func
        self.delay = True

    def end_train(
        self,
        models: Recorder | list[Recorder],
        end_train_func: Callable[..., Recorder] | None = None,
        experiment_name: str | None = None,
        **kwargs: Any,
    ) -> list[Recorder]:
        """Train the prepared recorders, in order; those trained already are passed over.

        Returns
        -------
        list of Recorder
            The same objects, now FINISHED.
        """
        recorders = _as_recorders(models)
        end = end_train_func or self.end_train_func
        name = self.experiment_name if experiment_name is None else experiment_name
        for recorder in track(recorders, f"train {name}"):
            if recorder.list_tags().get(self.STATUS_KEY) == self.STATUS_END:
                continue
            if self._call_in_subproc:
                _end_in_subprocess(end, recorder, name, **kwargs)
            else:
                end(recorder, name, **kwargs)
            recorder.set_tags(**{self.STATUS_KEY: self.STATUS_END})
        return recorders


def _in_subprocess(call: Callable[..., Recorder], *args: Any, **kwargs: Any) -> Recorder:
    """Call a function in a fresh process that has the settings and the store of this one."""
    settings = (C.state(), str(default_manager().store.root))
    with ProcessPoolExecutor(max_workers=1, initializer=_restore, initargs=settings) as pool:
        try:
            return pool.submit(call, *args, **kwargs).result()
        except BrokenProcessPool as error:
            name = getattr(call, "__name__", repr(call))
            raise BrokenProcessPool(
                f"the process that was to run {name} for experiment {args[1]!r} died before it "
                "returned: it was killed (out of memory?) or crashed. A run that it had begun "
                "was not ended. Look at the system's log, or train with call_in_subproc=False "
                "to see where it happens."
            ) from error


def _restore(state: Mapping[str, Any], uri: str) -> None:
    C.restore(state)
    default_manager().default_uri = uri  # R.set_uri and R.uri_context are no settings


def _end_in_subprocess(
    end: Callable[..., Recorder], recorder: Recorder, name: str | None, **kwargs: Any
) -> None:
    try:
        _in_subprocess(end, recorder, name, **kwargs)
    except BrokenProcessPool:
        recorder.end_run(Recorder.STATUS_FA)
        raise
    finally:
        recorder.list_tags()  # reads the record, so that the caller's object shows the new status
