"""Prices as read from outside: files and frames in, aligned wide tables out.

Owns what counts as valid prices. Knows no feature, label or segment; the binary files of Qlib's
data directories are read by `qlib_files`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from ..calendar import Bars
from ..errors import DataError, suggest
from ..types import Date
from .qlib_files import read_qlib_directory

__all__ = ["PricePanel", "read_panel"]

# How other programs call the two columns; compared without regard to case.
_DATE_NAMES: Final = ("datetime", "date")
_INSTRUMENT_NAMES: Final = ("instrument", "symbol")

_PARQUET: Final = (".parquet", ".pq")
_CSV: Final = (".csv", ".csv.gz")
# What stands for a missing value in the number columns of a CSV file.
_MISSING: Final = ["", "NaN", "nan", "NA", "N/A", "null", "None"]
# pandas 3.1 parses floats exactly and deprecates the argument that earlier ones need for it.
_PANDAS: Final = tuple(int(part) for part in pd.__version__.split(".")[:2])
_EXACT: Final[dict[str, Any]] = {} if _PANDAS >= (3, 1) else {"float_precision": "round_trip"}

_SHOWN: Final = 5


@dataclass(frozen=True)
class PricePanel:
    """Fields of many instruments over one sequence of bars. Do not modify its frames.

    It has Qlib's ``calendar`` method, so that ``qwf.init(calendar=panel)`` works.

    Attributes
    ----------
    fields : mapping of str to DataFrame
        Field name (``"close"``, ...) to a frame of float64: index ``datetime`` (ascending, unique,
        nanoseconds, no time zone), one column per instrument, sorted. All have the same labels.
    members : DataFrame of bool, optional
        The same labels: whether the instrument belongs to the market on that bar. None: always.
    source : str, optional
        Path that it was read from.
    """

    fields: Mapping[str, pd.DataFrame]
    members: pd.DataFrame | None = None
    source: str | None = None

    def __repr__(self) -> str:
        place = self.source or "memory"
        return (
            f"<PricePanel of {place}: {', '.join(self.fields)} of {len(self.instruments)} "
            f"instruments, {len(self.dates)} bars from {self.dates[0]} to {self.dates[-1]}>"
        )

    @property
    def dates(self) -> pd.DatetimeIndex:
        """The bars, ascending."""
        return next(iter(self.fields.values())).index

    @property
    def instruments(self) -> pd.Index:
        """The instruments, sorted."""
        return next(iter(self.fields.values())).columns

    def field(self, name: str) -> pd.DataFrame:
        """Return one field: index ``datetime``, one column per instrument, not a copy.

        Raises
        ------
        DataError
            If the panel has no such field.
        """
        try:
            return self.fields[name]
        except KeyError:
            place = self.source or "a frame"
            raise DataError(
                f"the prices of {place} have no field {name!r}; {suggest(name, self.fields)}"
            ) from None

    def select(self, instruments: Sequence[str]) -> PricePanel:
        """Return a panel of some of the instruments.

        Raises
        ------
        DataError
            If the panel lacks one of them, or none is named.
        """
        unknown = [name for name in instruments if name not in self.instruments]
        if unknown or not len(instruments):
            what = f"no instrument {unknown[0]!r}" if unknown else "nothing for an empty list"
            place = self.source or "a frame"
            near = suggest(unknown[0] if unknown else "", self.instruments)
            raise DataError(f"the prices of {place} have {what}; {near}")
        chosen = sorted(set(instruments))
        members = None if self.members is None else self.members[chosen]
        fields = {name: frame[chosen] for name, frame in self.fields.items()}
        return replace(self, fields=fields, members=members)

    @cached_property
    def _bars(self) -> Bars:
        return Bars(self.dates)

    def calendar(
        self,
        start_time: Date | None = None,
        end_time: Date | None = None,
        freq: str = "day",
        future: bool = False,
    ) -> np.ndarray:
        """Return the bars between two moments, both inclusive, as an array of Timestamps.

        A panel has bars of one frequency and none in the future: `freq` and `future`, parameters
        of every calendar, choose nothing.
        """
        return self._bars.between(start_time, end_time)


def read_panel(
    source: str | os.PathLike[str] | pd.DataFrame | PricePanel,
    *,
    fields: Sequence[str] | None = None,
    market: str = "all",
    freq: str = "day",
) -> PricePanel:
    """Read prices from whatever holds them.

    Parameters
    ----------
    source : str, Path, DataFrame or PricePanel
        A ``.parquet`` or ``.pq`` file, a ``.csv`` or ``.csv.gz`` file, a Qlib data directory, or a
        frame. A table is either

        - *wide*: dates as index or as column ``datetime`` or ``date``, one column of closes per
          instrument; its field is ``close``; or
        - *long*: columns (or index levels) ``datetime`` and ``instrument`` (or ``date`` and
          ``symbol``), one column per field; a ``$`` before a field's name, as Qlib writes it, is
          taken off.

        Text dates are ISO 8601. Rows may come in any order.
    fields : sequence of str, optional
        Read only these. Default: all, which then all have to be numbers.
    market : str, default "all"
        Of a Qlib data directory: the file of ``instruments/`` that says who belongs when.
    freq : str, default "day"
        Of a Qlib data directory: the frequency of its calendar and features, e.g. ``"1min"``.

    Returns
    -------
    PricePanel
        The frame given is not modified and, where possible, not copied.

    Raises
    ------
    DataError
        If it cannot be read, is empty, has a date that is missing or no date, a row twice, or a
        value that is infinite or no number. The sentence says which.

    Examples
    --------
    >>> import pandas as pd
    >>> days = ["2020-01-03", "2020-01-02"]
    >>> closes = pd.DataFrame({"B": [2.0, 2.5], "A": [1.0, 1.5]}, index=days)
    >>> read_panel(closes).field("close")  # doctest: +NORMALIZE_WHITESPACE
    instrument    A    B
    datetime
    2020-01-02  1.5  2.5
    2020-01-03  1.0  2.0
    """
    if isinstance(source, PricePanel):
        return source
    if isinstance(source, pd.DataFrame):
        _refuse_market(market, "a frame")
        return PricePanel(_parse_frame(source, fields, "the frame"))
    if not isinstance(source, (str, os.PathLike)):
        raise DataError(
            f"cannot read prices from {source!r}; expected a path, a DataFrame or a PricePanel."
        )
    where, path = os.fspath(source), Path(source).expanduser()
    if path.is_dir():
        columns, members = read_qlib_directory(path, fields=fields, market=market, freq=freq)
        return PricePanel(_parse_fields(columns, where), members, where)
    _refuse_market(market, where)
    return PricePanel(_parse_frame(_read_table(path), fields, where), source=where)


def _refuse_market(market: str, where: str) -> None:
    if market != "all":
        raise DataError(
            f"market {market!r} is asked for and {where} has no markets, as Qlib data directories "
            "have; pass a list of instruments, or 'all'."
        )


def _read_table(path: Path) -> pd.DataFrame:
    name = path.name.lower()
    try:
        if name.endswith(_PARQUET):
            return pd.read_parquet(path)
        if name.endswith(_CSV):
            return _read_csv(path)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot read prices from {path}: {error}") from error
    raise DataError(
        f"cannot read prices from {path}: expected a file that ends in "
        f"{', '.join((*_PARQUET, *_CSV))}, or a Qlib data directory"
        f"{'' if path.exists() else '; and there is no such path'}."
    )


def _read_csv(path: Path) -> pd.DataFrame:
    # Read as text, because pandas would rename the second of two equal names.
    header = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False)
    names = header.iloc[0].tolist()
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"the header has {repeated[0]!r} more than once.")
    # '000001' and 'NA' are instruments: neither a number nor a missing value.
    texts = [name for name in names if name.lower() in (*_DATE_NAMES, *_INSTRUMENT_NAMES)]
    return pd.read_csv(
        path,
        dtype=dict.fromkeys(texts, str),
        keep_default_na=False,
        na_values={name: _MISSING for name in names if name not in texts},
        **_EXACT,
    )


def _parse_frame(
    frame: pd.DataFrame, fields: Sequence[str] | None, where: str
) -> dict[str, pd.DataFrame]:
    """Turn a wide or long table into one valid frame per field."""
    if isinstance(frame.columns, pd.MultiIndex):
        raise DataError(
            f"{where} has columns of {frame.columns.nlevels} levels; expected one level. "
            "Take one field, or stack the instruments into rows."
        )
    dates, rest = _split_dates(frame, where)
    names = {str(name).lower(): name for name in rest.columns}
    instrument = next((names[name] for name in _INSTRUMENT_NAMES if name in names), None)
    if instrument is None:
        tables = {"close": rest.set_axis(dates, axis=0)}
    else:
        tables = {str(name).removeprefix("$"): rest[name] for name in rest if name != instrument}
    missing = [name for name in fields or () if name not in tables]
    if missing:
        raise DataError(f"{where} has no field {missing[0]!r}; {suggest(missing[0], tables)}")
    chosen = {name: tables[name] for name in fields or tables}
    if instrument is not None:
        chosen = _pivot(dates, rest[instrument], chosen, where)
    return _parse_fields(chosen, where)


def _split_dates(frame: pd.DataFrame, where: str) -> tuple[pd.DatetimeIndex, pd.DataFrame]:
    """Return the date of each row, and the other columns (with other index levels among them)."""
    if isinstance(frame.index, pd.MultiIndex):
        frame = frame.reset_index()
    names = {str(name).lower(): name for name in frame.columns}
    column = next((names[name] for name in _DATE_NAMES if name in names), None)
    if column is not None:
        return _parse_dates(frame[column], where), frame.drop(columns=[column])
    if pd.api.types.is_integer_dtype(frame.index):
        raise DataError(
            f"{where} has no dates: its columns are {list(frame.columns)[:_SHOWN]} and its index "
            "holds integers. Name the dates 'datetime', or make them the index."
        )
    return _parse_dates(frame.index.to_series(), where), frame


def _parse_dates(values: pd.Series, where: str) -> pd.DatetimeIndex:
    if pd.api.types.is_datetime64_any_dtype(values.dtype):
        dates = pd.DatetimeIndex(values)
    else:
        texts = values.astype(str)
        try:
            dates = pd.DatetimeIndex(pd.to_datetime(texts, format="ISO8601", errors="coerce"))
        except ValueError as error:
            raise DataError(f"the dates of {where} cannot be read: {error}") from error
    if dates.tz is not None:
        raise DataError(
            f"the dates of {where} have the time zone {dates.tz}; bars have none. Convert them to "
            "exchange time and take the zone off with tz_localize(None)."
        )
    if dates.hasnans:
        rows = np.flatnonzero(dates.isna())
        shown = ", ".join(f"row {row}: {values.iloc[row]!r}" for row in rows[:_SHOWN])
        raise DataError(
            f"{len(rows)} dates of {where} are missing or no ISO 8601 dates ({shown}); "
            "expected e.g. '2020-01-03'."
        )
    return dates.as_unit("ns").rename("datetime")


def _pivot(
    dates: pd.DatetimeIndex,
    instruments: pd.Series,
    columns: Mapping[str, pd.Series],
    where: str,
) -> dict[str, pd.DataFrame]:
    """Spread the columns of a long table into one wide frame each."""
    missing = instruments.isna() | (instruments == "")
    if missing.any():
        rows = np.flatnonzero(missing)
        raise DataError(f"{where} has no instrument in row {rows[0]} ({len(rows)} such rows).")
    row, bars = pd.factorize(dates, sort=True)
    column, names = pd.factorize(instruments.astype(str).to_numpy(dtype=object), sort=True)
    again = pd.Series(row * len(names) + column).duplicated().to_numpy()
    if again.any():
        pairs = [f"{dates[i]} {instruments.iloc[i]}" for i in np.flatnonzero(again)[:_SHOWN]]
        raise DataError(
            f"{where} has {int(again.sum())} rows for a date and instrument that it has already: "
            f"{', '.join(pairs)}. Keep one of each."
        )
    fields = {}
    for field, values in columns.items():
        wide = np.full((len(bars), len(names)), np.nan)
        wide[row, column] = _parse_numbers(values, dates, where)
        fields[field] = pd.DataFrame(wide, index=bars.rename("datetime"), columns=names)
    return fields


def _parse_fields(columns: Mapping[str, pd.DataFrame], where: str) -> dict[str, pd.DataFrame]:
    """Check and order wide frames that have the same labels."""
    if not columns or any(frame.size == 0 for frame in columns.values()):
        raise DataError(f"{where} holds no prices: it has no row or no column of prices.")
    return {name: _parse_wide(frame, f"{name} of {where}") for name, frame in columns.items()}


def _parse_wide(frame: pd.DataFrame, where: str) -> pd.DataFrame:
    frame = frame.set_axis(pd.Index(frame.columns.astype(str), name="instrument"), axis=1)
    for axis, labels in (("bars", frame.index), ("instruments", frame.columns)):
        again = labels[labels.duplicated()]
        if len(again):
            shown = ", ".join(str(label) for label in again[:_SHOWN])
            raise DataError(f"{where} has {axis} more than once: {shown}. Keep one of each.")
    if not (frame.dtypes == np.float64).all():
        numbers = {name: _parse_numbers(frame[name], frame.index, where) for name in frame.columns}
        frame = pd.DataFrame(numbers, index=frame.index).rename_axis("instrument", axis=1)
    values = frame.to_numpy()
    if np.isinf(values).any():
        row, column = np.argwhere(np.isinf(values))[0]
        raise DataError(
            f"{where} is infinite on {frame.index[row]} for {frame.columns[column]}; expected a "
            "number, or nothing where there is no price."
        )
    if np.isnan(values).all():
        raise DataError(f"{where} holds no prices: every value is missing.")
    if not frame.index.is_monotonic_increasing:
        frame = frame.sort_index()
    return frame if frame.columns.is_monotonic_increasing else frame.sort_index(axis=1)


def _parse_numbers(column: pd.Series, dates: pd.Index, where: str) -> Any:
    """Return a column as float64; `dates` has one label per row, for errors."""
    if pd.api.types.is_numeric_dtype(column.dtype):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    numbers = pd.to_numeric(column, errors="coerce")
    wrong = np.flatnonzero(numbers.isna() & column.notna())
    if len(wrong):
        shown = ", ".join(f"{dates[i]}: {column.iloc[i]!r}" for i in wrong[:_SHOWN])
        raise DataError(
            f"column {column.name!r} of {where} has {len(wrong)} values that are no numbers "
            f"({shown}). Correct them, or name the fields to be read."
        )
    return numbers.to_numpy(dtype=np.float64, na_value=np.nan)
