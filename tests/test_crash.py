"""Every operation is killed at every system call; then the store is opened again.

What was acknowledged is there, what was not is whole or absent, the next writer succeeds, and the
check is clean or repairs to clean.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from qwf.errors import ArtifactNotFoundError
from qwf.storage import lock
from qwf.storage.documents import encode_document
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
    run.set_tags(kept="yes", dropped="1", too="2")
    run.log_metrics(kept=0.5)
    run.save_objects(kept=OLD, also=OLD, model={1, 2})
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


def overwrite_two(root: Path) -> None:
    only_recorder(root).save_objects(kept=NEW, also=NEW)


def overwrite_by_another_kind(root: Path) -> None:
    only_recorder(root).save_objects(kept=pd.Series(NEW["pred"]))


def resume(root: Path) -> None:
    only_recorder(root).start_run()


def delete_tags(root: Path) -> None:
    recorder = only_recorder(root)
    recorder.delete_tags(*({"dropped", "too"} & recorder.list_tags().keys()))


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


def two_overwritten_whole(root: Path) -> bool:
    also = only_recorder(root).load_object("also")
    return overwritten_whole(root) and also in (OLD, NEW)


def two_overwritten(root: Path) -> bool:
    return [only_recorder(root).load_object(name) for name in ("kept", "also")] == [NEW, NEW]


def kind_whole(root: Path) -> bool:
    found = only_recorder(root).load_object("kept")
    return bool(found == OLD) if isinstance(found, dict) else found.tolist() == NEW["pred"]


def sessions(root: Path) -> list[dict[str, Any]]:
    (path,) = root.glob("experiments/e/recorders/*/recorder.json")
    return json.loads(path.read_bytes())["sessions"]


def starts_whole(root: Path) -> bool:
    # The process that has begun the second one is dead; repairing ends it.
    found = {recorder.status for recorder in experiment(root).list_recorders("list")}
    return found in ({"RUNNING"}, {"RUNNING", "LOST"}, {"RUNNING", "FAILED"})


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
    "two overwritten artifacts": (overwrite_two, two_overwritten_whole, two_overwritten),
    "an artifact of another kind": (
        overwrite_by_another_kind,
        kind_whole,
        lambda root: isinstance(only_recorder(root).load_object("kept"), pd.Series),
    ),
    "resume": (
        resume,
        lambda root: len(sessions(root)) in (1, 2),
        lambda root: only_recorder(root).status == "RUNNING" and len(sessions(root)) >= 2,
    ),
    "deleted tags": (
        delete_tags,
        lambda root: len({"dropped", "too"} & only_recorder(root).list_tags().keys()) in (0, 2),
        lambda root: sorted(only_recorder(root).list_tags()) in (["kept"], ["kept", "next"]),
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
            findings = check_store(root, older_than_seconds=0)
            assert [one for one in findings if "has died" not in one.problem] == [], where
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
    only_recorder(prepared).end_run("FINISHED")

    def delete(root: Path) -> None:
        ExpManager(root).delete_exp(experiment_name="e")

    for point in crash_points(prepared, delete, tmp_path):
        found = list(ExpManager(point.directory).list_experiments())
        trashed = list((point.directory / "trash").glob("e@*"))
        assert (found == ["e"]) != (len(trashed) == 1), point
        assert not point.acknowledged or found == [], point


def test_deleting_a_recorder_may_be_killed_at_any_call(prepared: Path, tmp_path: Path) -> None:
    only_recorder(prepared).end_run("FINISHED")

    def delete(root: Path) -> None:
        experiment(root).delete_recorder(only_recorder(root).id)

    for point in crash_points(prepared, delete, tmp_path):
        found = experiment(point.directory).list_recorders("list")
        trashed = list((point.directory / "trash").glob("e@*"))
        assert len(found) + len(trashed) == 1, point
        assert all((one / "artifacts" / "kept").exists() for one in trashed), point
        assert not point.acknowledged or found == [], point


@pytest.fixture
def damaged(prepared: Path) -> Path:
    """A store with one of each kind of damage that can be repaired."""
    run = only_recorder(prepared)
    run.log_metrics(later=1.0)
    run.end_run("FINISHED")
    directory = Path(run.get_local_dir())
    (directory / ".tmp-host-1-2-3").write_bytes(b"half")
    (directory / "artifacts" / "stray").write_bytes(b"precious")
    journal = max(directory.glob("metrics.*"))
    journal.write_bytes(journal.read_bytes() + b"torn")
    broken = directory.with_name("broken")
    shutil.copytree(directory, broken)
    (broken / "recorder.json").write_bytes(b"{")
    (prepared / "qwf.json").write_bytes(b"")
    (prepared / "experiments" / "e" / "experiment.json").write_bytes(b"{}")
    # An overwrite that died between its announcement and its rename, and a claim of its settling.
    path = directory / "recorder.json"
    document = json.loads(path.read_bytes())
    entry = document["artifacts"]["also"]
    before = {**entry, "since": 0.0}
    document["artifacts"]["also"] = {**entry, "sha256": "0" * 64, "replaces": before}
    path.write_bytes(encode_document(document))
    (directory / f"recorder.json.{document['revision'] + 1}").write_bytes(path.read_bytes())
    return prepared


def test_a_repair_may_be_killed_at_any_call(damaged: Path, tmp_path: Path) -> None:
    def repair(root: Path) -> None:
        check_store(root, repair=True, older_than_seconds=0)

    for point in crash_points(damaged, repair, tmp_path):
        root = point.directory
        assert kept(only_sound(root)), point
        assert only_sound(root).load_object("also") == OLD, point
        assert list(only_sound(root).metric_history()["key"]) == ["kept", "later"], point
        assert [path.read_bytes() for path in root.rglob("*stray*")].count(b"precious") == 2, point
        if not point.acknowledged:
            repair(root)
        assert check_store(root, older_than_seconds=0) == [], point
        assert kept(only_sound(root)), point
        assert list(only_sound(root).metric_history()["key"]) == ["kept", "later"], point


def only_sound(root: Path) -> Recorder:
    """The one recorder that is not broken."""
    (recorder,) = experiment(root).list_recorders(Experiment.RT_L, status="FINISHED")
    return recorder
