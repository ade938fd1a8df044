"""The commands ``qwf worker`` and ``qwf tasks`` with their arguments, help and examples."""

from __future__ import annotations

import argparse
import json
import re
from typing import Any, Final

from .arguments import add, count, seconds

__all__ = ["add_tasks", "add_worker"]

_STATUSES: Final = ("waiting", "running", "part_done", "done", "failed")
_QUERIES: Final = (
    'A QUERY is JSON in MongoDB\'s language, such as \'{"filter.model.class": "LinearModel"}\', '
    "with the operators $in $nin $gt $gte $lt $lte $ne $exists $and $or. Keys are _id, status, "
    "priority, and what is below def, filter (def without tuples) and res."
)


def add_worker(commands: Any) -> None:
    """Add ``qwf worker``."""
    worker = add(
        commands,
        "worker",
        "worker.run_worker",
        "work on the tasks of a pool, in one or several processes",
        more="Calls a function with the definition of each task (with --before-status part_done: "
        "with its result so far) and keeps what it returns. Any number of workers on any number "
        "of hosts that share the store work on one pool. Ends when there is nothing left to take "
        "and nobody works on anything that may come back. Writes a line per task to standard "
        "error. A process that is killed is replaced and its task taken up at once. SIGTERM and "
        "SIGINT, however often, end the processes and give back what they worked on, which is "
        "then not counted as an attempt. Exit code 0: nothing failed; 1: a task failed here for "
        "good, or the processes died; 130, 143: interrupted, told to end.",
        example="qwf worker nightly -n 4 --func mine:train",
        tables="",
    )
    worker.add_argument("pool", metavar="POOL", help="the pool")
    worker.add_argument(
        "-n", type=_positive, default=1, metavar="N", help="so many processes; default: 1"
    )
    worker.add_argument(
        "--func",
        metavar="NAME",
        help="module:function or module.function, also of a file in this directory; default: "
        "qwf.task_train, and of tasks that are done in part qwf.end_task_train",
    )
    worker.add_argument(
        "--experiment",
        metavar="NAME",
        help="passed as experiment_name to a function that takes it; default: the pool's name",
    )
    worker.add_argument(
        "--before-status",
        choices=("waiting", "part_done"),
        default="waiting",
        help="which tasks to take; default: waiting",
    )
    worker.add_argument(
        "--after-status",
        choices=("done", "part_done"),
        default="done",
        help="what they are then; default: done",
    )
    worker.add_argument(
        "--query", type=_query, default={}, metavar="JSON", help="only tasks that match"
    )
    worker.add_argument(
        "--stay", action="store_true", help="wait for more tasks, and for the pool, until told"
    )
    worker.add_argument(
        "--max-tasks", type=_positive, metavar="N", help="begin no more after so many attempts"
    )
    worker.add_argument(
        "--lease",
        type=seconds,
        metavar="SECONDS",
        help="after so long without a sign of life other hosts may take the tasks; default: 120",
    )
    worker.add_argument(
        "--force-release",
        action="store_true",
        help="a fresh process for each task, which gives all its memory back",
    )


def add_tasks(tasks: Any) -> None:
    """Add the commands of ``qwf tasks``."""
    _add_looking(tasks)
    _add_inserting(tasks)
    _add_changing(tasks)
    _add_waiting(tasks)


def _add_looking(tasks: Any) -> None:
    add(
        tasks,
        "list",
        "tasks.list_pools",
        "list the pools, with tasks by status and living workers",
        example="qwf tasks list",
    )
    stat = add(
        tasks,
        "stat",
        "tasks.show_counts",
        "count the tasks of a pool by status, and show who works on it",
        more=f"Workers are the processes that have a sign of life in the pool. {_QUERIES}",
        example="qwf tasks stat nightly",
        tables="json",
    )
    show = add(
        tasks,
        "show",
        "tasks.show_task",
        "show everything about one task",
        more="Definition, status, priority, times, who works on it, every failed attempt with its "
        "traceback, the result.",
        example="qwf tasks show nightly 3fa9c2",
        tables="json",
    )
    query = add(
        tasks,
        "query",
        "tasks.list_tasks",
        "list the tasks that a query finds, in the order of their insertion",
        more=_QUERIES,
        example='qwf tasks query nightly \'{"filter.model.class": "LinearModel"}\'',
    )
    query.add_argument(
        "--max",
        type=count,
        metavar="N",
        help="at most so many, 0 for all; default: 50, with --json and --csv all",
    )
    for command in (stat, show, query):
        command.add_argument("pool", metavar="POOL", help="the pool")
    _add_identity(show)
    for command in (stat, query):
        _add_query(command)


def _add_inserting(tasks: Any) -> None:
    inserting = add(
        tasks,
        "add",
        "task_changes.add_tasks",
        "insert tasks, and print their ids",
        more="Those that are in the pool already, done or not, are kept as they are. The pool is "
        "made if there is none. The file holds a definition or a list of them, as JSON (also as "
        "qwf tasks query --json prints them in def) or YAML.",
        example="qwf tasks add nightly tasks.yaml --priority 5",
        tables="json",
    )
    inserting.add_argument("pool", metavar="POOL", help="the pool")
    inserting.add_argument("file", metavar="FILE", help=".json, .yaml, .yml, or - for either")
    inserting.add_argument(
        "--priority", type=_whole, metavar="N", help="the highest comes first, none last"
    )
    inserting.add_argument(
        "--max-attempts",
        type=_positive,
        metavar="N",
        help="how often a task of this pool may fail until it is set aside; 3 in a new pool",
    )
    inserting.add_argument("--dry-run", action="store_true", help="only say which are new")


def _add_changing(tasks: Any) -> None:
    reset = add(
        tasks,
        "reset",
        "task_changes.reset_tasks",
        "give back running tasks whose worker is dead, or bring tasks into a status",
        more="Without --to, running tasks go where they came from; workers do this by themselves "
        "too. Attempts are forgotten. Those of living workers are left alone without --force. "
        f"{_QUERIES}",
        example="qwf tasks reset nightly --status done --to waiting",
        tables="json",
    )
    reset.add_argument(
        "--to",
        choices=[status for status in _STATUSES if status != "running"],
        help="bring the tasks there; needs a query, --status or --all",
    )
    reset.add_argument("--force", action="store_true", help="also those of living workers")
    reset.add_argument("--all", action="store_true", help="with --to: every task of the pool")
    retry = add(
        tasks,
        "retry",
        "task_changes.retry_tasks",
        "have failed tasks tried again, as if they never had been",
        more=_QUERIES,
        example="qwf tasks retry nightly",
        tables="json",
    )
    prioritize = add(
        tasks,
        "prioritize",
        "task_changes.prioritize_task",
        "change the priority of a task",
        more="The highest comes first, none last, equal ones in the order of insertion.",
        example="qwf tasks prioritize nightly 3fa9c2 10",
        tables="json",
    )
    remove = add(
        tasks,
        "remove",
        "task_changes.remove_tasks",
        "remove tasks for good, with their results; recorders are kept",
        more=f"Running ones too: what they return is then refused. {_QUERIES}",
        example="qwf tasks remove nightly --status failed --dry-run",
        tables="json",
    )
    remove.add_argument("--all", action="store_true", help="every task of the pool")
    remove.add_argument("--dry-run", action="store_true", help="only show what would go")
    for command in (reset, retry, prioritize, remove):
        command.add_argument("pool", metavar="POOL", help="the pool")
    for command in (reset, remove, retry):
        _add_query(command, status=command is not retry)
    _add_identity(prioritize)
    prioritize.add_argument(
        "priority", type=_priority, metavar="PRIORITY", help="a whole number, or none"
    )


def _add_waiting(tasks: Any) -> None:
    wait = add(
        tasks,
        "wait",
        "task_changes.wait_for_tasks",
        "wait until no task is waiting, running or done in part",
        more="Shows its progress on standard error, and takes up what dead workers leave. Exit "
        "code 0: all are done; 1: some have failed; 124: the time is over, and they go on. "
        f"{_QUERIES}",
        example="qwf tasks wait nightly --timeout 8h",
        tables="json",
    )
    wait.add_argument(
        "--timeout", type=seconds, metavar="S", help="seconds, or as 15m, 8h; default: none"
    )
    wait.add_argument(
        "--on-failure",
        choices=("raise", "stop", "ignore"),
        default="raise",
        help="raise: wait for all, and end with 1 if some have failed; stop: end with 1 as soon "
        "as one has; ignore: wait for all, and end with 0; default: raise",
    )
    check = add(
        tasks,
        "check",
        "task_changes.check_pool",
        "look for damage in a pool, and repair what can be repaired",
        more="Prints what is wrong. Exit code 1 when something is left that is wrong. Nothing is "
        "changed without --repair.",
        example="qwf tasks check nightly --repair",
        tables="json",
    )
    check.add_argument("--repair", action="store_true", help="set right what can be")
    for command in (wait, check):
        command.add_argument("pool", metavar="POOL", help="the pool")
    _add_query(wait)


# --- arguments -------------------------------------------------------------------------------


def _add_identity(command: argparse.ArgumentParser) -> None:
    command.add_argument("id", metavar="ID", help="a task: its id, or a part that only it has")


def _add_query(command: argparse.ArgumentParser, *, status: bool = True) -> None:
    command.add_argument(
        "query", nargs="?", type=_query, default={}, metavar="QUERY", help="which tasks"
    )
    if status:
        command.add_argument(
            "--status",
            action="append",
            choices=_STATUSES,
            help="only with this status; may be given again",
        )


def _query(text: str) -> dict[str, Any]:
    try:
        query = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON: {error}") from None
    if not isinstance(query, dict):
        raise argparse.ArgumentTypeError(
            f'{text!r} is no query; expected an object, such as \'{{"_id": "3fa9..."}}\''
        )
    return query


def _positive(text: str) -> int:
    if not re.fullmatch(r"0*[1-9]\d*", text, flags=re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of things; expected 1, 2, ...")
    return int(text)


def _whole(text: str) -> int:
    if not re.fullmatch(r"-?\d+", text, flags=re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is no priority; expected a whole number")
    return int(text)


def _priority(text: str) -> int | None:
    return None if text == "none" else _whole(text)
