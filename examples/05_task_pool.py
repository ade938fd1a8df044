"""A task pool: several processes train rolling tasks on real prices, and one of them is killed.

Run it anywhere: ``python examples/05_task_pool.py``. On other machines the workers are started by
Slurm, ssh or cron, with ``qwf worker`` or the three lines of `work`; they need the directory of the
store and nothing else.
"""

import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pandas as pd

import qwf
from qwf import R, RollingGen, TaskManager, TrainerR, TrainerRM, task_generator, task_train

PRICES = Path(__file__).parent / "data" / "sp500_20.parquet"
EXPERIMENT = "rolling"
HORIZON = 5


def make_tasks():
    """Windows of 120 trading days; two models for each."""
    handler = {
        "class": "PriceHandler",
        "module_path": "qwf.data.handler",
        "kwargs": {
            "panel": str(PRICES),
            "start_time": "2016-01-04",
            "infer_processors": [{"class": "RobustZScoreNorm"}, {"class": "Fillna"}],
            "learn_processors": [{"class": "DropnaLabel"}, {"class": "CSRankNorm"}],
            "label_horizon": HORIZON,
        },
    }
    segments = {"train": ("2016-01-04", "2018-12-31"), "test": ("2019-01-02", "2020-12-31")}
    templates = [
        {
            "model": {
                "class": "LinearModel",
                "module_path": "qwf.data.models",
                "kwargs": {"estimator": "ridge", "alpha": alpha},
            },
            "dataset": {
                "class": "DatasetH",
                "module_path": "qwf.data.dataset",
                "kwargs": {"handler": handler, "segments": segments},
            },
            "record": ["SignalRecord", "SigAnaRecord"],
        }
        for alpha in (1.0, 1000.0)
    ]
    return task_generator(templates, RollingGen(step=120, trunc_days=HORIZON + 2))


# --- a worker: a process of its own ----------------------------------------------------------


def work(store: str, how: str) -> None:
    # Warnings, as that a task was taken over, would come between the lines of this example.
    qwf.init(uri=store, calendar=pd.read_parquet(PRICES), logging_level="ERROR")
    TrainerRM(EXPERIMENT, train_func=task_train if how == "well" else stop_in_the_middle).worker()


def stop_in_the_middle(task, experiment_name, recorder_name=None):
    """Train, but never come to the end of the run."""
    task = {**task, "record": [*task["record"], {"class": Dawdle}]}
    return task_train(task, experiment_name, recorder_name)


class Dawdle:
    """A record that takes an hour."""

    def __init__(self, recorder):
        self.recorder = recorder

    def generate(self):
        print(self.recorder.id, flush=True)
        time.sleep(3600)


def start_worker(store: Path, how: str) -> subprocess.Popen:
    command = [sys.executable, __file__, "worker", str(store), how]
    told = subprocess.PIPE if how == "badly" else None
    return subprocess.Popen(command, stdout=told, text=True)


# --- who has the tasks -----------------------------------------------------------------------


def main(directory: str) -> None:
    store = Path(directory) / "store"
    qwf.init(uri=store, calendar=pd.read_parquet(PRICES), logging_level="ERROR")
    tasks = make_tasks()
    pool = TaskManager(EXPERIMENT)
    ids = pool.create_task(tasks)
    print(f"{len(tasks)} tasks are in the pool: {pool.task_stat()}")

    with start_worker(store, "badly") as victim:
        killed = victim.stdout.readline().strip()  # its run, which is now in the middle
        workers = [start_worker(store, "well") for _ in range(2)]
        victim.kill()  # SIGKILL: it cannot say goodbye
    names = dict(zip((one.pid for one in [*workers, victim]), "ABC", strict=True))
    print(f"A and B work; C was killed in the middle of a task (exit code {victim.returncode})")

    # Waits for the workers; without skip_run_task it would train with them.
    recorders = TrainerRM(EXPERIMENT, skip_run_task=True)(tasks)
    assert [worker.wait() for worker in workers] == [0, 0]
    print(f"A and B have come to their end: {pool.task_stat()}")
    assert pool.task_stat() == {"done": len(tasks)}

    (lost,) = [identity for identity in ids if pool.failures(identity)]
    failure = pool.failures(lost)[0]
    result = pool.re_query(lost)["res"]
    print(f"Attempt {failure['attempt']} of task {lost[:6]}, by {names[failure['pid']]}:")
    print(f"  {R.get_recorder(recorder_id=killed, experiment_name=EXPERIMENT).status}, no result")
    print(f"Attempt 2 of task {lost[:6]}, by {who(names, result)}:")
    print(f"  {result.status}, {len(result.list_artifacts())} artifacts")
    assert names[failure["pid"]] == "C"
    assert result.id != killed

    statuses = Counter(one.status for one in R.list_recorders(experiment_name=EXPERIMENT).values())
    print(f"Recorders: {dict(statuses)}")
    assert statuses == {"FINISHED": len(tasks), "LOST": 1}
    assert len({recorder.id for recorder in recorders}) == len(tasks)

    print("The same tasks in one process, without a pool:")
    for one, other in zip(recorders, TrainerR("alone")(tasks), strict=True):
        ics = [each.list_metrics()["IC"] for each in (one, other)]
        start, end = one.load_object("task")["dataset"]["kwargs"]["segments"]["test"]
        print(
            f"  {start:%F} to {end:%F} by {who(names, one)}: IC {ics[0]:+.4f}, alone {ics[1]:+.4f}"
        )
        assert ics[0] == ics[1]
        predictions = [each.load_object("pred.pkl") for each in (one, other)]
        pd.testing.assert_frame_equal(*predictions)


def who(names, recorder):
    return names[recorder.sessions()[0]["pid"]]


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        work(*sys.argv[2:])
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(scratch)
