"""The signal of a trained model, and how good it is."""

from __future__ import annotations

import logging
from typing import Any, ClassVar, Final

import pandas as pd

from ..errors import DataError, RecorderStateError
from ..instantiate import auto_filter_kwargs
from ..tracking.recorder import Recorder
from .base import ACRecordTemp, RecordTemp
from .signal_metrics import calc_ic, calc_long_short_return, ic_summary

__all__ = ["SigAnaRecord", "SignalRecord"]

_logger: Final = logging.getLogger("qwf.records")


class SignalRecord(RecordTemp):
    """The predictions of a model for the segment ``"test"``, and the labels to compare with.

    Saves ``pred.pkl``, a DataFrame with index levels ``(datetime, instrument)``, and, if the
    dataset has ``prepare``, ``label.pkl`` with the raw labels of the same segment.

    Parameters
    ----------
    model : Model
        Has ``predict(dataset)``, which returns a Series (saved as the column ``score``) or
        DataFrame.
    dataset : Dataset
    recorder : Recorder
    """

    def __init__(
        self, model: Any = None, dataset: Any = None, recorder: Recorder | None = None
    ) -> None:
        super().__init__(recorder)
        self.model = model
        self.dataset = dataset

    @staticmethod
    def generate_label(dataset: Any) -> pd.DataFrame | None:
        """Return the raw labels of the segment ``"test"``, or None if the dataset has none."""
        prepare = getattr(dataset, "prepare", None)
        if prepare is None:
            return None
        call = auto_filter_kwargs(prepare, warning=False)
        label: pd.DataFrame | None = call(segments="test", col_set="label", data_key="raw")
        return label

    def generate(self, **kwargs: Any) -> None:
        """Predict and save.

        Raises
        ------
        DataError
            If the prediction is no Series or DataFrame, is empty, or has an index entry twice.
            Nothing was saved.
        """
        if self.model is None or self.dataset is None:
            raise RecorderStateError(
                "SignalRecord needs a model and a dataset to predict with, and was made without. "
                "Pass model=... and dataset=...; nothing was saved."
            )
        saved = {"pred.pkl": self._checked(self.model.predict(self.dataset))}
        label = self.generate_label(self.dataset)
        if label is not None:
            saved["label.pkl"] = label
        self.save(**saved)

    def _checked(self, prediction: Any) -> pd.DataFrame:
        who = type(self.model).__name__
        if isinstance(prediction, pd.Series):
            prediction = prediction.to_frame("score")
        if not isinstance(prediction, pd.DataFrame):
            kind = type(prediction).__name__
            raise DataError(
                f"{who}.predict returned a {kind}; expected a Series or DataFrame with index "
                "levels (datetime, instrument). Nothing was saved."
            )
        if "datetime" not in prediction.index.names:
            raise DataError(
                f"{who}.predict returned index levels {list(prediction.index.names)}; expected "
                "(datetime, instrument). Nothing was saved."
            )
        if prediction.empty:
            raise DataError(f"{who}.predict returned no rows. Nothing was saved.")
        twice = prediction.index[prediction.index.duplicated()]
        if len(twice):
            raise DataError(
                f"{who}.predict returned {len(twice)} index entries twice, first {twice[0]}. "
                "Nothing was saved."
            )
        return prediction

    def list(self) -> list[str]:
        """Return the names of the files that `generate` saves."""
        return ["pred.pkl", "label.pkl"]


class SigAnaRecord(ACRecordTemp):
    """IC and Rank IC of the saved signal, per day and in total.

    Saves ``sig_analysis/ic.pkl`` and ``ric.pkl`` (one value per day) and logs the metrics ``IC``,
    ``ICIR``, ``Rank IC`` and ``Rank ICIR``; see `calc_ic` for the formulas.

    Parameters
    ----------
    recorder : Recorder
    ana_long_short : bool, default False
        Also save ``long_short_r.pkl`` and ``long_avg_r.pkl`` (see `calc_long_short_return`) and
        log their mean times `ann_scaler` (``... Ann Return``) and mean over standard deviation
        times its root (``... Ann Sharpe``).
    ann_scaler : int, default 252
        Trading days of a year.
    label_col : int, default 0
        Which column of the labels to compare with.
    skip_existing : bool, default False
        See `ACRecordTemp`.
    """

    artifact_path: ClassVar[str | None] = "sig_analysis"
    depend_cls: ClassVar[type[RecordTemp] | None] = SignalRecord

    def __init__(
        self,
        recorder: Recorder,
        ana_long_short: bool = False,
        ann_scaler: int = 252,
        label_col: int = 0,
        skip_existing: bool = False,
    ) -> None:
        super().__init__(recorder, skip_existing=skip_existing)
        self.ana_long_short = ana_long_short
        self.ann_scaler = ann_scaler
        self.label_col = label_col

    def _generate(self, label: pd.DataFrame | None = None, **kwargs: Any) -> dict[str, Any]:
        pred = self.load("pred.pkl")
        if label is None:
            label = self.load("label.pkl")
        if not 0 <= self.label_col < label.shape[1]:
            raise DataError(
                f"label_col is {self.label_col}, and the labels of recorder {self.recorder.id} "
                f"have the columns {list(label.columns)}. Nothing was saved."
            )
        score, truth = pred.iloc[:, 0], label.iloc[:, self.label_col]
        if truth.isna().all():
            _logger.warning(
                "recorder %s: no label of the segment is known yet, so its IC is NaN",
                self.recorder.id,
            )
        ic, ric = calc_ic(score, truth)
        objects = {"ic.pkl": ic, "ric.pkl": ric}
        metrics: dict[str, Any] = dict(zip(("IC", "ICIR"), ic_summary(ic), strict=True))
        metrics |= zip(("Rank IC", "Rank ICIR"), ic_summary(ric), strict=True)
        if self.ana_long_short:
            long_short, long_avg = calc_long_short_return(score, truth)
            objects |= {"long_short_r.pkl": long_short, "long_avg_r.pkl": long_avg}
            metrics |= self._annual("Long-Short", long_short)
            metrics |= self._annual("Long-Avg", long_avg)
        self.recorder.log_metrics(**metrics)
        return objects

    def _annual(self, name: str, returns: pd.Series) -> dict[str, float]:
        mean, ratio = ic_summary(returns)
        return {
            f"{name} Ann Return": mean * self.ann_scaler,
            f"{name} Ann Sharpe": ratio * self.ann_scaler**0.5,
        }

    def list(self) -> list[str]:
        """Return the names of the files that `generate` saves."""
        names = ["ic.pkl", "ric.pkl"]
        return [*names, "long_short_r.pkl", "long_avg_r.pkl"] if self.ana_long_short else names
