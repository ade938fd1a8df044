"""The check of a task pool finds what is wrong, disturbs nobody, and repairing loses nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwf.cli import main
from qwf.errors import PoolNotFoundError
from qwf.pool import check as checking
from qwf.storage.findings import Finding
from qwf.tasks.manage import TaskManager

DEFINITIONS = [{"model": name, "window": [1, 2]} for name in ("a", "b", "c", "d", "e")]


@pytest.fixture(autouse=True)
def _no_pause_between_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "_PAUSE_SECONDS", 0.0)


@pytest.fixture
def manager(tmp_path: Path) -> TaskManager:
    """A pool with a task of each status: a done, b failed, c done in part, d running, e waiting."""
    manager = TaskManager("p", uri=tmp_path / "store", max_attempts=1)
    manager.create_task(DEFINITIONS)
    manager.commit_task_res(manager.fetch_task(), {"ic": 1})
    manager.fail_task(manager.fetch_task(), "no luck")
    manager.commit_task_res(manager.fetch_task(), {"half": 1}, "part_done")
    assert manager.fetch_task()["def"]["model"] == "d"
    assert manager.task_stat() == dict.fromkeys(
        ("waiting", "running", "part_done", "done", "failed"), 1
    )
    return manager


def pool(manager: TaskManager) -> Path:
    return manager.directory.root


def token(manager: TaskManager, status: str) -> Path:
    (path,) = (pool(manager) / status).iterdir()
    return path


def task_of(name: str) -> str:
    """What the names of a task's results begin with."""
    return f"{name[26:50]}.{name[9:25]}"


def content(root: Path) -> dict[str, bytes]:
    found = {}
    for directory, _, names in os.walk(root):
        found[directory] = b""
        for name in names:
            path = Path(directory, name)
            found[str(path)] = path.read_bytes()
    return found


def repaired(manager: TaskManager) -> list[Finding]:
    """Repair, after showing that only looking changes nothing; it is clean then."""
    root = pool(manager).parent.parent
    before = content(root)
    seen = manager.check()
    assert content(root) == before
    assert seen
    assert not any(finding.repaired for finding in seen)
    findings = manager.check(repair=True)
    assert all(finding.repaired for finding in findings), findings
    assert manager.check() == []
    return findings


def test_a_sound_pool_has_no_findings_and_is_not_changed(manager: TaskManager) -> None:
    root = pool(manager).parent.parent
    before = content(root)
    assert manager.check() == []
    assert content(root) == before


def test_a_pool_that_does_not_exist_is_told(tmp_path: Path) -> None:
    with pytest.raises(PoolNotFoundError):
        TaskManager("none", uri=tmp_path / "store").check()
    assert not (tmp_path / "store").exists()


def test_a_lost_result_has_the_task_done_again(manager: TaskManager) -> None:
    done = token(manager, "done").name
    (pool(manager) / "res" / f"{task_of(done)}.{done[61:79]}").unlink()
    (finding,) = repaired(manager)
    assert "is missing" in finding.problem
    assert manager.task_stat({"filter.model": "a"}) == {"waiting": 1}


def test_a_damaged_result_is_set_aside_and_the_task_done_again(manager: TaskManager) -> None:
    done = token(manager, "done").name
    path = pool(manager) / "res" / f"{task_of(done)}.{done[61:79]}"
    path.write_bytes(path.read_bytes()[:40])
    repaired(manager)
    (kept,) = (pool(manager).parent.parent / "quarantine").iterdir()
    assert path.name in kept.name
    assert manager.task_stat({"filter.model": "a"}) == {"waiting": 1}


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b""])
def test_a_damaged_failure_is_set_aside_and_the_task_stays_failed(
    manager: TaskManager, damage: Callable[[bytes], bytes]
) -> None:
    (path,) = (pool(manager) / "failures").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    (finding,) = repaired(manager)
    assert finding.path == path.relative_to(pool(manager).parent.parent).as_posix()
    (kept,) = (pool(manager).parent.parent / "quarantine").iterdir()
    assert path.name in kept.name
    assert manager.task_stat({"filter.model": "b"}) == {"failed": 1}


def test_an_unfinished_failure_of_which_another_tells_is_no_finding(manager: TaskManager) -> None:
    (path,) = (pool(manager) / "failures").iterdir()
    unfinished = path.with_name(f"{path.name[:48]}.0123456789ab")
    unfinished.write_bytes(path.read_bytes()[:50])
    assert manager.check(repair=True) == []
    path.unlink()
    (finding,) = repaired(manager)
    assert unfinished.name in finding.path


def test_a_failure_that_an_attempt_is_just_writing_is_no_finding(manager: TaskManager) -> None:
    running = token(manager, "running").name
    name = f"{task_of(running)}.{running[51:57]}.{running[82:]}"
    (pool(manager) / "failures" / name).write_bytes(b'{"format": "qwf-task-fai')
    assert manager.check(repair=True) == []


@pytest.mark.parametrize(
    "damage", [lambda data: data[:30], lambda data: data.replace(b'"e"', b'"x"'), lambda data: b""]
)
def test_a_damaged_definition_is_set_aside_with_its_token(
    manager: TaskManager, damage: Callable[[bytes], bytes]
) -> None:
    path = token(manager, "waiting")
    path.write_bytes(damage(path.read_bytes()))
    repaired(manager)
    assert len(list((pool(manager).parent.parent / "quarantine").iterdir())) == 2
    assert "waiting" not in manager.task_stat()
    # Its id is free, so that it can be inserted again.
    manager.create_task(DEFINITIONS)
    assert TaskManager("p", uri=pool(manager).parent.parent).fetch_task()["def"] == DEFINITIONS[4]


def test_a_definition_without_token_is_waiting_again(manager: TaskManager) -> None:
    token(manager, "waiting").unlink()
    assert manager.task_stat({"filter.model": "e"}) == {}
    repaired(manager)
    assert manager.fetch_task({"filter.model": "e"})["def"] == DEFINITIONS[4]


def test_a_token_without_definition_gets_one(manager: TaskManager) -> None:
    name = token(manager, "waiting").name
    (pool(manager) / "def" / name[26:50]).unlink()
    repaired(manager)
    assert manager.create_task(DEFINITIONS) == [task["_id"] for task in manager.query()]
    assert sum(manager.task_stat().values()) == 5


def test_of_two_tokens_that_of_the_definition_stays(manager: TaskManager) -> None:
    sound = token(manager, "waiting")
    copy = pool(manager) / "done" / sound.name.replace(".000001.", ".00000a.")
    shutil.copy(sound, copy)
    repaired(manager)
    assert sound.exists()
    assert not copy.exists()


def test_of_two_names_of_one_token_the_later_stays(manager: TaskManager) -> None:
    old = token(manager, "waiting")
    late = pool(manager) / "failed" / old.name.replace(".000001.", ".00000a.")
    os.link(old, late)
    repaired(manager)
    assert not old.exists()
    assert late.exists()


def test_a_copy_of_a_pool_without_hard_links_is_mended(
    manager: TaskManager, tmp_path: Path
) -> None:
    shutil.copytree(pool(manager).parent.parent, tmp_path / "copy")
    copied = TaskManager("p", uri=tmp_path / "copy")
    findings = copied.check()
    assert len(findings) == 5
    copied.reset_waiting(force=True)
    repaired(copied)
    assert copied.remove() == 5
    assert sorted(path.parent.name for path in pool(copied).rglob("*") if path.is_file()) == sorted(
        ["p", "p", "p", "workers", "workers"]
    )


@pytest.mark.parametrize("part", ["definition", "token"])
@pytest.mark.parametrize(("status", "model"), [("waiting", "e"), ("done", "a"), ("failed", "b")])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:30],
        lambda data: data.replace(b'"window"', b'"edited"'),
        lambda data: b"",
    ],
)
def test_in_a_copy_without_hard_links_the_sound_one_of_two_files_is_kept(
    manager: TaskManager,
    tmp_path: Path,
    part: str,
    status: str,
    model: str,
    damage: Callable[[bytes], bytes],
) -> None:
    before = list(manager.query({"filter.model": model}))
    shutil.copytree(pool(manager).parent.parent, tmp_path / "copy")
    copied = TaskManager("p", uri=tmp_path / "copy")
    copied.reset_waiting(force=True)  # the running one
    place = token(manager, status).name
    definition = pool(copied) / "def" / place[26:50]
    bad = definition if part == "definition" else pool(copied) / status / place
    damaged = damage(bad.read_bytes())
    bad.write_bytes(damaged)

    repaired(copied)

    (kept,) = (tmp_path / "copy" / "quarantine").iterdir()
    assert kept.read_bytes() == damaged
    assert list(copied.query({"filter.model": model})) == before
    (found,) = [one for one in (pool(copied) / status).iterdir() if place[26:50] in one.name]
    assert found.name[:51] == place[:51]
    assert found.samefile(definition)
    assert found.stat().st_nlink == 2
    assert sum(copied.task_stat().values()) == 5


def test_of_two_files_neither_is_kept_if_both_are_damaged(
    manager: TaskManager, tmp_path: Path
) -> None:
    shutil.copytree(pool(manager).parent.parent, tmp_path / "copy")
    copied = TaskManager("p", uri=tmp_path / "copy")
    copied.reset_waiting(force=True)
    path = token(copied, "done")
    for one in (path, pool(copied) / "def" / path.name[26:50]):
        one.write_bytes(b"{")
    repaired(copied)
    assert copied.task_stat({"filter.model": "a"}) == {}
    quarantine = (tmp_path / "copy" / "quarantine").iterdir()
    assert len([one for one in quarantine if one.read_bytes() == b"{"]) == 2


def test_a_crash_between_a_new_token_and_setting_the_damaged_one_aside_is_mended(
    manager: TaskManager, tmp_path: Path
) -> None:
    shutil.copytree(pool(manager).parent.parent, tmp_path / "copy")
    copied = TaskManager("p", uri=tmp_path / "copy")
    copied.reset_waiting(force=True)
    path = token(copied, "done")
    path.write_bytes(b"{")
    epoch = f"{int(path.name[51:57], 16) + 1:06x}"
    os.link(
        pool(copied) / "def" / path.name[26:50],
        path.with_name(f"{path.name[:51]}{epoch}{path.name[57:]}"),
    )
    repaired(copied)
    (task,) = copied.query({"filter.model": "a"})
    assert (task["status"], task["res"]) == ("done", {"ic": 1})


def test_names_that_tell_the_wrong_thing_about_owners_are_mended(manager: TaskManager) -> None:
    waiting, running = token(manager, "waiting"), token(manager, "running")
    waiting.rename(f"{waiting}.w.0123456789ab")
    running.rename(running.with_name(running.name[:79]))
    repaired(manager)
    assert manager.task_stat({"filter.model": {"$in": ["d", "e"]}}) == {"waiting": 2}


def test_done_without_result_is_done_again(manager: TaskManager) -> None:
    waiting = token(manager, "waiting")
    waiting.rename(pool(manager) / "done" / waiting.name)
    repaired(manager)
    assert manager.task_stat({"filter.model": "e"}) == {"waiting": 1}


def test_what_belongs_to_no_task_is_set_aside(manager: TaskManager) -> None:
    (result,) = [path for path in (pool(manager) / "res").iterdir() if "half" in path.read_text()]
    shutil.copy(result, result.with_name(result.name[:-18] + "0000aa0123456789ab"))
    gone = f"{'0' * 24}.{'1' * 16}"
    shutil.copy(result, result.with_name(f"{gone}.0000aa0123456789ab"))
    (failure,) = (pool(manager) / "failures").iterdir()
    shutil.copy(failure, failure.with_name(f"{gone}.000001.0123456789ab"))
    assert len(repaired(manager)) == 3
    assert len(list((pool(manager).parent.parent / "quarantine").iterdir())) == 3
    assert manager.re_query(manager.create_task(DEFINITIONS)[2])["res"] == {"half": 1}


def test_settings_and_directories_that_are_missing_are_made(manager: TaskManager) -> None:
    (pool(manager) / "pool.json").write_bytes(b"{")
    shutil.rmtree(pool(manager) / "trash")
    assert len(repaired(manager)) == 2
    assert sum(manager.task_stat().values()) == 5


def test_a_result_that_an_attempt_is_just_writing_is_no_finding(manager: TaskManager) -> None:
    running = token(manager, "running").name
    name = f"{task_of(running)}.{running[51:57]}{running[82:]}"
    (pool(manager) / "res" / name).write_bytes(b'{"format": "qwf-task-res')
    assert manager.check(repair=True) == []


def test_foreign_entries_are_told_and_left_alone(manager: TaskManager) -> None:
    for place in ("", "waiting", "def", "res", "tmp", "workers"):
        (pool(manager) / place / "notes.txt").write_text("mine")
        (pool(manager) / place / ".nfs0000123").write_text("silly")
    findings = manager.check(repair=True)
    assert [finding.foreign for finding in findings] == [True] * 6
    assert manager.task_stat() == dict.fromkeys(
        ("waiting", "running", "part_done", "done", "failed"), 1
    )


def test_a_file_among_the_pools_is_no_pool_and_is_foreign(
    manager: TaskManager, capsys: pytest.CaptureFixture[str]
) -> None:
    store = pool(manager).parent.parent
    for name in ("notes", ".DS_Store"):
        (pool(manager).parent / name).touch()
    assert TaskManager.list(uri=store) == ["p"]
    assert main(["tasks", "list", "--uri", str(store)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["pool", "p"]
    (finding,) = [one for one in checking.check_pools(store, repair=True) if "notes" in one.path]
    assert finding.foreign
    assert not TaskManager("notes", uri=store).directory.exists()
    assert main(["check", "--uri", str(store)]) == 0
    said = capsys.readouterr().out
    assert "tasks/notes" in said
    assert "0 wrong" in said
    assert (pool(manager).parent / "notes").read_bytes() == b""


def test_a_pool_of_a_newer_release_is_left_alone(manager: TaskManager) -> None:
    path = pool(manager) / "pool.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 999'))
    before = content(pool(manager))
    (finding,) = TaskManager("p", uri=pool(manager).parent.parent).check(repair=True)
    assert "newer" in finding.problem
    assert content(pool(manager)) == before


def test_the_check_of_the_store_includes_its_pools(
    manager: TaskManager, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(pool(manager).parent.parent)
    assert main(["check", root]) == 0
    token(manager, "waiting").unlink()
    assert main(["check", root, "--json"]) == 1
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert [one["path"].split("/")[:3] for one in found] == [["tasks", "p", "def"]]
    assert main(["check", root, "--repair"]) == 0
    assert main(["check", root]) == 0
    assert manager.task_stat()["waiting"] == 1
