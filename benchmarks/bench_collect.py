"""Time of collecting the predictions of 200 runs with a RecorderCollector.

Each run has 20 params, 4 metrics, a tag, and a frame of 20 days x 300 instruments, as a rolling
has. The page cache is warm. The floor reads the bytes that qwf reads.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import Any

import floor
import pandas as pd
from bench_load_object import predictions, unpickle
from measure import (
    print_machine,
    print_results,
    read_options,
    take_turns,
    timed,
    workshop,
)
from peers import qlib_on_mlflow, without_git

import qwf

EXPERIMENT = "rolling"
PARAMS = {f"param_{number}": number / 7 for number in range(20)}
METRICS = {"IC": 0.05, "ICIR": 0.4, "Rank IC": 0.06, "Rank ICIR": 0.5}


def fill(recorder: Any, frames: list[pd.DataFrame], **where: Any) -> None:
    """Save each frame in a run of its own; `recorder` is the R of qwf or of Qlib."""
    for frame in frames:
        with recorder.start(experiment_name=EXPERIMENT, **where):
            recorder.log_params(**PARAMS)
            recorder.log_metrics(**METRICS)
            recorder.set_tags(hostname="bench")
            recorder.save_objects(**{"pred.pkl": frame})


def slice_of(whole: pd.DataFrame, number: int) -> pd.DataFrame:
    """Return the days of one run, in a frame that holds nothing of the other days."""
    days = whole.index.levels[0][20 * number : 20 * number + 20]
    frame = whole.loc[days[0] : days[-1]].copy()
    frame.index = frame.index.remove_unused_levels()
    return frame


def read_all(recorders: str) -> None:
    for name in os.listdir(recorders):
        floor.read(f"{recorders}/{name}/recorder.json")
        floor.read(f"{recorders}/{name}/artifacts/pred.pkl")


def main() -> None:
    options = read_options(__doc__)
    runs = 20 if options.quick else 200
    whole = predictions(20 * runs, 300)
    frames = [slice_of(whole, number) for number in range(runs)]
    with workshop() as folder:
        qwf.init(uri=folder / "store")
        fill(qwf.R, frames)
        (recorders,) = (folder / "store").glob("experiments/*/recorders")
        pickles = [folder / f"{number}.pkl" for number in range(runs)]
        for path, frame in zip(pickles, frames, strict=True):
            path.write_bytes(pickle.dumps(frame, protocol=4))
        contestants: dict[str, Callable[[], Any]] = {
            "floor: read the bytes": lambda: read_all(str(recorders)),
            "qwf RecorderCollector": lambda: qwf.RecorderCollector(EXPERIMENT)(),
            "plain pickle": lambda: [unpickle(path) for path in pickles],
        }
        peer = qlib_on_mlflow(folder)
        if peer is not None:
            with without_git():
                fill(peer.R, frames)
            contestants["Qlib RecorderCollector"] = lambda: peer.RecorderCollector(EXPERIMENT)()
        for name in ("qwf RecorderCollector", "Qlib RecorderCollector"):
            if name in contestants:
                found = pd.concat(contestants[name]()["pred"].values()).sort_index()
                pd.testing.assert_frame_equal(found, whole)
        measured = take_turns(
            {name: timed(call) for name, call in contestants.items()}, 3 if options.quick else 7
        )
        print_machine(folder, options)
        print_results(f"collect the predictions of {runs} runs", measured, options)


if __name__ == "__main__":
    main()
