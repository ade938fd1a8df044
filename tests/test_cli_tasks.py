"""``qwf tasks``: run as a user runs it; most in this process, which is faster."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

import qwf
from qwf import TaskManager
from qwf.cli import main
from qwf.cli.definitions import read_definitions

Run = Callable[..., subprocess.CompletedProcess[str]]
ROOT = str(Path(qwf.__file__).parent.parent)


@pytest.fixture
def pool(tmp_path: Path, settings_restored: None) -> TaskManager:
    """The pool ``night`` of ``qwf_store``, which is not there yet."""
    return TaskManager("night", uri=tmp_path / "qwf_store")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``run("stat", "night")`` is ``qwf tasks stat night`` in the directory of ``qwf_store``."""

    def command(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="\n") for _ in range(2))
        with monkeypatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(tmp_path)
            patch.delenv("QWF_URI", raising=False)
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
            try:
                code = main(["tasks", *arguments])
            except SystemExit as ended:
                code = int(ended.code or 0)
        texts = []
        for stream in (out, err):
            stream.flush()
            texts.append(stream.detach().getvalue().decode())
        return subprocess.CompletedProcess(arguments, code, *texts)

    return command


def json_of(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refused(done: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """The one sentence with which a command has refused to do anything."""
    assert (done.returncode, done.stdout) == (code, ""), done.stdout
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("qwf: ")
    return done.stderr


def failed(pool: TaskManager, definition: dict[str, Any]) -> str:
    """A task that has failed for good; its id."""
    (identity,) = pool.create_task([definition])
    task = pool.fetch_task({"_id": identity})
    assert task is not None
    with pytest.raises(ValueError, match="no prices") as raised:
        train(task)
    assert pool.fail_task(task, raised.value, final=True) == "failed"
    return identity


def train(_: object) -> None:
    raise ValueError("no prices")


def done(pool: TaskManager, definition: dict[str, Any], result: Any = None) -> str:
    (identity,) = pool.create_task([definition])
    task = pool.fetch_task({"_id": identity})
    assert task is not None
    pool.commit_task_res(task, result)
    return identity


# --- looking ---------------------------------------------------------------------------------


def test_pools_are_listed_with_their_tasks_by_status(run: Run, pool: TaskManager) -> None:
    other = TaskManager("a/b", uri=pool.directory.root.parent.parent)
    other.create_task([{"x": 1}])
    failed(pool, {"x": 1})
    done(pool, {"x": 2})
    pool.create_task([{"x": 3}, {"x": 4}])
    rows = json_of(run("list", "--json"))
    counted = {"part_done": 0, "running": 0, "workers": 1}  # this process
    assert rows == [
        {"pool": "a/b", "waiting": 1, "done": 0, "failed": 0, **counted},
        {"pool": "night", "waiting": 2, "done": 1, "failed": 1, **counted},
    ]
    text = run("list").stdout.splitlines()
    assert text[0].split() == "pool waiting running part_done done failed workers".split()
    assert text[2].split() == "night 2 0 0 1 1 1".split()
    table = list(csv.DictReader(io.StringIO(run("list", "--csv").stdout)))
    assert [row["waiting"] for row in table] == ["1", "2"]


def test_a_store_without_pools_says_so(run: Run, tmp_path: Path) -> None:
    assert "there is no store at" in refused(run("list"))
    qwf.ExpManager(tmp_path / "qwf_store").create_exp("e")
    assert json_of(run("list", "--json")) == []
    assert "no task pools" in run("list").stderr


def test_the_counts_of_a_pool_come_with_who_works_on_it(run: Run, pool: TaskManager) -> None:
    pool.create_task([{"x": 1}, {"x": 2}])
    pool.fetch_task()
    said = json_of(run("stat", "night", "--json"))
    assert (said["pool"], said["tasks"]) == ("night", {"waiting": 1, "running": 1})
    (worker,) = said["workers"]
    assert (worker["pid"], worker["running"], worker["lives"]) == (os.getpid(), 1, True)
    text = run("stat", "night").stdout
    assert "waiting   1" in text
    assert str(os.getpid()) in text
    some = json_of(run("stat", "night", "--json", "--status", "waiting"))
    assert some["tasks"] == {"waiting": 1}


def test_a_process_that_has_ended_is_no_worker_any_more(
    run: Run, pool: TaskManager, run_script: Run
) -> None:
    pool.create_task([{"x": 1}])
    script = """
        import os, signal, sys, qwf
        qwf.TaskManager("night", uri=sys.argv[1]).fetch_task()
        os.kill(os.getpid(), signal.SIGKILL)
        """
    assert run_script(script, pool.directory.root.parent.parent).returncode == -9
    said = json_of(run("stat", "night", "--json"))
    assert said["tasks"] == {"running": 1}
    assert [one["pid"] for one in said["workers"]] == [os.getpid()]
    (task,) = pool.query(decode=False)
    owner = json_of(run("show", "night", task["_id"], "--json"))["owner"]
    assert (owner["lives"], type(owner["pid"])) == (False, int)
    assert "which has died" in run("show", "night", task["_id"]).stdout


def test_everything_about_a_failed_task_is_shown(run: Run, pool: TaskManager) -> None:
    identity = failed(pool, {"model": {"class": "LinearModel"}, "x": (1, 2)})
    text = run("show", "night", identity[4:12]).stdout
    for wanted in (
        identity, "failed", "LinearModel", "ValueError: no prices", "Traceback",
        'raise ValueError("no prices")', f"{os.getpid()}", "1 failed, of 3",
    ):  # fmt: skip
        assert wanted in text
    document = json_of(run("show", "night", identity, "--json"))
    assert document["status"] == "failed"
    assert document["def"] == {"model": {"class": "LinearModel"}, "x": {"$tuple": [1, 2]}}
    (failure,) = document["failures"]
    assert failure["error"] == "ValueError: no prices"
    assert failure["pid"] == os.getpid()
    assert document["error"] == "ValueError: no prices"


def test_everything_about_a_running_and_a_done_task_is_shown(run: Run, pool: TaskManager) -> None:
    identity = done(pool, {"x": 1}, {"ic": 0.5})
    document = json_of(run("show", "night", identity, "--json"))
    assert (document["status"], document["res"]) == ("done", {"ic": 0.5})
    assert document["ended"]["pid"] == os.getpid()
    assert '"ic": 0.5' in run("show", "night", identity).stdout
    (other,) = pool.create_task([{"x": 2}], priority=7)
    pool.fetch_task()
    document = json_of(run("show", "night", other, "--json"))
    assert (document["status"], document["priority"]) == ("running", 7)
    assert (document["owner"]["pid"], document["owner"]["lives"]) == (os.getpid(), True)
    assert f"pid {os.getpid()} on " in run("show", "night", other).stdout


def test_the_recorder_of_a_task_is_named(run: Run, pool: TaskManager, tmp_path: Path) -> None:
    recorder = qwf.ExpManager(tmp_path / "qwf_store").create_exp("e").create_recorder().start_run()
    recorder.end_run()
    identity = done(pool, {"x": 1}, recorder)
    assert f"recorder  {recorder.id} of experiment e" in run("show", "night", identity).stdout
    reference = json_of(run("show", "night", identity, "--json"))["res"]["$recorder"]
    assert reference == {"experiment": recorder.experiment_id, "recorder": recorder.id}


def test_a_task_is_named_by_a_part_that_only_it_has(run: Run, pool: TaskManager) -> None:
    ids = pool.create_task([{"x": x} for x in range(40)])
    first = ids[0]
    part = next(first[:n] for n in range(1, 24) if sum(first[:n] in one for one in ids) == 1)
    assert json_of(run("show", "night", part, "--json"))["_id"] == first
    digit = next(digit for digit in "0123456789abcdef" if sum(digit in one for one in ids) > 1)
    assert "Give more of the id" in refused(run("show", "night", digit))
    assert "has no task 'xyz'" in refused(run("show", "night", "xyz"))


def test_tasks_are_found_by_query_and_status(run: Run, pool: TaskManager) -> None:
    one = failed(pool, {"x": 1})
    two, three = pool.create_task([{"x": 2}, {"x": 3}])
    assert [task["_id"] for task in json_of(run("query", "night", "--json"))] == [one, two, three]
    found = json_of(run("query", "night", '{"filter.x": {"$gt": 1}}', "--json"))
    assert [(task["_id"], task["def"]) for task in found] == [(two, {"x": 2}), (three, {"x": 3})]
    (task,) = json_of(run("query", "night", "--status", "failed", "--json"))
    assert (task["_id"], task["error"]) == (one, "ValueError: no prices")
    listed = run("query", "night", "--max", "2")
    assert "ValueError: no prices" in listed.stdout
    assert three not in listed.stdout
    assert "3 tasks, 1 more" in listed.stderr
    assert len(list(csv.DictReader(io.StringIO(run("query", "night", "--csv").stdout)))) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["query", "night", "{"], "is no JSON"),
        (["query", "night", "3"], "is no query"),
        (["query", "night", '{"stat": "done"}'], "did you mean"),
        (["query", "night", '{"status": "done"}', "--status", "done"], "and in --status"),
        (["query", "night", "--status", "ended"], "invalid choice"),
        (["prioritize", "night", "a", "high"], "is no priority"),
        (["reset", "night", "--to", "waiting"], "--all means every task"),
        (["reset", "night", "--to", "running", "--all"], "invalid choice"),
        (["reset", "night", "--all"], "goes with --to"),
        (["remove", "night"], "--all means every task"),
        (["remove", "night", "{}"], "--all means every task"),
        (["remove", "night", "--status", "done", "--all"], "say which to remove"),
        (["add", "night", "tasks.txt"], "neither .json nor .yaml"),
    ],
)
def test_a_wrong_command_line_or_query_is_exit_code_2_and_changes_nothing(
    run: Run, pool: TaskManager, words: list[str], said: str, tmp_path: Path
) -> None:
    (tmp_path / "tasks.txt").touch()
    pool.create_task([{"x": 1}])
    ended = run(*words)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert said in ended.stderr
    assert pool.task_stat() == {"waiting": 1}


@pytest.mark.parametrize(
    "words",
    [
        *("stat", "query", "reset", "retry", "wait", "check"),
        *("show night a", "remove night --all", "prioritize night a 1"),
    ],
)
def test_a_missing_pool_is_one_sentence_and_none_is_made(
    run: Run, words: str, tmp_path: Path, settings_restored: None
) -> None:
    qwf.ExpManager(tmp_path / "qwf_store").create_exp("e")
    command, *others = words.split()
    assert "there is no task pool at" in refused(run(command, *(others or ["night"])))
    assert json_of(run("list", "--json")) == []


# --- inserting -------------------------------------------------------------------------------


def test_tasks_of_a_file_are_inserted_once(run: Run, pool: TaskManager, tmp_path: Path) -> None:
    (tmp_path / "tasks.json").write_text('[{"x": 1}, {"x": 2}, {"x": 1}]')
    dry = json_of(run("add", "night", "tasks.json", "--json", "--dry-run"))
    assert not (tmp_path / "qwf_store").exists()
    added = run("add", "night", "tasks.json", "--priority", "4", "--max-attempts", "7")
    assert added.stdout.split() == [one["_id"] for one in dry]
    assert all(one["new"] for one in dry)
    assert pool.task_stat() == {"waiting": 2}
    assert pool.directory.max_attempts == 7
    assert {task["priority"] for task in pool.query()} == {4}
    again = json_of(run("add", "night", "-", "--json", given='{"x": 2}'))
    assert again == [{"_id": dry[1]["_id"], "new": False}]


def test_yaml_means_what_people_mean(tmp_path: Path) -> None:
    path = tmp_path / "tasks.yaml"
    path.write_text("- {lr: 1e-3, days: [1, 2], name: 1e-3x}\n- {lr: 1.5E+2, class: LinearModel}\n")
    assert read_definitions(str(path)) == [
        {"lr": 0.001, "days": [1, 2], "name": "1e-3x"},
        {"lr": 150.0, "class": "LinearModel"},
    ]


def test_what_a_query_prints_can_be_added_elsewhere(run: Run, pool: TaskManager) -> None:
    ids = pool.create_task([{"x": (1, 2)}, {"$odd": float("inf")}])
    found = json_of(run("query", "night", "--json"))
    definitions = json.dumps([task["def"] for task in found])
    added = json_of(run("add", "other", "-", "--json", given=definitions))
    assert [one["_id"] for one in added] == ids


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("t.json", "[1]", "holds a int as definition 0"),
        ("t.json", "{", "cannot be read"),
        ("t.yaml", "a: [", "cannot be read"),
        ("t.yaml", "3", "holds a int as definition 0"),
    ],
)
def test_a_file_that_holds_no_definitions_is_refused(
    run: Run, tmp_path: Path, name: str, text: str, said: str
) -> None:
    (tmp_path / name).write_text(text)
    assert said in refused(run("add", "night", name), 2)
    assert "No such file" in refused(run("add", "night", "missing.json"))
    assert not (tmp_path / "qwf_store").exists()


# --- changing --------------------------------------------------------------------------------


def test_tasks_are_brought_into_a_status(run: Run, pool: TaskManager) -> None:
    one = done(pool, {"x": 1})
    done(pool, {"x": 2})
    said = run("reset", "night", json.dumps({"_id": one}), "--to", "waiting")
    assert said.stdout == "1 tasks reset.\n"
    assert pool.re_query(one)["status"] == "waiting"
    every = run("reset", "night", "--to", "failed", "--all", "--json")
    assert json_of(every) == {"reset": 2}
    assert pool.task_stat() == {"failed": 2}


def test_failed_tasks_are_tried_again(run: Run, pool: TaskManager) -> None:
    one = failed(pool, {"x": 1})
    failed(pool, {"x": 2})
    assert json_of(run("retry", "night", json.dumps({"_id": one}), "--json")) == {"retried": 1}
    (task,) = pool.query({"status": "waiting"}, decode=False)
    assert (task["_id"], task["attempts"]) == (one, 0)
    assert run("retry", "night").stdout == "1 tasks retried.\n"


@pytest.fixture
def elsewhere(pool: TaskManager) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a task."""
    pool.create_task([{"x": 1}])
    script = (
        "import sys, qwf; task = qwf.TaskManager('night', uri=sys.argv[1]).fetch_task()\n"
        "print('has it', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(pool.directory.root.parent.parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "has it\n"
    yield process
    process.kill()
    process.communicate()


def test_running_tasks_of_the_living_are_given_back_by_force_only(
    run: Run, pool: TaskManager, elsewhere: subprocess.Popen[str]
) -> None:
    assert json_of(run("reset", "night", "--json")) == {"reset": 0}
    assert pool.task_stat() == {"running": 1}
    assert json_of(run("reset", "night", "--json", "--force")) == {"reset": 1}
    assert pool.task_stat() == {"waiting": 1}


def test_running_tasks_of_the_dead_are_given_back(
    run: Run, pool: TaskManager, elsewhere: subprocess.Popen[str]
) -> None:
    elsewhere.kill()
    elsewhere.wait()
    assert json_of(run("reset", "night", "--json")) == {"reset": 1}
    assert pool.task_stat() == {"waiting": 1}


def test_a_priority_is_changed_and_taken_away(run: Run, pool: TaskManager) -> None:
    pool.create_task([{"x": 1}])
    (last,) = pool.create_task([{"x": 2}])
    assert json_of(run("prioritize", "night", last, "5", "--json")) == {"_id": last, "priority": 5}
    assert pool.re_query(last)["priority"] == 5
    run("prioritize", "night", last, "none")
    assert "priority" not in pool.re_query(last)
    assert run("prioritize", "night", last, "--", "-3").returncode == 0
    assert pool.re_query(last)["priority"] == -3


def test_removing_shows_first_what_would_go(run: Run, pool: TaskManager) -> None:
    one = failed(pool, {"x": 1})
    pool.create_task([{"x": 2}])
    dry = run("remove", "night", "--status", "failed", "--dry-run")
    assert one in dry.stdout
    assert "1 tasks would be removed" in dry.stderr
    (task,) = json_of(run("remove", "night", "--status", "failed", "--dry-run", "--json"))
    assert task["_id"] == one
    assert pool.task_stat() == {"waiting": 1, "failed": 1}
    assert json_of(run("remove", "night", "--status", "failed", "--json")) == {"removed": 1}
    assert pool.task_stat() == {"waiting": 1}
    assert run("remove", "night", "--all").stdout == "1 tasks removed.\n"
    assert pool.task_stat() == {}


# --- waiting, checking -----------------------------------------------------------------------


def test_waiting_ends_with_0_when_all_are_done(run: Run, pool: TaskManager) -> None:
    done(pool, {"x": 1})
    assert json_of(run("wait", "night", "--json")) == {"done": 1}


def test_waiting_ends_with_1_when_tasks_have_failed_and_names_one(
    run: Run, pool: TaskManager
) -> None:
    failed(pool, {"x": 1})
    ended = run("wait", "night", "--json")
    assert ended.returncode == 1
    assert json.loads(ended.stdout) == {"failed": 1}
    assert "ValueError: no prices" in ended.stderr
    assert json_of(run("wait", "night", "--json", "--on-failure", "ignore")) == {"failed": 1}


def test_waiting_ends_with_124_when_the_time_is_over(run: Run, pool: TaskManager) -> None:
    pool.create_task([{"x": 1}])
    ended = run("wait", "night", "--timeout", "0")
    assert ended.returncode == 124
    assert "not done within 0 s: 1 waiting" in ended.stderr


def test_waiting_for_some_does_not_mind_the_others(run: Run, pool: TaskManager) -> None:
    identity = done(pool, {"x": 1})
    pool.create_task([{"x": 2}])
    assert run("wait", "night", json.dumps({"_id": identity})).returncode == 0


def test_the_check_of_a_sound_pool_finds_nothing(run: Run, pool: TaskManager) -> None:
    failed(pool, {"x": 1})
    done(pool, {"x": 2})
    assert json_of(run("check", "night", "--json")) == []
    assert "0 repaired, 0 wrong" in run("check", "night", "--repair").stdout


# --- as a program ----------------------------------------------------------------------------


def test_tables_are_made_by_a_program_without_warnings(pool: TaskManager, tmp_path: Path) -> None:
    failed(pool, {"x": 1})
    for words in ("list", "stat night", "query night", "wait night --timeout 1m"):
        ended = subprocess.run(
            [sys.executable, "-W", "error", "-m", "qwf", "tasks", *words.split()],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": ROOT},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert ended.returncode == (words.startswith("wait")), ended.stderr
        assert "failed" in ended.stdout
