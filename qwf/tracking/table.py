"""Many recorders as one table of columns, of which each is made when it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Protocol

from ..storage.index import ID

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ATTRIBUTES", "FAMILIES", "Identified", "Part", "RecorderTable", "Selected"]

FAMILIES: Final = ("attributes", "params", "tags", "metrics")

# The attributes that every recorder has, in the order in which a frame shows them.
ATTRIBUTES: Final = (
    "run_id",
    "run_name",
    "experiment_id",
    "status",
    "start_time",
    "end_time",
    "parent_id",
)


class Part(Protocol):
    """Some rows of a table."""

    rows: int

    def column(self, family: str, key: str) -> Sequence[Any]:
        """Return one value per row; None where there is none."""

    def keys(self, family: str) -> Iterable[str]:
        """Return the keys of a family that any row may have."""


class Selected:
    """Some rows of a part, in an order of their own."""

    def __init__(self, part: Part, positions: Sequence[int]) -> None:
        self._part, self._positions = part, positions
        self.rows = len(positions)

    def column(self, family: str, key: str) -> Sequence[Any]:
        """Return one value per row; None where there is none."""
        values = self._part.column(family, key)
        return [values[row] for row in self._positions]

    def keys(self, family: str) -> Iterable[str]:
        """Return the keys of a family that any row may have."""
        return self._part.keys(family)


class Identified:
    """Rows of one experiment, which have its id and their own as attributes."""

    def __init__(self, part: Part, experiment_id: str) -> None:
        self._part, self._experiment_id = part, experiment_id
        self.rows = part.rows

    def column(self, family: str, key: str) -> Sequence[Any]:
        """Return one value per row; None where there is none."""
        if family == "attributes" and key == "experiment_id":
            return [self._experiment_id] * self.rows
        if family == "attributes" and key == "run_id":
            return self._part.column(*ID)
        return self._part.column(family, key)

    def keys(self, family: str) -> Iterable[str]:
        """Return the keys of a family that any row may have."""
        return self._part.keys(family)


class RecorderTable:
    """Recorders as rows: attributes, params, tags and the latest value of each metric.

    Made by `ExpManager.search`; what it shows is as of then. Unless an order was asked for, the
    recorder that started last comes first.

    Parameters
    ----------
    parts : sequence of Part
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = [part for part in parts if part.rows]
        self.rows = sum(part.rows for part in self._parts)
        self._columns: dict[tuple[str, str], list[Any]] = {}

    def __len__(self) -> int:
        return self.rows

    def column(self, family: str, key: str) -> list[Any]:
        """Return one value per recorder; None where it has none.

        Parameters
        ----------
        family : {"attributes", "params", "tags", "metrics"}
        key : str
            Of the attributes, ``run_id``, ``run_name``, ``experiment_id``, ``status`` and
            ``parent_id`` are texts, ``start_time`` and ``end_time`` milliseconds since the epoch.
            Params and tags are texts, metrics floats.
        """
        column = self._columns.get((family, key))
        if column is None:
            column = list(chain.from_iterable(part.column(family, key) for part in self._parts))
            self._columns[family, key] = column
        return column

    def keys(self, family: str) -> list[str]:
        """Return the keys of a family that any recorder has, sorted; attributes as they come."""
        if family == "attributes":
            return list(ATTRIBUTES)
        found = sorted({key for part in self._parts for key in part.keys(family)})
        return [key for key in found if any(one is not None for one in self.column(family, key))]

    def take(self, positions: Sequence[int]) -> RecorderTable:
        """Return a table of some of the rows, in the order given."""
        return RecorderTable([Selected(self, positions)])

    def newest_first(self) -> RecorderTable:
        """Return the table with the recorder that started last first; broken ones come last."""
        starts = [start or "" for start in self.column("attributes", "started_at")]
        ids = self.column("attributes", "run_id")
        positions = sorted(range(self.rows), key=ids.__getitem__)
        positions.sort(key=starts.__getitem__, reverse=True)  # texts of equal length
        return self if positions == [*range(self.rows)] else self.take(positions)

    def as_frame(self) -> pd.DataFrame:
        """Return a DataFrame with one row per recorder.

        Returns
        -------
        DataFrame
            Columns ``run_id``, ``run_name``, ``experiment_id``, ``status``, ``start_time`` and
            ``end_time`` (datetime64[ns, UTC]), ``parent_id``, then ``metrics.*`` (float, NaN
            where there is none), ``params.*`` and ``tags.*`` (text, None where there is none).
        """
        import pandas as pd

        families = (("metrics", "float64"), ("params", object), ("tags", object))
        frames = [self._block(family, self.keys(family), kind) for family, kind in families]
        attributes = self._block("attributes", ATTRIBUTES, object)
        attributes.columns = pd.Index(ATTRIBUTES, dtype=object)
        for name in ("start_time", "end_time"):
            values = pd.Series(self.column("attributes", name), dtype="float64")
            attributes[name] = pd.to_datetime(values, unit="ms", utc=True).astype(
                "datetime64[ns, UTC]"
            )
        return pd.concat([attributes, *frames], axis=1)

    def _block(self, family: str, keys: Sequence[str], kind: Any) -> pd.DataFrame:
        """Return some columns as a frame: as one array, as pandas takes long for each Series."""
        import numpy as np
        import pandas as pd

        values = np.empty((len(keys), self.rows), dtype=kind)
        for number, key in enumerate(keys):
            values[number] = self.column(family, key)
        names = pd.Index([f"{family}.{key}" for key in keys], dtype=object)
        return pd.DataFrame(values.T, columns=names, dtype=kind, copy=False)
