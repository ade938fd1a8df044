"""What the files of a pool tell of its tasks, as plain JSON: nothing is unpickled or looked up."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from ..errors import AmbiguousTaskError, CorruptRecordError, TaskNotFoundError
from ..pool.directory import Directory
from ..pool.records import parse_definition, parse_result
from ..pool.roster import roster
from ..pool.tokens import FAILED, RUNNING, Token
from ..pool.transitions import result_path
from ..storage import fsio
from ..types import Json
from .manage import TaskManager
from .queries import Query

__all__ = ["documents", "everything", "find_task", "selected"]


def selected(manager: TaskManager, query: Mapping[str, Any]) -> list[tuple[str, Token]]:
    """Return status and token of the tasks that match, in the order of their insertion."""
    return [*manager.books.select(Query.parse(query))]


def find_task(manager: TaskManager, part: str) -> tuple[str, Token]:
    """Return status and token of the one task that has a part in its id.

    Raises
    ------
    TaskNotFoundError, AmbiguousTaskError
    """
    found = sorted(one for one in manager.directory.ids() if part in one)
    if len(found) > 1:
        raise AmbiguousTaskError(part, found, pool=manager.task_pool)
    for identity in found * 3:  # it may move while it is looked for
        place = manager.directory.find(identity)
        if place is not None:
            return place
    raise TaskNotFoundError(part, pool=manager.task_pool)


def documents(manager: TaskManager, tasks: Sequence[tuple[str, Token]]) -> list[dict[str, Any]]:
    """Return tasks as JSON: ``_id status priority attempts inserted_at def``.

    Where there is one, also ``res``; of those that failed, and those of which a file is damaged,
    ``error``. Tasks that were removed meanwhile are left out.
    """
    found = []
    for status, token in tasks:
        with contextlib.suppress(FileNotFoundError):
            found.append(_document(manager, status, token))
    return found


def everything(manager: TaskManager, status: str, token: Token) -> dict[str, Any]:
    """Return all that is known of a task.

    Returns
    -------
    dict
        As of `documents`, and ``pool``, ``max_attempts``, ``owner`` of a running one (worker,
        host, pid, seconds of silence, whether it lives), ``failures`` with tracebacks, ``ended``
        (by whom and when the result was written).

    Raises
    ------
    FileNotFoundError
        If it was removed.
    """
    directory = manager.directory
    document = {
        "pool": manager.task_pool,
        **_document(manager, status, token),
        "max_attempts": directory.max_attempts,
        "failures": manager.books.failures(token),
    }
    if status == RUNNING:
        document["owner"] = _owner(directory, token)
    with contextlib.suppress(OSError, CorruptRecordError):
        if token.has_result:
            path = result_path(directory, token)
            document["ended"] = parse_result(fsio.read_bytes(path), path).by
    return document


def _document(manager: TaskManager, status: str, token: Token) -> dict[str, Any]:
    outline = manager.books.outline(status, token)
    document = {**outline, "inserted_at": _inserted_at(token)}
    try:
        document["def"] = _definition(manager.directory, token)
        if token.has_result:
            path = result_path(manager.directory, token)
            document["res"] = parse_result(fsio.read_bytes(path), path).res
        if status == FAILED:
            document["error"] = manager.books.last_error(token)
    except CorruptRecordError as error:
        document["error"] = str(error)
    return document


def _definition(directory: Directory, token: Token) -> Json:
    path = f"{directory.definitions}/{token.id}"
    return parse_definition(fsio.read_bytes(path), path)


def _inserted_at(token: Token) -> str:
    moment = datetime.fromtimestamp(int(token.time, 16) / 1e9, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _owner(directory: Directory, token: Token) -> dict[str, Any]:
    for seen in roster(directory):
        if seen.worker == token.worker:
            return {**vars(seen), "silent": round(seen.silent, 1)}
    return {"worker": token.worker, "host": None, "pid": None, "silent": None, "lives": False}
