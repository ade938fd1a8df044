"""Nothing that happens after a moment changes what was known at that moment, to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwf.data.handler import PriceHandler
from qwf.data.processors import CSRankNorm, RobustZScoreNorm, ZScoreNorm

SP500 = Path(__file__).parent.parent / "examples" / "data" / "sp500_20.parquet"
CLOSES = pd.read_parquet(SP500).iloc[-160:, :6]


def poisoned(after: int, value: float) -> pd.DataFrame:
    frame = CLOSES.copy()
    frame.iloc[after + 1 :] = value
    return frame


def bits(frame: pd.DataFrame) -> bytes:
    return np.ascontiguousarray(frame.to_numpy()).tobytes()


@settings(max_examples=25, deadline=None)
@given(
    after=st.integers(0, len(CLOSES) - 1),
    value=st.sampled_from([np.nan, 1e9, 1e-9]),
    horizon=st.integers(1, 5),
)
def test_features_do_not_know_later_prices(after: int, value: float, horizon: int) -> None:
    moment = CLOSES.index[after]
    clean = PriceHandler(CLOSES, label_horizon=horizon).fetch((None, moment), col_set="feature")
    frame = poisoned(after, value)
    dirty = PriceHandler(frame, label_horizon=horizon).fetch((None, moment), col_set="feature")
    assert clean.index.equals(dirty.index)
    assert bits(clean) == bits(dirty)


@pytest.mark.parametrize("value", [np.nan, 1e9])
@pytest.mark.parametrize("horizon", [1, 5])
def test_a_label_knows_the_prices_until_it_is_sold_and_no_later(value: float, horizon: int) -> None:
    after = 100
    known = CLOSES.index[after - horizon - 1]
    clean = PriceHandler(CLOSES, label_horizon=horizon)
    dirty = PriceHandler(poisoned(after, value), label_horizon=horizon)
    assert bits(clean.fetch((None, known), col_set="label")) == bits(
        dirty.fetch((None, known), col_set="label")
    )
    first_unknown = CLOSES.index[after - horizon]
    clean_label = clean.fetch(first_unknown, col_set="label")
    assert not clean_label.equals(dirty.fetch(first_unknown, col_set="label"))


def test_labels_are_missing_exactly_where_the_future_is_unknown() -> None:
    label = PriceHandler(CLOSES, label_horizon=3).fetch(col_set="label")["LABEL0"].unstack()
    assert label.iloc[:-4].notna().all().all()
    assert label.iloc[-4:].isna().all().all()


@pytest.mark.parametrize("value", [np.nan, 1e9])
@pytest.mark.parametrize("init_type", ["fit_seq", "fit_ind"])
def test_prices_after_the_fit_window_do_not_change_what_is_learnt(
    value: float, init_type: str
) -> None:
    """Not even through the labels of the last rows, which use later prices."""
    after = 100

    def learnt(prices: pd.DataFrame) -> list[bytes]:
        handler = PriceHandler(
            prices,
            fit_start_time=CLOSES.index[70],
            fit_end_time=CLOSES.index[after],
            infer_processors=[RobustZScoreNorm(), ZScoreNorm(fields_group="feature")],
            learn_processors=[CSRankNorm("label"), ZScoreNorm(fields_group="label")],
            label_horizon=2,
        )
        handler.setup_data(init_type)
        steps = [*handler.infer_processors, *handler.learn_processors]
        return [
            part.tobytes()
            for step in steps
            if hasattr(step, "mean_train")
            for part in (step.mean_train, step.std_train)
        ]

    assert learnt(CLOSES) == learnt(poisoned(after, value))
    assert learnt(CLOSES) != learnt(poisoned(after - 1, 1e9))


def test_prices_before_the_warm_up_do_not_change_a_feature() -> None:
    """The other side: a day loaded alone has the bits that it has in ten years of data."""
    start = CLOSES.index[130]
    whole = PriceHandler(CLOSES).fetch((start, None))
    alone = PriceHandler(CLOSES, start_time=start).fetch()
    short = PriceHandler(CLOSES.iloc[70:], start_time=start).fetch()
    assert bits(whole) == bits(alone) == bits(short)


def test_a_halt_longer_than_the_warm_up_gives_the_same_features_from_any_start() -> None:
    frame = CLOSES.copy()
    frame.iloc[20:125, 0] = np.nan
    start = frame.index[130]
    whole = PriceHandler(frame).fetch((start, None))
    assert bits(whole) == bits(PriceHandler(frame, start_time=start).fetch())
    assert whole["RET60"].notna().all()
