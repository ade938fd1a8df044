"""What is computed from closes: the features, from the past alone, and the label, from the future.

Pure functions of arrays of shape (bars, instruments). A value depends only on the bars in its own
window, in a fixed order of operations, so that it has the same bits whatever else is computed.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["HISTORY_BARS", "carry_forward", "forward_return", "price_features"]

_RETURNS: Final = (1, 5, 10, 20, 60)
_MEANS: Final = (5, 10, 20, 60)
_VOLATILITIES: Final = (5, 20, 60)
_EXTREMES: Final = (20, 60)

# Bars before the first one asked for that the longest window needs: RET60 and VOL60 look 60 back.
HISTORY_BARS: Final = 60

_Matrix = NDArray[np.float64]


def price_features(close: _Matrix, present: NDArray[np.bool_]) -> dict[str, _Matrix]:
    """Compute features from closes.

    ``C`` is the close of a bar, ``Ref(C, d)`` that of `d` bars before, ``R = C / Ref(C, 1) - 1``.

    =========== ================================== ==============================================
    name        d                                  formula
    =========== ================================== ==============================================
    ``RET{d}``  1, 5, 10, 20, 60                   ``C / Ref(C, d) - 1``
    ``MA{d}``   5, 10, 20, 60                      mean of the last `d` closes, over ``C``
    ``VOL{d}``  5, 20, 60                          standard deviation (ddof 1) of the last `d` R
    ``MAX{d}``  20, 60                             highest of the last `d` closes, over ``C``
    ``MIN{d}``  20, 60                             lowest of the last `d` closes, over ``C``
    ``MOM``     60 to 20                           ``Ref(C, 20) / Ref(C, 60) - 1``
    ``RANK20``  20                                 rank of ``RET20`` among the instruments of the
                                                   bar, in (0, 1]; ties share their mean rank
    =========== ================================== ==============================================

    ``MA`` is that of Qlib's Alpha158; its ``MAX`` and ``MIN`` use high and low where these use
    the close. Momentum that leaves out the latest month: Jegadeesh and Titman, Journal of Finance
    48 (1993) 65-91.

    Parameters
    ----------
    close : ndarray
        Shape (bars, instruments), positive, without gaps (`carry_forward`); NaN before an
        instrument's first price.
    present : ndarray of bool
        Shape of `close`: which instruments are ranked on which bar.

    Returns
    -------
    dict of str to ndarray
        In the order of the table. Shape of `close`; NaN where the window reaches back before the
        first price.
    """
    returns = close / _lag(close, 1) - 1
    features = {f"RET{d}": close / _lag(close, d) - 1 for d in _RETURNS}
    features |= {f"MA{d}": _rolling_mean(close, d) / close for d in _MEANS}
    features |= {f"VOL{d}": _rolling_deviation(returns, d) for d in _VOLATILITIES}
    features |= {f"MAX{d}": _rolling_extreme(np.maximum, close, d) / close for d in _EXTREMES}
    features |= {f"MIN{d}": _rolling_extreme(np.minimum, close, d) / close for d in _EXTREMES}
    features["MOM"] = _lag(close, 20) / _lag(close, 60) - 1
    ranked = pd.DataFrame(np.where(present, features["RET20"], np.nan))
    features["RANK20"] = ranked.rank(axis=1, pct=True).to_numpy()
    return features


def forward_return(close: _Matrix, horizon: int) -> _Matrix:
    """Compute the return from the next close to the close `horizon` bars later.

    ``Ref(C, -1 - horizon) / Ref(C, -1) - 1``, Qlib's convention: what is decided after the close of
    bar t is bought at the close of t + 1 and sold at that of t + 1 + horizon.

    Parameters
    ----------
    close : ndarray
        Shape (bars, instruments), NaN where an instrument cannot be traded.
    horizon : int
        At least 1.

    Returns
    -------
    ndarray
        Shape of `close`; NaN where one of the two closes is missing or not yet known.
    """
    label = np.full_like(close, np.nan)
    if len(close) > horizon + 1:
        label[: -horizon - 1] = close[horizon + 1 :] / close[1:-horizon] - 1
    return label


def carry_forward(close: _Matrix) -> _Matrix:
    """Replace each missing close by the last one before it; NaN before the first one stays."""
    rows = np.arange(len(close))[:, None]
    latest = np.maximum.accumulate(np.where(np.isnan(close), 0, rows), axis=0)
    filled: _Matrix = np.take_along_axis(close, latest, axis=0)
    return filled


def _lag(values: _Matrix, bars: int) -> _Matrix:
    lagged = np.full_like(values, np.nan)
    lagged[bars:] = values[:-bars]
    return lagged


def _rolling_mean(values: _Matrix, width: int) -> _Matrix:
    # Offset by offset, not by differences of a running sum: those depend on where it began, and
    # one large price would spoil all later ones.
    total = values.copy()
    for offset in range(1, width):
        total[offset:] += values[:-offset]
    total[: width - 1] = np.nan
    return total / width


def _rolling_deviation(values: _Matrix, width: int) -> _Matrix:
    mean = _rolling_mean(values, width)
    squares = (values - mean) ** 2
    for offset in range(1, width):
        squares[offset:] += (values[:-offset] - mean[offset:]) ** 2
    deviation: _Matrix = np.sqrt(squares / (width - 1))
    return deviation


def _rolling_extreme(extreme: np.ufunc, values: _Matrix, width: int) -> _Matrix:
    """Double the window until it is `width` bars long."""
    result, covered = values.copy(), 1
    while covered < width:
        step = min(covered, width - covered)
        later = result.copy()
        later[step:] = extreme(result[step:], result[:-step])
        result, covered = later, covered + step
    result[: width - 1] = np.nan
    return result
