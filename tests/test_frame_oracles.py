"""The answers of Qlib d5379c5 (pandas 3.1) to the same frames."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from qwf.ensemble import AverageEnsemble, RollingEnsemble, RollingGroup, SingleKeyEnsemble
from qwf.instantiate import FLATTEN_TUPLE, flatten_dict
from qwf.records.signal_metrics import (
    calc_ic,
    calc_long_short_prec,
    calc_long_short_return,
    pred_autocorr,
)

ORACLES = Path(__file__).parent / "oracles" / "pure"
CASES = [
    case
    for case in json.loads(gzip.decompress((ORACLES / "frames_cases.json.gz").read_bytes()))
    if case["call"] != "_replace_range"
]
METRICS = {
    "calc_ic": calc_ic,
    "calc_long_short_return": calc_long_short_return,
    "calc_long_short_return quantile=0.3 dropna": lambda pred, label: calc_long_short_return(
        pred, label, quantile=0.3, dropna=True
    ),
    # The case does not tell that it was made with is_alpha; its answer is that of no other call.
    "calc_long_short_prec": lambda pred, label: calc_long_short_prec(pred, label, is_alpha=True),
}


def read(described: dict[str, Any]) -> Any:
    frame = pd.read_parquet(ORACLES / described["file"])
    frame = frame.set_index([name for name in frame.columns if name.startswith("i")])
    frame.index.names = described["index_names"]
    frame.columns = described["columns"]
    if described["kind"] == "Series":
        return frame.iloc[:, 0].rename(described["series_name"])
    return frame


def bare(name: str, kind: str = "DataFrame", levels: tuple[str, ...] = ()) -> Any:
    """Read a frame that no case describes."""
    return read(
        {
            "file": f"frames/{name}.parquet",
            "kind": kind,
            "columns": ["score"],
            "series_name": None,
            "index_names": list(levels or ("datetime", "instrument")),
        }
    )


def case_name(case: dict[str, Any]) -> str:
    described = case.get("ok")
    if isinstance(described, list):
        described = described[0]
    if isinstance(described, dict) and isinstance(described.get("file"), str):
        return str(Path(described["file"]).name.partition("__")[0])
    return f"{case['call'][:20]} {'error' if 'error' in case else 'value'}"


def cases(*calls: str) -> Any:
    chosen = [case for case in CASES if case["call"] in calls]
    assert chosen
    return pytest.mark.parametrize("case", chosen, ids=[case_name(case) for case in chosen])


def assert_same(found: Any, expected: Any) -> None:
    check = (
        pd.testing.assert_series_equal
        if isinstance(expected, pd.Series)
        else pd.testing.assert_frame_equal
    )
    check(found, expected, check_freq=False, check_index_type=False, rtol=1e-11, atol=1e-13)


def inputs_of(case: dict[str, Any]) -> dict[str, Any]:
    return {
        name: read(given) if isinstance(given, dict) else given
        for name, given in case["inputs"].items()
    }


@cases("RollingEnsemble", "AverageEnsemble")
def test_an_ensemble_answers_what_qlib_answers(case: dict[str, Any]) -> None:
    members = inputs_of(case)
    if members.pop("nested", None):
        members = {
            "x": {("m", "n"): members["A"], "k": members["B"]},
            "y": members["C"],
        }
    ensemble = RollingEnsemble() if case["call"] == "RollingEnsemble" else AverageEnsemble()
    if "error" in case:
        assert case["error"] == "ValueError"
        with pytest.raises(ValueError, match="empty"):
            ensemble(members)
    else:
        if case_name(case) == "roll_same_start":
            # Qlib lets the last of two pieces that begin together hold. Recorders are listed newest
            # first, so qwf lets the first one hold: the same answer for the dict turned round.
            members = dict(reversed(members.items()))
        assert_same(ensemble(members), read(case["ok"]))


def test_of_two_pieces_that_begin_together_the_first_holds_where_qlib_lets_the_last() -> None:
    k1, k2 = bare("roll_same_start__in_k1"), bare("roll_same_start__in_k2")
    last_holds, first_holds = bare("roll_same_start__out"), bare("roll_same_start_rev__out")
    assert not last_holds.equals(first_holds)
    assert_same(RollingEnsemble()({"k1": k1, "k2": k2}), first_holds)
    assert_same(RollingEnsemble()({"k2": k2, "k1": k1}), last_holds)


def test_a_constant_day_has_no_standardized_prediction() -> None:
    found = AverageEnsemble()({"A": bare("avg_constant__in_A")})
    expected = bare("avg_constant__out", "Series")
    assert expected.isna().any()
    assert_same(found, expected)


@cases("RollingGroup()({('M',seg1):A,('M',seg2):B,('N',seg1):C})")
def test_rolling_group_answers_what_qlib_answers(case: dict[str, Any]) -> None:
    given = inputs_of(case)
    rolling = {
        ("M", "seg1"): given["A"],
        ("M", "seg2"): given["B"],
        ("N", "seg1"): given["C"],
    }
    found = RollingGroup()(rolling)
    assert [str(key) for key in found] == list(case["ok"])
    for key, merged in found.items():
        assert_same(merged, read(case["ok"][str(key)]))


@cases("SingleKeyEnsemble")
def test_single_key_ensemble_answers_what_qlib_answers(case: dict[str, Any]) -> None:
    assert SingleKeyEnsemble()(case["inputs"]) == case["ok"]


@cases("flatten_dict FLATTEN_TUPLE")
def test_flatten_dict_with_tuples_nests_them_as_qlib_does(case: dict[str, Any]) -> None:
    flat = flatten_dict(case["inputs"], sep=FLATTEN_TUPLE)
    assert {str(key): value for key, value in flat.items()} == case["ok"]


@cases(*METRICS)
def test_a_metric_answers_what_qlib_answers(case: dict[str, Any]) -> None:
    found = METRICS[case["call"]](**inputs_of(case))
    assert len(found) == len(case["ok"])
    for one, described in zip(found, case["ok"], strict=True):
        assert_same(one, read(described))


def test_autocorrelation_answers_what_qlib_answers() -> None:
    pred = bare("autocorr__in_pred", "Series")
    expected = bare("autocorr__out", "Series", levels=("datetime",))
    assert_same(pred_autocorr(pred), expected)
