"""Records: the signal of a model and its analysis, saved whole or not at all."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pandas as pd
import pytest

from qwf import R
from qwf.errors import ArtifactNotFoundError, DataError, RecorderStateError
from qwf.records import ACRecordTemp, RecordTemp, SigAnaRecord, SignalRecord
from qwf.tracking.recorder import Recorder

DAYS = pd.date_range("2020-01-01", periods=3, name="datetime")
INDEX = pd.MultiIndex.from_product([DAYS, ["A", "B", "C"]], names=["datetime", "instrument"])
SCORE = pd.Series([1, 2, 3, 3, 2, 1, 1, 3, 2], index=INDEX, dtype="float64")
LABEL = pd.Series([1, 2, 3, 1, 2, 3, 2, 3, 1], index=INDEX, dtype="float64").to_frame("LABEL0")


class Model:
    def __init__(self, prediction: Any) -> None:
        self.prediction = prediction

    def predict(self, dataset: Any) -> Any:
        return self.prediction


class Dataset:
    def __init__(self, label: Any = LABEL) -> None:
        self.label = label
        self.asked: list[dict[str, Any]] = []

    def prepare(self, segments: Any, col_set: str = "feature", data_key: str = "infer") -> Any:
        self.asked.append({"segments": segments, "col_set": col_set, "data_key": data_key})
        return self.label


@pytest.fixture
def recorder(store: Path) -> Iterator[Recorder]:
    with R.start(experiment_name="e"):
        yield R.get_recorder()


def generate(recorder: Recorder, prediction: Any = SCORE, label: Any = LABEL) -> None:
    SignalRecord(Model(prediction), Dataset(label), recorder).generate()


# --- the signal ------------------------------------------------------------------------------


def test_a_series_is_saved_as_the_column_score_beside_its_labels(recorder: Recorder) -> None:
    dataset = Dataset()
    record = SignalRecord(model=Model(SCORE), dataset=dataset, recorder=recorder)
    record.generate()
    pd.testing.assert_frame_equal(recorder.load_object("pred.pkl"), SCORE.to_frame("score"))
    pd.testing.assert_frame_equal(recorder.load_object("label.pkl"), LABEL)
    assert dataset.asked == [{"segments": "test", "col_set": "label", "data_key": "raw"}]
    assert record.list() == ["pred.pkl", "label.pkl"]
    pd.testing.assert_frame_equal(record.load("label.pkl"), LABEL)
    record.check(include_self=True)


def test_a_frame_is_saved_as_it_is(recorder: Recorder) -> None:
    frame = pd.DataFrame({"mine": SCORE, "other": -SCORE})
    generate(recorder, frame)
    pd.testing.assert_frame_equal(recorder.load_object("pred.pkl"), frame)


@pytest.mark.parametrize(
    ("prediction", "reason"),
    [
        (SCORE.to_numpy(), "returned a ndarray"),
        (None, "returned a NoneType"),
        ([1.0], "returned a list"),
        (SCORE.iloc[:0], "returned no rows"),
        (pd.DataFrame(index=INDEX), "returned no rows"),
        (pd.concat([SCORE, SCORE.iloc[:2]]), "returned 2 index entries twice"),
    ],
)
def test_a_prediction_that_nobody_could_use_is_refused(
    recorder: Recorder, prediction: Any, reason: str
) -> None:
    with pytest.raises(DataError, match=rf"Model.predict {reason}.*Nothing was saved"):
        generate(recorder, prediction)
    assert recorder.list_artifacts() == []


def test_a_dataset_without_labels_gives_a_signal_only(recorder: Recorder) -> None:
    SignalRecord(Model(SCORE), object(), recorder).generate()
    assert recorder.list_artifacts() == ["pred.pkl"]


def test_a_prepare_that_knows_no_data_key_is_called_without(recorder: Recorder) -> None:
    class Simple:
        def prepare(self, segments: str, col_set: str) -> pd.DataFrame:
            return LABEL

    SignalRecord(Model(SCORE), Simple(), recorder).generate()
    assert recorder.list_artifacts() == ["label.pkl", "pred.pkl"]


def test_an_error_of_the_labels_is_not_swallowed(recorder: Recorder) -> None:
    class Bad:
        def prepare(self, **_: Any) -> None:
            raise TypeError("a bug in prepare")

    with pytest.raises(TypeError, match="a bug in prepare"):
        SignalRecord(Model(SCORE), Bad(), recorder).generate()
    assert recorder.list_artifacts() == []


def test_a_signal_may_be_generated_again(recorder: Recorder) -> None:
    generate(recorder)
    generate(recorder, -SCORE)
    assert recorder.load_object("pred.pkl")["score"].iloc[0] == -1.0


def test_a_record_without_recorder_says_so() -> None:
    with pytest.raises(RecorderStateError, match="SignalRecord was made without a recorder"):
        SignalRecord(Model(SCORE), Dataset()).generate()
    with pytest.raises(ValueError, match="without a recorder"):
        _ = RecordTemp(None).recorder


# --- its analysis ----------------------------------------------------------------------------

# By hand: days with 1,2,3 against 1,2,3; 3,2,1 against 1,2,3; 1,3,2 against 2,3,1.
IC = [1.0, -1.0, 0.5]


def test_the_ic_of_each_day_is_saved_and_their_mean_logged(recorder: Recorder) -> None:
    generate(recorder)
    returned = SigAnaRecord(recorder).generate()
    assert set(returned) == {"ic.pkl", "ric.pkl"}
    assert recorder.list_artifacts("sig_analysis") == [
        "sig_analysis/ic.pkl",
        "sig_analysis/ric.pkl",
    ]
    for name in ("ic.pkl", "ric.pkl"):
        daily = recorder.load_object(f"sig_analysis/{name}")
        assert list(daily.index) == list(DAYS)
        assert list(daily) == pytest.approx(IC)
    assert recorder.list_metrics() == pytest.approx(
        {
            "IC": mean(IC),
            "ICIR": mean(IC) / stdev(IC),
            "Rank IC": mean(IC),
            "Rank ICIR": mean(IC) / stdev(IC),
        }
    )


def test_long_short_returns_are_logged_on_request(recorder: Recorder) -> None:
    instruments = [f"I{number}" for number in range(10)]
    index = pd.MultiIndex.from_product([DAYS, instruments], names=["datetime", "instrument"])
    score = pd.Series(np.tile(np.arange(10.0), 3), index=index)
    label = (score * np.repeat([1.0, 2.0, 4.0], 10)).to_frame("LABEL0")
    generate(recorder, score, label)
    record = SigAnaRecord(recorder, ana_long_short=True, ann_scaler=100)
    record.generate()
    # The best two (20 %) of ten make 8.5, the worst two 0.5, all of them 4.5, times 1, 2, 4.
    long_short = [(8.5 - 0.5) / 2 * factor for factor in (1, 2, 4)]
    long_avg = [4.5 * factor for factor in (1, 2, 4)]
    assert list(record.load("long_short_r.pkl")) == pytest.approx(long_short)
    assert list(record.load("long_avg_r.pkl")) == pytest.approx(long_avg)
    metrics = recorder.list_metrics()
    for name, returns in (("Long-Short", long_short), ("Long-Avg", long_avg)):
        assert metrics[f"{name} Ann Return"] == pytest.approx(mean(returns) * 100)
        assert metrics[f"{name} Ann Sharpe"] == pytest.approx(mean(returns) / stdev(returns) * 10)


def test_without_a_signal_the_analysis_is_passed_over_with_a_warning(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    assert SigAnaRecord(recorder).generate() is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "SigAnaRecord is skipped" in record.getMessage()
    assert "pred.pkl" in record.getMessage()
    with pytest.raises(FileNotFoundError, match=r"pred.pkl"):
        SigAnaRecord(recorder).check()
    generate(recorder)
    assert SigAnaRecord(recorder).generate() is not None


def test_skip_existing_keeps_a_complete_analysis(recorder: Recorder) -> None:
    generate(recorder)
    SigAnaRecord(recorder).generate()
    generate(recorder, -SCORE)
    assert SigAnaRecord(recorder, skip_existing=True).generate() is None
    assert list(SigAnaRecord(recorder).load("ic.pkl")) == pytest.approx(IC)
    assert SigAnaRecord(recorder, ana_long_short=True, skip_existing=True).generate() is not None
    assert list(SigAnaRecord(recorder).load("ic.pkl")) == pytest.approx([-ic for ic in IC])


def test_another_column_of_the_labels_can_be_chosen(recorder: Recorder) -> None:
    generate(recorder, label=pd.DataFrame({"far": LABEL["LABEL0"] * 0, "near": LABEL["LABEL0"]}))
    SigAnaRecord(recorder, label_col=1).generate()
    assert list(SigAnaRecord(recorder).load("ic.pkl")) == pytest.approx(IC)
    for column in (2, -1):
        with pytest.raises(DataError, match="'far', 'near'"):
            SigAnaRecord(recorder, label_col=column).generate()


def test_labels_that_are_not_known_yet_give_nan_and_a_warning(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    generate(recorder, label=LABEL * np.nan)
    SigAnaRecord(recorder).generate()
    assert "no label of the segment is known yet" in caplog.text
    assert all(math.isnan(value) for value in recorder.list_metrics().values())


def test_an_analysis_may_be_made_after_the_run(store: Path) -> None:
    with R.start(experiment_name="e"):
        recorder = R.get_recorder()
    generate(recorder)
    SigAnaRecord(recorder).generate()
    assert recorder.status == "FINISHED"
    assert recorder.list_metrics()["IC"] == pytest.approx(mean(IC))


# --- records of ones own ---------------------------------------------------------------------


class Doubled(ACRecordTemp):
    artifact_path = "doubled"
    depend_cls = SigAnaRecord

    def _generate(self, **kwargs: Any) -> dict[str, Any]:
        return {"twice.pkl": list(self.load("ic.pkl") * 2)}

    def list(self) -> list[str]:
        return ["twice.pkl"]


def test_a_record_finds_the_files_of_all_that_it_depends_on(recorder: Recorder) -> None:
    record = Doubled(recorder)
    assert list(record.list_needed()) == [
        "sig_analysis/ic.pkl",
        "sig_analysis/ric.pkl",
        "pred.pkl",
        "label.pkl",
    ]
    assert record.generate() is None
    generate(recorder)
    assert record.generate() is None
    SigAnaRecord(recorder).generate()
    assert record.generate() == {"twice.pkl": pytest.approx([2 * ic for ic in IC])}
    assert Doubled.get_path("x") == "doubled/x"
    assert Doubled.get_path() == "doubled"
    assert SignalRecord.get_path("x") == "x"
    assert len(record.load("pred.pkl")) == 9
    with pytest.raises(ArtifactNotFoundError, match=r"doubled/pred.pkl"):
        record.load("pred.pkl", parents=False)
    assert type(record) is Doubled


def test_a_record_that_generates_nothing_says_so(recorder: Recorder) -> None:
    for call in (RecordTemp(recorder).generate, ACRecordTemp(recorder).generate):
        with pytest.raises(NotImplementedError, match="RecordTemp has no"):
            call()


def test_a_prediction_without_dates_is_refused_before_anything_is_saved(store: Path) -> None:
    class Undated:
        def predict(self, dataset: object) -> pd.Series:
            return pd.Series([1.0, 2.0])

    with R.start(experiment_name="e"):
        recorder = R.get_recorder()
        with pytest.raises(DataError, match=r"expected \(datetime, instrument\)"):
            SignalRecord(Undated(), object(), recorder).generate()
        with pytest.raises(RecorderStateError, match="needs a model and a dataset"):
            SignalRecord(recorder=recorder).generate()
    assert recorder.list_artifacts() == []
