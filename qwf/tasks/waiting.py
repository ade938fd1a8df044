"""Waiting until tasks have ended, with progress; what is waited for may never end, and is told."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol

from ..errors import ConfigError, PoolTimeoutError, TasksFailedError, suggest
from ..pool.tokens import DONE, FAILED, PART_DONE, RUNNING, STATUSES, WAITING
from ..progress import Meter
from .books import Books
from .queries import Query

__all__ = ["ON_FAILURE", "wait_for"]

ON_FAILURE: Final = ("raise", "stop", "ignore")

_UNDONE: Final = (WAITING, RUNNING, PART_DONE)
_FIRST_PAUSE_SECONDS: Final = 0.02
_LONGEST_PAUSE_SECONDS: Final = 2.0
# Looking must not cost more than a small part of the time.
_PAUSES_PER_LOOK: Final = 20
_RECOVERY_SECONDS: Final = 1.0
_LONELY_SECONDS: Final = 30.0


class _Manager(Protocol):
    """What is needed of a `TaskManager`."""

    task_pool: str
    books: Books

    def task_stat(self, query: Mapping[str, Any]) -> dict[str, int]: ...

    def query(self, query: Mapping[str, Any], decode: bool = True) -> Iterator[dict[str, Any]]: ...

    def recover(self, *, every: float) -> int: ...


_logger: Final = logging.getLogger("qwf.tasks")


def wait_for(
    manager: _Manager,
    query: Mapping[str, Any],
    *,
    timeout: float | None = None,
    on_failure: str = "raise",
    undone: tuple[str, ...] = _UNDONE,
    work: Callable[[], bool] | None = None,
) -> dict[str, int]:
    """Return when no task that matches is undone; until then wait, or work.

    Parameters
    ----------
    manager : TaskManager
    query : dict
    timeout : float, optional
        Seconds.
    on_failure : {"raise", "stop", "ignore"}
        ``raise``: when all have ended, raise if some failed; ``stop``: raise as soon as one has.
    undone : tuple of str
        The statuses that count as not ended. Without ``part_done`` a task of which a part is done
        has ended, also while somebody works on the rest.
    work : callable, optional
        Does a piece of the work, and returns whether there was any to do; it is called again and
        again.

    Returns
    -------
    dict
        Status to number of tasks.

    Raises
    ------
    TasksFailedError
        Names the failed tasks and their last errors.
    PoolTimeoutError
        If the time is over. The tasks go on.

    Notes
    -----
    The pool is looked at again after a pause of at least twenty times what a look takes, and at
    most two seconds while that is possible. What dead workers leave is taken up meanwhile, so that
    this ends also when all work is done by others who die.
    """
    if on_failure not in ON_FAILURE:
        raise ConfigError(
            f"on_failure is {on_failure!r}; {suggest(on_failure, ON_FAILURE)} Nothing was done."
        )
    parsed = Query.parse(query)
    begun = time.monotonic()
    pause = _FIRST_PAUSE_SECONDS
    lonely = _Lonely(manager.task_pool)
    counts = _counted(manager, query, undone)
    what = f"{'wait for' if work is None else 'work on'} {manager.task_pool}"
    with Meter(sum(counts.values()), what) as meter:
        while True:
            looked = time.monotonic()
            if PART_DONE in undone and not _ended(counts, undone):
                counts = _at_a_glance(manager, parsed, counts)
            if PART_DONE not in undone or _ended(counts, undone):
                counts = _counted(manager, query, undone)  # tasks that move are missed by a glance
            _show(meter, counts, undone)
            if counts.get(FAILED) and (on_failure == "stop" or _ended(counts, undone)):
                if on_failure == "ignore":
                    return counts
                raise failed(manager, query, "The others go on.")
            if _ended(counts, undone):
                return counts
            waited = time.monotonic() - begun
            if timeout is not None and waited >= timeout:
                raise PoolTimeoutError(manager.task_pool, timeout, manager.task_stat(query))
            lonely.look(counts)
            took = time.monotonic() - looked
            if work is not None and _worked(work, _PAUSES_PER_LOOK * took):
                pause = _FIRST_PAUSE_SECONDS
            else:
                pause = max(min(1.5 * pause, _LONGEST_PAUSE_SECONDS), _PAUSES_PER_LOOK * took)
                left = pause if timeout is None else min(pause, timeout - waited)
                time.sleep(max(0.0, left))
            manager.recover(every=_RECOVERY_SECONDS)


def failed(manager: _Manager, query: Mapping[str, Any], others: str) -> TasksFailedError:
    """Return the error that names the failed tasks of a query."""
    found = manager.query({**query, "status": FAILED})
    failures = {task["_id"]: str(task["error"]) for task in found}
    return TasksFailedError(
        manager.task_pool, failures or {"(removed meanwhile)": "unknown"}, others=others
    )


def _ended(counts: Mapping[str, int], undone: tuple[str, ...]) -> bool:
    return not any(counts.get(status) for status in undone)


def _counted(
    manager: _Manager, query: Mapping[str, Any], undone: tuple[str, ...]
) -> dict[str, int]:
    if PART_DONE in undone:
        return manager.task_stat(query)
    found = manager.query(query, decode=False)
    return dict(
        Counter(PART_DONE if one["origin"] == PART_DONE else one["status"] for one in found)
    )


def _worked(work: Callable[[], bool], seconds: float) -> bool:
    """Work for some time, or for one piece that takes longer; return whether there was any."""
    latest = time.monotonic() + seconds
    worked = False
    while work():
        worked = True
        if time.monotonic() >= latest:
            break
    return worked


def _at_a_glance(manager: _Manager, query: Query, before: Mapping[str, int]) -> dict[str, int]:
    """Count again what has not ended and has failed, by a listing of those directories only."""
    if query.needs_document:
        return {**before, **dict.fromkeys(STATUSES, 0), **manager.books.count(query)}
    total = sum(before.values())
    now = {
        status: manager.books.count_names(query, status) for status in STATUSES if status != DONE
    }
    return {**now, DONE: max(0, total - sum(now.values()))}


def _show(meter: Meter, counts: Mapping[str, int], undone: tuple[str, ...]) -> None:
    meter.total = max(meter.total, sum(counts.values()))
    bad = counts.get(FAILED, 0)
    good = sum(counts.values()) - bad - sum(counts.get(status, 0) for status in undone)
    for _ in range(good - meter.done):
        meter.count()
    for _ in range(bad - meter.failed):
        meter.count(failed=True)


class _Lonely:
    """Says once that tasks wait and nobody takes them."""

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._since = time.monotonic()
        self._counts: dict[str, int] = {}
        self._told = False

    def look(self, counts: Mapping[str, int]) -> None:
        if counts.get(RUNNING) or dict(counts) != self._counts:
            self._since, self._counts = time.monotonic(), dict(counts)
        elif not self._told and time.monotonic() - self._since > _LONELY_SECONDS:
            self._told = True
            _logger.warning(
                "%d tasks of pool %r wait and no worker takes them: start 'qwf worker %s'",
                counts.get(WAITING, 0) + counts.get(PART_DONE, 0),
                self._pool,
                self._pool,
            )
