"""How tasks get into a pool: written privately, named by their content, then made waiting.

The link to ``def/<id>`` fails if that exists, so of racing submitters of one definition one gets
it. Tasks come in batches, so that a directory is synced once for many.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..storage import fsio
from ..storage.entries import move_entry, name_privately, unlink_entry, write_batch
from .directory import Directory
from .tokens import NO_RESULT, WAITING, Token, rank_of
from .workers import Worker

__all__ = ["Draft", "insert", "known_ids"]

# As many files are written before the first is synced.
_BATCH: Final = 128
# Up to so many names are asked for one by one; a listing costs as much as a few hundred.
_FEW: Final = 64
_ATTEMPTS: Final = 5


@dataclass(frozen=True)
class Draft:
    """A task that is to be inserted: its id, the bytes of its definition, its priority."""

    id: str
    data: bytes
    priority: int | None = None


@dataclass(frozen=True)
class _Written:
    token: Token
    private: str


def known_ids(directory: Directory, ids: Sequence[str]) -> set[str]:
    """Return which of some tasks are in the pool already; one that has just come may be missed."""
    if len(ids) > _FEW:
        return directory.ids().intersection(ids)
    return {one for one in ids if fsio.exists(Path(directory.definitions, one))}


def insert(directory: Directory, worker: Worker, drafts: Sequence[Draft]) -> set[str]:
    """Insert tasks, in this order, unless they are in the pool.

    Returns
    -------
    set of str
        The ids of those that this call has inserted.

    Notes
    -----
    *Others* see each task whole. *Racing submitters* insert each task once. *A crash* leaves some
    inserted, durably, and at most some private files, from which recovery finishes what was begun.
    """
    if not drafts:
        return set()
    now = fsio.server_time(Path(directory.private, "clock"))
    times = iter(worker.insertion_times(len(drafts), now))
    inserted: set[str] = set()
    for batch in _batches(drafts):
        tokens = [
            Token(rank_of(draft.priority), f"{when:016x}", draft.id, 1, 0, NO_RESULT)
            for draft, when in zip(batch, times, strict=False)
        ]
        inserted |= _insert_batch(directory, worker, batch, tokens)
    if inserted:
        directory.note_order()
    return inserted


def _batches(drafts: Iterable[Draft]) -> Iterator[list[Draft]]:
    waiting = iter(drafts)
    while batch := list(itertools.islice(waiting, _BATCH)):
        yield batch


def _insert_batch(
    directory: Directory, worker: Worker, drafts: list[Draft], tokens: list[Token]
) -> set[str]:
    inserted: set[str] = set()
    for attempt in range(_ATTEMPTS):
        worker.be_seen()
        written = [
            _Written(token, f"{directory.private}/{worker.private_name(token.name)}")
            for token in tokens
        ]
        try:
            _write(written, drafts)
            _publish(directory, written, inserted)
        except FileNotFoundError:
            # This process slept so long that its private files were taken for a dead one's.
            if attempt == _ATTEMPTS - 1:
                raise
            directory.complete()
            time.sleep(0.05 * attempt)
        else:
            return inserted
    raise AssertionError("unreachable")


def _write(written: list[_Written], drafts: list[Draft]) -> None:
    try:
        write_batch([(one.private, draft.data) for one, draft in zip(written, drafts, strict=True)])
    except BaseException:
        _drop(written)
        raise


def _publish(directory: Directory, written: list[_Written], inserted: set[str]) -> None:
    won = []
    try:
        for one in written:
            if name_privately(one.private, f"{directory.definitions}/{one.token.id}"):
                won.append(one)
            else:
                unlink_entry(one.private)
    except BaseException:
        # An interrupt may come between a link and our noting it.
        rest = [one for one in written if one not in won]
        won += [one for one in rest if _has_two_names(one)]
        _drop([one for one in rest if one not in won])
        raise
    finally:
        # Others may have been told already that these are in the pool, so they are brought there
        # also when something has failed.
        inserted.update(one.token.id for one in won)
        if won:
            _finish(directory, won)


def _finish(directory: Directory, won: list[_Written]) -> None:
    definitions = Path(directory.definitions)
    with contextlib.ExitStack() as then:
        then.callback(fsio.secure_names, Path(directory.status_path(WAITING)), directory.root)
        for one in won:
            then.callback(finish, directory, one.private, one.token)
        fsio.secure_names(definitions, definitions)


def _has_two_names(one: _Written) -> bool:
    try:
        return fsio.count_names(Path(one.private)) > 1
    except OSError:
        return False


def _drop(written: list[_Written]) -> None:
    for one in written:
        fsio.drop_private(Path(one.private))


def finish(directory: Directory, private: str, token: Token) -> bool:
    """Make a task waiting that has a definition; return whether this call did."""
    return move_entry(private, directory.path(WAITING, token))
