"""Qlib's trainers over a task pool: this process trains, others do, or all together."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from ..config import C, parse_kernels
from ..errors import (
    QwfError,
    RecorderStateError,
)
from ..parallel import Call, in_processes
from ..tasks.manage import TaskManager
from ..tasks.run import Work, run_task
from ..tracking.manager import default_manager
from ..tracking.recorder import Recorder
from ..types import Task
from .base import Trainer, as_recorders, as_tasks, recorders_or_error
from .through_pool import TM_ID, Ended, begin_again, tag_begun, these, work_through
from .training import begin_task_train, end_task_train, task_train

__all__ = ["DelayTrainerRM", "TrainerRM"]

_WAITING: Final = TaskManager.STATUS_WAITING
_PART_DONE: Final = TaskManager.STATUS_PART_DONE
_DONE: Final = TaskManager.STATUS_DONE

_logger: Final = logging.getLogger("qwf.trainer")


class TrainerRM(Trainer):
    """Trains tasks through a task pool, together with whoever else works on it.

    Parameters
    ----------
    experiment_name : str, optional
        Where the recorders go, unless `train` is told another.
    task_pool : str or TaskManager, optional
        Default: the pool with the name of the experiment.
    train_func : callable
        ``train_func(task, experiment_name=..., recorder_name=..., **kwargs)`` returns a recorder.
    skip_run_task : bool, default False
        Leave the training to others (`worker`, ``qwf worker``), and wait for them.
    default_rec_name : str, optional
        The name of the recorders.
    kernels : int, optional
        How many processes this trainer starts to train; one at a time is trained in this process.
        Default: the setting ``kernels`` of `qwf.init`, which is 1.

    Notes
    -----
    A task is trained once, however often it is given: `train` returns the recorder that there is,
    made by whatever process. What has failed, and a task of which the recorder was deleted, is
    trained again. What a `DelayTrainerRM` has prepared in the same pool is left to those who train
    that, and waited for.

    *Other processes* may work on the same pool, submit the same tasks, and be killed: the others
    train what they have left. The recorder of an attempt that was killed stays LOST, of one that
    raised FAILED, and neither is the task's result. *This process* may be killed as well; the next
    `train` goes on.
    """

    TM_ID: Final = TM_ID

    def __init__(
        self,
        experiment_name: str | None = None,
        task_pool: str | TaskManager | None = None,
        train_func: Callable[..., Recorder] = task_train,
        skip_run_task: bool = False,
        default_rec_name: str | None = None,
        *,
        kernels: int | None = None,
    ) -> None:
        super().__init__()
        self.experiment_name = experiment_name
        self.task_pool = task_pool
        self.train_func = train_func
        self.skip_run_task = skip_run_task
        self.default_rec_name = default_rec_name
        self._kernels = None if kernels is None else parse_kernels(kernels)

    def train(
        self,
        tasks: Task | list[Task],
        train_func: Callable[..., Recorder] | None = None,
        experiment_name: str | None = None,
        before_status: str = _WAITING,
        after_status: str = _DONE,
        default_rec_name: str | None = None,
        **kwargs: Any,
    ) -> list[Recorder]:
        """Put tasks into the pool and return when they are trained.

        Parameters
        ----------
        tasks : dict or list of dict
        train_func, experiment_name, default_rec_name : optional
            Instead of those of the trainer.
        before_status : {"waiting", "part_done"}
            Which of the tasks this process takes.
        after_status : {"done", "part_done"}
            What they are then, and until when is waited.
        **kwargs
            Passed to the train function.

        Returns
        -------
        list of Recorder
            In the order of the tasks, tagged ``train_status`` and ``_id in TaskManager``. Equal
            tasks have one recorder.

        Raises
        ------
        TrainingError
            If some failed, after all the others were trained. Its ``failures`` are what was raised
            here, and `RemoteTaskError` for what has failed elsewhere.
        TaskValueError
            If a task is no plain data. Nothing was changed.
        """
        todo = as_tasks(tasks)
        if not todo:
            return []
        pool = self._pool(experiment_name)
        ids = pool.create_task(todo)
        begin_again(pool, ids, after_status)
        named = self._arguments(experiment_name, default_rec_name)
        work = Work(
            call=train_func or self.train_func,
            query=these(ids),
            before_status=before_status,
            after_status=after_status,
            kwargs={**named, **kwargs},
        )
        raised = self._worked(pool, work)
        ended = Ended(pool, ids, raised)
        for identity, recorder in ended.recorders.items():
            tag_begun(recorder, identity)
        found = [ended.recorders.get(identity) for identity in ids]
        return recorders_or_error(named["experiment_name"], found, ended.failures_of(ids))

    def end_train(self, recs: Recorder | list[Recorder], **kwargs: Any) -> list[Recorder]:
        """Tag the recorders as trained and return them."""
        recorders = as_recorders(recs)
        for recorder in recorders:
            recorder.set_tags(**{self.STATUS_KEY: self.STATUS_END})
        return recorders

    def has_worker(self) -> bool:
        """Whether other processes can do the training by `worker`: yes."""
        return True

    def worker(
        self,
        train_func: Callable[..., Recorder] | None = None,
        experiment_name: str | None = None,
    ) -> None:
        """Train whatever waits in the pool, until there is nothing left to take.

        Parameters
        ----------
        train_func, experiment_name : optional
            Instead of those of the trainer.

        Raises
        ------
        TasksFailedError
            If tasks failed here for good, after all others.
        """
        named = self._arguments(experiment_name, None)
        self._drain(experiment_name, train_func or self.train_func, _WAITING, named)

    # --- where, and what with ---

    def _pool(self, experiment_name: str | None) -> TaskManager:
        if isinstance(self.task_pool, TaskManager):
            return self.task_pool
        name = self.task_pool or self._experiment(experiment_name)
        return TaskManager(name or default_manager().default_exp_name)

    def _experiment(self, experiment_name: str | None) -> str | None:
        return self.experiment_name if experiment_name is None else experiment_name

    def _arguments(
        self, experiment_name: str | None, default_rec_name: str | None
    ) -> dict[str, Any]:
        """Return what every train function gets, in `train` and in `worker` alike."""
        name = self.default_rec_name if default_rec_name is None else default_rec_name
        return {"experiment_name": self._experiment(experiment_name), "recorder_name": name}

    # --- working ---

    @property
    def _processes(self) -> int:
        return C.kernels if self._kernels is None else self._kernels

    def _worked(self, pool: TaskManager, work: Work) -> dict[str, BaseException]:
        """Return when the tasks of some work have ended; what was raised here, by id."""
        skips = self.skip_run_task and work.after_status == _DONE
        return work_through(pool, work, processes=0 if skips else self._processes)

    def _drain(
        self,
        experiment_name: str | None,
        call: Callable[..., Any],
        before_status: str,
        arguments: Mapping[str, Any],
    ) -> None:
        pool = self._pool(experiment_name)
        run = partial(run_task, call, pool, before_status=before_status, **arguments)
        if self._processes == 1:
            run()
            return
        calls = [Call(f"worker of pool {pool.task_pool!r}", run)] * self._processes
        errors = [one.error for one in in_processes(calls, self._processes) if one.error]
        if errors:
            raise errors[0]


class DelayTrainerRM(TrainerRM):
    """Like `TrainerRM`, but `train` only prepares, and `end_train` trains.

    Parameters
    ----------
    experiment_name : str, optional
    task_pool : str or TaskManager, optional
    train_func, end_train_func : callable
        What `train` and `end_train` do with one task or recorder.
    skip_run_task : bool, default False
        Leave the training to others, and wait for them; the preparation is done here all the same.
    **kwargs
        See `TrainerRM`.

    Notes
    -----
    Between the two steps a task is ``part_done``. Recorders are prepared once, also when several
    processes `train` the same tasks, or one of them is killed.
    """

    def __init__(
        self,
        experiment_name: str | None = None,
        task_pool: str | TaskManager | None = None,
        train_func: Callable[..., Recorder] = begin_task_train,
        end_train_func: Callable[..., Recorder] = end_task_train,
        skip_run_task: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(experiment_name, task_pool, train_func, skip_run_task, **kwargs)
        self.end_train_func = end_train_func
        self.delay = True

    def train(
        self,
        tasks: Task | list[Task],
        train_func: Callable[..., Recorder] | None = None,
        experiment_name: str | None = None,
        before_status: str = _WAITING,
        after_status: str = _PART_DONE,
        default_rec_name: str | None = None,
        **kwargs: Any,
    ) -> list[Recorder]:
        """Prepare a recorder for each task, or return the one that there is, trained or not.

        Waits for those that others are just preparing. See `TrainerRM.train`.
        """
        return super().train(
            tasks,
            train_func,
            experiment_name,
            before_status,
            after_status,
            default_rec_name,
            **kwargs,
        )

    def end_train(
        self,
        recs: Recorder | list[Recorder],
        end_train_func: Callable[..., Recorder] | None = None,
        experiment_name: str | None = None,
        **kwargs: Any,
    ) -> list[Recorder]:
        """Train the prepared recorders, together with others, and return when all are trained.

        Parameters
        ----------
        recs : Recorder or list of Recorder
            What `train` has returned, in this process or another.
        end_train_func, experiment_name : optional
            Instead of those of the trainer.
        **kwargs
            Passed to ``end_train_func(recorder, experiment_name=..., **kwargs)``.

        Returns
        -------
        list of Recorder
            The same objects, now FINISHED.

        Raises
        ------
        TrainingError
            If some failed, after all the others were trained; they are tried again the next time.
        RecorderStateError
            If a recorder was prepared by another kind of trainer. Nothing was changed.
        """
        recorders = as_recorders(recs)
        if not recorders:
            return []
        ids = [self._task_of(recorder) for recorder in recorders]
        pool = self._pool(experiment_name)
        pool.retry(these(ids))
        name = self._experiment(experiment_name)
        work = Work(
            call=end_train_func or self.end_train_func,
            query=these(ids),
            before_status=_PART_DONE,
            kwargs={"experiment_name": name, **kwargs},
        )
        raised = self._worked(pool, work)
        ended = Ended(pool, ids, raised)
        ended.check_same(dict(zip(ids, recorders, strict=True)))
        for identity, recorder in zip(ids, recorders, strict=True):
            if identity not in ended.failures:
                # The write reads the record, so that the caller's object shows the new status.
                recorder.set_tags(**{self.STATUS_KEY: self.STATUS_END})
                continue
            with contextlib.suppress(OSError, QwfError):  # the failure is what has to be told
                recorder.list_tags()
        failures = ended.failures_of(ids)
        kept = [None if at in failures else recorder for at, recorder in enumerate(recorders)]
        return recorders_or_error(name, kept, failures)

    def worker(
        self,
        end_train_func: Callable[..., Recorder] | None = None,
        experiment_name: str | None = None,
    ) -> None:
        """Train whatever is prepared in the pool, until there is nothing left to take.

        Parameters
        ----------
        end_train_func, experiment_name : optional
            Instead of those of the trainer.

        Raises
        ------
        TasksFailedError
            If tasks failed here for good, after all others.
        """
        named = {"experiment_name": self._experiment(experiment_name)}
        self._drain(experiment_name, end_train_func or self.end_train_func, _PART_DONE, named)

    def _task_of(self, recorder: Recorder) -> str:
        tags = recorder.list_tags()
        if self.TM_ID not in tags:
            raise RecorderStateError(
                f"recorder {recorder.id} has no tag {self.TM_ID!r}, so that it was not prepared "
                f"by {type(self).__name__}.train; give it to the trainer that did. Nothing was "
                "changed."
            )
        return tags[self.TM_ID]
