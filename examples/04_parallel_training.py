"""Several tasks at once: in two processes, on any executor, and with one that fails alone.

Run it anywhere: ``python examples/04_parallel_training.py``. It prints:

    two at once: [0.25, 0.5, 1.0, 2.0] from 4 processes
    an executor: [0.25, 0.5, 1.0, 2.0] from 1 processes
    1 of 4 tasks failed in experiment 'one fails': task 1: ValueError: no prices before 2019
    trained and kept: ['FINISHED', None, 'FINISHED', 'FINISHED']
"""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import qwf
from qwf import TrainerR, TrainingError


class Drift:
    """Learns how fast prices grow in a day."""

    def __init__(self, weight):
        self.weight = weight

    def fit(self, dataset):
        self.drift = (dataset.prices[-1] - dataset.prices[0]) / (len(dataset.prices) - 1)
        self.drift *= self.weight
        self.process = os.getpid()


class Line:
    """Prices that grow by half a point a day."""

    def __init__(self, year=2019):
        if year < 2019:
            raise ValueError("no prices before 2019")
        self.prices = [10 + 0.5 * day for day in range(250)]


def task(weight, **dataset):
    return {
        "model": {"class": Drift, "kwargs": {"weight": weight}},
        "dataset": {"class": Line, "kwargs": dataset},
    }


def show(how, recorders):
    models = [recorder.load_object("params.pkl") for recorder in recorders]
    processes = {model.process for model in models}
    print(f"{how}: {[model.drift for model in models]} from {len(processes)} processes")


def main(directory: str) -> None:
    # kernels=2 here would hold for every trainer. Failures are warned of as they come.
    qwf.init(uri=Path(directory) / "store", logging_level="ERROR")
    tasks = [task(weight) for weight in (0.5, 1, 2, 4)]
    show("two at once", TrainerR("processes", kernels=2).train(tasks))
    with ThreadPoolExecutor(2) as pool:  # or Client.get_executor() of dask.distributed
        show("an executor", TrainerR("threads", executor=pool).train(tasks))
    tasks[1] = task(1, year=2018)
    try:
        TrainerR("one fails", kernels=2).train(tasks)
    except TrainingError as error:
        print(str(error).partition(".")[0])
        statuses = [one and one.status for one in error.recorders]
    print("trained and kept:", statuses)
    assert statuses == ["FINISHED", None, "FINISHED", "FINISHED"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(scratch)
