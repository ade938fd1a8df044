"""Time of training 8 toy tasks one after the other, in 2 processes at once, and on a process pool.

A task computes for a fraction of a second in pure Python, as an estimator would in one thread, so
that the ratios show what is lost to starting processes and to waiting for each other. They cannot
be better than the number of cores.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from measure import (
    print_machine,
    print_results,
    read_options,
    take_turns,
    timed,
    workshop,
)

import qwf
from qwf import TrainerR

TASKS = 8
AT_ONCE = 2


class Toil:
    """Adds numbers."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def fit(self, dataset: Any) -> None:
        """Compute, in one thread."""
        self.total = sum(number * number for number in range(self.steps))


class Nothing:
    """A dataset without data."""


def training(steps: int, **how: Any) -> Callable[[], Any]:
    task = {
        "model": {"class": Toil, "kwargs": {"steps": steps}},
        "dataset": {"class": Nothing},
    }
    return lambda: TrainerR("toil", **how).train([task] * TASKS)


def main() -> None:
    options = read_options(__doc__)
    steps, repeats = (200_000, 3) if options.quick else (5_000_000, 7)
    with workshop() as folder, ProcessPoolExecutor(AT_ONCE) as pool:
        qwf.init(uri=folder / "store")
        print_machine(folder, options)
        contestants = {
            "qwf, one after the other": training(steps),
            "one at a time, in a fresh process": training(steps, call_in_subproc=True),
            f"kernels={AT_ONCE}, a fresh process each": training(steps, kernels=AT_ONCE),
            f"ProcessPoolExecutor({AT_ONCE})": training(steps, executor=pool),
        }
        found = take_turns({name: timed(call) for name, call in contestants.items()}, repeats)
        print_results(f"train {TASKS} tasks", found, options)


if __name__ == "__main__":
    main()
