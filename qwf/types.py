"""Aliases and protocols that carry meaning across rooms; no behaviour."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

__all__ = [
    "Calendar",
    "Dataset",
    "Date",
    "Json",
    "Model",
    "Record",
    "Segment",
    "Segments",
    "Task",
]

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

# Anything that `pandas.Timestamp` reads as one moment; it need not be a trading day.
Date: TypeAlias = "str | datetime.date | datetime.datetime | pd.Timestamp"

# Both ends inclusive; an open end is None.
Segment: TypeAlias = "tuple[Date | None, Date | None] | list[Date | None]"
Segments: TypeAlias = "dict[str, Segment]"

# The user's configuration of one training: {"model": ..., "dataset": ..., "record": ...}.
Task: TypeAlias = dict[str, Any]


@runtime_checkable
class Calendar(Protocol):
    """Whatever can list the bars of a market (real Qlib's ``D`` satisfies it)."""

    def calendar(
        self,
        start_time: Date | None = None,
        end_time: Date | None = None,
        freq: str = "day",
        future: bool = False,
    ) -> np.ndarray | Sequence[pd.Timestamp]:
        """Return the bars between two moments, both inclusive, ascending."""


@runtime_checkable
class Model(Protocol):
    """A model: learns from a dataset, predicts one of its segments. No base class is needed."""

    def fit(self, dataset: Any) -> Any:
        """Learn. A keyword ``reweighter`` is passed only to a model that takes it."""

    def predict(self, dataset: Any) -> pd.Series | pd.DataFrame:
        """Return scores with index levels ``(datetime, instrument)`` for the segment ``"test"``.

        A keyword ``segment`` is passed only to a model that takes it.
        """


@runtime_checkable
class Dataset(Protocol):
    """A dataset: named segments of prepared data. Every method but this one is optional.

    ``config(dump_all=, recursive=)`` is called before the dataset is saved,
    ``config(handler_kwargs=, segments=)`` and ``setup_data(handler_kwargs=)`` when a saved
    one is set up for later dates;
    ``prepare(segment, col_set="label", data_key="raw")`` gives labels.
    """

    segments: Mapping[str, Any]


@runtime_checkable
class Record(Protocol):
    """Something generated after training, from the recorder and perhaps the model and dataset."""

    def generate(self) -> Any:
        """Compute and save."""
