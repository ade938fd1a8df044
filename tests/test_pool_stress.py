"""Eight processes on one pool, killed and stopped at random: each task is done once in two books.

One book is the pool. The other is a log per worker, to which it appends what it is about to do and
what has come of it; whatever a kill leaves open there the pool has to agree with.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwf.errors import LeaseLostError
from qwf.tasks.manage import TaskManager

pytestmark = pytest.mark.stress

LEASE = 1.0
WORKERS = 8
TASKS = 400
MOST = 200  # deaths count as attempts, and none is to fail because of them
SECONDS = 12.0


def manager(root: Path, lease: float = LEASE) -> TaskManager:
    return TaskManager("p", uri=root, lease=lease, max_attempts=MOST)


def log(descriptor: int, *words: object) -> None:
    os.write(descriptor, (json.dumps(words) + "\n").encode())


def fails(number: int) -> bool:
    return number % 20 == 3


def work(root: Path, seed: int, stop: Path) -> None:
    """Work until a file appears: two thirds of the tasks in one step, a third in two."""
    chance = random.Random(seed)
    one = manager(root)
    book = os.open(root.parent / f"book-{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while not stop.exists():
        one.recover(every=0.3)
        task = one.fetch_task() or one.fetch_task({}, "part_done")
        if task is None:
            time.sleep(0.01)
            continue
        identity, number, half = task["_id"], task["def"]["n"], "res" in task
        time.sleep(chance.random() * 0.05)
        mark = f"{os.getpid()}-{time.monotonic_ns()}"
        part = number % 3 == 0 and not half
        try:
            if fails(number):
                log(book, "fail", identity, mark)
                one.fail_task(task, mark, final=chance.random() < 0.3)
                log(book, "failed", identity, mark)
            else:
                log(book, "try", identity, mark, part)
                one.commit_task_res(task, [mark, task.get("res")], "part_done" if part else "done")
                log(book, "ok", identity, mark, part)
        except LeaseLostError:
            log(book, "lost", identity, mark)


class Crowd:
    """Processes that are killed and stopped at random, and replaced."""

    def __init__(self, root: Path, stop: Path) -> None:
        self._root, self._stop = root, stop
        self._chance = random.Random(7)
        self._seeds = iter(range(100, 10_000))
        self.living: list[int] = []
        self.asleep: dict[int, float] = {}
        self.kills = self.stops = 0

    def fill(self) -> None:
        while len(self.living) + len(self.asleep) < WORKERS:
            seed = next(self._seeds)
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    work(self._root, seed, self._stop)
                    code = 0
                finally:
                    os._exit(code)
            self.living.append(pid)

    def disturb(self) -> None:
        """Kill one or stop one, and wake those that have slept for longer than their lease."""
        now = time.monotonic()
        for pid, until in list(self.asleep.items()):
            if now > until:
                os.kill(pid, signal.SIGCONT)
                del self.asleep[pid]
                self.living.append(pid)
        victim = self._chance.choice(self.living)
        self.living.remove(victim)
        if len(self.asleep) < 3 and self._chance.random() < 0.5:
            os.kill(victim, signal.SIGSTOP)
            self.asleep[victim] = now + LEASE + 2.5
            self.stops += 1
        else:
            os.kill(victim, signal.SIGKILL)
            os.waitpid(victim, 0)
            self.kills += 1
        self.fill()

    def wake_all(self) -> None:
        for pid in self.asleep:
            os.kill(pid, signal.SIGCONT)
        self.living += self.asleep
        self.asleep.clear()

    def end(self) -> list[int]:
        self.wake_all()
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in self.living]
        self.living.clear()
        return codes


@pytest.fixture
def crowd(tmp_path: Path) -> Iterator[Crowd]:
    found = Crowd(tmp_path / "store", tmp_path / "stop")
    yield found
    for pid in (*found.living, *found.asleep):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def books(directory: Path) -> list[list[Any]]:
    entries = []
    for path in directory.glob("book-*"):
        entries += [json.loads(line) for line in path.read_text().splitlines()]
    return entries


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_pool_of_which_the_workers_are_killed_and_stopped_is_done_once(
    tmp_path: Path, crowd: Crowd
) -> None:
    root = tmp_path / "store"
    one = manager(root)
    ids = one.create_task([{"n": number} for number in range(TASKS)])
    crowd.fill()
    begun = time.monotonic()
    while time.monotonic() - begun < SECONDS:
        time.sleep(0.1)
        crowd.disturb()
    crowd.wake_all()
    counts = one.wait(timeout=60, on_failure="ignore")
    (tmp_path / "stop").touch()
    assert set(crowd.end()) == {0}
    assert crowd.kills > 20
    assert crowd.stops > 5

    hopeless = {identity for number, identity in enumerate(ids) if fails(number)}
    assert counts == {"done": TASKS - len(hopeless), "failed": len(hopeless)}
    one.recover()
    entries = books(tmp_path)
    accepted = accepted_marks(one)
    assert accepted.keys() == set(ids) - hopeless
    assert_books_agree(entries, accepted)
    assert [each for each in entries if each[0] == "lost"], "no zombie has been refused"
    # Whoever was killed between writing a result and the rename has left the result.
    assert all("no task has this result" in finding.problem for finding in one.check())
    one.check(repair=True)
    assert one.check() == []


def accepted_marks(one: TaskManager) -> dict[str, list[str]]:
    """What the pool says of each task that is done: the marks of its steps."""
    found = {}
    for task in one.query({"status": "done"}):
        mark, before = task["res"]
        found[task["_id"]] = [mark] if before is None else [before[0], mark]
        assert len(found[task["_id"]]) == 1 + (task["def"]["n"] % 3 == 0)
    return found


def assert_books_agree(entries: list[list[Any]], accepted: dict[str, list[str]]) -> None:
    said = {kind: [each for each in entries if each[0] == kind] for kind in ("try", "ok", "lost")}
    steps = {(identity, mark) for identity, marks in accepted.items() for mark in marks}
    ok = [(each[1], each[2]) for each in said["ok"]]
    # No step was acknowledged twice, and what was acknowledged is what the pool has.
    assert max(Counter((each[1], each[3]) for each in said["ok"]).values()) == 1
    assert set(ok) <= steps
    # Nobody who was refused has it; the rest was killed before it could tell.
    assert not {(each[1], each[2]) for each in said["lost"]} & steps
    assert steps - set(ok) <= {(each[1], each[2]) for each in said["try"]}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_submitters_of_the_same_tasks_that_are_killed_and_stopped_insert_each_once(
    tmp_path: Path,
) -> None:
    root = tmp_path / "store"
    looker = manager(root, lease=0.5)
    looker.create_task([{"n": -1}])
    chance = random.Random(3)
    for batch in range(4):
        definitions = [{"batch": batch, "n": number} for number in range(300)]
        pids = []
        for _ in range(WORKERS):
            chance.shuffle(definitions)
            pid = os.fork()
            if pid == 0:
                with contextlib.suppress(BaseException):
                    manager(root, lease=0.5).create_task(definitions)
                os._exit(0)
            pids.append(pid)
        time.sleep(0.02 + chance.random() * 0.1)
        for pid in pids[:3]:
            os.kill(pid, signal.SIGKILL)
        for pid in pids[3:5]:
            os.kill(pid, signal.SIGSTOP)
        until = time.monotonic() + 2.5
        while time.monotonic() < until:  # others take what the sleepers have begun
            looker.recover()
            time.sleep(0.05)
        for pid in pids[3:5]:
            os.kill(pid, signal.SIGCONT)
        for pid in pids:
            os.waitpid(pid, 0)
    looker.recover()
    assert looker.task_stat() == {"waiting": 1201}
    found = Counter(task["def"].get("batch") for task in looker.query())
    assert found == {None: 1, 0: 300, 1: 300, 2: 300, 3: 300}
    assert looker.check() == []
