"""What a run captures of its surroundings: packages, and the repository of the user's code."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import qwf
from qwf.tracking import provenance
from qwf.tracking.provenance import SourceCapture, environment, source_of_process

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")

ROOT = Path(qwf.__file__).parent.parent


@pytest.fixture(autouse=True)
def _no_capture_of_another_test() -> Iterator[None]:
    provenance._recent.clear()
    yield
    provenance._recent.clear()
    assert not [capture for capture in provenance._running if capture._thread.is_alive()]


@pytest.fixture(autouse=True)
def _plain_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the configuration of the machine nor a repository above matters to git."""
    (tmp_path / "gitconfig").write_text(
        "[user]\n name = A\n email = a@b\n[init]\n defaultBranch = main\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


def git(folder: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def new_repository(folder: Path, **files: str) -> Path:
    """Make a repository with one commit; ``train_py="..."`` becomes ``train.py``."""
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init")
    for name, text in {"train_py": "lr = 1\n", **files}.items():
        (folder / name.replace("_", ".")).write_text(text)
    git(folder, "add", ".")
    git(folder, "commit", "--message", "one")
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return new_repository(tmp_path / "study")


def facts_of(*places: Path) -> dict[str, Any]:
    capture = SourceCapture.begin(places)
    assert capture is not None
    facts = capture.result(None)
    assert facts is not None
    return facts


@pytest.fixture
def script_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``script_at(path, cwd=...)`` makes this process look like one that runs this script."""

    def pretend(path: Path | None, *, cwd: Path) -> None:
        main = SimpleNamespace() if path is None else SimpleNamespace(__file__=str(path))
        cwd.mkdir(parents=True, exist_ok=True)
        monkeypatch.setitem(sys.modules, "__main__", main)
        monkeypatch.chdir(cwd)

    return pretend


def commit_of_process() -> str | None:
    capture = source_of_process()
    facts = capture and capture.result(None)
    return facts and facts["commit"]


# --- what is said of a repository ------------------------------------------------------------


@needs_git
def test_a_clean_repository_has_its_commit_and_branch_and_nothing_more(repository: Path) -> None:
    assert facts_of(repository) == {
        "commit": git(repository, "rev-parse", "HEAD"),
        "branch": "main",
        "dirty": False,
        "patch": "",
        "patch_truncated": False,
        "untracked": [],
        "untracked_truncated": False,
    }


@needs_git
def test_the_patch_makes_the_files_of_the_run_from_the_commit(
    repository: Path, tmp_path: Path
) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(repository), str(clone))
    (repository / "train.py").write_text("lr = 2\n名 = 'ß'\r\n")
    (repository / "因子 a.py").write_text("x = 1\n")
    git(repository, "add", "因子 a.py")
    (repository / "因子 a.py").write_text("x = 2\n")  # staged, and changed again

    facts = facts_of(repository)
    assert facts["dirty"] is True
    assert "因子 a.py" in facts["patch"]
    (tmp_path / "patch").write_bytes(facts["patch"].encode())
    git(clone, "apply", str(tmp_path / "patch"))
    for name in ("train.py", "因子 a.py"):
        assert (clone / name).read_bytes() == (repository / name).read_bytes()


@needs_git
def test_a_binary_file_is_named_without_its_content(repository: Path) -> None:
    (repository / "model.bin").write_bytes(bytes(range(256)))
    git(repository, "add", ".")
    patch = facts_of(repository)["patch"]
    assert "model.bin" in patch
    assert len(patch) < 300


@needs_git
def test_what_is_not_utf_8_is_replaced(repository: Path) -> None:
    (repository / "train.py").write_bytes(b"name = '\xe9'\n")
    facts = facts_of(repository)
    assert "+name = '\ufffd'\n" in facts["patch"]
    json.dumps(facts).encode("utf-8")


@needs_git
def test_the_settings_of_the_user_do_not_change_the_patch(repository: Path) -> None:
    (repository / "train.py").write_text("lr = 2\n")
    expected = facts_of(repository)["patch"]
    assert "--- a/train.py\n+++ b/train.py\n" in expected
    marker = repository.parent / "a program was run"
    for name, value in {
        "color.ui": "always",
        "diff.noprefix": "true",
        "diff.mnemonicPrefix": "true",
        "diff.external": f"touch '{marker}'; false",
        "diff.py.textconv": f"touch '{marker}'; false",
        "core.fsmonitor": f"touch '{marker}'; false",
        "core.pager": f"touch '{marker}'; false",
    }.items():
        git(repository, "config", name, value)
    (repository / ".git" / "info" / "attributes").write_text("*.py diff=py\n")
    assert facts_of(repository)["patch"] == expected
    assert not marker.exists()


@needs_git
def test_a_file_that_was_only_touched_is_no_change_and_the_index_is_not_written(
    repository: Path,
) -> None:
    os.utime(repository / "train.py", (1, 1))
    before = (repository / ".git" / "index").read_bytes()
    facts = facts_of(repository)
    assert (facts["dirty"], facts["patch"]) == (False, "")
    assert (repository / ".git" / "index").read_bytes() == before


@needs_git
def test_capturing_goes_on_while_somebody_else_holds_the_lock_of_the_index(
    repository: Path,
) -> None:
    (repository / ".git" / "index.lock").touch()
    (repository / "train.py").write_text("lr = 2\n")
    facts = facts_of(repository)
    assert "+lr = 2\n" in facts["patch"]
    assert "error" not in facts


@needs_git
def test_untracked_files_make_it_dirty_and_are_named_without_their_content(
    repository: Path,
) -> None:
    (repository / ".gitignore").write_text("*.log\n")
    git(repository, "add", ".")
    git(repository, "commit", "--message", "two")
    (repository / "a.log").write_text("ignored")
    assert facts_of(repository)["dirty"] is False
    (repository / "因子 new.py").write_text("password = 'hunter2'\n")
    (repository / "sub" / "deep").mkdir(parents=True)
    (repository / "sub" / "deep" / "x.py").touch()
    facts = facts_of(repository)
    assert facts["dirty"] is True
    assert sorted(facts["untracked"]) == ["sub/", "因子 new.py"]
    assert "hunter2" not in json.dumps(facts)


@needs_git
def test_what_a_run_itself_leaves_does_not_make_the_next_one_dirty(repository: Path) -> None:
    qwf.ExpManager(str(repository / "qwf_store"), "e").create_exp("e")
    assert (repository / "qwf_store" / "qwf.json").exists()
    for name in ("__pycache__", ".ipynb_checkpoints"):
        (repository / name).mkdir()
        (repository / name / "train.cpython-311.pyc").touch()
    facts = facts_of(repository)
    assert (facts["untracked"], facts["dirty"]) == ([], False)


@needs_git
def test_at_most_a_hundred_untracked_names_are_kept(repository: Path) -> None:
    for number in range(100):
        (repository / f"{number:03}.py").touch()
    facts = facts_of(repository)
    assert (len(facts["untracked"]), facts["untracked_truncated"]) == (100, False)
    (repository / "100.py").touch()
    facts = facts_of(repository)
    assert (len(facts["untracked"]), facts["untracked_truncated"]) == (100, True)


@needs_git
def test_a_huge_patch_is_cut_after_a_whole_line(repository: Path) -> None:
    line = "x = 'as long as a line of code may be'\n"
    (repository / "train.py").write_text(line * 1_000_000)
    facts = facts_of(repository)
    assert facts["patch_truncated"] is True
    assert "error" not in facts
    size = len(facts["patch"].encode())
    assert 2**20 - 100 < size <= 2**20
    assert facts["patch"].endswith("+" + line)


@needs_git
def test_a_detached_head_has_no_branch(repository: Path) -> None:
    git(repository, "checkout", "--quiet", "--detach")
    facts = facts_of(repository)
    assert (facts["commit"], facts["branch"]) == (git(repository, "rev-parse", "HEAD"), None)


@needs_git
def test_a_branch_keeps_its_whole_name(repository: Path) -> None:
    git(repository, "tag", "feature/因子")  # a tag of the same name does not matter
    git(repository, "checkout", "--quiet", "-b", "feature/因子")
    assert facts_of(repository)["branch"] == "feature/因子"


@needs_git
def test_a_repository_without_commits_has_none_and_a_patch_of_what_is_staged(
    tmp_path: Path,
) -> None:
    git(tmp_path, "init", "new")
    assert facts_of(tmp_path / "new")["dirty"] is False
    (tmp_path / "new" / "a.py").write_text("x = 1\n")
    git(tmp_path / "new", "add", ".")
    facts = facts_of(tmp_path / "new")
    assert (facts["commit"], facts["branch"], facts["dirty"]) == (None, "main", True)
    assert "+x = 1\n" in facts["patch"]


@needs_git
def test_a_worktree_is_told_apart_from_the_repository_it_belongs_to(
    repository: Path, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    git(repository, "worktree", "add", "-b", "other", str(tree))
    (tree / "train.py").write_text("lr = 2\n")
    git(tree, "commit", "--all", "--message", "two")
    (repository / "train.py").write_text("not in the worktree\n")
    assert (tree / ".git").is_file()
    facts = facts_of(tree)
    assert (facts["branch"], facts["dirty"]) == ("other", False)
    assert facts["commit"] == git(tree, "rev-parse", "HEAD")


@needs_git
def test_a_submodule_is_a_repository_of_its_own_and_shows_in_the_one_around_it(
    repository: Path, tmp_path: Path
) -> None:
    library = new_repository(tmp_path / "library")
    git(
        repository, "-c", "protocol.file.allow=always", "submodule", "add", str(library), "lib"
    )  # fmt: skip
    git(repository, "commit", "--message", "with lib")
    inside = repository / "lib"
    assert (inside / ".git").is_file()
    assert facts_of(inside)["commit"] == git(library, "rev-parse", "HEAD")
    assert facts_of(repository)["dirty"] is False
    (inside / "train.py").write_text("lr = 3\n")
    assert "-dirty" in facts_of(repository)["patch"]


@needs_git
def test_no_path_of_the_machine_address_of_a_remote_or_variable_is_captured(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(repository, "remote", "add", "origin", "https://me:hunter2@example.com/x.git")
    monkeypatch.setenv("MY_API_TOKEN", "hunter2")
    (repository / "train.py").write_text("lr = 2\n")
    said = json.dumps([facts_of(repository), environment()])
    assert "hunter2" not in said
    assert "MY_API_TOKEN" not in said
    assert str(repository.parent) not in said


@needs_git
def test_a_hook_of_git_that_starts_a_study_does_not_show_its_own_repository(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = new_repository(tmp_path / "other", a_py="x = 1\n")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    facts = facts_of(repository)
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name)
    assert facts["commit"] == git(repository, "rev-parse", "HEAD")
    assert facts["dirty"] is False


# --- where the user's code is ----------------------------------------------------------------


@needs_git
def test_the_repository_of_the_script_comes_before_that_of_the_working_directory(
    repository: Path, tmp_path: Path, script_at: Callable[..., None]
) -> None:
    other = new_repository(tmp_path / "other", a_py="x = 1\n")
    (repository / "deep" / "er").mkdir(parents=True)
    script_at(repository / "deep" / "er" / "train.py", cwd=other)
    assert commit_of_process() == git(repository, "rev-parse", "HEAD")
    script_at(tmp_path / "train.py", cwd=other / "sub")
    assert commit_of_process() == git(other, "rev-parse", "HEAD")
    script_at(None, cwd=other)  # a prompt, or `python -c`
    assert commit_of_process() == git(other, "rev-parse", "HEAD")
    script_at(None, cwd=tmp_path)
    assert source_of_process() is None


@needs_git
def test_a_link_to_a_script_leads_to_the_repository_it_is_in(
    repository: Path, tmp_path: Path, script_at: Callable[..., None]
) -> None:
    (tmp_path / "train").symlink_to(repository / "train.py")
    script_at(tmp_path / "train", cwd=tmp_path)
    assert commit_of_process() == git(repository, "rev-parse", "HEAD")


@needs_git
@pytest.mark.parametrize(
    "script",
    [
        ".venv/bin/qwf",
        ".venv/lib/python3.11/site-packages/ipykernel_launcher.py",
        "usr/lib/python3/dist-packages/pytest/__main__.py",
    ],
)
def test_an_installed_program_is_not_the_users_code_whatever_repository_it_lies_in(
    repository: Path,
    tmp_path: Path,
    script_at: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    script: str,
) -> None:
    tools = new_repository(tmp_path / "tools", a_py="x = 1\n")
    monkeypatch.setattr(sys, "executable", str(tools / ".venv" / "bin" / "python"))
    script_at(tools / script, cwd=repository)
    assert commit_of_process() == git(repository, "rev-parse", "HEAD")
    script_at(tools / script, cwd=tools)  # the environment of the project itself
    assert commit_of_process() == git(tools, "rev-parse", "HEAD")
    script_at(tools / script, cwd=tmp_path)
    assert source_of_process() is None


@needs_git
def test_the_repository_of_qwf_is_captured_only_for_a_script_in_it(
    tmp_path: Path, script_at: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = new_repository(tmp_path / "qwf-clone")
    shutil.copytree(ROOT / "qwf", clone / "qwf", ignore=shutil.ignore_patterns("__pycache__"))
    module = clone / "qwf" / "tracking" / "provenance.py"
    monkeypatch.setattr(provenance, "__file__", str(module))
    script_at(clone / "qwf" / "__main__.py", cwd=tmp_path / "elsewhere")  # python -m qwf
    assert source_of_process() is None
    script_at(tmp_path / "elsewhere" / "train.py", cwd=tmp_path)
    assert source_of_process() is None
    script_at(clone / "examples" / "quickstart.py", cwd=tmp_path)
    assert commit_of_process() == git(clone, "rev-parse", "HEAD")


def test_outside_a_repository_no_process_and_no_thread_is_started(
    tmp_path: Path, script_at: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("something was started")

    monkeypatch.setattr(subprocess, "Popen", fail)
    monkeypatch.setattr(threading.Thread, "start", fail)
    (tmp_path / "a" / ".git").mkdir(parents=True)  # no repository, to git either: it has no HEAD
    script_at(tmp_path / "a" / "train.py", cwd=tmp_path)
    assert source_of_process() is None
    assert SourceCapture.begin([tmp_path / "not there", tmp_path]) is None
    assert SourceCapture.begin([]) is None


def test_a_working_directory_that_was_removed_is_in_no_repository(
    tmp_path: Path, script_at: Callable[..., None]
) -> None:
    script_at(None, cwd=tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert source_of_process() is None


# --- one answer for many runs ----------------------------------------------------------------


@needs_git
def test_runs_of_one_minute_share_an_answer_and_later_ones_get_a_new_one(
    repository: Path, script_at: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    script_at(None, cwd=repository)
    monkeypatch.setattr(provenance.time, "monotonic", lambda: now)
    first = source_of_process()
    assert first is not None
    assert first.result(None)["dirty"] is False  # type: ignore[index]
    (repository / "train.py").write_text("lr = 2\n")
    now += 60
    assert source_of_process() is first
    now += 1
    later = source_of_process()
    assert later is not None
    assert later.result(None)["dirty"] is True  # type: ignore[index]
    assert first.result(None)["dirty"] is False  # type: ignore[index]


@needs_git
def test_many_threads_begin_one_capture(repository: Path, script_at: Callable[..., None]) -> None:
    script_at(None, cwd=repository)
    begin = threading.Barrier(8)
    found = []

    def work() -> None:
        begin.wait()
        found.append(source_of_process())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert found[0].result(None)["commit"] == git(repository, "rev-parse", "HEAD")


@needs_git
def test_a_caller_that_changes_an_answer_does_not_change_it_for_others(repository: Path) -> None:
    capture = SourceCapture.begin([repository])
    assert capture is not None
    capture.result(None)["untracked"].append("mine")  # type: ignore[index, union-attr]
    assert capture.result(None)["untracked"] == []  # type: ignore[index]


# --- when git fails --------------------------------------------------------------------------


@pytest.fixture
def fake_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """``fake_git("exit 3")`` puts this shell script before the real git; returns its directory."""

    def install(body: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        program = folder / "git"
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return folder

    return install


def folder_with_mark(tmp_path: Path) -> Path:
    """Return a directory that looks like a repository from outside."""
    folder = tmp_path / "marked"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "HEAD").touch()
    return folder


class Lifeline:
    """Tells when the processes that a hanging git consists of are all gone."""

    def __init__(self, folder: Path) -> None:
        self.begun, self.alive = folder / "begun", folder / "alive"
        os.mkfifo(self.begun)
        os.mkfifo(self.alive)
        self._reader = os.open(self.alive, os.O_RDONLY | os.O_NONBLOCK)
        self.body = f"exec 9> '{self.alive}'; echo > '{self.begun}'; sleep 600 & sleep 600"

    def wait_until_gone(self) -> None:
        """Return when no process has the pipe open; a test that times out has found one."""
        os.set_blocking(self._reader, True)
        assert os.read(self._reader, 1) == b""
        os.close(self._reader)


def test_without_git_there_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    facts = facts_of(folder_with_mark(tmp_path))
    assert facts == {"error": "git is not installed, or not on PATH."}


def test_a_git_that_cannot_be_run_is_a_sentence(
    tmp_path: Path, fake_git: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (fake_git("") / "git").chmod(0o644)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    facts = facts_of(folder_with_mark(tmp_path))
    assert facts == {"error": "git cannot be started: Permission denied."}


def test_what_git_says_of_its_failure_is_kept_without_paths(
    tmp_path: Path, fake_git: Callable[[str], Path]
) -> None:
    fake_git(
        "echo \"fatal: detected dubious ownership in repository at '/home/me/a b'\" >&2; "
        'echo "To add an exception, call git config" >&2; exit 128'
    )
    assert facts_of(folder_with_mark(tmp_path)) == {
        "error": "git rev-parse failed with code 128: "
        "fatal: detected dubious ownership in repository at <path>"
    }


@needs_git
def test_what_git_said_before_it_failed_is_kept(
    repository: Path, fake_git: Callable[[str], Path]
) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    real = shutil.which("git")
    fake_git(f'case "$*" in *ls-files*) exit 7;; esac; exec \'{real}\' "$@"')
    facts = facts_of(repository)
    assert (facts["commit"], facts["branch"], facts["patch"]) == (commit, "main", "")
    assert facts["error"] == "git ls-files failed with code 7: it gave no reason."
    assert "dirty" not in facts


@needs_git
def test_a_damaged_repository_is_a_sentence_without_paths(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / ".git").write_text(f"gitdir: {tmp_path}/was removed/worktrees/x\n")
    error = facts_of(folder)["error"]
    assert error.startswith("git rev-parse failed with code 128: fatal: not a git repository")
    assert str(tmp_path) not in error


@needs_git
def test_a_damaged_repository_is_not_taken_for_the_one_around_it(repository: Path) -> None:
    facts = facts_of(folder_with_mark(repository))
    assert "not a git repository" in facts.pop("error")
    assert facts == {}


def test_a_git_that_hangs_is_killed_with_all_it_has_started(
    tmp_path: Path, fake_git: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "GIT_SECONDS", 0.3)
    line = Lifeline(tmp_path)
    fake_git(line.body)
    reader = os.open(line.begun, os.O_RDWR)  # so that the fake one does not wait for a reader
    facts = facts_of(folder_with_mark(tmp_path))
    os.close(reader)
    line.wait_until_gone()
    assert facts == {"error": "git rev-parse did not end within the 0.3 s that git has in all."}


def test_a_git_that_writes_without_end_is_not_read_to_its_end(
    tmp_path: Path, fake_git: Callable[[str], Path]
) -> None:
    fake_git('case "$*" in *" diff "*) exec yes;; *) echo x;; esac')
    facts = facts_of(folder_with_mark(tmp_path))
    assert facts["patch_truncated"] is True
    assert len(facts["patch"]) == 2**20


def test_a_git_that_complains_without_end_runs_out_of_time(
    tmp_path: Path, fake_git: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "GIT_SECONDS", 0.3)
    fake_git("exec yes >&2")
    assert "did not end within the 0.3 s" in facts_of(folder_with_mark(tmp_path))["error"]


def test_an_answer_that_is_not_there_yet_is_none(
    tmp_path: Path, fake_git: Callable[[str], Path]
) -> None:
    line = Lifeline(tmp_path)
    fake_git(line.body)
    capture = SourceCapture.begin([folder_with_mark(tmp_path)])
    assert capture is not None
    line.begun.read_text()  # returns when git runs
    assert capture.result(0) is None
    capture._abandon()
    line.wait_until_gone()
    assert "error" in (capture.result(0) or {})


def test_where_no_thread_can_be_started_there_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    assert facts_of(folder_with_mark(tmp_path)) == {
        "error": "git was not asked: can't start new thread."
    }


# --- quiet, to the end -----------------------------------------------------------------------

BEGIN = """
import os, sys
from pathlib import Path
from qwf.tracking.provenance import SourceCapture, environment, source_of_process
"""


def run_strictly(code: str, cwd: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program to which every warning is an error, in development mode."""
    path = cwd.parent / "program.py"
    path.write_text(BEGIN + code)
    # But for that of Python 3.12 at a fork while a thread runs, which some programs try.
    options = ("-X", "dev", "-W", "error", "-W", "ignore::DeprecationWarning")
    return subprocess.run(
        [sys.executable, *options, path, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@needs_git
@pytest.mark.parametrize(
    "end", ["", "capture.result(None)", "sys.exit(0)", "environment()", "os._exit(0)"]
)
def test_a_program_that_ends_at_once_says_nothing(repository: Path, end: str) -> None:
    code = f"capture = source_of_process(); assert capture\n{end}"
    for _ in range(3):
        result = run_strictly(code, repository)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@needs_git
def test_failures_say_nothing_either(repository: Path, fake_git: Callable[[str], Path]) -> None:
    fake_git("echo usage: git; echo warning: oops >&2; exit 129")
    result = run_strictly(
        "error = source_of_process().result(None)['error']\n"
        "assert error == 'git rev-parse failed with code 129: warning: oops', error",
        repository,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("begin()", id="end"),
        pytest.param("begin(); sys.exit(0)", id="exit"),
        pytest.param(
            "import multiprocessing\n"
            "child = multiprocessing.get_context('fork').Process(target=begin)\n"
            "child.start(); child.join(); sys.exit(child.exitcode)",
            id="worker",
        ),
    ],
)
def test_a_git_that_runs_when_its_process_ends_is_killed(
    tmp_path: Path, fake_git: Callable[[str], Path], program: str
) -> None:
    line = Lifeline(tmp_path)
    fake_git(line.body)
    result = run_strictly(
        "def begin():\n"
        "    assert source_of_process()\n"
        "    Path(sys.argv[1]).read_text()\n" + program,  # returns when git runs
        folder_with_mark(tmp_path),
        line.begun,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    line.wait_until_gone()


@needs_git
def test_nothing_is_left_of_the_processes_and_pipes(repository: Path) -> None:
    others = children()
    facts_of(repository)
    before = sorted(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else []
    facts_of(repository)
    after = sorted(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else []
    assert len(after) == len(before)
    assert children() == others


def children() -> set[str]:
    """Return the processes that this one has started and not reaped; others than git's may be."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if fields[1] == str(os.getpid()):
                found.add(stat.parent.name)
    return found


# --- forks -----------------------------------------------------------------------------------


@needs_git
def test_a_forked_child_has_the_answers_of_before_and_asks_anew(
    repository: Path, children: Any, script_at: Callable[..., None]
) -> None:
    script_at(None, cwd=repository)
    before = source_of_process()
    assert before is not None
    expected = before.result(None)
    (repository / "train.py").write_text("lr = 2\n")

    def work() -> None:
        assert before.result(None) == expected
        mine = source_of_process()
        assert mine is not None
        assert mine is not before
        facts = mine.result(None)
        assert facts is not None
        assert facts["dirty"] is True

    children.add(work)
    assert children.exit_codes() == [0]
    assert source_of_process() is before


def test_a_child_that_was_forked_meanwhile_waits_for_nobody_and_kills_nothing(
    tmp_path: Path, fake_git: Callable[[str], Path]
) -> None:
    line = Lifeline(tmp_path)
    fake_git(line.body)
    result = run_strictly(
        "capture = source_of_process()\n"
        "Path(sys.argv[1]).read_text()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    print(capture.result(None)['error'], flush=True)\n"
        "    sys.exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert capture.result(0) is None\n",
        folder_with_mark(tmp_path),
        line.begun,
    )
    assert result.stdout == "git had not answered when this process was forked.\n"
    assert (result.returncode, result.stderr) == (0, "")
    line.wait_until_gone()


@needs_git
def test_a_fork_waits_for_a_git_that_is_being_started(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the child would hold git's pipe open, and git would not seem to end before the child."""
    order: list[str] = []
    started = subprocess.Popen

    def fork() -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        order.append("forked")
        os.waitpid(pid, 0)

    forking = threading.Thread(target=fork)

    def start(*arguments: Any, **options: Any) -> Any:
        process = started(*arguments, **options)
        if not forking.ident:
            forking.start()
            forking.join(0.2)  # in vain
            order.append("started")
        return process

    monkeypatch.setattr(subprocess, "Popen", start)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        facts_of(repository)
        forking.join()
    assert order == ["started", "forked"]


# --- the environment -------------------------------------------------------------------------


@pytest.fixture
def sys_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """``sys.path``, to be changed; what was found on it is forgotten before and after."""
    changed: list[str] = []
    monkeypatch.setattr(sys, "path", changed)
    provenance._packages.cache_clear()
    yield changed
    provenance._packages.cache_clear()


def test_the_packages_are_those_that_importlib_finds() -> None:
    provenance._packages.cache_clear()
    known: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        known.setdefault(name, distribution.version)
    known["qwf"] = qwf.__version__
    assert environment()["packages"] == known


def test_the_python_is_that_which_runs() -> None:
    found = environment()
    code = "import platform as p; print(p.python_version(), p.python_implementation(), p.machine())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    version, implementation, machine = said.stdout.split()
    assert found["python"] == version
    assert found["implementation"] == implementation.lower()
    assert found["platform"] == f"{sys.platform}-{machine}"
    assert sys.executable not in json.dumps(found)


def test_every_form_in_which_a_package_may_be_installed_is_understood(
    tmp_path: Path, sys_path: list[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for name in (
        "Foo.Bar_baz-1.0rc1.dist-info",
        "torch-2.1.0+cu118.dist-info",
        "twice-2.dist-info",
        "old_style-0.3-py3.11.egg-info",
        "mine.egg-info",
        "bare.egg-info",
        "~umpy-1.2.dist-info",
        "numpy",
    ):
        (first / name).mkdir(parents=True)
    (first / "mine.egg-info" / "PKG-INFO").write_text(
        "Metadata-Version: 2.1\nName: mine\nVersion: 4.dev1\n\nVersion: in the README\n"
    )
    (second / "twice-1.dist-info").mkdir(parents=True)
    (second / "file-7-py3.11.egg-info").touch()
    (tmp_path / "archive.zip").touch()
    sys_path += [str(tmp_path / "missing"), str(first), str(tmp_path / "archive.zip"), str(second)]
    found = environment()["packages"]
    assert found == {
        "bare": None,
        "file": "7",
        "foo-bar-baz": "1.0rc1",
        "mine": "4.dev1",
        "old-style": "0.3",
        "qwf": qwf.__version__,
        "torch": "2.1.0+cu118",
        "twice": "2",
    }
    assert list(found) == sorted(found)


def test_equal_installations_give_equal_texts_whatever_the_order_of_directories(
    tmp_path: Path, sys_path: list[str]
) -> None:
    texts = set()
    for order in (["a", "b"], ["b", "a"]):
        folder = tmp_path / "".join(order)
        for name in order:
            (folder / f"{name}-1.dist-info").mkdir(parents=True)
        sys_path[:] = [str(folder)]
        provenance._packages.cache_clear()
        texts.add(json.dumps(environment()))
    assert len(texts) == 1


def test_the_packages_are_listed_once_and_a_caller_may_change_its_answer(
    tmp_path: Path, sys_path: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a-1.dist-info").mkdir()
    monkeypatch.chdir(tmp_path)
    sys_path.append("")  # the working directory, as at the prompt
    first = environment()
    (tmp_path / "b-1.dist-info").mkdir()
    first["packages"]["mine"] = "1"  # type: ignore[index, call-overload]
    assert environment()["packages"] == {"a": "1", "qwf": qwf.__version__}
