"""What a call returned from survives the loss of power: content is synced before its name is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from qwf.storage import fsio
from qwf.testing.calls import Call, assert_durable, recorded_calls
from qwf.tracking.manager import ExpManager
from qwf.tracking.recorder import Recorder


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    run = ExpManager(tmp_path / "store").get_exp(experiment_name="e").create_recorder().start_run()
    run.save_objects(old=1)
    return run


OPERATIONS: dict[str, Callable[[Recorder], object]] = {
    "params": lambda run: run.log_params(a=1),
    "tags": lambda run: run.set_tags(a=1),
    "new artifacts": lambda run: run.save_objects(a=pd.Series([1.0]), b={1}, artifact_path="p/q"),
    "an overwritten artifact": lambda run: run.save_objects(old=2),
    "metrics and end": lambda run: (run.log_metrics(a=1), run.end_run("FINISHED")),
}


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


def test_the_order_of_an_atomic_write_is_file_then_name_then_directory(tmp_path: Path) -> None:
    with recorded_calls() as calls:
        fsio.write_atomic(tmp_path / "a", b"x")
    assert [call.name for call in calls] == ["write", "fsync", "replace", "fsync"]
    assert calls[-1].path == tmp_path


a, b, d = Path("d/a"), Path("d/b"), Path("d")


@pytest.mark.parametrize(
    "calls",
    [
        [Call("write", a), Call("replace", a, b), Call("fsync", d)],
        [Call("write", a), Call("fsync", a), Call("replace", a, b)],
        [Call("write", a), Call("fsync", a), Call("write", a)],
        [Call("mkdir", d / "e")],
    ],
)
def test_the_harness_notices_a_missing_sync(calls: list[Call]) -> None:
    with pytest.raises(AssertionError):
        assert_durable(calls)
