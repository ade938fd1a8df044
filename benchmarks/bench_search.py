"""Time of listing and searching the runs of one experiment, of 100 to 100,000 runs.

Three times of each operation: *cold*, in a fresh process without the index of qwf; *first*, in a
fresh process; *warm*, again in the same process. MLflow keeps no index and has no cold. The start
of the interpreter, imports and opening the experiment are not counted, and the page cache is warm.
The stores are written by `stores.py`. The floor reads the same files raw.

Then the same with each file operation taking 1 ms longer, as on a network filesystem; and the
files and bytes of one run that was made through the interfaces.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import floor
import pandas  # noqa: F401 - here, so that no fresh process has to
import stores
from file_operations import counted_operations
from measure import (
    PATIENCE_SECONDS,
    Budget,
    Options,
    in_a_fresh_process,
    in_words,
    print_budget,
    print_grid,
    print_machine,
    read_options,
    say,
    take_turns,
    timed,
    workshop,
)
from peers import qlib_on_mlflow, without_git

import qwf

ON_FILES = "MLflow files"
ON_SQLITE = "MLflow SQLite"
LIST = "list_recorders"
SEARCH = "search_records: all"
BY_ID = "get_recorder: by id"
DELAY_SECONDS = 0.001
MOST_RUNS_OF_PEERS = 10_000  # ten times as many would be 3.7 million files
MOST_RESULTS = 50_000  # the most that MLflow takes


class Asked(NamedTuple):
    """Number of file operations of a call, and its seconds when each was delayed."""

    operations: int
    seconds: float


class Sample(NamedTuple):
    """Seconds of the first call in a process, and of the ones after it."""

    first: float
    warm: list[float]


@dataclass(frozen=True)
class Operation:
    """A question, asked of the R of qwf or of Qlib, and the ids of the runs that answer it."""

    ask: Callable[[Any, str], Any]
    expected: list[str]

    def checked(self, answer: Any) -> None:
        """Assert that an answer names the runs that it should."""
        found = _ids(answer)
        assert found == self.expected, f"{len(found)} runs, expected {len(self.expected)}"


@dataclass(frozen=True)
class Contestant:
    """A program and its store of these runs, and a small one to practise on."""

    recorder: Any
    uri: str
    practice_uri: str

    def opened(self, uri: str) -> str:
        """Mean this store, and return the id of its experiment."""
        self.recorder.set_uri(uri)
        return str(self.recorder.get_exp(experiment_name=stores.EXPERIMENT, create=False).id)

    def practised(self, operation: Operation) -> str:
        """Do the operation on the small store, for what is loaded at first use; then open ours."""
        operation.ask(self.recorder, self.opened(self.practice_uri))
        return self.opened(self.uri)

    def sampled(self, operation: Operation, *, warm: bool) -> Sample:
        """Measure in this process, which has to be a fresh one."""
        experiment = self.practised(operation)
        answers = []
        first = timed(lambda: answers.append(operation.ask(self.recorder, experiment)))()
        operation.checked(answers.pop())
        again: list[float] = []
        while warm and first < PATIENCE_SECONDS and sum(again) < 2 and len(again) < 20:
            again.append(timed(lambda: operation.ask(self.recorder, experiment))())
        return Sample(first, again or [first])

    def counted(self, operation: Operation, *, warm: bool) -> list[Asked]:
        """Count and delay the file operations of the first call, or of two, in a fresh process."""
        experiment = self.practised(operation)
        found = []
        for _ in range(2 if warm else 1):
            with counted_operations(DELAY_SECONDS) as counts:
                seconds = timed(lambda: operation.ask(self.recorder, experiment))()
            found.append(Asked(sum(counts.values()), seconds))
        return found


def _ids(answer: Any) -> list[str]:
    if isinstance(answer, dict):
        return list(answer)
    if hasattr(answer, "columns"):
        return list(answer["run_id"])
    if isinstance(answer, list):
        return [run.info.run_id for run in answer]
    return [answer.id]


def operations(count: int) -> dict[str, Operation]:
    runs = list(stores.made_runs(count))[::-1]
    most = max(count, MOST_RESULTS)

    def search(**arguments: Any) -> Callable[[Any, str], Any]:
        return lambda recorder, experiment: recorder.search_records(
            [experiment], **{"max_results": most, **arguments}
        )

    def get(**arguments: Any) -> Callable[[Any, str], Any]:
        return lambda recorder, _: recorder.get_recorder(
            experiment_name=stores.EXPERIMENT, **arguments
        )

    def those(chosen: Callable[[stores.Run], bool]) -> list[str]:
        return [run.id for run in runs if chosen(run)]

    best = sorted(runs, key=lambda run: run.metrics["IC"], reverse=True)[:10]
    everything = those(lambda run: True)
    return {
        LIST: Operation(
            lambda recorder, _: recorder.list_recorders(experiment_name=stores.EXPERIMENT),
            everything,
        ),
        SEARCH: Operation(search(), everything),
        "search_records: a metric and a param": Operation(
            search(filter_string="metrics.IC > 0.05 and params.depth = '6'"),
            those(lambda run: run.metrics["IC"] > 0.05 and run.params["depth"] == 6),
        ),
        "search_records: best 10 by a metric": Operation(
            search(order_by=["metrics.IC DESC"], max_results=10), [run.id for run in best]
        ),
        "search_records: models online": Operation(
            search(filter_string="tags.online_status = 'online'"),
            those(lambda run: run.tags["online_status"] == "online"),
        ),
        BY_ID: Operation(get(recorder_id=runs[-2].id), [runs[-2].id]),
        "get_recorder: by name": Operation(get(recorder_name=stores.OLDEST), [runs[-1].id]),
    }


# --- the stores --------------------------------------------------------------------------------


def made_stores(folder: Path, count: int, peer: Any) -> dict[str, Contestant]:
    """Write the stores of so many runs, and small ones to practise on."""
    made = {}
    for name, recorder, prefix, write in _kinds(peer, count):
        uris = []
        for place, size in ((folder / name, count), (folder / "practice" / name, 2)):
            place.parent.mkdir(parents=True, exist_ok=True)
            uris.append(f"{prefix}{place}")
            in_a_fresh_process(partial(write, uris[-1], size))
        made[name] = Contestant(recorder, *uris)
    return made


def _kinds(peer: Any, count: int) -> Iterator[tuple[str, Any, str, Callable[[str, int], None]]]:
    yield "qwf", qwf.R, "", lambda uri, size: stores.write_qwf(Path(uri), size)
    if peer is not None and count <= MOST_RUNS_OF_PEERS:
        yield ON_FILES, peer.R, "file:", _compared(stores.write_mlflow_files)
        yield ON_SQLITE, peer.R, "sqlite:///", _compared(stores.write_mlflow_sqlite)


def _compared(write: Callable[[str, int], None]) -> Callable[[str, int], None]:
    def writing(uri: str, count: int) -> None:
        write(uri, count)
        stores.assert_as_made(uri, count)

    return writing


def without_index(store: str) -> None:
    shutil.rmtree(f"{store}/index", ignore_errors=True)


def read_recorders(store: str) -> None:
    directory = f"{store}/experiments/{stores.EXPERIMENT}/recorders"
    for name in os.listdir(directory):
        floor.read(f"{directory}/{name}/recorder.json")


def read_index(store: str) -> None:
    for directory, _, names in os.walk(f"{store}/index"):
        for name in names:
            floor.read(f"{directory}/{name}")


# --- what is measured --------------------------------------------------------------------------


def measure_times(
    made: dict[str, Contestant], count: int, repeats: int
) -> dict[str, dict[str, list[float]]]:
    """Return seconds by operation and column."""
    store = made["qwf"].uri
    rows = {}
    for name, operation in operations(count).items():
        samples = take_turns(_samplers(made, operation), repeats)
        cells = {"qwf cold": [sample.first for sample in samples["qwf cold"]]}
        for contestant in made:
            cells[f"{contestant} first"] = [sample.first for sample in samples[contestant]]
            cells[f"{contestant} warm"] = [
                one for sample in samples[contestant] for one in sample.warm
            ]
        rows[name] = cells
    rows |= _rows_of_changes(made["qwf"]) | _rows_beside_a_run(made["qwf"])
    floors = take_turns(
        {
            "qwf cold": timed(lambda: read_recorders(store)),
            "qwf first": timed(lambda: read_index(store)),
        },
        3,
    )
    rows["floor: the same files read raw"] = floors
    return rows


def _samplers(made: dict[str, Contestant], operation: Operation) -> dict[str, Callable[[], Sample]]:
    def cold() -> Sample:
        without_index(made["qwf"].uri)
        return in_a_fresh_process(lambda: made["qwf"].sampled(operation, warm=False))

    def sampler(contestant: Contestant) -> Callable[[], Sample]:
        return lambda: in_a_fresh_process(lambda: contestant.sampled(operation, warm=True))

    return {"qwf cold": cold} | {name: sampler(contestant) for name, contestant in made.items()}


def _rows_of_changes(ours: Contestant) -> dict[str, dict[str, list[float]]]:
    """Measure the listing after something has changed; who keeps nothing has only one time."""

    def listed() -> dict[str, Any]:
        found: dict[str, Any] = qwf.R.list_recorders(experiment_name=stores.EXPERIMENT)
        return found

    def add(_: int) -> None:
        with qwf.R.start(experiment_name=stores.EXPERIMENT):
            qwf.R.log_metrics(IC=0.05)

    def tag(number: int) -> None:
        where = {"recorder_name": stores.OLDEST, "experiment_name": stores.EXPERIMENT}
        qwf.R.get_recorder(**where).set_tags(note=f"change {number}")

    def seconds_after(change: Callable[[int], None]) -> list[float]:
        experiment = ours.opened(ours.uri)
        before = len(listed())
        seconds = []
        for number in range(5):
            in_a_fresh_process(partial(change, number))
            seconds.append(timed(listed)())
            if change is tag:
                query = f"tags.note = 'change {number}'"
                found = qwf.R.search_records([experiment], filter_string=query)
                assert len(found) == 1, f"change {number} is not seen"
        assert len(listed()) == before + (5 if change is add else 0)
        return seconds

    return {
        f"{LIST} after another process {what}": {
            "qwf warm": in_a_fresh_process(partial(seconds_after, change))
        }
        for what, change in (("tagged a run", tag), ("made a run", add))
    }


def _rows_beside_a_run(ours: Contestant) -> dict[str, dict[str, list[float]]]:
    """Measure while a run is going on, which is read again at each call."""

    def seconds_of(ask: Callable[[str], object]) -> list[float]:
        experiment = ours.opened(ours.uri)
        with qwf.R.start(experiment_name=stores.EXPERIMENT):
            qwf.R.log_metrics(IC=0.05)
            ask(experiment)
            return [timed(lambda: ask(experiment))() for _ in range(5)]

    calls: dict[str, Callable[[str], object]] = {
        LIST: lambda _: qwf.R.list_recorders(experiment_name=stores.EXPERIMENT),
        SEARCH: lambda experiment: qwf.R.search_records([experiment]),
    }
    return {
        f"{name}, while a run goes on": {"qwf warm": in_a_fresh_process(partial(seconds_of, call))}
        for name, call in calls.items()
    }


def measure_operations(made: dict[str, Contestant], count: int) -> dict[str, dict[str, Asked]]:
    """Return number of file operations, and seconds with a delay, by operation and column."""
    rows: dict[str, dict[str, Asked]] = {}
    for name, operation in operations(count).items():

        def counted(name: str, warm: bool, operation: Operation = operation) -> list[Asked]:
            return in_a_fresh_process(lambda: made[name].counted(operation, warm=warm))

        without_index(made["qwf"].uri)
        (cold,) = counted("qwf", False)
        first, warm = counted("qwf", True)
        rows[name] = {"qwf cold": cold, "qwf first": first, "qwf warm": warm}
        # All but one of them walk through all files, and MLflow needs a minute per 1,000 runs.
        if ON_FILES in made and count <= 1_000 and name in (LIST, BY_ID):
            (rows[name][f"{ON_FILES} first"],) = counted(ON_FILES, False)
    return rows


def one_run(recorder: Any, **where: Any) -> None:
    """Make one run as those of the stores, with 100 points of one of its metrics."""
    (run,) = stores.made_runs(1)
    with recorder.start(experiment_name="size", **where):
        recorder.log_params(**run.params)
        recorder.log_metrics(**run.metrics)
        for step in range(1, 100):
            recorder.log_metrics(step=step, IC=1 / step)
        recorder.set_tags(**run.tags)


class Size(NamedTuple):
    """What is below a directory: files, their bytes, and the bytes that the disk gives them."""

    files: int
    length: int
    allocated: int


def size_of(directory: Path) -> Size:
    found = [path.lstat() for path in (directory, *directory.rglob("*"))]
    files = [one.st_size for one in found if not stat.S_ISDIR(one.st_mode)]
    return Size(len(files), sum(files), sum(512 * one.st_blocks for one in found))


def measure_sizes(folder: Path, peer: Any) -> dict[str, Size]:
    """Return the sizes of one run that was made through the interface."""
    store = folder / "one run"
    qwf.R.set_uri(store)
    one_run(qwf.R)
    (ours,) = store.glob("experiments/*/recorders/*")
    sizes = {"one run: qwf": size_of(ours)}
    if peer is not None:
        with without_git():
            one_run(peer.R, uri=f"file:{folder / 'one run of Qlib'}")
        (theirs,) = (path.parent for path in folder.glob("one run of Qlib/*/*/meta.yaml"))
        sizes["one run: Qlib on MLflow files (without its git files)"] = size_of(theirs)
        stores.write_mlflow_files(f"file:{folder / 'one run of MLflow'}", 1)
        (written,) = (path.parent for path in folder.glob("one run of MLflow/*/*/meta.yaml"))
        sizes["one run: MLflow files, as in the stores above"] = size_of(written)
    return sizes


# --- printing ----------------------------------------------------------------------------------


def print_operations(title: str, rows: dict[str, dict[str, Asked]], options: Options) -> None:
    if options.json:
        for name, cells in rows.items():
            for column, found in cells.items():
                print(
                    json.dumps(
                        {"benchmark": title, "name": name, "column": column, **found._asdict()}
                    )
                )
        return
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    width = max(map(len, rows))
    print(f"\n{title}")
    print(f"{'':{width}} " + " ".join(f"{column:>20}" for column in columns))
    for name, cells in rows.items():
        texts = [
            f"{cells[column].operations:,}: {in_words(cells[column].seconds)}"
            if column in cells
            else "-"
            for column in columns
        ]
        print(f"{name:{width}} " + " ".join(f"{text:>20}" for text in texts))


def print_sizes(sizes: dict[str, Size], options: Options) -> None:
    title = "files, bytes, bytes that the disk gives them and their directories"
    if options.json:
        for name, size in sizes.items():
            print(json.dumps({"benchmark": title, "name": name, **size._asdict()}))
        return
    print(f"\n{title}")
    for name, size in sizes.items():
        print(f"{name:54} {size.files:5,} {size.length:13,} {size.allocated:13,}")


def main() -> None:
    options = read_options(__doc__)
    counts = (100, 1_000) if options.quick else (100, 1_000, 10_000, 100_000)
    delayed = (100,) if options.quick else (1_000, 10_000)
    with workshop() as folder:
        qwf.init(uri=folder / "store")
        peer = None if options.quick else qlib_on_mlflow(folder)
        print_machine(folder, options)
        sizes = {}
        for count in counts:
            say(f"writing the stores of {count:,} runs")
            place = folder / str(count)
            made = made_stores(place, count, peer)
            repeats = 1 if options.quick or count > 1_000 else 3
            rows = measure_times(made, count, repeats)
            ratios = {name: (f"{name} warm", "qwf warm") for name in made if name != "qwf"}
            print_grid(f"{count:,} runs", rows, options, ratios=ratios)
            print_budgets(rows, count, options)
            if count in delayed:
                found = measure_operations(made, count)
                title = f"{count:,} runs: file operations, and time when each takes 1 ms longer"
                print_operations(title, found, options)
            sizes[f"qwf: index of {count:,} runs"] = size_of(Path(made["qwf"].uri, "index"))
            shutil.rmtree(place)
        print_sizes(measure_sizes(folder, peer) | sizes, options)


def print_budgets(rows: dict[str, dict[str, list[float]]], count: int, options: Options) -> None:
    for name in (LIST, SEARCH):
        for peer, factor in ((ON_FILES, 100), (ON_SQLITE, 5)):
            if f"{peer} warm" in rows[name]:
                theirs, ours = (
                    statistics.median(rows[name][f"{who} warm"]) for who in (peer, "qwf")
                )
                budget = Budget(f"Qlib on {peer}", factor)
                print_budget(f"{count:,} runs, {name}", budget, theirs / ours, options)


if __name__ == "__main__":
    main()
