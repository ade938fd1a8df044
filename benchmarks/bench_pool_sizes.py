"""Time of what is done with whole pools of 1,000, 10,000 and 100,000 tasks.

Inserting all, and again when they are all there; counting, waiting for what has ended, searching by
id, by status and by a field of the definition. *First* is the first call in a fresh process, *warm*
every later one. The floor makes the same calls bare; SQLite is the table of `pool_peers.py`.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import floor
from measure import (
    Options,
    in_a_fresh_process,
    in_words,
    print_machine,
    read_options,
    say,
    timed,
    workshop,
)
from pool_peers import RESULT, Sqlite
from pool_race import made_tasks

from qwf import TaskManager

SIZES = (1_000, 10_000, 100_000)
QUICK_SIZES = (100, 300)
MOST_ROUNDS, SECONDS = 9, 2.0

Tasks = list[dict[str, Any]]
# Seconds by the size of the pool.
Row = dict[int, list[float]]


def write_raw(folder: Path, tasks: Tasks) -> None:
    """Write each definition durable, then give it its two names; names are synced at the end."""
    waiting, definitions = f"{folder}/waiting", f"{folder}/def"
    os.makedirs(waiting)
    os.makedirs(definitions)
    for number, task in enumerate(tasks):
        private = f"{folder}/private"
        floor.write_new(private, json.dumps(task).encode())
        os.link(private, f"{definitions}/{number:024x}")
        os.rename(private, f"{waiting}/ffffffff-{number:016x}-{number:024x}")
    floor.fsync_directory(definitions)
    floor.fsync_directory(waiting)


def list_raw(folder: Path) -> int:
    return len(os.listdir(f"{folder}/waiting")) + len(os.listdir(f"{folder}/def"))


def read_raw(folder: Path) -> int:
    definitions = f"{folder}/def"
    names = sorted(os.listdir(definitions))
    return sum(json.loads(floor.read(f"{definitions}/{name}"))["number"] == 0 for name in names)


def first_and_warm(call: Callable[[], object]) -> list[float]:
    """Return the seconds of calls in a fresh process, the first one included."""

    def measure() -> list[float]:
        seconds: list[float] = []
        while len(seconds) < 2 or (len(seconds) < MOST_ROUNDS and sum(seconds) < SECONDS):
            seconds.append(timed(call)())
        return seconds

    return in_a_fresh_process(measure)


def finish_all(pool: Callable[[], TaskManager]) -> int:
    """Commit all tasks. Nothing of this is measured, so nothing waits for the disk."""
    manager = pool()
    with mock.patch("os.fsync"):
        while (task := manager.fetch_task()) is not None:
            manager.commit_task_res(task, RESULT)
    return manager.task_stat().get("done", 0)


def measure_inserting(place: Path, tasks: Tasks, pool: Callable[[], TaskManager]) -> dict[str, Any]:
    sqlite = Sqlite(place, "FULL")

    def seconds(call: Callable[[], object]) -> list[float]:
        return [in_a_fresh_process(timed(call))]

    return {
        "insert: floor": seconds(lambda: write_raw(place / "raw", tasks)),
        "insert: qwf": seconds(lambda: pool().create_task(tasks)),
        "insert: SQLite, one transaction": seconds(lambda: sqlite.fill(tasks)),
        "insert again: qwf": seconds(lambda: pool().create_task(tasks)),
        "insert again: SQLite": seconds(lambda: sqlite.fill(tasks)),
        "insert one more: qwf": seconds(lambda: pool().create_task([{"number": -1}])),
    }


def measure_looking(place: Path, tasks: Tasks, pool: Callable[[], TaskManager]) -> dict[str, Any]:
    manager = pool()
    sqlite = Sqlite(place, "NORMAL")
    sqlite.fill(tasks)
    middle = len(tasks) // 2
    found = in_a_fresh_process(lambda: [*manager.query({"filter.number": middle})])
    identity = found[0]["_id"]

    def one(query: dict[str, Any]) -> Callable[[], None]:
        def ask() -> None:
            (task,) = manager.query(query)
            assert task["def"]["number"] == middle

        return ask

    def running() -> None:
        assert [*manager.query({"status": "running"})] == []

    calls: dict[str, Callable[[], object]] = {
        "floor: listing both directories": lambda: list_raw(place / "raw"),
        "task_stat: qwf": manager.task_stat,
        "task_stat: SQLite": sqlite.counts,
        "by id: qwf": one({"_id": identity}),
        "by status, none found: qwf": running,
        "floor: reading all definitions": lambda: read_raw(place / "raw"),
        "by a field: qwf": one({"filter.number": middle}),
    }
    return {name: first_and_warm(call) for name, call in calls.items()}


def measure_ended(tasks: Tasks, pool: Callable[[], TaskManager]) -> dict[str, Any]:
    say(f"{len(tasks):,} tasks: finishing all, which is not measured")
    finished = in_a_fresh_process(lambda: finish_all(pool))
    assert finished >= len(tasks), finished
    manager = pool()
    return {
        "wait, all done: qwf": first_and_warm(manager.wait),
        "task_stat, all done: qwf": first_and_warm(manager.task_stat),
    }


def print_table(
    title: str, rows: dict[str, Row], options: Options, choose: Callable[[list[float]], float]
) -> None:
    """Print a table in Markdown, which can be pasted."""
    if options.json:
        for name, row in rows.items():
            for size, seconds in row.items():
                cell = {"name": name, "tasks": size, "n": len(seconds), "s": choose(seconds)}
                print(json.dumps({"benchmark": title, **cell}))
        return
    sizes = [*next(iter(rows.values()))]
    print(f"\n**{title}**\n")
    print(f"| | {' | '.join(f'{size:,} tasks' for size in sizes)} | each of {sizes[-1]:,} |")
    print("|---" * (len(sizes) + 2) + "|")
    for name, row in rows.items():
        texts = [in_words(choose(row[size])) for size in sizes]
        each = in_words(choose(row[sizes[-1]]) / sizes[-1])
        print(f"| {name} | {' | '.join(texts)} | {each} |")


def main() -> None:
    options = read_options(__doc__)
    inserting: dict[str, Row] = {}
    looking: dict[str, Row] = {}
    with workshop() as folder:
        print_machine(folder, options)
        for size in QUICK_SIZES if options.quick else SIZES:
            say(f"{size:,} tasks")
            place, tasks = folder / str(size), made_tasks(size)
            place.mkdir()

            def pool(place: Path = place) -> TaskManager:
                return TaskManager("sizes", uri=place / "store")

            for name, seconds in measure_inserting(place, tasks, pool).items():
                inserting.setdefault(name, {})[size] = seconds
            found = measure_looking(place, tasks, pool) | measure_ended(tasks, pool)
            for name, seconds in found.items():
                looking.setdefault(name, {})[size] = seconds
        print_table("inserting", inserting, options, statistics.median)
        print_table("looking, first", looking, options, lambda seconds: seconds[0])
        warm = {name: {n: cell[1:] for n, cell in row.items()} for name, row in looking.items()}
        print_table("looking, warm", warm, options, statistics.median)


if __name__ == "__main__":
    main()
