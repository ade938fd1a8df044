"""How Qlib's data directories are laid out: calendars, instruments with spans, binary features.

``features/<symbol in lower case>/<field>.<freq>.bin`` holds little-endian float32: first the
position of the first value in the calendar, then one value per bar.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd

from ..calendar import read_calendar
from ..errors import ConfigError, DataError, suggest
from .window import rows_between

__all__ = ["read_qlib_directory"]

_log = logging.getLogger(__name__)

_Spans: TypeAlias = dict[str, list[tuple[str, str]]]


def read_qlib_directory(
    path: Path, *, fields: Sequence[str] | None, market: str, freq: str
) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """Read the fields of the instruments that were ever in a market.

    Prices from outside an instrument's spans are read too: they are the history of its features.

    Parameters
    ----------
    path : Path
        The directory with ``calendars``, ``instruments`` and ``features``.
    fields : sequence of str, optional
        Default: every field that an instrument has.
    market : str
        Name of a file of ``instruments/``, without ``.txt``.
    freq : str
        Frequency of the calendar and the features.

    Returns
    -------
    fields : dict of str to DataFrame
        Field name to a frame of float64: index ``datetime``, one column per instrument, sorted.
    members : DataFrame of bool
        The same labels: whether the bar lies in one of the instrument's spans.

    Raises
    ------
    DataError
        If a file is missing, unreadable or does not fit the calendar. An instrument without any
        of the fields is left out, with a warning in the log.
    """
    try:
        bars = read_calendar(path, freq).known.moments
    except ConfigError as error:
        raise DataError(f"{path} is no Qlib data directory: {error}") from error
    dates = pd.DatetimeIndex(bars, name="datetime").as_unit("ns")
    spans = _read_spans(path / "instruments", market)
    names = _list_fields(path, spans, freq) if fields is None else list(fields)
    symbols = [symbol for symbol in sorted(spans) if _has_one(path, symbol, names, freq)]
    if not symbols:
        raise DataError(
            f"no instrument of {path / 'instruments' / market}.txt has one of the fields {names} "
            f"with frequency {freq!r}; expected files features/<symbol>/<field>.{freq}.bin."
        )
    if len(symbols) < len(spans):
        left_out = sorted(set(spans) - set(symbols))
        _log.warning("%s: no features for %d instruments: %s", path, len(left_out), left_out)
    columns = {}
    for name in names:
        values = np.full((len(dates), len(symbols)), np.nan)
        for column, symbol in enumerate(symbols):
            _read_feature(_feature_path(path, symbol, name, freq), values[:, column])
        columns[name] = pd.DataFrame(values, index=dates, columns=symbols)
    return columns, _members(dates, {symbol: spans[symbol] for symbol in symbols}, market)


def _feature_path(path: Path, symbol: str, field: str, freq: str) -> Path:
    return path / "features" / symbol.lower() / f"{field}.{freq}.bin"


def _has_one(path: Path, symbol: str, fields: Sequence[str], freq: str) -> bool:
    return any(_feature_path(path, symbol, field, freq).exists() for field in fields)


def _list_fields(path: Path, symbols: _Spans, freq: str) -> list[str]:
    ending = f".{freq}.bin"
    folders = [path / "features" / symbol.lower() for symbol in symbols]
    files = {file.name for folder in folders for file in folder.glob(f"*{ending}")}
    return sorted(name.removesuffix(ending) for name in files)


def _read_spans(folder: Path, market: str) -> _Spans:
    """Read ``<symbol> <first day> <last day>`` from each line; a symbol may have several."""
    file = folder / f"{market}.txt"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        known = [item.stem for item in folder.glob("*.txt")]
        raise DataError(
            f"cannot read the instruments {file}: {error}; {suggest(market, known)}"
        ) from error
    spans: _Spans = {}
    for number, line in enumerate(lines, 1):
        # Intraday spans have a blank within each date, so tabs come first.
        parts = line.split("\t") if "\t" in line else line.split()
        if not line.strip():
            continue
        if len(parts) != 3:
            raise DataError(
                f"{file}, line {number}: found {line!r}; expected symbol, first and last day, "
                "separated by tabs."
            )
        spans.setdefault(parts[0].strip(), []).append((parts[1].strip(), parts[2].strip()))
    if not spans:
        raise DataError(f"{file} is empty; expected one instrument a line.")
    return spans


def _members(dates: pd.DatetimeIndex, spans: _Spans, market: str) -> pd.DataFrame:
    belongs = np.zeros((len(dates), len(spans)), dtype=bool)
    for column, (symbol, pairs) in enumerate(spans.items()):
        for first, last in pairs:
            rows = rows_between(dates, first, last, f"the span of {symbol} in market {market!r}")
            belongs[rows, column] = True
    return pd.DataFrame(belongs, index=dates, columns=pd.Index(spans, name="instrument"))


def _read_feature(file: Path, column: np.ndarray) -> None:
    """Write the values of one file into a column of NaN; a missing file leaves it as it is."""
    if not file.exists():
        return
    content = file.read_bytes()
    if len(content) < 4 or len(content) % 4:
        raise DataError(
            f"{file} is damaged: it has {len(content)} bytes; expected four per value, and a start."
        )
    start, *_ = numbers = np.frombuffer(content, dtype="<f4")
    stop = start + len(numbers) - 1
    if not (start >= 0 and start == int(start) and stop <= len(column)):
        raise DataError(
            f"{file} does not fit the calendar: it starts at bar {start:g} and has "
            f"{len(numbers) - 1} values, and the calendar has {len(column)} bars. "
            "Write features and calendar again together."
        )
    column[int(start) : int(stop)] = numbers[1:]
