"""Which task a worker takes next, and how it gets it: one rename; no lock, no file read to choose.

A directory is listed once and its sorted names are worked down. It is listed again when they are
used up, or when somebody has noted that a task may come earlier than the listing says.
"""

from __future__ import annotations

import contextlib
import errno
import random
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import CorruptRecordError
from ..storage import fsio
from ..storage.entries import Mark, list_entries, try_move
from .directory import Directory
from .records import Failure
from .tokens import RUNNING, Token, id_of, is_token, parse_token, worker_of
from .transitions import end_attempt, same_attempt
from .workers import Worker

__all__ = ["ANY", "Claimed", "Claims", "Selection"]

# Workers that compete take one of so many tasks of equal priority, instead of all the same one.
_WINDOW: Final = 64
# For how many claims after a lost race others are thought to compete.
_COMPETING: Final = 32
# On a mount that shows old attributes for a while, a listing is trusted no longer than this.
_LISTING_SECONDS: Final = 10.0
# So often names may be listed that then cannot be renamed.
_STUBBORN: Final = 8
_PAUSE_SECONDS: Final = 0.05


@dataclass(frozen=True)
class Selection:
    """Which tasks may be taken.

    Attributes
    ----------
    key : hashable
        Equal for selections that accept the same names.
    accepts : callable, optional
        Gets the name of a token; None: any.
    matches : callable, optional
        Gets token, status and the bytes of the definition; asked only if `accepts` is not enough.
    """

    key: Hashable = None
    accepts: Callable[[str], bool] | None = None
    matches: Callable[[Token, str, bytes], bool] | None = None


ANY: Final = Selection()


@dataclass(frozen=True)
class Claimed:
    """A task that is this worker's, and the bytes of its definition."""

    token: Token
    data: bytes


class Claims:
    """The tasks of one status that one user of a pool takes one after the other."""

    def __init__(self, directory: Directory, status: str) -> None:
        self._directory = directory
        self._status = status
        self._at = directory.status_path(status)
        self._running = directory.status_path(RUNNING)
        self._names: list[str] = []  # the next one last
        self._key: Hashable = None
        self._order: Mark | None = None
        self._listed = 0.0
        self._cost = 0.0
        self._competing = 0
        self._tried = False  # since the listing, in vain
        self._unsure = False  # a rename was said to have failed, and may not have
        self._choosing = threading.RLock()  # threads may share one user

    def next(self, worker: Worker, selection: Selection, passed: set[str]) -> Claimed | None:
        """Claim the next task; None if there is none.

        Parameters
        ----------
        worker : Worker
        selection : Selection
        passed : set of str
            Ids of tasks that are not taken now.

        Notes
        -----
        *Others* see the task waiting or running, with its owner's name. *A crash* leaves it
        running, until it is seen that the owner is gone.
        """
        worker.be_seen()
        listings = 0
        while True:
            with self._choosing:
                if not self._is_current(selection):
                    self._list(selection, passed)
                    listings += 1
                name = self._pop(passed)
            if name is not None:
                found = self._try(worker, selection, name)
                if found is not None:
                    return found
                continue
            adopted = self._adopt(worker, selection) if self._unsure else None
            if adopted is not None:
                return adopted
            if listings > _STUBBORN or (listings and not self._tried):
                return None
            if listings > 1:  # others are faster, or a cache is slow to learn
                time.sleep(_PAUSE_SECONDS)
            self.forget()

    def forget(self) -> None:
        """List again before the next claim."""
        with self._choosing:
            self._names, self._listed = [], 0.0

    def held_by_others(self, worker: Worker, selection: Selection) -> bool:
        """Whether others hold tasks that were claimed from here: they may come back."""
        for name in list_entries(self._running):
            token = parse_token(name)
            if token is None or token.status != self._status or token.worker == worker.id:
                continue
            accepted = selection.accepts is None or selection.accepts(name)
            if accepted and self._matches(selection, token):
                return True
        return False

    def _pop(self, passed: set[str]) -> str | None:
        names = self._names
        while names:
            if self._competing > 0:
                self._competing -= 1
                self._swap()
            name = names.pop()
            if id_of(name) not in passed:
                return name
        return None

    def _try(self, worker: Worker, selection: Selection, name: str) -> Claimed | None:
        token = parse_token(name)
        if token is None or not self._matches(selection, token):
            return None
        claimed = token.claimed(self._status, worker.id)
        # Noted before, so that no other thread adopts it, and an exit gives it back.
        if not worker.take(claimed):
            return None
        try:
            moved = try_move(f"{self._at}/{name}", f"{self._running}/{claimed.name}")
        except BaseException:  # a signal may come just after the rename
            with contextlib.suppress(OSError):
                self._directory.move(claimed, RUNNING, claimed.released(), self._status)
            worker.drop(claimed)
            raise
        if moved:
            return self._taken(worker, claimed)
        # Somebody was faster; on NFS 3 it may have been us, and the reply was lost.
        worker.drop(claimed)
        self._unsure = self._tried = True
        self._competing = _COMPETING
        return None

    def _is_current(self, selection: Selection) -> bool:
        if selection.key != self._key or not self._listed:
            return False
        if not self._names:
            return True  # the caller decides
        age = time.monotonic() - self._listed
        # Listing a large pool takes long: not oftener than to spend half of the time on it.
        if age <= self._cost:
            return True
        return age < max(_LISTING_SECONDS, 20 * self._cost) and (
            self._order == self._directory.order()
        )

    def _list(self, selection: Selection, passed: set[str]) -> None:
        begun = time.monotonic()
        self._order = self._directory.order()  # before the listing, which may then be newer
        accepts = selection.accepts
        names = [
            name
            for name in list_entries(self._at)
            if is_token(name) and (accepts is None or accepts(name))
        ]
        if passed:
            names = [name for name in names if id_of(name) not in passed]
        names.sort(reverse=True)
        self._names, self._key, self._tried = names, selection.key, False
        self._listed = time.monotonic()
        self._cost = self._listed - begun

    def _swap(self) -> None:
        """Bring one of the next tasks of equal priority to the front."""
        names = self._names
        at = len(names) - 1 - random.randrange(min(_WINDOW, len(names)))
        if names[at][:8] == names[-1][:8]:
            names[at], names[-1] = names[-1], names[at]

    def _matches(self, selection: Selection, token: Token) -> bool:
        if selection.matches is None:
            return True
        try:
            data = fsio.read_bytes(Path(self._directory.definitions, token.id))
            return selection.matches(token, self._status, data)
        except (OSError, CorruptRecordError):
            return False

    def _taken(self, worker: Worker, claimed: Token) -> Claimed | None:
        """Read what was claimed; None if it was taken away in between."""
        try:
            data = fsio.read_bytes(f"{self._running}/{claimed.name}")
        except OSError as error:
            missing = error.errno in (errno.ENOENT, errno.ESTALE)
            renamed = same_attempt(self._directory, claimed) if missing else None
            if renamed is not None and renamed != claimed:  # it was given another priority
                return self._taken(worker, renamed)
            worker.drop(claimed)
            self._unsure = self._tried = True
            if missing:
                return None
            # Counted, so that a bad file does not stop all workers for ever; and raised, so that a
            # worker whose mount is broken does not count against one task after the other.
            said = f"the file of the task cannot be read: {error}"
            end_attempt(self._directory, claimed, Failure(said, said, {}), worker.id)
            raise
        return Claimed(claimed, data)

    def _adopt(self, worker: Worker, selection: Selection) -> Claimed | None:
        """Find a task that a lost reply has kept this worker from knowing that it holds it."""
        self._unsure = False
        for name in sorted(list_entries(self._running)):
            token = parse_token(name) if worker_of(name) == worker.id else None
            if token is None or token.id in worker.held or token.status != self._status:
                continue
            if selection.accepts is not None and not selection.accepts(name):
                continue
            found = self._taken(worker, token) if worker.take(token) else None
            self._unsure = True  # there may be more; or this one cannot be seen yet
            if found is not None:
                return found
        return None
