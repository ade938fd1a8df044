"""Measures contestants side by side in one run and prints what was found; judges no absolute time.

The repeats of all contestants take turns, so that a slow minute of the machine hits all of them,
and only ratios within one table are to be trusted.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import pickle
import platform
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

__all__ = [
    "FLOOR",
    "PATIENCE_SECONDS",
    "QWF",
    "Budget",
    "Options",
    "in_a_fresh_process",
    "in_words",
    "print_budget",
    "print_grid",
    "print_machine",
    "print_results",
    "read_options",
    "say",
    "take_turns",
    "timed",
    "workshop",
]

FLOOR = "floor"  # names that begin so are floors; the first one is the reference
QWF = "qwf"  # as above, for the contestant that the others are compared with

# A contestant whose warm-up takes longer is not repeated: its warm-up is its one measurement.
PATIENCE_SECONDS = 20.0

VERSIONS = ("pandas", "numpy", "pyarrow", "pyqlib", "mlflow")

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """How one script is run: `quick` takes less of everything, `json` prints lines for programs."""

    quick: bool
    json: bool


@dataclass(frozen=True)
class Budget:
    """What qwf promises: to be `factor` times as fast as `peer`."""

    peer: str
    factor: float


def read_options(description: str | None) -> Options:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="less of everything: seconds")
    parser.add_argument("--json", action="store_true", help="JSON lines instead of tables")
    found = parser.parse_args()
    return Options(quick=found.quick, json=found.json)


@contextmanager
def workshop() -> Iterator[Path]:
    """Work in a fresh directory (``TMPDIR`` chooses the filesystem), which is removed again."""
    before = Path.cwd()
    with TemporaryDirectory(prefix="qwf-bench-") as name:
        os.chdir(name)
        try:
            yield Path(name).resolve()
        finally:
            os.chdir(before)


def timed(call: Callable[[], object]) -> Callable[[], float]:
    """Return a contestant: a function that makes the call and returns its seconds."""

    def contestant() -> float:
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    return contestant


def take_turns(contestants: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """Return what each contestant returned, of `repeats` rounds after one that warms up."""
    found: dict[str, list[T]] = {name: [] for name in contestants}
    patient = []
    for name, contestant in contestants.items():
        begin = time.perf_counter()
        first = contestant()
        if time.perf_counter() - begin > PATIENCE_SECONDS:
            found[name].append(first)
        else:
            patient.append(name)
    # What is loaded by now is hidden from the garbage collector: going through the many objects of
    # one contestant's modules would be charged to whoever happens to run.
    gc.collect()
    gc.freeze()
    for number in range(repeats):
        # Whoever is first in one round is last in the next.
        for name in patient[number % len(patient) :] + patient[: number % len(patient)]:
            gc.collect()
            found[name].append(contestants[name]())
    gc.unfreeze()
    return found


def in_a_fresh_process(call: Callable[[], T]) -> T:
    """Return what a call returns in a fork: it has the modules, and has opened no store yet."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Python warns of threads; those of NumPy are the only ones, and they survive a fork.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            gc.freeze()  # the objects of the parent are not this one's to go through
            answer = pickle.dumps(call())
            with open(writer, "wb") as file:
                file.write(answer)
            os._exit(0)
        except BaseException:  # noqa: BLE001 - nothing may pass on into the parent's stack
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(writer)
    with open(reader, "rb") as file:
        answer = file.read()
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
        raise RuntimeError("the call failed; see its traceback above")
    found: T = pickle.loads(answer)
    return found


def print_results(
    title: str,
    measured: Mapping[str, Sequence[float]],
    options: Options,
    *,
    notes: Mapping[str, str] | None = None,
    budgets: Sequence[Budget] = (),
) -> None:
    """Print median, p95 (nearest rank) and ratios of medians, and what became of the budgets."""
    medians = {name: statistics.median(seconds) for name, seconds in measured.items()}
    floor, ours = _first(medians, FLOOR), _first(medians, QWF)
    rows = []
    for name, seconds in measured.items():
        row: dict[str, Any] = {"name": name, "n": len(seconds), "median_s": medians[name]}
        row["p95_s"] = _p95(seconds)
        row["x_floor"] = None if floor is None else medians[name] / floor
        row["x_qwf"] = None if ours is None else medians[name] / ours
        row["note"] = (notes or {}).get(name, "")
        rows.append(row)
    if options.json:
        for row in rows:
            print(json.dumps({"benchmark": title, **row}))
    else:
        _print_table(title, rows)
    for budget in budgets:
        if budget.peer in medians and ours is not None:
            print_budget(title, budget, medians[budget.peer] / ours, options)


def _first(medians: Mapping[str, float], prefix: str) -> float | None:
    return next((median for name, median in medians.items() if name.startswith(prefix)), None)


def _print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    width = max(len(row["name"]) for row in rows)
    print(f"\n{title}")
    print(f"{'':{width}} {'n':>4} {'median':>10} {'p95':>10} {'x floor':>8} {'x qwf':>8}")
    for row in rows:
        ratios = " ".join(
            f"{'-':>8}" if row[key] is None else f"{row[key]:8.3g}" for key in ("x_floor", "x_qwf")
        )
        times = f"{in_words(row['median_s']):>10} {in_words(row['p95_s']):>10}"
        print(f"{row['name']:{width}} {row['n']:4} {times} {ratios}  {row['note']}".rstrip())


def in_words(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def print_grid(
    title: str,
    rows: Mapping[str, Mapping[str, Sequence[float]]],
    options: Options,
    *,
    ratios: Mapping[str, tuple[str, str]],
) -> None:
    """Print medians by row and column, then for each pair of columns the ratio of their medians."""
    medians = {
        row: {column: statistics.median(seconds) for column, seconds in cells.items()}
        for row, cells in rows.items()
    }
    if options.json:
        for row, cells in rows.items():
            for column, seconds in cells.items():
                cell = {"name": row, "column": column, "n": len(seconds)}
                cell |= {"median_s": medians[row][column], "p95_s": _p95(seconds)}
                print(json.dumps({"benchmark": title, **cell}))
        return
    columns = list(dict.fromkeys(column for cells in medians.values() for column in cells))
    heads = [*columns, *(f"x {name}" for name in ratios)]
    widths = [max(9, len(head)) for head in heads]
    first = max(map(len, medians))
    print(f"\n{title}")
    print(f"{'':{first}} " + " ".join(f"{h:>{w}}" for h, w in zip(heads, widths, strict=True)))
    for row, found in medians.items():
        texts = [in_words(found[column]) if column in found else "-" for column in columns]
        for above, below in ratios.values():
            both = above in found and below in found
            texts.append(f"{found[above] / found[below]:.3g}" if both else "-")
        line = " ".join(f"{text:>{width}}" for text, width in zip(texts, widths, strict=True))
        print(f"{row:{first}} {line}")


def _p95(seconds: Sequence[float]) -> float:
    return sorted(seconds)[math.ceil(0.95 * len(seconds)) - 1]


def print_budget(title: str, budget: Budget, factor: float, options: Options) -> None:
    """Print whether qwf was as many times as fast as its peer as it promises."""
    met = factor >= budget.factor
    if options.json:
        form = {"peer": budget.peer, "at_least": budget.factor, "found": factor, "met": met}
        print(json.dumps({"benchmark": title, "budget": form}))
        return
    verdict = "met" if met else "MISSED"
    print(f"budget: {budget.factor:g} x as fast as {budget.peer}; found {factor:.3g} x: {verdict}")


def print_machine(folder: Path, options: Options) -> None:
    """Print where and on what the tables that follow were measured."""
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "load": round(os.getloadavg()[0], 1),
        "filesystem": _filesystem(folder),
        "durable_write": in_words(_durable_write_seconds(folder)),
        "python": platform.python_version(),
        "versions": " ".join(f"{name} {_version(name)}" for name in VERSIONS),
        "commit": _commit(),
    }
    if options.json:
        print(json.dumps({"machine": facts}))
        return
    print(", ".join(f"{key.replace('_', ' ')}: {fact}" for key, fact in facts.items()))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _filesystem(folder: Path) -> str:
    """Return the type of the filesystem, from the mount point that is the longest prefix."""
    try:
        lines = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    mounts = [line.split()[1:3] for line in lines]
    above = [(point, kind) for point, kind in mounts if folder.is_relative_to(point)]
    return max(above, key=lambda mount: len(mount[0]), default=("", "unknown"))[1]


def _durable_write_seconds(folder: Path) -> float:
    """Return the median time of writing 4 KiB with fsync: what a durable step cannot go below."""
    path = folder / "probe"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    seconds = []
    for _ in range(20):
        begin = time.perf_counter()
        os.write(descriptor, b"x" * 4096)
        os.fsync(descriptor)
        seconds.append(time.perf_counter() - begin)
    os.close(descriptor)
    path.unlink()
    return statistics.median(seconds)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "-"


def _commit() -> str:
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "unknown"


def say(text: str) -> None:
    """Tell the person who runs the script, without disturbing the results."""
    print(text, file=sys.stderr)
