"""Time of rolling a template into 10,000 tasks: qwf, Qlib when it is installed, and the floor.

The floor is what no generator that hands out independent tasks can avoid: one deep copy of the
template per task. Run with ``--quick`` for a tenth of the tasks.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from qwf.tasks.generate import RollingGen

FIRST_TEST = 500  # bars of training before it


def template(days: pd.DatetimeIndex) -> dict[str, Any]:
    handler = {
        "class": "Alpha158",
        "module_path": "qlib.contrib.data.handler",
        "kwargs": {
            "start_time": str(days[0].date()),
            "end_time": str(days[FIRST_TEST].date()),
            "fit_start_time": str(days[0].date()),
            "fit_end_time": str(days[FIRST_TEST // 2].date()),
            "instruments": "csi300",
        },
    }
    segments = {
        "train": (str(days[0].date()), str(days[FIRST_TEST // 2].date())),
        "valid": (str(days[FIRST_TEST // 2 + 1].date()), str(days[FIRST_TEST - 1].date())),
        "test": (str(days[FIRST_TEST].date()), str(days[-1].date())),
    }
    return {
        "model": {
            "class": "LGBModel",
            "module_path": "qlib.contrib.model.gbdt",
            "kwargs": {"loss": "mse", "learning_rate": 0.05, "num_leaves": 210, "num_threads": 1},
        },
        "dataset": {
            "class": "DatasetH",
            "module_path": "qlib.data.dataset",
            "kwargs": {"handler": handler, "segments": segments},
        },
        "record": [{"class": "SignalRecord", "module_path": "qlib.workflow.record_temp"}],
    }


def qlib_rolling(days: pd.DatetimeIndex, folder: str) -> Callable[[dict[str, Any]], Any] | None:
    try:
        import qlib
        from qlib.workflow.task.gen import RollingGen as QlibRollingGen
    except ImportError as error:
        print(f"Qlib is not measured: {error}")
        return None
    calendars = Path(folder, "calendars")
    calendars.mkdir()
    (calendars / "day.txt").write_text("\n".join(str(day.date()) for day in days) + "\n")
    qlib.init(provider_uri=folder, logging_level=40)
    return lambda task: QlibRollingGen(step=1).generate(task)


def median_seconds(call: Callable[[], Any], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1,000 tasks, one repetition")
    quick = parser.parse_args().quick
    n_tasks, repeats = (1_000, 1) if quick else (10_000, 5)
    # More days than the tasks test, so that the last test segment ends within the calendar; Qlib
    # 0.9.7 fails when a step lands exactly one bar past it.
    days = pd.bdate_range("1980-01-01", periods=FIRST_TEST + n_tasks + 100)
    task = template(days[: FIRST_TEST + n_tasks])
    print(f"{platform.machine()}, Python {platform.python_version()}, pandas {pd.__version__}")
    print(f"{n_tasks} tasks, {len(days)} bars, median of {repeats}")
    with tempfile.TemporaryDirectory() as folder:
        calls: dict[str, Callable[[], Any]] = {
            "floor: deepcopy of the template": lambda: [
                copy.deepcopy(task) for _ in range(n_tasks)
            ],
            "qwf RollingGen": lambda: RollingGen(step=1, calendar=days).generate(task),
        }
        peer = qlib_rolling(days, folder)
        if peer is not None:
            made, made_by_qlib = calls["qwf RollingGen"](), peer(task)
            assert made == made_by_qlib, "qwf and Qlib made different tasks"
            calls["Qlib RollingGen"] = lambda: peer(task)
        measured = {name: median_seconds(call, repeats) for name, call in calls.items()}
    floor = measured["floor: deepcopy of the template"]
    ours = measured["qwf RollingGen"]
    print(f"{'':34}{'seconds':>9}{'x floor':>9}{'x qwf':>9}")
    for name, seconds in measured.items():
        print(f"{name:34}{seconds:9.3f}{seconds / floor:9.2f}{seconds / ours:9.2f}")


if __name__ == "__main__":
    main()
