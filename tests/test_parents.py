"""Recorders that belong to others: nested runs, to any depth."""

from __future__ import annotations

import os
import pickle
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import Children

from qwf import R
from qwf.errors import RecorderNotFoundError, RecorderStateError
from qwf.tracking import catalog
from qwf.tracking.experiment import Experiment
from qwf.tracking.manager import ExpManager
from qwf.tracking.recorder import Recorder
from qwf.tracking.store import Store
from qwf.tracking.trash import list_trash
from qwf.trainer import TrainerR

LONG = "沪深300/回测@" + "很长的名字" * 20


def new_run(experiment: str = "e", parent: Recorder | None = None, **start: Any) -> Recorder:
    parent_id = None if parent is None else parent.id
    with R.start(experiment_name=experiment, parent_id=parent_id, **start):
        return R.get_recorder()


def family(experiment: str = "e") -> dict[str, Recorder]:
    """Make a tree of recorders: a over b and c, b over d, d over e; and z alone."""
    made: dict[str, Recorder] = {}
    for name, above in (("a", ""), ("b", "a"), ("c", "a"), ("d", "b"), ("e", "d"), ("z", "")):
        made[name] = new_run(experiment, made.get(above))
    return made


def ids(recorders: dict[str, Recorder], names: str) -> list[str]:
    return [recorders[name].id for name in names]


def listed(experiment: str = "e") -> set[str]:
    return set(R.get_exp(experiment_name=experiment, create=False).list_recorders())


def reread(recorder: Recorder) -> Recorder:
    manager = ExpManager(recorder.uri)
    return manager.get_exp(experiment_id=recorder.experiment_id).get_recorder(recorder.id)


# --- who is the parent ---------------------------------------------------------------------------


def test_a_nested_run_belongs_to_the_one_around_it(store: Path) -> None:
    with R.start(experiment_name="outer"):
        outer = R.get_recorder()
        with R.start(experiment_name="middle"):
            middle = R.get_recorder()
            with R.start(experiment_name="outer"):
                inner = R.get_recorder()
        with R.start(experiment_name="middle"):
            sibling = R.get_recorder()
    after = new_run("outer")
    assert [one.parent_id for one in (outer, middle, inner, sibling, after)] == [
        None,
        outer.id,
        middle.id,
        outer.id,
        None,
    ]
    assert [reread(one).parent_id for one in (middle, inner, after)] == [outer.id, middle.id, None]
    frame = R.search_records(filter_string=f"parent_id = '{outer.id}'")
    assert set(frame["run_id"]) == {middle.id, sibling.id}
    assert set(frame["parent_id"]) == {outer.id}
    as_in_mlflow = f"tags.mlflow.parentRunId = '{outer.id}'"
    assert set(R.search_records(filter_string=as_in_mlflow)["run_id"]) == {middle.id, sibling.id}
    assert {one.parent_id for one in R.list_recorders(experiment_name="middle").values()} == {
        outer.id
    }


def test_a_run_without_a_block_is_a_parent_and_a_child_too(store: Path) -> None:
    R.start_exp(experiment_name="e")
    outer = R.get_recorder()
    R.start_exp(experiment_name="e")
    inner = R.get_recorder()
    with R.start(experiment_name="e"):
        innermost = R.get_recorder()
    R.end_exp()
    R.end_exp()
    assert (inner.parent_id, innermost.parent_id) == (outer.id, inner.id)


def train(task: dict[str, Any], experiment_name: str, **_: Any) -> Recorder:
    with R.start(experiment_name=experiment_name):
        with R.start(experiment_name="below"):
            pass
        return R.get_recorder()


@pytest.mark.parametrize("how", ["here", "processes", "subprocess", "threads"])
def test_what_a_trainer_trains_inside_a_run_belongs_to_it_wherever_it_is_trained(
    store: Path, how: str
) -> None:
    with ThreadPoolExecutor(2) as threads:
        options = {
            "here": {},
            "processes": {"kernels": 2},
            "subprocess": {"call_in_subproc": True},
            "threads": {"executor": threads},
        }[how]
        trainer = TrainerR(experiment_name="trained", train_func=train, **options)
        with R.start(experiment_name="study"):
            study = R.get_recorder()
            trained = trainer.train([{}, {}])
        alone = trainer.train([{}])
        with R.start(experiment_name="study"), R.uri_context(store.with_name("other")):
            elsewhere = trainer.train([{}])
    assert [reread(one).parent_id for one in trained] == [study.id, study.id]
    assert [reread(one).parent_id for one in (*alone, *elsewhere)] == [None, None]
    below = R.list_recorders(experiment_name="below").values()
    assert {one.parent_id for one in below} == {one.id for one in (*trained, *alone)}


def test_a_parent_can_be_named(store: Path) -> None:
    named = new_run("elsewhere")
    with R.start(experiment_name="e"):
        with R.start(experiment_name="e", parent_id=named.id):
            inner = R.get_recorder()
        R.start_exp(experiment_name="e", parent_id=named.id)
        started = R.get_recorder()
    assert (inner.parent_id, started.parent_id) == (named.id, named.id)
    made = R.get_exp(experiment_name="e").create_recorder(parent_id=named.id)
    assert (made.parent_id, made.id) == (named.id, None)
    assert reread(made.start_run()).parent_id == named.id
    made.end_run("FINISHED")


@pytest.mark.parametrize("parent_id", [5, b"a", ["a"], "", True])
def test_a_parent_that_is_no_id_is_refused_before_anything_is_written(
    store: Path, parent_id: Any
) -> None:
    with (
        pytest.raises((ValueError, TypeError), match="parent_id"),
        R.start(experiment_name="e", parent_id=parent_id),
    ):
        pass
    assert R.list_recorders(experiment_name="e") == {}
    assert R.exp_manager.active_experiment is None


def test_a_run_in_another_store_belongs_to_none_of_this(store: Path) -> None:
    with R.start(experiment_name="e"):
        with R.start(experiment_name="e", uri=store.with_name("other")):
            other = R.get_recorder()
            with R.start(experiment_name="e"):
                inner = R.get_recorder()
        with R.uri_context(store.with_name("other")), R.start(experiment_name="e"):
            third = R.get_recorder()
    assert (other.parent_id, inner.parent_id, third.parent_id) == (None, other.id, None)


def test_another_name_of_the_same_store_is_the_same_store(store: Path) -> None:
    with R.start(experiment_name="e"):
        outer = R.get_recorder()
        with R.start(experiment_name="e", uri=f"file://{store}"):
            assert R.get_recorder().parent_id == outer.id


def test_a_run_of_another_thread_belongs_to_nothing_of_this_one(store: Path) -> None:
    found: list[Recorder] = []
    with R.start(experiment_name="e"):
        thread = threading.Thread(target=lambda: found.append(new_run()))
        thread.start()
        thread.join()
    assert found[0].parent_id is None


def test_a_resumed_run_keeps_its_parent(store: Path) -> None:
    outer = new_run()
    child, alone = new_run(parent=outer), new_run()
    with R.start(experiment_name="e"):
        for one in (child, alone):
            with R.start(experiment_name="e", recorder_id=one.id, resume=True):
                pass
    assert (reread(child).parent_id, reread(alone).parent_id) == (outer.id, None)


def test_resuming_a_name_that_there_is_not_makes_a_child(store: Path) -> None:
    with R.start(experiment_name="e"):
        outer = R.get_recorder()
        with R.start(experiment_name="e", recorder_name="new", resume=True):
            assert R.get_recorder().parent_id == outer.id


def test_a_recorder_keeps_its_parent_when_it_goes_to_another_process(
    store: Path, children: Children
) -> None:
    outer = new_run()
    child = new_run(parent=outer)
    assert pickle.loads(pickle.dumps(child)).parent_id == outer.id
    unstarted = R.get_exp(experiment_name="e").create_recorder("later", parent_id=outer.id)
    data = pickle.dumps(unstarted)

    def start() -> None:
        pickle.loads(data).start_run().end_run("FINISHED")

    children.add(start)
    assert children.exit_codes() == [0]
    experiment = R.get_exp(experiment_name="e")
    assert experiment.get_recorder(recorder_name="later").parent_id == outer.id


# --- deleting and bringing back together ---------------------------------------------------------


@pytest.mark.parametrize("name", ["e", "a@b/c", LONG])
@pytest.mark.parametrize("indexed", [False, True])
def test_those_that_belong_to_a_recorder_go_and_come_back_with_it(
    store: Path, monkeypatch: pytest.MonkeyPatch, name: str, indexed: bool
) -> None:
    if indexed:
        monkeypatch.setattr(catalog, "_FEW", 1)
    made = family(name)
    everything = listed(name)
    experiment = R.get_exp(experiment_name=name)
    gone = experiment.delete_recorder(made["b"].id)
    assert gone == ids(made, "bde")
    assert listed(name) == set(ids(made, "acz"))
    assert {entry.recorder_id for entry in list_trash(Store(store))} == set(gone)
    assert len({entry.token for entry in list_trash(Store(store))}) == 1
    restored = experiment.restore_recorder(made["b"].id)
    assert restored.id == made["b"].id
    assert listed(name) == everything
    assert reread(made["e"]).parent_id == made["d"].id
    assert experiment.delete_recorder(made["a"].id)[0] == made["a"].id
    assert listed(name) == {made["z"].id}
    R.restore_recorder(made["e"].id)  # any of them brings back all
    assert listed(name) == everything


def test_children_that_were_deleted_before_stay_deleted(store: Path) -> None:
    made = family()
    experiment = R.get_exp(experiment_name="e")
    experiment.delete_recorder(made["c"].id)
    experiment.delete_recorder(made["a"].id)
    experiment.restore_recorder(made["a"].id)
    assert listed() == set(ids(made, "abdez"))
    experiment.restore_recorder(made["c"].id)
    assert listed() == set(ids(made, "abcdez"))


def test_deleting_by_name_takes_the_children_too(store: Path) -> None:
    top = new_run(recorder_name="top")
    new_run(parent=top)
    R.get_exp(experiment_name="e").delete_recorder(recorder_name="top")
    assert listed() == set()


def test_children_in_other_experiments_stay(store: Path) -> None:
    top = new_run("e")
    child = new_run("other", top)
    R.get_exp(experiment_name="e").delete_recorder(top.id)
    assert listed("other") == {child.id}
    assert reread(child).parent_id == top.id  # which is in the trash
    R.delete_exp(experiment_name="e")
    assert reread(child).status == "FINISHED"


def test_a_parent_of_another_experiment_with_the_same_child_is_not_mixed_up(store: Path) -> None:
    top = new_run("other")
    child = new_run("e", top)
    grandchild = new_run("e", child)
    assert R.get_exp(experiment_name="e").delete_recorder(child.id) == [child.id, grandchild.id]
    assert listed("other") == {top.id}


# --- what keeps them from being deleted ----------------------------------------------------------


@pytest.fixture
def refused(store: Path, snapshot: Callable[[Path], Any]) -> Callable[..., None]:
    def check(recorder: Recorder, match: str) -> None:
        # From a listing first: it may write an index, which is no change.
        listed()
        before = snapshot(store / "experiments")
        with pytest.raises(RecorderStateError, match=match):
            R.get_exp(experiment_name="e").delete_recorder(recorder.id)
        assert snapshot(store / "experiments") == before
        assert not (store / "trash").exists()

    return check


def test_an_online_descendant_protects_all_above_it(
    store: Path, refused: Callable[..., None]
) -> None:
    made = family()
    made["e"].set_tags(online_status="online")
    for name in "abde":
        refused(made[name], f"{made['e'].id} is online")
    experiment = R.get_exp(experiment_name="e")
    experiment.delete_recorder(made["c"].id)
    made["e"].set_tags(online_status="offline")
    assert len(experiment.delete_recorder(made["a"].id)) == 4


def test_a_running_descendant_of_this_process_protects_all_above_it(
    store: Path, refused: Callable[..., None]
) -> None:
    made = family()
    with R.start(experiment_name="e", recorder_id=made["e"].id, resume=True):
        for name in "abde":
            refused(made[name], f"{made['e'].id} is active")


def test_a_running_descendant_of_another_process_protects_all_above_it(
    store: Path, refused: Callable[..., None], children: Children
) -> None:
    made = family()
    ready, go = os.pipe(), os.pipe()

    def run() -> None:
        with R.start(experiment_name="e", parent_id=made["e"].id):
            os.write(ready[1], b"x")
            os.read(go[0], 1)

    children.add(run)
    children.go()
    os.read(ready[0], 1)
    try:
        for name in "abde":
            refused(made[name], "is active and cannot be deleted")
        with pytest.raises(RecorderStateError, match="is active"):
            R.delete_exp(experiment_name="e")
    finally:
        os.write(go[1], b"x")
    assert children.exit_codes() == [0]
    assert len(R.get_exp(experiment_name="e").delete_recorder(made["a"].id)) == 6


def test_a_lost_descendant_does_not_protect(store: Path, children: Children) -> None:
    made = family()

    def die() -> None:
        R.start_exp(experiment_name="e", parent_id=made["e"].id)
        os._exit(0)

    children.add(die)
    assert children.exit_codes() == [0]
    assert len(R.get_exp(experiment_name="e").delete_recorder(made["a"].id)) == 6


# --- made by hand --------------------------------------------------------------------------------


def adopt(child: Recorder, parent_id: Any) -> None:
    child._store.update_recorder(
        child.experiment_id, child.id, lambda document: {**document, "parent_id": parent_id}
    )


def experiment() -> Experiment:
    return R.get_exp(experiment_name="e")


def test_recorders_that_belong_to_each_other_in_a_circle_are_deleted_once(store: Path) -> None:
    made = family()
    adopt(made["a"], made["e"].id)
    adopt(made["z"], made["z"].id)
    assert experiment().delete_recorder(made["z"].id) == [made["z"].id]
    assert sorted(experiment().delete_recorder(made["d"].id)) == sorted(ids(made, "abcde"))
    experiment().restore_recorder(made["d"].id)
    assert listed() == set(ids(made, "abcde"))


def test_a_recorder_whose_parent_is_gone_is_like_any_other(store: Path) -> None:
    orphan = new_run()
    adopt(orphan, "20200101-000000-000000-00000000")
    assert listed() == {orphan.id}
    with pytest.raises(RecorderNotFoundError):
        experiment().get_recorder(reread(orphan).parent_id)
    assert experiment().delete_recorder(orphan.id) == [orphan.id]


@pytest.mark.parametrize("wrong", [5, ["a"], {"a": 1}, True])
def test_a_parent_id_that_is_no_text_is_damage(store: Path, wrong: Any) -> None:
    whole, damaged = new_run(), new_run()
    adopt(damaged, wrong)
    shown = experiment().list_recorders()
    assert {one.id: one.status for one in shown.values()} == {
        whole.id: "FINISHED",
        damaged.id: "BROKEN",
    }
    assert experiment().delete_recorder(whole.id) == [whole.id]


def test_a_long_line_of_descendants_is_deleted_whole(store: Path) -> None:
    line = [new_run()]
    for _ in range(60):
        line.append(new_run(parent=line[-1]))
    assert experiment().delete_recorder(line[0].id) == [one.id for one in line]
    experiment().restore_recorder(line[0].id)
    assert len(listed()) == 61


def test_recorders_of_the_first_release_have_no_parent(tmp_path: Path, store: Path) -> None:
    shutil.copytree(Path(__file__).parent / "golden" / "first", store)
    frame = R.search_records()
    assert len(frame) == 3
    assert set(frame["parent_id"]) == {None}
    one = R.get_exp(experiment_name="second").list_recorders("list")[0]
    assert (one.parent_id, reread(one).parent_id) == (None, None)
    child = new_run("second", one)
    assert R.get_exp(experiment_name="second").delete_recorder(one.id) == [one.id, child.id]
