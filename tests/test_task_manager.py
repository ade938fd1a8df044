"""TaskManager and run_task: what one process sees, and what it leaves to others when it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Children, FaultyOs

import qwf
from qwf import (
    LeaseLostError,
    PoolTimeoutError,
    R,
    Recorder,
    TaskManager,
    TaskNotFoundError,
    TasksFailedError,
    run_task,
)
from qwf.errors import ConfigError, QueryError, TaskStatusError, TaskValueError

Script = Callable[..., "subprocess.CompletedProcess[str]"]
SECONDS = 30.0


def definitions(number: int) -> list[dict[str, Any]]:
    return [{"model": {"class": "M", "n": n}} for n in range(number)]


@pytest.fixture
def manager(store: Path) -> TaskManager:
    return TaskManager("pool")


def numbers(tasks: Any) -> list[int]:
    return [task["def"]["model"]["n"] for task in tasks]


def fetched(manager: TaskManager) -> Iterator[dict[str, Any]]:
    while task := manager.fetch_task():
        yield task


def tokens(store: Path, status: str) -> list[str]:
    return sorted(path.name for path in (store / "tasks" / "pool" / status).iterdir())


# --- reading and creating --------------------------------------------------------------------


def test_looking_at_a_pool_that_is_not_there_creates_nothing(store: Path) -> None:
    manager = TaskManager("pool")
    assert manager.fetch_task() is None
    assert manager.task_stat() == {}
    assert [*manager.query()] == []
    assert manager.remove() == manager.reset_waiting() == manager.recover() == 0
    assert manager.wait() == {}
    assert TaskManager.list() == []
    assert manager.create_task(definitions(2), dry_run=True)
    with pytest.raises(TaskNotFoundError, match="has no task 'x'"):
        manager.re_query("x")
    assert not store.exists()


def test_a_pool_is_a_directory_of_files_named_by_status_that_anybody_can_list(store: Path) -> None:
    manager = TaskManager("pool")
    first, second = manager.create_task(definitions(2))
    task = manager.fetch_task()
    assert task is not None
    manager.commit_task_res(task, {"ic": 0.5})
    (waiting,), (done,) = tokens(store, "waiting"), tokens(store, "done")
    assert second in waiting
    assert first in done
    (result,) = (store / "tasks" / "pool" / "res").iterdir()
    assert json.loads(result.read_text())["res"] == {"ic": 0.5}
    assert json.loads((store / "tasks" / "pool" / "def" / first).read_text())["def"] == task["def"]


def test_definitions_that_differ_in_the_order_of_keys_are_one_task(manager: TaskManager) -> None:
    one, other = manager.create_task(
        [{"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}]
    )
    assert one == other
    assert manager.task_stat() == {"waiting": 1}


def test_pools_have_any_name_and_never_leave_the_store(store: Path) -> None:
    for name in ("../out", "沪深300/roll", ".hidden", "_private"):
        TaskManager(name).create_task(definitions(1))
    assert TaskManager.list() == sorted(["../out", "沪深300/roll", ".hidden", "_private"])
    assert {path.name for path in store.parent.iterdir()} == {"store"}


def test_a_definition_that_is_no_plain_data_is_refused_with_its_place(manager: TaskManager) -> None:
    bad = [*definitions(1), {"model": {"kwargs": {"loss": [1, object()]}}}]
    with pytest.raises(TaskValueError, match=r"task 1 .*model\.kwargs\.loss\[1\] is a object"):
        manager.create_task(bad)
    assert manager.task_stat() == {}


def test_what_is_no_plain_data_is_kept_as_a_checked_pickle_when_asked(store: Path) -> None:
    manager = TaskManager("pool", allow_pickle=True)
    (identity,) = manager.create_task([{"dates": {1, 2}}])
    task = TaskManager("pool").fetch_task()
    assert task is not None
    assert task["def"] == {"dates": {1, 2}}
    manager.commit_task_res(task, np.arange(3))
    assert TaskManager("pool").re_query(identity)["res"].tolist() == [0, 1, 2]


def test_wrong_arguments_are_refused_before_anything_is_done(manager: TaskManager) -> None:
    ids = manager.create_task(definitions(1))
    with pytest.raises(TaskValueError, match=r"priority 1\.5"):
        manager.prioritize({"_id": ids[0]}, 1.5)  # type: ignore[arg-type]
    with pytest.raises(TaskStatusError, match="'runing'"):
        manager.reset_status({}, "runing")
    with pytest.raises(TaskStatusError, match="has no result"):
        manager.reset_status({}, "done")
    with pytest.raises(ValueError, match="before_status"):
        run_task(len, manager, before_status="done")
    with pytest.raises(QueryError):
        manager.fetch_task({"nmae": 1})
    with pytest.raises(ConfigError, match="on_failure"):
        manager.wait(on_failure="explode")
    for wrong in ({"max_attempts": 0}, {"max_attempts": True}, {"lease": -1}):
        with pytest.raises(ConfigError):
            TaskManager("pool", **wrong)  # type: ignore[arg-type]
    assert manager.task_stat() == {"waiting": 1}


def test_a_task_that_is_damaged_is_one_row_with_an_error_and_breaks_no_listing(
    store: Path, manager: TaskManager, caplog: pytest.LogCaptureFixture
) -> None:
    ids = manager.create_task(definitions(3))
    run_task(lambda definition: 1, manager)
    for result in (store / "tasks" / "pool" / "res").glob(f"{ids[1]}.*"):
        result.write_text("{")
    rows = [*TaskManager("pool").query()]
    assert [row.get("res") for row in rows] == [1, None, 1]
    assert "it is not whole JSON" in rows[1]["error"]
    assert f"task {ids[1]} cannot be read" in caplog.text
    assert len([*TaskManager("pool").query({"res": 1})]) == 2


def test_numbers_and_sequences_that_are_equal_make_equal_tasks(manager: TaskManager) -> None:
    """As they do for Qlib, which compares by MongoDB."""
    ids = manager.create_task([{"a": (1, 2.0)}, {"a": [1.0, 2]}, {"a": [True, 2]}])
    assert ids[0] == ids[1] != ids[2]
    assert [task["def"] for task in manager.query()] == [{"a": (1, 2.0)}, {"a": [True, 2]}]


# --- order -----------------------------------------------------------------------------------


def test_a_priority_that_another_process_sets_counts_for_the_very_next_claim(
    manager: TaskManager, children: Children
) -> None:
    ids = manager.create_task(definitions(5))
    assert numbers([manager.fetch_task()]) == [0]  # it has a listing now
    children.add(lambda: TaskManager("pool").prioritize({"_id": ids[4]}, 7))
    assert children.exit_codes() == [0]
    assert numbers(fetched(manager)) == [4, 1, 2, 3]


def test_a_task_that_comes_later_with_a_priority_is_taken_first(manager: TaskManager) -> None:
    manager.create_task(definitions(3))
    assert numbers([manager.fetch_task()]) == [0]
    TaskManager("pool").create_task([{"model": {"class": "M", "n": 9}}], priority=1)
    assert numbers(fetched(manager)) == [9, 1, 2]


def test_a_running_task_keeps_its_owner_when_its_priority_changes(manager: TaskManager) -> None:
    (identity,) = manager.create_task(definitions(1))
    task = manager.fetch_task()
    assert task is not None
    for priority in (3, 4, 3):
        TaskManager("pool").prioritize(task, priority)
    manager.commit_task_res(task, 1)
    found = manager.re_query(identity)
    assert (found["status"], found["priority"], found["res"]) == ("done", 3, 1)


# --- the end of an attempt -------------------------------------------------------------------


def test_an_exit_or_a_break_gives_the_task_back_and_is_not_counted(manager: TaskManager) -> None:
    manager.create_task(definitions(1))
    for error in (SystemExit(3), KeyboardInterrupt()):
        with pytest.raises(type(error)), manager.safe_fetch_task():
            raise error
    for _ in manager.task_fetcher_iter():
        break
    (task,) = manager.query(decode=False)
    assert (task["status"], task["attempts"]) == ("waiting", 0)


@pytest.mark.parametrize("happened", [True, False])
def test_an_interrupt_in_the_middle_of_a_commit_leaves_a_result_only_if_the_token_names_it(
    happened: bool, manager: TaskManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    (identity,) = manager.create_task(definitions(1))

    def rename(source: str, target: str) -> None:
        if happened or "/done/" not in target:
            os.rename(source, target)
        if "/done/" in target:
            raise KeyboardInterrupt

    def work() -> None:
        with manager.safe_fetch_task() as task, monkeypatch.context() as patch:
            assert task is not None
            patch.setattr("qwf.storage.fsio.os", FaultyOs(rename=rename))
            manager.commit_task_res(task, "kept")

    with pytest.raises(KeyboardInterrupt):
        work()
    found = manager.re_query(identity)
    assert (found["status"], found.get("res")) == (
        ("done", "kept") if happened else ("waiting", None)
    )
    assert manager.check() == []


def test_the_error_of_every_attempt_is_kept_with_its_traceback(manager: TaskManager) -> None:
    (identity,) = manager.create_task(definitions(1))

    def fail(definition: dict[str, Any]) -> None:
        raise ZeroDivisionError("by naught")

    with pytest.raises(TasksFailedError, match="by naught") as raised:
        run_task(fail, manager)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    assert manager.re_query(identity)["error"] == "ZeroDivisionError: by naught"
    _, token = manager.directory.find(identity) or (None, None)
    assert token is not None
    failures = manager.books.failures(token)
    assert [failure["attempt"] for failure in failures] == [1, 2, 3]
    assert all("in fail" in failure["traceback"] for failure in failures)
    assert {failure["pid"] for failure in failures} == {os.getpid()}


def test_how_often_a_task_may_fail_is_kept_with_the_pool(store: Path) -> None:
    TaskManager("pool", max_attempts=1).create_task(definitions(2))
    calls: list[int] = []

    def fail(definition: dict[str, Any]) -> None:
        calls.append(definition["model"]["n"])
        raise ValueError

    with pytest.raises(TasksFailedError):
        run_task(fail, "pool")
    assert calls == [0, 1]
    assert TaskManager("pool").retry() == 2
    assert TaskManager("pool").task_stat() == {"waiting": 2}


def test_a_failing_task_is_tried_again_after_all_others(manager: TaskManager) -> None:
    manager.create_task(definitions(3))
    calls: list[int] = []

    def once_bad(definition: dict[str, Any]) -> int:
        n: int = definition["model"]["n"]
        calls.append(n)
        if n == 0 and calls.count(0) == 1:
            raise OSError("bad luck")
        return n

    assert run_task(once_bad, manager) is True
    assert calls == [0, 1, 2, 0]
    assert manager.task_stat() == {"done": 3}


def test_a_result_that_cannot_be_kept_fails_its_task_at_once(manager: TaskManager) -> None:
    manager.create_task(definitions(1))
    calls: list[int] = []

    def bad(definition: dict[str, Any]) -> Any:
        calls.append(1)
        return {"model": object()}

    with pytest.raises(TasksFailedError, match="model is a object"):
        run_task(bad, manager)
    assert calls == [1]


def test_a_definition_that_cannot_be_read_holds_no_other_task_up(
    store: Path, manager: TaskManager
) -> None:
    ids = manager.create_task(definitions(3))
    (store / "tasks" / "pool" / "def" / ids[1]).write_text('{"format": "qwf-task", "vers')
    with pytest.raises(TasksFailedError, match="it is not whole JSON"):
        run_task(lambda definition: definition["model"]["n"], manager)
    assert manager.task_stat() == {"done": 2, "failed": 1}


def test_a_disk_that_is_full_when_a_result_is_written_gives_the_task_back(
    manager: TaskManager, os_fails: Any
) -> None:
    manager.create_task(definitions(2))
    full = os_fails(OSError(28, os.strerror(28)), "write")
    with full, pytest.raises(OSError, match="No space left"):
        run_task(lambda definition: 1, manager)
    assert [task["attempts"] for task in manager.query(decode=False)] == [0, 0]
    assert manager.task_stat() == {"waiting": 2}
    run_task(lambda definition: 1, manager)
    assert manager.task_stat() == {"done": 2}


def test_a_task_that_was_reset_or_removed_cannot_be_committed_by_its_old_owner(
    manager: TaskManager,
) -> None:
    manager.create_task(definitions(2))
    first, second = fetched(manager)
    other = TaskManager("pool", lease=60)
    assert other.reset_waiting() == 0  # its owner lives
    assert other.reset_waiting({"_id": first["_id"]}, force=True) == 1
    assert other.remove({"_id": second["_id"]}) == 1
    for task in (first, second):
        with pytest.raises(LeaseLostError, match="is not this process's any more"):
            manager.commit_task_res(task, 1)
    assert other.task_stat() == {"waiting": 1}
    assert [*Path(other.directory.results).iterdir()] == []


def test_a_claim_of_before_does_not_commit_what_the_same_process_has_claimed_again(
    manager: TaskManager,
) -> None:
    manager.create_task(definitions(1))
    before = manager.fetch_task()
    assert before is not None
    TaskManager("pool", lease=60).reset_waiting(force=True)
    again = manager.fetch_task()
    assert again is not None
    with pytest.raises(LeaseLostError):
        manager.commit_task_res(before, "old")
    manager.commit_task_res(again, "new")
    assert [task["res"] for task in manager.query()] == ["new"]


# --- processes -------------------------------------------------------------------------------

FETCH = """
    import sys, qwf
    qwf.init(uri=sys.argv[1])
    task = qwf.TaskManager("pool").fetch_task()
    print(task["_id"])
"""


def test_a_process_that_ends_without_committing_gives_its_task_back(
    store: Path, manager: TaskManager, run_script: Script
) -> None:
    manager.create_task(definitions(1))
    ended = run_script(FETCH, store)
    assert ended.returncode == 0, ended.stderr
    (task,) = manager.query(decode=False)
    assert (task["status"], task["attempts"]) == ("waiting", 0)
    assert len([*(store / "tasks" / "pool" / "workers").iterdir()]) == 1  # of this process


def test_the_task_of_a_killed_process_is_taken_by_the_next_that_looks(
    store: Path, manager: TaskManager, run_script: Script
) -> None:
    (identity,) = manager.create_task(definitions(1))
    ended = run_script(FETCH + "    import os; sys.stdout.flush(); os.kill(os.getpid(), 9)", store)
    assert ended.returncode == -signal.SIGKILL
    assert manager.task_stat() == {"running": 1}
    task = manager.fetch_task()
    assert task is not None
    assert task["_id"] == identity
    (failure,) = manager.books.failures(task.claim)  # type: ignore[arg-type]
    assert failure["error"].startswith("WorkerLost: worker")
    assert "is gone: it was killed or crashed" in failure["error"]


def test_a_child_that_is_forked_does_not_take_the_claims_of_its_parent(
    manager: TaskManager, children: Children
) -> None:
    manager.create_task(definitions(2))
    mine = manager.fetch_task()

    def work() -> None:
        assert numbers(fetched(manager)) == [1]
        with contextlib.suppress(LeaseLostError):
            manager.commit_task_res({"_id": mine["_id"]}, "the child's")  # type: ignore[index]
            raise AssertionError("it has committed its parent's task")

    children.add(work)
    assert children.exit_codes() == [0]
    manager.commit_task_res(mine, "mine")  # type: ignore[arg-type]
    assert [task["res"] for task in manager.query({"status": "done"})] == ["mine"]


def test_threads_that_share_a_manager_get_different_tasks(manager: TaskManager) -> None:
    manager.create_task(definitions(60))
    got: list[int] = []

    def work() -> None:
        for task in fetched(manager):
            got.append(task["def"]["model"]["n"])
            manager.commit_task_res(task, 1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [*range(60)]
    assert manager.task_stat() == {"done": 60}


def test_force_release_makes_each_call_in_a_process_of_its_own(manager: TaskManager) -> None:
    manager.create_task(definitions(2))
    assert run_task(lambda definition: os.getpid(), manager, force_release=True)
    pids = {task["res"] for task in manager.query()}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_a_recorder_as_result_is_a_recorder_again_in_any_process(
    store: Path, manager: TaskManager, run_script: Script
) -> None:
    def train(definition: dict[str, Any]) -> Recorder:
        with R.start(experiment_name="e"):
            R.save_objects(n=definition["model"]["n"])
            recorder: Recorder = R.get_recorder()
        return recorder

    manager.create_task(definitions(2))
    run_task(train, manager)
    moved = store.rename(store.parent / "elsewhere")
    ended = run_script(
        """
        import sys, qwf
        qwf.init(uri=sys.argv[1])
        for task in qwf.TaskManager("pool").query():
            print(task["res"].load_object("n"), task["res"].status)
        """,
        moved,
    )
    assert ended.stdout.split("\n")[:2] == ["0 FINISHED", "1 FINISHED"], ended.stderr


# --- waiting ---------------------------------------------------------------------------------


def test_waiting_ends_with_the_time_and_says_what_is_left(manager: TaskManager) -> None:
    manager.create_task(definitions(3))
    task = manager.fetch_task()
    with pytest.raises(PoolTimeoutError, match="2 waiting, 1 running"):
        manager.wait(timeout=0.05)
    with pytest.raises(TimeoutError):
        manager.wait({"_id": task["_id"]}, timeout=0.05)  # type: ignore[index]


def test_waiting_for_a_status_that_does_not_exist_is_refused_and_does_not_return_at_once(
    manager: TaskManager,
) -> None:
    manager.create_task(definitions(1))
    with pytest.raises(QueryError, match="did you mean 'done'"):
        manager.wait({"status": "dne"})
    with pytest.raises(QueryError, match="did you mean 'waiting'"):
        TaskManager("none").wait({"status": {"$in": ["wating"]}})


def test_waiting_returns_when_others_have_done_the_tasks(
    manager: TaskManager, children: Children
) -> None:
    ids = manager.create_task(definitions(20))
    children.add(lambda: run_task(lambda definition: 1, "pool") or None)
    children.go()
    assert manager.wait({"_id": {"$in": ids}}, timeout=SECONDS) == {"done": 20}
    assert children.exit_codes() == [0]


def test_waiting_tells_of_failed_tasks_as_it_is_asked_to(manager: TaskManager) -> None:
    manager.create_task(definitions(2))
    task = manager.fetch_task()
    manager.fail_task(task, "broken", final=True)  # type: ignore[arg-type]
    with pytest.raises(TasksFailedError, match="broken"):
        manager.wait(on_failure="stop", timeout=SECONDS)
    run_task(lambda definition: 1, manager)
    with pytest.raises(TasksFailedError, match="broken"):
        manager.wait(timeout=SECONDS)
    assert manager.wait(on_failure="ignore") == {"done": 1, "failed": 1}


def test_a_worker_that_stops_for_longer_than_its_lease_loses_the_task_and_does_no_harm(
    store: Path, manager: TaskManager
) -> None:
    (identity,) = manager.create_task(definitions(1))
    ready, say = os.pipe()
    zombie = os.fork()
    if zombie == 0:
        code = 1
        with contextlib.suppress(BaseException):
            mine = TaskManager("pool", lease=0.5)
            task = mine.fetch_task()
            os.write(say, b"x")
            signal.raise_signal(signal.SIGSTOP)
            try:
                mine.commit_task_res(task, "late")  # type: ignore[arg-type]
            except LeaseLostError:
                code = 7
        os._exit(code)
    os.read(ready, 1)
    os.waitpid(zombie, os.WUNTRACED)
    deadline = time.monotonic() + SECONDS
    task = None
    while task is None and time.monotonic() < deadline:
        task = manager.fetch_task()
        time.sleep(0.05)
    assert task is not None, "it was never taken over"
    os.kill(zombie, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(zombie, 0)[1]) == 7
    manager.commit_task_res(task, "in time")
    assert manager.re_query(identity)["res"] == "in time"
    assert len([*Path(manager.directory.results).iterdir()]) == 1


def test_the_clock_of_a_host_does_not_matter(
    store: Path, manager: TaskManager, run_script: Script
) -> None:
    manager.create_task(definitions(1))
    ended = run_script(
        """
        import sys, time, qwf
        real, real_ns = time.time, time.time_ns
        time.time, time.time_ns = lambda: real() - 600, lambda: real_ns() - 600_000_000_000
        qwf.init(uri=sys.argv[1])
        manager = qwf.TaskManager("pool")
        manager.create_task([{"model": {"n": 1}}])
        print([task["def"]["model"]["n"] for task in manager.query()])
        print(manager.fetch_task()["def"]["model"]["n"], manager.recover())
        """,
        store,
    )
    assert ended.stdout.split("\n")[:2] == ["[0, 1]", "0 0"], ended.stderr
    assert qwf.TaskManager("pool").task_stat() == {"waiting": 2}


def test_a_definition_that_was_edited_is_not_done_in_the_place_of_what_its_id_stands_for(
    store: Path, manager: TaskManager
) -> None:
    ids = manager.create_task(definitions(2))
    path = store / "tasks" / "pool" / "def" / ids[0]
    path.write_bytes(path.read_bytes().replace(b'"n":0', b'"n":7'))
    done: list[int] = []
    with pytest.raises(TasksFailedError, match="it was changed since it was inserted"):
        run_task(lambda definition: done.append(definition["model"]["n"]), manager)
    assert done == [1]
    (failure, *_) = manager.failures(ids[0])
    assert "it was changed since it was inserted" in failure["error"]


def test_a_call_in_a_process_of_its_own_ends_with_the_worker_that_is_killed(
    store: Path, manager: TaskManager, tmp_path: Path
) -> None:
    manager.create_task(definitions(1))

    def work(definition: dict[str, Any]) -> None:
        (tmp_path / "pid").write_text(str(os.getpid()))
        time.sleep(SECONDS)
        (tmp_path / "went on").touch()

    worker = os.fork()
    if worker == 0:
        with contextlib.suppress(BaseException):
            run_task(work, "pool", force_release=True)
        os._exit(1)
    deadline = time.monotonic() + SECONDS
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    pid = int((tmp_path / "pid").read_text())
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < deadline, "it goes on without its parent"
        time.sleep(0.02)
    assert not (tmp_path / "went on").exists()
