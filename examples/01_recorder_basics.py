"""Experiments and recorders: start a run, log, save, look at it again, go on with it.

Run it anywhere: ``python examples/01_recorder_basics.py``. It keeps its store in a temporary
directory; give ``qwf.init`` a path of yours and everything is found again next month.
"""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

import qwf
from qwf import R


def main(directory: str) -> None:
    qwf.init(uri=Path(directory) / "store")

    # A run: its status is FINISHED after the block, FAILED if the block raises.
    with R.start(experiment_name="basics", recorder_name="first"):
        R.log_params(model="toy", lr=1e-3, segments={"train": ("2020-01-01", "2020-12-31")})
        for step in range(5):
            R.log_metrics(step=step, **{"loss/train": 1 / (step + 1)})
        R.set_tags(author="me")
        index = pd.MultiIndex.from_product(
            [pd.date_range("2021-01-04", periods=3), ["AAPL", "MSFT"]],
            names=["datetime", "instrument"],
        )
        scores = pd.DataFrame({"score": np.arange(6.0)}, index=index)
        R.save_objects(**{"pred.pkl": scores, "notes": {"why": "to show it"}})

    # Another process, another day: find it by name and read everything back.
    recorder = R.get_recorder(experiment_name="basics", recorder_name="first")
    print(recorder.info)
    print("params :", recorder.list_params())
    print("metrics:", recorder.list_metrics())
    print("tags   :", recorder.list_tags())
    print("objects:", recorder.list_artifacts())
    print(recorder.metric_history("loss/train")[["step", "value"]].to_string(index=False))
    pd.testing.assert_frame_equal(recorder.load_object("pred.pkl"), scores)

    # Go on with it: id, params and artifacts stay, the new values are added.
    with R.start(experiment_name="basics", recorder_id=recorder.id, resume=True):
        R.log_metrics(step=5, **{"loss/train": 0.1})
    assert recorder.list_metrics() == {"loss/train": 0.1}

    # A run that fails is kept as well, and says so.
    try:
        with R.start(experiment_name="basics", recorder_name="second"):
            print(1 / 0)
    except ZeroDivisionError:
        pass
    for one in R.list_recorders(experiment_name="basics").values():
        print(f"{one.name:7} {one.status}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(scratch)
