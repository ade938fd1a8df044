"""Every operation of a task pool is killed at every system call; another worker goes on.

What was acknowledged is there, the check is clean once somebody has recovered, and the next one to
come finishes the work.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwf.pool import check as checking
from qwf.tasks.manage import TaskManager
from qwf.testing.calls import Call, assert_durable, recorded_calls
from qwf.testing.crash import crash_points

pytestmark = pytest.mark.crash

DEFINITIONS = [{"n": number} for number in range(4)]
OLD, NEW = {"half": 1}, {"ic": 0.5}


def manager(root: Path) -> TaskManager:
    return TaskManager("p", uri=root)


def stat(root: Path) -> dict[str, int]:
    return manager(root).task_stat()


def pool(root: Path) -> Path:
    return root / "tasks" / "p"


@pytest.fixture(autouse=True)
def _no_pause_between_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "_PAUSE_SECONDS", 0.0)


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """0 waits, 1 is done in part, 2 done, 3 failed; nobody works on it any more."""
    root = tmp_path / "prepared"
    one = TaskManager("p", uri=root, max_attempts=2)
    one.create_task(DEFINITIONS)
    for number, status in ((1, "part_done"), (2, "done")):
        task = one.fetch_task({"filter.n": number})
        one.commit_task_res(task, OLD, status)
    one.fail_task(one.fetch_task({"filter.n": 3}), "no luck", final=True)
    return root


def fetch(root: Path, number: int, status: str = "waiting") -> tuple[TaskManager, Any]:
    one = manager(root)
    task = one.fetch_task({"filter.n": number}, status)
    assert task is not None
    return one, task


def insert(root: Path) -> None:
    manager(root).create_task([{"new": number} for number in range(3)], priority=1)


def claim(root: Path) -> None:
    fetch(root, 0)


def commit(root: Path) -> None:
    one, task = fetch(root, 0)
    one.commit_task_res(task, NEW)


def commit_again(root: Path) -> None:
    one, task = fetch(root, 1, "part_done")
    one.commit_task_res(task, NEW, "part_done")


def fail(root: Path) -> None:
    one, task = fetch(root, 0)
    one.fail_task(task, ValueError("bad"))


def fail_for_good(root: Path) -> None:
    one, task = fetch(root, 1, "part_done")
    one.fail_task(task, ValueError("bad"), final=True)


def give_back(root: Path) -> None:
    one, task = fetch(root, 0)
    one.return_task(task)


def reset(root: Path) -> None:
    manager(root).reset_status({"status": "done"}, "waiting")


def retry(root: Path) -> None:
    manager(root).retry()


def prioritize(root: Path) -> None:
    for number in (0, 2):
        one = manager(root)
        one.prioritize(next(one.query({"filter.n": number})), 7)


def prioritize_running(root: Path) -> None:
    one, task = fetch(root, 0)
    one.prioritize(task, 7)
    one.commit_task_res(task, NEW)


def remove(root: Path) -> None:
    manager(root).remove({"filter.n": {"$in": [1, 2, 3]}})


def recreate(root: Path) -> None:
    manager(root).remove({"filter.n": 2})
    manager(root).create_task(DEFINITIONS)


def limit(root: Path) -> None:
    TaskManager("p", uri=root, max_attempts=5).task_stat()


def ns(root: Path, **query: Any) -> list[int]:
    return sorted(task["def"]["n"] for task in manager(root).query(query) if "n" in task["def"])


def results(root: Path) -> dict[int, Any]:
    return {
        task["def"]["n"]: task["res"]
        for task in manager(root).query()
        if "n" in task["def"] and "res" in task
    }


def is_inserted(root: Path) -> bool:
    found = manager(root).query({"priority": 1})
    return [task["def"]["new"] for task in found] == [0, 1, 2]


KEPT = {1: OLD, 2: OLD}

# The operation; whether it has happened; what else may be there after a kill in the middle.
OPERATIONS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], bool]]] = {
    "insert": (insert, is_inserted),
    "claim": (claim, lambda root: True),
    "commit": (commit, lambda root: results(root) == {**KEPT, 0: NEW}),
    "commit again": (commit_again, lambda root: results(root) == {1: NEW, 2: OLD}),
    "fail": (fail, lambda root: errors(root, 0) == ["ValueError: bad"]),
    "fail for good": (fail_for_good, lambda root: ns(root, status="failed") == [1, 3]),
    "give back": (give_back, lambda root: ns(root, status="waiting") == [0]),
    "reset": (reset, lambda root: ns(root, status="waiting") == [0, 2]),
    "retry": (retry, lambda root: ns(root, status="waiting") == [0, 3]),
    "prioritize": (prioritize, lambda root: ns(root, priority=7) == [0, 2]),
    "prioritize while it runs": (
        prioritize_running,
        lambda root: ns(root, priority=7, status="done") == [0],
    ),
    "remove": (remove, lambda root: ns(root) == [0]),
    "remove and insert again": (recreate, lambda root: ns(root, status="waiting") == [0, 2]),
    "limit": (limit, lambda root: manager(root).directory.max_attempts == 5),
}


def errors(root: Path, number: int) -> list[str]:
    one = manager(root)
    (task,) = one.query({"filter.n": number})
    _, token = one.directory.find(task["_id"])
    return [failure["error"] for failure in one.books.failures(token)]


def assert_sound(root: Path, name: str, where: str) -> None:
    """Nothing of what was there before is lost, but what the operation takes away."""
    found = results(root)
    numbers = ns(root)
    if name == "remove":
        assert 0 in numbers, where
    elif name == "remove and insert again":
        assert set(numbers) >= {0, 1, 3}, where
    else:
        assert numbers == [0, 1, 2, 3], where
    for number in (1, 2):
        if number in numbers and "insert again" not in name:
            assert found[number] in (OLD, NEW), where
    assert found.get(0) in (None, NEW), where


def left(root: Path) -> list[str]:
    """What there is beside tasks: private names, the trash, and results that are of no use."""
    found = [*(pool(root) / "tmp").iterdir(), *(pool(root) / "trash").iterdir()]
    return [path.name for path in found]


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_may_be_killed_at_any_call(name: str, prepared: Path, tmp_path: Path) -> None:
    operation, done = OPERATIONS[name]
    steps = 0
    for point in crash_points(prepared, operation, tmp_path):
        root, steps = point.directory, point.step
        where = f"{name}, killed at step {point.step}"
        assert_sound(root, name, where)
        if point.acknowledged:
            assert done(root), where
        one = manager(root)
        one.recover()
        assert_sound(root, name, where)
        if point.acknowledged:
            assert done(root) or name == "claim", where
        assert "running" not in stat(root), where
        assert [each for each in left(root) if not each.startswith(".tmp-")] == [], where
        # A result that was written and not accepted is all that may be left.
        findings = one.check(older_than_seconds=3600)
        assert all("no task has this result" in each.problem for each in findings), where
        assert len(findings) <= 1, (where, findings)
        assert name.startswith(("commit", "remove", "prioritize while")) or not findings, findings
        one.check(repair=True, older_than_seconds=-1)
        assert one.check(older_than_seconds=0) == [], where
        assert_sound(root, name, where)
        # The pool works: all that is not done is done now.
        one.create_task(DEFINITIONS)
        one.retry()
        for status in ("waiting", "part_done"):
            while task := one.fetch_task({}, status):
                one.commit_task_res(task, NEW)
        assert set(one.task_stat()) == {"done"}, where
        assert ns(root) == [0, 1, 2, 3], where
        assert one.check() == [], where
        shutil.rmtree(root)
    assert steps > 2, "the harness has not killed anything"


def died_with_a_claim(root: Path) -> None:
    fetch(root, 0)
    fetch(root, 1, "part_done")


def recover(root: Path) -> None:
    manager(root).recover()


def repair(root: Path) -> None:
    # Not 0: what was left within the same tick of the clock is no older than that.
    manager(root).check(repair=True, older_than_seconds=-1)


def shape(root: Path) -> tuple[str, ...]:
    """What a state looks like, so that those that look alike are tried once."""
    files = [path for path in pool(root).rglob("*") if path.is_file()]
    return tuple(sorted(f"{path.parent.name} {path.stat().st_nlink}" for path in files))


@pytest.mark.parametrize("again", [recover, repair])
@pytest.mark.parametrize("first", [insert, remove, died_with_a_claim, commit_again])
def test_recovery_may_be_killed_at_any_call(
    first: Callable[[Path], None], again: Callable[[Path], None], prepared: Path, tmp_path: Path
) -> None:
    """What a killed operation leaves is recovered by one who is killed too, and by a third."""
    seen: set[tuple[str, ...]] = set()
    for point in crash_points(prepared, first, tmp_path / "first"):
        left_by_first = point.directory
        if shape(left_by_first) not in seen:
            seen.add(shape(left_by_first))
            for second in crash_points(left_by_first, again, tmp_path / f"second-{point.step}"):
                assert_recovers(second.directory, first.__name__)
                shutil.rmtree(second.directory)
        shutil.rmtree(left_by_first)
    assert len(seen) > 2


def assert_recovers(root: Path, first: str) -> None:
    one = manager(root)
    one.recover()
    assert [name for name in left(root) if not name.startswith(".tmp-")] == [], root
    assert "running" not in one.task_stat(), root
    findings = one.check()
    assert all("no task has this result" in each.problem for each in findings), (root, findings)
    assert_sound(root, first, str(root))
    one.check(repair=True, older_than_seconds=-1)
    assert one.check(older_than_seconds=0) == [], root
    assert_sound(root, first, str(root))


def damage(root: Path) -> None:
    """One of everything that can be set right without setting a task aside."""
    one = manager(root)
    ids = {task["def"]["n"]: task["_id"] for task in one.query()}
    (pool(root) / "def" / ids[1]).unlink()
    next((pool(root) / "waiting").iterdir()).unlink()
    for result in (pool(root) / "res").iterdir():
        if result.name.startswith(ids[2]):
            result.unlink()
    (pool(root) / "pool.json").unlink()


def test_a_repair_may_be_killed_at_any_call(prepared: Path, tmp_path: Path) -> None:
    damage(prepared)
    steps = 0
    for point in crash_points(prepared, repair, tmp_path):
        root, steps = point.directory, point.step
        if not point.acknowledged:
            repair(root)
        assert manager(root).check(older_than_seconds=0) == [], point
        assert ns(root, status="waiting") == [0, 2], point
        assert ns(root) == [0, 1, 2, 3], point
        assert results(root) == {1: OLD}, point
        shutil.rmtree(root)
    assert steps > 10


# --- the loss of power -----------------------------------------------------------------------


def without_order(calls: list[Call]) -> list[Call]:
    """Without what only tells others to look, which nobody needs after the loss of power."""
    marks = {call.path for call in calls if call.target is not None and call.target.name == "order"}
    return [call for call in calls if call.path not in marks]


def test_what_was_inserted_survives_the_loss_of_power(prepared: Path) -> None:
    one = manager(prepared)
    one.recover()  # makes this process a worker
    with recorded_calls() as calls:
        one.create_task([{"new": number} for number in range(3)])
    assert len([call for call in calls if call.name == "link"]) == 3
    assert_durable(without_order(calls))


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("status", ["done", "part_done"])
def test_what_was_committed_survives_the_loss_of_power(
    prepared: Path, number: int, status: str
) -> None:
    one, task = fetch(prepared, number, ["waiting", "part_done"][number])
    with recorded_calls() as calls:
        one.commit_task_res(task, NEW, status)
    (moved,) = [call for call in calls if call.name == "rename"]
    at = calls.index(moved)
    assert_durable(calls[:at])  # the result, before a token names it
    # That the claim is gone needs no promise: a rename is one change of the filesystem.
    claimed = Call("create", moved.path)
    assert_durable([claimed, *calls])
    unlinked = [call for call in calls if call.name == "unlink"]
    assert len(unlinked) == number
    for call in unlinked:  # the older result, after the token names the new one for good
        assert_durable([claimed, *calls[: calls.index(call)]])
