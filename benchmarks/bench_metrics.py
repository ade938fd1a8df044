"""Time of 10,000 calls of log_metrics, one value each, in one run that is started before.

Two times of the same runs: until the run has ended and all values are in the store; and until the
last call has returned, which is earlier where values are only queued. The floor writes the bytes
that qwf writes, one ``write`` per line. Then a million values at once, and their history.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import floor
from measure import (
    Budget,
    print_machine,
    print_results,
    read_options,
    take_turns,
    workshop,
)
from peers import qlib_on_mlflow, without_git

import qwf

ON_FILES = "Qlib on MLflow, files"
BATCH = 1000  # the most that MLflow takes in one call


class Seconds(NamedTuple):
    """Seconds from the first call to the return of the last one, and to the end of the run."""

    calls: float
    stored: float


def logging_into(recorder: Any, points: int, **where: Any) -> Callable[[], Seconds]:
    """Return a contestant; `recorder` is the R of qwf or of Qlib."""

    def contestant() -> Seconds:
        with recorder.start(experiment_name="metrics", **where):
            begin = time.perf_counter()
            for step in range(points):
                recorder.log_metrics(loss=1 / (step + 1), step=step)
            called = time.perf_counter()
        return Seconds(called - begin, time.perf_counter() - begin)

    return contestant


def in_batches(peer: Any, points: int) -> Callable[[], Seconds]:
    """Return the contestant that uses MLflow as well as it can be used, without Qlib."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(peer.file_uri)
    experiment = client.create_experiment("batches")

    def contestant() -> Seconds:
        run = client.create_run(experiment).info.run_id
        begin = time.perf_counter()
        for start in range(0, points, BATCH):
            steps = range(start, min(start + BATCH, points))
            moment = int(time.time() * 1000)
            client.log_batch(run, [Metric("loss", 1 / (step + 1), moment, step) for step in steps])
        called = time.perf_counter()
        client.set_terminated(run)
        return Seconds(called - begin, time.perf_counter() - begin)

    return contestant


def floor_of(folder: Path, points: int) -> Callable[[], Seconds]:
    logging_into(qwf.R, points)()
    (recorder,) = qwf.R.list_recorders(experiment_name="metrics").values()
    directory = Path(recorder.get_local_dir())
    (journal,) = directory.glob("metrics.*.journal")
    lines = journal.read_bytes().splitlines(keepends=True)
    chunks = [lines[0] + lines[1], *lines[2:]]
    document = (directory / "recorder.json").read_bytes()
    numbers = itertools.count()

    def contestant() -> Seconds:
        target = folder / f"floor-{next(numbers)}"
        target.mkdir()
        begin = time.perf_counter()
        floor.append_all(str(target), "metrics.journal", chunks)
        called = time.perf_counter()
        floor.replace(str(target), "recorder.json", document)
        return Seconds(called - begin, time.perf_counter() - begin)

    return contestant


def reading(values: int) -> dict[str, list[float]]:
    """Return the seconds that many values take to be logged at once, and to be read."""
    import numpy as np

    numbers = np.random.default_rng(0).random(values)
    written, read = [], []
    for _ in range(3):
        with qwf.R.start(experiment_name="many"):
            recorder = qwf.R.get_recorder()
            begin = time.perf_counter()
            recorder.log_metric_history({"loss": numbers})
        written.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        assert len(recorder.metric_history("loss")) == values
        read.append(time.perf_counter() - begin)
    return {"log_metric_history, until stored": written, "metric_history": read}


def main() -> None:
    options = read_options(__doc__)
    points = 1_000 if options.quick else 10_000
    with workshop() as folder:
        qwf.init(uri=folder / "store")
        contestants = {
            "floor: raw system calls": floor_of(folder, points),
            "qwf": logging_into(qwf.R, points),
        }
        peer = qlib_on_mlflow(folder)
        if peer is not None:
            contestants[ON_FILES] = logging_into(peer.R, points, uri=peer.file_uri)
            contestants["MLflow alone, log_batch, files"] = in_batches(peer, points)
            contestants["Qlib on MLflow, SQLite"] = logging_into(
                peer.R, points, uri=peer.sqlite_uri
            )
        with without_git() if peer else contextlib.nullcontext():
            measured = take_turns(contestants, 3 if options.quick else 5)
        notes = {
            "floor: raw system calls": "durable",
            "qwf": "durable",
            ON_FILES: "not durable: no fsync",
            "MLflow alone, log_batch, files": "not durable: no fsync",
            "Qlib on MLflow, SQLite": "durable",
        }
        print_machine(folder, options)
        print_results(
            f"{points} calls of log_metrics, until stored",
            {name: [one.stored for one in found] for name, found in measured.items()},
            options,
            notes=notes,
            budgets=[Budget(ON_FILES, 50)],
        )
        print_results(
            f"{points} calls of log_metrics, until the last call returns",
            {name: [one.calls for one in found] for name, found in measured.items()},
            options,
            notes={
                "qwf": "the last tenth of a second is queued",
                ON_FILES: "queued",
                "Qlib on MLflow, SQLite": "queued",
            },
        )
        many = 100_000 if options.quick else 1_000_000
        print_results(f"{many} values of one metric", reading(many), options)


if __name__ == "__main__":
    main()
