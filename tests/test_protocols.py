"""What qwf needs of a model, dataset, record or calendar is a protocol, not a base class."""

from __future__ import annotations

import pandas as pd

from qwf import (
    Calendar,
    Dataset,
    DatasetH,
    LinearModel,
    Model,
    PriceHandler,
    PricePanel,
    Record,
    SignalRecord,
    TradingCalendar,
)


class OwnModel(Model):
    """As scripts written for Qlib do: a subclass that fills in the two methods."""

    def fit(self, dataset: object) -> None:
        self.fitted = dataset

    def predict(self, dataset: object) -> pd.Series:
        return pd.Series([1.0])


class DuckModel:
    def fit(self, dataset: object) -> None: ...

    def predict(self, dataset: object) -> pd.Series:
        return pd.Series([1.0])


def test_a_class_with_the_methods_is_a_model() -> None:
    assert isinstance(DuckModel(), Model)
    assert isinstance(OwnModel(), Model)
    assert not isinstance(object(), Model)


def test_the_ready_made_parts_satisfy_the_protocols() -> None:
    assert isinstance(LinearModel(), Model)
    assert isinstance(SignalRecord(), Record)
    assert issubclass(PricePanel, Calendar)
    assert not isinstance(TradingCalendar(["2020-01-01"]), Model)
    closes = pd.DataFrame({"A": [1.0, 2.0]}, index=pd.date_range("2020-01-01", periods=2))
    closes.index.name = "datetime"
    segments = {"test": ("2020-01-01", "2020-01-02")}
    assert isinstance(DatasetH(PriceHandler(closes), segments), Dataset)
