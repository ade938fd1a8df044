"""Your own model and dataset: two small classes, no base class, and all of qwf works with them.

Run it anywhere: ``python examples/03_own_model_and_dataset.py``.
"""

import tempfile
from pathlib import Path

import pandas as pd

import qwf
from qwf import TrainerR

PRICES = Path(__file__).parent / "data" / "sp500_20.parquet"


class Momentum:
    """Scores a stock by its return over the last days; learns the best number of days."""

    def fit(self, dataset):
        label = dataset.prepare("train", col_set="label").iloc[:, 0]
        returns = {days: dataset.past_return("train", days) for days in (5, 20, 60)}
        self.days = max(returns, key=lambda days: abs(returns[days].corr(label)))

    def predict(self, dataset, segment="test"):
        return dataset.past_return(segment, self.days)


class Closes:
    """Closes of a parquet file by segment; `prepare` gives labels, so that an IC is computed."""

    def __init__(self, path, segments):
        self.path, self.segments = path, segments

    def _rows(self, frame, segment):
        frame.columns.name = "instrument"
        rows = frame.loc[slice(*self.segments[segment])].stack()
        return rows.rename_axis(["datetime", "instrument"])

    def past_return(self, segment, days):
        return self._rows(pd.read_parquet(self.path).pct_change(days), segment)

    def prepare(self, segments, col_set="label"):
        future = pd.read_parquet(self.path).pct_change().shift(-2)  # bought tomorrow, sold the day
        return self._rows(future, segments).to_frame("LABEL0")  # after tomorrow


TASK = {
    "model": {"class": "Momentum", "module_path": __file__},
    "dataset": {
        "class": "Closes",
        "module_path": __file__,
        "kwargs": {
            "path": str(PRICES),
            "segments": {
                "train": ("2010-01-04", "2018-12-31"),
                "test": ("2019-01-02", "2019-12-31"),
            },
        },
    },
    "record": ["SignalRecord", "SigAnaRecord"],
}


def main(directory: str) -> None:
    qwf.init(uri=Path(directory) / "store")
    (recorder,) = TrainerR(experiment_name="own parts")(TASK)
    print(recorder.info)
    print(recorder.list_metrics())
    print(recorder.load_object("params.pkl").days, "days")
    print(recorder.load_object("pred.pkl").head())
    assert recorder.status == "FINISHED"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(scratch)
