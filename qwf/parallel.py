"""How many calls run at once, in which processes, and with which settings.

Knows no task and no trainer. The calls of a list end in any order, each with an outcome of its own:
one that fails, or whose process dies, costs the others nothing. Whoever stops asking for outcomes
(an error, Ctrl-C) ends the processes that still run.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Executor, Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from types import FrameType
from typing import Any, Final, Generic, TypeVar

from .config import C
from .process import exits
from .tracking.manager import default_manager

__all__ = [
    "GRACE_SECONDS",
    "Call",
    "Outcome",
    "in_processes",
    "on_executor",
    "one_by_one",
    "steps_in_processes",
]

T = TypeVar("T")

# Between SIGTERM and SIGKILL: enough to end a run on a slow file server, and for a person to wait.
GRACE_SECONDS: Final = 10.0

# A process that is dead is seen at once, unless one that it has started holds its pipes open.
_LOOK_AGAIN_SECONDS: Final = 1.0

# The kernel may give a signal to any thread of a process, and if it is not the one that Python
# handles signals in, that one sleeps on. Told again, it wakes up.
_TELL_AGAIN_SECONDS: Final = 0.5

_ENDING: Final = frozenset({signal.SIGINT, signal.SIGTERM})


@dataclass(frozen=True)
class Call(Generic[T]):
    """One function call: what it is called in messages, the call itself, and what follows failure.

    ``failed`` is called in this process, with nothing, after the call has failed or was ended: what
    it has left undone is then nobody's. It is not called for a call that was only cancelled.
    """

    name: str
    run: Callable[[], T]
    failed: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What became of the call at ``index``: a value, or the error that it raised."""

    index: int
    value: T | None = None
    error: BaseException | None = None


def one_by_one(calls: Sequence[Call[T]]) -> Generator[Outcome[T], None, None]:
    """Run calls here, in order. An interrupt is no outcome; it passes through."""
    for index, call in enumerate(calls):
        try:
            outcome = Outcome(index, call.run())
        except Exception as error:  # noqa: BLE001 - whoever asked for the outcome judges it
            call.failed()
            outcome = Outcome(index, error=error)
        yield outcome


# --- settings --------------------------------------------------------------------------------

# A process is known by its id and, since other hosts have the same ids, by a mark of its own.
_MARK: Final = uuid.uuid4().hex

# Which settings of another process this one has taken over, and the generation they have here.
_adopted: tuple[str, int] | None = None
_adopting = threading.Lock()


def _forget_adopted() -> None:
    global _adopted, _adopting
    _adopted, _adopting = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_adopted)


@dataclass(frozen=True)
class _Settings:
    """The settings, the store and the parent of new runs where the calls were made."""

    home: tuple[int, str]
    state: Mapping[str, Any]
    mark: str  # equal for equal settings
    uri: str
    parent_id: str | None

    @classmethod
    def here(cls) -> _Settings:
        state = C.state()
        try:
            mark = hashlib.sha256(pickle.dumps(state)).hexdigest()
        except (pickle.PicklingError, TypeError, AttributeError):
            mark = f"{_MARK}-{C.generation}"  # what an executor ships by other means
        manager = default_manager()
        home = (os.getpid(), _MARK)
        return cls(home, state, mark, str(manager.store.root), manager.parent_id)

    @contextlib.contextmanager
    def taken_over(self) -> Iterator[None]:
        """Make these the settings of this process, which runs one call and nothing else."""
        C.restore(self.state)
        manager = default_manager()
        manager.default_uri = self.uri  # R.set_uri and R.uri_context are no settings
        with manager.uri_context(self.uri, self.parent_id):
            yield

    @contextlib.contextmanager
    def meant(self) -> Iterator[None]:
        """Mean these settings in this thread, of a process in which other calls may run."""
        if self.home != (os.getpid(), _MARK):
            self._adopt()
        with default_manager().uri_context(self.uri, self.parent_id):
            yield

    def _adopt(self) -> None:
        # Settings belong to the process. To take equal ones again would hide the runs of its other
        # threads from them; different ones are refused while runs are active.
        global _adopted
        with _adopting:
            if _adopted != (self.mark, C.generation):
                C.restore(self.state)
                _adopted = (self.mark, C.generation)


# --- an executor -----------------------------------------------------------------------------


def on_executor(calls: Sequence[Call[T]], executor: Executor) -> Generator[Outcome[T], None, None]:
    """Run calls on somebody's executor; yield outcomes as they come.

    When no more outcomes are asked for, calls that have not begun are cancelled. The executor and
    what it runs are left to its owner.
    """
    settings = _Settings.here()
    futures: dict[Future[T], int] = {}
    # `as_completed` does not hear of futures that the owner of the executor cancels.
    done: SimpleQueue[Future[T]] = SimpleQueue()
    try:
        for index, call in enumerate(calls):
            future = _submitted(executor, settings, call.run)
            futures[future] = index
            future.add_done_callback(done.put)
        for _ in calls:
            future = done.get()
            index = futures[future]
            try:
                error = future.exception()
            except CancelledError as cancelled:
                yield Outcome(index, error=cancelled)
                continue
            if error is None:
                yield Outcome(index, future.result())
            else:
                calls[index].failed()
                yield Outcome(index, error=error)
    finally:
        for future in futures:
            future.cancel()


def _submitted(executor: Executor, settings: _Settings, run: Callable[[], T]) -> Future[T]:
    try:
        # dask takes two calls with equal arguments for one.
        return executor.submit(_call_with_settings, settings, run, uuid.uuid4().hex)
    except Exception as error:  # noqa: BLE001 - the pool broke: what it has done already is kept
        refused: Future[T] = Future()
        refused.set_exception(error)
        return refused


def _call_with_settings(settings: _Settings, run: Callable[[], T], identity: str) -> T:
    with settings.meant():
        return run()


# --- processes of our own --------------------------------------------------------------------


def in_processes(calls: Iterable[Call[T]], at_once: int) -> Generator[Outcome[T], None, None]:
    """Run each call in a fresh process, at most so many at once; yield outcomes as they come.

    A call is asked for when there is room for it. An iterator that has none is asked again when
    another has ended, so that it may answer an outcome with one more call.

    The process of a call has ended when its outcome is yielded, and has given its memory back. When
    no more outcomes are asked for, or this process gets SIGTERM, those that still run are told to
    end by SIGTERM, which raises SystemExit in them, and are killed if they do not within ten
    seconds. SIGINT they leave to this process, so that a Ctrl-C in the terminal does not interrupt
    them while they end.

    Processes are started by the thread that asks, one after the other, as `multiprocessing` is set
    to. A thread for each would fork while the others hold locks.
    """
    with contextlib.closing(steps_in_processes(calls, at_once)) as steps:
        yield from (outcome for outcome in steps if outcome is not None)


def steps_in_processes(
    calls: Iterable[Call[T]], at_once: int
) -> Generator[Outcome[T] | None, None, None]:
    """Do as `in_processes`; yield None when for about a second no call has ended."""
    settings = _Settings.here()
    coming, numbers = iter(calls), itertools.count()
    running: list[_Worker[T]] = []
    # As for a run of its own: SIGTERM is raised here, and ends the workers too.
    key = f"workers {uuid.uuid4().hex}"
    exits.keep(key, lambda _: _stop(running))
    try:
        while True:
            while len(running) < at_once and (call := next(coming, None)) is not None:
                index = next(numbers)
                try:
                    with _signals_held():
                        running.append(_Worker.started(index, call, settings))
                except Exception as error:  # noqa: BLE001 - no memory for it, or it has no pickle
                    yield Outcome(index, error=error)
            if not running:
                return
            ready = _ended(running)
            if not ready:
                yield None
            for worker in ready:
                outcome = worker.outcome()
                running.remove(worker)
                worker.close()
                yield outcome
    finally:
        exits.release(key)
        _stop(running)


@dataclass(eq=False)
class _Worker(Generic[T]):
    index: int
    call: Call[T]
    process: BaseProcess
    reader: connection.Connection[Any, Any]

    @classmethod
    def started(cls, index: int, call: Call[T], settings: _Settings) -> _Worker[T]:
        context = get_context()
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(
            target=_work, args=(reader, writer, settings, call.run), name=call.name
        )
        try:
            with warnings.catch_warnings():
                # Python warns of threads, and the libraries below pandas have some everywhere.
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
        except BaseException:
            reader.close()
            raise
        finally:
            writer.close()  # else the end of the process would not be the end of the pipe
        return cls(index, call, process, reader)

    def has_ended(self) -> bool:
        alive = self.process.is_alive()  # first: what a process has said it said before its end
        return self.reader.poll() or not alive

    def outcome(self) -> Outcome[T]:
        """Return what the process has said, or that it has died, after its end."""
        try:
            said = self.reader.recv_bytes() if self.reader.poll() else None
        except (EOFError, OSError):
            said = None
        self.process.join(GRACE_SECONDS)
        if self.process.is_alive():  # a thread that was left keeps it
            _end_processes([self.process])
        value, error = (None, self._death()) if said is None else _understood(said)
        if error is None:
            return Outcome(self.index, value)
        self.call.failed()
        return Outcome(self.index, error=error)

    def close(self) -> None:
        self.reader.close()
        self.process.close()

    def _death(self) -> BaseException:
        code = self.process.exitcode
        how = f"exit code {code}"
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):  # a real-time signal has no name
                how = signal.Signals(-code).name
        return BrokenProcessPool(
            f"the process that was to run {self.call.name} died before it returned ({how}): it "
            "was killed (out of memory?) or crashed. A run that it had begun itself was not ended. "
            "Look at the system's log, or make the call in this process to see where it happens."
        )


def _ended(running: Sequence[_Worker[T]]) -> list[_Worker[T]]:
    """Wait until something has happened; return the workers that have returned or died."""
    readers = [worker.reader for worker in running]
    sentinels = [worker.process.sentinel for worker in running]
    connection.wait([*readers, *sentinels], timeout=_LOOK_AGAIN_SECONDS)
    return [worker for worker in running if worker.has_ended()]


def _stop(running: Sequence[_Worker[T]]) -> None:
    _end_processes([worker.process for worker in running])
    for worker in running:
        worker.call.failed()
        worker.close()


def _end_processes(processes: Sequence[BaseProcess]) -> None:
    """Tell processes to end, and kill those that do not."""
    latest = time.monotonic() + GRACE_SECONDS
    try:
        while alive := [process for process in processes if process.is_alive()]:
            left = latest - time.monotonic()
            if left <= 0:
                break
            for process in alive:
                process.terminate()
            sentinels = [process.sentinel for process in alive]
            connection.wait(sentinels, timeout=min(left, _TELL_AGAIN_SECONDS))
    finally:  # also when the user has no patience
        for process in processes:
            process.kill()
            process.join()


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Keep an interrupt until a process that is just being started is known to us."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- inside such a process -------------------------------------------------------------------


def _work(
    reader: connection.Connection[Any, Any],
    writer: connection.Connection[Any, Any],
    settings: _Settings,
    run: Callable[[], Any],
) -> None:
    reader.close()  # else nobody would tell us that the other side is gone
    _obey_signals()
    failed = True
    try:
        with settings.taken_over():
            answer = pickle.dumps((run(), None, ""))
        failed = False
    except BaseException as error:  # noqa: BLE001 - it is raised on the other side
        answer = pickle.dumps((None, _picklable(error), traceback.format_exc()))
    with contextlib.suppress(OSError):
        writer.send_bytes(answer)
    if failed:
        sys.exit(1)  # runs that were left open are FAILED


def _obey_signals() -> None:
    """End by the first SIGTERM; the next must not interrupt the ending itself."""

    def ignore(number: int, frame: FrameType | None) -> None:
        pass

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, ignore)
        raise SystemExit(128 + number)

    # Functions, not SIG_IGN, which programs that the call starts would inherit.
    signal.signal(signal.SIGINT, ignore)
    signal.signal(signal.SIGTERM, end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)


def _picklable(error: BaseException) -> BaseException:
    """Return the error, or one that says the same when it would not survive the way."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - constructors of strangers
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class _RemoteTraceback(Exception):  # noqa: N818 - it is the cause of an error, and none itself
    """Shows, as the cause of an error, where in the other process it was raised."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def _understood(answer: bytes) -> tuple[Any, BaseException | None]:
    try:
        value, error, where = pickle.loads(answer)
    except Exception as unreadable:  # noqa: BLE001 - a class that only the other process knows
        return None, unreadable
    if error is not None:
        error.__cause__ = _RemoteTraceback(where)
    return value, error
