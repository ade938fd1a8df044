"""Qlib's trainers that train here: one task after the other, or several at once."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any, Final, cast

from ..config import C, parse_kernels
from ..errors import ConfigError, QwfError
from ..parallel import Call, Outcome, in_processes, on_executor, one_by_one
from ..progress import Meter
from ..tracking.recorder import Recorder
from ..types import Task
from .base import Trainer, as_recorders, as_tasks, recorders_or_error
from .training import begin_task_train, end_task_train, task_train

__all__ = ["DelayTrainerR", "TrainerR"]

_logger: Final = logging.getLogger("qwf.trainer")


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
        todo = as_tasks(tasks)
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
        return recorders_or_error(name, recorders, failures)

    def end_train(self, models: Recorder | list[Recorder], **kwargs: Any) -> list[Recorder]:
        """Tag the recorders as trained and return them."""
        recorders = as_recorders(models)
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
        recorders = as_recorders(models)
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
        return recorders_or_error(name, kept, failures)


def _end_what_is_left(recorder: Recorder) -> None:
    """Fail the run of a process that died in it, and have the caller's object show its status."""
    with contextlib.suppress(OSError, QwfError):  # the failure itself is what has to be told
        recorder.list_tags()
        if recorder.status not in (Recorder.STATUS_S, Recorder.STATUS_FI, Recorder.STATUS_FA):
            recorder.end_run(Recorder.STATUS_FA)
