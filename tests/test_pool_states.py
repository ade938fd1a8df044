"""Everything that may happen to the tasks of a pool, in any order, against a model in memory.

Three managers stand for three processes, each a worker of its own. One that is "dead" for the
others goes on when it "wakes": then it is one that has slept for longer than its lease.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import FaultyOs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from qwf.errors import LeaseLostError, TaskNotFoundError, TaskStatusError
from qwf.pool import check as checking
from qwf.pool import claims, workers
from qwf.process import pulse
from qwf.tasks import access
from qwf.tasks.manage import TaskManager

MOST = 2  # attempts
models = st.integers(0, 5)
managers = st.integers(0, 2)
priorities = st.sampled_from([None, None, 3, 0, -2])
fetchable = st.sampled_from(["waiting", "waiting", "part_done"])


def definition(number: int) -> dict[str, Any]:
    return {"n": number, "kind": "even" if number % 2 == 0 else "odd"}


def identity(number: int) -> str:
    text = json.dumps(definition(number), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@dataclass
class Known:
    """What a task is by what was done to it."""

    number: int
    order: int
    priority: int | None
    status: str = "waiting"
    attempts: int = 0
    res: Any = None
    error: str | None = None
    origin: str = ""
    holder: int | None = None
    claim: int = 0

    def end(self, status: str) -> None:
        before = self.origin if self.status == "running" else self.status
        if status == "failed" and before != "part_done":
            self.res = None  # only of a part that is done it makes sense to go on
        self.status, self.holder, self.claim = status, None, 0

    def fail(self, error: str, *, final: bool = False) -> None:
        self.attempts += 1
        self.error = error
        self.end("failed" if final or self.attempts >= MOST else self.origin)


class Query:
    """A query, and which tasks of the model it means."""

    def __init__(self, kind: str, number: int) -> None:
        self.kind, self.number = kind, number

    def __repr__(self) -> str:
        return f"{self.kind}:{self.number}"

    @property
    def asked(self) -> dict[str, Any]:
        ids = [identity(self.number), identity((self.number + 2) % 6)]
        return {
            "all": {},
            "one": {"_id": ids[0]},
            "two": {"_id": {"$in": ids}},
            "kind": {"filter.kind": definition(self.number)["kind"]},
        }[self.kind]

    def means(self, task: Known) -> bool:
        return {
            "all": True,
            "one": task.number == self.number,
            "two": task.number in (self.number, (self.number + 2) % 6),
            "kind": task.number % 2 == self.number % 2,
        }[self.kind]


queries = st.builds(Query, st.sampled_from(["all", "all", "one", "two", "kind"]), models)


class Pool(RuleBasedStateMachine):
    """The pool, and what is known of it."""

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.patch = pytest.MonkeyPatch()
        self.now = 0.0
        self.patch.setattr("qwf.storage.fsio.os", FaultyOs(fsync=lambda _: None))
        self.patch.setattr("qwf.pool.insertion.fsio.server_time", self._fine_clock)
        # Listings are old only by what has happened, and equal tasks are taken in order.
        clock = SimpleNamespace(monotonic=lambda: self.now, sleep=lambda _: None)
        self.patch.setattr(claims, "time", clock)
        self.patch.setattr(claims, "_COMPETING", 0)
        self.patch.setattr(access, "_RECOVERY_SECONDS", 0.0)
        self.patch.setattr(checking, "_PAUSE_SECONDS", 0.0)
        self.patch.setattr(workers, "runs_here", lambda noted: noted["lease"] not in self.dead)
        self.dead: set[float] = set()
        self.managers = [
            TaskManager("p", uri=self.root / "store", max_attempts=MOST, lease=self.lease(who))
            for who in range(3)
        ]
        self.tasks: dict[int, Known] = {}
        self.handles: list[tuple[int, Any, int, int]] = []  # manager, task, number, claim
        self.count = 0
        self.managers[0].create_task([definition(0)])
        self.tasks[0] = Known(0, self._next(), None)

    def teardown(self) -> None:
        for watched in list(pulse._watches):
            pulse.unwatch(watched)
        self.patch.undo()
        shutil.rmtree(self.root)

    @staticmethod
    def lease(who: int) -> float:
        return 1000.0 + who

    def _fine_clock(self, near: object) -> float:
        # Real ones are so coarse that two tasks may come at once.
        return 1_700_000_000.0 + self._next()

    def _next(self) -> int:
        self.count += 1
        self.now += 1e-6
        return self.count

    def is_dead(self, task: Known) -> bool:
        return task.holder is not None and self.lease(task.holder) in self.dead

    def recovered(self) -> int:
        lost = [task for task in self.tasks.values() if self.is_dead(task)]
        for task in lost:
            task.fail("WorkerLost")
        return len(lost)

    # --- creating, removing ---

    @rule(who=managers, numbers=st.lists(models, min_size=1, max_size=4), priority=priorities)
    def create(self, who: int, numbers: list[int], priority: int | None) -> None:
        ids = self.managers[who].create_task([definition(n) for n in numbers], priority=priority)
        assert ids == [identity(number) for number in numbers]
        for number in numbers:
            if number not in self.tasks:
                self.tasks[number] = Known(number, self._next(), priority)

    @rule(who=managers, query=queries)
    def remove(self, who: int, query: Query) -> None:
        gone = [number for number, task in self.tasks.items() if query.means(task)]
        assert self.managers[who].remove(query.asked) == len(gone)
        for number in gone:
            del self.tasks[number]

    # --- working ---

    @rule(who=managers, query=queries, status=fetchable)
    def fetch(self, who: int, query: Query, status: str) -> None:
        if self.lease(who) in self.dead:
            return
        self.now += 0.001
        task = self.managers[who].fetch_task(query.asked, status)
        expected = self._first(query, status)
        while expected is None and self.recovered():
            expected = self._first(query, status)
        if expected is None:
            assert task is None
            return
        assert task is not None, expected
        assert task["def"] == definition(expected.number)
        assert task.get("res") == expected.res
        expected.origin, expected.status = status, "running"
        expected.holder, expected.claim = who, self._next()
        self.handles.append((who, task, expected.number, expected.claim))

    def _first(self, query: Query, status: str) -> Known | None:
        found = [one for one in self.tasks.values() if one.status == status and query.means(one)]
        return min(
            found,
            key=lambda one: (one.priority is None, -(one.priority or 0), one.order),
            default=None,
        )

    def _held(self, at: int) -> tuple[TaskManager, Any, Known | None, int] | None:
        """Return a task that was fetched once; with what is known of it if it is still held."""
        if not self.handles:
            return None
        at %= len(self.handles)
        who, task, number, claim = self.handles[at]
        known = self.tasks.get(number)
        holds = known is not None and known.claim == claim
        return self.managers[who], task, known if holds else None, at

    @rule(at=st.integers(0, 20), res=st.integers(), part=st.booleans())
    def commit(self, at: int, res: int, part: bool) -> None:
        if (held := self._held(at)) is None:
            return
        manager, task, known, at = held
        status = "part_done" if part else "done"
        if known is None:
            with pytest.raises(LeaseLostError):
                manager.commit_task_res(task, res, status)
            self.handles.pop(at)
            return
        manager.commit_task_res(task, res, status)
        known.res = res
        known.end(status)  # the handle stays: a second commit is refused

    @rule(at=st.integers(0, 20), error=st.text("abc", min_size=1), final=st.booleans())
    def fail(self, at: int, error: str, final: bool) -> None:
        if (held := self._held(at)) is None:
            return
        manager, task, known, _ = held
        if known is None:
            with pytest.raises(LeaseLostError):
                manager.fail_task(task, error, final=final)
            return
        said = manager.fail_task(task, error, final=final)
        known.fail(error, final=final)
        assert said == known.status

    @rule(at=st.integers(0, 20), status=st.sampled_from([None, None, "waiting", "part_done"]))
    def give_back(self, at: int, status: str | None) -> None:
        if (held := self._held(at)) is None:
            return
        manager, task, known, _ = held
        if known is None:
            with pytest.raises((LeaseLostError, TaskStatusError)):
                manager.return_task(task, status)
        elif status == "part_done" and known.res is None:
            with pytest.raises(TaskStatusError):
                manager.return_task(task, status)
        else:
            manager.return_task(task, status)
            known.end(status or known.origin)

    # --- by anybody ---

    @rule(who=managers, query=queries, force=st.booleans())
    def reset_waiting(self, who: int, query: Query, force: bool) -> None:
        chosen = [
            task
            for task in self.tasks.values()
            if query.means(task)
            and task.status == "running"
            and (force or task.holder == who or self.is_dead(task))
        ]
        assert self.managers[who].reset_waiting(query.asked, force=force) == len(chosen)
        for task in chosen:
            task.attempts = 0
            task.end(task.origin)

    @rule(
        who=managers,
        query=queries,
        status=st.sampled_from(["waiting", "part_done", "done", "failed"]),
        force=st.booleans(),
    )
    def reset_status(self, who: int, query: Query, status: str, force: bool) -> None:
        chosen = [
            task
            for task in self.tasks.values()
            if query.means(task)
            and task.status != status
            and (task.status != "running" or force or task.holder == who or self.is_dead(task))
        ]
        manager = self.managers[who]
        if status in ("done", "part_done") and any(task.res is None for task in chosen):
            with pytest.raises(TaskStatusError):
                manager.reset_status(query.asked, status, force=force)
            return
        assert manager.reset_status(query.asked, status, force=force) == len(chosen)
        for task in chosen:
            task.attempts = 0
            task.end(status)

    @rule(who=managers, query=queries)
    def retry(self, who: int, query: Query) -> None:
        chosen = [
            task for task in self.tasks.values() if query.means(task) and task.status == "failed"
        ]
        assert self.managers[who].retry(query.asked) == len(chosen)
        for task in chosen:
            task.attempts = 0
            task.end("waiting" if task.res is None else "part_done")

    @rule(who=managers, number=models, priority=priorities)
    def prioritize(self, who: int, number: int, priority: int | None) -> None:
        manager = self.managers[who]
        if number not in self.tasks:
            with pytest.raises(TaskNotFoundError):
                manager.prioritize({"_id": identity(number)}, priority)
            return
        manager.prioritize({"_id": identity(number)}, priority)
        self.tasks[number].priority = priority

    # --- death ---

    @rule(who=managers)
    def seem_dead(self, who: int) -> None:
        self.dead.add(self.lease(who))

    @rule(who=managers)
    def wake(self, who: int) -> None:
        self.dead.discard(self.lease(who))

    @rule(who=managers)
    def recover(self, who: int) -> None:
        # What belongs to a worker itself it does not believe lost.
        own = [task for task in self.tasks.values() if task.holder == who and self.is_dead(task)]
        lost = [task for task in self.tasks.values() if self.is_dead(task) and task not in own]
        assert self.managers[who].recover() == len(lost)
        for task in lost:
            task.fail("WorkerLost")

    @rule(who=managers)
    def repair(self, who: int) -> None:
        findings = self.managers[who].check(repair=True)
        assert len(findings) == self.recovered()
        assert all(finding.repaired for finding in findings)

    # --- what holds after every step ---

    @invariant()
    def the_pool_is_as_the_model(self) -> None:
        manager = self.managers[1]
        counts: dict[str, int] = {}
        for task in self.tasks.values():
            counts[task.status] = counts.get(task.status, 0) + 1
        assert manager.task_stat() == counts
        found = [*manager.query()]
        expected = sorted(self.tasks.values(), key=lambda task: task.order)
        assert [task["def"]["n"] for task in found] == [task.number for task in expected]
        outlines = [*manager.query({}, decode=False)]
        for task, outline, known in zip(found, outlines, expected, strict=True):
            assert task["status"] == known.status
            assert task.get("priority") == outline["priority"] == known.priority
            assert task.get("res") == known.res
            assert outline["attempts"] == known.attempts
            if known.status == "failed":
                said = known.error or "unknown"
                assert task["error"].startswith(said)

    @invariant()
    def the_check_finds_nothing_but_what_the_dead_hold(self) -> None:
        findings = self.managers[1].check()
        lost = {identity(task.number) for task in self.tasks.values() if self.is_dead(task)}
        assert {Path(finding.path).name[26:50] for finding in findings} == lost, findings

    @invariant()
    def each_file_is_of_a_task(self) -> None:
        pool = self.root / "store" / "tasks" / "p"
        assert sorted(os.listdir(pool / "def")) == sorted(map(identity, self.tasks))
        assert len(os.listdir(pool / "res")) == sum(
            task.res is not None for task in self.tasks.values()
        )
        assert os.listdir(pool / "tmp") == os.listdir(pool / "trash") == []


Pool.TestCase.settings = settings(max_examples=40, stateful_step_count=40)
test_pools_behave_as_the_model = Pool.TestCase
