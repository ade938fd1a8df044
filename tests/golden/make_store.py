"""Write the golden store of this release: ``python make_store.py DIRECTORY``.

A golden store is made once, by the release that it stands for, and never edited: later releases
have to read it. The tests say what is in it.
"""

from __future__ import annotations

import contextlib
import sys

import numpy as np
import pandas as pd

import qwf
from qwf import R


def main(directory: str) -> None:
    qwf.init(uri=directory)
    sys.argv = ["golden.py"]
    with R.start(experiment_name="rolling/沪深300"):
        R.log_params(lr=0.5, layers=(1, 2), start=pd.Timestamp("2020-01-02"))
        R.set_tags(online_status="online")
        for step in range(3):
            R.log_metrics(step=step, **{"loss/train": 1 / (step + 1), "Rank IC": float("nan")})
        index = pd.MultiIndex.from_product(
            [pd.date_range("2020-01-01", periods=3), ["A", "B"]], names=["datetime", "instrument"]
        )
        R.save_objects(**{"pred.pkl": pd.DataFrame({"score": np.arange(6.0)}, index=index)})
        R.save_objects(plain={"a": [1, (2, 3)]}, artifact_path="sub")
    with (
        contextlib.suppress(ZeroDivisionError),
        R.start(experiment_name="rolling/沪深300", recorder_name="failing"),
    ):
        R.log_metrics(loss=1.5)
        1 / 0  # noqa: B018 - a training that fails
    R.start_exp(experiment_name="second")
    R.end_exp("SCHEDULED")


if __name__ == "__main__":
    main(sys.argv[1])
