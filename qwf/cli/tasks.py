"""``qwf tasks list``, ``stat``, ``show`` and ``query``: looking at task pools."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from typing import Any, Final

from ..errors import CommandLineError
from ..pool.roster import Seen, roster
from ..pool.tokens import RUNNING, STATUSES, worker_of
from ..tasks.details import documents, everything, find_task, selected
from ..tasks.manage import TaskManager
from ..tasks.summary import in_short
from .opening import open_manager, open_pool
from .printing import (
    note,
    print_facts,
    print_json,
    print_lines,
    print_table,
    print_text,
    show_duration,
    show_time,
)
from .tables import Column, printable

__all__ = ["list_pools", "list_tasks", "query_of", "show_counts", "show_task", "task_columns"]

# For people who have not said how many.
_MOST: Final = 50


def query_of(options: Namespace) -> dict[str, Any]:
    """Return the query that a command names, with its ``--status``."""
    query = dict(options.query)
    if options.status:
        if "status" in query:
            raise CommandLineError("the status stands in the query and in --status.")
        query["status"] = {"$in": options.status}
    return query


def list_pools(options: Namespace) -> int:
    """Print the pools of a store."""
    root = open_manager(options.uri).store.root
    names = TaskManager.list(root)
    pools = [TaskManager(name, uri=root) for name in names]
    counts = [_count_names(pool) for pool in pools]
    living = [sum(seen.lives for seen in roster(pool.directory)) for pool in pools]
    columns = [
        Column(name="pool", values=names, importance=9),
        *(
            Column(name=status, values=[one[status] for one in counts], number=True, importance=3)
            for status in STATUSES
        ),
        Column(name="workers", values=living, number=True, importance=1),
    ]
    if names or options.json or options.csv:
        print_table(columns, options)
    if not names:
        note("There are no task pools in this store.")
    return 0


def _count_names(pool: TaskManager) -> dict[str, int]:
    # By five listings; a task that moves meanwhile may be counted twice or not at all.
    return {status: len(pool.directory.names(status)) for status in STATUSES}


def show_counts(options: Namespace) -> int:
    """Print how many tasks of a pool there are by status, and who works on it."""
    pool = open_pool(options)
    counts = pool.task_stat(query_of(options))
    workers = [seen for seen in roster(pool.directory) if seen.lives]
    held = [worker_of(name) for name in pool.directory.names(RUNNING)]
    if options.json:
        said = [{**vars(seen), "running": held.count(seen.worker)} for seen in workers]
        print_json({"pool": pool.task_pool, "tasks": counts, "workers": said})
        return 0
    facts = {str(status): f"{number:,}" for status, number in counts.items()}
    print_facts({**facts, "together": f"{sum(counts.values()):,}"})
    if workers:
        print_lines(["", "workers"])
        print_text(_worker_columns(workers, held), indent="  ")
    else:
        print_lines(["", "No living workers."])
    return 0


def _worker_columns(workers: list[Seen], held: list[str]) -> list[Column]:
    return [
        Column(name="host", values=[seen.host for seen in workers], importance=3),
        Column(name="pid", values=[seen.pid for seen in workers], number=True, importance=4),
        Column(
            name="running",
            values=[held.count(seen.worker) for seen in workers],
            number=True,
            importance=2,
        ),
        Column(
            name="heard",
            values=[seen.silent for seen in workers],
            show=lambda silent: f"{show_duration(silent)} ago",
            number=True,
            importance=1,
        ),
        Column(name="worker", values=[seen.worker for seen in workers]),
    ]


def list_tasks(options: Namespace) -> int:
    """Print the tasks that a query finds."""
    pool = open_pool(options)
    found = selected(pool, query_of(options))
    most = options.max
    if most is None:
        most = 0 if options.json or options.csv else _MOST
    shown = documents(pool, found[:most] if most else found)
    if options.json:
        print_json(shown)
        return 0
    if shown or options.csv:
        print_table(task_columns(shown), options)
    more = len(found) - most if most else 0
    note(f"{len(found):,} tasks" + (f", {more:,} more; --max 0 for all." if more > 0 else "."))
    return 0


def task_columns(tasks: list[dict[str, Any]]) -> list[Column]:
    """Return a table of tasks as `documents` gives them."""
    errors = [task.get("error") for task in tasks]
    return [
        Column(name="id", values=[task["_id"] for task in tasks], importance=9),
        Column(name="status", values=[task["status"] for task in tasks], whole=True, importance=8),
        Column(name="task", values=[_in_short(task) for task in tasks], importance=6),
        Column(
            name="priority",
            values=[task["priority"] for task in tasks],
            number=True,
            importance=1,
        ),
        Column(
            name="attempts", values=[task["attempts"] for task in tasks], number=True, importance=2
        ),
        *([Column(name="error", values=errors, importance=7)] if any(errors) else []),
    ]


def _in_short(task: Mapping[str, Any]) -> str:
    return in_short(task["def"]) if "def" in task else ""


# --- one task --------------------------------------------------------------------------------


def show_task(options: Namespace) -> int:
    """Print everything about one task."""
    pool = open_pool(options)
    document = everything(pool, *find_task(pool, options.id))
    if options.json:
        print_json(document)
        return 0
    print_facts(_summary(document))
    for title, key in (("definition", "def"), ("result", "res")):
        if key in document:
            print_lines(["", title])
            print_lines(_as_json(document[key]))
    for number, failure in enumerate(document["failures"], 1):
        print_lines(["", f"failure {number}"])
        facts = {key: str(value) for key, value in failure.items() if key != "traceback" and value}
        print_facts(facts, indent="  ")
        print_lines([f"    {printable(line)}" for line in failure["traceback"].splitlines()])
    return 0


def _summary(document: Mapping[str, Any]) -> dict[str, str]:
    owner, ended = document.get("owner"), document.get("ended", {})
    facts = {
        "task": document["_id"],
        "pool": document["pool"],
        "status": document["status"],
        "what": _in_short(document),
        "priority": document["priority"],
        "attempts": f"{document['attempts']} failed, of {document['max_attempts']}",
        "inserted": show_time(document["inserted_at"]),
        "running": owner and _owner(owner),
        "result": ended and _writer(ended),
        "recorder": _recorder(document.get("res")),
        "error": document.get("error"),
    }
    return {name: str(value) for name, value in facts.items() if value not in (None, "", {})}


def _owner(owner: Mapping[str, Any]) -> str:
    heard = "" if owner["silent"] is None else f", heard {show_duration(owner['silent'])} ago"
    return f"{_place(owner)}{heard}" + ("" if owner["lives"] else ", which has died")


def _writer(ended: Mapping[str, Any]) -> str:
    moment = ended.get("ended_at")
    return f"of {_place(ended)}" + (f", at {show_time(moment)}" if moment else "")


def _place(process: Mapping[str, Any]) -> str:
    return f"pid {process.get('pid')} on {process.get('host')}"


def _recorder(result: Any) -> str | None:
    reference = result.get("$recorder") if isinstance(result, dict) else None
    if not isinstance(reference, dict):
        return None
    return f"{reference.get('recorder')} of experiment {reference.get('experiment')}"


def _as_json(value: object) -> list[str]:
    text = json.dumps(value, indent=1, ensure_ascii=False)
    return [f"  {printable(line)}" for line in text.splitlines()]
