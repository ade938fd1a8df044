"""Stores that earlier releases have written are read as they were meant (golden/make_store.py)."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pandas as pd
import pytest

from qwf.tracking.check import check_store
from qwf.tracking.manager import ExpManager

GOLDEN = sorted(path for path in (Path(__file__).parent / "golden").iterdir() if path.is_dir())
STUDY = "rolling/沪深300"


@pytest.fixture(params=GOLDEN, ids=lambda path: path.name)
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> ExpManager:
    return ExpManager(shutil.copytree(request.param, tmp_path / "store"))


def test_there_are_golden_stores() -> None:
    assert GOLDEN


def test_experiments_and_recorders_are_listed(manager: ExpManager) -> None:
    assert set(manager.list_experiments()) == {STUDY, "second"}
    recorders = manager.get_exp(experiment_name=STUDY).list_recorders("list")
    assert [(one.name, one.status) for one in recorders] == [
        ("failing", "FAILED"),
        ("mlflow_recorder", "FINISHED"),
    ]
    (second,) = manager.get_exp(experiment_name="second").list_recorders("list")
    assert second.status == "SCHEDULED"


def test_a_recorder_has_what_was_logged(manager: ExpManager) -> None:
    recorder = manager.get_exp(experiment_name=STUDY).get_recorder()
    params = recorder.list_params()
    assert params == {
        "cmd-sys.argv": "golden.py",
        "lr": "0.5",
        "layers": "(1, 2)",
        "start": "2020-01-02 00:00:00",
    }
    assert recorder.list_tags() == {"online_status": "online"}
    metrics = recorder.list_metrics()
    assert metrics["loss/train"] == 1 / 3
    assert math.isnan(metrics["Rank IC"])
    history = recorder.metric_history("loss/train")
    assert history["step"].tolist() == [0, 1, 2]
    assert history["value"].tolist() == [1.0, 0.5, 1 / 3]


def test_artifacts_are_loaded(manager: ExpManager) -> None:
    recorder = manager.get_exp(experiment_name=STUDY).get_recorder()
    frame = recorder.load_object("pred.pkl")
    assert frame["score"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert frame.index.names == ["datetime", "instrument"]
    assert frame.index[0] == (pd.Timestamp("2020-01-01"), "A")
    assert recorder.load_object("sub/plain") == {"a": [1, (2, 3)]}


def test_runs_are_found_by_a_search(manager: ExpManager) -> None:
    found = manager.search_records(filter_string="params.layers = '(1, 2)' or metrics.loss > 1")
    assert found["run_name"].tolist() == ["failing", "mlflow_recorder"]
    assert found["metrics.loss"].tolist()[0] == 1.5


def test_a_run_goes_on_where_it_was(manager: ExpManager) -> None:
    with manager.run(experiment_name=STUDY, recorder_name="failing", resume=True) as experiment:
        experiment.active_recorder.log_metrics(step=1, loss=0.25)
    recorder = manager.get_exp(experiment_name=STUDY).get_recorder(recorder_name="failing")
    assert (recorder.status, recorder.list_metrics()) == ("FINISHED", {"loss": 0.25})
    assert recorder.metric_history()["value"].tolist() == [1.5, 0.25]
    assert recorder.sessions()[0]["host"] == "node1"


def test_the_check_finds_nothing_wrong(manager: ExpManager) -> None:
    assert check_store(manager.store.root) == []
