"""One pool as one object of this process uses it: opening it, being its worker, claiming."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import time
import traceback
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final

from ..errors import (
    ConfigError,
    LeaseLostError,
    QwfError,
    TaskNotFoundError,
    TaskStatusError,
    TaskValueError,
)
from ..pool import transitions
from ..pool.claims import Claimed, Claims
from ..pool.directory import MOST_ATTEMPTS, Directory
from ..pool.insertion import Draft, insert
from ..pool.records import Failure, stored_moment
from ..pool.recovery import Recovery
from ..pool.tokens import ORIGINS, RUNNING, Token, parse_token
from ..pool.workers import LEASE_SECONDS, Worker, worker_for
from ..process.identity import runs_here
from ..storage import layout
from ..storage.layout import parse_uri
from ..tracking.manager import default_manager
from ..tracking.store import Store
from ..types import Json
from .books import Books, FetchedTask
from .queries import Query
from .results import Values

__all__ = ["PoolAccess", "explained", "find_store"]

_logger: Final = logging.getLogger("qwf.tasks")

# Dead workers are looked for so often when there is nothing to take.
_RECOVERY_SECONDS: Final = 1.0


class PoolAccess:
    """What `TaskManager` does with the pool's directory; parameters are explained there."""

    def __init__(
        self,
        task_pool: str,
        *,
        uri: str | os.PathLike[str] | None = None,
        max_attempts: int | None = None,
        lease: float | None = None,
        allow_pickle: bool = False,
    ) -> None:
        self.task_pool = task_pool
        self._store = find_store(uri)
        entry = layout.encode_name(task_pool, "a task pool")
        self.directory = Directory(self._store.root / layout.TASKS / entry)
        self.allow_pickle = allow_pickle
        self._max_attempts = _checked_attempts(max_attempts)
        self._lease = _checked_lease(lease)
        self._values = Values(self._store.root, allow_pickle)
        self.books = Books(self.directory, self._values)
        self._recovery = Recovery(self.directory)
        self._claims: dict[tuple[int, str], Claims] = {}
        self._there = False
        self._fetched: set[str] = set()  # by this object, and not given back
        # Tasks that were passed over by a fetch: id, status since, and why.
        self.unreadable: list[tuple[str, str, Exception]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process is another worker, and has fetched nothing yet.
        made = partial(
            type(self),
            self.task_pool,
            uri=str(self._store.root),
            max_attempts=self._max_attempts,
            lease=self._lease,
            allow_pickle=self.allow_pickle,
        )
        return made, ()

    def __repr__(self) -> str:
        return f"TaskManager({self.task_pool!r}, uri={str(self._store.root)!r})"

    def fetch_except(
        self, query: Mapping[str, Any], status: str, passed: set[str]
    ) -> FetchedTask | None:
        """Claim the next task of which the id is not in a set; see `fetch_task`."""
        if status not in ORIGINS:
            raise TaskStatusError(status, ORIGINS, "a task cannot be fetched from the status")
        selection = self.books.selection(query)
        if not self._is_there():
            return None
        claims, unreadable = self._claims_of(status), set(passed)
        while True:
            claimed = claims.next(self._worker(), selection, unreadable)
            if claimed is None:
                # Who finds nothing may end now, and would never come to a second look.
                if not self._recovery.run(self._worker(), every=_RECOVERY_SECONDS, patient=True):
                    return None
                claims.forget()
                continue
            task = self._opened(claimed)
            if task is not None:
                return task
            unreadable.add(claimed.token.id)

    def _opened(self, claimed: Claimed) -> FetchedTask | None:
        token = claimed.token
        try:
            task = FetchedTask(self.books.document(RUNNING, token, claimed.data))
        except Exception as error:  # of this task; others are not held up by it
            said, trace = explained(error)
            _logger.warning("task %s of pool %r cannot be read: %s", token.id, self.task_pool, said)
            failure = Failure(said, trace, self._by(token))
            with contextlib.suppress(LeaseLostError):
                status = transitions.fail(self.directory, self._worker(), token, failure)
                self.unreadable.append((token.id, status, error))
            missing = getattr(error, "errno", None) in (errno.ENOENT, errno.ESTALE)
            if isinstance(error, OSError) and not missing and not isinstance(error, QwfError):
                raise  # the mount is broken, and the next task would be no better
            return None
        task.claim = token
        self._fetched.add(token.id)
        return task

    def give_up(self, task: Mapping[str, Any]) -> None:
        """Give a fetched task back, unless it was committed, given back or lost already."""
        if self._holds(task):
            with contextlib.suppress(LeaseLostError):
                self._give_back(task, None)

    def _give_back(self, task: Mapping[str, Any], status: str | None) -> None:
        token = self._claim_of(task)
        transitions.require_result(token, status)
        self._fetched.discard(token.id)
        transitions.give_back(self.directory, self._worker(), token, status)

    def others_hold(self, query: Mapping[str, Any], status: str) -> bool:
        """Whether others work on tasks that match and would come back to a status if they died."""
        if not self._is_there():
            return False
        selection = self.books.selection(query)
        return self._claims_of(status).held_by_others(self._worker(), selection)

    def give_back_for(self, pids: Collection[int]) -> None:
        """Give back what processes of this host have not given back before they ended.

        Unlike in `recover` these attempts are not counted.
        """
        names = self.directory.names(RUNNING) if self._is_there() else []
        for token in filter(None, map(parse_token, names)):
            owner = self._recovery.observer.describe(token.worker)
            if owner.get("pid") in pids and runs_here(owner) is False:
                with contextlib.suppress(LeaseLostError):
                    transitions.give_back(self.directory, self._worker(), token)

    def look_again(self) -> None:
        """List the pool again before the next task is taken."""
        for claims in self._claims.values():
            claims.forget()

    def _is_there(self) -> bool:
        if not self._there and self.directory.exists():
            self.directory.complete()
            if self._max_attempts is not None:
                self.directory.set_max_attempts(self._max_attempts)
            self._there = True
        return self._there

    def _insert(self, drafts: Sequence[Draft]) -> None:
        if not self._is_there():
            self._store.ensure()
            self.directory.create()
            self._is_there()
        insert(self.directory, self._worker(), drafts)

    def _encoded(self, definition: object, at: int) -> Json:
        if not isinstance(definition, Mapping):
            raise TaskValueError(
                f"task {at} is a {type(definition).__name__}, and a dict is expected. Nothing was "
                "inserted."
            )
        return self._values.encode(dict(definition), f"the definition of task {at}")

    def _worker(self) -> Worker:
        worker = worker_for(self.directory, self._lease)
        if worker.on_end is None:
            worker.on_end = lambda: _give_all_back(self.directory, worker)
        return worker

    def _claims_of(self, status: str) -> Claims:
        # A forked child begins without what its parent has listed.
        key = os.getpid(), status
        claims = self._claims.get(key)
        if claims is None:
            claims = self._claims[key] = Claims(self.directory, status)
        return claims

    def _claim_of(self, task: Mapping[str, Any]) -> Token:
        claim = task.claim if isinstance(task, FetchedTask) else None
        if claim is None:
            claim = self._worker().held.get(str(task["_id"])) if self._is_there() else None
        if claim is None:
            self._found(task)
            raise LeaseLostError(str(task["_id"]), self.directory.root)
        worker = self._worker()
        if claim.worker == worker.id and not worker.holds(claim):  # this attempt has ended
            raise LeaseLostError(claim.id, self.directory.root)
        return claim

    def _holds(self, task: Mapping[str, Any]) -> bool:
        claim = task.claim if isinstance(task, FetchedTask) else None
        return claim is not None and self._worker().holds(claim)

    def _found(self, task: Mapping[str, Any]) -> tuple[str, Token]:
        found = self.directory.look_for(str(task["_id"])) if self._is_there() else None
        if found is None:
            raise TaskNotFoundError(task["_id"], pool=self.task_pool)
        return found

    def _by(self, token: Token) -> dict[str, Json]:
        claimed = self._worker().claimed_at(token)
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "worker": token.worker,
            "attempt": token.attempts + 1,
            "started_at": None if claimed is None else stored_moment(claimed),
            "ended_at": stored_moment(time.time()),
        }

    def _reset(self, query: Mapping[str, Any], status: str | None, *, force: bool) -> int:
        parsed = Query.parse(query)
        if not self._is_there():
            return 0
        worker = self._worker()
        tokens = [*self.books.select(parsed)]
        owners = {token.worker for _, token in tokens if token.worker}
        dead = self._recovery.observer.dead(owners - {worker.id}, patient=True)
        mine = {token for _, token in tokens if self._has_fetched(token)}
        chosen = [
            (at, token)
            for at, token in tokens
            if at != status and (at != RUNNING or force or token in mine or token.worker in dead)
        ]
        for _, token in chosen:
            transitions.require_result(token, status)
        brought: Counter[str] = Counter()
        try:
            for at, token in chosen:
                target = transitions.reset(self.directory, token, at, status)
                if target is not None:
                    brought[target] += 1
                if token in mine:
                    worker.drop(token)
                    self._fetched.discard(token.id)
        finally:
            transitions.settle(self.directory, brought)
        return brought.total()

    def _has_fetched(self, token: Token) -> bool:
        return token.worker == self._worker().id and token.id in self._fetched


def _give_all_back(directory: Directory, worker: Worker) -> None:
    for token in [*worker.held.values()]:
        with contextlib.suppress(LeaseLostError, OSError):
            transitions.give_back(directory, worker, token)


def explained(error: BaseException | str) -> tuple[str, str]:
    """Return an error in one line, and its traceback."""
    if isinstance(error, str):
        return error, error
    said = "".join(traceback.format_exception_only(type(error), error)).strip()
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return said.splitlines()[-1] if said else type(error).__name__, trace


def find_store(uri: str | os.PathLike[str] | None) -> Store:
    """Return the store of a uri, or the one that this process is set to."""
    return default_manager().store if uri is None else Store(parse_uri(uri))


def _checked_attempts(attempts: int | None) -> int | None:
    if attempts is None or (type(attempts) is int and 1 <= attempts <= MOST_ATTEMPTS):
        return attempts
    raise ConfigError(
        f"max_attempts is {attempts!r}; expected a whole number from 1 to {MOST_ATTEMPTS}. Nothing "
        "was changed."
    )


def _checked_lease(lease: float | None) -> float:
    if lease is None:
        return LEASE_SECONDS
    if isinstance(lease, bool) or not lease > 0:
        raise ConfigError(f"lease is {lease!r}; expected seconds. Nothing was changed.")
    return float(lease)
