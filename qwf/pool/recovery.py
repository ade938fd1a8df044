"""Going on with what dead workers have left: tasks, half-made insertions, half-done removals.

Anybody may do this at any time, and many at once: whoever renames a thing first has it.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import QwfError
from ..process.identity import this_process
from ..storage import fsio
from ..storage.entries import list_entries, move_entry, unlink_entry
from .directory import Directory
from .insertion import finish
from .records import Failure, stored_moment
from .tokens import NO_RESULT, RUNNING, WAITING, Token, parse_token, worker_of
from .transitions import end_attempt, finish_removal
from .workers import Observer, Worker, is_worker

__all__ = ["LOST_WORKER", "Private", "Recovery", "private_names", "split_private"]

# How the error begins of an attempt that ended with its worker.
LOST_WORKER: Final = "WorkerLost"

_logger: Final = logging.getLogger("qwf.pool")

# The file of a dead worker is kept for those who wonder what has become of it.
_KEEP_WORKERS_SECONDS: Final = 3600.0
_MANY_WORKERS: Final = 20

# What is listed may take a while until it can be looked at.
_LOOKS: Final = 10
_PAUSE_SECONDS: Final = 0.1


def split_private(name: str) -> tuple[str, str] | None:
    """Return the worker and the end of a private name; None for a foreign one.

    Examples
    --------
    >>> split_private("0123456789ab.1f.rest.of.it")
    ('0123456789ab', 'rest.of.it')
    """
    worker, _, rest = name.partition(".")
    _, dot, end = rest.partition(".")
    return (worker, end) if dot and is_worker(worker) else None


@dataclass(frozen=True)
class Private:
    """A private name of a worker, taken apart."""

    name: str
    worker: str
    end: str


def private_names(directory: str) -> list[Private]:
    """Return what workers have in ``tmp/`` or ``trash/``."""
    parts = [(name, split_private(name)) for name in list_entries(directory)]
    return [Private(name, *split) for name, split in parts if split is not None]


class Recovery:
    """Looks after one pool; keeps what it knows of workers between two looks."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self.observer = Observer(directory)
        self._last = float("-inf")

    def run(self, worker: Worker, *, every: float = 0.0, patient: bool = False) -> int:
        """Do what is to be done; return how many tasks were taken from dead workers.

        Parameters
        ----------
        worker : Worker
            Who does it.
        every : float
            Do nothing if the last time is not so many seconds ago.
        patient : bool
            Whether to wait the second after which a worker that shows no sign of life is believed
            dead; else the next call tells.
        """
        if time.monotonic() - self._last < every:
            return 0
        worker.be_seen()
        directory = self._directory
        if self._last == float("-inf") and len(list_entries(directory.workers)) > _MANY_WORKERS:
            self._tidy(worker)
        running = [
            token
            for name in directory.names(RUNNING)
            if worker_of(name) != worker.id and (token := parse_token(name)) is not None
        ]
        private = self._others(directory.private, worker)
        trashed = self._others(directory.trash, worker)
        owners = {token.worker for token in running}
        others = owners | {one.worker for one in (*private, *trashed)}
        dead = self.observer.dead(others, patient=patient)
        taken = 0
        for token in running:
            if token.worker in dead:
                taken += self.take_back(worker, token, dead[token.worker])
        for one in private:
            if one.worker in dead:
                self.finish_insertion(worker, one)
        for one in trashed:
            if one.worker in dead:
                self.finish_removal(worker, one)
        self._last = time.monotonic()
        return taken

    @staticmethod
    def _others(directory: str, worker: Worker) -> list[Private]:
        return [one for one in private_names(directory) if one.worker != worker.id]

    def take_back(self, worker: Worker, token: Token, why: str) -> int:
        """End the attempt of a dead worker; return 1, or 0 if it has ended meanwhile."""
        noted = self.observer.describe(token.worker)
        by = {key: noted.get(key) for key in ("host", "pid")}
        now = stored_moment(time.time())
        seen_by = this_process()
        failure = Failure(
            f"{LOST_WORKER}: {why}",
            f"No traceback: {why}. Noticed by pid {seen_by['pid']} on {seen_by['host']}.",
            {**by, "worker": token.worker, "attempt": token.attempts + 1, "ended_at": now},
        )
        status = end_attempt(self._directory, token, failure, worker.id)
        if status is None:
            return 0
        _logger.warning("%s; its task %s is %s now", why, token.id, status)
        return 1

    def finish_insertion(self, worker: Worker, one: Private) -> None:
        """Go on with what a dead worker has begun to insert."""
        directory = self._directory
        mine = f"{directory.private}/{worker.private_name(one.end)}"
        if move_entry(f"{directory.private}/{one.name}", mine):
            with contextlib.suppress(FileNotFoundError):  # this worker was taken for dead itself
                self._finish_mine(mine, parse_token(one.end))

    def _finish_mine(self, mine: str, token: Token | None) -> None:
        directory = self._directory
        # With one name it was not inserted, and nobody was told that it was.
        if token is None or fsio.count_names(Path(mine)) < 2 or self._was_removed(mine, token):
            unlink_entry(mine)
        else:
            finish(directory, mine, token)
            fsio.fsync_directory(Path(directory.status_path(WAITING)))
            directory.note_order()

    def _was_removed(self, mine: str, token: Token) -> bool:
        """Whether the other name of a private file is in the trash.

        The listing is asked, since a definition that was looked for before it came stays missing
        for this host's NFS client.
        """
        inode, _ = fsio.stamp(Path(mine))
        for _ in range(_LOOKS):
            if token.id not in self._directory.ids():
                return True
            with contextlib.suppress(FileNotFoundError):
                # Another file is that of a new task of this id.
                return inode != fsio.stamp(Path(self._directory.definitions, token.id))[0]
            time.sleep(_PAUSE_SECONDS)
        return False  # it is listed and not to be seen: rather a task too many than one too few

    def finish_removal(self, worker: Worker, one: Private) -> None:
        """Go on with what a dead worker has begun to remove."""
        directory = self._directory
        name = worker.private_name(one.end)
        if not move_entry(f"{directory.trash}/{one.name}", f"{directory.trash}/{name}"):
            return
        identity, _, when = one.end.partition(".")
        token = Token("f" * 8, when, identity, 0, 0, NO_RESULT)
        with contextlib.suppress(FileNotFoundError):
            finish_removal(directory, name, token)

    def _tidy(self, worker: Worker) -> None:
        """Remove the files of workers that have died long ago and left nothing."""
        directory = self._directory
        left = {worker.id, *map(worker_of, directory.names(RUNNING))}
        for place in (directory.private, directory.trash):
            left |= {one.worker for one in self._others(place, worker)}
        names = {name for name in list_entries(directory.workers) if is_worker(name)} - left
        for name in self.observer.dead(names):
            path = Path(directory.workers, name)
            with contextlib.suppress(OSError, QwfError):
                age = fsio.server_time(Path(directory.private, "clock")) - fsio.modified_at(path)
                if age > _KEEP_WORKERS_SECONDS:
                    unlink_entry(str(path))
