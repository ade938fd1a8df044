"""A handler computes what its documentation says, and keeps what it has learnt."""

from __future__ import annotations

import copy
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from qwf.config import C
from qwf.data.handler import DataHandlerLP, PriceHandler
from qwf.data.processors import (
    CSRankNorm,
    CSZScoreNorm,
    DropnaLabel,
    DropnaProcessor,
    Fillna,
    RobustZScoreNorm,
    ZScoreNorm,
)
from qwf.errors import ConfigError, DataError, LookAheadError, SegmentError

SP500 = Path(__file__).parent.parent / "examples" / "data" / "sp500_20.parquet"


def closes(n_bars: int = 90, seed: int = 3) -> pd.DataFrame:
    """Random walks of four instruments; D starts late, B misses two bars in the middle."""
    steps = np.random.default_rng(seed).normal(0, 0.02, (n_bars, 4))
    dates = pd.bdate_range("2020-01-01", periods=n_bars, name="datetime")
    frame = pd.DataFrame(100 * np.exp(steps.cumsum(axis=0)), index=dates, columns=list("ABCD"))
    frame.iloc[:20, 3] = np.nan
    frame.iloc[70:72, 1] = np.nan
    return frame


def test_a_tiny_panel_has_the_features_and_labels_worked_out_by_hand() -> None:
    prices = [100.0, 110.0, 99.0, 99.0, 198.0, 99.0, 132.0]
    dates = pd.date_range("2020-01-01", periods=7, name="datetime")
    frame = pd.DataFrame({"A": prices, "B": [10.0] * 7}, index=dates)
    data = PriceHandler(frame, label_horizon=2).fetch(col_set="__raw").xs("A", level="instrument")
    feature, label = data["feature"], data["label"]["LABEL0"]
    assert feature["RET1"].tolist()[1:] == pytest.approx([0.1, -0.1, 0, 1, -0.5, 1 / 3])
    assert feature["RET5"].tolist() == pytest.approx([np.nan] * 5 + [-0.01, 0.2], nan_ok=True)
    assert feature["MA5"].tolist()[4:] == pytest.approx([606 / 990, 605 / 495, 627 / 660])
    # Returns 0.1, -0.1, 0, 1, -0.5: mean 0.1, squares 0, 0.04, 0.01, 0.81, 0.36 add up to 1.22.
    assert feature["VOL5"].tolist()[5] == pytest.approx((1.22 / 4) ** 0.5)
    assert feature["MA5"].isna().tolist()[:4] == [True] * 4
    # Bought at the next close, sold two bars later.
    expected = [99 / 110 - 1, 1.0, 0.0, 132 / 198 - 1]
    assert label.tolist() == pytest.approx([*expected, np.nan, np.nan, np.nan], nan_ok=True)


def test_features_equal_those_of_pandas_rolling_windows() -> None:
    frame = closes().drop(columns="B")
    found = PriceHandler(frame).fetch()
    returns = frame.pct_change(fill_method=None)
    expected = {
        **{f"RET{d}": frame / frame.shift(d) - 1 for d in (1, 5, 10, 20, 60)},
        **{f"MA{d}": frame.rolling(d).mean() / frame for d in (5, 10, 20, 60)},
        **{f"VOL{d}": returns.rolling(d).std() for d in (5, 20, 60)},
        **{f"MAX{d}": frame.rolling(d).max() / frame for d in (20, 60)},
        **{f"MIN{d}": frame.rolling(d).min() / frame for d in (20, 60)},
        "MOM": frame.shift(20) / frame.shift(60) - 1,
        "RANK20": (frame / frame.shift(20) - 1).rank(axis=1, pct=True),
        "LABEL0": frame.shift(-2) / frame.shift(-1) - 1,
    }
    assert found.columns.tolist() == list(expected)
    for name, wide in expected.items():
        got = found[name].unstack().reindex(columns=list("ACD"))
        np.testing.assert_allclose(got, wide.where(frame.notna()), rtol=1e-9, err_msg=name)


def test_a_bar_without_a_close_has_no_row_and_the_last_close_stands_for_it() -> None:
    frame = closes()
    data = PriceHandler(frame).fetch()["RET1"].unstack()["B"]
    assert data.isna().sum() == 3  # the first bar and the two missing ones
    gone, back = frame.index[70], frame.index[72]
    assert (gone, "B") not in PriceHandler(frame).fetch().index
    assert data[back] == frame["B"][back] / frame["B"].iloc[69] - 1
    label = PriceHandler(frame).fetch()["LABEL0"].unstack()["B"]
    assert label.iloc[66:70].notna().tolist() == [True, True, False, False]


def test_the_first_day_has_its_features_from_before_the_start() -> None:
    frame = closes()
    whole = PriceHandler(frame).fetch()
    start, end = frame.index[75], frame.index[80]
    part = PriceHandler(frame, start_time=start, end_time=end).fetch()
    pd.testing.assert_frame_equal(part, whole.loc[start:end], check_exact=True)
    days = part.index.get_level_values("datetime")
    assert (days.min(), days.max()) == (start, end)
    assert part.drop(columns="LABEL0").xs("A", level="instrument").notna().all().all()


def test_instruments_are_chosen_by_name_and_ranked_among_themselves() -> None:
    data = PriceHandler(closes(), instruments=["C", "A"]).fetch()
    assert data.index.get_level_values("instrument").unique().tolist() == ["A", "C"]
    assert set(data["RANK20"].dropna()) == {0.5, 1.0}
    pd.testing.assert_frame_equal(
        PriceHandler(closes(), instruments="all").fetch(), PriceHandler(closes()).fetch()
    )
    with pytest.raises(DataError, match="pass a list of instruments"):
        PriceHandler(closes(), instruments="csi300").fetch()


def test_a_market_has_rows_within_its_spans_and_history_from_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("calendars", "instruments", "features/a"):
        (tmp_path / folder).mkdir(parents=True)
    dates = pd.bdate_range("2020-01-01", periods=8)
    (tmp_path / "calendars/day.txt").write_text("\n".join(str(day.date()) for day in dates))
    span = f"A\t{dates[6].date()}\t{dates[7].date()}\n"
    (tmp_path / "instruments/late.txt").write_text(span)
    np.array([0, 1, 2, 3, 4, 5, 6, 7, 8], dtype="<f4").tofile(tmp_path / "features/a/close.day.bin")
    data = PriceHandler(tmp_path, instruments="late").fetch()
    assert data["RET5"].tolist() == [7 / 2 - 1, 8 / 3 - 1]
    monkeypatch.setattr(C, "_values", {"provider_uri": tmp_path})
    pd.testing.assert_frame_equal(PriceHandler(instruments="late").fetch(), data)


# --- fitted processors -----------------------------------------------------------------------


def small(values: list[float], label: list[float] | None = None) -> pd.DataFrame:
    dates = pd.date_range("2020-01-01", periods=len(values))
    index = pd.MultiIndex.from_product([dates, ["A"]], names=["datetime", "instrument"])
    columns = {("feature", "F"): values, ("label", "L"): label or values}
    return pd.DataFrame(columns, index=index, dtype=float)


def test_robust_z_scores_use_median_and_mad_of_the_fit_window() -> None:
    step = RobustZScoreNorm("2020-01-01", "2020-01-05", fields_group="feature")
    frame = small([1, 2, 3, 4, 100, 8, -50, np.nan])
    step.fit(frame)
    # Median 3; deviations 2, 1, 0, 1, 97 have the median 1.
    got = step(frame)["feature", "F"].tolist()
    expected = [-2 / 1.4826, -1 / 1.4826, 0, 1 / 1.4826, 3, 3, -3, np.nan]
    assert got == pytest.approx(expected, nan_ok=True)
    unbounded = RobustZScoreNorm(None, "2020-01-05", "feature", clip_outlier=False)
    unbounded.fit(frame)
    assert unbounded(frame)["feature", "F"].iloc[5] == pytest.approx(5 / 1.4826)
    assert step(frame)["label", "L"].tolist()[:2] == [1, 2]


def test_z_scores_use_mean_and_deviation_and_leave_constants() -> None:
    step = ZScoreNorm(fit_end_time="2020-01-04")
    frame = small([2, 4, 4, 6, 1000], label=[7, 7, 7, 7, 8])
    step.fit(frame)
    assert step(frame)["feature", "F"].tolist()[:2] == pytest.approx([-2 / 2**0.5, 0])
    assert step(frame)["label", "L"].tolist() == [7, 7, 7, 7, 8]


def test_cross_sectional_steps_work_within_each_bar() -> None:
    index = pd.MultiIndex.from_product(
        [pd.date_range("2020-01-01", periods=2), list("ABCD")], names=["datetime", "instrument"]
    )
    values = [1.0, 2.0, 2.0, 5.0, 9.0, np.nan, 9.0, 9.0]
    frame = pd.DataFrame({("label", "L"): values}, index=index)
    rank = CSRankNorm(fields_group="label")(frame)["label", "L"].tolist()
    first = [(r - 0.5) * 3.46 for r in (0.25, 0.625, 0.625, 1.0)]
    last = [(r - 0.5) * 3.46 for r in (2 / 3, np.nan, 2 / 3, 2 / 3)]
    assert rank == pytest.approx(first + last, nan_ok=True)
    score = CSZScoreNorm(fields_group="label")(frame)["label", "L"].tolist()
    assert score[:4] == pytest.approx([-1.5 / 3**0.5, -0.5 / 3**0.5, -0.5 / 3**0.5, 2.5 / 3**0.5])
    assert np.isnan(score[4:]).all()
    robust = CSZScoreNorm(method="robust")(frame)["label", "L"].tolist()
    assert robust[:4] == pytest.approx([-1 / 0.5 / 1.4826, 0, 0, 3])
    with pytest.raises(ConfigError, match="no method 'robist'; did you mean 'robust'"):
        CSZScoreNorm(method="robist")


def test_missing_values_are_filled_or_dropped_and_the_input_stays() -> None:
    frame = small([1, np.nan, 3], label=[np.nan, 2, 3])
    before = frame.copy(deep=True)
    filled = Fillna(fields_group="feature", fill_value=-1)(frame)
    assert filled["feature", "F"].tolist() == [1, -1, 3]
    assert filled["label", "L"].isna().tolist() == [True, False, False]
    assert len(DropnaLabel()(frame)) == 2
    assert len(DropnaProcessor()(frame)) == 1
    assert not DropnaLabel().is_for_infer()
    pd.testing.assert_frame_equal(frame, before)


def test_steps_refuse_what_they_cannot_do() -> None:
    frame = small([1, 2, 3])
    with pytest.raises(DataError, match="RobustZScoreNorm is used before it was fitted"):
        RobustZScoreNorm()(frame)
    with pytest.raises(DataError, match=r"has no value in the 3 rows from 2020-01-01.*2020-01-03"):
        ZScoreNorm().fit(small([np.nan] * 3))
    with pytest.raises(DataError, match="has no value in the 0 rows from an empty window"):
        ZScoreNorm(fit_start_time="2021-01-01").fit(frame)
    with pytest.raises(DataError, match=r"no column group 'features'; did you mean 'feature'"):
        Fillna("features")(frame)
    step = ZScoreNorm()
    step.fit(frame)
    with pytest.raises(DataError, match="was fitted on the columns"):
        step(frame.rename(columns={"F": "G"}))
    with pytest.raises(SegmentError, match="starts at 2021-01-01, after its end 2020-01-01"):
        ZScoreNorm("2021-01-01", "2020-01-01")


# --- what a handler does with them -----------------------------------------------------------


def fitted(**kwargs: Any) -> PriceHandler:
    kwargs = {
        "panel": closes(),
        "fit_end_time": "2020-03-31",
        "infer_processors": [
            {"class": "RobustZScoreNorm", "kwargs": {"fields_group": "feature"}},
            {"class": "Fillna", "kwargs": {"fields_group": "feature"}},
        ],
        "learn_processors": ["DropnaLabel", CSRankNorm("label")],
        **kwargs,
    }
    return PriceHandler(**kwargs)


def test_infer_and_learn_data_are_the_raw_ones_processed_in_turn() -> None:
    handler = fitted()
    raw, infer, learn = (
        handler.fetch(data_key=key, col_set="__raw") for key in ("raw", "infer", "learn")
    )
    window = raw.loc[:"2020-03-31", "feature"]
    median = window.median()
    scale = ((window - median).abs().median() + 1e-12) * 1.4826
    expected = ((raw["feature"] - median) / scale).clip(-3, 3).fillna(0)
    pd.testing.assert_frame_equal(infer["feature"], expected)
    pd.testing.assert_frame_equal(infer["label"], raw["label"])
    assert len(learn) == raw["label", "LABEL0"].notna().sum()
    ranks = raw["label"].dropna().groupby(level="datetime").rank(pct=True)
    pd.testing.assert_frame_equal(learn["label"], (ranks - 0.5) * 3.46)


def test_columns_are_fetched_by_group_and_rows_by_date() -> None:
    handler = fitted()
    day = "2020-03-02"
    assert handler.fetch(day, col_set="label").columns.tolist() == ["LABEL0"]
    assert handler.fetch(day)["RET1"].shape == (4,)
    both = handler.fetch((None, day), col_set=["label", "feature"])
    assert both.columns[0] == ("label", "LABEL0")
    assert both.index[-1] == (pd.Timestamp(day), "D")
    assert handler.fetch(slice("2030-01-01", None)).empty
    with pytest.raises(DataError, match=r"no column set 'labels'; did you mean 'label'\?"):
        handler.fetch(col_set="labels")
    with pytest.raises(DataError, match=r"no data_key 'lern'; did you mean 'learn'\?"):
        handler.fetch(data_key="lern")


def test_a_window_with_processors_to_be_fitted_needs_an_end() -> None:
    with pytest.raises(
        LookAheadError, match=r"RobustZScoreNorm has to be fitted .* no fit_end_time"
    ):
        fitted(fit_end_time=None).fetch()
    with pytest.raises(DataError, match=r"2019-01-01 .*holds none of the rows from 2020-01-01"):
        fitted(fit_end_time="2019-01-01").fetch()
    own = fitted(fit_end_time=None, infer_processors=[ZScoreNorm(fit_end_time="2020-04-01")])
    narrow = fitted(
        infer_processors=[ZScoreNorm(fit_end_time="2020-04-01")], fit_end_time="2020-05-01"
    )
    own.setup_data()
    narrow.setup_data()
    assert state(own) == state(narrow)


def test_impossible_settings_are_refused_before_anything_is_read() -> None:
    nowhere = Path("nowhere.parquet")
    with pytest.raises(SegmentError, match="PriceHandler starts at 2021-01-01, after its end 2020"):
        PriceHandler(nowhere, start_time="2021-01-01", end_time="2020-01-01")
    with pytest.raises(SegmentError, match="20200101 is a number"):
        PriceHandler(nowhere, fit_end_time=20200101)  # type: ignore[arg-type]
    for horizon in (0, 1.5, True):
        with pytest.raises(ConfigError, match="label_horizon is"):
            PriceHandler(nowhere, label_horizon=horizon)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="DropnaLabel needs labels"):
        PriceHandler(nowhere, infer_processors=[DropnaLabel()])
    with pytest.raises(ConfigError, match="no init_type 'load_stat'; did you mean 'load_state'"):
        PriceHandler(nowhere).setup_data("load_stat")
    with pytest.raises(DataError, match="cannot read prices from nowhere"):
        PriceHandler(nowhere).fetch()
    with pytest.raises(DataError, match=r"pass panel=\.\.\., or name a Qlib data directory"):
        PriceHandler().fetch()
    with pytest.raises(DataError, match="the close of C on 2020-01-06 00:00:00 is -1"):
        PriceHandler(closes().replace(closes().iloc[3, 2], -1.0)).fetch()
    with pytest.raises(DataError, match="no data from 2031-01-01 to the end"):
        PriceHandler(closes(), start_time="2031-01-01").fetch()


def state(handler: DataHandlerLP) -> list[Any]:
    steps = [*handler.infer_processors, *handler.learn_processors]
    return [
        (type(step).__name__, step.mean_train.tobytes(), step.std_train.tobytes())
        for step in steps
        if hasattr(step, "mean_train")
    ]


def test_later_dates_are_loaded_with_the_state_that_was_fitted() -> None:
    handler = fitted(end_time="2020-04-15")
    before = handler.fetch("2020-04-10")
    learnt = state(handler)
    handler.config(start_time="2020-04-08", end_time=None)
    handler.setup_data(init_type=handler.IT_LS)
    pd.testing.assert_frame_equal(handler.fetch("2020-04-10"), before, check_exact=True)
    assert state(handler) == learnt
    assert handler.fetch().index[0][0] == pd.Timestamp("2020-04-08")
    with pytest.raises(DataError, match="holds none of the rows"):
        handler.setup_data()
    assert state(handler) == learnt
    with pytest.raises(DataError, match=r"load_state needs fitted .* RobustZScoreNorm of this"):
        fitted().setup_data("load_state")


def test_steps_can_be_fitted_one_after_the_other_or_each_on_raw_data() -> None:
    steps = [ZScoreNorm(fields_group="feature"), RobustZScoreNorm(fields_group="feature")]
    sequence, independent = (fitted(infer_processors=steps) for _ in range(2))
    sequence.setup_data(init_type=DataHandlerLP.IT_FIT_SEQ)
    independent.setup_data(init_type=DataHandlerLP.IT_FIT_IND)
    assert state(sequence)[0] == state(independent)[0]
    assert state(sequence)[1] != state(independent)[1]
    alone = fitted(infer_processors=steps[1:])
    alone.setup_data()
    assert state(alone)[0] == state(independent)[1]
    assert steps[0].mean_train is None  # the steps given are not touched


def test_a_pickle_has_the_state_and_no_data(tmp_path: Path) -> None:
    closes().to_parquet(tmp_path / "closes.parquet")
    handler = fitted(panel=tmp_path / "closes.parquet")
    whole = handler.fetch()
    slim = pickle.dumps(handler)
    assert len(slim) < 5_000
    loaded = pickle.loads(slim)
    assert state(loaded) == state(handler)
    pd.testing.assert_frame_equal(loaded.fetch(), whole, check_exact=True)
    assert state(loaded) == state(handler)

    fitted(panel=tmp_path / "closes.parquet").to_pickle(tmp_path / "fat.pkl", dump_all=True)
    (tmp_path / "closes.parquet").unlink()
    fat = pickle.loads((tmp_path / "fat.pkl").read_bytes())
    pd.testing.assert_frame_equal(fat.fetch(), whole, check_exact=True)
    assert len(pickle.dumps(fat)) < 5_000
    handler.to_pickle(tmp_path / "slim.pkl")
    assert (tmp_path / "slim.pkl").stat().st_size < 5_000


def test_prices_in_memory_are_left_out_of_a_pickle_and_can_be_given_again() -> None:
    handler = fitted()
    whole = handler.fetch()
    loaded = pickle.loads(pickle.dumps(handler))
    with pytest.raises(DataError, match=r"its pickle leaves them out. Give them again with config"):
        loaded.fetch()
    loaded.config(panel=closes())
    pd.testing.assert_frame_equal(loaded.fetch(), whole, check_exact=True)
    handler.config(dump_all=True)
    copied = copy.deepcopy(handler)
    copied.config(end_time="2020-04-15")
    assert copied.fetch().index[-1][0] == pd.Timestamp("2020-04-15")


def test_only_known_settings_can_be_changed() -> None:
    handler = fitted()
    with pytest.raises(
        ConfigError, match=r"no setting 'end_tme' to change; did you mean 'end_time'"
    ):
        handler.config(start_time="2020-02-03", end_tme=None)
    with pytest.raises(SegmentError, match="after its end"):
        handler.config(start_time="2020-02-03", end_time="2020-01-03")
    assert (handler.start_time, handler.end_time) == (None, None)


class FromFrame(DataHandlerLP):
    def __init__(self, frame: pd.DataFrame, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.frame = frame

    def load(self) -> pd.DataFrame:
        return self.frame


class InPlace:
    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        df.iloc[:, 0] = 0.0
        return df


def test_a_handler_and_steps_of_ones_own_work() -> None:
    handler = FromFrame(small([1, 2, 3]), infer_processors=[InPlace()])
    assert handler.fetch()["F"].tolist() == [0, 0, 0]
    assert handler.fetch(data_key="raw")["F"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("frame", "sentence"),
    [
        (small([1, 2]).droplevel(0, axis=1), "columns of 1 levels; expected"),
        (
            small([1, 2]).rename_axis(["date", "instrument"]),
            r"index levels \['date', 'instrument'\]",
        ),
        (small([1, 2]).iloc[::-1], "rows that are not sorted by datetime"),
        (small([1, 2]).iloc[:0], "has no data from the beginning to the end"),
    ],
)
def test_data_of_ones_own_that_break_the_contract_are_refused(
    frame: pd.DataFrame, sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        FromFrame(frame).fetch()


def test_all_features_of_the_example_data_are_computed_quickly() -> None:
    handler = PriceHandler(pd.read_parquet(SP500))
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        frame = handler.load()
        seconds.append(time.perf_counter() - start)
    assert frame.shape == (8313 * 21, 19)
    assert frame.loc["1990-03-29":].iloc[:, :-1].notna().all().all()
    assert min(seconds) < 0.5


def test_data_asked_for_after_a_change_are_processed_as_fitted_before() -> None:
    handler = fitted()
    before = handler.fetch("2020-04-10")
    learnt = state(handler)
    # None of the fit window is left: fitting anew would fail.
    handler.config(start_time="2020-04-08")
    pd.testing.assert_frame_equal(handler.fetch("2020-04-10"), before, check_exact=True)
    assert state(handler) == learnt


def test_a_failed_fit_leaves_all_steps_as_they_were() -> None:
    frame = small([1, 2, 3, 4, 5])
    narrow = RobustZScoreNorm(fit_start_time="2020-01-04")
    steps = [ZScoreNorm(), narrow]
    handler = FromFrame(frame, fit_end_time="2020-01-05", infer_processors=steps)
    handler.setup_data()
    learnt = state(handler)
    handler.frame = frame.iloc[:3] * 2
    with pytest.raises(DataError, match="fit window of RobustZScoreNorm, 2020-01-04"):
        handler.setup_data()
    assert state(handler) == learnt


def test_an_instrument_without_a_close_is_not_ranked() -> None:
    frame = closes()
    halted = PriceHandler(frame).fetch().loc[frame.index[70], "RANK20"]
    assert sorted(halted) == pytest.approx([1 / 3, 2 / 3, 1])
