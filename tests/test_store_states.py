"""Stores as they are met in life: with foreign entries, damaged, moved, read-only, full."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas  # noqa: F401 - a process without rights may be unable to load it
import pytest
from conftest import Children, FaultyOs

import qwf
from qwf import R
from qwf.errors import (
    CorruptRecordError,
    FormatVersionError,
    NotAStoreError,
    WriteError,
    WriteRefusedError,
)
from qwf.tracking.check import check_store
from qwf.tracking.recorder import Recorder

NOBODY = 65534

Snapshot = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def recorder(store: Path) -> Recorder:
    """A finished run with one of everything, in the experiment ``e``."""
    with R.start(experiment_name="e"):
        R.log_params(p=1)
        R.set_tags(t=2)
        R.log_metrics(m=3)
        R.save_objects(x=[4], **{"deep/y": {5}})
        return R.get_recorder()


def assert_complete(recorder: Recorder) -> None:
    assert recorder.status == "FINISHED"
    assert recorder.list_params()["p"] == "1"
    assert recorder.list_tags() == {"t": "2"}
    assert recorder.list_metrics() == {"m": 3.0}
    assert recorder.load_object("x") == [4]
    assert recorder.load_object("deep/y") == {5}


# --- foreign entries -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        ".ipynb_checkpoints",
        ".DS_Store",
        ".nfs000000000123",
        "Untitled Folder",
        "notes.txt",
        "~lock",
    ],
)
@pytest.mark.parametrize("kind", ["file", "directory", "broken link"])
def test_foreign_entries_are_passed_over_everywhere(
    store: Path, recorder: Recorder, name: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    directory = Path(recorder.get_local_dir())
    for parent in (
        store,
        store / "experiments",
        directory.parent.parent,
        directory.parent,
        directory,
        directory / "artifacts",
    ):
        path = parent / name
        if kind == "file":
            path.write_bytes(b"\0")
        elif kind == "directory":
            path.mkdir()
            (path / "inside").write_text("x")
        else:
            path.symlink_to("nowhere")
    assert list(R.list_experiments()) == ["e"]
    assert list(R.list_recorders(experiment_name="e")) == [recorder.id]
    assert recorder.list_artifacts() == ["deep", "x"]
    assert_complete(R.get_recorder(experiment_name="e"))
    with R.start(experiment_name="e"):
        pass
    assert len(R.list_recorders(experiment_name="e")) == 2
    assert caplog.records == []


def test_ids_that_point_elsewhere_find_nothing(store: Path, recorder: Recorder) -> None:
    elsewhere = ["", ".", "..", "../e", "/", str(store), f"../../e/recorders/{recorder.id}"]
    for identity in (*elsewhere, "a\0b", "x" * 300, "\ud800"):
        with pytest.raises(ValueError, match="no experiment with id"):
            R.get_exp(experiment_id=identity, create=False)
        with pytest.raises(ValueError, match="no recorder with id"):
            R.get_recorder(experiment_name="e", recorder_id=identity)


@pytest.mark.parametrize("inside", [None, ".recorder.json.lock", "notes.txt"])
def test_a_directory_that_is_there_already_can_become_an_experiment(
    store: Path, inside: str | None
) -> None:
    directory = store / "experiments" / "e"
    directory.mkdir(parents=True)
    if inside:
        (directory / inside).write_text("x")
    assert R.list_experiments() == {}
    with R.start(experiment_name="e"):
        R.log_params(a=1)
    assert len(R.list_recorders(experiment_name="e")) == 1
    assert inside is None or (directory / inside).read_text() == "x"


@pytest.mark.parametrize(
    "name",
    ["..", ".", "a/b", "../../x", "/abs", ".hidden", "沪深300", "x" * 5000, " ", "a\nb", "é"],
)
def test_an_experiment_may_have_any_name(store: Path, tmp_path: Path, name: str) -> None:
    with R.start(experiment_name=name) as experiment:
        R.save_objects(x=1)
        identity = experiment.id
    assert list(R.list_experiments()) == [name]
    assert R.get_exp(experiment_id=identity, create=False).name == name
    assert R.get_recorder(experiment_name=name).load_object("x") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert len(list((store / "experiments").iterdir())) == 1


# --- damage ----------------------------------------------------------------------------------

DAMAGES = {
    "empty": lambda data: b"",
    "torn": lambda data: data[: len(data) // 2],
    "zeros": lambda data: b"\0" * len(data),
    "a list": lambda data: b"[]",
    "another kind": lambda data: data.replace(b"qwf-", b"xyz-"),
    "no name": lambda data: data.replace(b'"name"', b'"nmae"'),
    "not utf-8": lambda data: data.replace(b'"name"', b'"n\xffme"'),
    "no revision": lambda data: data.replace(b'"revision": 1', b'"revision": "one"').replace(
        b'"revision"', b'"rev"'
    ),
}


@pytest.mark.parametrize("damage", list(DAMAGES.values()), ids=list(DAMAGES))
def test_a_damaged_recorder_is_listed_as_broken_with_one_warning(
    store: Path,
    recorder: Recorder,
    damage: Callable[[bytes], bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with R.start(experiment_name="e"):
        whole = R.get_recorder()
    file = Path(recorder.get_local_dir(), "recorder.json")
    file.write_bytes(damage(file.read_bytes()))
    damaged = file.read_bytes()
    for _ in range(3):
        listed = R.list_recorders(experiment_name="e")
        assert list(listed) == [whole.id, recorder.id]
        assert [one.status for one in listed.values()] == ["FINISHED", "BROKEN"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert str(file) in caplog.text
    assert list(R.get_exp(experiment_name="e").list_recorders(status="FINISHED")) == [whole.id]
    for read in (listed[recorder.id].list_params, listed[recorder.id].list_metrics):
        with pytest.raises(CorruptRecordError, match=r"recorder.json is damaged"):
            read()
    with pytest.raises(CorruptRecordError):
        R.get_recorder(experiment_name="e", recorder_id=recorder.id)
    with pytest.raises(CorruptRecordError):
        listed[recorder.id].set_tags(a=1)
    assert file.read_bytes() == damaged
    assert R.get_recorder(experiment_name="e").id == whole.id
    R.get_exp(experiment_name="e").delete_recorder(whole.id)


def test_a_damaged_experiment_file_is_reported_once_and_its_runs_are_still_there(
    store: Path, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    R.get_exp(experiment_name="whole")
    file = store / "experiments" / "e" / "experiment.json"
    file.write_text("{")
    for _ in range(3):
        assert list(R.list_experiments()) == ["whole", "e"]
    (record,) = caplog.records
    assert str(file) in record.getMessage()
    assert_complete(R.get_recorder(experiment_name="e"))
    with R.start(experiment_name="e"):
        pass
    assert file.read_text() == "{"
    findings = check_store(store, repair=True)
    assert [finding.repaired for finding in findings] == [True]
    assert check_store(store) == []
    assert list(R.list_experiments()) == ["e", "whole"]


def test_a_damaged_store_file_is_reported_and_harmless(
    store: Path, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    (store / "qwf.json").write_text("")
    qwf.init(uri=store)
    assert list(R.list_experiments()) == ["e"]
    assert_complete(R.get_recorder(experiment_name="e"))
    with R.start(experiment_name="e"):
        R.log_params(a=1)
    (record,) = caplog.records
    assert "qwf.json is damaged: it is empty" in record.getMessage()


def test_a_store_file_that_is_lost_is_made_anew_by_the_next_run(
    store: Path, recorder: Recorder
) -> None:
    (store / "qwf.json").unlink()
    qwf.init(uri=store)
    with R.start(experiment_name="other"):
        pass
    assert list(R.list_experiments()) == ["other", "e"]
    assert_complete(R.get_recorder(experiment_name="e"))


def newer(path: Path) -> None:
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "version": document["version"] + 1}))


def test_a_newer_store_is_neither_read_nor_written(
    store: Path, recorder: Recorder, snapshot: Snapshot
) -> None:
    newer(store / "qwf.json")
    qwf.init(uri=store)
    before = snapshot(store)
    for call in (R.list_experiments, R.start_exp, R.list_recorders, lambda: R.save_objects(a=1)):
        with pytest.raises(FormatVersionError, match=r"version 2.*reads versions 1 to 1.*Upgrade"):
            call()
    assert snapshot(store) == before


def test_a_newer_experiment_is_left_out_of_lists_and_refused_by_name(
    store: Path, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    newer(store / "experiments" / "e" / "experiment.json")
    assert R.list_experiments() == {}
    assert "Upgrade qwf" in caplog.text
    with pytest.raises(FormatVersionError):
        R.start_exp(experiment_name="e")


def test_a_newer_recorder_is_listed_as_broken_and_not_changed(
    store: Path, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    file = Path(recorder.get_local_dir(), "recorder.json")
    newer(file)
    before = file.read_bytes()
    (listed,) = R.list_recorders(experiment_name="e").values()
    assert listed.status == "BROKEN"
    assert "Upgrade qwf" in caplog.text
    for call in (
        lambda: R.get_recorder(experiment_name="e", recorder_id=recorder.id),
        lambda: recorder.set_tags(a=1),
        lambda: recorder.save_objects(a=1),
        recorder.list_metrics,
    ):
        with pytest.raises(FormatVersionError):
            call()
    assert file.read_bytes() == before


# --- places ----------------------------------------------------------------------------------


def test_a_store_that_is_a_file_is_refused(settings_restored: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    qwf.init(uri=tmp_path / "file")
    with pytest.raises(NotAStoreError, match="file and not a directory"):
        R.list_experiments()
    qwf.init(uri=tmp_path / "file" / "below")
    with pytest.raises(NotAStoreError, match="file and not a directory"):
        R.start_exp()
    assert (tmp_path / "file").read_text() == "x"


def test_a_moved_store_is_complete(store: Path, recorder: Recorder, tmp_path: Path) -> None:
    moved = tmp_path / "else" / "where"
    moved.parent.mkdir()
    shutil.move(store, moved)
    qwf.init(uri=moved)
    found = R.get_recorder(experiment_name="e")
    assert_complete(found)
    with R.start(experiment_name="e", resume=True):
        R.log_params(later=1)
    assert str(store).encode() not in Path(found.get_local_dir(), "recorder.json").read_bytes()
    assert not store.exists()


def test_a_copied_store_is_another_store(store: Path, recorder: Recorder, tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(store, copied)
    with R.uri_context(copied):
        found = R.get_recorder(experiment_name="e")
        assert_complete(found)
        found.set_tags(where="copy")
        R.get_exp(experiment_name="e").delete_recorder(found.id)
    assert_complete(recorder)


def test_a_copied_recorder_is_a_recorder(store: Path, recorder: Recorder) -> None:
    directory = Path(recorder.get_local_dir())
    shutil.copytree(directory, directory.with_name("the copy"))
    listed = R.list_recorders(experiment_name="e")
    assert set(listed) == {recorder.id, "the copy"}
    assert_complete(listed["the copy"])
    listed["the copy"].set_tags(t="changed")
    assert_complete(recorder)


def test_a_relative_store_stays_where_it_was_at_init(
    settings_restored: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    qwf.init(uri="here")
    monkeypatch.chdir(tmp_path / "elsewhere")
    with R.start(experiment_name="e"):
        monkeypatch.chdir(tmp_path)
        R.save_objects(x=1)
        recorder = R.get_recorder()
    assert R.get_uri() == "here"
    assert recorder.uri == str(tmp_path / "here")
    assert recorder.load_object("x") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "here"]
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("form", ["file:{}", "file://{}", "{}", "{}/", "{}/../store"])
def test_one_store_may_be_written_in_several_ways(
    store: Path, recorder: Recorder, form: str
) -> None:
    qwf.init(uri=form.format(store))
    assert list(R.list_recorders(experiment_name="e")) == [recorder.id]


def test_reading_creates_nothing(store: Path) -> None:
    assert R.list_experiments() == {}
    assert R.list_recorders() == {}
    for read in (R.get_recorder, lambda: R.load_object("x"), lambda: R.delete_exp("x")):
        with pytest.raises(ValueError):  # noqa: PT011 - the messages are tested elsewhere
            read()
    assert not store.exists()


# --- read-only -------------------------------------------------------------------------------


def as_nobody(store: Path, call: Callable[[], None], children: Children) -> None:
    """Run in a process that may only read the store."""
    for path in (store, *store.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    for parent in store.parents:  # pytest's directories are closed to others
        if parent.stat().st_uid == os.getuid() and len(parent.parts) > 2:
            parent.chmod(parent.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)

    def run() -> None:
        if os.getuid() == 0:  # root may write whatever the permissions are
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        call()

    children.add(run)
    try:
        codes = children.exit_codes()
    finally:
        for path in (store, *store.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert codes == [0]


def test_a_read_only_store_can_be_read(
    store: Path, recorder: Recorder, children: Children, snapshot: Snapshot
) -> None:
    def read() -> None:
        qwf.init(uri=store)
        assert list(R.list_experiments()) == ["e"]
        found = R.get_recorder(experiment_name="e", recorder_id=recorder.id)
        assert_complete(found)
        assert Path(found.download_artifact("x")).is_file()
        assert len(found.metric_history()) == 1

    before = snapshot(store)
    as_nobody(store, read, children)
    assert snapshot(store) == before


def test_writing_a_read_only_store_is_refused_and_changes_nothing(
    store: Path, recorder: Recorder, children: Children, snapshot: Snapshot
) -> None:
    def write() -> None:
        qwf.init(uri=store)
        found = R.get_recorder(experiment_name="e", recorder_id=recorder.id)
        for call in (
            lambda: R.start_exp(experiment_name="e"),
            lambda: R.start_exp(experiment_name="new"),
            lambda: R.start_exp(experiment_name="e", recorder_id=recorder.id, resume=True),
            lambda: R.save_objects(x=1),
            lambda: R.log_params(a=1),
            lambda: R.delete_exp(experiment_name="e"),
            lambda: R.get_exp(experiment_name="e").delete_recorder(recorder.id),
            lambda: found.log_params(a=1),
            lambda: found.set_tags(a=1),
            lambda: found.delete_tags("t"),
            lambda: found.log_metrics(m=1),
            lambda: found.save_objects(x=1),
            lambda: found.save_objects(new=1),
            lambda: found.log_artifact(__file__),
            found.start_run,
            lambda: found.end_run("FINISHED"),
        ):
            with pytest.raises(WriteRefusedError, match=r"Permission denied.*can be read"):
                call()
            assert R.exp_manager.active_experiment is None
        assert_complete(found)

    before = snapshot(store)
    as_nobody(store, write, children)
    assert snapshot(store) == before


def test_a_store_in_a_directory_that_may_not_be_written_is_refused(
    settings_restored: None, tmp_path: Path, children: Children
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()

    def write() -> None:
        qwf.init(uri=closed / "store")
        assert R.list_experiments() == {}
        with pytest.raises(WriteRefusedError, match="Permission denied"):
            R.start_exp()

    as_nobody(closed, write, children)
    assert not list(closed.iterdir())


# --- full ------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_changes_nothing_and_leaves_nothing(
    store: Path,
    recorder: Recorder,
    os_fails: Callable[..., Any],
    snapshot: Snapshot,
    temporary_files: Callable[[Path], Sequence[str]],
    call: str,
) -> None:
    recorder.set_tags(t=2)
    before = snapshot(store)
    for write in (
        lambda: R.start_exp(experiment_name="e"),
        lambda: R.start_exp(experiment_name="e", recorder_id=recorder.id, resume=True),
        lambda: R.log_params(a=1),
        lambda: recorder.log_params(a=1),
        lambda: recorder.set_tags(a=1),
        lambda: recorder.delete_tags("t"),
        lambda: recorder.save_objects(x=1, new=2),
        lambda: recorder.end_run("FAILED"),
    ):
        with (
            os_fails(OSError(errno.ENOSPC, "No space left"), call),
            pytest.raises(WriteError, match=r"No space left.*unchanged"),
        ):
            write()
        assert R.exp_manager.active_experiment is None
        assert temporary_files(store) == []
    after = snapshot(store)
    assert {name: after[name] for name in before} == before
    # The default experiment may be there; half of one may not. That a change was announced costs
    # readers one read.
    new = {name for name in after.keys() - before.keys() if not name.endswith(".lock")}
    assert {name for name in new if not name.startswith("experiments/e/changes")} <= {
        "experiments/Experiment",
        "experiments/Experiment/experiment.json",
        "experiments/Experiment/recorders",
    }
    assert_complete(R.get_recorder(experiment_name="e", recorder_id=recorder.id))
    recorder.set_tags(a=1)
    assert recorder.list_tags() == {"t": "2", "a": "1"}


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_makes_no_half_store(
    store: Path, os_fails: Callable[..., Any], call: str
) -> None:
    with os_fails(OSError(errno.ENOSPC, "No space left"), call), pytest.raises(WriteError):
        R.start_exp()
    assert R.list_experiments() == {}
    with R.start():
        pass
    assert len(R.list_recorders()) == 1


def test_a_disk_that_fills_during_a_run_fails_it_and_the_store_stays_sound(
    store: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left")

    with monkeypatch.context() as patch:
        run = R.start(experiment_name="e")
        late = run.__enter__().active_recorder
        patch.setattr("qwf.storage.fsio.os", FaultyOs(write=full))
        with pytest.raises(WriteError, match="No space left"):
            R.log_params(a=1)
        with pytest.raises(WriteError, match="No space left"):
            run.__exit__(None, None, None)
    assert R.exp_manager.active_experiment is None
    assert_complete(recorder)
    # It could not even be written that it failed.
    assert R.get_recorder(experiment_name="e", recorder_id=late.id).status == "RUNNING"
    late.end_run("FAILED")
    assert late.status == "FAILED"


def test_a_copied_experiment_is_listed_beside_the_original(store: Path) -> None:
    with R.start(experiment_name="e"):
        R.log_params(a=1)
    shutil.copytree(store / "experiments" / "e", store / "experiments" / "e copy")
    assert sorted(R.list_experiments()) == ["e", "e copy"]
    copied = R.get_exp(experiment_id="e copy", create=False).list_recorders("list")
    assert [recorder.list_params()["a"] for recorder in copied] == ["1"]


def test_a_damaged_journal_does_not_keep_a_run_from_ending(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with R.start(experiment_name="e"):
        R.log_metrics(first=1.0)
        recorder = R.get_recorder()
    (journal,) = Path(recorder.get_local_dir()).glob("metrics.*")
    journal.write_bytes(journal.read_bytes().replace(b"1.0", b"2.0"))
    with R.start(experiment_name="e", recorder_id=recorder.id, resume=True):
        R.log_metrics(second=2.0)
    assert "does not match its checksum" in caplog.text
    assert R.get_recorder(experiment_name="e").status == "FINISHED"
    assert recorder.list_metrics() == {"first": 1.0, "second": 2.0}


def test_a_relative_store_given_later_starts_from_the_directory_of_that_moment(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    with R.start(experiment_name="e", uri="s"):
        monkeypatch.chdir(tmp_path)
        R.log_params(a=1)
    assert (tmp_path / "there" / "s" / "qwf.json").exists()


def test_a_copy_of_an_empty_store_without_its_empty_directory_can_be_used(store: Path) -> None:
    R.get_exp(experiment_name="e")
    shutil.rmtree(store / "experiments")
    assert R.list_experiments() == {}
    with R.start(experiment_name="e"):
        R.log_params(a=1)
    assert list(R.list_experiments()) == ["e"]
