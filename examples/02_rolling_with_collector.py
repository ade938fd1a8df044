"""Rolling training on real prices: tasks from a template, a trainer, a collector, an ensemble.

Run it anywhere: ``python examples/02_rolling_with_collector.py``. Who comes from Qlib will know
every name; only ``from qlib....`` has become ``from qwf``.
"""

import tempfile
from pathlib import Path

import pandas as pd

import qwf
from qwf import DelayTrainerR, R, RecorderCollector, RollingGen, RollingGroup, task_generator

PRICES = Path(__file__).parent / "data" / "sp500_20.parquet"
HORIZON = 5

TEMPLATE = {
    "model": {
        "class": "LinearModel",
        "module_path": "qwf.data.models",
        "kwargs": {"estimator": "ridge", "alpha": 100.0},
    },
    "dataset": {
        "class": "DatasetH",
        "module_path": "qwf.data.dataset",
        "kwargs": {
            "handler": {
                "class": "PriceHandler",
                "module_path": "qwf.data.handler",
                "kwargs": {
                    "panel": str(PRICES),
                    "start_time": "2016-01-04",
                    "infer_processors": [{"class": "RobustZScoreNorm"}, {"class": "Fillna"}],
                    "learn_processors": [{"class": "DropnaLabel"}, {"class": "CSRankNorm"}],
                    "label_horizon": HORIZON,
                },
            },
            "segments": {
                "train": ("2016-01-04", "2018-12-31"),
                "test": ("2019-01-02", "2020-12-31"),
            },
        },
    },
    "record": ["SignalRecord", "SigAnaRecord"],
}


def test_window(recorder):
    segments = recorder.load_object("task")["dataset"]["kwargs"]["segments"]
    return "ridge", segments["test"]


def main(directory: str) -> pd.DataFrame:
    # The dates of the prices are the trading calendar.
    qwf.init(uri=Path(directory) / "store", calendar=pd.read_parquet(PRICES))

    # Windows of 120 trading days; training ends before the first label it could not know.
    rolling = RollingGen(step=120, rtype=RollingGen.ROLL_SD, trunc_days=HORIZON + 2)
    tasks = task_generator(TEMPLATE, rolling)
    for task in tasks:
        segments = task["dataset"]["kwargs"]["segments"]
        print({name: tuple(str(day)[:10] for day in span) for name, span in segments.items()})

    # A delayed trainer prepares all recorders first and trains them in a second step.
    trainer = DelayTrainerR(experiment_name="rolling")
    recorders = trainer.end_train(trainer.train(tasks))
    for recorder in recorders:
        print(recorder.id, recorder.status, f"IC {recorder.list_metrics()['IC']:+.4f}")

    # One prediction per window becomes one for all of them.
    collector = RecorderCollector("rolling", rec_key_func=test_window, process_list=RollingGroup())
    signal = collector()["pred"][("ridge",)]
    print(signal.head())
    assert signal.index.is_unique
    assert len(R.list_recorders(experiment_name="rolling")) == len(tasks)
    return signal


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(scratch)
