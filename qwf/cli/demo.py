"""``qwf demo``: the main job on real prices, from tasks to ensembled signals."""

from __future__ import annotations

import time
from argparse import Namespace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import pandas as pd

from ..collect import RecorderCollector
from ..config import C, init
from ..ensemble import AverageEnsemble, RollingGroup
from ..records.signal_metrics import calc_ic, ic_summary
from ..storage.layout import parse_uri
from ..tasks.generate import RollingGen, task_generator
from ..tracking.manager import default_manager
from ..tracking.recorder import Recorder
from ..trainer import TrainerR
from ..types import Task

__all__ = ["run_demo"]

EXPERIMENT = "demo rolling"
HORIZON = 5  # trading days from buying to selling
STEP = 250  # trading days of one test window: about a year
MODELS = {"ridge": {"estimator": "ridge", "alpha": 1000.0}, "ols": {"estimator": "ols"}}


def run_demo(options: Namespace) -> int:
    """Train, collect and print."""
    started = time.perf_counter()
    with as_file(files("qwf.cli") / "demo_data" / "sp500_20.parquet") as prices:
        init(
            uri=parse_uri(C.uri if options.uri is None else options.uri),
            calendar=pd.read_parquet(prices),
        )
        default_manager().get_exp(experiment_name=EXPERIMENT)  # fails here if the store cannot be
        tasks = make_tasks(prices)
        print(f"Training {len(tasks)} rolling models on {prices.name} ...", flush=True)
        recorders = train(tasks)
    show_recorders(recorders)
    show_signals(recorders)
    root = default_manager().store.root
    print(f"\nAll of it is kept in {root} ({time.perf_counter() - started:.1f} s).")
    print(f"Look: qwf exp show '{EXPERIMENT}' --uri '{root}', or ls '{root}/experiments'")
    return 0


def make_tasks(prices: Path) -> list[Task]:
    """Return the tasks of both models over all windows."""
    scale = {"class": "RobustZScoreNorm", "kwargs": {"fields_group": "feature"}}
    fill = {"class": "Fillna", "kwargs": {"fields_group": "feature"}}
    learn = [{"class": "DropnaLabel"}, {"class": "CSRankNorm", "kwargs": {"fields_group": "label"}}]
    handler = {
        "class": "PriceHandler",
        "module_path": "qwf.data.handler",
        "kwargs": {
            "panel": str(prices),
            "instruments": [name for name in pd.read_parquet(prices).columns if name != "SP500"],
            "start_time": "2010-01-04",
            "infer_processors": [scale, fill],
            "learn_processors": learn,
            "label_horizon": HORIZON,
        },
    }
    segments = {
        "train": ("2010-01-04", "2015-12-31"),
        "valid": ("2016-01-04", "2016-12-30"),
        "test": ("2017-01-03", "2022-12-28"),
    }
    template = {
        "dataset": {
            "class": "DatasetH",
            "module_path": "qwf.data.dataset",
            "kwargs": {"handler": handler, "segments": segments},
        },
        "record": ["SignalRecord", "SigAnaRecord"],
    }
    models = [
        {"class": "LinearModel", "module_path": "qwf.data.models", "kwargs": kwargs}
        for kwargs in MODELS.values()
    ]
    # The label of a day is known HORIZON + 1 bars later: what is trained on ends before that.
    rolling = RollingGen(step=STEP, rtype=RollingGen.ROLL_SD, trunc_days=HORIZON + 2)
    return task_generator([{"model": model, **template} for model in models], rolling)


def train(tasks: list[Task]) -> list[Recorder]:
    """Train the tasks one after the other and say how far it is."""
    trainer = TrainerR(experiment_name=EXPERIMENT)
    recorders: list[Recorder] = []
    for number, task in enumerate(tasks, start=1):
        started = time.perf_counter()
        (recorder,) = trainer(task)
        recorders.append(recorder)
        print(
            f"  [{number:2}/{len(tasks)}] {model_of(recorder):5} tests {window_of(recorder)}: "
            f"IC {recorder.list_metrics()['IC']:+.4f}  ({time.perf_counter() - started:.1f} s)",
            flush=True,
        )
    return recorders


def model_of(recorder: Recorder) -> str:
    """Return the name of a recorder's model configuration."""
    return recorder.list_params()["model.kwargs.estimator"]


def segment_of(recorder: Recorder) -> Any:
    """Return the test segment of a recorder's task."""
    return recorder.load_object("task")["dataset"]["kwargs"]["segments"]["test"]


def window_of(recorder: Recorder) -> str:
    """Return the test segment of a recorder's task as text."""
    start, end = segment_of(recorder)
    return f"{start:%Y-%m-%d}..{'open      ' if end is None else f'{end:%Y-%m-%d}'}"


def show_recorders(recorders: list[Recorder]) -> None:
    """Print the recorders of this run of the demo, with IC and Rank IC per window."""
    rows = [
        {
            "recorder": recorder.id,
            "model": model_of(recorder),
            "test": window_of(recorder),
            "status": recorder.status,
            **{name: recorder.list_metrics()[name] for name in ("IC", "Rank IC")},
        }
        for recorder in recorders
    ]
    print("\nThe recorders:")
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda value: f"{value:+.4f}"))


def show_signals(recorders: list[Recorder]) -> None:
    """Collect the predictions, join the windows, average the models, and print IC and head."""
    collected = RecorderCollector(
        lambda: recorders,
        rec_key_func=lambda recorder: (model_of(recorder), segment_of(recorder)),
        artifacts_path={"pred": "pred.pkl", "label": "label.pkl"},
        process_list=[RollingGroup()],
    )()
    label = next(iter(collected["label"].values())).iloc[:, 0]
    signals = AverageEnsemble()(collected["pred"])
    named = {key[0]: frame.iloc[:, 0] for key, frame in collected["pred"].items()}
    rows = []
    for name, signal in {**named, "ensemble": signals}.items():
        ic, rank_ic = calc_ic(signal, label)
        rows.append({"signal": name, "days": len(ic), "IC": ic_summary(ic)[0],
                     "ICIR": ic_summary(ic)[1], "Rank IC": ic_summary(rank_ic)[0]})  # fmt: skip
    print("\nIn total, all windows:")
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda value: f"{value:+.4f}"))
    print("\nThe head of the ensembled signals:")
    print(signals.head(8).to_string())
