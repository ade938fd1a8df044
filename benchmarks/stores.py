"""Stores of many finished runs, the same for qwf and for MLflow, written without running anything.

Making 10,000 runs through the interfaces takes Qlib hours, and what is measured is reading. So
the files and rows are written directly, as the interfaces write them but without ``fsync``; a few
runs are then read back through MLflow's client and compared. A run has 20 params, 10 metrics and 5
tags: in MLflow's file store 37 files.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from qwf.storage.documents import encode_document
from qwf.tracking.manager import ExpManager
from qwf.tracking.metadata import encode_param, new_recorder

__all__ = [
    "EXPERIMENT",
    "OLDEST",
    "Run",
    "assert_as_made",
    "made_runs",
    "write_mlflow_files",
    "write_mlflow_sqlite",
    "write_qwf",
]

EXPERIMENT = "study"
OLDEST = "the first one"  # the name of the oldest run, and of no other

_DEFAULT_NAME = "mlflow_recorder"  # the name that Qlib gives to runs without one
_BEGIN = datetime(2024, 1, 1, tzinfo=timezone.utc)
_MLFLOW_NUMBERS = {"SCHEDULED": 2, "FINISHED": 3, "FAILED": 4}
_ROWS_PER_COMMIT = 1_000


@dataclass(frozen=True)
class Run:
    """One run that has ended."""

    id: str
    name: str
    status: str
    started: datetime
    ended: datetime
    params: dict[str, Any]
    metrics: dict[str, float]
    tags: dict[str, str]

    @property
    def mlflow_times(self) -> tuple[int, int]:
        """Start and end in milliseconds since the epoch."""
        return int(self.started.timestamp() * 1000), int(self.ended.timestamp() * 1000)

    @property
    def mlflow_tags(self) -> dict[str, str]:
        """The tags and the one that MLflow adds."""
        return {**self.tags, "mlflow.runName": self.name}


def made_runs(count: int) -> Iterator[Run]:
    """Yield runs, the oldest first; always the same ones."""
    for number in range(count):
        yield _run(number, random.Random(number))


def _run(number: int, dice: random.Random) -> Run:
    # Seven minutes apart; no run has exactly the start of another.
    started = _BEGIN + timedelta(minutes=7 * number)
    name = OLDEST if number == 0 else f"rolling {number}"
    params = {
        "model": dice.choice(["Linear", "LightGBM", "MLP"]),
        "depth": dice.randint(2, 12),
        "learning_rate": dice.choice([0.01, 0.02, 0.05, 0.1]),
        **{f"loss.param_{place}": round(dice.random(), 6) for place in range(17)},
    }
    metrics = {
        "IC": dice.gauss(0.04, 0.02),
        "ICIR": dice.gauss(0.4, 0.2),
        **{f"valid.metric_{place}": dice.gauss(0.0, 1.0) for place in range(8)},
    }
    tags = {
        # Qlib's tag of the models that serve: one in a hundred.
        "online_status": "online" if number % 100 == 50 else "offline",
        "desk": dice.choice(["equity", "futures"]),
        "hostname": f"node{dice.randint(1, 10)}",
        "note": f"{dice.randint(1, 500)} days of history, refitted",
        "train_time_range": f"{started:%Y-%m-%d}",
    }
    return Run(
        id=f"{started:%Y%m%d-%H%M%S}-000000-{dice.getrandbits(32):08x}",
        name=name if number % 10 == 0 else _DEFAULT_NAME,
        status=dice.choices(["FINISHED", "FAILED", "SCHEDULED"], [80, 15, 5])[0],
        started=started,
        ended=started + timedelta(seconds=dice.randint(20, 400)),
        params=params,
        metrics=metrics,
        tags=tags,
    )


# --- qwf ---------------------------------------------------------------------------------------


def write_qwf(root: Path, count: int) -> None:
    """Make a store of qwf with these runs, each a document encoded as qwf encodes its own."""
    experiment = ExpManager(root).create_exp(EXPERIMENT)
    recorders = root / "experiments" / experiment.id / "recorders"
    recorders.mkdir()
    for run in made_runs(count):
        directory = f"{recorders}/{run.id}"
        os.mkdir(directory)
        _write(f"{directory}/recorder.json", encode_document(_document(run, experiment.id)))


def _document(run: Run, experiment_id: str) -> dict[str, Any]:
    document = new_recorder(run.id, run.name, experiment_id, run.status)
    started, ended = _stored_time(run.started), _stored_time(run.ended)
    document["started_at"] = document["sessions"][0]["started_at"] = started
    document["ended_at"] = document["sessions"][0]["ended_at"] = ended
    document["revision"] = 4  # started; params, tags, end
    document["params"] = {key: encode_param(value) for key, value in run.params.items()}
    document["tags"] = run.tags
    moment = run.ended.timestamp()
    document["metrics"] = {
        key: {"value": value, "step": 0, "time": moment} for key, value in run.metrics.items()
    }
    return document


def _stored_time(moment: datetime) -> str:
    return f"{moment.replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def _write(path: str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    os.write(descriptor, data)
    os.close(descriptor)


# --- MLflow ------------------------------------------------------------------------------------


def write_mlflow_files(uri: str, count: int) -> None:
    """Make a file store of MLflow with these runs."""
    experiment = _new_mlflow_experiment(uri)
    for run in made_runs(count):
        directory = f"{uri.removeprefix('file:')}/{experiment}/{run.id}"
        for name in ("", "/artifacts", "/params", "/metrics", "/tags"):
            os.mkdir(f"{directory}{name}")
        _write(f"{directory}/meta.yaml", _mlflow_meta(run, experiment, directory).encode())
        for key, value in run.params.items():
            _write(f"{directory}/params/{key}", str(value).encode())
        _, moment = run.mlflow_times
        for key, value in run.metrics.items():
            _write(f"{directory}/metrics/{key}", f"{moment} {value} 0\n".encode())
        for key, value in run.mlflow_tags.items():
            _write(f"{directory}/tags/{key}", value.encode())


def _mlflow_meta(run: Run, experiment: str, directory: str) -> str:
    started, ended = run.mlflow_times
    return f"""\
artifact_uri: file://{directory}/artifacts
end_time: {ended}
entry_point_name: ''
experiment_id: '{experiment}'
lifecycle_stage: active
run_id: {run.id}
run_name: {run.name}
source_name: ''
source_type: 4
source_version: ''
start_time: {started}
status: {_MLFLOW_NUMBERS[run.status]}
tags: []
user_id: bench
"""


def write_mlflow_sqlite(uri: str, count: int) -> None:
    """Make a SQLite store of MLflow: its own schema, and these runs as rows inserted with SQL."""
    experiment = _new_mlflow_experiment(uri)
    path = uri.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        runs = made_runs(count)
        while batch := list(itertools.islice(runs, _ROWS_PER_COMMIT)):
            _insert(connection, batch, experiment, f"{Path(path).parent}/mlruns")
            connection.commit()


def _insert(connection: sqlite3.Connection, runs: list[Run], experiment: str, files: str) -> None:
    def rows(table: str, columns: str, found: Iterator[tuple[Any, ...]]) -> None:
        marks = ", ".join("?" for _ in columns.split(","))
        connection.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", found)

    rows(
        "runs",
        "run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time, "
        "end_time, source_version, lifecycle_stage, artifact_uri, experiment_id",
        (
            (
                *(run.id, run.name, "UNKNOWN", "", "", "bench", run.status, *run.mlflow_times),
                *("", "active", f"{files}/{experiment}/{run.id}/artifacts", int(experiment)),
            )
            for run in runs
        ),
    )
    params = ((key, str(value), run.id) for run in runs for key, value in run.params.items())
    rows("params", "key, value, run_uuid", params)
    tags = ((key, value, run.id) for run in runs for key, value in run.mlflow_tags.items())
    rows("tags", "key, value, run_uuid", tags)
    for table in ("metrics", "latest_metrics"):
        values = (
            (key, value, run.mlflow_times[1], 0, 0, run.id)
            for run in runs
            for key, value in run.metrics.items()
        )
        rows(table, "key, value, timestamp, step, is_nan, run_uuid", values)


def _new_mlflow_experiment(uri: str) -> str:
    from mlflow import MlflowClient

    return str(MlflowClient(uri).create_experiment(EXPERIMENT))


def assert_as_made(uri: str, count: int) -> None:
    """Read some runs through MLflow's client and compare them with what was to be written."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    runs = list(made_runs(count))
    for run in (runs[0], runs[count // 2], runs[-1]):
        found = client.get_run(run.id)
        info = found.info
        assert (info.run_name, info.status) == (run.name, run.status), info
        assert (info.start_time, info.end_time) == run.mlflow_times, info
        assert found.data.params == {key: str(value) for key, value in run.params.items()}
        assert found.data.metrics == run.metrics
        assert found.data.tags == run.mlflow_tags
