"""Many processes in one store at once: nothing is lost, nothing is there twice."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Children

import qwf
from qwf import R
from qwf.tracking.recorder import Recorder

pytestmark = pytest.mark.stress

PROCESSES = 8


def new_run(experiment: str = "e") -> Recorder:
    with R.start(experiment_name=experiment):
        return R.get_recorder()


@contextlib.contextmanager
def no_lock(path: Path, **_: Any) -> Iterator[None]:
    """What a lock is on a mount where locks exclude nobody."""
    yield


@pytest.fixture(params=["locked", "unlocked"])
def locking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "unlocked":
        monkeypatch.setattr("qwf.storage.lock.hold", no_lock)


def test_processes_that_start_one_new_experiment_at_once_share_it(
    store: Path, tmp_path: Path, children: Children
) -> None:
    def start(number: int) -> None:
        here = tmp_path / f"cwd{number}"
        here.mkdir()
        os.chdir(here)
        qwf.init(uri=os.path.relpath(store))
        with R.start(experiment_name="first/of 它"):
            R.log_params(number=number)
        assert not list(here.iterdir())

    for number in range(PROCESSES):
        children.add(lambda number=number: start(number))
    assert children.exit_codes() == [0] * PROCESSES
    assert list(R.list_experiments()) == ["first/of 它"]
    assert len(list((store / "experiments").iterdir())) == 1
    recorders = R.list_recorders(experiment_name="first/of 它").values()
    numbers = sorted(int(recorder.list_params()["number"]) for recorder in recorders)
    assert numbers == list(range(PROCESSES))
    assert {recorder.status for recorder in recorders} == {"FINISHED"}


def test_tags_set_by_many_processes_are_all_kept(
    store: Path, children: Children, locking: None
) -> None:
    recorder = new_run()

    def tag(number: int) -> None:
        for step in range(50):
            recorder.set_tags(**{f"{number}-{step}": step, "shared": number})

    for number in range(PROCESSES):
        children.add(lambda number=number: tag(number))
    assert children.exit_codes() == [0] * PROCESSES
    tags = recorder.list_tags()
    assert tags.pop("shared") in {str(number) for number in range(PROCESSES)}
    assert tags == {
        f"{number}-{step}": str(step) for number in range(PROCESSES) for step in range(50)
    }
    left = {path.name for path in Path(recorder.get_local_dir()).iterdir() if path.name[0] != "."}
    assert left == {"recorder.json"}


def test_tags_set_by_many_threads_are_all_kept(store: Path) -> None:
    recorder = new_run()

    def tag(number: int) -> None:
        for step in range(25):
            recorder.set_tags(**{f"{number}-{step}": step})

    threads = [threading.Thread(target=tag, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(recorder.list_tags()) == 100


def test_params_metrics_tags_and_artifacts_go_into_one_run_at_once(
    store: Path, children: Children
) -> None:
    with R.start(experiment_name="e"):
        recorder = R.get_recorder()

        def work(number: int) -> None:
            for step in range(10):
                recorder.log_params(**{f"p{number}-{step}": step})
                recorder.log_metrics(step=step, **{f"m{number}": step})
                recorder.set_tags(**{f"t{number}": step})
                recorder.save_objects(**{f"a{number}/{step}": [number, step]})

        for number in range(4):
            children.add(lambda number=number: work(number))
        assert children.exit_codes() == [0] * 4
    expected = [(number, step) for number in range(4) for step in range(10)]
    params = recorder.list_params()
    assert [params[f"p{number}-{step}"] for number, step in expected] == [
        str(step) for _, step in expected
    ]
    assert recorder.list_metrics() == {f"m{number}": 9.0 for number in range(4)}
    assert len(recorder.metric_history()) == 40
    assert recorder.list_tags() == {f"t{number}": "9" for number in range(4)}
    assert [recorder.load_object(f"a{number}/{step}") for number, step in expected] == [
        [number, step] for number, step in expected
    ]


@pytest.mark.usefixtures("locking")
def test_artifacts_of_one_name_end_as_one_of_those_saved(store: Path, children: Children) -> None:
    recorder = new_run()

    def save(number: int) -> None:
        for step in range(15):
            recorder.save_objects(x=[number] * (1000 + step), **{f"own{number}": step})
            value = recorder.load_object("x")
            assert value == [value[0]] * len(value)

    for number in range(4):
        children.add(lambda number=number: save(number))
    assert children.exit_codes() == [0] * 4
    value = recorder.load_object("x")
    assert value == [value[0]] * 1014
    assert recorder.list_artifacts() == ["own0", "own1", "own2", "own3", "x"]
    assert all(entry.replaces is None for entry in recorder.artifacts().values())


def test_artifacts_of_different_names_are_kept_without_locks_too(
    store: Path, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwf.storage.lock.hold", no_lock)
    recorder = new_run()

    def save(number: int) -> None:
        for step in range(10):
            recorder.save_objects(**{f"{number}/{step}": step})

    for number in range(4):
        children.add(lambda number=number: save(number))
    assert children.exit_codes() == [0] * 4
    assert len(recorder.artifacts()) == 40
    assert recorder.load_object("3/9") == 9


def test_listing_beside_writers_shows_whole_runs_only(
    store: Path, children: Children, tmp_path: Path
) -> None:
    stop = tmp_path / "stop"
    new_run()

    def look() -> None:
        seen = 0
        while not stop.exists():
            recorders = R.list_recorders(experiment_name="e")
            assert len(recorders) >= seen
            seen = len(recorders)
            for recorder in recorders.values():
                assert recorder.status in ("RUNNING", "FINISHED")
                assert "cmd-sys.argv" in recorder.list_params()

    def run() -> None:
        for _ in range(10):
            new_run()

    children.add(look)
    lookers = children
    workers = Children()
    for _ in range(3):
        workers.add(run)
    lookers.go()
    try:
        assert workers.exit_codes() == [0] * 3
    finally:
        stop.touch()
    assert lookers.exit_codes() == [0]
    assert len(R.list_recorders(experiment_name="e")) == 31


def test_two_processes_that_delete_one_experiment_do_not_disturb_each_other(
    store: Path, children: Children
) -> None:
    for round_ in range(5):
        new_run()

        def delete() -> None:
            try:
                R.delete_exp(experiment_name="e")
            except (ValueError, FileNotFoundError):
                print("not there", flush=True)

        both = Children()
        both.add(delete)
        both.add(delete)
        assert both.exit_codes() == [0, 0], round_
        assert R.list_experiments() == {}
    assert len(list((store / "trash").iterdir())) == 5


def test_a_run_whose_experiment_is_deleted_elsewhere_says_so(
    store: Path, children: Children
) -> None:
    with pytest.raises(ValueError, match="no recorder with id"), R.start(experiment_name="e"):  # noqa: PT012
        children.add(lambda: os.rename(store / "experiments" / "e", store / "gone"))
        assert children.exit_codes() == [0]
    assert R.exp_manager.active_experiment is None
    new_run()
    assert len(R.list_recorders(experiment_name="e")) == 1
