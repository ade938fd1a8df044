"""Qlib's `TaskManager` over a pool in a directory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from ..errors import (
    LeaseLostError,
    PoolNotFoundError,
    TaskNotFoundError,
    TaskStatusError,
    TaskValueError,
)
from ..pool import transitions
from ..pool.check import check as check_pool
from ..pool.directory import Directory
from ..pool.insertion import Draft, known_ids
from ..pool.records import Failure, Result, encode_definition, identity_of
from ..pool.tokens import (
    DONE,
    FAILED,
    ORIGINS,
    PART_DONE,
    RUNNING,
    STATUSES,
    WAITING,
    rank_of,
)
from ..storage import fsio, layout
from ..storage.findings import Finding, Workbench
from ..types import Task
from .access import PoolAccess, explained, find_store
from .books import FetchedTask
from .queries import Query
from .waiting import wait_for

__all__ = ["TaskManager"]

_NONE: Final[Mapping[str, Any]] = {}

# In the class its method has the name `list`.
_Names: TypeAlias = list[str]
_Failures: TypeAlias = list[dict[str, Any]]
_Findings: TypeAlias = list[Finding]


class _Inserted(NamedTuple):
    """What `TaskManager.insert_task` returns, as MongoDB's driver names it."""

    inserted_id: str


class TaskManager(PoolAccess):
    """The tasks of one pool, which processes and nodes share: a directory of the store.

    A task is ``waiting``, ``running``, ``part_done``, ``done`` or ``failed``. Its id is the hash
    of its definition, so that equal definitions are one task. A task is claimed by one rename, and
    whoever holds it shows every few seconds to be alive. The tasks of a process that was killed
    come back by themselves; one that only slept is told `LeaseLostError` when it commits.

    Parameters
    ----------
    task_pool : str
        The name of the pool; the first task makes it.
    uri : str or Path, optional
        The store. Default: the one that this process is set to.
    max_attempts : int, optional
        How often a task may fail, or lose its worker, until it is ``failed``. It is kept with the
        pool and holds for all who work on it; default: as it is, 3 in a new pool.
    lease : float, default 120
        After how many seconds without a sign of life others may take the tasks of this process.
    allow_pickle : bool, default False
        Whether parts of definitions and results that are no plain data may be kept as pickles.

    Notes
    -----
    *Queries* are dicts in MongoDB's language: ``{}``, ``{"_id": id}``, ``{"_id": {"$in": ids}}``,
    ``{"status": s}``, ``{"filter.model.class": name}`` and the operators ``$in $nin $gt $gte $lt
    $lte $ne $exists $and $or``. Those by id and status read no other task's file.

    *Other processes* see a change as soon as it has returned. *A crash* between two calls loses
    nothing; a crash in a call leaves the state before it or after it, and what a dead process has
    held is taken up by the next that looks.

    Examples
    --------
    >>> manager = TaskManager("examples", uri=getfixture("tmp_path"))
    >>> ids = manager.create_task([{"model": "a"}, {"model": "b"}, {"model": "a"}])
    >>> ids[0] == ids[2], manager.task_stat()
    (True, {'waiting': 2})
    >>> task = manager.fetch_task()
    >>> manager.commit_task_res(task, {"ic": 0.03})
    >>> manager.re_query(ids[0])["res"], manager.task_stat()
    ({'ic': 0.03}, {'waiting': 1, 'done': 1})
    """

    STATUS_WAITING: Final = WAITING
    STATUS_RUNNING: Final = RUNNING
    STATUS_PART_DONE: Final = PART_DONE
    STATUS_DONE: Final = DONE
    STATUS_FAILED: Final = FAILED

    @staticmethod
    def list(uri: str | os.PathLike[str] | None = None) -> _Names:
        """Return the names of all pools of a store, sorted."""
        tasks = find_store(uri).root / layout.TASKS
        names = [name for name in fsio.list_names(tasks) if Directory(tasks / name).exists()]
        return sorted(map(layout.decode_name, names))

    # --- creating ---

    def create_task(
        self,
        task_def_l: Task | Sequence[Task],
        dry_run: bool = False,
        print_nt: bool = False,
        *,
        priority: int | None = None,
    ) -> _Names:
        """Insert the tasks that are not in the pool yet; those that are, done or not, are kept.

        Parameters
        ----------
        task_def_l : list of dict
            Definitions.
        dry_run : bool
            Insert nothing.
        print_nt : bool
            Print the definitions of new tasks.
        priority : int, optional
            Of the new ones. The highest comes first, and none last; equal ones in this order.

        Returns
        -------
        list of str
            The id of each definition, in their order; with `dry_run` too.

        Raises
        ------
        TaskValueError
            If a definition is no plain data; it names the place. Nothing was inserted.

        Notes
        -----
        *Racing submitters* of equal definitions insert one task. *A crash* leaves some inserted.
        """
        definitions = [task_def_l] if isinstance(task_def_l, Mapping) else [*task_def_l]
        rank_of(priority)
        forms = [self._encoded(definition, at) for at, definition in enumerate(definitions)]
        ids = [identity_of(form) for form in forms]
        known = known_ids(self.directory, ids) if self._is_there() else set()
        new = {
            one: at for at, one in reversed(list(enumerate(ids))) if one not in known
        }  # the first of equal ones
        chosen = sorted(new.values())
        if print_nt:
            for at in chosen:
                print(definitions[at])
        if not dry_run:
            drafts = [Draft(ids[at], encode_definition(forms[at]), priority) for at in chosen]
            self._insert(drafts)
        return ids

    def insert_task_def(self, task_def: Task) -> _Inserted:
        """Insert a definition, and return the id of its task as ``inserted_id``."""
        return _Inserted(self.create_task([task_def])[0])

    def insert_task(self, task: Mapping[str, Any]) -> _Inserted:
        """Insert a task as `query` returns it: with ``def``, and perhaps ``priority``.

        Raises
        ------
        TaskValueError
            If it has no definition, or a status other than ``waiting``. Nothing was inserted.
        """
        if "def" not in task:
            raise TaskValueError("a task needs a definition, 'def'. Nothing was inserted.")
        if task.get("status", WAITING) != WAITING:
            raise TaskValueError(
                f"a task is inserted {WAITING!r}, not {task['status']!r}: fetch it then, and "
                "commit its result. Nothing was inserted."
            )
        return _Inserted(self.create_task([task["def"]], priority=task.get("priority"))[0])

    def replace_task(self, task: Mapping[str, Any], new_task: Mapping[str, Any]) -> str:
        """Put another task in the place of one, which is removed; return the new id.

        Parameters
        ----------
        task : dict
            With ``_id``.
        new_task : dict
            A definition, or a task with ``def``.
        """
        self._found(task)
        new = dict(new_task) if "def" in new_task else {"def": dict(new_task)}
        identity = self.insert_task(new).inserted_id
        if identity != str(task["_id"]):
            self.remove({"_id": str(task["_id"])})
        return identity

    # --- working ---

    def fetch_task(
        self, query: Mapping[str, Any] = _NONE, status: str = WAITING
    ) -> FetchedTask | None:
        """Claim the next task; None if there is none.

        Parameters
        ----------
        query : dict
            Which tasks may be taken.
        status : {"waiting", "part_done"}

        Returns
        -------
        dict or None
            ``_id def filter status`` (now ``running``), ``priority`` if one was set, ``res`` if a
            part is done. The highest priority comes first, none last, else in order of insertion;
            where several workers compete, each takes one of the next 64 of equal priority.

        Notes
        -----
        *Others* never get the same task while this process lives. A process that ends without
        committing gives it back; of one that is killed the next that finds nothing to do takes it.
        """
        return self.fetch_except(query, status, set())

    @contextlib.contextmanager
    def safe_fetch_task(
        self, query: Mapping[str, Any] = _NONE, status: str = WAITING
    ) -> Iterator[FetchedTask | None]:
        """Claim a task for a ``with`` block, which has to commit it.

        If the block raises, its error is noted and the task goes back to `status`, or to
        ``failed`` after its last attempt. If it ends by an exit, an interrupt or a ``break``, the
        task goes back, and that is not counted. What was raised goes on.
        """
        task = self.fetch_task(query, status)
        try:
            yield task
        except Exception as error:
            if task is not None and self._holds(task):
                with contextlib.suppress(LeaseLostError):
                    self.fail_task(task, error)
            raise
        except BaseException:
            if task is not None:
                self.give_up(task)
            raise

    def task_fetcher_iter(self, query: Mapping[str, Any] = _NONE) -> Iterator[FetchedTask]:
        """Yield waiting tasks until there are none; each is in `safe_fetch_task`'s care."""
        while True:
            with self.safe_fetch_task(query) as task:
                if task is None:
                    return
                yield task

    def commit_task_res(self, task: Mapping[str, Any], res: Any, status: str | None = DONE) -> None:
        """Write the result of a task that this process has fetched; durable when this returns.

        Parameters
        ----------
        task : dict
            What `fetch_task` returned.
        res : any
            Plain data, a `Recorder` (kept as a reference), or with ``allow_pickle`` anything.
        status : {"done", "part_done"}

        Raises
        ------
        LeaseLostError
            If the task is not this process's any more. Nothing was written.
        TaskValueError
            If the result cannot be kept; it names the place. The task is still held.
        """
        token = self._claim_of(task)
        form = self._values.encode(res, f"the result of task {token.id}")
        result = Result(form, self._by(token))
        transitions.commit(self.directory, self._worker(), token, result, status or DONE)
        self._fetched.discard(token.id)

    def return_task(self, task: Mapping[str, Any], status: str | None = None) -> None:
        """Give a fetched task back without a result; the attempt is not counted.

        Parameters
        ----------
        task : dict
            What `fetch_task` returned.
        status : {"waiting", "part_done"}, optional
            Default: where it came from.

        Raises
        ------
        LeaseLostError
            If the task is not this process's any more.
        TaskStatusError
            If it would be done in part without a result. The task is still held.
        """
        if status is not None and status not in ORIGINS:
            raise TaskStatusError(status, ORIGINS, "a task cannot be given back to")
        self._give_back(task, status)

    def fail_task(
        self, task: Mapping[str, Any], error: BaseException | str, *, final: bool = False
    ) -> str:
        """Note that the attempt has failed, and why.

        Parameters
        ----------
        task : dict
            What `fetch_task` returned.
        error : exception or str
            Its traceback is kept, with host, pid and times.
        final : bool
            Whether another attempt would make no sense.

        Returns
        -------
        str
            The status now: where it came from, or ``failed`` after its last attempt.

        Raises
        ------
        LeaseLostError
            If the task is not this process's any more.
        """
        token = self._claim_of(task)
        said, trace = explained(error)
        failure = Failure(said, trace, self._by(token))
        self._fetched.discard(token.id)
        return transitions.fail(self.directory, self._worker(), token, failure, final=final)

    # --- looking ---

    def query(
        self, query: Mapping[str, Any] = _NONE, decode: bool = True
    ) -> Iterator[dict[str, Any]]:
        """Yield the tasks that match, in the order of their insertion.

        Parameters
        ----------
        query : dict
        decode : bool
            False: only what names tell (``_id status priority attempts origin``), without reading
            files.

        Yields
        ------
        dict
            ``_id def filter status``, and where there is one ``priority``, ``res``, ``error``. Of
            one that cannot be read ``def`` is None, and ``error`` says why.
        """
        parsed = Query.parse(query)
        if not self._is_there():
            return
        for status, token in self.books.select(parsed):
            if not decode:
                yield self.books.outline(status, token)
                continue
            row = self.books.row(status, token)
            if row is not None:
                yield row

    def re_query(self, _id: object) -> dict[str, Any]:
        """Return a task as it is now.

        Raises
        ------
        TaskNotFoundError
            If there is none of this id.
        """
        for task in self.query({"_id": str(_id)}):
            return task
        raise TaskNotFoundError(_id, pool=self.task_pool)

    def failures(self, _id: object) -> _Failures:
        """Return what is known of the failed attempts of a task, the oldest first.

        Returns
        -------
        list of dict
            ``error traceback host pid worker attempt started_at ended_at``, as far as known.

        Raises
        ------
        TaskNotFoundError
            If there is no task of this id.
        """
        _, token = self._found({"_id": str(_id)})
        return self.books.failures(token)

    def task_stat(self, query: Mapping[str, Any] = _NONE) -> dict[str, int]:
        """Return how many tasks there are in each status; statuses without any are left out."""
        parsed = Query.parse(query)
        counts = self.books.count(parsed) if self._is_there() else {}
        return {status: counts[status] for status in STATUSES if status in counts}

    def wait(
        self,
        query: Mapping[str, Any] = _NONE,
        *,
        timeout: float | None = None,
        on_failure: str = "raise",
    ) -> dict[str, int]:
        """Return when none of the tasks is waiting, running or done in part.

        Shows its progress, and takes up what dead workers leave. See `waiting.wait_for`.

        Parameters
        ----------
        query : dict
        timeout : float, optional
            Seconds.
        on_failure : {"raise", "stop", "ignore"}
            ``raise``: when all have ended, raise if some failed. ``stop``: raise as soon as one
            has. ``ignore``: return.

        Returns
        -------
        dict
            As of `task_stat`.

        Raises
        ------
        TasksFailedError
        PoolTimeoutError
        """
        return wait_for(self, query, timeout=timeout, on_failure=on_failure)

    # --- changing what others do ---

    def remove(self, query: Mapping[str, Any] = _NONE) -> int:
        """Remove tasks with their results, running ones too; ``{}`` removes all.

        Returns
        -------
        int
            How many were removed.
        """
        if not self._is_there():
            return 0
        tokens = [*self.books.select(Query.parse(query))]
        return transitions.remove(self.directory, self._worker(), tokens)

    def reset_waiting(self, query: Mapping[str, Any] = _NONE, *, force: bool = False) -> int:
        """Give back running tasks whose worker is dead, and those that this object has fetched.

        Parameters
        ----------
        query : dict
        force : bool
            Also those of living workers, which are refused when they commit.

        Returns
        -------
        int
            How many are waiting, or done in part, again.
        """
        return self._reset({**query, "status": RUNNING}, None, force=force)

    def reset_status(self, query: Mapping[str, Any], status: str, *, force: bool = False) -> int:
        """Bring tasks into a status; running ones of living workers only with `force`.

        Parameters
        ----------
        query : dict
        status : {"waiting", "part_done", "done", "failed"}
            ``done`` and ``part_done`` only for tasks that have a result.

        Returns
        -------
        int
            How many were brought there.
        """
        allowed = [one for one in STATUSES if one != RUNNING]
        if status not in allowed:
            raise TaskStatusError(status, allowed, "tasks cannot be set to")
        return self._reset(query, status, force=force)

    def retry(self, query: Mapping[str, Any] = _NONE) -> int:
        """Have failed tasks tried again, as if they never had been; return how many."""
        return self._reset({**query, "status": FAILED}, None, force=False)

    def prioritize(self, task: Mapping[str, Any], priority: int | None) -> None:
        """Change the priority of a task, in whatever status.

        Raises
        ------
        TaskNotFoundError
            If there is none.
        """
        rank_of(priority)
        identity = str(task["_id"])
        if not self._is_there() or not transitions.prioritize(self.directory, identity, priority):
            raise TaskNotFoundError(identity, pool=self.task_pool)

    def recover(self, *, every: float = 0.0) -> int:
        """Take up what dead workers have left; return how many tasks were taken from them.

        `fetch_task` and `wait` do this too. A worker on another host is believed dead at the
        second look, a second or more after the first.
        """
        if not self._is_there():
            return 0
        taken = self._recovery.run(self._worker(), every=every)
        if taken:
            self.look_again()
        return taken

    def check(self, *, repair: bool = False, older_than_seconds: float = 3600.0) -> _Findings:
        """Look at every file of the pool, and set right what can be.

        Parameters
        ----------
        repair : bool
            Otherwise nothing is changed.
        older_than_seconds : float
            From which age on what an unfinished write left belongs to nobody.

        Returns
        -------
        list of Finding
            Empty for a sound pool. What others are just doing is none, and is not disturbed.

        Raises
        ------
        PoolNotFoundError
            If there is no such pool.
        """
        if not self.directory.root.is_dir():
            raise PoolNotFoundError(self.directory.root)
        bench = Workbench(self._store.root, repair=repair, older_than_seconds=older_than_seconds)
        return check_pool(self.directory, bench, lease=self._lease)
