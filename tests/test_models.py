"""The models equal scikit-learn's, refuse what cannot be learnt from, and survive pickling."""

from __future__ import annotations

import pickle
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.neighbors import KNeighborsRegressor

from qwf.data.dataset import DatasetH
from qwf.data.models import EstimatorModel, LinearModel
from qwf.errors import ConfigError, DataError

SP500 = Path(__file__).parent.parent / "examples" / "data" / "sp500_20.parquet"


class Frames:
    """A dataset that is nothing but its frames."""

    def __init__(self, **frames: pd.DataFrame) -> None:
        self.frames = frames

    def prepare(self, segment: str, col_set: Any, data_key: str) -> pd.DataFrame:
        return self.frames[segment][col_set]


class Weights:
    def reweight(self, df: pd.DataFrame) -> pd.Series:
        return pd.Series(np.arange(len(df)) % 3 + 0.5, index=df.index)


class NoWeights:
    def reweight(self, df: pd.DataFrame) -> pd.Series:
        return pd.Series(-1.0, index=df.index)


def rows(n: int = 120, seed: int = 5) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 5)) * [1, 10, 0.1, 1, 0] + [0, 3, 0, 0, 7]
    y = x @ [1.0, -0.2, 5.0, 0.0, 0.0] + 4 + rng.normal(size=n)
    dates = pd.date_range("2020-01-01", periods=n // 2)
    index = pd.MultiIndex.from_product([dates, ["A", "B"]], names=["datetime", "instrument"])
    columns = pd.MultiIndex.from_tuples([*(("feature", f"F{i}") for i in range(5)), ("label", "L")])
    return pd.DataFrame(np.column_stack([x, y]), index=index, columns=columns)


def peer(estimator: str, alpha: float, fit_intercept: bool) -> Any:
    if estimator == "ridge" and alpha > 0:
        return Ridge(alpha=alpha, fit_intercept=fit_intercept)
    return LinearRegression(fit_intercept=fit_intercept)


@pytest.mark.parametrize("reweighter", [None, Weights()])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize(
    ("estimator", "alpha"), [("ols", 0.0), ("ridge", 0.05), ("ridge", 30.0), ("ridge", 0.0)]
)
def test_the_linear_model_equals_scikit_learn(
    estimator: str, alpha: float, fit_intercept: bool, reweighter: Any
) -> None:
    train, test = rows(), rows(seed=6)
    model = LinearModel(estimator, alpha, fit_intercept=fit_intercept)
    assert model.fit(Frames(train=train), reweighter) is model
    weights = None if reweighter is None else reweighter.reweight(train)
    expected = peer(estimator, alpha, fit_intercept)
    expected.fit(train["feature"], train["label", "L"], sample_weight=weights)
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e-10)
    assert model.intercept_ == pytest.approx(expected.intercept_, abs=1e-10)
    scores = model.predict(Frames(test=test))
    np.testing.assert_allclose(scores, expected.predict(test["feature"]), atol=1e-10)
    assert scores.name == "score"
    assert scores.index.equals(test.index)


def test_rows_with_gaps_are_left_out_of_learning_and_get_no_score() -> None:
    train = rows()
    holes = train.copy()
    holes.iloc[3, 0] = np.nan
    holes.iloc[8, 5] = np.nan
    model = LinearModel().fit(Frames(train=holes))
    whole = LinearModel().fit(Frames(train=train.drop(train.index[[3, 8]])))
    assert (model.coef_ == whole.coef_).all()
    assert np.flatnonzero(model.predict(Frames(test=holes)).isna()).tolist() == [3]


def test_the_valid_segment_is_learnt_from_only_when_asked() -> None:
    train, valid = rows(), rows(seed=6)
    both = Frames(train=pd.concat([train, valid]))
    data = Frames(train=train, valid=valid)
    assert (LinearModel(include_valid=True).fit(data).coef_ == LinearModel().fit(both).coef_).all()
    assert (LinearModel().fit(data).coef_ == LinearModel().fit(Frames(train=train)).coef_).all()


def spoilt(column: int, value: float) -> pd.DataFrame:
    frame = rows()
    frame.iloc[:, column] = value
    return frame


@pytest.mark.parametrize("model", [LinearModel(), EstimatorModel(LinearRegression())])
def test_segments_that_nothing_can_be_learnt_from_are_refused(model: Any) -> None:
    with pytest.raises(DataError, match="the 120 rows of train have no label"):
        model.fit(Frames(train=spoilt(5, np.nan)))
    with pytest.raises(DataError, match="the 0 rows of train have no label; move the segment"):
        model.fit(Frames(train=rows().iloc[:0]))
    two = rows()
    two["label", "M"] = 1.0
    with pytest.raises(DataError, match=r"expected one label and found \['L', 'M'\]"):
        model.fit(Frames(train=two))
    with pytest.raises(DataError, match=r"NoWeights\.reweight returned weights .* 120 rows"):
        model.fit(Frames(train=rows()), NoWeights())


def test_the_linear_model_names_features_that_it_cannot_use() -> None:
    with pytest.raises(DataError, match="a feature is missing in each; add Fillna"):
        LinearModel().fit(Frames(train=spoilt(2, np.nan)))
    with pytest.raises(DataError, match=r"120 infinite values .*the first in \('feature', 'F1'\)"):
        LinearModel().fit(Frames(train=spoilt(1, np.inf)))
    with pytest.raises(ConfigError, match=r"no estimator 'ridg'; did you mean 'ridge'\?"):
        LinearModel("ridg")
    for alpha in (-1.0, np.nan, np.inf):
        with pytest.raises(ConfigError, match="alpha is"):
            LinearModel("ridge", alpha)


@pytest.mark.parametrize("model", [LinearModel(), EstimatorModel(LinearRegression())])
def test_only_a_fitted_model_predicts_and_only_from_the_same_features(model: Any) -> None:
    with pytest.raises(DataError, match=r"this \w+ was not fitted; call fit\(dataset\) first"):
        model.predict(Frames(test=rows()))
    model = pickle.loads(pickle.dumps(model)).fit(Frames(train=rows()))
    other = rows()[[("feature", "F1"), ("feature", "F0")]]
    with pytest.raises(DataError, match=r"fitted on the features \['F0', .* gets \['F1', 'F0'\]"):
        model.predict(Frames(test=other))


def test_any_estimator_can_be_named() -> None:
    train, test = rows(), rows(seed=6)
    train.iloc[4, 5] = np.nan
    train.iloc[:9, 1] = np.nan
    kwargs = {"max_iter": 5, "random_state": 1}
    model = EstimatorModel("sklearn.ensemble.HistGradientBoostingRegressor", kwargs)
    model.fit(Frames(train=train), Weights())
    known = train.drop(train.index[4])
    expected = HistGradientBoostingRegressor(**kwargs)
    expected.fit(known["feature"], known["label", "L"], sample_weight=Weights().reweight(known))
    scores = pickle.loads(pickle.dumps(model)).predict(Frames(test=test))
    assert (scores == expected.predict(test["feature"])).all()
    assert scores.name == "score"


def test_an_estimator_object_stays_as_it_was_given() -> None:
    given = Ridge(alpha=2.0)
    model = EstimatorModel(given).fit(Frames(train=rows()))
    assert not hasattr(given, "coef_")
    ours = LinearModel("ridge", 2.0, fit_intercept=True).fit(Frames(train=rows()))
    np.testing.assert_allclose(model.fitted_.coef_, ours.coef_, atol=1e-10)
    with pytest.raises(ConfigError, match=r"kwargs \{'alpha': 1\} are given for the object"):
        EstimatorModel(given, {"alpha": 1})


def test_weights_that_an_estimator_would_lose_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"KNeighborsRegressor.fit takes no sample_weight"):
        EstimatorModel(KNeighborsRegressor()).fit(Frames(train=rows()), Weights())


def test_an_estimator_is_imported_when_it_is_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
        class Mean:
            def fit(self, X, y):
                self.mean = y.mean()
            def predict(self, X):
                return [self.mean] * len(X)
    """
    (tmp_path / "model_of_mine.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(tmp_path)
    model = EstimatorModel("model_of_mine.Mean")
    assert "model_of_mine" not in sys.modules
    train = rows()
    scores = model.fit(Frames(train=train)).predict(Frames(test=train))
    assert set(scores) == {train["label", "L"].mean()}
    with pytest.raises(ModuleNotFoundError):
        EstimatorModel("no_such_library.Model").fit(Frames(train=train))


@pytest.mark.parametrize(
    "model",
    [
        LinearModel("ridge", 1.0),
        EstimatorModel("sklearn.linear_model.Ridge", {"alpha": 1.0}),
    ],
)
def test_models_learn_from_real_prices(model: Any) -> None:
    handler = {
        "class": "PriceHandler",
        "kwargs": {
            "panel": SP500,
            "start_time": "2015-01-02",
            "infer_processors": [
                {"class": "RobustZScoreNorm", "kwargs": {"fields_group": "feature"}},
                {"class": "Fillna", "kwargs": {"fields_group": "feature"}},
            ],
            "learn_processors": [
                "DropnaLabel",
                {"class": "CSRankNorm", "kwargs": {"fields_group": "label"}},
            ],
        },
    }
    segments = {"train": ("2015-01-02", "2018-12-31"), "test": ("2019-01-03", "2022-12-28")}
    data = DatasetH(handler, segments)
    scores = pickle.loads(pickle.dumps(model.fit(data))).predict(data)
    assert len(scores) == 1005 * 21
    assert scores.notna().all()
    in_sample = model.predict(data, segment="train")
    label = data.prepare("train", col_set="label", data_key="learn")["LABEL0"]
    assert in_sample.corr(label) > 0.02
