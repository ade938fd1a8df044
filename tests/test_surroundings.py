"""What a recorder keeps of the surroundings in which it was started."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import FaultyOs

import qwf
from qwf import R
from qwf.errors import CorruptRecordError
from qwf.storage import fsio
from qwf.tracking import provenance
from qwf.tracking.check import check_store
from qwf.tracking.recorder import Recorder
from qwf.tracking.store import Store
from qwf.tracking.surroundings import Surroundings

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")

TOLD_ALWAYS = {"argv", "cwd", "host", "user"}

BEGIN = """
import os, sys, time
import qwf
from qwf import R
from qwf.tracking.surroundings import Surroundings
Surroundings.answer.__defaults__ = (30.0,)  # however slow this machine is
qwf.init(uri=sys.argv[1])
"""


def git(folder: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit of ``train.py``, whatever git is told on this machine."""
    (tmp_path / "gitconfig").write_text(
        "[user]\n name = A\n email = a@b\n[init]\n defaultBranch = main\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    folder = tmp_path / "study"
    folder.mkdir()
    git(folder, "init")
    (folder / "train.py").write_text("")
    git(folder, "add", ".")
    git(folder, "commit", "--message", "one")
    return folder


@pytest.fixture
def run_study(repository: Path, store: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run lines as the script of the repository, which is how it differs from its commit."""

    def run(lines: str, *, mode: str = "full", **more: str) -> subprocess.CompletedProcess[str]:
        (repository / "train.py").write_text(BEGIN + lines)
        result = subprocess.run(
            [sys.executable, "train.py", store],
            check=False,
            cwd=repository,
            capture_output=True,
            text=True,
            timeout=60,
            env={
                **os.environ,
                "PYTHONPATH": str(Path(qwf.__file__).parent.parent),
                "QWF_PROVENANCE": mode,
                **more,
            },
        )
        assert "Traceback" not in result.stderr, result.stderr
        return result

    return run


@pytest.fixture
def slow_git(tmp_path: Path) -> Callable[[float], dict[str, str]]:
    """``slow_git(seconds)`` is the PATH on which git takes so long to begin."""

    def make(seconds: float) -> dict[str, str]:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        program = folder / "git"
        program.write_text(f'#!/bin/sh\nsleep {seconds}\nexec {shutil.which("git")} "$@"\n')
        program.chmod(0o755)
        return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}

    return make


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch, repository: Path) -> Iterator[Path]:
    """This process runs in the repository and captures everything."""
    monkeypatch.setenv("QWF_PROVENANCE", "full")
    monkeypatch.setattr(Surroundings.answer, "__defaults__", (30.0,))
    monkeypatch.chdir(repository)
    provenance._recent.clear()
    yield repository
    provenance._recent.clear()


def only() -> Recorder:
    (recorder,) = R.list_recorders(experiment_name="e").values()
    return recorder


def kept(store: Path) -> list[Path]:
    return sorted((store / "provenance").iterdir())


# --- what is captured ----------------------------------------------------------------------------


def test_the_recorder_of_a_script_has_its_commit_branch_and_patch(
    run_study: Callable[..., Any], repository: Path
) -> None:
    (repository / "notes.txt").write_text("untracked")
    result = run_study("with R.start(experiment_name='e'): R.log_params(a=1)\n")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    told = only().provenance()
    assert set(told) == TOLD_ALWAYS | {
        "python",
        "implementation",
        "platform",
        "packages",
        "source",
    }
    assert (told["argv"][0], told["cwd"]) == ("train.py", str(repository))
    assert told["packages"]["pandas"] == sys.modules["pandas"].__version__
    assert told["python"] == sys.version.split()[0]
    source = told["source"]
    assert source["commit"] == git(repository, "rev-parse", "HEAD")
    assert (source["branch"], source["dirty"]) == ("main", True)
    assert "+with R.start(experiment_name='e')" in source["patch"]
    assert "notes.txt" in source["untracked"]
    assert "error" not in source


def test_a_clean_repository_is_told_to_be_clean(
    run_study: Callable[..., Any], repository: Path
) -> None:
    lines = "with R.start(experiment_name='e'): pass\n"
    (repository / "train.py").write_text(BEGIN + lines)
    git(repository, "commit", "--all", "--message", "two")
    run_study(lines)
    source = only().provenance()["source"]
    assert (source["dirty"], source["patch"]) == (False, "")
    assert source["commit"] == git(repository, "rev-parse", "HEAD")


def test_light_captures_packages_and_no_source(run_study: Callable[..., Any]) -> None:
    run_study("with R.start(experiment_name='e'): pass\n", mode="light")
    told = only().provenance()
    assert "packages" in told
    assert "source" not in told


def test_off_captures_nothing_more_than_who_and_where(
    run_study: Callable[..., Any], store: Path
) -> None:
    run_study("with R.start(experiment_name='e'): pass\n", mode="off")
    assert set(only().provenance()) == TOLD_ALWAYS
    (session,) = only().sessions()
    assert not {"environment", "source"} & set(session)
    assert {"host", "pid", "user", "argv", "cwd", "started_at", "ended_at"} <= set(session)
    assert not (store / "provenance").exists()


def test_the_setting_wins_over_what_was_before(run_study: Callable[..., Any], store: Path) -> None:
    run_study(
        "qwf.init(uri=sys.argv[1], provenance='off')\n"
        "with R.start(experiment_name='e'): pass\n"
        "qwf.init(uri=sys.argv[1], provenance='full')\n"
        "with R.start(experiment_name='e'): pass\n"
    )
    newest, first = R.list_recorders(experiment_name="e").values()
    assert set(first.provenance()) == TOLD_ALWAYS
    assert newest.provenance()["source"]["branch"] == "main"


def test_a_script_outside_a_repository_has_no_source(
    run_script: Callable[..., Any], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWF_PROVENANCE", "full")
    result = run_script(BEGIN + "with R.start(experiment_name='e'): pass\n", store)
    assert (result.stdout, result.stderr) == ("", "")
    told = only().provenance()
    assert "source" not in told
    assert "packages" in told


def test_no_variable_of_the_environment_and_no_address_is_kept(
    run_study: Callable[..., Any], repository: Path, store: Path
) -> None:
    git(repository, "remote", "add", "origin", "https://me:hunter2@example.com/x.git")
    run_study("with R.start(experiment_name='e'): pass\n", MY_TOKEN="t0psecret")
    everything = b"".join(path.read_bytes() for path in store.rglob("*") if path.is_file())
    assert b"hunter2" not in everything
    assert b"t0psecret" not in everything


# --- when git answers ----------------------------------------------------------------------------


def test_a_run_that_is_shorter_than_git_has_the_answer_all_the_same(
    run_study: Callable[..., Any], slow_git: Callable[..., dict[str, str]], repository: Path
) -> None:
    result = run_study("with R.start(experiment_name='e'): pass\n", **slow_git(0.1))
    assert (result.stdout, result.stderr) == ("", "")
    assert only().status == "FINISHED"
    source = only().provenance()["source"]
    assert source["commit"] == git(repository, "rev-parse", "HEAD")


def test_a_run_does_not_wait_for_ever_for_git(
    run_study: Callable[..., Any], slow_git: Callable[..., dict[str, str]]
) -> None:
    result = run_study(
        "Surroundings.answer.__defaults__ = (0.01,)\n"
        "with R.start(experiment_name='e'): pass\n"
        "print(R.list_recorders(experiment_name='e').popitem()[1].status)\n",
        **slow_git(30),
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "FINISHED\n", "")
    told = only().provenance()
    assert "source" not in told
    assert "packages" in told


def test_a_run_that_is_killed_after_git_has_answered_keeps_the_answer(
    run_study: Callable[..., Any],
    slow_git: Callable[..., dict[str, str]],
    repository: Path,
) -> None:
    result = run_study(
        "R.start_exp(experiment_name='e')\n"
        "recorder = R.get_recorder()\n"
        "print('source' in recorder.provenance())\n"
        "while 'source' not in recorder.provenance(): time.sleep(0.01)\n"
        "print(recorder.status, flush=True)\n"
        "os.kill(os.getpid(), 9)\n",
        **slow_git(0.1),
    )
    assert result.returncode == -signal.SIGKILL
    assert result.stdout.split() == ["False", "RUNNING"]
    assert only().status == "LOST"
    assert only().provenance()["source"]["commit"] == git(repository, "rev-parse", "HEAD")


def test_a_run_that_is_ended_by_sigterm_has_the_answer(
    run_study: Callable[..., Any], slow_git: Callable[..., dict[str, str]]
) -> None:
    result = run_study(
        "with R.start(experiment_name='e'):\n    os.kill(os.getpid(), 15)\n    time.sleep(60)\n",
        **slow_git(0.1),
    )
    assert result.returncode == 128 + signal.SIGTERM
    assert only().status == "FAILED"
    assert only().provenance()["source"]["branch"] == "main"


def test_what_git_says_late_does_not_show_an_ended_run_as_running(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, ended = threading.Event(), threading.Event()
    real = Store.update_recorder

    def update(self: Store, *args: Any) -> Any:
        document = real(self, *args)
        if threading.current_thread() is thread:
            written.set()
            assert ended.wait(30)
        return document

    monkeypatch.setattr(Store, "update_recorder", update)
    with R.start(experiment_name="e"):
        recorder = R.get_recorder()
        thread = threading.Thread(target=lambda: recorder._note_surroundings({"source": "x"}))
        thread.start()
        assert written.wait(30)
    ended.set()
    thread.join()
    assert recorder.status == "FINISHED"
    assert recorder.sessions()[0]["source"] == "x"


# --- one file for many runs ----------------------------------------------------------------------


def test_runs_in_the_same_surroundings_share_one_file_for_each_part(
    run_study: Callable[..., Any], store: Path
) -> None:
    run_study(
        "for _ in range(3):\n"
        "    with R.start(experiment_name='e'): pass\n"
        "    with R.start(experiment_name='other'): pass\n"
    )
    assert len(kept(store)) == 2
    before = {path: path.read_bytes() for path in kept(store)}
    shutil.rmtree(store / "experiments")
    run_study(
        "for _ in range(3):\n"
        "    with R.start(experiment_name='e'): pass\n"
        "    with R.start(experiment_name='other'): pass\n"
    )
    assert {path: path.read_bytes() for path in kept(store)} == before
    recorders = R.list_recorders(experiment_name="e").values()
    assert len({json.dumps(one.provenance(), sort_keys=True) for one in recorders}) == 1
    for path in kept(store):
        assert json.loads(path.read_text())["format"] == "qwf-provenance"
    assert check_store(store, older_than_seconds=0) == []


def test_a_resumed_run_tells_of_the_last_time(
    run_study: Callable[..., Any], repository: Path
) -> None:
    run_study("R.start_exp(experiment_name='e')\nR.end_exp('PAUSED')\n")
    first = only().provenance()["source"]
    git(repository, "commit", "--all", "--message", "two")
    run_study("with R.start(experiment_name='e', resume=True): pass\n")
    second = only().provenance()["source"]
    assert first["commit"] != second["commit"] == git(repository, "rev-parse", "HEAD")
    sessions = only().sessions()
    assert len({session["source"] for session in sessions}) == 2
    assert len({session["environment"] for session in sessions}) == 1


def test_a_moved_store_keeps_what_it_knows_of_surroundings(
    run_study: Callable[..., Any], store: Path
) -> None:
    run_study("with R.start(experiment_name='e'): pass\n")
    told = only().provenance()
    moved = store.with_name("moved")
    shutil.move(store, moved)
    with R.uri_context(moved):
        assert only().provenance() == told


# --- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["removed", "empty", "torn", "other"])
def test_a_damaged_file_of_provenance_breaks_only_the_question_for_it(
    full: Path, store: Path, damage: str
) -> None:
    with R.start(experiment_name="e"):
        R.save_objects(x=[1])
        recorder = R.get_recorder()
    assert recorder.provenance()["source"]["branch"] == "main"
    for path in kept(store):
        if damage == "removed":
            path.unlink()
        if damage == "empty":
            path.write_bytes(b"")
        if damage == "torn":
            path.write_bytes(path.read_bytes()[:-20])
        if damage == "other":
            path.write_text('{"format": "qwf-provenance", "version": 1, "revision": 1, "facts": 5}')
    found = R.list_recorders(experiment_name="e")[recorder.id]
    assert (found.status, found.load_object("x")) == ("FINISHED", [1])
    assert len(R.search_records("e")) == 1
    if damage == "removed":
        assert set(found.provenance()) == TOLD_ALWAYS
    else:
        with pytest.raises(CorruptRecordError, match="provenance"):
            found.provenance()
    with R.start(experiment_name="e"):  # and the next run starts and ends
        later = R.get_recorder()
    assert later.status == "FINISHED"


def test_a_full_disk_while_capturing_does_not_fail_the_run(
    full: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = []

    def full_disk(path: Any, flags: int, *mode: int) -> int:
        if flags & os.O_CREAT and "/provenance/" in str(path):
            refused.append(path)
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return os.open(path, flags, *mode)

    monkeypatch.setattr(fsio, "os", FaultyOs(open=full_disk))
    with R.start(experiment_name="e"):
        R.log_metrics(m=1.0)
        recorder = R.get_recorder()
    assert refused
    assert (recorder.status, recorder.list_metrics()) == ("FINISHED", {"m": 1.0})
    assert set(recorder.provenance()) == TOLD_ALWAYS
    monkeypatch.undo()
    assert check_store(store, older_than_seconds=0) == []


def test_a_directory_that_cannot_be_made_does_not_fail_the_run(full: Path, store: Path) -> None:
    R.get_exp(experiment_name="e")
    (store / "provenance").write_text("a file of somebody")
    with R.start(experiment_name="e"):
        recorder = R.get_recorder()
    assert recorder.status == "FINISHED"
    assert (store / "provenance").read_text() == "a file of somebody"


def test_a_package_whose_name_is_no_text_does_not_fail_the_run(
    full: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    os.mkdir(os.fsencode(folder) + b"/b\xff-1.0.dist-info")
    monkeypatch.syspath_prepend(str(folder))
    provenance._packages.cache_clear()
    try:
        with R.start(experiment_name="e"):
            recorder = R.get_recorder()
    finally:
        provenance._packages.cache_clear()
    assert recorder.status == "FINISHED"
    assert "source" in recorder.provenance()


def test_without_git_a_run_says_why_there_is_no_commit(
    run_study: Callable[..., Any], tmp_path: Path
) -> None:
    result = run_study(
        "with R.start(experiment_name='e'): pass\n", PATH=str(tmp_path / "nothing here")
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert only().provenance()["source"] == {"error": "git is not installed, or not on PATH."}


def test_a_run_that_is_deleted_before_git_answers_leaves_no_noise(
    run_study: Callable[..., Any], slow_git: Callable[..., dict[str, str]], store: Path
) -> None:
    result = run_study(
        "import shutil\n"
        "R.start_exp(experiment_name='e')\n"
        "shutil.rmtree(R.get_recorder().get_local_dir())\n"
        "deadline = time.monotonic() + 3\n"
        "while len(os.listdir(sys.argv[1] + '/provenance')) < 2 and time.monotonic() < deadline:\n"
        "    time.sleep(0.01)\n",
        **slow_git(0.05),
    )
    assert (result.stdout, result.stderr) == ("", "")


def test_a_forked_child_tells_of_its_own_run_only(
    run_study: Callable[..., Any], slow_git: Callable[..., dict[str, str]]
) -> None:
    result = run_study(
        "with R.start(experiment_name='e'):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        with R.start(experiment_name='child'): pass\n"
        "        os._exit(0)\n"
        "    print(os.waitpid(child, 0)[1])\n",
        **slow_git(0.1),
    )
    assert (result.stdout, result.stderr) == ("0\n", "")
    (child,) = R.list_recorders(experiment_name="child").values()
    for recorder in (only(), child):
        assert recorder.status == "FINISHED"
        assert recorder.provenance()["source"]["branch"] == "main"


def test_the_first_release_has_told_only_who_and_where(store: Path) -> None:
    shutil.copytree(Path(__file__).parent / "golden" / "first", store)
    (recorder,) = R.list_recorders(experiment_name="second").values()
    told = recorder.provenance()
    assert set(told) == TOLD_ALWAYS
    assert told["argv"] == ["golden.py"]
