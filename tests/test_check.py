"""The check of a store finds what is wrong, and repairing loses nothing."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import qwf
from qwf.tasks.manage import TaskManager
from qwf.tracking import catalog
from qwf.tracking.check import Finding, check_store
from qwf.tracking.manager import ExpManager
from qwf.tracking.table import FAMILIES


@pytest.fixture
def root(tmp_path: Path) -> Path:
    store = tmp_path / "store"
    run = ExpManager(store).get_exp(experiment_name="e").create_recorder().start_run()
    run.log_metrics(loss=1.0)
    run.log_metrics(loss=0.5)
    run.save_objects(model={1, 2}, plain=[1])
    run.end_run("FINISHED")
    return store


def recorder_directory(root: Path) -> Path:
    return min((root / "experiments" / "e" / "recorders").iterdir())


def check(root: Path, *, repair: bool = False) -> list[Finding]:
    return check_store(root, repair=repair, older_than_seconds=0)


def test_a_sound_store_has_no_findings(root: Path) -> None:
    assert check(root) == []


def test_a_task_pool_belongs_into_a_store(root: Path) -> None:
    TaskManager("pool", uri=root).create_task([{"model": "a"}])
    assert check(root) == []


def test_a_directory_without_a_store_is_told(tmp_path: Path) -> None:
    assert [finding.problem for finding in check(tmp_path)] == ["there is no store here"]


def test_what_unfinished_writes_left_is_removed_when_it_is_old(root: Path) -> None:
    leftover = recorder_directory(root) / ".tmp-host-1-2-3"
    leftover.write_bytes(b"half")
    assert check_store(root, older_than_seconds=3600) == []
    assert [finding.path.endswith(leftover.name) for finding in check(root)] == [True]
    assert leftover.exists(), "looking changes nothing"
    assert check(root, repair=True)[0].repaired
    assert not leftover.exists()
    assert check(root) == []


def test_a_file_that_no_entry_names_is_set_aside_not_deleted(root: Path) -> None:
    stray = recorder_directory(root) / "artifacts" / "stray.bin"
    stray.write_bytes(b"precious")
    (finding,) = check(root, repair=True)
    assert finding.problem == "no entry of the recorder names it"
    assert check(root) == []
    (kept,) = (root / "quarantine").iterdir()
    assert kept.read_bytes() == b"precious"


def test_a_damaged_recorder_is_set_aside_whole(root: Path) -> None:
    (recorder_directory(root) / "recorder.json").write_bytes(b"{")
    (finding,) = check(root, repair=True)
    assert "not whole JSON" in finding.problem
    assert finding.repaired
    assert check(root) == []
    (kept,) = (root / "quarantine").iterdir()
    assert (kept / "artifacts" / "model").exists()


def test_a_damaged_or_missing_artifact_is_told_and_left(root: Path) -> None:
    artifacts = recorder_directory(root) / "artifacts"
    (artifacts / "model").write_bytes(b"other")
    (artifacts / "plain").unlink()
    problems = sorted(finding.problem for finding in check(root, repair=True))
    assert problems[0].startswith("damaged: 5 bytes")
    assert problems[1] == "the file of this artifact is missing"
    assert (artifacts / "model").read_bytes() == b"other"


def test_a_damaged_journal_is_told(root: Path) -> None:
    (journal,) = recorder_directory(root).glob("metrics.*")
    journal.write_bytes(journal.read_bytes().replace(b"1.0", b"9.9"))
    (finding,) = check(root)
    assert "checksum" in finding.problem


def test_foreign_entries_are_told_and_left_alone(
    root: Path, snapshot: Callable[[Path], dict[str, bytes]]
) -> None:
    for place in (root, root / "experiments", recorder_directory(root).parent):
        (place / ".ipynb_checkpoints").mkdir()
        (place / ".DS_Store").touch()
        (place / "stray").mkdir()
        (place / ".nfs000001").touch()
    before = snapshot(root)
    findings = check(root, repair=True)
    assert snapshot(root) == before
    assert all(finding.foreign and not finding.repaired for finding in findings)
    assert sorted(finding.path for finding in findings) == [
        "experiments/e/recorders/stray",
        "experiments/stray",
        "stray",
    ]


# --- what is derived, deleted, shared, or left by the dead --------------------------------------


@pytest.fixture
def full(root: Path, settings_restored: None) -> Path:
    """A store with an index, marks, a trash, what runs have captured, and children."""
    qwf.init(uri=root, provenance="light")
    experiment = ExpManager(root).get_exp(experiment_name="e")
    for number in range(20):
        run = experiment.create_recorder(f"r{number}").start_run()
        run.log_params(number=number)
        run.log_metrics(loss=number / 7)
        run.end_run("FINISHED")
    parent = experiment.create_recorder("parent").start_run()
    child = experiment.create_recorder("child", parent_id=parent.id).start_run()
    child.end_run("FINISHED")
    parent.end_run("FAILED")
    experiment.list_recorders()
    assert list((root / "index" / "e").glob("columns.*"))
    experiment.get_recorder(recorder_name="r3").set_tags(note="x")
    experiment.delete_recorder(recorder_name="parent")
    experiment.delete_recorder(recorder_name="r4")
    ExpManager(root).create_exp("gone").create_recorder().start_run().end_run("FINISHED")
    ExpManager(root).delete_exp(experiment_name="gone")
    return root


def shown(root: Path) -> list[str]:
    """Return all that a fresh process would show of the recorders, deleted ones too."""
    catalog._catalogs.clear()
    table = ExpManager(root).search(run_view_type=3)
    columns = [(family, key) for family in FAMILIES for key in table.keys(family)]
    rows = zip(*(table.column(*column) for column in columns), strict=True)
    return sorted(repr(list(zip(columns, row, strict=True))) for row in rows)


def test_a_sound_store_with_all_there_can_be_has_no_findings(full: Path) -> None:
    assert check(full) == []


def test_a_damaged_index_is_set_aside_and_not_missed(full: Path) -> None:
    before = shown(full)
    (columns,) = (full / "index" / "e").glob("columns.*")
    data = bytearray(columns.read_bytes())
    data[len(data) // 2] ^= 0x20
    columns.write_bytes(bytes(data))
    (finding,) = check(full)
    assert finding.path == "index/e"
    assert "derived" in finding.problem
    assert shown(full) == before
    assert check(full, repair=True)[0].repaired
    assert check(full) == []
    assert shown(full) == before


def test_an_index_that_is_older_than_a_file_replaced_by_hand_is_told(full: Path) -> None:
    experiment = ExpManager(full).get_exp(experiment_name="e")
    run = experiment.get_recorder(recorder_name="r7")
    copy = Path(run.get_local_dir(), "recorder.json").read_bytes()
    run.set_tags(note="newer")
    newer = Path(run.get_local_dir(), "recorder.json").read_bytes()
    Path(run.get_local_dir(), "recorder.json").write_bytes(copy)
    for mark in (full / "experiments" / "e" / "changes").glob(f"{run.id}@*"):
        mark.unlink()
    assert check(full) == []
    Path(run.get_local_dir(), "recorder.json").write_bytes(newer)  # as rsync would
    (finding,) = check(full, repair=True)
    assert (finding.path, finding.repaired) == ("index/e", True)
    assert run.id in finding.problem
    catalog._catalogs.clear()
    assert experiment.list_recorders("list", filter_string="tags.note = 'newer'") == [run]


def test_the_index_of_an_experiment_that_is_gone_is_set_aside(full: Path) -> None:
    shutil.rmtree(full / "experiments" / "e")
    (finding,) = check(full, repair=True)
    assert (finding.path, finding.repaired) == ("index/e", True)
    assert check(full) == []


def test_what_is_damaged_in_the_trash_is_set_aside(full: Path) -> None:
    entry = next(one for one in (full / "trash").iterdir() if (one / "recorder.json").exists())
    (entry / "recorder.json").write_bytes(b"{")
    (finding,) = check(full, repair=True)
    assert (finding.path, finding.repaired) == (f"trash/{entry.name}", True)
    assert check(full) == []


def test_damage_in_what_runs_have_captured_is_told_and_set_aside(full: Path) -> None:
    (captured,) = (full / "provenance").iterdir()
    captured.write_bytes(captured.read_bytes().replace(b'"qwf"', b'"qwg"'))
    (finding,) = check(full, repair=True)
    assert finding.path == f"provenance/{captured.name}"
    assert "checksum" in finding.problem
    assert check(full) == []
    run = ExpManager(full).get_exp(experiment_name="e").get_recorder(recorder_name="r1")
    assert "packages" not in run.provenance()


def test_a_lost_run_is_told_and_ended(
    root: Path, run_script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    source = """
        import os, sys
        from qwf.tracking.manager import ExpManager
        run = ExpManager(sys.argv[1]).get_exp(experiment_name="e").create_recorder("lost")
        run.start_run().log_metrics(loss=0.25)
        print(run.id, os.getpid(), flush=True)
        os._exit(9)
    """
    identity, pid = run_script(source, root).stdout.split()
    (finding,) = check(root)
    assert f"its process {pid} " in finding.problem
    assert finding.action == "--repair ends it FAILED"
    assert check(root, repair=True)[0].repaired
    assert check(root) == []
    run = ExpManager(root).find_recorder(identity)
    assert (run.status, run.list_metrics()) == ("FAILED", {"loss": 0.25})


def test_repairing_removes_nothing(full: Path) -> None:
    (full / "experiments" / "e" / ".tmp-host-1-2-3").write_bytes(b"half")
    directory = recorder_directory(full)
    (directory / "recorder.json.99").write_bytes(b"a claim")
    (directory / "artifacts" / "stray").parent.mkdir(exist_ok=True)
    (directory / "artifacts" / "stray").write_bytes(b"precious")
    before = contents(full)
    assert all(finding.repaired for finding in check(full, repair=True))
    assert check(full) == []
    assert before <= contents(full)


def contents(root: Path) -> set[bytes]:
    return {path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_any_changed_byte_of_any_file_of_a_full_store_is_told_or_harmless(
    full: Path, tmp_path: Path
) -> None:
    before = shown(full)
    sound = shutil.copytree(full, tmp_path / "sound", copy_function=shutil.move)
    chosen = {path.name.partition(".")[0]: path for path in sorted(sound.rglob("*"))
              if path.is_file() and path.stat().st_size}  # fmt: skip
    paths = {*chosen.values(), *(sound / "index").rglob("*.*"), *(sound / "trash").rglob("*.json")}
    for path in sorted(paths):
        data = path.read_bytes()
        for position in range(0, len(data), max(1, len(data) // 10)):
            # Listing may write the index anew, so each time begins with all as it was.
            shutil.rmtree(full, ignore_errors=True)
            shutil.copytree(sound, full)
            changed = bytearray(data)
            changed[position] ^= 0x20
            (full / path.relative_to(sound)).write_bytes(bytes(changed))
            where = f"{path.relative_to(sound)}, byte {position}"
            told = check(full)
            assert shown(full) == before or told, where  # a listing never fails


def test_deleting_the_index_changes_nothing_that_is_shown(full: Path) -> None:
    before = shown(full)
    shutil.rmtree(full / "index")
    assert shown(full) == before
    assert check(full) == []


def values(root: Path) -> object:
    (recorder,) = ExpManager(root).get_exp(experiment_name="e", create=False).list_recorders("list")
    artifacts = [recorder.load_object(name) for name in ("model", "plain")]
    history = recorder.metric_history().to_dict("list")
    return recorder.info, recorder.list_params(), recorder.list_metrics(), history, artifacts


def test_any_changed_byte_of_any_file_is_told_or_harmless(root: Path) -> None:
    before = values(root)
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        data = path.read_bytes()
        for position in range(0, len(data), max(1, len(data) // 60)):
            changed = bytearray(data)
            changed[position] ^= 0x20
            path.write_bytes(bytes(changed))
            where = f"{path.name}, byte {position}"
            for experiment in ExpManager(root).list_experiments().values():
                experiment.list_recorders()  # a listing never fails
            if not check(root):
                assert values(root) == before, where
        path.write_bytes(data)
    assert check(root) == []


def test_a_directory_in_the_place_of_any_file_is_told_and_the_rest_is_checked(full: Path) -> None:
    stray = min((full / "experiments" / "e" / "recorders").iterdir()) / "artifacts" / "zzz"
    paths = [path for path in sorted(full.rglob("*")) if path.is_file() and path.stat().st_size]
    chosen = {path.name.partition(".")[0]: path for path in paths}
    stray.write_bytes(b"nobody knows it")
    for path in chosen.values():
        if not path.exists():
            continue
        data = path.read_bytes()
        path.unlink()
        path.mkdir()
        told = {finding.path for finding in check(full)}
        assert stray.relative_to(full).as_posix() in told or path in stray.parents, path
        # Of what is deleted only the records are looked at.
        assert len(told) > 1 or "trash" in path.parts, path
        shown(full)
        path.rmdir()
        path.write_bytes(data)


def test_an_experiment_that_has_lost_its_file_gets_it_back(full: Path) -> None:
    (full / "experiments" / "e" / "experiment.json").unlink()
    assert list(ExpManager(full).list_experiments()) == []
    (finding,) = check(full, repair=True)
    assert (finding.problem, finding.repaired) == ("it is missing", True)
    assert list(ExpManager(full).list_experiments()) == ["e"]
    assert check(full) == []


def test_what_is_left_of_a_recorder_without_its_file_is_set_aside(root: Path) -> None:
    directory = recorder_directory(root)
    (directory / "recorder.json").unlink()
    (finding,) = check(root, repair=True)
    assert finding.repaired
    assert "beside what a run has saved" in finding.problem
    (kept,) = (root / "quarantine").iterdir()
    assert (kept / "artifacts" / "model").exists()
