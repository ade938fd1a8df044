"""``qwf tasks add``, ``reset``, ``retry``, ``prioritize``, ``remove``, ``wait`` and ``check``."""

from __future__ import annotations

import contextlib
import logging
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping

from ..config import C
from ..errors import CommandLineError, TasksFailedError
from ..storage.layout import parse_uri
from ..tasks.details import documents, find_task, selected
from ..tasks.manage import TaskManager
from .check import print_findings
from .definitions import read_definitions
from .opening import open_pool
from .printing import note, print_facts, print_json, print_text
from .tasks import query_of, task_columns

__all__ = [
    "add_tasks",
    "check_pool",
    "prioritize_task",
    "remove_tasks",
    "reset_tasks",
    "retry_tasks",
    "wait_for_tasks",
]


def add_tasks(options: Namespace) -> int:
    """Insert the tasks of a file, and print their ids."""
    definitions = read_definitions(options.file)
    root = parse_uri(C.uri if options.uri is None else options.uri)
    pool = TaskManager(options.pool, uri=root, max_attempts=options.max_attempts)
    known = pool.directory.ids() if pool.directory.exists() else set()
    ids = pool.create_task(definitions, dry_run=options.dry_run, priority=options.priority)
    new = set(ids) - known
    if options.json:
        print_json([{"_id": one, "new": one in new} for one in ids])
        return 0
    for one in ids:
        print(one)
    would_be = "would be " if options.dry_run else ""
    note(f"{len(ids)} tasks: {len(new)} {would_be}inserted, {len(ids) - len(new)} known already.")
    return 0


def reset_tasks(options: Namespace) -> int:
    """Give back running tasks, or bring tasks into a status."""
    query = query_of(options)
    if options.to is not None:
        _refuse_all_by_accident(query, options, "reset")
    elif options.all:
        raise CommandLineError("--all goes with --to only. Nothing was changed.")
    pool = open_pool(options)
    if options.to is None:
        number = pool.reset_waiting(query, force=options.force)
    else:
        number = pool.reset_status(query, options.to, force=options.force)
    _print_number("reset", number, options)
    return 0


def retry_tasks(options: Namespace) -> int:
    """Have failed tasks tried again."""
    _print_number("retried", open_pool(options).retry(options.query), options)
    return 0


def prioritize_task(options: Namespace) -> int:
    """Change the priority of a task."""
    pool = open_pool(options)
    _, token = find_task(pool, options.id)
    pool.prioritize({"_id": token.id}, options.priority)
    _print({"_id": token.id, "priority": options.priority}, options)
    return 0


def remove_tasks(options: Namespace) -> int:
    """Remove tasks, or show which would go."""
    query = query_of(options)
    _refuse_all_by_accident(query, options, "remove")
    pool = open_pool(options)
    if not options.dry_run:
        _print_number("removed", pool.remove(query), options)
        return 0
    found = documents(pool, selected(pool, query))
    if options.json:
        print_json(found)
    elif found:
        print_text(task_columns(found))
    note(f"{len(found):,} tasks would be removed.")
    return 0


def _refuse_all_by_accident(query: Mapping[str, object], options: Namespace, verb: str) -> None:
    if options.all and query:
        raise CommandLineError(f"a query and --all: say which to {verb}. Nothing was changed.")
    if not (options.all or query):
        raise CommandLineError(
            f"to {verb} tasks, say which, by a query or --status; --all means every task of the "
            "pool. Nothing was changed."
        )


def _print_number(what: str, number: int, options: Namespace) -> None:
    if options.json:
        print_json({what: number})
    else:
        print(f"{number:,} tasks {what}.")


def wait_for_tasks(options: Namespace) -> int:
    """Wait until no task is undone; print how many there are of each status."""
    query = query_of(options)
    pool = open_pool(options)
    failures = None
    with _progress_shown():
        try:
            pool.wait(query, timeout=options.timeout, on_failure=options.on_failure)
        except TasksFailedError as error:
            failures = error
    _print(pool.task_stat(query), options)
    if failures is not None:
        note(f"qwf: {failures}")
    return 0 if failures is None else 1


def _print(said: Mapping[str, object], options: Namespace) -> None:
    if options.json:
        print_json(said)
    else:
        print_facts({name: "none" if value is None else str(value) for name, value in said.items()})


@contextlib.contextmanager
def _progress_shown() -> Iterator[None]:
    logger = logging.getLogger("qwf.progress")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def check_pool(options: Namespace) -> int:
    """Print what is wrong in a pool, and return 1 if something is left."""
    pool = open_pool(options)
    findings = pool.check(repair=options.repair)
    return print_findings(findings, pool.directory.root, options)
