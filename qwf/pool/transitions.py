"""What may happen to a task, each as one rename: commit, give back, fail, reset, remove."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from ..errors import LeaseLostError, TaskStatusError, WriteError
from ..storage import fsio
from ..storage.entries import list_entries, move_entry, unlink_entry
from .directory import MOST_ATTEMPTS, Directory
from .records import Failure, Result, encode_failure, encode_result
from .tokens import (
    DONE,
    FAILED,
    NO_RESULT,
    PART_DONE,
    RUNNING,
    WAITING,
    Token,
    parse_token,
    rank_of,
)
from .workers import Worker

__all__ = [
    "commit",
    "fail",
    "give_back",
    "prioritize",
    "remove",
    "require_result",
    "reset",
    "result_path",
    "same_attempt",
    "settle",
]

# How long what a listing does not show yet is waited for.
_LOOKS_SECONDS: Final = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


def result_path(directory: Directory, token: Token, result: str | None = None) -> str:
    """Return the file of a result of a task; default: the one that the token names."""
    return f"{directory.results}/{token.id}.{token.time}.{result or token.result}"


def failure_path(directory: Directory, token: Token, writer: str) -> str:
    """Return the file that says why the attempt of a token failed, written by a worker."""
    return f"{directory.failures}/{token.id}.{token.time}.{token.epoch:06x}.{writer}"


# --- by the owner ----------------------------------------------------------------------------


def commit(
    directory: Directory, worker: Worker, token: Token, result: Result, status: str = DONE
) -> None:
    """Publish the result of a claimed task and end its attempt; durable when this returns.

    Raises
    ------
    LeaseLostError
        If the task is not this worker's any more; its result is not there.
    WriteError
        If the system refuses. The task is still this worker's.

    Notes
    -----
    *Readers* see the task running, or done with its whole result. *A crash* leaves it running,
    until it is seen that the owner is gone, or done.
    """
    if status not in (DONE, PART_DONE):
        raise TaskStatusError(status, (DONE, PART_DONE), "a result cannot be committed as")
    reference = f"{token.epoch:06x}{worker.id}"
    path = result_path(directory, token, reference)
    _write_result(directory, token, path, encode_result(token.id, result))
    try:
        fsio.secure_names(Path(directory.results), Path(path))
        new = token.released(result=reference)
        moved = _leave_running(directory, token, new, status)
    except BaseException:  # also an interrupt, before or after the token has come to name it
        if not _is_accepted(directory, token, reference):
            _drop_quietly(path)
        raise
    worker.drop(token)
    if not moved:
        _drop_quietly(path)
        raise LeaseLostError(token.id, directory.root)
    fsio.fsync_directory(Path(directory.status_path(status)))
    if token.has_result:
        _drop_quietly(result_path(directory, token))


def _write_result(directory: Directory, token: Token, path: str, data: bytes) -> None:
    try:
        fsio.write_new(Path(path), data)
    except WriteError as error:
        if error.errno != errno.EEXIST:
            raise
        # Of this attempt: committed before, or left by a try that failed.
        if same_attempt(directory, token) is None:
            raise LeaseLostError(token.id, directory.root) from None
        fsio.write_atomic(Path(path), data)


def _is_accepted(directory: Directory, token: Token, result: str) -> bool:
    """Whether a task names a result; also if that cannot be known, because it is kept then."""
    try:
        found = directory.find(token.id)
    except OSError:
        return True
    return found is not None and (found[1].time, found[1].result) == (token.time, result)


def give_back(
    directory: Directory, worker: Worker, token: Token, status: str | None = None
) -> None:
    """End an attempt without a result, and without counting it: the task can be claimed again.

    Raises
    ------
    LeaseLostError
        If the task is not this worker's any more.
    """
    target = status or token.status or WAITING
    moved = _leave_running(directory, token, token.released(), target)
    worker.drop(token)
    if not moved:
        raise LeaseLostError(token.id, directory.root)
    directory.note_order()


def fail(
    directory: Directory, worker: Worker, token: Token, failure: Failure, *, final: bool = False
) -> str:
    """End an attempt that failed, and count it.

    Returns
    -------
    str
        The task's status now: the one it was claimed from, or ``failed`` if that was its last
        attempt or `final`.

    Raises
    ------
    LeaseLostError
        If the task is not this worker's any more.
    """
    status = end_attempt(directory, token, failure, worker.id, final=final)
    worker.drop(token)
    if status is None:
        raise LeaseLostError(token.id, directory.root)
    return status


def end_attempt(
    directory: Directory, token: Token, failure: Failure, writer: str, *, final: bool = False
) -> str | None:
    """Count the attempt of a running task as failed; None if it has ended otherwise meanwhile."""
    attempts = min(token.attempts + 1, MOST_ATTEMPTS)
    over = final or attempts >= directory.max_attempts
    status = FAILED if over else token.status or WAITING
    path = failure_path(directory, token, writer)
    with contextlib.suppress(WriteError):  # a full disk must not keep the task from ending
        fsio.write_new(Path(path), encode_failure(token.id, failure))
    result = _kept_by_failed(RUNNING, token) if over else token.result
    new = token.released(attempts=attempts, result=result, taken=writer != token.worker)
    if not _leave_running(directory, token, new, status):
        _drop_quietly(path)
        return None
    with contextlib.suppress(WriteError):
        fsio.fsync_directory(Path(directory.status_path(status)))
    if result != token.result:
        _drop_quietly(result_path(directory, token))
    if not over:
        directory.note_order()
    return status


def _kept_by_failed(status: str, token: Token) -> str:
    """Return the result that a task keeps when it becomes failed: that of a part, and no other.

    By it is known that it came from ``part_done``, when it is tried again.
    """
    return token.result if (token.status or status) == PART_DONE else NO_RESULT


def _leave_running(directory: Directory, token: Token, new: Token, status: str) -> bool:
    """Move a running token; follow it when its priority was changed meanwhile."""
    while not directory.move(token, RUNNING, new, status):
        renamed = same_attempt(directory, token)
        if renamed is None:
            return _has_become(directory, token, new)
        token, new = renamed, new._replace(rank=renamed.rank)
    return True


def _has_become(directory: Directory, old: Token, new: Token) -> bool:
    """Whether a token that is at neither place was moved by this worker all the same.

    It was if a reply was lost and the listing of the target is an old one; then its result must
    not be taken for one that nobody needs. Only a later state of the task decides.
    """
    for pause in _LOOKS_SECONDS:
        found = directory.find(old.id)
        if found is None and old.id not in directory.ids():
            return False
        if found is not None and (found[1].time != old.time or found[1].epoch > old.epoch):
            is_mine = found[1].result == new.result != old.result
            return is_mine or found[1]._replace(rank=new.rank) == new
        time.sleep(pause)
    return False


def same_attempt(directory: Directory, token: Token) -> Token | None:
    """Return the token of an attempt that goes on, perhaps with another priority; else None."""
    # A long listing may miss an entry that is just renamed.
    for _ in range(3):
        for name in list_entries(directory.status_path(RUNNING)):
            if token.id in name:
                other = parse_token(name)
                if other is not None and other._replace(rank=token.rank) == token:
                    return other
    return None


def _drop_quietly(path: str) -> None:
    with contextlib.suppress(OSError):  # the check finds it
        unlink_entry(path)


# --- by anybody ------------------------------------------------------------------------------


def reset(
    directory: Directory, token: Token, status: str, new_status: str | None = None
) -> str | None:
    """Bring a task into another status, its attempts forgotten.

    Parameters
    ----------
    directory, token, status
        The task and where it is.
    new_status : str, optional
        Default: where it came from, which for a failed task is told by whether it has a result.

    Returns
    -------
    str or None
        The status that this call has brought it to, for `settle` after the last of many.

    Raises
    ------
    TaskStatusError
        If it would be done without a result. Nothing was changed.
    """
    target = new_status or token.status or (PART_DONE if token.has_result else WAITING)
    require_result(token, target)
    result = _kept_by_failed(status, token) if target == FAILED else token.result
    new = token.released(attempts=0, result=result, taken=status == RUNNING)
    if status == RUNNING:
        moved = _leave_running(directory, token, new, target)
    else:
        moved = directory.move(token, status, new, target)
    if moved and result != token.result:
        fsio.fsync_directory(Path(directory.status_path(target)))
        _drop_quietly(result_path(directory, token))
    return target if moved else None


def settle(directory: Directory, statuses: Iterable[str]) -> None:
    """Make durable what `reset` has moved there, and tell those who go by a listing."""
    for status in statuses:
        fsio.fsync_directory(Path(directory.status_path(status)))
        directory.note_order()


def require_result(token: Token, status: str | None) -> None:
    """Raise `TaskStatusError` if a task would be done that has no result."""
    if status in (DONE, PART_DONE) and not token.has_result:
        raise TaskStatusError(
            status, (WAITING, FAILED), f"task {token.id} has no result, so that it cannot become"
        )


def prioritize(directory: Directory, identity: str, priority: int | None) -> bool:
    """Change the priority of a task wherever it is; return whether there is such a task.

    A running task keeps its owner, who finds it under its new name.
    """
    rank = rank_of(priority)
    for _ in range(10):
        found = directory.look_for(identity)
        if found is None:
            return False
        status, token = found
        if token.rank == rank:
            return True
        # While it runs the epoch is the owner's, and fences it.
        epoch = token.epoch if status == RUNNING else token.epoch + 1
        if directory.move(token, status, token._replace(rank=rank, epoch=epoch), status):
            directory.note_order()
            return True
    return False


def remove(directory: Directory, worker: Worker, tokens: Sequence[tuple[str, Token]]) -> int:
    """Remove tasks for good, with their results; return how many this call has removed.

    Notes
    -----
    A task is gone, and its id free, from the rename of its definition on. *The owner* of a running
    one is told that its lease was lost when it commits. *A crash* leaves a definition in
    ``trash/``, and recovery finishes the removal.
    """
    if not tokens:
        return 0
    results = _by_task(list_entries(directory.results))
    failures = _by_task(list_entries(directory.failures))
    removed = 0
    for status, token in tokens:
        name = worker.private_name(f"{token.id}.{token.time}")
        if not move_entry(f"{directory.definitions}/{token.id}", f"{directory.trash}/{name}"):
            continue
        removed += 1
        task = f"{token.id}.{token.time}"
        left = [f"{directory.results}/{one}" for one in results.get(task, ())]
        left += [f"{directory.failures}/{one}" for one in failures.get(task, ())]
        unlink_entry(directory.path(status, token))
        _finish_removal(directory, name, token, left)
    fsio.fsync_directory(Path(directory.definitions))
    return removed


def finish_removal(directory: Directory, name: str, token: Token) -> None:
    """Remove what is left of a task of which the definition is in the trash under a name."""
    _finish_removal(directory, name, token, _left_of(directory, token))


def _finish_removal(directory: Directory, name: str, token: Token, left: Iterable[str]) -> None:
    trashed = Path(directory.trash, name)
    # The second name of the file is the token, which others may have moved meanwhile.
    with contextlib.suppress(FileNotFoundError):  # somebody took this worker for dead
        for _ in range(20):
            if fsio.count_names(trashed) < 2:
                break
            for status, other in directory.find_all(token.id):
                path = directory.path(status, other)
                # The id may have been given to a new task, or this was one when it was removed.
                if fsio.is_same_file(trashed, Path(path)):
                    unlink_entry(path)
                    if other != token:
                        left = [*left, *_left_of(directory, other)]
    for path in left:
        unlink_entry(path)
    unlink_entry(str(trashed))


def _left_of(directory: Directory, token: Token) -> list[str]:
    """Return the results and failures of a task."""
    task = f"{token.id}.{token.time}."
    return [
        f"{place}/{one}"
        for place in (directory.results, directory.failures)
        for one in list_entries(place)
        if one.startswith(task)
    ]


def _by_task(names: Iterable[str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for name in names:
        task = ".".join(name.split(".", 2)[:2])
        grouped.setdefault(task, []).append(name)
    return grouped
