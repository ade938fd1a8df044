"""The benchmarks run, and the stores that they write are those that the interfaces would make."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import qwf
from qwf.tracking.check import check_store

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

# Those that take no more than a few seconds with --quick.
SHORT = (
    "bench_load_object.py",
    "bench_metrics.py",
    "bench_pool.py",
    "bench_pool_sizes.py",
    "bench_rolling.py",
    "bench_run_lifecycle.py",
)


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The modules of the benchmarks, which are no package."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(BENCHMARKS)
    import bench_search
    import file_operations
    import pool_race
    import stores

    yield SimpleNamespace(
        bench_search=bench_search,
        file_operations=file_operations,
        pool_race=pool_race,
        stores=stores,
    )
    for name in set(sys.modules) - before:
        origin = getattr(sys.modules[name], "__file__", None)
        if (
            isinstance(sys.modules[name], ModuleType)
            and origin
            and BENCHMARKS in Path(origin).parents
        ):
            del sys.modules[name]


@pytest.mark.parametrize("script", SHORT)
def test_a_benchmark_runs(script: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "QWF_URI"}
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), "--quick"],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(BENCHMARKS.parent), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    _machine, *tables = done.stdout.splitlines()
    assert any("qwf" in line for line in tables)
    assert "handed out twice" not in done.stdout
    assert not list(tmp_path.iterdir()), "a benchmark leaves nothing behind"


def test_the_stores_of_the_benchmarks_are_sound_and_hold_what_they_say(
    scripts: SimpleNamespace, store: Path
) -> None:
    made = {run.id: run for run in scripts.stores.made_runs(30)}
    scripts.stores.write_qwf(store, 30)
    assert check_store(store) == []
    found = qwf.R.list_recorders(experiment_name=scripts.stores.EXPERIMENT)
    assert list(found) == list(made)[::-1]
    for identity, recorder in found.items():
        run = made[identity]
        assert (recorder.name, recorder.status) == (run.name, run.status)
        assert recorder.list_params() == {key: str(value) for key, value in run.params.items()}
        assert recorder.list_metrics() == run.metrics
        assert recorder.list_tags() == run.tags


def test_the_benchmark_of_searching_gets_the_answers_it_expects(
    scripts: SimpleNamespace, store: Path, tmp_path: Path
) -> None:
    search = scripts.bench_search
    made = search.made_stores(tmp_path / "60", 60, None)
    times = search.measure_times(made, 60, 1)
    counts = search.measure_operations(made, 60)
    assert set(counts) < set(times)
    assert counts[search.LIST]["qwf cold"].operations > 60
    assert counts[search.BY_ID]["qwf warm"].operations < 5


def test_file_operations_are_counted_by_what_they_ask_a_server(
    scripts: SimpleNamespace, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    with scripts.file_operations.counted_operations() as counts:
        file.write_text("text")
        assert file.exists()
        assert [entry.stat().st_size for entry in os.scandir(tmp_path)] == [4]
        descriptor = os.open(file, os.O_RDONLY)
        os.fstat(descriptor)
        os.read(descriptor, 4)
        os.close(descriptor)
        file.rename(tmp_path / "other")
    assert counts == {"open": 2, "stat": 2, "listdir": 1, "rename": 1}
    with file.open("w"):
        assert sum(counts.values()) == 6


class Careless:
    """A queue that hands out the tasks 0 to 9 and is wrong in a way."""

    def __init__(self, folder: Path, fault: str) -> None:
        self.folder, self.fault = folder, fault

    def counts(self) -> SimpleNamespace:
        left = len(list(self.folder.iterdir()))
        return SimpleNamespace(waiting=left - (self.fault == "loses"), done=0)

    def again(self) -> None:
        for number in range(10):
            (self.folder / str(number)).touch()

    def step(self, *, finishes: bool) -> Callable[[], str | None]:
        keys = iter(range(10))

        def step() -> str | None:
            key = next(keys, None)
            if key == 5 and self.fault == "dies":
                raise OSError("database is locked")
            if key is not None:
                (self.folder / str(key)).unlink(missing_ok=True)
            return None if key is None else str(key)

        return step


@pytest.mark.parametrize(
    ("fault", "processes", "reproach"),
    [
        ("", 1, ""),
        ("twice", 3, "20 handed out twice"),
        ("loses", 1, "1 lost"),
        ("dies", 1, "1 died: database is locked"),
    ],
)
def test_a_race_of_processes_tells_what_a_queue_does_wrong(
    scripts: SimpleNamespace, tmp_path: Path, fault: str, processes: int, reproach: str
) -> None:
    queue = Careless(tmp_path, fault)
    queue.again()
    contestant = scripts.pool_race.claiming("careless", queue)
    outcome = scripts.pool_race.race(contestant, 10, processes, 60.0)
    assert outcome.reproach() == reproach
    assert outcome.sound is (reproach == "")
    assert len(list(tmp_path.iterdir())) == 10, "all wait again"
