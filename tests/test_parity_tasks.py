"""What Qlib's documentation promises of task pools, one test per promise, and its state machine.

The numbers are those of the list of behaviours that qwf was built to, as in
``test_parity_recorders.py``. Where Qlib's code does not keep its promise, the promise is tested.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import Children

import qwf
from qwf import TaskManager, run_task
from qwf.errors import LeaseLostError, PoolTimeoutError, TasksFailedError, TaskStatusError

STATE_MACHINE = json.loads(
    (Path(__file__).parent / "oracles" / "taskmanager" / "state_machine.json").read_text()
)


def definition(name: str, model: str = "LGBModel") -> dict[str, Any]:
    return {"name": name, "model": {"class": model}}


def named(task: dict[str, Any] | None) -> str | None:
    return None if task is None else task["def"]["name"]


def by_name(pool: TaskManager) -> dict[str, dict[str, Any]]:
    return {str(named(task)): task for task in pool.query()}


@pytest.fixture
def pool(store: Path) -> TaskManager:
    return TaskManager("p")


# --- Qlib's state machine, step by step ----------------------------------------------------------

# What qwf answers on purpose otherwise than Qlib, by the step, and the defect that it heals.
ON_PURPOSE: dict[str, tuple[Any, str]] = {
    # D-36: a dry run returns the ids that the tasks have or would have.
    "create_task dry_run=True of a new task returns": (["t6"], "D-36"),
    # D-22: what was done in part is not begun anew.
    "reset_waiting(): task_stat (every running incl. the one that was part_done becomes waiting; "
    "done stays)": ({"done": 1, "waiting": 4, "part_done": 1}, "D-22"),
    # D-25: an exit gives the task back.
    "safe_fetch_task with SystemExit (not caught by qlib): status stays": (
        ["t3", "waiting"],
        "D-25",
    ),
    # D-24: a task that fails again and again ends as failed, and does not end the loop.
    "run_task whose func raises: exception propagates; task_stat": (
        {"done": 6, "failed": 1},
        "D-24",
    ),
    # MongoDB itself keeps an emptied collection too; mongomock forgets it.
    "TaskManager.list()": (["p"], "mongomock"),
}


def replayed(pool: TaskManager) -> Iterator[Any]:
    """Yield the answers to the steps of the log, in order."""
    ids: dict[str, str] = {}

    def create(*definitions: dict[str, Any], **kwargs: Any) -> list[str]:
        found = pool.create_task(list(definitions), **kwargs)
        ids.update(zip([one["name"] for one in definitions], found, strict=True))
        return [name for one in found for name, known in ids.items() if known == one]

    def task(name: str) -> dict[str, Any]:
        return pool.re_query(ids[name])

    five = [definition(f"t{number}") for number in range(5)]
    yield create(*five)
    yield create(five[3], definition("t5", "GRU"), five[0])
    yield create(definition("t6"), dry_run=True)
    yield pool.task_stat()
    first, second = pool.create_task([definition("t7"), definition("t7")])
    yield first == second
    pool.remove({"filter.name": "t7"})
    yield pool.task_stat()

    fetched = {"t0": pool.fetch_task()}
    yield named(fetched["t0"])
    yield list(fetched["t0"])
    yield fetched["t0"]["status"]
    pool.prioritize(task("t3"), 5)
    pool.prioritize(task("t2"), -1)
    order = [pool.fetch_task() for _ in range(6)]
    yield [named(one) for one in order]
    fetched.update({one["def"]["name"]: one for one in order if one is not None})
    yield pool.task_stat()
    pool.commit_task_res(fetched["t0"], {"ic": 0.1})
    yield [task("t0")["status"], task("t0")["res"]]
    pool.commit_task_res(fetched["t1"], "half", status=TaskManager.STATUS_PART_DONE)
    yield [task("t1")["status"], task("t1")["res"]]
    pool.return_task(fetched["t2"])
    yield [task("t2")["status"], task("t2")["priority"]]
    half = pool.fetch_task(status=TaskManager.STATUS_PART_DONE)
    yield named(half)
    yield [task("t1")["status"], task("t1")["res"]]
    pool.reset_waiting()
    yield pool.task_stat()
    pool.reset_status({"_id": ids["t1"]}, TaskManager.STATUS_WAITING)  # as it is in the log

    with pytest.raises(RuntimeError) as caught, pool.safe_fetch_task() as seen:
        raise RuntimeError("boom")
    yield [named(seen), task("t3")["status"], str(caught.value)]
    with contextlib.suppress(SystemExit), pool.safe_fetch_task() as seen:
        raise SystemExit
    yield [named(seen), task("t3")["status"]]
    yield named(pool.fetch_task({"filter.model.class": "GRU"}))
    yield named(pool.fetch_task({"_id": {"$in": [ids["t4"]]}}))
    yield named(pool.fetch_task({"filter.name": "none"}))
    pool.reset_waiting()

    seen_names: list[str] = []

    def half_way(found: dict[str, Any]) -> dict[str, str]:
        seen_names.append(found["name"])
        return {"mid": found["name"]}

    yield run_task(half_way, pool, after_status=TaskManager.STATUS_PART_DONE)
    yield seen_names
    yield pool.task_stat()
    params: list[Any] = []

    def rest(found: dict[str, str]) -> str:
        params.append(found)
        return f"{found['mid']}!"

    yield run_task(rest, pool, before_status=TaskManager.STATUS_PART_DONE)
    yield params
    yield pool.task_stat()
    yield run_task(rest, pool)

    create({"name": "t20", "x": 20})

    def failing(found: dict[str, Any]) -> None:
        raise RuntimeError("bad")

    with pytest.raises(TasksFailedError, match="bad"):
        run_task(failing, pool)
    yield pool.task_stat()
    pool.retry()
    yield run_task(lambda found, by: found["x"] * by, pool, by=3)
    yield task("t20")["res"]
    yield {name: one["res"] for name, one in sorted(by_name(pool).items(), key=_by_number)}
    create(definition("t30"))
    pool.replace_task(task("t30"), {"def": definition("t31")})
    yield sorted(by_name(pool))
    days = (pd.Timestamp("2020-01-01"), pd.Timestamp("2020-02-01"))
    kept = pool.re_query(pool.insert_task_def({"seg": days}).inserted_id)
    yield str(kept["def"])
    yield str(kept["filter"])
    yield pool.task_stat({"filter.name": "t0"})
    pool.remove()
    yield pool.task_stat()
    yield TaskManager.list()


def _by_number(item: tuple[str, Any]) -> int:
    return int(item[0][1:])


def test_every_step_of_qlibs_state_machine_is_answered_as_qlib_does_or_better(
    pool: TaskManager,
) -> None:
    answers = iter(replayed(pool))
    for entry in STATE_MACHINE["log"]:
        answer = next(answers)
        expected, _ = ON_PURPOSE.get(entry["step"], (entry["result"], ""))
        assert answer == expected, entry["step"]
    assert next(answers, None) is None
    assert ON_PURPOSE.keys() <= {entry["step"] for entry in STATE_MACHINE["log"]}


# --- 41 and 42: creating -------------------------------------------------------------------------


def test_check_41_equal_definitions_have_one_id_and_are_one_task(pool: TaskManager) -> None:
    one, other = definition("a"), definition("b")
    first, second, third = pool.create_task([one, other, copy.deepcopy(one)])
    assert first == third != second
    assert pool.create_task([other, one]) == [second, first]
    assert pool.task_stat() == {"waiting": 2}


def test_check_41_definitions_that_differ_in_the_order_of_keys_are_one_task(
    pool: TaskManager,
) -> None:
    (one,) = pool.create_task([{"a": 1, "b": {"c": 2, "d": (3, None)}}])
    assert pool.create_task([{"b": {"d": (3, None), "c": 2}, "a": 1}]) == [one]


def test_check_41_what_is_done_is_kept_and_not_done_again(pool: TaskManager) -> None:
    (one,) = pool.create_task([definition("a")])
    pool.commit_task_res(pool.fetch_task(), "result")
    assert pool.create_task([definition("a")]) == [one]
    assert pool.task_stat() == {"done": 1}
    assert pool.re_query(one)["res"] == "result"


def test_check_41_a_dry_run_inserts_nothing_and_tells_the_ids_and_new_ones(
    pool: TaskManager, capsys: pytest.CaptureFixture[str]
) -> None:
    (known,) = pool.create_task([definition("a")])
    new = definition("b")
    ids = pool.create_task([new, definition("a"), new], dry_run=True, print_nt=True)
    assert ids[1] == known
    assert capsys.readouterr().out.count("'b'") == 1
    assert pool.task_stat() == {"waiting": 1}
    assert pool.create_task([new]) == ids[:1]


def test_check_42_submitters_that_race_with_the_same_tasks_insert_each_once(
    pool: TaskManager, children: Children
) -> None:
    definitions = [definition(f"t{number}") for number in range(50)]
    for turn in range(4):
        mine = definitions[turn * 10 :] + definitions[: turn * 10]
        children.add(lambda mine=mine: TaskManager("p").create_task(mine))
    assert children.exit_codes() == [0] * 4
    names = [named(task) for task in pool.query()]
    assert sorted(map(str, names)) == sorted(f"t{number}" for number in range(50))


# --- 43 to 45: fetching --------------------------------------------------------------------------


def test_check_43_the_highest_priority_comes_first_and_none_last(pool: TaskManager) -> None:
    pool.create_task([definition("none"), definition("none too")])
    for number in (0, 7, -3, 2**31 - 1):
        pool.create_task([definition(f"p{number}")], priority=number)
    order = [pool.fetch_task() for _ in range(7)]
    assert [named(one) for one in order] == [
        "p2147483647", "p7", "p0", "p-3", "none", "none too", None,
    ]  # fmt: skip
    assert {one["status"] for one in order if one} == {"running"}
    assert pool.task_stat() == {"running": 6}


def test_check_43_a_pool_that_is_not_there_has_nothing_to_fetch(pool: TaskManager) -> None:
    assert pool.fetch_task() is None
    assert list(pool.task_fetcher_iter()) == []


def test_check_43_many_workers_never_get_the_same_task(
    pool: TaskManager, children: Children, tmp_path: Path
) -> None:
    names = [f"t{number}" for number in range(60)]
    pool.create_task([definition(name) for name in names])

    def drain(worker: int) -> None:
        with (tmp_path / f"{worker}.log").open("w") as log:
            for task in (mine := TaskManager("p")).task_fetcher_iter():
                print(named(task), file=log)
                mine.commit_task_res(task, worker)

    for worker in range(4):
        children.add(lambda worker=worker: drain(worker))
    assert children.exit_codes() == [0] * 4
    said = [line for log in tmp_path.glob("*.log") for line in log.read_text().split()]
    assert sorted(said) == sorted(names)
    assert pool.task_stat() == {"done": 60}


@pytest.mark.parametrize("status", ["waiting", "part_done"])
def test_check_44_an_exception_returns_the_task_to_its_status(
    pool: TaskManager, status: str
) -> None:
    (one,) = pool.create_task([definition("a")])
    if status == "part_done":
        pool.commit_task_res(pool.fetch_task(), "half", "part_done")
    seen = []
    with pytest.raises(ArithmeticError), pool.safe_fetch_task(status=status) as task:  # noqa: PT012
        seen += [named(task), pool.re_query(one)["status"]]
        raise ArithmeticError
    assert seen == ["a", "running"]
    assert pool.re_query(one)["status"] == status


@pytest.mark.parametrize("leaving", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_check_44_an_exit_returns_the_task_and_is_not_an_attempt(
    store: Path, leaving: type[BaseException]
) -> None:
    pool = TaskManager("p", max_attempts=1)
    pool.create_task([definition("a")])
    for _ in range(3):
        with pytest.raises(leaving), pool.safe_fetch_task():
            raise leaving
        assert pool.task_stat() == {"waiting": 1}


def test_check_44_an_iterator_that_is_left_returns_its_task(pool: TaskManager) -> None:
    pool.create_task([definition("a"), definition("b")])
    iterator = pool.task_fetcher_iter()
    assert named(next(iterator)) == "a"
    assert pool.task_stat() == {"waiting": 1, "running": 1}
    iterator.close()
    assert pool.task_stat() == {"waiting": 2}
    assert named(pool.fetch_task()) == "a"


# Fetches the task, says so, and commits it when it is told to, or goes on after it was stopped.
HOLDER = """
    import os, signal, sys
    from qwf import TaskManager
    from qwf.errors import LeaseLostError
    pool = TaskManager("p", uri=sys.argv[1], lease=1.0)
    task = pool.fetch_task()
    print(task["def"]["name"], flush=True)
    sys.stdin.readline()
    try:
        pool.commit_task_res(task, "late")
    except LeaseLostError as error:
        print("refused:", error, flush=True)
"""


@pytest.fixture
def holder(store: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Start a process that has fetched the task of a pool when this returns."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        root = str(Path(qwf.__file__).parent.parent)
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(HOLDER), str(store)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": root},
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "a\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def taken_over(pool: TaskManager) -> dict[str, Any]:
    give_up = time.monotonic() + 60
    while (task := pool.fetch_task()) is None:
        assert time.monotonic() < give_up, "the task never came back"
        time.sleep(0.05)
    return task


def test_check_45_the_task_of_a_killed_worker_comes_back(
    pool: TaskManager, holder: Callable[[], subprocess.Popen[str]]
) -> None:
    (one,) = pool.create_task([definition("a")])
    process = holder()
    assert pool.fetch_task() is None
    process.kill()
    process.wait()
    task = taken_over(pool)
    assert task["_id"] == one
    pool.commit_task_res(task, "by another")
    assert pool.re_query(one)["res"] == "by another"


def test_check_45_a_worker_that_slept_too_long_cannot_commit_over_the_new_one(
    pool: TaskManager, holder: Callable[[], subprocess.Popen[str]]
) -> None:
    (one,) = pool.create_task([definition("a")])
    process = holder()
    process.send_signal(signal.SIGSTOP)
    task = taken_over(pool)
    process.send_signal(signal.SIGCONT)
    said, _ = process.communicate("\n", timeout=60)
    assert said.startswith(f"refused: task {one} of the pool")
    assert pool.re_query(one)["status"] == "running"
    pool.commit_task_res(task, "in time")
    assert pool.re_query(one)["res"] == "in time"


def test_check_45_what_was_reset_cannot_be_committed(pool: TaskManager) -> None:
    pool.create_task([definition("a")])
    task = pool.fetch_task()
    assert pool.reset_waiting() == 1
    for late in (
        lambda: pool.commit_task_res(task, "late"),
        lambda: pool.fail_task(task, "late"),
    ):
        with pytest.raises(LeaseLostError):
            late()
    assert pool.task_stat() == {"waiting": 1}


# --- 46 and 47: run_task -------------------------------------------------------------------------


def test_check_46_the_four_transitions_pass_definitions_and_results(pool: TaskManager) -> None:
    pool.create_task([definition("a")])
    seen: list[Any] = []

    def call(argument: Any, **kwargs: Any) -> Any:
        seen.append((argument, kwargs))
        return [argument]

    assert run_task(call, "p", after_status="part_done", extra=1)
    # In Qlib this never ends.
    assert run_task(call, "p", before_status="part_done", after_status="part_done")
    assert run_task(call, "p", before_status="part_done")
    assert not run_task(call, "p", before_status="part_done")
    found = definition("a")
    assert seen == [(found, {"extra": 1}), ([found], {}), ([[found]], {})]
    assert pool.task_stat() == {"done": 1}
    pool.create_task([definition("b")])
    assert run_task(call, pool)
    assert not run_task(call, pool)


@pytest.mark.parametrize(
    "statuses",
    [
        {"before_status": "done"},
        {"before_status": "running"},
        {"before_status": "nowhere"},
        {"after_status": "waiting"},
        {"after_status": "failed"},
    ],
)
def test_check_46_other_statuses_are_refused_before_anything_is_done(
    pool: TaskManager, statuses: dict[str, str]
) -> None:
    pool.create_task([definition("a")])
    with pytest.raises(TaskStatusError) as caught:
        run_task(lambda _: pytest.fail("it was called"), pool, **statuses)
    assert isinstance(caught.value, ValueError)
    assert pool.task_stat() == {"waiting": 1}


def test_check_46_a_query_chooses_the_tasks(pool: TaskManager) -> None:
    pool.create_task([definition("a"), definition("b", "GRU")])
    assert run_task(named_again, pool, {"filter.model.class": "GRU"})
    assert {name: one["status"] for name, one in by_name(pool).items()} == {
        "a": "waiting",
        "b": "done",
    }


def named_again(found: dict[str, Any]) -> list[Any]:
    return [found["name"], os.getpid()]


def test_check_46_force_release_calls_in_fresh_processes(pool: TaskManager) -> None:
    pool.create_task([definition("a"), definition("b")])
    assert run_task(named_again, pool, force_release=True)
    results = [task["res"] for task in pool.query()]
    assert [name for name, _ in results] == ["a", "b"]
    assert len({os.getpid(), *(pid for _, pid in results)}) == 3


def test_check_47_a_task_that_always_fails_ends_failed_and_the_others_done(store: Path) -> None:
    pool = TaskManager("p", max_attempts=2)
    pool.create_task([definition("bad"), definition("a"), definition("b")])
    calls: collections.Counter[str] = collections.Counter()

    def call(found: dict[str, Any]) -> str:
        calls[found["name"]] += 1
        if found["name"] == "bad":
            raise ArithmeticError("no such number")
        return "fine"

    with pytest.raises(TasksFailedError) as caught:
        run_task(call, pool)
    tasks = by_name(pool)
    assert calls == {"bad": 2, "a": 1, "b": 1}
    assert [tasks[name]["status"] for name in ("bad", "a", "b")] == ["failed", "done", "done"]
    assert caught.value.failures.keys() == {tasks["bad"]["_id"]}
    assert "no such number" in tasks["bad"]["error"]


# --- 48: queries ---------------------------------------------------------------------------------


def test_check_48_the_queries_of_qlibs_callers_find_their_tasks(pool: TaskManager) -> None:
    a, b, c = pool.create_task([definition("a"), definition("b", "GRU"), definition("c")])
    pool.commit_task_res(pool.fetch_task(), 1)

    def found(query: dict[str, Any]) -> list[str]:
        before = copy.deepcopy(query)
        names = [task["_id"] for task in pool.query(query)]
        assert query == before
        return names

    assert found({}) == [a, b, c]
    assert found({"_id": b}) == [b]
    assert found({"_id": {"$in": [c, a]}}) == [a, c]
    assert found({"status": "waiting"}) == [b, c]
    assert found({"filter": definition("c")}) == [c]
    assert found({"filter.model.class": "GRU"}) == [b]
    assert found({"status": "done", "filter.model.class": "GRU"}) == []
    assert found({"res": {"$gte": 1}}) == [a]


def test_check_48_a_query_by_status_or_id_reads_no_other_task(pool: TaskManager) -> None:
    ids = pool.create_task([definition(f"t{number}") for number in range(5)])
    for damaged in (pool.directory.root / "def").iterdir():
        if damaged.name != ids[1]:
            damaged.write_bytes(b"damaged")
    assert pool.task_stat({"status": "waiting"}) == {"waiting": 5}
    assert [named(task) for task in pool.query({"_id": ids[1]})] == ["t1"]
    assert len(list(pool.query({"_id": {"$in": ids[2:]}}, decode=False))) == 3


# --- 49: the rest --------------------------------------------------------------------------------


def test_check_49_numbers_resets_removals_and_priorities(pool: TaskManager) -> None:
    pool.create_task([definition(name) for name in "abcd"])
    pool.prioritize({"_id": pool.create_task([definition("d")])[0]}, 1)
    assert named(pool.fetch_task()) == "d"
    assert named(pool.fetch_task()) == "a"
    assert pool.task_stat() == {"waiting": 2, "running": 2}
    assert pool.task_stat({"filter.name": {"$in": ["a", "b"]}}) == {"waiting": 1, "running": 1}
    assert pool.reset_waiting({"filter.name": "a"}) == 1
    assert pool.task_stat() == {"waiting": 3, "running": 1}
    assert pool.remove({"filter.name": {"$ne": "b"}}) == 3
    assert pool.task_stat() == {"waiting": 1}
    assert pool.remove() == 1
    assert pool.task_stat() == {}


def test_check_49_reset_never_touches_what_a_living_process_works_on(
    pool: TaskManager, holder: Callable[[], subprocess.Popen[str]]
) -> None:
    pool.create_task([definition("a")])
    process = holder()
    assert pool.reset_waiting() == 0
    assert pool.reset_status({}, "waiting") == 0
    assert pool.task_stat() == {"running": 1}
    said, _ = process.communicate("\n", timeout=60)
    assert said == ""
    assert pool.task_stat() == {"done": 1}


def test_check_49_a_part_that_is_done_is_not_begun_anew_by_a_reset(pool: TaskManager) -> None:
    (one,) = pool.create_task([definition("a")])
    pool.commit_task_res(pool.fetch_task(), "half", "part_done")
    pool.fetch_task(status="part_done")
    assert pool.reset_waiting() == 1
    assert pool.re_query(one)["status"] == "part_done"
    assert pool.re_query(one)["res"] == "half"


def test_check_49_wait_returns_when_nothing_is_undone(pool: TaskManager) -> None:
    assert pool.wait() == {}
    pool.create_task([definition("a"), definition("b")])
    pool.commit_task_res(pool.fetch_task(), 1)
    with pytest.raises(PoolTimeoutError, match="1 waiting, 1 done") as caught:
        pool.wait(timeout=0.0)
    assert isinstance(caught.value, TimeoutError)
    assert pool.wait({"filter.name": "a"}) == {"done": 1}
    working = threading.Thread(target=run_task, args=(lambda found: 2, TaskManager("p")))
    working.start()
    assert pool.wait(timeout=60) == {"done": 2}
    working.join()


@pytest.mark.parametrize(
    "query",
    [{"priority": 5}, {"priority": {"$gt": 1}}, {"$or": [{"priority": 5}, {"priority": 6}]}],
)
def test_check_49_wait_does_not_wait_for_tasks_of_other_priorities(
    pool: TaskManager, query: dict[str, Any]
) -> None:
    pool.create_task([definition("later")])
    pool.create_task([definition("soon")], priority=5)
    task = pool.fetch_task(query)
    waiting = threading.Event()
    answers: list[dict[str, int]] = []

    def wait() -> None:
        waiting.set()
        answers.append(pool_of_the_waiting.wait(query, timeout=60))

    pool_of_the_waiting = TaskManager("p")
    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait()
    pool.commit_task_res(task, 1)
    thread.join()
    assert answers == [{"done": 1}]
