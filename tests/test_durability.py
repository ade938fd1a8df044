"""What a call returned from survives the loss of power: content is synced before its name is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from qwf.storage import fsio, layout
from qwf.testing.calls import Call, assert_durable, assert_synced_before, recorded_calls
from qwf.tracking.check import check_store
from qwf.tracking.manager import ExpManager
from qwf.tracking.recorder import Recorder


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    run = ExpManager(tmp_path / "store").get_exp(experiment_name="e").create_recorder().start_run()
    run.save_objects(old=1, other=2)
    run.set_tags(t=1)
    return run


OPERATIONS: dict[str, Callable[[Recorder], object]] = {
    "params": lambda run: run.log_params(a=1),
    "tags": lambda run: run.set_tags(a=1),
    "new artifacts": lambda run: run.save_objects(a=pd.Series([1.0]), b={1}, artifact_path="p/q"),
    "an overwritten artifact": lambda run: run.save_objects(old=2),
    "metrics and end": lambda run: (run.log_metrics(a=1), run.end_run("FINISHED")),
    "two overwritten artifacts": lambda run: run.save_objects(old=pd.Series([1.0]), other=3),
    "resuming": lambda run: run.start_run(),
    "deleted tags": lambda run: run.delete_tags("t"),
    "files": lambda run: run.log_artifact(__file__, "logs"),
    "metrics of another process": lambda run: (
        same_run(run).log_metrics(b=1),
        run.end_run("FINISHED"),
    ),
}


def same_run(run: Recorder) -> Recorder:
    """The recorder as another process sees it."""
    return ExpManager(Path(run.uri)).get_exp(experiment_name="e").get_recorder(run.id)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_durable_when_it_returns(name: str, recorder: Recorder) -> None:
    with recorded_calls() as calls:
        OPERATIONS[name](recorder)
    assert any(call.name == "fsync" for call in calls)
    assert_durable(calls)


def test_creating_a_store_and_a_run_is_durable(tmp_path: Path) -> None:
    with recorded_calls() as calls:
        experiment = ExpManager(tmp_path / "a" / "b").create_exp("e")
        experiment.create_recorder().start_run()
    assert_durable(calls)


def test_the_name_of_the_first_journal_is_durable_before_its_first_value(
    recorder: Recorder,
) -> None:
    with recorded_calls() as calls:
        recorder.log_metrics(a=1)
    directory = Path(recorder.get_local_dir())
    assert [(call.name, call.path == directory) for call in calls] == [
        ("create", False),
        ("fsync", True),
        ("write", False),
    ]


def test_deleting_is_durable_where_it_was_and_where_it_goes(recorder: Recorder) -> None:
    root = Path(recorder.uri)
    recorder.end_run("FINISHED")
    manager = ExpManager(root)
    with recorded_calls() as calls:
        manager.get_exp(experiment_name="e").delete_recorder(recorder.id)
        manager.delete_exp(experiment_name="e")
    assert_durable(calls)
    synced = [call.path for call in calls if call.name == "fsync"]
    directory = Path(recorder.get_local_dir()).parent
    assert {root / layout.TRASH, directory, root / layout.EXPERIMENTS} <= set(synced)


def test_setting_aside_is_durable(recorder: Recorder) -> None:
    (Path(recorder.get_artifact_uri()) / "stray").write_bytes(b"x")
    with recorded_calls() as calls:
        check_store(Path(recorder.uri), repair=True, older_than_seconds=0)
    assert_durable([call for call in calls if not fsio.is_temporary(call.path.name)])
    assert Path(recorder.uri) / layout.QUARANTINE in {call.path for call in calls}


SAVES: dict[str, Callable[[Recorder], object]] = {
    "new": lambda run: run.save_objects(a=1, b=pd.Series([1.0]), artifact_path="p"),
    "files": lambda run: run.save_objects(local_path=__file__, artifact_path="p"),
    "overwritten": lambda run: run.save_objects(x=3, y={1}, artifact_path="p"),
    "new and overwritten": lambda run: run.save_objects(x=3, z=1, artifact_path="p"),
}


@pytest.mark.parametrize("name", SAVES)
def test_artifacts_are_durable_under_their_names_before_the_record_says_so(
    name: str, recorder: Recorder
) -> None:
    recorder.save_objects(x=1, y=2, artifact_path="p")
    with recorded_calls() as calls:
        SAVES[name](recorder)
    record = Path(recorder.get_local_dir()) / layout.RECORDER_FILE
    assert_synced_before(calls, Path(recorder.get_artifact_uri()) / "p", record)


def test_the_order_of_an_atomic_write_is_file_then_name_then_directory(tmp_path: Path) -> None:
    with recorded_calls() as calls:
        fsio.write_atomic(tmp_path / "a", b"x")
    assert [call.name for call in calls] == ["create", "write", "fsync", "replace", "fsync"]
    assert calls[-1].path == tmp_path


a, b, d = Path("d/a"), Path("d/b"), Path("d")


@pytest.mark.parametrize(
    "calls",
    [
        [Call("write", a), Call("replace", a, b), Call("fsync", d)],
        [Call("write", a), Call("fsync", a), Call("replace", a, b)],
        [Call("write", a), Call("fsync", a), Call("write", a)],
        [Call("mkdir", d / "e")],
        [Call("create", a)],
        [Call("rename", a, d / "e" / "a"), Call("fsync", d / "e")],
        [Call("rename", a, d / "e" / "a"), Call("fsync", d)],
    ],
)
def test_the_harness_notices_a_missing_sync(calls: list[Call]) -> None:
    with pytest.raises(AssertionError):
        assert_durable(calls)


x, record = Path("d/artifacts/x"), Path("d/recorder.json")


@pytest.mark.parametrize(
    "calls",
    [
        [],
        [Call("replace", a, record)],
        [Call("link", a, x), Call("replace", b, record), Call("fsync", x.parent)],
        [Call("replace", b, record), Call("link", a, x), Call("fsync", x.parent)],
    ],
)
def test_the_harness_notices_a_record_that_comes_too_early_or_never(calls: list[Call]) -> None:
    with pytest.raises(AssertionError):
        assert_synced_before(calls, x.parent, record)
