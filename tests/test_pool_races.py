"""At each call by which one worker changes a pool, another does something in between.

So every pair of operations meets at every point: also that of a worker that was taken for dead and
goes on, of a submitter whose private files were taken, of a removal that meets a commit.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import FaultyOs

from qwf.errors import LeaseLostError, TaskNotFoundError
from qwf.pool import check as checking
from qwf.pool import workers
from qwf.process import pulse
from qwf.storage import fsio
from qwf.tasks import access
from qwf.tasks.manage import TaskManager
from qwf.testing.crash import CHANGING_CALLS, copy_tree

pytestmark = pytest.mark.crash

DEFINITIONS = [{"n": number} for number in range(5)]
MORE = [{"n": 10}, {"n": 0}, {"n": 11}]
DEAD, LIVING, OTHER = 1000.0, 1001.0, 1002.0  # leases, by which they are known here


class Interrupted:
    """Stands for the module `os` in `fsio`; before the n-th changing call another comes."""

    def __init__(self, step: int, intrude: Callable[[], object]) -> None:
        self.left, self._intrude = step, intrude

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name == "fsync":
            return lambda _: None
        if name not in CHANGING_CALLS:
            return real

        def call(*args: Any, **kwargs: Any) -> Any:
            if name != "open" or args[1] & os.O_CREAT:
                self.left -= 1
                if self.left == 0:
                    self._intrude()
            return real(*args, **kwargs)

        return call


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[float]]:
    """The leases of those whom others believe dead."""
    leases = {DEAD}
    monkeypatch.setattr(workers, "runs_here", lambda noted: noted["lease"] not in leases)
    monkeypatch.setattr(checking, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(access, "_RECOVERY_SECONDS", 0.0)
    monkeypatch.setattr(fsio, "os", FaultyOs(fsync=lambda _: None))
    yield leases
    for watched in list(pulse._watches):
        pulse.unwatch(watched)


def worker(root: Path, lease: float) -> TaskManager:
    return TaskManager("p", uri=root, lease=lease, max_attempts=3)


@pytest.fixture
def prepared(tmp_path: Path, lost: set[float]) -> Path:
    """0 and 4 wait, 1 is done in part, 2 done, 3 failed."""
    root = tmp_path / "prepared"
    one = worker(root, OTHER)
    one.create_task(DEFINITIONS)
    for number, status in ((1, "part_done"), (2, "done")):
        one.commit_task_res(one.fetch_task({"filter.n": number}), "old", status)
    one.fail_task(one.fetch_task({"filter.n": 3}), "no luck", final=True)
    return root


def quietly(call: Callable[[], object]) -> None:
    """Somebody who is late is told so, and by nothing else."""
    with contextlib.suppress(LeaseLostError, TaskNotFoundError):
        call()


# Each gets a manager, and returns what is done then, before or while the other comes.
def inserting(one: TaskManager) -> Callable[[], object]:
    return lambda: one.create_task(MORE)


def fetching(one: TaskManager) -> Callable[[], object]:
    return lambda: one.fetch_task()


def committing(one: TaskManager) -> Callable[[], object]:
    task = one.fetch_task({"filter.n": 0})
    return lambda: one.commit_task_res(task, "new")


def committing_the_rest(one: TaskManager) -> Callable[[], object]:
    task = one.fetch_task({"filter.n": 1}, "part_done")
    return lambda: one.commit_task_res(task, "new")


def committing_a_part(one: TaskManager) -> Callable[[], object]:
    task = one.fetch_task({"filter.n": 0})
    return lambda: one.commit_task_res(task, "new", "part_done")


def failing(one: TaskManager) -> Callable[[], object]:
    task = one.fetch_task({"filter.n": 0})
    return lambda: one.fail_task(task, "bad")


def giving_back(one: TaskManager) -> Callable[[], object]:
    task = one.fetch_task({"filter.n": 0})
    return lambda: one.return_task(task)


def prioritizing(one: TaskManager) -> Callable[[], object]:
    (task,) = one.query({"filter.n": 0})
    return lambda: one.prioritize(task, 7)


def prioritizing_its_own(one: TaskManager) -> Callable[[], object]:
    task = one.fetch_task({"filter.n": 0})
    return lambda: one.prioritize(task, 7)


def removing(one: TaskManager) -> Callable[[], object]:
    return lambda: one.remove()


def resetting(one: TaskManager) -> Callable[[], object]:
    return lambda: one.reset_status({"status": "done"}, "waiting")


def retrying(one: TaskManager) -> Callable[[], object]:
    return lambda: one.retry()


def recovering(one: TaskManager) -> Callable[[], object]:
    return lambda: one.recover()


def repairing(one: TaskManager) -> Callable[[], object]:
    return lambda: one.check(repair=True)


OPERATIONS = [
    inserting, fetching, committing, committing_the_rest, committing_a_part, failing, giving_back,
    prioritizing, prioritizing_its_own, removing, resetting, retrying, recovering,
]  # fmt: skip


def all_waiting(one: TaskManager) -> object:
    return one.reset_status({}, "waiting", force=True)


def working(one: TaskManager) -> None:
    """Do all there is to do."""
    for status in ("waiting", "part_done"):
        while task := one.fetch_task({}, status):
            quietly(lambda task=task: one.commit_task_res(task, "others"))


def replacing(one: TaskManager) -> None:
    one.remove()
    one.create_task(DEFINITIONS)


INTRUDERS: list[Callable[[TaskManager], Any]] = [
    lambda one: one.recover(),
    all_waiting,
    working,
    lambda one: one.remove(),
    replacing,
    lambda one: one.create_task([*MORE, *DEFINITIONS]),
    lambda one: [one.prioritize(task, 5) for task in one.query()],
    lambda one: [one.fetch_task(), one.fetch_task()],
    lambda one: one.retry(),
    lambda one: one.check(repair=True),
]
NAMES = "recover reset work remove replace insert prioritize fetch retry repair".split()


@pytest.mark.parametrize("intrude", INTRUDERS, ids=NAMES)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.__name__)
def test_two_operations_may_meet_at_any_call(
    operation: Callable[[TaskManager], Callable[[], object]],
    intrude: Callable[[TaskManager], object],
    prepared: Path,
    tmp_path: Path,
    lost: set[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for step in itertools.count(1):
        root = tmp_path / f"step-{step}"
        copy_tree(prepared, root)
        lost.update({DEAD})
        one, other = worker(root, DEAD), worker(root, LIVING)
        other.recover()
        go = operation(one)
        harness = Interrupted(step, lambda other=other: quietly(lambda: intrude(other)))
        with monkeypatch.context() as patch:
            patch.setattr(fsio, "os", harness)
            quietly(go)
        lost.clear()
        assert_sound(
            root, f"{operation.__name__}, step {step}", removed=may_remove(operation, intrude)
        )
        shutil.rmtree(root)
        if harness.left > 0:
            break
    assert step > 1


def may_remove(operation: object, intrude: object) -> bool:
    return operation is removing or NAMES[INTRUDERS.index(intrude)] in ("remove", "replace")  # type: ignore[arg-type]


def assert_sound(root: Path, where: str, *, removed: bool) -> None:
    third = worker(root, OTHER)
    third.recover()
    assert third.check() == [], where
    pool = root / "tasks" / "p"
    defined = sorted(os.listdir(pool / "def"))
    listed = [name[26:50] for status in statuses() for name in os.listdir(pool / status)]
    assert sorted(listed) == defined, where
    found = [task["def"]["n"] for task in third.query()]
    if not removed:
        assert set(found) >= {0, 1, 2, 3, 4}, where
        assert third.re_query(task_id(third, 2))["res"] in ("old", "others"), where
    # What is held by nobody is done now, and once.
    third.reset_status({"status": {"$ne": "done"}}, "waiting", force=True)
    done = 0
    while task := third.fetch_task():
        third.commit_task_res(task, "end")
        done += 1
    assert third.task_stat() == ({"done": len(defined)} if defined else {}), where
    assert third.check() == [], where
    assert os.listdir(pool / "tmp") == os.listdir(pool / "trash") == [], where
    assert len(os.listdir(pool / "res")) == len(defined), where


def statuses() -> list[str]:
    return ["waiting", "running", "part_done", "done", "failed"]


def task_id(one: TaskManager, number: int) -> str:
    (task,) = one.query({"filter.n": number})
    return str(task["_id"])


# --- in one process --------------------------------------------------------------------------


class Afterwards:
    """Stands for the module `os` in `fsio`; something happens just after calls of a kind."""

    def __init__(self, name: str, then: Callable[[str], object]) -> None:
        self._name, self._then, self._busy = name, then, False

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name != self._name or self._busy:
            return real

        def call(*args: Any) -> Any:
            result = real(*args)
            self._busy = True
            try:
                self._then(os.path.basename(os.path.dirname(str(args[-1]) + "/")))
            finally:
                self._busy = False
            return result

        return call


def test_of_two_managers_of_one_process_one_gets_a_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (TaskManager("p", uri=tmp_path) for _ in range(2))
    one.create_task([{"n": 0}, {"n": 1}])
    assert other.fetch_task()["def"] == {"n": 0}  # and knows of the other one
    got = []
    with monkeypatch.context() as patch:
        # Another thread comes when the claim has been made and nobody has noted it yet.
        harness = Afterwards("rename", lambda _: got.append(other.fetch_task()))
        patch.setattr(fsio, "os", harness)
        task = one.fetch_task()
    assert task["def"] == {"n": 1}
    assert got == [None]
    one.commit_task_res(task, 1)


def test_threads_that_compete_for_few_tasks_get_each_once(tmp_path: Path) -> None:
    shared = [TaskManager("p", uri=tmp_path) for _ in range(2)]
    for batch in range(20):
        ids = shared[0].create_task([{"batch": batch, "n": n} for n in range(8)])
        got: list[str] = []
        barrier = threading.Barrier(6)

        def take(one: TaskManager, barrier: threading.Barrier, got: list[str]) -> None:
            barrier.wait()
            while task := one.fetch_task():
                got.append(task["_id"])

        threads = [
            threading.Thread(target=take, args=(shared[number % 2], barrier, got))
            for number in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(got) == sorted(ids)
    for one in shared:
        one.reset_waiting()


@pytest.mark.parametrize("times", [1, 5])
def test_a_task_that_moves_to_and_fro_is_not_overlooked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    one, looking = (TaskManager("p", uri=tmp_path) for _ in range(2))
    (identity,) = one.create_task([{"n": 0}])
    held = [one.fetch_task()]
    left = times

    def move(place: str) -> None:
        nonlocal left
        if place == "waiting" and held:  # just listed without it
            one.return_task(held.pop())
        elif place == "running" and not held and left:
            left -= 1
            held.append(one.fetch_task())

    monkeypatch.setattr(fsio, "os", Afterwards("listdir", move))
    assert looking.task_stat() == {"waiting": 1}
    held[:], left = [one.fetch_task()], times
    assert looking.re_query(identity)["_id"] == identity
    held[:], left = [one.fetch_task()], times
    looking.prioritize({"_id": identity}, 3)


def test_a_task_is_read_although_it_gets_another_result_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, looking = (TaskManager("p", uri=tmp_path) for _ in range(2))
    (identity,) = one.create_task([{"n": 0}])
    one.commit_task_res(one.fetch_task(), "half", "part_done")
    task = one.fetch_task({}, "part_done")

    def commit(place: str) -> None:
        nonlocal task
        if place == "failed" and task is not None:  # the last that is listed
            whole, task = task, None
            one.commit_task_res(whole, "whole")

    monkeypatch.setattr(fsio, "os", Afterwards("listdir", commit))
    assert looking.re_query(identity)["res"] == "whole"
    assert task is None


def test_an_attempt_that_has_ended_cannot_be_ended_again(tmp_path: Path) -> None:
    one = TaskManager("p", uri=tmp_path)
    one.create_task([{"n": 0}])
    for end in (
        lambda task: one.return_task(task),
        lambda task: one.fail_task(task, "bad"),
        lambda task: one.commit_task_res(task, 1),
    ):
        task = one.fetch_task()
        end(task)
        for late in (
            lambda task: one.return_task(task),
            lambda task: one.fail_task(task, "late"),
            lambda task: one.commit_task_res(task, "late"),
        ):
            with pytest.raises(LeaseLostError):
                late(task)
    (task,) = one.query()
    assert task["res"] == 1
    assert [failure["error"] for failure in failures(one, task)] == ["bad"]
    assert one.check() == []


def failures(one: TaskManager, task: dict[str, Any]) -> list[dict[str, Any]]:
    _, token = one.directory.find(task["_id"])
    return one.books.failures(token)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_signal_just_after_a_claim_gives_the_task_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    one = TaskManager("p", uri=tmp_path)
    one.create_task([{"n": 0}])

    def interrupt(_: str) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(fsio, "os", Afterwards("rename", interrupt))
        with pytest.raises(error):
            one.fetch_task()
    (task,) = one.query({}, decode=False)
    assert task["attempts"] == 0
    assert one.task_stat() == {"waiting": 1}
    assert one.fetch_task() is not None


def test_a_task_that_was_done_and_fails_when_done_again_waits_when_it_is_retried(
    tmp_path: Path,
) -> None:
    one = TaskManager("p", uri=tmp_path, max_attempts=1)
    one.create_task([{"n": 0}])
    one.commit_task_res(one.fetch_task(), "old")
    one.reset_status({}, "waiting")
    one.fail_task(one.fetch_task(), "bad")
    assert one.retry() == 1
    assert one.task_stat() == {"waiting": 1}
    assert one.check() == []
