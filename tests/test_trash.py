"""Deleting into the trash, bringing back, and removing for good."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import Children, FaultyOs

import qwf
from qwf import R
from qwf.errors import (
    ExpAlreadyExistError,
    ExperimentNotFoundError,
    RecorderNotFoundError,
    RecorderStateError,
    RestoreError,
    TrashEntryNotFoundError,
)
from qwf.storage import fsio
from qwf.testing.crash import crash_points
from qwf.tracking.check import check_store
from qwf.tracking.experiment import Experiment
from qwf.tracking.manager import ExpManager
from qwf.tracking.recorder import Recorder
from qwf.tracking.store import Store
from qwf.tracking.trash import collect_garbage, list_trash

DAY = 86400.0
LONG = "沪深300/回测@" + "很长的名字" * 20  # 300 bytes and more


def new_run(experiment: str = "e", parent_id: str | None = None, **params: Any) -> Recorder:
    with R.start(experiment_name=experiment, parent_id=parent_id):
        R.log_params(**params)
        R.save_objects(x=[experiment])
        return R.get_recorder()


def listed(experiment: str = "e") -> list[str]:
    return list(R.get_exp(experiment_name=experiment, create=False).list_recorders())


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """``later(seconds)`` lets the file server's clock be that much later."""
    real = fsio.server_time

    def shift(seconds: float) -> None:
        monkeypatch.setattr(fsio, "server_time", lambda near: real(near) + seconds)

    return shift


# --- deleting and bringing back ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["e", "a@b", "@", "a/b", "沪深300", "e@20200101", LONG, "x" * 151])
def test_a_recorder_of_any_experiment_comes_back_as_it_was(
    store: Path, snapshot: Callable[[Path], Any], name: str
) -> None:
    kept, recorder = new_run(name), new_run(name, lr=0.1)
    before = snapshot(Path(recorder.get_local_dir()))
    experiment = R.get_exp(experiment_name=name)
    assert experiment.delete_recorder(recorder.id) == [recorder.id]
    assert listed(name) == [kept.id]
    with pytest.raises(RecorderNotFoundError):
        experiment.get_recorder(recorder.id)
    (entry,) = list_trash(experiment._store)
    assert (entry.kind, entry.recorder_id) == ("recorder", recorder.id)
    assert entry.experiment_id == experiment.id
    assert entry.name == recorder.name
    restored = R.restore_recorder(recorder.id)
    assert (restored.id, restored.status) == (recorder.id, "FINISHED")
    assert restored.load_object("x") == [name]
    assert listed(name) == [recorder.id, kept.id]
    assert snapshot(Path(recorder.get_local_dir())) == before
    assert list_trash(experiment._store) == []


@pytest.mark.parametrize("name", ["e", "a@b", "@", "a/b", "沪深300", "e@20200101", LONG, "x" * 151])
def test_an_experiment_of_any_name_comes_back_as_it_was(
    store: Path, snapshot: Callable[[Path], Any], name: str
) -> None:
    recorder = new_run(name)
    experiment = R.get_exp(experiment_name=name)
    before = snapshot(store / "experiments")
    for asked in (name, experiment.id):
        R.delete_exp(experiment_name=name)
        assert R.list_experiments() == {}
        (entry,) = list_trash(experiment._store)
        assert (entry.kind, entry.name, entry.recorder_id) == ("experiment", name, None)
        restored = R.restore_exp(asked)
        assert (restored.name, restored.id) == (name, experiment.id)
        assert listed(name) == [recorder.id]
    assert snapshot(store / "experiments") == before


def test_a_deleted_name_can_be_used_again_and_both_are_kept(store: Path) -> None:
    first = new_run("e")
    R.delete_exp(experiment_name="e")
    second = new_run("e")
    with pytest.raises(RestoreError, match=r"'e' cannot be brought back.*Nothing was changed"):
        R.restore_exp("e")
    assert listed() == [second.id]
    R.delete_exp(experiment_name="e")
    assert R.restore_exp("e").list_recorders().keys() == {second.id}  # deleted last
    shutil.move(store / "experiments" / "e", store / "experiments" / "aside")
    assert listed_of(R.restore_exp("e")) == [first.id]


def listed_of(experiment: Experiment) -> list[str]:
    return list(experiment.list_recorders())


def test_what_is_not_in_the_trash_is_told_with_what_is(store: Path) -> None:
    recorder = new_run("e")
    with pytest.raises(TrashEntryNotFoundError, match="'unknown'"):
        R.restore_exp("unknown")
    R.get_exp(experiment_name="e").delete_recorder(recorder.id)
    with pytest.raises(TrashEntryNotFoundError, match=f"'unknown'.*{recorder.id}"):
        R.restore_recorder("unknown")
    R.delete_exp(experiment_name="e")
    with pytest.raises(TrashEntryNotFoundError, match=r"'unknown'.*'e'"):
        R.restore_exp("unknown")


def test_a_recorder_is_not_restored_without_or_over_something(
    store: Path, snapshot: Callable[[Path], Any]
) -> None:
    recorder = new_run("e")
    R.get_exp(experiment_name="e").delete_recorder(recorder.id)
    Path(recorder.get_local_dir()).mkdir()
    before = snapshot(store)
    with pytest.raises(RestoreError, match=recorder.id):
        R.restore_recorder(recorder.id)
    assert snapshot(store) == before
    Path(recorder.get_local_dir()).rmdir()
    R.delete_exp(experiment_name="e")
    before = snapshot(store)
    with pytest.raises(RestoreError, match="its experiment 'e' is not there"):
        R.restore_recorder(recorder.id)
    assert snapshot(store) == before
    R.restore_exp("e")
    R.restore_recorder(recorder.id)
    assert listed() == [recorder.id]


def test_a_recorder_that_was_alone_in_the_trash_comes_back_into_a_new_experiment(
    store: Path,
) -> None:
    recorder = new_run("e")
    R.get_exp(experiment_name="e").delete_recorder(recorder.id)
    R.delete_exp(experiment_name="e")
    other = new_run("e")
    R.restore_recorder(recorder.id)
    assert listed() == [other.id, recorder.id]


def test_foreign_entries_of_the_trash_are_passed_over(store: Path) -> None:
    recorder = new_run("e")
    R.get_exp(experiment_name="e").delete_recorder(recorder.id)
    trash = store / "trash"
    for name in (".DS_Store", "Untitled Folder", "x@y", "e@20200101-000000-000000", "@"):
        (trash / name).mkdir()
    (trash / "notes.txt").write_text("mine")
    (trash / "e@20200101-000000-000000-0123abcd").write_text("a file of that form")
    assert [entry.recorder_id for entry in list_trash(Store(store))] == [recorder.id]
    assert len(R.search_records(run_view_type=2)) == 1
    R.restore_recorder(recorder.id)


def test_a_deleted_recorder_whose_file_is_damaged_comes_back_as_broken(store: Path) -> None:
    recorder = new_run("e")
    R.get_exp(experiment_name="e").delete_recorder(recorder.id)
    (entry,) = list_trash(Store(store))
    (entry.path / "recorder.json").write_text("{")
    (entry,) = list_trash(Store(store))
    assert (entry.experiment_id, entry.recorder_id) == ("e", recorder.id)
    assert len(R.search_records(run_view_type=2)) == 0
    restored = R.restore_recorder(recorder.id)
    assert (restored.id, restored.status) == (recorder.id, "BROKEN")
    assert R.list_recorders(experiment_name="e")[recorder.id].status == "BROKEN"


# --- what is protected ---------------------------------------------------------------------------


def test_an_online_recorder_is_protected_until_it_is_offline(
    store: Path, snapshot: Callable[[Path], Any]
) -> None:
    online, other = new_run("e"), new_run("e")
    online.set_tags(online_status="online")
    other.set_tags(online_status="offline")
    experiment = R.get_exp(experiment_name="e")
    listed()
    before = snapshot(store)
    with pytest.raises(RecorderStateError, match=f"{online.id} is online.*Nothing was changed"):
        experiment.delete_recorder(online.id)
    with pytest.raises(RecorderStateError, match=f"{online.id} is online"):
        R.delete_exp(experiment_name="e")
    assert snapshot(store) == before
    experiment.delete_recorder(other.id)
    online.set_tags(online_status="offline")
    experiment.delete_recorder(online.id)
    assert listed() == []


def test_a_recorder_that_has_come_online_elsewhere_is_protected(
    store: Path, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwf.tracking.catalog._FEW", 1)
    runs = [new_run("e") for _ in range(3)]
    assert len(listed()) == 3  # known to this process and its index as offline
    children.add(lambda: runs[1].set_tags(online_status="online"))
    assert children.exit_codes() == [0]
    with pytest.raises(RecorderStateError, match="is online"):
        R.get_exp(experiment_name="e").delete_recorder(runs[1].id)


def test_notes_and_marks_are_tags_and_come_back_with_the_recorder(store: Path) -> None:
    recorder = new_run("e")
    recorder.set_tags(note="第一行\nsecond line", mark="★", **{"my/mark": "keep"})
    R.delete_exp(experiment_name="e")
    R.restore_exp("e")
    (found,) = R.search_records("e", filter_string="tags.`my/mark` = 'keep'").to_dict("records")
    assert (found["tags.note"], found["tags.mark"]) == ("第一行\nsecond line", "★")


# --- removing for good ---------------------------------------------------------------------------


@pytest.fixture
def trashed(store: Path) -> dict[str, str]:
    """A store with one recorder and one experiment in the trash, and one of each that is there."""
    kept, gone = new_run("e"), new_run("e")
    new_run("old")
    R.get_exp(experiment_name="e").delete_recorder(gone.id)
    R.delete_exp(experiment_name="old")
    return {"kept": kept.id, "gone": gone.id}


def in_trash(store: Path) -> list[str]:
    return sorted(entry.experiment_id for entry in list_trash(Store(store)))


def test_only_what_was_deleted_long_enough_ago_is_removed(
    store: Path, trashed: dict[str, str], later: Callable[[float], None]
) -> None:
    assert collect_garbage(Store(store), older_than_seconds=7 * DAY) == []
    later(6.9 * DAY)
    assert collect_garbage(Store(store), older_than_seconds=7 * DAY) == []
    assert in_trash(store) == ["e", "old"]
    later(7.1 * DAY)
    removed = collect_garbage(Store(store), older_than_seconds=7 * DAY)
    assert sorted(one.entry.experiment_id for one in removed) == ["e", "old"]
    assert os.listdir(store / "trash") == []
    assert listed() == [trashed["kept"]]
    assert collect_garbage(Store(store), older_than_seconds=0) == []


def test_how_long_ago_is_told_by_the_deletion_and_not_by_the_age_of_the_files(
    store: Path, trashed: dict[str, str]
) -> None:
    for path in (store / "trash").rglob("*"):
        os.utime(path, (1, 1))
    for path in (store / "trash").iterdir():
        os.utime(path, (1, 1))
    assert collect_garbage(Store(store), older_than_seconds=DAY) == []


def test_a_name_from_the_future_is_not_old(
    store: Path, trashed: dict[str, str], later: Callable[[float], None]
) -> None:
    for entry in list_trash(Store(store)):
        moment = entry.deleted_at + timedelta(days=30)
        path = entry.path.with_name(
            f"{entry.path.name.rpartition('@')[0]}@{moment:%Y%m%d-%H%M%S-%f}-00000000"
        )
        entry.path.rename(path)  # by a host whose clock is wrong
    later(20 * DAY)
    assert collect_garbage(Store(store), older_than_seconds=DAY) == []
    later(32 * DAY)
    assert len(collect_garbage(Store(store), older_than_seconds=DAY)) == 2


def test_a_dry_run_tells_what_would_be_removed_and_changes_nothing(
    store: Path,
    trashed: dict[str, str],
    later: Callable[[float], None],
    snapshot: Callable[[Path], Any],
) -> None:
    later(8 * DAY)
    before = snapshot(store)
    told = collect_garbage(Store(store), older_than_seconds=7 * DAY, dry_run=True)
    assert snapshot(store) == before
    removed = collect_garbage(Store(store), older_than_seconds=7 * DAY)
    assert told == removed
    for one in removed:
        name = one.entry.path.relative_to(store).as_posix()
        inside = [data for path, data in before.items() if path.startswith(f"{name}/")]
        assert one.size == sum(len(data) for data in inside if data != b"directory")
        assert one.size > 0


def test_garbage_of_a_store_without_any_is_none(store: Path) -> None:
    assert collect_garbage(Store(store), older_than_seconds=0) == []
    assert not store.exists()


def test_links_in_the_trash_are_removed_and_not_followed(
    store: Path, trashed: dict[str, str], tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "data").write_text("kept")
    for entry in list_trash(Store(store)):
        (entry.path / "link").symlink_to(outside)
    assert len(collect_garbage(Store(store), older_than_seconds=-DAY)) == 2
    assert (outside / "data").read_text() == "kept"


def test_two_that_remove_at_once_remove_everything(
    store: Path, trashed: dict[str, str], children: Children
) -> None:
    for _ in range(4):
        children.add(lambda: collect_garbage(Store(store), older_than_seconds=-DAY))
    assert children.exit_codes() == [0] * 4
    assert os.listdir(store / "trash") == []


@pytest.mark.parametrize("call", ["open", "rename", "listdir", "unlink", "rmdir"])
def test_an_entry_that_vanishes_while_it_is_removed_is_no_error(
    store: Path, trashed: dict[str, str], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    vanished = []

    def vanish(path: Any, *args: Any) -> Any:
        if not vanished and "/trash/" in str(path):
            vanished.append(path)
            # Another process has just removed all of it.
            whole = store / "trash" / Path(path).relative_to(store / "trash").parts[0]
            shutil.rmtree(whole, ignore_errors=True)
        return getattr(os, call)(path, *args)

    monkeypatch.setattr(fsio, "os", FaultyOs(**{call: vanish}))
    collect_garbage(Store(store), older_than_seconds=-DAY)
    assert vanished
    assert os.listdir(store / "trash") == []


def test_files_that_vanish_while_their_size_is_asked_for_are_no_error(
    store: Path, trashed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.walk

    def walk(top: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        for directory, folders, names in real(top, *args, **kwargs):
            yield directory, folders, [*names, "vanished"]

    monkeypatch.setattr("os.walk", walk)
    removed = collect_garbage(Store(store), older_than_seconds=-DAY)
    assert len(removed) == 2
    assert all(one.size > 0 for one in removed)


def test_a_restored_entry_is_not_removed_by_who_has_listed_it_before(
    store: Path, trashed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fsio.server_time

    def meanwhile(near: Path) -> float:
        monkeypatch.setattr(fsio, "server_time", real)
        R.restore_recorder(trashed["gone"])
        return real(near)

    monkeypatch.setattr(fsio, "server_time", meanwhile)
    removed = collect_garbage(Store(store), older_than_seconds=-DAY)
    assert [one.entry.experiment_id for one in removed] == ["old"]
    assert listed() == [trashed["gone"], trashed["kept"]]


# --- many at once --------------------------------------------------------------------------------


@pytest.mark.stress
@pytest.mark.parametrize("indexed", [False, True])
def test_of_many_that_delete_or_restore_one_tree_each_is_told_what_has_become_of_it(
    store: Path, children: Children, monkeypatch: pytest.MonkeyPatch, indexed: bool
) -> None:
    if indexed:
        monkeypatch.setattr("qwf.tracking.catalog._FEW", 1)
    top = new_run()
    tree = [top.id, *(new_run(parent_id=top.id).id for _ in range(8))]
    R.get_exp(experiment_name="e").delete_recorder(top.id)

    def change() -> None:
        for _ in range(10):
            with contextlib.suppress(RecorderNotFoundError):
                experiment(store).delete_recorder(top.id)
            with contextlib.suppress(TrashEntryNotFoundError, RestoreError, RecorderNotFoundError):
                experiment(store).restore_recorder(top.id)

    for _ in range(4):
        children.add(change)
    assert children.exit_codes() == [0] * 4
    assert_whole(store, tree)


@pytest.mark.stress
def test_of_many_that_delete_or_restore_an_experiment_each_is_told_what_has_become_of_it(
    store: Path, children: Children
) -> None:
    recorder = new_run()

    def change() -> None:
        manager = ExpManager(store)
        for _ in range(20):
            with contextlib.suppress(ExperimentNotFoundError):
                manager.delete_exp(experiment_name="e")
            with contextlib.suppress(
                TrashEntryNotFoundError, RestoreError, ExperimentNotFoundError
            ):
                manager.restore_exp("e")

    for _ in range(4):
        children.add(change)
    assert children.exit_codes() == [0] * 4
    with contextlib.suppress(TrashEntryNotFoundError):
        R.restore_exp("e")
    assert listed() == [recorder.id]
    assert_whole(store, [recorder.id])


# --- kills ---------------------------------------------------------------------------------------


@pytest.fixture
def family(tmp_path: Path, settings_restored: None) -> dict[str, Any]:
    """A store with a recorder that has a child and a grandchild, and one that is alone."""
    root = tmp_path / "prepared"
    qwf.init(uri=root)
    top = new_run()
    child = new_run(parent_id=top.id)
    grandchild = new_run(parent_id=child.id)
    alone = new_run()
    return {"root": root, "ids": [top.id, child.id, grandchild.id], "alone": alone.id}


def experiment(root: Path) -> Experiment:
    return ExpManager(root).get_exp(experiment_name="e", create=False)


def assert_whole(root: Path, ids: list[str]) -> None:
    """Every recorder is in one place, with its artifact, and nothing needs a repair."""
    present = set(experiment(root).list_recorders())
    away = [entry.recorder_id for entry in list_trash(Store(root))]
    assert sorted([*present, *away]) == sorted(ids)
    for identity in present:
        assert experiment(root).get_recorder(identity).load_object("x") == ["e"]
    assert check_store(root, older_than_seconds=0) == []


@pytest.mark.crash
def test_deleting_a_recorder_with_children_may_be_killed_at_any_call(
    family: dict[str, Any], tmp_path: Path
) -> None:
    top = family["ids"][0]
    for point in crash_points(
        family["root"], lambda root: experiment(root).delete_recorder(top), tmp_path
    ):
        root = point.directory
        if point.acknowledged:
            assert list(experiment(root).list_recorders()) == [family["alone"]]
        else:
            check_store(root, repair=True, older_than_seconds=0)
        assert_whole(root, [*family["ids"], family["alone"]])
        if top in experiment(root).list_recorders():  # its children go before it does
            experiment(root).delete_recorder(top)
        assert list(experiment(root).list_recorders()) == [family["alone"]], point
        assert_whole(root, [*family["ids"], family["alone"]])


@pytest.mark.crash
def test_restoring_a_recorder_with_children_may_be_killed_at_any_call(
    family: dict[str, Any], tmp_path: Path
) -> None:
    top = family["ids"][0]
    experiment(family["root"]).delete_recorder(top)
    for point in crash_points(
        family["root"], lambda root: experiment(root).restore_recorder(top), tmp_path
    ):
        root = point.directory
        if not point.acknowledged:
            check_store(root, repair=True, older_than_seconds=0)
        assert_whole(root, [*family["ids"], family["alone"]])
        if top not in experiment(root).list_recorders():
            experiment(root).restore_recorder(top)
        expected = [family["alone"], *reversed(family["ids"])]
        assert list(experiment(root).list_recorders()) == expected, point


@pytest.mark.crash
def test_restoring_an_experiment_may_be_killed_at_any_call(
    family: dict[str, Any], tmp_path: Path
) -> None:
    ExpManager(family["root"]).delete_exp(experiment_name="e")
    for point in crash_points(
        family["root"], lambda root: ExpManager(root).restore_exp("e"), tmp_path
    ):
        manager = ExpManager(point.directory)
        if "e" not in manager.list_experiments():
            assert not point.acknowledged
            manager.restore_exp("e")
        assert len(experiment(point.directory).list_recorders()) == 4


@pytest.mark.crash
def test_removing_for_good_may_be_killed_at_any_call_and_be_finished_by_the_next(
    family: dict[str, Any], tmp_path: Path
) -> None:
    experiment(family["root"]).delete_recorder(family["ids"][0])

    def remove(root: Path) -> None:
        collect_garbage(Store(root), older_than_seconds=-DAY)

    steps = 0
    for point in crash_points(family["root"], remove, tmp_path):
        root = point.directory
        steps += 1
        remaining = {entry.recorder_id for entry in list_trash(Store(root))}
        assert remaining <= set(family["ids"])
        assert not point.acknowledged or not remaining
        for entry in list_trash(Store(root)):  # what is still listed is whole
            assert (entry.path / "artifacts" / "x").exists()
        remove(root)
        assert os.listdir(root / "trash") == [], point
        assert list(experiment(root).list_recorders()) == [family["alone"]]
    assert steps > 10


def test_a_crash_while_deleting_an_experiment_leaves_its_name_usable(
    family: dict[str, Any], tmp_path: Path
) -> None:
    for point in crash_points(
        family["root"], lambda root: ExpManager(root).delete_exp(experiment_name="e"), tmp_path
    ):
        manager = ExpManager(point.directory)
        try:
            manager.create_exp("e")
        except ExpAlreadyExistError:
            manager.delete_exp(experiment_name="e")
            manager.create_exp("e")
        assert manager.get_exp(experiment_name="e").list_recorders() == {}
        with pytest.raises(ExperimentNotFoundError):
            manager.get_exp(experiment_name="f", create=False)


def test_a_recorder_whose_file_is_damaged_can_be_deleted_and_restored(store: Path) -> None:
    with R.start(experiment_name="e"):
        recorder = R.get_recorder()
    Path(recorder.get_local_dir(), "recorder.json").write_text("{")
    experiment = R.get_exp(experiment_name="e")
    assert R.exp_manager.find_recorder(str(recorder.id)[-8:]).status == "BROKEN"
    assert experiment.delete_recorder(recorder.id) == [recorder.id]
    assert experiment.list_recorders() == {}
    assert R.restore_recorder(recorder.id).status == "BROKEN"


def test_a_part_of_an_id_that_several_recorders_have_is_told(store: Path) -> None:
    for _ in range(2):
        with R.start(experiment_name="e"):
            pass
    with pytest.raises(ValueError, match=r"2 recorders have an id that begins .*Give more of it"):
        R.exp_manager.find_recorder("20")
    with pytest.raises(ValueError, match="no recorder with id 'zzz'"):
        R.exp_manager.find_recorder("zzz")
