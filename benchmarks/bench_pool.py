"""Tasks per second that 1, 2, 4 and 8 processes take from one pool of 1,000 to 100,000 tasks.

*Claims*: a task is taken and its definition read; no claim has to be durable. *Cycles*: it is taken
and finished with a small result, which is durable. Each cell is a race: processes are forked, get
ready, begin together, and take tasks until there are none or the time is over. Then the tasks are
counted; whoever has handed one out twice, has lost one or has died gets a reproach beside the
number. Before the next race all tasks wait again. The contestants take turns, and a cell is the
median of its rounds.
"""

from __future__ import annotations

import contextlib
import json
import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from measure import (
    FLOOR,
    QWF,
    Budget,
    Options,
    in_a_fresh_process,
    print_budget,
    print_machine,
    read_options,
    say,
    workshop,
)
from pool_peers import RESULT, file_and_sqlite_queues, raw_contestants
from pool_race import (
    Contestant,
    Counts,
    Haul,
    Outcome,
    Step,
    Taker,
    claiming,
    finishing,
    made_tasks,
    race,
)
from pool_servers import Servers, servers

from qwf import TaskManager, run_task

RAW = "floor: rename, read"
# In these the tasks are in files or in SQLite: qwf is to be faster than all of them.
SERVERS = ("PostgreSQL", "Redis")

# Tasks in the pool: rounds, and the seconds of a race.
RACES = {1_000: (3, 1.0), 10_000: (3, 0.5), 100_000: (1, 3.0)}
QUICK_RACES = {300: (1, 0.3)}

# Per contestant, per number of processes.
Cells = dict[str, dict[int, list[Outcome]]]


class Qwf:
    """A pool of qwf; this process never opens it, so that forks begin with nothing."""

    def __init__(self, uri: Path) -> None:
        self._uri = uri

    def _manager(self) -> TaskManager:
        return TaskManager("race", uri=self._uri)

    def fill(self, tasks: Sequence[dict[str, Any]]) -> None:
        """Create the tasks."""
        in_a_fresh_process(lambda: len(self._manager().create_task(tasks)))

    def counts(self) -> Counts:
        """Ask for the statistics."""
        found = in_a_fresh_process(lambda: self._manager().task_stat())
        return Counts(found.get("waiting", 0), found.get("done", 0))

    def again(self) -> None:
        """Reset what the dead processes hold, and what is done."""
        in_a_fresh_process(self._reset)

    def _reset(self) -> int:
        manager = self._manager()
        return manager.reset_waiting() + manager.reset_status({"status": "done"}, "waiting")

    def step(self, *, finishes: bool) -> Step:
        """Fetch; commit."""
        manager = self._manager()

        def step() -> str | None:
            task = manager.fetch_task()
            if task is None:
                return None
            if finishes:
                manager.commit_task_res(task, RESULT)
            return str(task["_id"])

        return step

    def running(self) -> Taker:
        """Let `run_task` do it, which is stopped by an interrupt."""
        manager = self._manager()

        def take(seconds: float, haul: Haul) -> None:
            end = haul.last + seconds

            def train(task: dict[str, Any]) -> Any:
                if haul.last > end:
                    raise KeyboardInterrupt
                haul.add(str(task["number"]))
                return RESULT

            with contextlib.suppress(KeyboardInterrupt):
                run_task(train, manager)

        return take


def contestants(folder: Path, tasks: int, peers: Servers | None) -> list[Contestant]:
    pool = Qwf(folder / "store")
    found = raw_contestants(folder)
    found += [
        claiming("qwf: fetch_task", pool),
        finishing("qwf: fetch_task, commit_task_res", pool),
        Contestant("qwf: run_task", pool, pool.running, finishes=True),
    ]
    found += file_and_sqlite_queues(folder, tasks, peers=peers is not None)
    return found + (peers.contestants() if peers is not None else [])


def run_races(
    racing: Sequence[Contestant], tasks: int, processes: Sequence[int], rounds: int, seconds: float
) -> Cells:
    """Return the outcomes of each contestant for each number of processes."""
    cells: Cells = {one.name: {number: [] for number in processes} for one in racing}
    for number in processes:
        for turn in range(rounds):
            # Whoever is first in one round is last in the next.
            first = turn * len(racing) // rounds
            for one in [*racing[first:], *racing[:first]]:
                cells[one.name][number].append(race(one, tasks, number, seconds))
    return cells


def speed(outcomes: Sequence[Outcome]) -> float:
    return statistics.median(one.per_second for one in outcomes)


def slowest_ratio(cells: Cells, above: str, below: str) -> float:
    """Return how many times as fast one contestant is, where it is least ahead."""
    return min(speed(cells[above][n]) / speed(cells[below][n]) for n in cells[above])


def is_sound(outcomes: dict[int, list[Outcome]]) -> bool:
    return all(one.sound for found in outcomes.values() for one in found)


def print_cells(title: str, cells: Cells, options: Options) -> None:
    """Print a table in Markdown, which can be pasted."""
    (ours, *_) = (name for name in cells if name.startswith(QWF))
    if options.json:
        for name, row in cells.items():
            for number, outcomes in row.items():
                cell = {"name": name, "processes": number, "n": len(outcomes)}
                cell |= {"per_second": speed(outcomes), "sound": all(o.sound for o in outcomes)}
                cell["reproach"] = worst(outcomes)
                print(json.dumps({"benchmark": title, **cell}))
        return
    numbers = [*next(iter(cells.values()))]
    print(f"\n**{title}** (per second, by number of processes)\n")
    print(f"| | {' | '.join(map(str, numbers))} | × qwf | |")
    print("|---" * (len(numbers) + 3) + "|")
    for name, row in cells.items():
        ratios = [speed(row[number]) / speed(cells[ours][number]) for number in numbers]
        span = "1" if name == ours else f"{min(ratios):.2g} to {max(ratios):.2g}"
        texts = [f"{speed(row[number]):,.0f}" for number in numbers]
        reproach = worst([one for outcomes in row.values() for one in outcomes])
        print(f"| {name} | {' | '.join(texts)} | {span} | {reproach} |")


def worst(outcomes: Sequence[Outcome]) -> str:
    """Return the gravest of what was done wrong."""
    most = max(outcomes, key=lambda one: (len(one.deaths), one.lost, one.twice))
    return most.reproach()


def print_budgets(title: str, cells: Cells, ours: str, raw: str, options: Options) -> None:
    print_budget(title, Budget(raw, 0.33), slowest_ratio(cells, ours, raw), options)
    for name, row in cells.items():
        compared = not name.startswith((FLOOR, QWF, *SERVERS)) and "not durable" not in name
        if compared and is_sound(row):
            print_budget(title, Budget(name, 1), slowest_ratio(cells, ours, name), options)


def print_flatness(per_size: dict[int, Cells], name: str, options: Options) -> None:
    least, *larger = per_size
    for tasks in larger:
        here, there = per_size[tasks][name], per_size[least][name]
        ratio = min(speed(here[n]) / speed(there[n]) for n in here)
        budget = Budget(f"{name} of {least:,} tasks", 0.8)
        print_budget(f"{name}, {tasks:,} tasks", budget, ratio, options)


def race_all(options: Options, folder: Path, peers: Servers | None) -> None:
    per_size: dict[int, Cells] = {}
    processes = (1, 2) if options.quick else (1, 2, 4, 8)
    for tasks, (rounds, seconds) in (QUICK_RACES if options.quick else RACES).items():
        place = folder / str(tasks)
        place.mkdir()
        found = contestants(place, tasks, peers)
        say(f"{tasks:,} tasks: filling the queues")
        made = made_tasks(tasks)
        for queue in dict.fromkeys(one.queue for one in found):
            queue.fill(made)
        claims = [one for one in found if not one.finishes]
        cycles = [one for one in found if one.finishes]
        for kind, racing in (("claims", claims), ("cycles", cycles)):
            say(f"{tasks:,} tasks: {kind}")
            cells = run_races(racing, tasks, processes, rounds, seconds)
            title = f"{kind}, {tasks:,} tasks"
            print_cells(title, cells, options)
            ours, *_ = (name for name in cells if name.startswith(QWF))
            print_budgets(title, cells, ours, RAW if kind == "claims" else racing[0].name, options)
            per_size.setdefault(tasks, {}).update(cells)
    for name in (name for name in next(iter(per_size.values())) if name.startswith(QWF)):
        print_flatness(per_size, name, options)


def main() -> None:
    options = read_options(__doc__)
    with workshop() as folder, nullcontext() if options.quick else servers() as peers:
        print_machine(folder, options)
        race_all(options, folder, peers)


if __name__ == "__main__":
    main()
