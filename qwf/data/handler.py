"""Features and labels from prices: which rows there are, and how much history they are given."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from ..config import C
from ..errors import ConfigError, DataError
from ..types import Date
from .features import HISTORY_BARS, carry_forward, forward_return, price_features
from .handler_base import DataHandlerLP
from .panel import PricePanel, read_panel
from .window import rows_between

__all__ = ["DataHandlerLP", "PriceHandler"]


class PriceHandler(DataHandlerLP):
    """Features from past closes and a label from future ones.

    A row is a bar on which an instrument has a close (and belongs to the market, if one is named).
    The features are those of `qwf.data.features.price_features`; the bars that they need from
    before `start_time` are read, and where a close is missing in between, the last one before it
    stands for it. ``LABEL0`` is ``Ref($close, -1 - label_horizon) / Ref($close, -1) - 1``: bought
    at the next close, sold `label_horizon` bars later. It is NaN where that lies after the last
    price there is. `end_time` limits rows, not labels: the label of the last rows uses later
    prices, so a segment to learn from has to end ``label_horizon + 1`` bars before the moment at
    which one learns (``RollingGen(trunc_days=label_horizon + 1)``).

    Parameters
    ----------
    panel : str, Path, DataFrame or PricePanel, optional
        What `qwf.data.panel.read_panel` reads; the field ``close`` is used. Default: the
        ``provider_uri`` of `qwf.init`. A path is kept in a pickle; prices in memory are not,
        unless ``dump_all``, and have to be given again (``config(panel=...)``).
    instruments : str or sequence of str, optional
        A list, or the name of a market of a Qlib data directory. Default, and ``"all"``: all.
    start_time, end_time : date, optional
        First and last row, both inclusive. Default: all prices.
    fit_start_time, fit_end_time : date, optional
        The fit window, both inclusive. Without an end, no step can be fitted; `DatasetH` takes
        its training segment for a handler that it builds from a configuration.
    infer_processors, learn_processors : sequence of dict, str or Processor
        As for `DataHandlerLP`.
    label_horizon : int, default 1
        Bars from buying to selling, at least 1.
    freq : str, default "day"
        Of a Qlib data directory: the frequency to be read.

    Raises
    ------
    ConfigError, SegmentError
        As `DataHandlerLP`, and if `label_horizon` is no positive integer.

    Examples
    --------
    >>> import pandas as pd
    >>> closes = pd.DataFrame(
    ...     {"A": [10.0, 11.0, 22.0, 33.0]},
    ...     index=pd.date_range("2020-01-01", periods=4, name="datetime"),
    ... )
    >>> handler = PriceHandler(closes, start_time="2020-01-02")
    >>> handler.fetch()[["RET1", "LABEL0"]].round(2)  # doctest: +NORMALIZE_WHITESPACE
                           RET1  LABEL0
    datetime   instrument
    2020-01-02 A            0.1     0.5
    2020-01-03 A            1.0     NaN
    2020-01-04 A            0.5     NaN
    """

    _settings: ClassVar[tuple[str, ...]] = (*DataHandlerLP._settings, "panel")

    def __init__(  # noqa: PLR0913 - Qlib's parameters, and where prices and labels come from
        self,
        panel: str | os.PathLike[str] | pd.DataFrame | PricePanel | None = None,
        instruments: str | Sequence[str] | None = None,
        start_time: Date | None = None,
        end_time: Date | None = None,
        fit_start_time: Date | None = None,
        fit_end_time: Date | None = None,
        infer_processors: Sequence[Any] | None = (),
        learn_processors: Sequence[Any] | None = (),
        *,
        label_horizon: int = 1,
        freq: str = "day",
    ) -> None:
        super().__init__(
            instruments,
            start_time,
            end_time,
            infer_processors,
            learn_processors,
            fit_start_time,
            fit_end_time,
        )
        if isinstance(label_horizon, bool) or not isinstance(label_horizon, int):
            raise ConfigError(f"label_horizon is {label_horizon!r}; expected a number of bars.")
        if label_horizon < 1:
            raise ConfigError(f"label_horizon is {label_horizon}; expected at least 1 bar.")
        self.panel = panel
        self.label_horizon = label_horizon
        self.label_bars = label_horizon + 1
        self.freq = freq
        self._left_out = False

    def config(
        self, *, dump_all: bool | None = None, recursive: bool = False, **settings: Any
    ) -> None:
        """Change the period, the instruments or (``panel``) the prices; see `DataHandlerLP`."""
        super().config(dump_all=dump_all, recursive=recursive, **settings)
        if "panel" in settings:
            self._left_out = False

    def load(self) -> pd.DataFrame:
        """Compute features and label; see `DataHandlerLP`."""
        prices = self._prices()
        frame = prices.field("close")
        close = frame.to_numpy()
        if (close <= 0).any():
            row, column = np.argwhere(close <= 0)[0]
            raise DataError(
                f"the close of {frame.columns[column]} on {frame.index[row]} is "
                f"{close[row, column]:g}, and returns need positive prices. Use prices adjusted by "
                "ratios, or leave the value out."
            )
        present = ~np.isnan(close)
        if prices.members is not None:
            present &= prices.members.to_numpy()
        rows = rows_between(prices.dates, self.start_time, self.end_time, "the period")
        # Carried forward from the very first bar, so that no value depends on start_time.
        filled = carry_forward(close[: rows.stop])
        warm = slice(max(rows.start - HISTORY_BARS, 0), rows.stop)
        features = price_features(filled[warm], present[warm])
        label = forward_return(close[rows.start : rows.stop + self.label_bars], self.label_horizon)
        n_bars = rows.stop - rows.start
        parts = {
            ("feature", name): values[len(values) - n_bars :] for name, values in features.items()
        }
        parts["label", "LABEL0"] = label[:n_bars]
        return _stack(parts, frame.index[rows], frame.columns, present[rows])

    def _prices(self) -> PricePanel:
        if self._left_out:
            raise DataError(
                "the prices of this PriceHandler were given in memory, and its pickle leaves them "
                "out. Give them again with config(panel=...), or build it with the path of a file."
            )
        source = C.provider(self.freq) if self.panel is None else self.panel
        if source is None:
            raise DataError(
                "PriceHandler has no prices: pass panel=..., or name a Qlib data directory with "
                "qwf.init(provider_uri=...)."
            )
        market = self.instruments if isinstance(self.instruments, str) else "all"
        panel = read_panel(source, fields=["close"], market=market, freq=self.freq)
        if self.instruments is None or isinstance(self.instruments, str):
            return panel
        return panel.select(self.instruments)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if not self._dump_all and isinstance(self.panel, (pd.DataFrame, PricePanel)):
            state["panel"] = None
            state["_left_out"] = True
        return state


def _stack(
    parts: dict[tuple[str, str], np.ndarray],
    dates: pd.DatetimeIndex,
    instruments: pd.Index,
    present: np.ndarray,
) -> pd.DataFrame:
    """Make one row of each bar and instrument that is present, sorted by both."""
    bars, columns = np.nonzero(present)
    index = pd.MultiIndex(
        levels=[dates, instruments], codes=[bars, columns], names=["datetime", "instrument"]
    )
    values = np.empty((len(bars), len(parts)), order="F")
    for column, matrix in enumerate(parts.values()):
        values[:, column] = matrix[present]
    return pd.DataFrame(values, index=index, columns=pd.MultiIndex.from_tuples(parts))
