"""What all trainers have in common: tasks come in a list, and recorders go out in its order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..errors import TrainingError
from ..tracking.recorder import Recorder
from ..types import Task

__all__ = ["Trainer", "as_recorders", "as_tasks", "recorders_or_error"]


class Trainer:
    """Trains a list of tasks in one step (`train`) or two (`train`, then `end_train`)."""

    # A tag of every recorder that a trainer returns, and what it says after each step.
    STATUS_KEY: Final = "train_status"
    STATUS_BEGIN: Final = "begin_task_train"
    STATUS_END: Final = "end_task_train"

    def __init__(self) -> None:
        self.delay = False

    def train(self, tasks: Any, *args: Any, **kwargs: Any) -> list[Recorder]:
        """Start the training of tasks and return their recorders, in the same order."""
        raise NotImplementedError(f"{type(self).__name__} has no train()")

    def end_train(self, models: Any, /, *args: Any, **kwargs: Any) -> list[Recorder]:
        """Finish what `train` has started."""
        return as_recorders(models)

    def is_delay(self) -> bool:
        """Whether the models are trained by `end_train` only."""
        return self.delay

    def has_worker(self) -> bool:
        """Whether other processes can do the training by `worker`."""
        return False

    def worker(self) -> None:
        """Train what others have started."""
        raise NotImplementedError(f"{type(self).__name__} has no workers")

    def __call__(self, *args: Any, **kwargs: Any) -> list[Recorder]:
        """Do both steps; an ``experiment_name`` holds for both."""
        named = {key: kwargs[key] for key in ("experiment_name",) if key in kwargs}
        return self.end_train(self.train(*args, **kwargs), **named)


def as_tasks(tasks: Task | Sequence[Task]) -> list[Task]:
    """Return tasks as a list, also when there is but one."""
    return [tasks] if isinstance(tasks, Mapping) else list(tasks)


def as_recorders(models: Recorder | Sequence[Recorder]) -> list[Recorder]:
    """Return recorders as a list, also when there is but one."""
    return [models] if isinstance(models, Recorder) else list(models)


def recorders_or_error(
    name: str | None, recorders: Sequence[Recorder | None], failures: Mapping[int, BaseException]
) -> list[Recorder]:
    """Return recorders, unless something failed; the error then holds them."""
    if failures:
        raise TrainingError(name, recorders=recorders, failures=failures) from failures[
            min(failures)
        ]
    return [recorder for recorder in recorders if recorder is not None]
