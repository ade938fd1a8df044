"""From tasks to trained recorders: what one training does, and when each part of it is done."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

from .config import C, parse_kernels
from .errors import ConfigError, PlaceholderError, QwfError, TrainingError, suggest
from .instantiate import (
    auto_filter_kwargs,
    fill_placeholder,
    find_placeholders,
    flatten_dict,
    get_callable_kwargs,
    init_instance_by_config,
)
from .parallel import Call, Outcome, in_processes, on_executor, one_by_one
from .progress import Meter
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
    """Trains tasks, each as a run of an experiment: one after the other, or several at once.

    Parameters
    ----------
    experiment_name : str, optional
        Where the recorders go, unless `train` is told another.
    train_func : callable
        ``train_func(task, experiment_name, recorder_name=..., **kwargs)`` returns a recorder.
    call_in_subproc : bool, default False
        Train each task in a process of its own, which gives all its memory back, also when only
        one is trained at a time.
    default_rec_name : str, optional
        The name of the recorders.
    kernels : int, optional
        How many tasks are trained at once; if more than one, each in a process of its own.
        Default: the setting ``kernels`` of `qwf.init`, which is 1.
    executor : concurrent.futures.Executor, optional
        What trains instead: processes, threads, or a cluster such as ``Client.get_executor()`` of
        dask.distributed, whose nodes have the store mounted at the same path. How many at once is
        then its business. It is not shut down.

    Notes
    -----
    Settings and store are the same wherever a task is trained. One at a time, the first failing
    task is raised at once. Several at once, all are trained before `TrainingError` tells which
    failed.

    A process of its own that dies (`BrokenProcessPool`) costs its own task only. A recorder that
    was given to `end_train` is then FAILED; one that the process has made itself stays RUNNING,
    as after every crash. Ctrl-C, like any error that ends the waiting, ends these processes and
    fails their runs; what was trained before is kept. Of an executor it cancels what has not begun.

    Processes are started as `multiprocessing` is set to. When libraries that have threads of their
    own (OpenMP) have worked in this process before, ``set_start_method("forkserver")`` is safer
    than Linux's "fork" was until Python 3.14.
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
        *,
        kernels: int | None = None,
        executor: Executor | None = None,
    ) -> None:
        super().__init__()
        if executor is not None and (kernels is not None or call_in_subproc):
            raise ConfigError(
                "an executor decides itself how many tasks run at once, and in which processes: "
                "leave kernels and call_in_subproc out, or the executor. Nothing was started."
            )
        self.experiment_name = experiment_name
        self.default_rec_name = default_rec_name
        self.train_func = train_func
        self._call_in_subproc = call_in_subproc
        self._kernels = None if kernels is None else parse_kernels(kernels)
        self._executor = executor

    def train(
        self,
        tasks: Task | list[Task],
        train_func: Callable[..., Recorder] | None = None,
        experiment_name: str | None = None,
        **kwargs: Any,
    ) -> list[Recorder]:
        """Train tasks, begun in order.

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

        Raises
        ------
        TrainingError
            If several are trained at once and some failed. The others are in its ``recorders``.
        Exception
            If one is trained at a time, what the first failing task raises.
        """
        todo = [tasks] if isinstance(tasks, Mapping) else list(tasks)
        train = train_func or self.train_func
        name = self.experiment_name if experiment_name is None else experiment_name
        arguments = {"recorder_name": self.default_rec_name, **kwargs}
        calls = [
            Call(_named(position, train, name), partial(train, task, name, **arguments))
            for position, task in enumerate(todo)
        ]
        recorders: list[Recorder | None] = [None] * len(todo)

        def keep(index: int, recorder: Recorder) -> None:
            recorder.set_tags(**{self.STATUS_KEY: self.STATUS_BEGIN})
            recorders[index] = recorder

        failures = self._run(calls, name, keep)
        return _all_or_error(name, recorders, failures)

    def end_train(self, models: Recorder | list[Recorder], **kwargs: Any) -> list[Recorder]:
        """Tag the recorders as trained and return them."""
        recorders = _as_recorders(models)
        for recorder in recorders:
            recorder.set_tags(**{self.STATUS_KEY: self.STATUS_END})
        return recorders

    def _run(
        self,
        calls: Sequence[Call[Recorder]],
        name: str | None,
        keep: Callable[[int, Recorder], None],
    ) -> dict[int, BaseException]:
        """Make the calls, keep each recorder as it comes; return what failed, or raise the first.

        To keep a recorder writes to the store, which may fail as the training may.
        """
        kernels = C.kernels if self._kernels is None else self._kernels
        several = self._executor is not None or kernels > 1
        failures: dict[int, BaseException] = {}
        with (
            Meter(len(calls), f"train {name}") as meter,
            contextlib.closing(self._outcomes(calls, kernels)) as outcomes,
        ):
            for outcome in outcomes:
                error = _kept(keep, outcome) if outcome.error is None else outcome.error
                if error is not None and not several:
                    raise error
                if error is not None:
                    _logger.warning("%s failed: %r", calls[outcome.index].name, error)
                    failures[outcome.index] = error
                meter.count(failed=error is not None)
        return failures

    def _outcomes(
        self, calls: Sequence[Call[Recorder]], kernels: int
    ) -> Generator[Outcome[Recorder], None, None]:
        if self._executor is not None:
            return on_executor(calls, self._executor)
        if kernels > 1 or self._call_in_subproc:
            return in_processes(calls, kernels)
        return one_by_one(calls)


def _named(position: int, call: Callable[..., Recorder], experiment_name: str | None) -> str:
    function = getattr(call, "__name__", repr(call))
    return f"task {position} ({function} for experiment {experiment_name!r})"


def _kept(
    keep: Callable[[int, Recorder], None], outcome: Outcome[Recorder]
) -> BaseException | None:
    try:
        keep(outcome.index, cast(Recorder, outcome.value))
    except Exception as error:  # noqa: BLE001 - a failure like one of the training
        return error
    return None


def _all_or_error(
    name: str | None, recorders: Sequence[Recorder | None], failures: Mapping[int, BaseException]
) -> list[Recorder]:
    if failures:
        raise TrainingError(name, recorders=recorders, failures=failures) from failures[
            min(failures)
        ]
    return [recorder for recorder in recorders if recorder is not None]


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
        """Train the prepared recorders, begun in order; those trained already are passed over.

        After an error or an interrupt the same call goes on with those that are not trained.

        Returns
        -------
        list of Recorder
            The same objects, now FINISHED.

        Raises
        ------
        TrainingError
            If several are trained at once and some failed.
        Exception
            If one is trained at a time, what the first failing one raises.
        """
        recorders = _as_recorders(models)
        end = end_train_func or self.end_train_func
        name = self.experiment_name if experiment_name is None else experiment_name
        todo = {
            recorder.id: position
            for position, recorder in reversed(list(enumerate(recorders)))
            if recorder.list_tags().get(self.STATUS_KEY) != self.STATUS_END
        }
        positions = sorted(todo.values())
        calls = [
            Call(
                _named(position, end, name),
                partial(end, recorders[position], name, **kwargs),
                partial(_end_what_is_left, recorders[position]),
            )
            for position in positions
        ]

        def keep(index: int, _: Recorder) -> None:
            # The write reads the record, so that the caller's object shows the new status.
            recorders[positions[index]].set_tags(**{self.STATUS_KEY: self.STATUS_END})

        failed = self._run(calls, name, keep)
        failures = {positions[index]: error for index, error in failed.items()}
        kept = [None if todo.get(one.id) in failures else one for one in recorders]
        return _all_or_error(name, kept, failures)


def _end_what_is_left(recorder: Recorder) -> None:
    """Fail the run of a process that died in it, and have the caller's object show its status."""
    with contextlib.suppress(OSError, QwfError):  # the failure itself is what has to be told
        recorder.list_tags()
        if recorder.status not in (Recorder.STATUS_S, Recorder.STATUS_FI, Recorder.STATUS_FA):
            recorder.end_run(Recorder.STATUS_FA)
