"""Who works on a pool: registering, showing to be alive, and judging whether others are.

A worker is one process. Its file in ``workers/`` says by what the process is known; the file's
modification time, set on the file server, is its heartbeat. It is never renamed, and there is one
for all tasks of the worker.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from ..errors import CorruptRecordError, FormatVersionError, WriteError
from ..process import exits, pulse
from ..process.identity import runs_here, this_process
from ..storage import fsio
from ..storage.entries import list_entries, unlink_entry
from .directory import Directory
from .records import encode_worker, parse_worker
from .tokens import Token

__all__ = ["LEASE_SECONDS", "Observer", "Worker", "is_worker", "worker_for"]

# A node that is short of memory or network for a minute is not given up.
LEASE_SECONDS: Final = 120.0

_BEATS_PER_LEASE: Final = 5
_ID_BYTES: Final = 6

# A second look at a heartbeat that is too old: what a client has cached has come in by then.
_LOOK_AGAIN_SECONDS: Final = 1.0

_BLUR_NS: Final = 10_000


def is_worker(name: str) -> bool:
    """Whether a name is the id of a worker."""
    return len(name) == 2 * _ID_BYTES and all(digit in "0123456789abcdef" for digit in name)


class Worker:
    """A worker of one pool, which is the process that asks: what it holds, and its heartbeat.

    Parameters
    ----------
    directory : Directory
    lease : float
        After how many seconds without a heartbeat others may take its tasks.
    """

    def __init__(self, directory: Directory, lease: float) -> None:
        self.id = secrets.token_hex(_ID_BYTES)
        self.lease = lease
        self.held: dict[str, Token] = {}  # by the id of the task
        self._claimed_at: dict[str, float] = {}  # by this host's clock
        self.on_end: Callable[[], None] | None = None
        self._directory = directory
        self._path = Path(directory.workers, self.id)
        self._pid = os.getpid()
        self._beaten = 0.0  # by the monotonic clock
        self._changing = threading.RLock()
        self._numbers = 0
        self._last_time = 0

    def register(self) -> None:
        """Publish the worker's file, and keep it fresh from now on."""
        fsio.write_atomic(self._path, encode_worker(this_process(), self.lease), durable=False)
        self._beaten = time.monotonic()
        pulse.watch(("worker", self.id), self._beat, seconds=self.lease / _BEATS_PER_LEASE)
        _call_at_end(self._leave)

    def be_seen(self) -> None:
        """Make sure that nobody can take this worker for dead just now."""
        if time.monotonic() - self._beaten > 2 * self.lease / _BEATS_PER_LEASE:
            self._beat()

    def private_name(self, end: str) -> str:
        """Return a name for a private file of this worker, never given before."""
        with self._changing:
            self._numbers += 1
            return f"{self.id}.{self._numbers:x}.{end}"

    def insertion_times(self, count: int, server_now: float) -> range:
        """Return times in ns, on the server's clock, later than all that were given before."""
        # That clock is coarse, and two workers must not insert, after a removal, the same again.
        now = int(server_now * 1e9) + secrets.randbelow(_BLUR_NS)
        with self._changing:
            first = max(now, self._last_time + 1)
            self._last_time = first + count
            return range(first, first + count)

    def take(self, token: Token) -> bool:
        """Note that this worker holds a task, or is about to; False if it did before.

        Another thread may be just getting it.
        """
        with self._changing:
            if self.holds(token):
                return False
            if not self.held:
                exits.keep(f"pool {self.id}", self._end)
            self.held[token.id] = token
            self._claimed_at[token.id] = time.time()
            return True

    def holds(self, token: Token) -> bool:
        """Whether this worker has a claim, as far as it knows."""
        held = self.held.get(token.id)
        return held is not None and (held.time, held.epoch) == (token.time, token.epoch)

    def claimed_at(self, token: Token) -> float | None:
        """Return when a task was claimed, in seconds since the epoch on this host's clock."""
        return self._claimed_at.get(token.id)

    def drop(self, token: Token) -> None:
        """Note that this worker does not hold a task any more."""
        with self._changing:
            if self.holds(token):
                del self.held[token.id], self._claimed_at[token.id]
                if not self.held:
                    exits.release(f"pool {self.id}")

    def _end(self, failed: bool) -> None:
        if self.on_end is not None:
            self.on_end()

    def _beat(self) -> None:
        begun = time.monotonic()
        try:
            fsio.renew_time(self._path)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not self._path.parent.is_dir():
                pulse.unwatch(("worker", self.id))  # the pool was deleted
                return
            # This worker was taken for dead, and what it claims from now on is its own again; or
            # the server sets no times for it.
            data = encode_worker(this_process(), self.lease)
            fsio.write_atomic(self._path, data, durable=False)
        self._beaten = begun

    def _leave(self) -> None:
        if self._pid == os.getpid() and not self.held:
            with contextlib.suppress(OSError, WriteError):
                pulse.unwatch(("worker", self.id))
                unlink_entry(str(self._path))


def _call_at_end(call: Callable[[], None]) -> None:
    atexit.register(call)
    process, util = map(sys.modules.get, ("multiprocessing.process", "multiprocessing.util"))
    if process is not None and util is not None and process.parent_process() is not None:
        # Until Python 3.13 a forked child passes over `atexit`. After `exits`, which comes at -100.
        util.Finalize(None, call, exitpriority=-200)


_workers: dict[tuple[int, str, float], Worker] = {}
_registering = threading.Lock()


def _forget_lock_of_parent() -> None:
    global _registering
    _registering = threading.Lock()


os.register_at_fork(after_in_child=_forget_lock_of_parent)


def worker_for(directory: Directory, lease: float) -> Worker:
    """Return this process as a worker of a pool; it is registered when first asked for."""
    key = os.getpid(), str(directory.root), lease
    worker = _workers.get(key)
    if worker is not None:
        return worker
    with _registering:
        if key not in _workers:
            made = Worker(directory, lease)
            made.register()
            _workers[key] = made
        return _workers[key]


class Observer:
    """Judges which workers are dead; keeps what it has seen between two looks."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._known: dict[str, dict[str, Any]] = {}
        # Worker -> the heartbeat that was too old, and when that was seen first (monotonic clock).
        self._suspected: dict[str, tuple[float | None, float]] = {}

    def dead(self, workers: Iterable[str], *, patient: bool = False) -> dict[str, str]:
        """Return those of some workers whose tasks may be taken, and how that is known.

        A worker is dead if its process is gone from this host. One that cannot be looked at is
        dead if its heartbeat was older than its lease, on the file server's clock, at two looks;
        also one that only sleeps: it will find its tasks taken.

        Parameters
        ----------
        workers : iterable of str
        patient : bool
            Whether to wait the second until the second look, where one is needed.
        """
        found = self._look(workers)
        if patient and self._suspected.keys() & set(workers) - found.keys():
            time.sleep(_LOOK_AGAIN_SECONDS)
            found = self._look(workers)
        return found

    def _look(self, workers: Iterable[str]) -> dict[str, str]:
        wanted = set(workers)
        if not wanted:
            return {}
        listed = set(list_entries(self._directory.workers))
        found = {}
        now: float | None = None
        for worker in sorted(wanted):
            if worker not in listed:
                if self._is_certain(worker, None):
                    found[worker] = f"worker {worker} has no file in workers/"
                continue
            noted = self._noted(worker)
            who = f"worker {worker} (pid {noted.get('pid')} on {noted.get('host')})"
            if runs_here(noted) is False:
                found[worker] = f"{who} is gone: it was killed or crashed"
                continue
            try:
                beaten = fsio.modified_at(Path(self._directory.workers, worker))
                if now is None:
                    now = fsio.server_time(Path(self._directory.private, "clock"))
            except OSError:
                continue  # it has just left, or the server is away: the next look tells
            lease = _lease_of(noted)
            if now - beaten > lease and self._is_certain(worker, beaten):
                found[worker] = f"{who} has shown no sign of life for {now - beaten:.0f} s"
            elif now - beaten <= lease:
                self._suspected.pop(worker, None)
        return found

    def describe(self, worker: str) -> dict[str, Any]:
        """Return what a worker's file says of its process; empty if it cannot be read."""
        return self._noted(worker)

    def _noted(self, worker: str) -> dict[str, Any]:
        if worker not in self._known:
            path = Path(self._directory.workers, worker)
            try:
                self._known[worker] = parse_worker(fsio.read_bytes(path), str(path))
            except (OSError, CorruptRecordError, FormatVersionError):
                return {}
        return self._known[worker]

    def _is_certain(self, worker: str, beaten: float | None) -> bool:
        seen = self._suspected.get(worker)
        if seen is None or seen[0] != beaten:
            self._suspected[worker] = beaten, time.monotonic()
            return False
        return time.monotonic() - seen[1] >= _LOOK_AGAIN_SECONDS


def _lease_of(noted: dict[str, Any]) -> float:
    lease = noted.get("lease")
    return float(lease) if isinstance(lease, (int, float)) and lease > 0 else LEASE_SECONDS
