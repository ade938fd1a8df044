"""A linear model without any library, and an adapter that makes a model of any estimator."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import ConfigError, DataError, suggest
from ..instantiate import accepted_keywords, init_instance_by_config

__all__ = ["EstimatorModel", "LinearModel"]

_ESTIMATORS: Final = ("ols", "ridge")


class LinearModel:
    """Least squares in closed form, with or without a penalty on the squared coefficients.

    ``ols`` minimises ``sum(w * (y - X b - a)^2)``; where columns depend on each other, the shortest
    solution is taken. ``ridge`` adds ``alpha * sum(b^2)``; the intercept `a` is not penalised.
    (Hastie, Tibshirani and Friedman, The Elements of Statistical Learning, 2nd ed., 3.2 and 3.4.1.)

    Parameters
    ----------
    estimator : {"ols", "ridge"}, default "ols"
        Which of them.
    alpha : float, default 0.0
        The penalty of ``ridge``, not negative; 0 gives ``ols``.
    fit_intercept : bool, default False
        Whether `a` is fitted; otherwise it is 0, as in Qlib.
    include_valid : bool, default False
        Learn from the segment ``"valid"`` as well.

    Attributes
    ----------
    coef_ : ndarray of float, shape (features,)
        `b`, once fitted.
    intercept_ : float
        `a`, once fitted.

    Raises
    ------
    ConfigError
        If there is no such estimator, or `alpha` is negative.
    """

    OLS: Final = "ols"
    RIDGE: Final = "ridge"

    def __init__(
        self,
        estimator: str = OLS,
        alpha: float = 0.0,
        *,
        fit_intercept: bool = False,
        include_valid: bool = False,
    ) -> None:
        if estimator not in _ESTIMATORS:
            raise ConfigError(
                f"LinearModel has no estimator {estimator!r}; {suggest(estimator, _ESTIMATORS)} "
                "Others can be used through EstimatorModel."
            )
        if not 0 <= alpha < np.inf:
            raise ConfigError(f"alpha is {alpha!r}; expected a number that is not negative.")
        self.estimator = estimator
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.include_valid = include_valid
        self.coef_: NDArray[np.float64] | None = None
        self.intercept_ = 0.0
        self.features_: list[str] = []

    def fit(self, dataset: Any, reweighter: Any = None) -> LinearModel:
        """Learn from the segment ``"train"``; rows with a missing feature or label are left out.

        Parameters
        ----------
        dataset : DatasetH
            Or anything with its `prepare`.
        reweighter : object, optional
            Its ``reweight(df)`` gives the weight of each row: none negative, not all zero.

        Returns
        -------
        LinearModel
            This one.

        Raises
        ------
        DataError
            If no complete row is left, there is not exactly one label, a value is infinite, or
            the weights are impossible. What was learnt before stays.
        """
        segments = ["train", "valid"] if self.include_valid else ["train"]
        frame = _learning_rows(dataset, segments, complete=True)
        _refuse_infinite(frame)
        x = frame["feature"].to_numpy(dtype=np.float64)
        y = _only_label(frame).to_numpy(dtype=np.float64)
        weights = np.ones(len(y)) if reweighter is None else _weights(reweighter, frame)
        x_mean, y_mean = np.zeros(x.shape[1]), 0.0
        if self.fit_intercept:
            x_mean = np.average(x, axis=0, weights=weights)
            y_mean = float(np.average(y, weights=weights))
        root = np.sqrt(weights)
        coef = self._solve((x - x_mean) * root[:, None], (y - y_mean) * root)
        self.coef_, self.intercept_ = coef, float(y_mean - x_mean @ coef)
        self.features_ = frame["feature"].columns.tolist()
        return self

    def _solve(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.estimator == self.OLS or self.alpha == 0:
            return np.asarray(np.linalg.lstsq(x, y, rcond=None)[0], dtype=np.float64)
        gram = x.T @ x + self.alpha * np.eye(x.shape[1])
        return np.asarray(np.linalg.solve(gram, x.T @ y), dtype=np.float64)

    def predict(self, dataset: Any, segment: Any = "test") -> pd.Series:
        """Return the scores of a segment.

        Parameters
        ----------
        dataset : DatasetH
            Or anything with its `prepare`.
        segment : str, slice or pair of dates, default "test"
            Which rows.

        Returns
        -------
        Series
            ``score``: index levels ``(datetime, instrument)``; NaN where a feature is missing.

        Raises
        ------
        DataError
            If the model was not fitted, or fitted on other features.
        """
        if self.coef_ is None:
            raise _not_fitted(self)
        x = dataset.prepare(segment, col_set="feature", data_key="infer")
        _refuse_other_features(self, self.features_, x)
        scores = x.to_numpy(dtype=np.float64) @ self.coef_ + self.intercept_
        return pd.Series(scores, index=x.index, name="score")


class EstimatorModel:
    """Any estimator with scikit-learn's ``fit(X, y)`` and ``predict(X)``.

    ``X`` is a frame of the features, missing ones as NaN (use `Fillna` for an estimator that does
    not take them); ``y`` a series of the label. Rows without a label are left out.

    Parameters
    ----------
    estimator : str or object
        Path of a class, e.g. ``"sklearn.ensemble.HistGradientBoostingRegressor"``, imported when it
        is fitted, or an unfitted estimator, which stays as it is: a copy is fitted.
    kwargs : dict, optional
        Keywords for the class.

    Attributes
    ----------
    fitted_ : object
        The fitted estimator.

    Raises
    ------
    ConfigError
        If `kwargs` are given for an object.
    """

    def __init__(self, estimator: Any, kwargs: Mapping[str, Any] | None = None) -> None:
        if kwargs and not isinstance(estimator, str):
            raise ConfigError(
                f"kwargs {dict(kwargs)} are given for the object {estimator!r}; they are for a "
                "class named as text. Set them on the object."
            )
        self.estimator = estimator
        self.kwargs = dict(kwargs or {})
        self.fitted_: Any = None
        self.features_: list[str] = []

    def fit(self, dataset: Any, reweighter: Any = None) -> EstimatorModel:
        """Learn from the segment ``"train"``.

        Parameters
        ----------
        dataset : DatasetH
            Or anything with its `prepare`.
        reweighter : object, optional
            Its ``reweight(df)`` gives the weight of each row; the estimator gets them as
            ``sample_weight``.

        Returns
        -------
        EstimatorModel
            This one.

        Raises
        ------
        DataError
            If no row has a label, there is not exactly one label, or the weights are impossible.
        ConfigError
            If there is a reweighter and the estimator takes no weights.
        """
        frame = _learning_rows(dataset, ["train"], complete=False)
        estimator = self._build()
        keywords = {} if reweighter is None else {"sample_weight": _weights(reweighter, frame)}
        if not accepted_keywords(estimator.fit, keywords) == list(keywords):
            raise ConfigError(
                f"{type(estimator).__name__}.fit takes no sample_weight, so that the weights of "
                f"{type(reweighter).__name__} would be lost; leave the reweighter out."
            )
        estimator.fit(frame["feature"], _only_label(frame), **keywords)
        self.fitted_ = estimator
        self.features_ = frame["feature"].columns.tolist()
        return self

    def _build(self) -> Any:
        if isinstance(self.estimator, str):
            return init_instance_by_config({"class": self.estimator, "kwargs": self.kwargs})
        return copy.deepcopy(self.estimator)

    def predict(self, dataset: Any, segment: Any = "test") -> pd.Series:
        """Return the scores of a segment; as `LinearModel.predict`."""
        if self.fitted_ is None:
            raise _not_fitted(self)
        x = dataset.prepare(segment, col_set="feature", data_key="infer")
        _refuse_other_features(self, self.features_, x)
        scores = np.asarray(self.fitted_.predict(x), dtype=np.float64)
        return pd.Series(scores, index=x.index, name="score")


def _learning_rows(dataset: Any, segments: list[str], *, complete: bool) -> pd.DataFrame:
    """Return features and label of the rows with a label (and, if `complete`, every feature)."""
    col_set = ["feature", "label"]
    parts = [dataset.prepare(name, col_set=col_set, data_key="learn") for name in segments]
    frame = pd.concat(parts) if len(parts) > 1 else parts[0]
    labelled = frame[_only_label(frame).notna().to_numpy()]
    rows = labelled[labelled.notna().all(axis=1).to_numpy()] if complete else labelled
    if rows.empty:
        found = "no label" if labelled.empty else "a label, but a feature is missing in each"
        remedy = "move the segment" if labelled.empty else "add Fillna to the infer_processors"
        raise DataError(
            f"there is nothing to learn from: the {len(frame)} rows of {' and '.join(segments)} "
            f"have {found}; {remedy}."
        )
    return rows


def _refuse_infinite(frame: pd.DataFrame) -> None:
    infinite = np.isinf(frame.to_numpy(dtype=np.float64))
    if infinite.any():
        row, column = np.argwhere(infinite)[0]
        raise DataError(
            f"there are {int(infinite.sum())} infinite values to learn from, the first in "
            f"{frame.columns[column]} at {frame.index[row]}; correct the data that it comes from."
        )


def _only_label(frame: pd.DataFrame) -> pd.Series:
    labels = frame["label"]
    if labels.shape[1] != 1:
        raise DataError(
            f"expected one label and found {labels.columns.tolist()}; give the model a dataset "
            "with one of them."
        )
    return labels.iloc[:, 0]


def _weights(reweighter: Any, frame: pd.DataFrame) -> NDArray[np.float64]:
    weights = np.asarray(reweighter.reweight(frame), dtype=np.float64)
    possible = weights.shape == (len(frame),) and np.isfinite(weights).all()
    if not possible or (weights < 0).any() or not weights.sum():
        raise DataError(
            f"{type(reweighter).__name__}.reweight returned weights of shape {weights.shape} for "
            f"{len(frame)} rows; expected one finite number per row, none negative, not all zero."
        )
    return weights


def _refuse_other_features(model: object, fitted: list[str], x: pd.DataFrame) -> None:
    found = x.columns.tolist()
    if found != fitted:
        raise DataError(
            f"{type(model).__name__} was fitted on the features {fitted} and gets {found}; use a "
            "dataset with the same features in the same order."
        )


def _not_fitted(model: object) -> DataError:
    return DataError(f"this {type(model).__name__} was not fitted; call fit(dataset) first.")
