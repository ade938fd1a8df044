"""A dataset cuts a handler's data into segments, and serves later dates without learning anew."""

from __future__ import annotations

import datetime
import logging
import pickle
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from qwf.data.dataset import DatasetH
from qwf.data.handler import PriceHandler
from qwf.errors import ConfigError, DataError, LookAheadError, SegmentError
from qwf.instantiate import init_instance_by_config

SP500 = Path(__file__).parent.parent / "examples" / "data" / "sp500_20.parquet"

SEGMENTS: dict[str, Any] = {
    "train": ("2019-01-02", datetime.date(2020, 6, 30)),
    "valid": ["2020-07-01", pd.Timestamp("2020-12-31")],
    "test": ("2021-01-04", None),
}


def handler_config(**kwargs: Any) -> dict[str, Any]:
    kwargs = {
        "panel": str(SP500),
        "instruments": ["AAPL", "KO", "XOM"],
        "start_time": "2019-01-02",
        "end_time": "2021-03-31",
        "infer_processors": [
            {"class": "RobustZScoreNorm", "kwargs": {"fields_group": "feature"}},
            {"class": "Fillna", "kwargs": {"fields_group": "feature"}},
        ],
        "learn_processors": [{"class": "DropnaLabel"}],
        **kwargs,
    }
    return {"class": "PriceHandler", "kwargs": kwargs}


def dataset(**kwargs: Any) -> DatasetH:
    return DatasetH(handler_config(**kwargs), SEGMENTS)


def days(frame: pd.DataFrame) -> tuple[str, str]:
    dates = frame.index.get_level_values("datetime")
    return str(dates.min().date()), str(dates.max().date())


def test_segments_are_cut_with_both_ends_whatever_form_the_dates_have() -> None:
    train, valid, test = dataset().prepare(["train", "valid", "test"])
    assert days(train) == ("2019-01-02", "2020-06-30")
    assert days(valid) == ("2020-07-01", "2020-12-31")
    assert days(test) == ("2021-01-04", "2021-03-31")
    assert train.columns.tolist()[0] == "RET1"
    assert train.index.names == ["datetime", "instrument"]


def test_columns_and_stage_are_chosen_as_the_records_and_models_do() -> None:
    data = dataset()
    label = data.prepare(segments="test", col_set="label", data_key="raw")
    assert label.columns.tolist() == ["LABEL0"]
    both = data.prepare("train", col_set=["feature", "label"], data_key="learn")
    assert both.columns.get_level_values(0).unique().tolist() == ["feature", "label"]
    window = data.prepare(slice("2020-01-06", "2020-01-10"), col_set="feature")
    assert days(window) == ("2020-01-06", "2020-01-10")
    assert days(data.prepare(("2020-01-06", "2020-01-07"))) == ("2020-01-06", "2020-01-07")
    assert days(data.prepare(data.segments["valid"])) == ("2020-07-01", "2020-12-31")


def test_wrong_segments_are_refused_with_their_name() -> None:
    data = dataset()
    with pytest.raises(SegmentError, match=r"no segment 'tset'; did you mean 'test'\?"):
        data.prepare("tset")
    with pytest.raises(SegmentError, match=r"no segment 'tset'"):
        data.prepare(["train", "tset"])
    with pytest.raises(SegmentError, match=r"expected \(start, end\)"):
        data.prepare(5)  # type: ignore[arg-type]
    with pytest.raises(
        DataError,
        match=r"'late' \(2030-01-01 to None\) has no infer data; .*2019-01-02 to 2021-03-31",
    ):
        DatasetH(handler_config(fit_end_time="2020-06-30"), {"late": ("2030-01-01", None)}).prepare(
            "late"
        )
    for segments, sentence in [
        (
            {"test": ("2021-01-01", "2020-01-01")},
            "segment 'test' starts at 2021-01-01, after its end",
        ),
        ({"test": ("soon", None)}, "the start of segment 'test': 'soon' is not a date"),
        ({"test": "2020-01-01"}, r"segment 'test' is '2020-01-01'; expected \(start, end\)"),
        ({"test": ("2020-01-01",)}, r"expected \(start, end\)"),
        ([("2020-01-01", None)], "expected a dict like"),
    ]:
        with pytest.raises(SegmentError, match=sentence):
            DatasetH(PriceHandler(SP500), segments)  # type: ignore[arg-type]


def test_a_handler_built_here_is_fitted_on_the_training_segment() -> None:
    by_default = dataset()
    explicit = dataset(fit_start_time="2019-01-02", fit_end_time="2020-06-30")
    other = dataset(fit_end_time="2019-06-28")
    frames = [data.prepare("test", col_set="feature") for data in (by_default, explicit, other)]
    pd.testing.assert_frame_equal(frames[0], frames[1], check_exact=True)
    assert not frames[0].equals(frames[2])
    open_end = DatasetH(handler_config(), {"train": (None, None)})
    with pytest.raises(LookAheadError, match="Pass fit_end_time"):
        open_end.prepare("train")
    # An instance may serve several datasets: it has to say itself where it learns.
    shared = init_instance_by_config(handler_config(), default_module="qwf.data.handler")
    with pytest.raises(LookAheadError, match="Pass fit_end_time"):
        DatasetH(shared, SEGMENTS).prepare("train")


def test_a_fit_window_that_reaches_into_the_test_segment_is_said_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, logger="qwf"):
        dataset(fit_end_time="2020-12-31")
        assert not caplog.records
        dataset(fit_end_time="2021-01-04")
    assert "fitted until 2021-01-04, and the test segment starts at 2021-01-04" in caplog.text


def test_a_saved_dataset_serves_later_dates_without_being_fitted_anew() -> None:
    data = dataset()
    before = data.prepare("test", col_set="feature")
    data.config(dump_all=False, recursive=True)
    content = pickle.dumps(data)
    assert len(content) < 6_000
    later = pickle.loads(content)
    steps = [vars(step).copy() for step in later.handler.infer_processors]

    later.config(
        handler_kwargs={"start_time": "2021-03-01", "end_time": "2021-06-30"},
        segments={"test": ("2021-03-01", "2021-06-30")},
    )
    later.setup_data(handler_kwargs={"init_type": "load_state"})
    after = later.prepare("test", col_set="feature")
    assert days(after) == ("2021-03-01", "2021-06-30")
    shared = before.loc["2021-03-01":"2021-03-31"]
    pd.testing.assert_frame_equal(after.loc[:"2021-03-31"], shared, check_exact=True)
    for step, learnt in zip(later.handler.infer_processors, steps, strict=True):
        assert pickle.dumps(vars(step)) == pickle.dumps(learnt)
    assert later.segments == {"test": ("2021-03-01", "2021-06-30")}
    label = later.prepare("test", col_set="label", data_key="raw")
    assert label["LABEL0"].notna().all()


def test_a_loaded_dataset_needs_no_set_up() -> None:
    data = dataset()
    whole = data.prepare("test")
    pd.testing.assert_frame_equal(pickle.loads(pickle.dumps(data)).prepare("test"), whole)


def test_impossible_changes_leave_the_dataset_as_it_was() -> None:
    data = dataset()
    with pytest.raises(SegmentError, match="after its end"):
        data.config({"end_time": "2020-01-01"}, {"test": ("2020-01-02", "2020-01-01")})
    assert data.handler.end_time == "2021-03-31"
    with pytest.raises(ConfigError, match="no setting 'end'"):
        data.config({"end": "2020-01-01"}, {"test": ("2020-01-02", None)})
    assert data.segments == SEGMENTS


def test_setting_up_without_load_state_fits_anew() -> None:
    data = dataset()
    data.setup_data()
    first = data.handler.infer_processors[0].mean_train
    data.handler.use_fit_window("2019-01-02", "2019-03-29")
    data.setup_data({"init_type": "load_state"})
    assert (data.handler.infer_processors[0].mean_train == first).all()
    data.setup_data()
    assert (data.handler.infer_processors[0].mean_train != first).any()


def test_a_pickled_handler_can_be_named_by_its_file(tmp_path: Path) -> None:
    data = dataset()
    whole = data.prepare("train")
    data.handler.to_pickle(tmp_path / "handler.pkl", dump_all=True)
    for place in (f"file://{tmp_path}/handler.pkl", tmp_path / "handler.pkl"):
        again = DatasetH(place, SEGMENTS)
        pd.testing.assert_frame_equal(again.prepare("train"), whole)


def test_a_dataset_is_written_with_or_without_data(tmp_path: Path) -> None:
    data = dataset()
    data.to_pickle(tmp_path / "slim.pkl")
    data.to_pickle(tmp_path / "fat.pkl", dump_all=True)
    assert (tmp_path / "slim.pkl").stat().st_size < 6_000
    assert (tmp_path / "fat.pkl").stat().st_size > 100_000
    for name in ("slim.pkl", "fat.pkl"):
        loaded = pickle.loads((tmp_path / name).read_bytes())
        pd.testing.assert_frame_equal(loaded.prepare("test"), data.prepare("test"))
        assert len(pickle.dumps(loaded)) < 6_000


def test_a_dataset_can_be_named_in_a_configuration() -> None:
    config = {
        "class": "DatasetH",
        "module_path": "qwf.data.dataset",
        "kwargs": {"handler": handler_config(), "segments": SEGMENTS},
    }
    assert days(init_instance_by_config(config).prepare("valid")) == ("2020-07-01", "2020-12-31")
