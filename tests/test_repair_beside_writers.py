"""`check --repair` beside living writers: it takes nothing away that somebody is about to need."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwf.storage import fsio, layout, lock
from qwf.storage.documents import encode_document
from qwf.testing.crash import crash_points
from qwf.tracking import check_recorder
from qwf.tracking.artifacts import ArtifactArea
from qwf.tracking.check import Finding, check_store
from qwf.tracking.manager import ExpManager
from qwf.tracking.recorder import Recorder


@pytest.fixture
def run(tmp_path: Path) -> Recorder:
    return new_run(tmp_path / "store")


def new_run(root: Path) -> Recorder:
    return ExpManager(root).get_exp(experiment_name="e").create_recorder().start_run()


def root_of(run: Recorder) -> Path:
    return Path(run.uri)


def directory(run: Recorder) -> Path:
    return Path(run.get_local_dir())


def problems(root: Path, **options: Any) -> list[str]:
    return [finding.problem for finding in check_store(root, **options)]


def during(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, act: Callable[[], object],
           when: Callable[..., bool] = lambda *_: True) -> None:  # fmt: skip
    """Have somebody act just before the first call of a function."""
    real = getattr(owner, name)
    done = []

    def acting(*args: Any, **options: Any) -> Any:
        if not done and when(*args):
            done.append(1)
            act()
        return real(*args, **options)

    monkeypatch.setattr(owner, name, acting)


def edited(run: Recorder, **fields: Any) -> None:
    """Change fields of the record as a release that knows more would."""
    path = directory(run) / layout.RECORDER_FILE
    path.write_bytes(encode_document({**json.loads(path.read_bytes()), **fields}))


# --- a writer acts while the check is at it --------------------------------------------------


def test_an_artifact_saved_while_the_check_looks_is_not_set_aside(
    run: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.log_metrics(a=1)
    during(monkeypatch, check_recorder, "read_journal", lambda: run.save_objects(model=[1, 2]))
    assert check_store(root_of(run), repair=True, older_than_seconds=0) == []
    assert run.load_object("model") == [1, 2]


def test_an_artifact_whose_entry_comes_while_it_is_set_aside_stays(
    run: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save_objects(other=1)
    real, seen = ArtifactArea._commit, []

    def commit(self: ArtifactArea, *args: Any) -> bool:
        if not seen:  # its file is in place, its entry is not committed yet
            seen.extend(check_store(root_of(run), repair=False, older_than_seconds=0))
            seen.extend(check_store(root_of(run), repair=True, older_than_seconds=3600))
        return real(self, *args)

    monkeypatch.setattr(ArtifactArea, "_commit", commit)
    run.save_objects(model=[1, 2])
    assert "no entry of the recorder names it" in {finding.problem for finding in seen}
    assert not any(finding.repaired for finding in seen)
    assert run.load_object("model") == [1, 2]


def test_an_entry_that_comes_between_the_look_and_the_move_keeps_its_file(
    run: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save_objects(model=[1, 2])
    form = json.loads((directory(run) / layout.RECORDER_FILE).read_bytes())["artifacts"]
    edited(run, artifacts={})
    during(monkeypatch, lock, "hold", lambda: edited(run, artifacts=form),
           when=lambda path, *_: path.name == f".{layout.ARTIFACTS}.lock")  # fmt: skip
    (finding,) = check_store(root_of(run), repair=True, older_than_seconds=0)
    assert finding.action == "it has got an entry meanwhile"
    assert run.load_object("model") == [1, 2]


def test_an_overwrite_that_goes_on_is_not_settled(
    run: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save_objects(x="old")
    found: list[Finding] = []
    during(
        monkeypatch,
        fsio,
        "replace_with",
        lambda: found.extend(check_store(root_of(run), repair=True)),
        when=lambda _, path: path.name == "x",
    )
    run.save_objects(x="new")
    assert found == []
    assert run.load_object("x") == "new"


def test_an_overwrite_that_is_settled_before_its_writer_looks_is_done_by_neither_by_half(
    run: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "LOCK_SECONDS", 0.0)
    run.save_objects(x="old")
    during(monkeypatch, ArtifactArea, "_overwrite",
           lambda: check_store(root_of(run), repair=True))  # fmt: skip
    run.save_objects(x="new")
    assert run.load_object("x") == "new"
    assert problems(root_of(run), older_than_seconds=0) == []


def test_an_artifact_that_is_overwritten_while_the_check_measures_is_not_damaged(
    run: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save_objects(x="old")
    during(monkeypatch, check_recorder, "measure_file", lambda: run.save_objects(x="new!"))
    assert problems(root_of(run)) == []
    run.save_objects(x="old")
    during(
        monkeypatch, check_recorder.RecorderCheck, "_artifact", lambda: run.save_objects(x="new!")
    )
    assert problems(root_of(run)) == []


@pytest.mark.parametrize("step", ["_as_written", "_journals", "_artifacts", "_artifact"])
def test_a_recorder_that_is_deleted_meanwhile_is_no_finding(
    step: str, run: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save_objects(x=1)
    new_run(root_of(run)).save_objects(x=1)

    def is_in_run(checked: check_recorder.RecorderCheck, *_: object, **__: object) -> bool:
        return checked._directory == directory(run)

    during(
        monkeypatch,
        check_recorder.RecorderCheck,
        step,
        lambda: shutil.rmtree(directory(run)),
        is_in_run,
    )
    assert problems(root_of(run), repair=True, older_than_seconds=0) == []
    assert not directory(run).exists()


# --- what is repaired ------------------------------------------------------------------------


def test_an_artifact_that_is_overwritten_after_it_was_measured_is_not_damaged(
    run: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save_objects(x="old")
    real, done = check_recorder.measure_file, []

    def measure(path: Path) -> Any:
        found = real(path)
        if not done:
            done.append(1)
            run.save_objects(x="new!")
        return found

    monkeypatch.setattr(check_recorder, "measure_file", measure)
    assert problems(root_of(run)) == []
    assert done


def test_a_recorder_of_a_newer_release_is_told_and_left(run: Recorder) -> None:
    edited(run, version=99)
    before = (directory(run) / layout.RECORDER_FILE).read_bytes()
    (finding,) = check_store(root_of(run), repair=True, older_than_seconds=0)
    assert finding.action == "upgrade qwf"
    assert not finding.repaired
    assert (directory(run) / layout.RECORDER_FILE).read_bytes() == before


def test_a_torn_journal_keeps_its_values_wherever_its_repair_is_killed(
    run: Recorder, tmp_path: Path
) -> None:
    run.log_metrics(a=1)
    run.log_metrics(a=2)
    run.end_run("FINISHED")
    (journal,) = directory(run).glob("metrics.*")
    journal.write_bytes(journal.read_bytes() + b"torn")

    def repair(root: Path) -> None:
        check_store(root, repair=True, older_than_seconds=0)

    for point in crash_points(root_of(run), repair, tmp_path):
        experiment = ExpManager(point.directory).get_exp(experiment_name="e")
        (found,) = experiment.list_recorders("list")
        assert found.metric_history()["value"].tolist() == [1, 2], point
        repair(point.directory)
        assert problems(point.directory, older_than_seconds=0) == [], point
        kept = [path.read_bytes() for path in (point.directory / "quarantine").iterdir()]
        assert any(data.endswith(b"torn") for data in kept), point


def test_the_journal_of_a_run_that_goes_on_may_end_in_the_middle_of_a_line(run: Recorder) -> None:
    run.log_metrics(a=1)
    (journal,) = directory(run).glob("metrics.*")
    journal.write_bytes(journal.read_bytes() + b"torn")
    assert problems(root_of(run), older_than_seconds=0) == []


def test_a_file_with_a_long_name_in_any_script_is_set_aside(run: Recorder) -> None:
    run.save_objects(x=1)
    (Path(run.get_artifact_uri()) / ("预测结果" * 20)).write_bytes(b"precious")
    assert len(problems(root_of(run), repair=True, older_than_seconds=0)) == 1
    (kept,) = (root_of(run) / layout.QUARANTINE).iterdir()
    assert kept.read_bytes() == b"precious"
    assert problems(root_of(run), older_than_seconds=0) == []


def test_a_record_with_an_impossible_name_of_an_artifact_is_told(run: Recorder) -> None:
    edited(run, artifacts={"../x": {"kind": "json", "size": 1, "sha256": "0"}})
    (finding,) = check_store(root_of(run), repair=True)
    assert "'../x' cannot be the name of an artifact" in finding.problem
    assert finding.action == "correct the name"


# --- how old is it ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["store", "artifacts"])
def test_a_claim_and_an_announcement_are_found_before_the_next_write_settles_them(
    tmp_path: Path, name: str
) -> None:
    run = new_run(tmp_path / name / "s")
    run.save_objects(x="old")
    form = json.loads((directory(run) / layout.RECORDER_FILE).read_bytes())["artifacts"]["x"]
    announced = {**form, "sha256": "0" * 64, "replaces": {**form, "since": time.time() - 7200}}
    edited(run, artifacts={"x": announced})
    revision = json.loads((directory(run) / layout.RECORDER_FILE).read_bytes())["revision"]
    claim = directory(run) / f"{layout.RECORDER_FILE}.{revision + 1}"
    shutil.copy(directory(run) / layout.RECORDER_FILE, claim)
    expected = {"it was being overwritten", "an unfinished write left it"}
    assert set(problems(root_of(run), older_than_seconds=0)) == expected
    assert problems(root_of(run)) == ["it was being overwritten"], "the claim is young"
    check_store(root_of(run), repair=True, older_than_seconds=0)
    assert problems(root_of(run), older_than_seconds=0) == []
    assert run.load_object("x") == "old"


def test_a_young_announcement_is_no_finding(run: Recorder) -> None:
    run.save_objects(x="old")
    form = json.loads((directory(run) / layout.RECORDER_FILE).read_bytes())["artifacts"]["x"]
    announced = {**form, "sha256": "0" * 64, "replaces": {**form, "since": time.time() - 10}}
    edited(run, artifacts={"x": announced})
    assert problems(root_of(run), repair=True) == []


@pytest.mark.parametrize("hours", [-2, 2])
def test_age_is_told_by_the_clock_of_the_file_server(
    run: Recorder, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    living = directory(run) / ".tmp-other-host-1-2"
    living.write_bytes(b"half")
    here = time.time
    monkeypatch.setattr(time, "time", lambda: here() + 3600 * hours)
    assert problems(root_of(run), repair=True) == []
    assert living.exists()
    assert not lock.is_abandoned(living)


def test_an_artifact_whose_name_looks_like_a_claim_is_the_users(run: Recorder) -> None:
    run.save_objects(**{"report.json.12": [1]})
    assert problems(root_of(run), repair=True, older_than_seconds=0) == []
    assert run.load_object("report.json.12") == [1]
