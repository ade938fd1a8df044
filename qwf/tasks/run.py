"""Qlib's `run_task`: take tasks from a pool one after the other and call a function with each."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import parent_process
from typing import Any, Final

from ..errors import (
    LeaseLostError,
    QwfError,
    TasksFailedError,
    TaskStatusError,
    TaskValueError,
    WriteError,
)
from ..parallel import GRACE_SECONDS, Call, in_processes
from ..pool.tokens import DONE, FAILED, ORIGINS, PART_DONE, WAITING
from ..tracking.recorder import Recorder
from .books import FetchedTask
from .manage import TaskManager

__all__ = ["LOST", "Ended", "Work", "run_task", "working"]

# What has become of an attempt of which somebody else has the task now.
LOST: Final = "lost"

_NONE: Final[Mapping[str, Any]] = {}

# How long a call in a process of its own may go on when its parent is killed.
_ORPHAN_SECONDS: Final = 0.2

_logger: Final = logging.getLogger("qwf.tasks")


@dataclass(frozen=True)
class Work:
    """What is done with each task.

    Attributes
    ----------
    call : callable
        Gets the definition of a waiting task, or the result of one that is done in part, and
        `kwargs`; returns the result.
    query : mapping
        Which tasks.
    before_status : {"waiting", "part_done"}
    after_status : {"done", "part_done"}
    force_release : bool
        Whether each call has a fresh process, which gives all its memory back.
    kwargs : mapping
    """

    call: Callable[..., Any]
    query: Mapping[str, Any] = field(default_factory=dict)
    before_status: str = WAITING
    after_status: str = DONE
    force_release: bool = False
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.before_status not in ORIGINS:
            raise TaskStatusError(self.before_status, ORIGINS, "before_status cannot be")
        if self.after_status not in (DONE, PART_DONE):
            raise TaskStatusError(self.after_status, (DONE, PART_DONE), "after_status cannot be")

    def run(self, task: FetchedTask) -> Any:
        """Call the function with what it gets of a task."""
        argument = task["def"] if self.before_status == WAITING else task["res"]
        call = partial(self.call, argument, **self.kwargs)
        if not self.force_release:
            return call()
        outcomes = in_processes([Call(f"task {task['_id']}", partial(_for_parent, call))], 1)
        with contextlib.closing(outcomes):
            outcome = next(outcomes)
        if outcome.error is not None:
            raise outcome.error
        return outcome.value


def _for_parent(call: Callable[[], Any]) -> Any:
    """Call in a process of its own, which ends when the one that holds the task is killed.

    Others take up the task then, and what this process came to would be a second result.
    """
    threading.Thread(target=_end_with_parent, name="qwf-orphan", daemon=True).start()
    return call()


def _end_with_parent() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    parent, known = parent_process(), os.getppid()
    while os.getppid() == known and (parent is None or parent.is_alive()):
        time.sleep(_ORPHAN_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)  # its run becomes FAILED
    time.sleep(GRACE_SECONDS)
    os._exit(128 + signal.SIGTERM)


@dataclass(frozen=True)
class Ended:
    """What has become of one attempt: the task's status now, or ``lost``; seconds; the error."""

    id: str
    definition: Any
    status: str
    seconds: float
    error: BaseException | None = None


def run_task(
    task_func: Callable[..., Any],
    task_pool: str | TaskManager,
    query: Mapping[str, Any] = _NONE,
    force_release: bool = False,
    before_status: str = WAITING,
    after_status: str = DONE,
    **kwargs: Any,
) -> bool:
    """Call a function with each task of a pool, until there is none to take.

    Parameters
    ----------
    task_func : callable
        ``task_func(task["def"], **kwargs)`` for waiting tasks, ``task_func(task["res"], **kwargs)``
        for those done in part. What it returns becomes the result.
    task_pool : str or TaskManager
    query : dict
        Which tasks may be taken.
    force_release : bool
        Make each call in a fresh process, which gives all its memory back.
    before_status : {"waiting", "part_done"}
        Which tasks are taken.
    after_status : {"done", "part_done"}
        What they are then.

    Returns
    -------
    bool
        Whether there was any task.

    Raises
    ------
    TasksFailedError
        When no more tasks can be taken, if some of those taken here have failed for good.
    TaskStatusError
        If one of the statuses is impossible. Nothing was done.
    WriteError
        If a result cannot be written, as on a full disk. Its task was given back.

    Notes
    -----
    A task of which the function raises is tried again, here after all others or by another worker,
    until it is ``failed`` after the pool's ``max_attempts``; other tasks are not held up. An exit
    or an interrupt gives the task back. Whoever else works on the pool gets other tasks.
    """
    manager = task_pool if isinstance(task_pool, TaskManager) else TaskManager(task_pool)
    work = Work(task_func, query, before_status, after_status, force_release, kwargs)
    failures: dict[str, BaseException] = {}
    ran = False
    for ended in working(manager, work):
        ran = True
        if ended.status == FAILED and ended.error is not None:
            failures[ended.id] = ended.error
    if failures:
        said = {one: f"{type(error).__name__}: {error}" for one, error in failures.items()}
        raise TasksFailedError(manager.task_pool, said, others="The others were done.") from next(
            iter(failures.values())
        )
    return ran


def working(manager: TaskManager, work: Work) -> Generator[Ended, None, None]:
    """Take tasks and work on them, until there is none to take; yield how each attempt ended.

    Those that have failed here come again only when there are no others.
    """
    failed_here: set[str] = set()
    # What is done in part before and after would come again for ever.
    passed: set[str] = set()
    while True:
        task = manager.fetch_except(work.query, work.before_status, failed_here | passed)
        while manager.unreadable:
            identity, status, error = manager.unreadable.pop()
            failed_here.add(identity)
            yield Ended(identity, "its definition cannot be read", status, 0.0, error)
        if task is None:
            if not failed_here:
                return
            failed_here = set()
            manager.look_again()
            continue
        ended = _work_on(manager, work, task)
        if ended.error is not None:
            failed_here.add(ended.id)
        elif work.before_status == work.after_status:
            passed.add(ended.id)
        yield ended


def _work_on(manager: TaskManager, work: Work, task: FetchedTask) -> Ended:
    begun = time.monotonic()

    def ended(status: str, error: BaseException | None = None) -> Ended:
        return Ended(str(task["_id"]), task["def"], status, time.monotonic() - begun, error)

    result = None
    try:
        try:
            result = work.run(task)
        except Exception as error:  # noqa: BLE001 - it is the task's, and is kept with it
            return ended(manager.fail_task(task, error), error)
        try:
            manager.commit_task_res(task, result, work.after_status)
        except TaskValueError as error:  # it would be no better the next time
            return ended(manager.fail_task(task, error, final=True), error)
    except LeaseLostError as error:
        _logger.warning("%s", error)
        _disown(result, work)
        return ended(LOST, error)
    except WriteError:
        manager.give_up(task)
        _disown(result, work)
        raise
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        manager.give_up(task)
        raise
    return ended(work.after_status)


def _disown(result: Any, work: Work) -> None:
    """Fail the recorder of an attempt that is not the task's result, lest it be taken for one.

    What was begun by somebody else is left alone: whoever has the task now goes on with it.
    """
    if isinstance(result, Recorder) and work.before_status == WAITING:
        with contextlib.suppress(OSError, QwfError):
            result.end_run(Recorder.STATUS_FA)
