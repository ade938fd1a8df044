"""How the tasks of a trainer come through a pool: put in, worked on, and taken out as recorders."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, Final

from ..errors import (
    RecorderNotFoundError,
    RecorderStateError,
    RemoteTaskError,
    TaskNotFoundError,
)
from ..parallel import Call, steps_in_processes
from ..tasks.manage import TaskManager
from ..tasks.results import MissingRecorder
from ..tasks.run import Work, working
from ..tasks.waiting import wait_for
from ..tracking.recorder import Recorder
from .base import Trainer

__all__ = ["TM_ID", "Ended", "begin_again", "tag_begun", "these", "work_through"]

TM_ID: Final = "_id in TaskManager"

_WAITING: Final = TaskManager.STATUS_WAITING
_RUNNING: Final = TaskManager.STATUS_RUNNING
_PART_DONE: Final = TaskManager.STATUS_PART_DONE
_DONE: Final = TaskManager.STATUS_DONE
_FAILED: Final = TaskManager.STATUS_FAILED

_logger: Final = logging.getLogger("qwf.trainer")


def these(ids: Sequence[str]) -> dict[str, Any]:
    """Return the query for tasks of some ids."""
    return {"_id": {"$in": sorted(set(ids))}}


def begin_again(pool: TaskManager, ids: Sequence[str], after_status: str) -> None:
    """Have tasks tried again that have failed, and those of which the recorder is gone."""
    ended = {**these(ids), "status": {"$in": [_PART_DONE, _DONE, _FAILED]}}
    gone = [one["_id"] for one in pool.query(ended) if isinstance(one.get("res"), MissingRecorder)]
    if gone:
        pool.reset_status({**ended, "_id": {"$in": gone}}, _WAITING)
    failed = {**these(ids), "status": _FAILED}
    if after_status == _PART_DONE:
        pool.retry(failed)  # what is prepared stays so
    else:
        pool.reset_status(failed, _WAITING)


# --- in between ----------------------------------------------------------------------------------


def work_through(pool: TaskManager, work: Work, *, processes: int) -> dict[str, BaseException]:
    """Return when the tasks of some work have ended, whoever has done it.

    Parameters
    ----------
    pool : TaskManager
    work : Work
        If it does but a part of the tasks, they are waited for until that is done.
    processes : int
        How many to start; 1: the work is done in this process; 0: only by others.

    Returns
    -------
    dict of str to exception
        What was raised in this process, by the id of the task.
    """
    raised: dict[str, BaseException] = {}
    wait = partial(wait_for, pool, work.query, on_failure="ignore")
    if work.after_status == _PART_DONE:
        wait = partial(wait, undone=(_WAITING, _RUNNING))
    if processes == 0:
        wait()
        return raised
    pieces = _here(pool, work, raised) if processes == 1 else _in_processes(pool, work, processes)
    with contextlib.closing(pieces):
        wait(work=partial(next, pieces))
    return raised


def _here(
    pool: TaskManager, work: Work, raised: dict[str, BaseException]
) -> Generator[bool, None, None]:
    """Take a task in this process for each time that is asked; yield whether there was one."""
    while True:
        for ended in working(pool, work):
            if ended.error is not None:
                _warn(pool, ended.id, ended.error)
                raised[ended.id] = ended.error
            yield True
        yield False


def _in_processes(pool: TaskManager, work: Work, processes: int) -> Generator[bool, None, None]:
    """Have processes work as long as there are tasks; yield whether there are, every second."""
    while True:
        before = _progress(pool, work)
        takeable = sum(status == work.before_status for status, _ in before.values())
        at_once = min(processes, takeable)
        if not at_once:
            yield False
            continue
        calls = [Call(f"worker of pool {pool.task_pool!r}", partial(_work, pool, work))] * at_once
        death: BaseException | None = None
        with contextlib.closing(steps_in_processes(calls, at_once)) as steps:
            for outcome in steps:
                if outcome is not None and outcome.error is not None:
                    if not isinstance(outcome.error, BrokenProcessPool):
                        raise outcome.error
                    death = outcome.error
                    _logger.warning("%s", death)
                yield True
        pool.recover()
        # One that dies with a task costs an attempt; those that die before would do so for ever.
        if death is not None and _progress(pool, work) == before:
            raise death


def _progress(pool: TaskManager, work: Work) -> dict[str, tuple[str, int]]:
    found = pool.query(work.query, decode=False)
    return {one["_id"]: (one["status"], one["attempts"]) for one in found}


def _work(pool: TaskManager, work: Work) -> None:
    for ended in working(pool, work):
        if ended.error is not None:
            _warn(pool, ended.id, ended.error)


def _warn(pool: TaskManager, identity: str, error: BaseException) -> None:
    _logger.warning("task %s of pool %r failed: %r", identity, pool.task_pool, error)


# --- after ---------------------------------------------------------------------------------------


class Ended:
    """What has become of tasks, by id: a recorder, or an error."""

    def __init__(
        self, pool: TaskManager, ids: Sequence[str], raised: Mapping[str, BaseException]
    ) -> None:
        self.recorders: dict[str, Recorder] = {}
        self.failures: dict[str, BaseException] = {}
        found = {task["_id"]: task for task in pool.query(these(ids))}
        for identity in ids:
            task = found.get(identity)
            if task is None:
                self.failures[identity] = TaskNotFoundError(identity, pool=pool.task_pool)
            elif task["status"] == _FAILED:
                self.failures[identity] = raised.get(identity) or _last_failure(pool, task)
            elif isinstance(task.get("res"), Recorder):
                self.recorders[identity] = task["res"]
            else:
                self.failures[identity] = _no_recorder(task)

    def check_same(self, recorders: Mapping[str, Recorder]) -> None:
        """Take it for a failure if the task of a recorder has another one as its result."""
        for identity, recorder in recorders.items():
            result = self.recorders.get(identity)
            if result is not None and result.id != recorder.id:
                self.failures[identity] = RecorderStateError(
                    f"the result of task {identity} is recorder {result.id}, not {recorder.id}: "
                    "somebody has had it prepared again meanwhile. Nothing was changed in "
                    f"{recorder.id}; train() returns the other one."
                )

    def failures_of(self, ids: Sequence[str]) -> dict[int, BaseException]:
        """Return the failures by position."""
        return {at: self.failures[one] for at, one in enumerate(ids) if one in self.failures}


def _last_failure(pool: TaskManager, task: Mapping[str, Any]) -> BaseException:
    known = [*pool.failures(task["_id"])]
    last = known[-1] if known else {}
    return RemoteTaskError(
        task["_id"],
        str(task.get("error")),
        traceback=str(last.get("traceback", "")),
        host=last.get("host"),
        pid=last.get("pid"),
    )


def _no_recorder(task: Mapping[str, Any]) -> BaseException:
    result = task.get("res")
    if isinstance(result, MissingRecorder):
        return RecorderNotFoundError("id", result.id, experiment=result.experiment_id, known=())
    if "res" in task:
        return TypeError(
            f"the result of task {task['_id']} is a {type(result).__name__}, and a recorder is "
            "expected: the train function has to return one. It was left in the pool."
        )
    if "error" in task:  # its files are damaged
        return RemoteTaskError(task["_id"], str(task["error"]))
    return RemoteTaskError(task["_id"], f"it is {task['status']} again: somebody has reset it")


def tag_begun(recorder: Recorder, identity: str) -> None:
    """Add the tags of a prepared or trained recorder; one that is trained stays so."""
    present = recorder.list_tags()
    wanted = {Trainer.STATUS_KEY: Trainer.STATUS_BEGIN, TM_ID: identity}
    recorder.set_tags(**{key: text for key, text in wanted.items() if key not in present})
