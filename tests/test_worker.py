"""``qwf worker``: real processes that drain a pool, are killed, told to end, and wait for more."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import qwf
from qwf import TaskManager
from qwf.tasks.worker import load_function

ROOT = str(Path(qwf.__file__).parent.parent)

# Each call leaves one line in calls/, so that what was done twice is seen; and says when it begins.
MINE = """
import os, signal, time, uuid
from pathlib import Path

def note(folder, what):
    Path(folder).mkdir(exist_ok=True)
    (Path(folder) / f"{what}-{os.getpid()}-{uuid.uuid4().hex}").touch()

def wait_for(name):
    while not Path(name).exists():
        time.sleep(0.01)

def train(task):
    note("begun", task["x"])
    if task.get("wait"):
        wait_for("go")
    note("calls", task["x"])
    return {"twice": 2 * task["x"]}

def kill_once(task):
    if task["x"] == 3 and not Path("killed").exists():
        Path("killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return train(task)

def kill(task):
    os.kill(os.getpid(), signal.SIGKILL)

def fail(task):
    if task["x"] % 2:
        raise ValueError(f"no prices for {task['x']}")
    return task["x"]

def leave(task):
    raise SystemExit(3)

def keywords(task, experiment_name, **others):
    return [experiment_name, others]

def add(result, experiment_name=None):
    return result["twice"] + 1

def stubborn(task):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    note("begun", task["x"])
    while True:
        time.sleep(60)

def plain(task):
    return "plain"

nothing = 3
"""


class Worker:
    """A running ``qwf worker``, of a process group of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "qwf", "worker", "pool", *arguments],
            cwd=folder,
            env={
                **{key: text for key, text in os.environ.items() if key[:4] != "QWF_"},
                "PYTHONPATH": ROOT,
                "QWF_PROVENANCE": "off",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def begun(self, number: int) -> list[int]:
        """Wait until so many tasks have begun; return the processes that work on them."""
        folder = self.folder / "begun"

        def names() -> list[str]:
            return sorted(os.listdir(folder)) if folder.exists() else []

        self.until(lambda: len(names()) >= number)
        return [int(name.split("-")[1]) for name in names()]

    def until(self, condition: Callable[[], object]) -> None:
        latest = time.monotonic() + 60
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < latest
            time.sleep(0.01)

    def end(self) -> tuple[int, str]:
        """Wait for its end; return exit code and standard error."""
        out, err = self.process.communicate(timeout=60)
        assert out == ""
        return self.process.returncode, err


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Start ``qwf worker pool`` where ``mine.py`` is; its processes are gone at the end."""
    (tmp_path / "mine.py").write_text(MINE)
    started: list[Worker] = []

    def start(*arguments: str) -> Worker:
        started.append(Worker(tmp_path, *arguments))
        return started[-1]

    yield start
    for one in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.process.pid, signal.SIGKILL)
        if one.process.stdout is not None and not one.process.stdout.closed:
            one.process.communicate()


@pytest.fixture
def pool(tmp_path: Path, settings_restored: None) -> TaskManager:
    return TaskManager("pool", uri=tmp_path / "qwf_store")


def tasks(number: int, **more: Any) -> list[dict[str, Any]]:
    return [{"x": x, **more} for x in range(number)]


def calls(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[0]) for path in (folder / "calls").iterdir())


def lines_of(err: str) -> list[str]:
    """The lines about attempts."""
    return [line for line in err.splitlines() if line[:2] == "20"]


# --- draining --------------------------------------------------------------------------------


def test_two_processes_drain_a_pool_and_say_a_line_about_each_task(
    worker: Callable[..., Worker], pool: TaskManager, tmp_path: Path
) -> None:
    ids = pool.create_task(tasks(20))
    known = os.listdir(pool.directory.workers)
    code, err = worker("-n", "2", "--func", "mine:train").end()
    assert code == 0, err
    assert pool.task_stat() == {"done": 20}
    assert calls(tmp_path) == [*range(20)]
    assert [pool.re_query(one)["res"] for one in ids] == [{"twice": 2 * x} for x in range(20)]
    lines = lines_of(err)
    assert len(lines) == 20
    for x, identity in enumerate(ids):
        (line,) = (line for line in lines if identity[:12] in line)
        assert f'{{"x":{x}}}  done  ' in line
    assert "20 done after" in err.splitlines()[-1]
    assert os.listdir(pool.directory.workers) == known  # who has ended has signed off


def test_a_process_that_has_nothing_to_do_waits_for_what_another_may_leave(
    worker: Callable[..., Worker], pool: TaskManager, tmp_path: Path
) -> None:
    pool.create_task(tasks(1, wait=True))
    started = worker("-n", "2", "--func", "mine:train")
    (busy,) = started.begun(1)
    os.kill(busy, signal.SIGKILL)
    started.begun(2)
    (tmp_path / "go").touch()
    code, err = started.end()
    assert code == 0, err
    assert pool.task_stat() == {"done": 1}
    assert calls(tmp_path) == [0]


def test_functions_are_named_with_a_colon_or_a_dot() -> None:
    assert load_function("os.path:join") is os.path.join
    assert load_function("os.path.join") is os.path.join


def test_a_function_gets_the_experiment_if_it_takes_it(
    worker: Callable[..., Worker], pool: TaskManager
) -> None:
    (identity,) = pool.create_task(tasks(1))
    worker("--func", "mine:keywords").end()
    assert pool.re_query(identity)["res"] == ["pool", {"recorder_name": None}]
    pool.reset_status({}, "waiting")
    worker("--func", "mine:keywords", "--experiment", "other").end()
    assert pool.re_query(identity)["res"] == ["other", {"recorder_name": None}]


def test_tasks_that_are_done_in_part_are_ended_by_another_worker(
    worker: Callable[..., Worker], pool: TaskManager
) -> None:
    pool.create_task(tasks(3))
    code, err = worker("--func", "mine:train", "--after-status", "part_done").end()
    assert (code, pool.task_stat()) == (0, {"part_done": 3}), err
    code, err = worker("--func", "mine:add", "--before-status", "part_done").end()
    assert (code, pool.task_stat()) == (0, {"done": 3}), err
    assert sorted(task["res"] for task in pool.query()) == [1, 3, 5]


def test_a_query_says_which_tasks_are_taken(
    worker: Callable[..., Worker], pool: TaskManager
) -> None:
    pool.create_task(tasks(4))
    code, _ = worker("--func", "mine:train", "--query", '{"filter.x": {"$gte": 3}}').end()
    assert (code, pool.task_stat()) == (0, {"waiting": 3, "done": 1})


def test_so_many_tasks_are_done_as_asked_by_all_processes_together(
    worker: Callable[..., Worker], pool: TaskManager, tmp_path: Path
) -> None:
    pool.create_task(tasks(12))
    arguments = ("-n", "3", "--func", "mine:train", "--max-tasks", "5")
    assert worker(*arguments).end()[0] == 0
    assert (pool.task_stat(), len(calls(tmp_path))) == ({"waiting": 7, "done": 5}, 5)


def test_each_task_has_a_process_of_its_own_if_memory_is_to_be_released(
    worker: Callable[..., Worker], pool: TaskManager, tmp_path: Path
) -> None:
    pool.create_task(tasks(3))
    assert worker("--func", "mine:train", "--force-release").end()[0] == 0
    assert len({path.name.split("-")[1] for path in (tmp_path / "calls").iterdir()}) == 3


def test_the_default_function_trains_into_the_store_of_the_pool(
    worker: Callable[..., Worker], pool: TaskManager, tmp_path: Path
) -> None:
    (tmp_path / "parts.py").write_text(
        "class M:\n    def fit(self, dataset): pass\nclass D:\n    pass\n"
    )
    part = {"module_path": "parts"}
    (identity,) = pool.create_task(
        [{"model": {"class": "M", **part}, "dataset": {"class": "D", **part}}]
    )
    code, err = worker().end()
    assert code == 0, err
    store = tmp_path / "qwf_store"
    (recorder,) = qwf.ExpManager(store).get_exp(experiment_name="pool").list_recorders().values()
    assert recorder.status == "FINISHED"
    shown = json.loads(
        subprocess.run(
            [sys.executable, "-m", "qwf", "tasks", "show", "pool", identity[:9], "--json"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": ROOT},
            capture_output=True,
            check=True,
        ).stdout
    )
    assert shown["res"]["$recorder"]["recorder"] == recorder.id
    assert "  M  done" in lines_of(err)[0]


# --- failures --------------------------------------------------------------------------------


def test_tasks_that_fail_are_tried_again_and_make_the_exit_code_1(
    worker: Callable[..., Worker], pool: TaskManager
) -> None:
    pool.create_task(tasks(4))
    code, err = worker("-n", "2", "--func", "mine:fail").end()
    assert code == 1
    assert pool.task_stat() == {"done": 2, "failed": 2}
    assert {task["error"] for task in pool.query({"status": "failed"})} == {
        "ValueError: no prices for 1",
        "ValueError: no prices for 3",
    }
    said = [line for line in lines_of(err) if line.endswith("ValueError: no prices for 3")]
    assert len(said) == 3
    assert [line.count("waiting again") for line in said] == [1, 1, 0]
    assert "2 done, 2 failed, 4 failed and tried again" in err


def test_a_function_that_exits_has_failed(worker: Callable[..., Worker], pool: TaskManager) -> None:
    pool.create_task(tasks(2))
    code, err = worker("--func", "mine:leave").end()
    assert code == 1
    assert pool.task_stat() == {"failed": 2}
    assert {task["error"] for task in pool.query()} == {
        "RuntimeError: the function called sys.exit(3)"
    }
    assert "died" not in err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mine:nonsense", "has no 'nonsense'"),
        ("miner:train", "there is no module 'miner'; did you mean mine?"),
        ("train", "expected module:function"),
        ("mine:nothing", "is a int, and a function is expected"),
    ],
)
def test_a_function_that_cannot_be_loaded_is_refused_before_a_task_is_taken(
    worker: Callable[..., Worker], pool: TaskManager, name: str, said: str
) -> None:
    pool.create_task(tasks(1))
    known = os.listdir(pool.directory.workers)
    code, err = worker("--func", name).end()
    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1
    assert [task["attempts"] for task in pool.query(decode=False)] == [0]
    assert os.listdir(pool.directory.workers) == known


def test_a_missing_pool_is_one_sentence(
    worker: Callable[..., Worker], pool: TaskManager, tmp_path: Path
) -> None:
    qwf.ExpManager(tmp_path / "qwf_store").create_exp("e")
    code, err = worker("--func", "mine:train").end()
    assert code == 1
    assert err.startswith("qwf: there is no task pool at ")
    assert len(err.splitlines()) == 1


# --- processes that are killed ---------------------------------------------------------------


def test_the_task_of_a_killed_process_is_done_by_the_others_and_none_is_done_twice(
    worker: Callable[..., Worker], pool: TaskManager, tmp_path: Path
) -> None:
    pool.create_task(tasks(12))
    code, err = worker("-n", "2", "--func", "mine:kill_once").end()
    assert code == 0, err
    assert pool.task_stat() == {"done": 12}
    assert calls(tmp_path) == [*range(12)]
    assert "12 done, 1 processes died" in err
    assert [task["attempts"] for task in pool.query(decode=False)].count(1) == 1


def test_a_task_that_kills_is_set_aside_and_makes_the_exit_code_1(
    worker: Callable[..., Worker], pool: TaskManager
) -> None:
    pool.create_task(tasks(1))
    code, err = worker("-n", "2", "--func", "mine:kill").end()
    assert code == 1
    (task,) = pool.query()
    assert (task["status"], task["error"].partition(":")[0]) == ("failed", "WorkerLost")
    assert "0 done, 1 failed, 3 processes died" in err
    found = pool.directory.find(task["_id"])
    assert found is not None
    assert len(pool.books.failures(found[1])) == 3


def test_when_every_process_dies_no_more_are_started_and_it_is_said_why(
    worker: Callable[..., Worker], pool: TaskManager
) -> None:
    pool.create_task(tasks(20))
    code, err = worker("-n", "4", "--func", "mine:kill").end()
    assert code == 1
    assert "processes that worked on pool 'pool' died in a row" in err
    assert "SIGKILL" in err
    counts = pool.task_stat()
    assert counts.get("running", 0) == 0
    assert counts["waiting"] > 0


READ_ONLY = """
import errno, os
from qwf.storage import fsio

class ReadOnly:
    def __getattr__(self, name):
        return refuse if name in ("rename", "replace", "link", "mkdir", "utime") else (
            open_ if name == "open" else getattr(os, name))

def refuse(path, *others, **more):
    raise OSError(errno.EROFS, "Read-only file system", str(path))

def open_(path, flags, *others, **more):
    if flags & (os.O_WRONLY | os.O_RDWR):
        refuse(path)
    return os.open(path, flags, *others, **more)

def train(task):
    return task

fsio.os = ReadOnly()
"""


def test_a_pool_that_may_not_be_written_ends_all_processes_at_once_and_it_is_said_once(
    worker: Callable[..., Worker], pool: TaskManager, tmp_path: Path
) -> None:
    pool.create_task(tasks(3))
    (tmp_path / "closed.py").write_text(READ_ONLY)
    code, err = worker("-n", "2", "--func", "closed:train").end()
    assert code == 1
    assert "another takes its place" not in err
    (said,) = [line for line in err.splitlines() if "Read-only file system" in line]
    assert said.startswith("qwf: cannot write ")
    assert "give this user permission" in said
    assert pool.task_stat() == {"waiting": 3}


def test_processes_end_when_the_one_that_started_them_is_killed(
    worker: Callable[..., Worker], pool: TaskManager, tmp_path: Path
) -> None:
    pool.create_task([*tasks(1, wait=True), *tasks(5)])
    started = worker("--func", "mine:train")
    (child,) = started.begun(1)
    started.process.kill()
    started.process.wait()
    (tmp_path / "go").touch()
    latest = time.monotonic() + 30
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < latest
        time.sleep(0.01)
    assert pool.task_stat() == {"waiting": 5, "done": 1}


# --- being told to end -----------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_worked_on_is_given_back_and_not_counted(
    worker: Callable[..., Worker], pool: TaskManager, number: signal.Signals, times: int
) -> None:
    pool.create_task(tasks(5, wait=True))
    started = worker("-n", "2", "--func", "mine:train")
    started.begun(2)
    for _ in range(times):
        started.process.send_signal(number)
    code, err = started.end()
    assert code == 128 + number, err
    assert pool.task_stat() == {"waiting": 5}
    assert {task["attempts"] for task in pool.query(decode=False)} == {0}
    assert "was told to end" in err
    assert "Traceback" not in err
    assert pool.fetch_task() is not None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_does_the_same(
    worker: Callable[..., Worker], pool: TaskManager, number: signal.Signals
) -> None:
    # As Slurm and a terminal send it.
    pool.create_task(tasks(5, wait=True))
    started = worker("-n", "3", "--func", "mine:train")
    started.begun(3)
    os.killpg(started.process.pid, number)
    assert started.end()[0] == 128 + number
    assert pool.task_stat() == {"waiting": 5}
    assert {task["attempts"] for task in pool.query(decode=False)} == {0}


def test_a_process_in_the_middle_of_something_is_killed_and_its_task_given_back(
    worker: Callable[..., Worker], pool: TaskManager
) -> None:
    # As in a library that comes back to Python only when it is done.
    pool.create_task(tasks(1))
    started = worker("--func", "mine:stubborn")
    started.begun(1)
    started.process.terminate()
    assert started.end()[0] == 143
    assert [(task["status"], task["attempts"]) for task in pool.query(decode=False)] == [
        ("waiting", 0)
    ]


def test_an_exit_in_the_moment_of_a_claim_gives_the_task_back(
    pool: TaskManager, run_script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    pool.create_task(tasks(1))
    done = run_script(
        """
        import signal, sys, qwf
        from qwf.pool import claims
        move = claims.try_move
        def move_and_be_told(*paths):
            move(*paths)
            signal.raise_signal(signal.SIGTERM)
        claims.try_move = move_and_be_told
        qwf.TaskManager("pool", uri=sys.argv[1]).fetch_task()
        """,
        pool.directory.root.parent.parent,
    )
    assert done.returncode == 143, done.stderr
    assert [(task["status"], task["attempts"]) for task in pool.query(decode=False)] == [
        ("waiting", 0)
    ]


# --- staying ---------------------------------------------------------------------------------


def test_a_worker_that_stays_takes_what_is_added_later_even_the_pool(
    worker: Callable[..., Worker], pool: TaskManager
) -> None:
    started = worker("--stay", "-n", "2", "--func", "mine:train")
    pool.create_task(tasks(3))
    started.until(lambda: pool.task_stat() == {"done": 3})
    pool.create_task(tasks(5))
    started.until(lambda: pool.task_stat() == {"done": 5})
    started.process.terminate()
    assert started.end()[0] == 143
