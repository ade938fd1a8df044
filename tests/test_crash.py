"""Every operation is killed at every system call; then the store is opened again.

What was acknowledged is there, what was not is whole or absent, the next writer succeeds, and the
check is clean or repairs to clean.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from qwf.errors import ArtifactNotFoundError
from qwf.storage import lock
from qwf.testing.crash import crash_points
from qwf.tracking.check import check_store
from qwf.tracking.experiment import Experiment
from qwf.tracking.manager import ExpManager
from qwf.tracking.recorder import Recorder

pytestmark = pytest.mark.crash

OLD = {"pred": [1, 2, 3]}
NEW = {"pred": list(range(200))}


def experiment(root: Path) -> Experiment:
    return ExpManager(root).get_exp(experiment_name="e")


def only_recorder(root: Path) -> Recorder:
    (recorder,) = experiment(root).list_recorders(Experiment.RT_L)
    return recorder


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A store with one running recorder that has a param, a tag, a metric and an artifact."""
    root = tmp_path / "prepared"
    run = experiment(root).create_recorder("r").start_run()
    run.log_params(kept=1)
    run.set_tags(kept="yes")
    run.log_metrics(kept=0.5)
    run.save_objects(kept=OLD, model={1, 2})
    return root


def kept(recorder: Recorder) -> bool:
    """Whether all that was acknowledged before is there."""
    return (
        recorder.list_params()["kept"] == "1"
        and recorder.list_tags()["kept"] == "yes"
        and recorder.list_metrics()["kept"] == 0.5
        and recorder.load_object("model") == {1, 2}
    )


def start_run(root: Path) -> None:
    experiment(root).create_recorder("second").start_run()


def log_params(root: Path) -> None:
    only_recorder(root).log_params(a=1, b=[2, 3])


def set_tags(root: Path) -> None:
    only_recorder(root).set_tags(a="x", b="y")


def log_metrics(root: Path) -> None:
    only_recorder(root).log_metrics(a=1.0, b=2.0)


def end_run(root: Path) -> None:
    only_recorder(root).end_run("FINISHED")


def save_new(root: Path) -> None:
    only_recorder(root).save_objects(a=NEW, b=pd.Series([1.0, 2.0]))


def overwrite(root: Path) -> None:
    only_recorder(root).save_objects(kept=NEW)


def save_files(root: Path) -> None:
    source = root.parent / f"{root.name}-source"
    source.mkdir()
    (source / "a.txt").write_text("x" * 100)
    only_recorder(root).log_artifact(source, "logs")


def names(prefix: str, recorder: Recorder) -> set[str]:
    return {name for name in recorder.artifacts() if name.startswith(prefix)}


def params_whole(root: Path) -> bool:
    found = only_recorder(root).list_params()
    return ("a" in found) == ("b" in found)


def params_done(root: Path) -> bool:
    return only_recorder(root).list_params()["b"] == "[2, 3]"


def tags_whole(root: Path) -> bool:
    found = only_recorder(root).list_tags()
    return ("a" in found) == ("b" in found)


def metrics_whole(root: Path) -> bool:
    found = only_recorder(root).list_metrics()
    return ("a" in found) == ("b" in found)


def new_whole(root: Path) -> bool:
    recorder = only_recorder(root)
    for name in ("a", "b"):
        try:
            recorder.load_object(name)
        except ArtifactNotFoundError:
            continue
    return ("a" in recorder.artifacts()) == ("b" in recorder.artifacts())


def overwritten_whole(root: Path) -> bool:
    return only_recorder(root).load_object("kept") in (OLD, NEW)


def starts_whole(root: Path) -> bool:
    return all(recorder.status == "RUNNING" for recorder in experiment(root).list_recorders("list"))


OPERATIONS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], bool], Callable[[Path], bool]]]
OPERATIONS = {
    "start": (start_run, starts_whole, lambda root: len(experiment(root).list_recorders()) == 2),
    "params": (log_params, params_whole, params_done),
    "tags": (set_tags, tags_whole, lambda root: only_recorder(root).list_tags()["a"] == "x"),
    "metrics": (
        log_metrics,
        metrics_whole,
        lambda root: only_recorder(root).list_metrics()["a"] == 1.0,
    ),
    "end": (
        end_run,
        lambda root: only_recorder(root).status in ("RUNNING", "FINISHED"),
        lambda root: only_recorder(root).status == "FINISHED",
    ),
    "new artifacts": (
        save_new,
        new_whole,
        lambda root: only_recorder(root).load_object("a") == NEW,
    ),
    "an overwritten artifact": (
        overwrite,
        overwritten_whole,
        lambda root: only_recorder(root).load_object("kept") == NEW,
    ),
    "files": (
        save_files,
        lambda root: (
            names("logs", only_recorder(root)) in (set(), {f"logs/{root.name}-source/a.txt"})
        ),
        lambda root: len(names("logs", only_recorder(root))) == 1,
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_may_be_killed_at_any_call(
    name: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation, whole, done = OPERATIONS[name]
    # A dead writer's claim is settled at once; in life, after some seconds.
    monkeypatch.setattr(lock, "ABANDONED_SECONDS", 0.0)
    steps = 0
    for point in crash_points(prepared, operation, tmp_path):
        root, steps = point.directory, point.step
        where = f"{name}, killed at step {point.step}"
        assert whole(root), where
        recorders = experiment(root).list_recorders(Experiment.RT_L, status="RUNNING")
        first = next(one for one in experiment(root).list_recorders("list") if one.name == "r")
        assert kept(first), where
        assert recorders or name == "end", where
        if point.acknowledged:
            assert done(root), where
            assert check_store(root, older_than_seconds=0) == [], where
        # The next writer succeeds, and does the same again.
        first.set_tags(next="ok")
        assert first.list_tags()["next"] == "ok", where
        check_store(root, repair=True, older_than_seconds=0)
        assert check_store(root, older_than_seconds=0) == [], where
        assert whole(root), where
        assert kept(first), where
        if name not in ("start", "files"):
            operation(root)
            assert done(root), where
    assert steps > 2, "the harness has not killed anything"


def test_creating_a_store_and_an_experiment_may_be_killed_at_any_call(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()

    def create(root: Path) -> None:
        ExpManager(root / "store").create_exp("e")

    for point in crash_points(empty, create, tmp_path):
        manager = ExpManager(point.directory / "store")
        found = manager.list_experiments()
        assert list(found) in ([], ["e"]), point
        assert not point.acknowledged or list(found) == ["e"], point
        with_next = manager.get_exp(experiment_name="e")
        with_next.create_recorder().start_run().end_run("FINISHED")
        check_store(point.directory / "store", repair=True, older_than_seconds=0)
        assert check_store(point.directory / "store", older_than_seconds=0) == [], point


def test_deleting_may_be_killed_at_any_call(prepared: Path, tmp_path: Path) -> None:
    def delete(root: Path) -> None:
        ExpManager(root).delete_exp(experiment_name="e")

    for point in crash_points(prepared, delete, tmp_path):
        found = list(ExpManager(point.directory).list_experiments())
        trashed = list((point.directory / "trash").glob("e@*"))
        assert (found == ["e"]) != (len(trashed) == 1), point
        assert not point.acknowledged or found == [], point
