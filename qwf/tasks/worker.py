"""Several processes that work on a pool: until nothing is left, or until they are told to end.

A process that dies is replaced, and what it held is taken up at once; of those that are told to end
everything is given back.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from ctypes import c_int64
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.sharedctypes import RawArray
from types import FrameType
from typing import Any, Final

from ..errors import QwfError, WorkersDiedError
from ..instantiate import accepted_keywords
from ..instantiate.modules import find_attribute
from ..parallel import Call, Outcome, in_processes
from ..pool.recovery import LOST_WORKER
from ..pool.tokens import DONE, FAILED, WAITING, parse_token
from .manage import TaskManager
from .queries import Query
from .run import LOST, Ended, Work, working

__all__ = ["Job", "Tally", "load_function", "work_together"]

_FIRST_PAUSE_SECONDS: Final = 0.05
# A task that is inserted later waits so long for workers that stay.
_LONGEST_PAUSE_SECONDS: Final = 3.0
# Looking must not cost more than a small part of the time.
_PAUSES_PER_LOOK: Final = 10

# One task may be too large for this machine; if nothing else ends either, something is wrong here.
_DEATHS_IN_A_ROW: Final = 10
_LONGEST_DELAY_SECONDS: Final = 8.0

_logger: Final = logging.getLogger("qwf.tasks")

# Exit codes with which a process says that it was told to end.
_TOLD_TO_END: Final = (128 + signal.SIGTERM, 128 + signal.SIGINT)


@dataclass(frozen=True)
class Job:
    """What the processes of one worker do: plain data, since they may be started afresh.

    Attributes
    ----------
    pool, uri : str
    function : str
        ``module:function`` or ``module.function``.
    keywords : mapping
        Passed to the function as far as it takes them.
    query, before_status, after_status, force_release
        As of `run_task`.
    lease : float, optional
    stay : bool
        Whether to wait for further tasks, and for the pool.
    max_tasks : int, optional
        After so many attempts of all processes together no more are begun.
    """

    pool: str
    uri: str
    function: str
    keywords: Mapping[str, Any] = field(default_factory=dict)
    query: Mapping[str, Any] = field(default_factory=dict)
    before_status: str = WAITING
    after_status: str = DONE
    force_release: bool = False
    lease: float | None = None
    stay: bool = False
    max_tasks: int | None = None

    def manager(self) -> TaskManager:
        """Return the pool."""
        return TaskManager(self.pool, uri=self.uri, lease=self.lease)

    def work(self) -> Work:
        """Return what is done with each task; raises whatever is wrong with it."""
        Query.parse(self.query)
        function = load_function(self.function)
        kwargs = {key: self.keywords[key] for key in accepted_keywords(function, self.keywords)}
        return Work(
            partial(_call_without_exit, function),
            self.query,
            self.before_status,
            self.after_status,
            self.force_release,
            kwargs,
        )


def load_function(name: str) -> Callable[..., Any]:
    """Return the function of a name, ``module:function`` or ``module.function``.

    Raises
    ------
    ImportError, AttributeError, TypeError
        If there is no such module, nothing of the name in it, or it cannot be called. Also
        whatever the module raises.

    Examples
    --------
    >>> load_function("math:sqrt")(9.0), load_function("math.sqrt")(4.0)
    (3.0, 2.0)
    """
    module, sign, attribute = name.rpartition(":" if ":" in name else ".")
    if not (module and sign and attribute):
        raise ImportError(f"{name!r} names no function; expected module:function")
    found = find_attribute(module, attribute)
    if not callable(found):
        raise TypeError(f"{name!r} is a {type(found).__name__}, and a function is expected")
    function: Callable[..., Any] = found
    return function


def _call_without_exit(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function; an exit that nobody has asked for by a signal is a failure of the task."""
    try:
        return function(*args, **kwargs)
    except SystemExit as exit_:
        if exit_.code in _TOLD_TO_END:
            raise
        raise RuntimeError(f"the function called sys.exit({exit_.code!r})") from exit_


@dataclass
class Tally:
    """How the attempts of one worker have ended.

    Attributes
    ----------
    done, failed, again, lost : int
        Attempts that ended well, with a task that is ``failed`` now, with one that is tried again,
        or of which somebody else has the task now.
    died : int
        Processes that were killed or crashed, or to which the system has refused something.
    """

    done: int = 0
    failed: int = 0
    again: int = 0
    lost: int = 0
    died: int = 0


def work_together(job: Job, processes: int, tell: Callable[[Ended], None], tally: Tally) -> None:
    """Work on a pool in several processes.

    Unless the job is to stay, this ends when there is nothing left to take, and nobody works on
    anything that may come back.

    Parameters
    ----------
    job : Job
    processes : int
    tell : callable
        A function of a module; called in those processes with each attempt that has ended.
    tally : Tally
        Is told how the attempts have ended, also when this raises.

    Raises
    ------
    WorkersDiedError
        If processes died one after the other and nothing was done between, or the system refused
        them what they need.
    WriteRefusedError, PermissionError
        If the pool may not be written or read: at once, since every process would find that.
    Exception
        If the loop itself fails.
    KeyboardInterrupt, SystemExit
        If this process gets SIGINT or SIGTERM: once, however often. What was worked on was given
        back, and is not counted as an attempt.
    """
    crew = _Crew(job, processes, tell)
    with _ending_once():
        try:
            with contextlib.closing(in_processes(crew, processes)) as outcomes:
                for outcome in outcomes:
                    crew.replace(outcome)
        except BaseException:
            # One that was killed because it did not end, or ended while it was claiming.
            with contextlib.suppress(OSError, QwfError):  # else their leases run out
                job.manager().give_back_for(crew.pids())
            raise
        finally:
            crew.add_to(tally)


class _Crew(Iterator[Call[None]]):
    """The processes of one worker, as calls that are to be made; one that dies is followed up."""

    def __init__(self, job: Job, processes: int, tell: Callable[[Ended], None]) -> None:
        self._job, self._tell, self._size = job, tell, processes
        self._books = _SharedBooks(processes)
        self._permits = None if job.max_tasks is None else get_context().Semaphore(job.max_tasks)
        self._next = deque((place, 0.0) for place in range(processes))
        self._places: list[int] = []  # of the processes in the order in which they were started
        self._dead: list[int] = []
        self._in_a_row = self._progress = 0

    def __next__(self) -> Call[None]:
        if not self._next:
            raise StopIteration
        place, delay = self._next.popleft()
        self._places.append(place)
        run = partial(_serve, self._job, self._books, place, self._permits, delay, self._tell)
        return Call(f"worker {place} of pool {self._job.pool!r}", run)

    def replace(self, outcome: Outcome[None]) -> None:
        """Have the process of an outcome followed by another, unless its work is done."""
        error = outcome.error
        if error is None or (isinstance(error, SystemExit) and error.code in _TOLD_TO_END):
            return
        if _meets_every_process(error):
            raise error
        place = self._places[outcome.index]
        pid = self._books.pid(place)
        why = "was killed or crashed" if isinstance(error, BrokenProcessPool) else str(error)
        _logger.warning("process %d of this worker: %s; another takes its place", pid, why)
        self._dead.append(pid)
        progress = self._books.total()
        self._in_a_row = 1 if progress > self._progress else self._in_a_row + 1
        self._progress = progress
        with contextlib.suppress(OSError, QwfError):  # the others will
            self._job.manager().recover()
        if self._in_a_row >= max(_DEATHS_IN_A_ROW, 3 * self._size):
            raise WorkersDiedError(self._job.pool, self._in_a_row, error) from error
        delay = min(0.5 * 2 ** (self._in_a_row - 2), _LONGEST_DELAY_SECONDS)
        self._next.append((place, delay if self._in_a_row > 1 else 0.0))

    def pids(self) -> set[int]:
        """Return the processes that are there, and were there last."""
        return {self._books.pid(place) for place in range(self._size)}

    def add_to(self, tally: Tally) -> None:
        """Tell a tally how all attempts have ended."""
        for name, number in vars(self._books.tally()).items():
            setattr(tally, name, getattr(tally, name) + number)
        tally.died += len(self._dead)
        if self._dead:
            with contextlib.suppress(OSError, QwfError):
                tally.failed += self._lost_for_good()

    def _lost_for_good(self) -> int:
        """Return how many tasks had their last attempt in a process that died."""
        manager, here = self._job.manager(), socket.gethostname()
        lost = 0
        for token in filter(None, map(parse_token, manager.directory.names(FAILED))):
            for failure in manager.books.failures(token)[-1:]:
                lost += (
                    failure["error"].startswith(LOST_WORKER)
                    and failure.get("host") == here
                    and failure.get("pid") in self._dead
                )
        return lost


def _meets_every_process(error: BaseException) -> bool:
    """Whether a process that takes the place of one with this error would fare no better."""
    if isinstance(error, PermissionError):  # a read-only mount too, see `WriteRefusedError`
        return True
    return not isinstance(error, (BrokenProcessPool, OSError))


class _SharedBooks:
    """Counts in shared memory; a process writes only at its place, so that none needs a lock.

    One that is killed would keep a lock for ever.
    """

    _COUNTED: Final = ("done", "failed", "again", "lost")
    _WIDTH: Final = len(_COUNTED) + 1

    def __init__(self, places: int) -> None:
        self._numbers: Any = RawArray(c_int64, self._WIDTH * places)

    def enter(self, place: int) -> None:
        self._numbers[place * self._WIDTH] = os.getpid()

    def pid(self, place: int) -> int:
        return int(self._numbers[place * self._WIDTH])

    def count(self, place: int, ended: Ended) -> None:
        if ended.status == LOST:
            kind = "lost"
        elif ended.error is None:
            kind = "done"
        else:
            kind = "failed" if ended.status == FAILED else "again"
        self._numbers[place * self._WIDTH + 1 + self._COUNTED.index(kind)] += 1

    def tally(self) -> Tally:
        columns = range(1, self._WIDTH)
        sums = [sum(self._numbers[column :: self._WIDTH]) for column in columns]
        return Tally(**dict(zip(self._COUNTED, sums, strict=True)))

    def total(self) -> int:
        tally = self.tally()
        return tally.done + tally.failed + tally.again + tally.lost


@contextlib.contextmanager
def _ending_once() -> Iterator[None]:
    """Be ended by the first SIGINT or SIGTERM; further ones do not disturb the ending."""
    told = False

    def end(number: int, _: FrameType | None) -> None:
        nonlocal told
        if told:
            return
        told = True
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    # Not if one was raised: this process goes on ending.
    for number, handler in before.items():
        signal.signal(number, handler)


# --- inside the processes --------------------------------------------------------------------


def _serve(
    job: Job,
    books: _SharedBooks,
    place: int,
    permits: Any,
    delay: float,
    tell: Callable[[Ended], None],
) -> None:
    books.enter(place)
    time.sleep(delay)
    with contextlib.closing(_attempts(job, permits)) as attempts:
        for ended in attempts:
            books.count(place, ended)
            tell(ended)


def _attempts(job: Job, permits: Any) -> Generator[Ended, None, None]:
    """Work until there is nothing to do, the permits are used up, or the parent is gone."""
    manager, work = job.manager(), job.work()
    parent = os.getppid()
    pause = _FIRST_PAUSE_SECONDS
    while _has_parent(parent):
        begun = time.monotonic()
        # Before and after: what others give back in between is not to be missed.
        busy = manager.others_hold(work.query, work.before_status)
        worked = False
        with contextlib.closing(working(manager, work)) as attempts:
            while _has_parent(parent):
                if permits is not None and not permits.acquire(block=False):
                    return
                ended = next(attempts, None)
                if ended is None:
                    if permits is not None:
                        permits.release()
                    break
                worked = True
                yield ended
        if worked:
            pause = _FIRST_PAUSE_SECONDS
            continue
        if not (job.stay or busy or manager.others_hold(work.query, work.before_status)):
            return
        time.sleep(max(pause, _PAUSES_PER_LOOK * (time.monotonic() - begun)))
        pause = min(1.5 * pause, _LONGEST_PAUSE_SECONDS)


def _has_parent(pid: int) -> bool:
    """Whether somebody would still tell this process to end."""
    parent = parent_process()
    return os.getppid() == pid and (parent is None or parent.is_alive())
