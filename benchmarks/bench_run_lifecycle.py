"""Time of one run from start to end: 20 params, 100 metric points, 5 tags.

The floor writes the bytes that qwf writes, as often and as durably, with bare system calls.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import floor
from measure import (
    Budget,
    print_machine,
    print_results,
    read_options,
    take_turns,
    timed,
    workshop,
)
from peers import qlib_on_mlflow, without_git

import qwf

PARAMS = {f"param_{number}": number / 7 for number in range(20)}
TAGS = {f"tag_{number}": f"text {number}" for number in range(5)}
POINTS = 100
ON_FILES = "Qlib on MLflow, files"


def one_run(recorder: Any, after_step: Callable[[], None] = lambda: None, **where: Any) -> None:
    """Make one run; `recorder` is the R of qwf or of Qlib."""
    with recorder.start(experiment_name="lifecycle", **where):
        after_step()
        recorder.log_params(**PARAMS)
        after_step()
        for step in range(POINTS):
            recorder.log_metrics(loss=1 / (step + 1), step=step)
        recorder.set_tags(**TAGS)
        after_step()
    after_step()


def floor_of(folder: Path) -> Callable[[], None]:
    """Return a function that repeats the writes of a qwf run, which is made once to see them."""
    documents: list[bytes] = []

    def newest() -> Path:
        experiment = qwf.R.get_exp(experiment_name="lifecycle")
        return Path(experiment.list_recorders("list")[0].get_local_dir())

    one_run(qwf.R, lambda: documents.append((newest() / "recorder.json").read_bytes()))
    started, with_params, with_tags, ended = documents
    (journal,) = newest().glob("metrics.*.journal")
    lines = journal.read_bytes().splitlines(keepends=True)
    first_lines = [lines[0] + lines[1], *lines[2:]]
    parent = folder / "floor"
    parent.mkdir()
    numbers = itertools.count()

    def write() -> None:
        name = str(next(numbers))
        floor.publish(str(parent), name, "recorder.json", started)
        directory = str(parent / name)
        floor.replace(directory, "recorder.json", with_params)
        floor.append_all(directory, "metrics.journal", first_lines)
        floor.replace(directory, "recorder.json", with_tags)
        floor.replace(directory, "recorder.json", ended)

    return write


def main() -> None:
    options = read_options(__doc__)
    with workshop() as folder:
        qwf.init(uri=folder / "store")
        contestants = {
            "floor: raw system calls": timed(floor_of(folder)),
            "qwf": timed(lambda: one_run(qwf.R)),
        }
        peer = qlib_on_mlflow(folder)
        if peer is not None:

            def plain() -> None:
                with without_git():
                    one_run(peer.R, uri=peer.file_uri)

            contestants[ON_FILES] = timed(lambda: one_run(peer.R, uri=peer.file_uri))
            contestants["... without its git commands"] = timed(plain)
            contestants["Qlib on MLflow, SQLite"] = timed(
                lambda: one_run(peer.R, uri=peer.sqlite_uri)
            )
        measured = take_turns(contestants, 5 if options.quick else 30)
        notes = {
            "floor: raw system calls": "durable",
            "qwf": "durable",
            ON_FILES: "not durable: no fsync",
            "... without its git commands": "not durable: no fsync",
            "Qlib on MLflow, SQLite": "durable",
        }
        print_machine(folder, options)
        print_results(
            "run life cycle", measured, options, notes=notes, budgets=[Budget(ON_FILES, 10)]
        )


if __name__ == "__main__":
    main()
