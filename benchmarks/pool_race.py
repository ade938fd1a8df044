"""Lets processes take tasks from one queue at the same time, and counts what they got."""

from __future__ import annotations

import gc
import importlib.util
import multiprocessing
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol

from measure import say

__all__ = [
    "Contestant",
    "Counts",
    "Haul",
    "Outcome",
    "Queue",
    "Step",
    "Taker",
    "claiming",
    "finishing",
    "is_installed",
    "made_tasks",
    "race",
    "stepping",
]


class Haul:
    """What one process has got: what each task is known by, and when it had the last one."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.last = 0.0

    def add(self, key: str) -> None:
        """Note a task. perf_counter is one clock for all processes of a machine."""
        self.keys.append(key)
        self.last = time.perf_counter()


# Takes tasks for as many seconds, or until there are none.
Taker = Callable[[float, Haul], None]

# Takes one task and returns what it is known by, or nothing if there is none.
Step = Callable[[], str | None]


@dataclass(frozen=True)
class Counts:
    """What a queue itself says of its tasks."""

    waiting: int
    done: int


class Queue(Protocol):
    """Tasks that processes take."""

    def fill(self, tasks: Sequence[dict[str, Any]]) -> None:
        """Insert tasks, which need not be durable."""

    def counts(self) -> Counts:
        """Count the tasks that wait and those that are done."""

    def again(self) -> None:
        """Let all tasks wait that do not."""

    def step(self, *, finishes: bool) -> Step:
        """Return what claims a task and reads it, and finishes it; called in each process."""


@dataclass(frozen=True)
class Contestant:
    """A way of taking tasks from a queue: `prepare` is called before the start, in each process."""

    name: str
    queue: Queue
    prepare: Callable[[], Taker]
    finishes: bool = False


def claiming(name: str, queue: Queue) -> Contestant:
    """Return what takes tasks and reads them."""
    return Contestant(name, queue, stepping(lambda: queue.step(finishes=False)))


def finishing(name: str, queue: Queue) -> Contestant:
    """Return what takes tasks, reads them and finishes them with a result."""
    return Contestant(name, queue, stepping(lambda: queue.step(finishes=True)), finishes=True)


def is_installed(module: str) -> bool:
    """Whether a peer is there; says so if it is not."""
    if importlib.util.find_spec(module) is not None:
        return True
    say(f"{module} is not installed: left out.")
    return False


@dataclass(frozen=True)
class Outcome:
    """Tasks per second, and everything that a queue must not do."""

    per_second: float
    twice: int
    lost: int
    deaths: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether each task was had exactly once and all processes lived."""
        return not (self.twice or self.lost or self.deaths)

    def reproach(self) -> str:
        """Return what went wrong, in words."""
        parts = []
        if self.twice:
            parts.append(f"{self.twice:,} handed out twice")
        if self.lost:
            parts.append(f"{self.lost:,} lost")
        if self.deaths:
            text, _ = Counter(self.deaths).most_common(1)[0]
            parts.append(f"{len(self.deaths)} died: {text}")
        return ", ".join(parts)


@dataclass(frozen=True)
class _Told:
    """What a process tells when it has finished."""

    begin: float
    haul: Haul
    death: str | None


def made_tasks(count: int) -> list[dict[str, Any]]:
    """Return definitions as rolling makes them, about 1 KB of JSON each."""
    return [_task(number) for number in range(count)]


def _task(number: int) -> dict[str, Any]:
    handler = {
        "start_time": "2008-01-01",
        "end_time": "2026-06-30",
        "fit_start_time": "2008-01-01",
        "fit_end_time": "2014-12-31",
        "instruments": "csi300",
    }
    return {
        "number": number,
        "model": {
            "class": "LGBModel",
            "module_path": "qlib.contrib.model.gbdt",
            "kwargs": {"loss": "mse", "learning_rate": 0.0421, "max_depth": 8, "num_leaves": 210},
        },
        "dataset": {
            "class": "DatasetH",
            "module_path": "qlib.data.dataset",
            "kwargs": {
                "handler": {
                    "class": "Alpha158",
                    "module_path": "qlib.contrib.data.handler",
                    "kwargs": handler,
                },
                "segments": {
                    "train": ["2008-01-01", "2014-12-31"],
                    "valid": ["2015-01-01", "2016-12-31"],
                    "test": ["2017-01-01", "2026-06-30"],
                },
            },
        },
        "record": [
            {"class": "SignalRecord", "module_path": "qlib.workflow.record_temp"},
            {"class": "SigAnaRecord", "module_path": "qlib.workflow.record_temp"},
        ],
    }


def stepping(made: Callable[[], Step]) -> Callable[[], Taker]:
    """Return what prepares to take one task after the other, in a loop of the benchmark's own."""

    def prepare() -> Taker:
        step = made()

        def take(seconds: float, haul: Haul) -> None:
            end = haul.last + seconds
            while haul.last < end and (key := step()) is not None:
                haul.add(key)

        return take

    return prepare


def race(contestant: Contestant, tasks: int, processes: int, seconds: float) -> Outcome:
    """Take tasks in as many processes, which begin together; afterwards all of them wait again."""
    context = multiprocessing.get_context("fork")
    start, leave = context.Barrier(processes), context.Event()
    started, ears = [], []
    for _ in range(processes):
        ear, mouth = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(contestant, start, leave, seconds, mouth))
        with warnings.catch_warnings():
            # Python warns of threads; those of NumPy are the only ones, and they survive a fork.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        mouth.close()
        started.append(process)
        ears.append(ear)
    # Who ends may give back what it holds, so all of them stay until the tasks are counted.
    outcome = _judged(contestant, tasks, [ear.recv() for ear in ears])
    leave.set()
    for process in started:
        process.join()
    contestant.queue.again()
    return outcome


def _work(
    contestant: Contestant, start: Any, leave: Any, seconds: float, mouth: Connection
) -> None:
    haul = Haul()
    take, death = _prepared(contestant)
    gc.collect()
    gc.freeze()
    start.wait()
    begin = haul.last = time.perf_counter()
    try:
        take(seconds, haul)
    except Exception as error:  # noqa: BLE001 - whatever a peer dies of is what is to be told
        death = _in_words(error)
    # To learn that there are no more is not counted: some make sure of it.
    mouth.send(_Told(begin, haul, death))
    leave.wait()


def _prepared(contestant: Contestant) -> tuple[Taker, str | None]:
    """Return what takes tasks; also of a process that died on its way to the start."""
    try:
        return contestant.prepare(), None
    except Exception as error:  # noqa: BLE001 - as above
        return (lambda _seconds, _haul: None), _in_words(error)


def _in_words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _judged(contestant: Contestant, tasks: int, told: list[_Told]) -> Outcome:
    taken = [key for one in told for key in one.haul.keys]
    distinct = len(set(taken))
    counts = contestant.queue.counts()
    missing = tasks - counts.waiting - distinct
    if contestant.finishes:
        missing = max(missing, distinct - counts.done)
    lasted = max(one.haul.last for one in told) - min(one.begin for one in told)
    return Outcome(
        per_second=len(taken) / lasted if taken else 0.0,
        twice=len(taken) - distinct,
        lost=max(missing, 0),
        deaths=tuple(one.death for one in told if one.death is not None),
    )
