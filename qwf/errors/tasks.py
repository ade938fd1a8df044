"""Errors of training and of task pools."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

from .base import QwfError, suggest

__all__ = [
    "AmbiguousTaskError",
    "LeaseLostError",
    "PoolNotFoundError",
    "PoolTimeoutError",
    "QueryError",
    "RemoteTaskError",
    "TaskNotFoundError",
    "TaskStatusError",
    "TaskValueError",
    "TasksFailedError",
    "TrainingError",
    "WorkersDiedError",
]


class TrainingError(QwfError, RuntimeError):
    """Some tasks of several failed; the others were trained all the same.

    Attributes
    ----------
    experiment : str or None
        The name that the trainer was given.
    recorders : list of Recorder or None
        In the order of the tasks; None where one failed.
    failures : dict of int to exception
        By the position of the task.
    """

    def __init__(
        self,
        experiment: str | None,
        *,
        recorders: Sequence[Any],
        failures: Mapping[int, BaseException],
    ) -> None:
        super().__init__()
        self.experiment = experiment
        self.recorders, self.failures = list(recorders), dict(sorted(failures.items()))

    def __str__(self) -> str:
        shown = [
            f"task {index}: {type(error).__name__}: {error}"
            for index, error in list(self.failures.items())[:3]
        ]
        more = len(self.failures) - len(shown)
        return (
            f"{len(self.failures)} of {len(self.recorders)} tasks failed in experiment "
            f"{self.experiment!r}: {'; '.join(shown)}{f'; and {more} more' if more else ''}. The "
            f"other {len(self.recorders) - len(self.failures)} are trained and kept, and "
            "`recorders` of this error holds them. Mend the tasks of `failures` and train those "
            "again."
        )


class RemoteTaskError(QwfError, RuntimeError):
    """A task has failed in another process, or before; its last failure, as the pool tells it.

    Attributes
    ----------
    identity : str
        The id of the task.
    error, traceback : str
    host, pid
        Where it failed; None if that is not known.
    """

    def __init__(
        self,
        identity: str,
        error: str,
        *,
        traceback: str = "",
        host: str | None = None,
        pid: int | None = None,
    ) -> None:
        super().__init__()
        self.identity, self.error, self.traceback = identity, error, traceback
        self.host, self.pid = host, pid

    def __str__(self) -> str:
        where = "" if self.pid is None else f", pid {self.pid} on {self.host}"
        return f"{self.error} (task {self.identity}{where})"


class PoolNotFoundError(QwfError, FileNotFoundError):
    """There is no task pool where one was to be read."""

    def __init__(self, path: str | PathLike[str]) -> None:
        super().__init__()
        self.path = path

    def __str__(self) -> str:
        return (
            f"there is no task pool at {self.path}. Nothing was created. TaskManager.list() and "
            "'qwf tasks list' name those that there are; create_task makes one."
        )


class TaskNotFoundError(QwfError, KeyError):
    """A pool has no task with an id."""

    def __init__(self, identity: object, *, pool: object) -> None:
        super().__init__()
        self.identity, self.pool = identity, pool

    def __str__(self) -> str:
        return f"the pool {self.pool} has no task {self.identity!r}. Nothing was changed."


class AmbiguousTaskError(QwfError, ValueError):
    """A part of an id that several tasks have."""

    def __init__(self, part: str, found: Sequence[str], *, pool: str) -> None:
        super().__init__()
        self.part, self.found, self.pool = part, list(found), pool

    def __str__(self) -> str:
        more = f" and {len(self.found) - 5} more" if len(self.found) > 5 else ""
        return (
            f"{len(self.found)} tasks of pool {self.pool!r} have {self.part!r} in their ids: "
            f"{', '.join(self.found[:5])}{more}. Give more of the id. Nothing was changed."
        )


class TaskValueError(QwfError, TypeError, ValueError):
    """A definition, result or priority that a pool cannot keep."""


class TaskStatusError(QwfError, ValueError):
    """A status that a task cannot be brought to, or fetched from."""

    def __init__(self, status: object, allowed: Iterable[str], what: str) -> None:
        super().__init__()
        self.status, self.allowed, self.what = status, tuple(allowed), what

    def __str__(self) -> str:
        near = suggest(self.status, self.allowed)
        return f"{self.what} {self.status!r}; {near} Nothing was changed."


class QueryError(QwfError, ValueError):
    """A query of a task pool that cannot be understood; `place` is the key or operator."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__()
        self.place, self.reason = place, reason

    def __str__(self) -> str:
        end = "" if self.reason.endswith((".", "?")) else "."
        return f"the query has a mistake at {self.place!r}: {self.reason}{end} Nothing was changed."


class LeaseLostError(QwfError, RuntimeError):
    """A task that was to be committed or given back is not this process's any more."""

    def __init__(self, identity: str, pool: str | PathLike[str]) -> None:
        super().__init__()
        self.identity, self.pool = identity, pool

    def __str__(self) -> str:
        return (
            f"task {self.identity} of the pool {self.pool} is not this process's any more: it has "
            "committed it or given it back before, it gave no sign of life for longer than its "
            "lease, or somebody has reset or removed the task. Whoever has it now goes on; what "
            "was to be written here was not."
        )


class PoolTimeoutError(QwfError, TimeoutError):
    """Tasks were not done in the time that they were waited for."""

    def __init__(self, pool: str, seconds: float, counts: Mapping[str, int]) -> None:
        super().__init__()
        self.pool, self.seconds, self.counts = pool, seconds, dict(counts)

    def __str__(self) -> str:
        found = ", ".join(f"{number} {status}" for status, number in self.counts.items())
        return (
            f"the tasks of pool {self.pool!r} were not done within {self.seconds:g} s: {found}. "
            "They go on; wait again, or look for workers with 'qwf tasks stat'."
        )


class TasksFailedError(QwfError, RuntimeError):
    """Tasks of a pool have failed for good; ``failures`` has the last error of each, by id."""

    def __init__(self, pool: str, failures: Mapping[str, str], *, others: str) -> None:
        super().__init__()
        self.pool, self.failures, self.others = pool, dict(failures), others

    def __str__(self) -> str:
        first, error = next(iter(self.failures.items()))
        many = len(self.failures)
        return (
            f"{many} task{'s' * (many > 1)} of pool {self.pool!r} failed; the first, {first}: "
            f"{error.rstrip('.')}. {self.others} 'qwf tasks show' has the tracebacks; "
            "retry() or 'qwf tasks retry' has them tried again."
        )


class WorkersDiedError(QwfError, RuntimeError):
    """The processes of a worker died one after the other; `last` is how the last one did."""

    def __init__(self, pool: str, deaths: int, last: BaseException) -> None:
        super().__init__()
        self.pool, self.deaths, self.last = pool, deaths, last

    def __str__(self) -> str:
        return (
            f"{self.deaths} processes that worked on pool {self.pool!r} died in a row, and no task "
            f"ended between; the last: {self.last} What they held is waiting again, or failed "
            "after its last attempt. No more are started: see whether memory and disk suffice for "
            "so many at once (-n)."
        )
