"""The check of a store finds what is wrong, and repairing loses nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qwf.tracking.check import Finding, check_store
from qwf.tracking.manager import ExpManager


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
    (directory,) = (root / "experiments" / "e" / "recorders").iterdir()
    return directory


def check(root: Path, *, repair: bool = False) -> list[Finding]:
    return check_store(root, repair=repair, older_than_seconds=0)


def test_a_sound_store_has_no_findings(root: Path) -> None:
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
