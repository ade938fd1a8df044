"""Frames and series come back from parquet exactly, or are refused and kept as pickle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwf.errors import FormatVersionError
from qwf.storage import frames
from qwf.storage.artifacts import PARQUET, PICKLE, dump_object
from qwf.storage.frames import NotTabularError, decode_frame, encode_frame


def assert_same(one: Any, other: Any) -> None:
    # pandas 2 infers the type of an empty level from the values that it no longer uses.
    exact = {"check_exact": True, "check_freq": True, "check_index_type": len(one) > 0}
    if isinstance(one, pd.Series):
        pd.testing.assert_series_equal(one, other, **exact)
    else:
        pd.testing.assert_frame_equal(one, other, **exact)
        assert type(one.columns) is type(other.columns)
    assert type(one.index) is type(other.index)
    assert list(one.index.names) == list(other.index.names)
    assert one.attrs == other.attrs


def signal_index(**dates: Any) -> pd.MultiIndex:
    days = pd.date_range("2020-01-01", periods=4, **dates)
    return pd.MultiIndex.from_product([days, ["b", "a", "沪深"]], names=["datetime", "instrument"])


def units(kind: str) -> pd.DataFrame:
    parse = pd.to_datetime if kind == "M" else pd.to_timedelta
    return pd.DataFrame(
        {unit: pd.Series(parse([1, 2, None], unit="s")).dt.as_unit(unit) for unit in
         ("s", "ms", "us", "ns")}
    )  # fmt: skip


def with_attrs() -> pd.Series:
    series = pd.Series([1.0], name=("a", 1))
    series.attrs = {"horizon": (1, 5)}
    return series


KINDS = ("i1", "u1", "i8", "u8", "f2", "f4", "f8", "?")

EXACT = {
    "a signal": pd.DataFrame({"score": np.arange(12.0)}, index=signal_index()),
    "a signal as series": pd.Series(np.arange(12.0), index=signal_index(), name="score"),
    "an empty signal": pd.DataFrame({"score": np.arange(12.0)}, index=signal_index()).iloc[:0],
    "a selection": pd.DataFrame({"score": np.arange(12.0)}, index=signal_index()).iloc[[5, 1]],
    "no columns": pd.DataFrame(index=signal_index()),
    "nothing": pd.DataFrame(),
    "days with a zone": pd.Series(1.0, index=signal_index(tz="Asia/Shanghai")),
    "days in UTC": pd.Series(1.0, index=signal_index(tz="UTC")),
    "zones": pd.DataFrame(
        {"a": pd.date_range("2020-03-29", periods=9, freq="h", tz="Europe/Rome")}
    ),
    "times": units("M"),
    "durations": units("m"),
    "ordered categories": pd.DataFrame(
        {"a": pd.Categorical(["x", None, "y"], categories=["z", "y", "x"], ordered=True)}
    ),
    "number categories": pd.Series(pd.Categorical([1, 2, 1], categories=[3, 2, 1])),
    "date categories": pd.Series(pd.Categorical(pd.to_datetime(["2020-01-01", None]))),
    "text objects": pd.Series(["a", None, "c"], dtype=object),
    "nullable text": pd.Series(["a", None, "c"], dtype="string"),
    "plain text": pd.Series(["a", "b"]),
    "nullable numbers": pd.DataFrame(
        {
            "a": pd.array([1, None], dtype="Int8"),
            "b": pd.array([1.5, None], dtype="Float32"),
            "c": pd.array([True, None], dtype="boolean"),
        }
    ),
    "numbers": pd.DataFrame({kind: np.array([0, 1], dtype=kind) for kind in KINDS}),
    "special floats": pd.Series([np.nan, np.inf, -np.inf, -0.0, 5e-324]),
    "the same label twice": pd.DataFrame([[1, 2], [3, 4]], columns=["a", "a"]),
    "two levels of labels": pd.DataFrame(
        [[1, 2]], columns=pd.MultiIndex.from_tuples([("feature", "a"), ("label", "b")])
    ),
    "number labels": pd.DataFrame([[1, 2]], columns=[5, 7]),
    "range labels": pd.DataFrame([[1, 2]]),
    "date labels": pd.DataFrame([[1, 2]], columns=pd.to_datetime(["2020-01-01", "2021-01-01"])),
    "business days": pd.Series(
        [1.0, 2], index=pd.date_range("2020", periods=2, freq="B", name="d")
    ),
    "a category index": pd.Series([1.0, 2], index=pd.CategoricalIndex(["a", "b"])),
    "a category level": pd.Series(
        [1.0, 2], index=pd.MultiIndex.from_arrays([pd.Categorical(["a", "b"]), [1, 2]])
    ),
    "missing in levels": pd.Series(
        [1.0, 2], index=pd.MultiIndex.from_arrays([["a", None], [1.5, np.nan]])
    ),
    "attributes": with_attrs(),
    "columns of a wide block": pd.DataFrame(np.arange(12.0).reshape(3, 4))[[0, 2]],
}


@pytest.mark.parametrize("name", EXACT)
def test_a_frame_comes_back_exactly(name: str) -> None:
    frame = EXACT[name]
    before = frame.copy(deep=True)
    assert dump_object("x", frame)[0] == PARQUET
    assert_same(decode_frame(encode_frame(frame)), frame)
    assert_same(frame, before)


REFUSED = {
    "mixed objects": pd.Series([1, "a"], dtype=object),
    "NaN among text objects": pd.Series(["a", np.nan], dtype=object),
    "periods": pd.Series([1.0], index=pd.period_range("2020", periods=1)),
    "complex": pd.Series([1j]),
    "sparse": pd.Series(pd.arrays.SparseArray([0, 1])),
    "intervals": pd.Series(pd.interval_range(0, 2)),
    "labels that are objects": pd.DataFrame([[1]], columns=[frozenset({1})]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_parquet_cannot_hold_exactly_becomes_a_pickle(name: str) -> None:
    with pytest.raises(NotTabularError):
        encode_frame(REFUSED[name])
    assert dump_object("x", REFUSED[name])[0] == PICKLE


def test_a_subclass_of_a_frame_becomes_a_pickle() -> None:
    class Mine(pd.DataFrame):
        pass

    with pytest.raises(NotTabularError, match="subclass"):
        encode_frame(Mine({"a": [1]}))


dtypes = st.sampled_from(
    ["int8", "uint64", "float32", "float64", "bool", "datetime64[us]", "timedelta64[ns]", "object",
     "category", "string", "Int64"]
)  # fmt: skip
labels = st.one_of(st.text(max_size=5), st.integers(-5, 5), st.tuples(st.text(max_size=2)))


@st.composite
def columns(draw: st.DrawFn, length: int) -> pd.Series:
    dtype = draw(dtypes)
    words = st.lists(st.sampled_from(["a", "b", "é", ""]), min_size=length, max_size=length)
    numbers = st.lists(st.integers(0, 100), min_size=length, max_size=length)
    if dtype in ("object", "category", "string"):
        return pd.Series(draw(words), dtype=object).astype(dtype)
    return pd.Series(draw(numbers), dtype="int64").astype(dtype)


@st.composite
def any_frame(draw: st.DrawFn) -> pd.DataFrame:
    length, width = draw(st.integers(0, 5)), draw(st.integers(0, 4))
    parts = [draw(columns(length)) for _ in range(width)]
    frame = pd.concat(parts, axis=1) if parts else pd.DataFrame(index=range(length))
    names = draw(st.lists(labels, min_size=width, max_size=width))
    frame.columns = pd.Index(names, dtype=object, tupleize_cols=False)
    n_levels = draw(st.integers(0, 3))
    levels = [draw(columns(length)) for _ in range(n_levels)]
    if n_levels == 1:
        frame.index = pd.Index(levels[0], name=draw(labels))
    elif n_levels > 1:
        names = draw(st.lists(st.none() | labels, min_size=n_levels, max_size=n_levels))
        frame.index = pd.MultiIndex.from_arrays(levels, names=names)
    return frame


@settings(max_examples=150)
@given(any_frame())
def test_any_frame_of_plain_values_comes_back_exactly(frame: pd.DataFrame) -> None:
    try:
        data = encode_frame(frame)
    except NotTabularError:
        return
    assert_same(decode_frame(data), frame)


def test_other_programs_read_the_values() -> None:
    table = pq.read_table(pa.BufferReader(encode_frame(EXACT["a signal"])))
    assert table.column_names == ["datetime", "instrument", "score"]
    assert table.column("instrument").to_pylist()[:3] == ["b", "a", "沪深"]
    assert table.column("score").to_pylist() == list(range(12))


def test_parquet_of_other_programs_is_read_as_pandas_reads_it() -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [1, 2]}), sink)
    frame = decode_frame(sink.getvalue().to_pybytes())
    assert frame["x"].tolist() == [1, 2]


def test_a_newer_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "FRAME_FORMAT", 2)
    data = encode_frame(pd.Series([1.0]))
    monkeypatch.undo()
    with pytest.raises(FormatVersionError, match="format version 2"):
        decode_frame(data)


@pytest.mark.parametrize("keep", [0, 3, 40, -1])
def test_a_truncated_file_is_refused(keep: int) -> None:
    data = encode_frame(EXACT["a signal"])
    with pytest.raises(ValueError, match=r".+"):
        decode_frame(data[:keep])
