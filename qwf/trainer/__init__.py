"""From tasks to trained recorders: what one training does, and when and where each part is done."""

from .base import Trainer
from .direct import DelayTrainerR, TrainerR
from .pooled import DelayTrainerRM, TrainerRM
from .training import begin_task_train, end_task_train, task_train

__all__ = [
    "DelayTrainerR",
    "DelayTrainerRM",
    "Trainer",
    "TrainerR",
    "TrainerRM",
    "begin_task_train",
    "end_task_train",
    "task_train",
]
