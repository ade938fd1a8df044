"""A rolling study that real Qlib has run: qwf's records, collector and groups give its answers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import qwf
from qwf import R, Recorder, RecorderCollector, RollingGen, RollingGroup, SigAnaRecord

ORACLES = Path(__file__).parent / "oracles"
ROLL = ORACLES / "workflow" / "roll"
RESULT = json.loads((ROLL / "result.json").read_text())


def answer(name: str) -> pd.DataFrame:
    return pd.read_parquet(ROLL / name)


@pytest.fixture
def recorders(store: Path) -> list[Recorder]:
    """One recorder per window, with Qlib's predictions and labels, analysed by qwf."""
    made = []
    for number, expected in enumerate(RESULT["recs"]):
        with R.start(experiment_name="roll") as experiment:
            recorder = experiment.active_recorder
            assert recorder is not None
            recorder.log_params(window=number)
            saved = {name: answer(expected[name]) for name in ("pred", "label")}
            recorder.save_objects(**{f"{name}.pkl": frame for name, frame in saved.items()})
            SigAnaRecord(recorder, ana_long_short=True).generate()
        made.append(recorder)
    return made


def test_the_metrics_of_each_window_are_those_of_qlib(recorders: list[Recorder]) -> None:
    for recorder, expected in zip(recorders, RESULT["recs"], strict=True):
        # Qlib keeps labels in 32 bits and computes their returns so; qwf computes in 64.
        assert recorder.list_metrics() == pytest.approx(expected["metrics"], rel=1e-6)


@pytest.mark.parametrize("name", ["ic", "ric", "long_short_r", "long_avg_r"])
def test_the_daily_analysis_of_each_window_is_that_of_qlib(
    name: str, recorders: list[Recorder]
) -> None:
    for recorder, expected in zip(recorders, RESULT["recs"], strict=True):
        ours = recorder.load_object(f"sig_analysis/{name}.pkl")
        pd.testing.assert_series_equal(
            ours, answer(expected[name]).iloc[:, 0], check_names=False, check_freq=False,
            check_index_type=False, check_dtype=False, rtol=1e-6, atol=1e-9,
        )  # fmt: skip


@pytest.mark.parametrize(("path", "expected"), [("pred.pkl", "rolled_pred"),
                                                ("sig_analysis/ic.pkl", "rolled_ic")])  # fmt: skip
def test_the_collected_windows_are_joined_as_by_qlib(
    path: str, expected: str, recorders: list[Recorder]
) -> None:
    collector = RecorderCollector(
        "roll",
        rec_key_func=lambda recorder: ("LinearModel", int(recorder.list_params()["window"])),
        artifacts_path={"it": path},
        process_list=RollingGroup(),
    )
    (joined,) = collector()["it"].values()
    theirs = answer(f"{expected}.parquet")
    if isinstance(joined, pd.Series):
        theirs = theirs.iloc[:, 0]
        pd.testing.assert_series_equal(
            joined, theirs, check_names=False, check_freq=False, check_index_type=False
        )
    else:
        pd.testing.assert_frame_equal(joined, theirs, check_index_type=False)


def test_the_windows_are_those_of_qlib() -> None:
    with gzip.open(ORACLES / "pure" / "calendar_plain.json.gz") as file:
        calendar = json.load(file)["calendar"]
    qwf.init(calendar=calendar)
    segments = {
        "train": ("2019-01-02", "2020-12-31"),
        "valid": ("2021-01-01", "2021-12-31"),
        "test": ("2022-07-01", "2022-12-28"),
    }
    task = {"dataset": {"kwargs": {"segments": segments}}}
    tasks = RollingGen(step=20, rtype=RollingGen.ROLL_SD).generate(task)

    def shown(segment: Any) -> list[Any]:
        return [None if day is None else f"{day:%Y-%m-%d}" for day in segment]

    ours = [
        {name: shown(segment) for name, segment in one["dataset"]["kwargs"]["segments"].items()}
        for one in tasks
    ]
    assert ours == RESULT["segments"]
