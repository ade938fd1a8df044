"""Frames and series come back from parquet exactly, or are refused and kept as pickle."""

from __future__ import annotations

import datetime
import warnings
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


CATEGORIES = {
    "text": ["a", "b", "é", "", "a\0", "NaN", "沪深"],
    "numbers": [np.inf, 1.5, -0.0],
    "dates": [pd.Timestamp("2021"), pd.Timestamp("2020")],
}

REFUSED = {
    "mixed objects": pd.Series([1, "a"], dtype=object),
    "NaN among text objects": pd.Series(["a", np.nan], dtype=object),
    "periods": pd.Series([1.0], index=pd.period_range("2020", periods=1)),
    "complex": pd.Series([1j]),
    "sparse": pd.Series(pd.arrays.SparseArray([0, 1])),
    "intervals": pd.Series(pd.interval_range(0, 2)),
    "labels that are objects": pd.DataFrame([[1]], columns=[frozenset({1})]),
    "half a character": pd.Series(["a", "\ud800"], dtype=object),
    "half a character in the index": pd.Series([1.0], pd.Index(["\udfff"], dtype=object)),
    "half a character in a level": pd.Series(
        [1.0], pd.MultiIndex.from_arrays([pd.Index(["\udfff"], dtype=object), [1]])
    ),
    "half a character as category": pd.Series(pd.Categorical(pd.Series(["\udfff"], dtype=object))),
    "two halves of a character": pd.Series(["\ud800\udc00"], dtype=object),
    "two halves as name": pd.Series([1.0], name="\ud800\udc00"),
    "two halves as label": pd.DataFrame([[1]], columns=pd.Index(["\ud800\udc00"], dtype=object)),
    "a zone without a name": pd.Series(pd.date_range("2020", periods=2, tz="dateutil/UTC")),
    "a zone of that kind in the index": pd.Series(
        [1.0, 2], pd.date_range("2020", periods=2, tz="dateutil/UTC")
    ),
    "category labels in another order": pd.DataFrame(
        [[1, 2]], columns=pd.CategoricalIndex(["a", "b"], categories=["b", "a"])
    ),
    "category labels that are missing": pd.DataFrame(
        [[1, 2]],
        columns=pd.MultiIndex.from_arrays(
            [pd.Categorical([pd.Timestamp("2020"), None], CATEGORIES["dates"]), ["a", "b"]]
        ),
    ),
    "labels with a frequency": pd.DataFrame([[1, 2]], columns=pd.date_range("2020", periods=2)),
    "a level of labels with a frequency": pd.DataFrame(
        [[1, 2]],
        columns=pd.MultiIndex.from_product([pd.date_range("2020", periods=2), ["a"]]),
    ),
    "categories with a frequency": pd.Series(
        pd.Categorical.from_codes([0, 1], categories=pd.date_range("2020", periods=3))
    ),
    "NaN beside NA": pd.Series(
        pd.arrays.FloatingArray(np.array([np.nan, 1.0, 2.0]), np.array([False, True, False]))
    ),
    "NaN in a nullable column": pd.Series(
        pd.arrays.FloatingArray(np.array([np.nan, 1.0]), np.array([False, False]))
    ),
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


OFFSETS = {
    "D": pd.offsets.Day(),
    "-1D": pd.offsets.Day(-1),
    "B": pd.offsets.BDay(),
    "B with a time": pd.offsets.BDay(offset=datetime.timedelta(hours=9)),
    "a calendar": pd.offsets.CustomBusinessDay(holidays=["2020-01-02", "2020-01-06"]),
    "a week": pd.offsets.CustomBusinessDay(weekmask="Sun Mon Tue Wed Thu"),
    "a calendar's months": pd.offsets.CustomBusinessMonthEnd(holidays=["2020-01-31"]),
    "opening hours": pd.offsets.BusinessHour(start="10:00"),
    "ends of months": pd.offsets.MonthEnd(normalize=True),
    "months": pd.offsets.DateOffset(months=1),
    "days": pd.offsets.DateOffset(days=1),
    "Easter": pd.offsets.Easter(),
}
NAMED = ("D", "-1D", "B")


def dates(name: str, periods: int, zone: str | None = None) -> pd.DatetimeIndex:
    with warnings.catch_warnings():  # some offsets are slow, and pandas says so
        warnings.simplefilter("ignore")
        return pd.date_range("2020-01-01", periods=periods, freq=OFFSETS[name], tz=zone)


@pytest.mark.parametrize("zone", [None, "Europe/Rome"])
@pytest.mark.parametrize("periods", [0, 1, 5])
@pytest.mark.parametrize("name", OFFSETS)
def test_a_level_of_any_frequency_comes_back_with_its_dates(
    name: str, periods: int, zone: str | None
) -> None:
    days = dates(name, periods, zone)
    index = pd.MultiIndex.from_product([days, ["a", "b"]], names=["datetime", "instrument"])
    series = pd.Series(np.arange(float(len(index))), index=index)
    for part in (series, series.iloc[::-1], series.iloc[[-1, 0]] if periods else series):
        kind, data = dump_object("x", part)
        assert kind == PARQUET
        back = decode_frame(data)
        assert back.index.tolist() == part.index.tolist()
        assert back.index.dtypes.tolist() == part.index.dtypes.tolist()
        if name in NAMED and periods:
            assert back.index.levels[0].freq == part.index.levels[0].freq
        else:  # values only, and no frequency rather than a wrong one
            assert back.index.levels[0].freq in (None, part.index.levels[0].freq)


@pytest.mark.parametrize("zone", [None, "Europe/Rome"])
@pytest.mark.parametrize("name", OFFSETS)
def test_an_index_of_any_frequency_comes_back_with_it_or_becomes_a_pickle(
    name: str, zone: str | None
) -> None:
    days = dates(name, 5, zone)
    series = pd.Series(np.arange(float(len(days))), index=days)
    kind, data = dump_object("x", series)
    assert kind == (PARQUET if name in NAMED else PICKLE) or name == "B with a time"
    if kind == PARQUET:
        assert_same(decode_frame(data), series)
        assert decode_frame(data).index.freq == series.index.freq
    assert series.index.freq == OFFSETS[name]


def test_an_object_whose_form_cannot_even_be_looked_into_becomes_a_pickle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: object) -> bytes:
        raise AttributeError("from the depths of another package")

    monkeypatch.setattr(frames, "encode_frame", fail)
    assert dump_object("x", pd.Series([1.0]))[0] == PICKLE


@pytest.mark.parametrize(
    "frame",
    [
        pd.Series([1.0, 2.0]),
        pd.DataFrame({"a": [1.0, 2.0]}),
        pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"], "c": pd.to_datetime(["2020", "2021"])}),
    ],
)
def test_what_comes_back_can_be_changed(frame: Any) -> None:
    back = decode_frame(encode_frame(frame))
    back.iloc[0] = back.iloc[1]
    assert (
        back.iloc[0].tolist() == frame.iloc[1].tolist()
        if isinstance(frame, pd.DataFrame)
        else back.tolist() == [2.0, 2.0]
    )


@pytest.mark.parametrize("width", [101, 300])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_wide_frame_comes_back_in_few_blocks(width: int, *, mixed: bool) -> None:
    frame = pd.DataFrame(np.arange(3.0 * width).reshape(3, width))
    frame.columns = [f"c{number}" for number in range(width)]
    if mixed:
        frame = frame.astype({"c1": "float32", "c7": "int8", "c50": "float32", "c90": "bool"})
        frame["c3"], frame["c4"] = "x", pd.Timestamp("2020")
        frame["c60"] = pd.Series(["x", None, "z"], dtype=object)
    back = decode_frame(encode_frame(frame))
    assert_same(back, frame)
    back["another"] = 1.0  # pandas warns, which fails the test, if there are more than 100 blocks


WORDS = st.sampled_from(["a", "b", "é", "", "a\0", "NaN", "沪深"])
PLANE = st.characters(min_codepoint=0xD7FF, max_codepoint=0x10001, exclude_categories=())
ZONES = st.sampled_from([None, "UTC", "Europe/Rome", "Asia/Kolkata", "+05:30", "dateutil/UTC"])
LABELS = st.one_of(
    st.none(),
    st.text(max_size=3),
    st.text(PLANE, max_size=2),
    st.integers(-3, 3),
    st.floats(allow_nan=False),
    st.booleans(),
    st.tuples(st.text(max_size=1), st.integers(0, 2)),
    st.dates(),
    st.sampled_from([pd.Timestamp("2020"), pd.NaT, pd.Timestamp("2020-06-01", tz="Europe/Rome")]),
)
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
MISSING_TIME = st.just(-(2**63))
NUMBERS = {
    "int8": st.integers(-128, 127),
    "uint64": st.integers(0, 2**64 - 1),
    "float32": st.floats(width=32),
    "float64": st.floats(),
    "bool": st.booleans(),
    "timedelta64[ns]": st.integers(-(2**52), 2**52) | MISSING_TIME,
}
EXTENSIONS = {
    "Int64": st.integers(-(2**63), 2**63 - 1) | st.none(),
    "boolean": st.booleans() | st.none(),
    "Float64": st.floats(allow_nan=False) | st.none(),
    "string": WORDS | st.none(),
}
KINDS_OF_VALUES = [
    *NUMBERS, *EXTENSIONS, *CATEGORIES, "object", "surrogates", "datetime", "range", "NaN and NA"
]  # fmt: skip


@st.composite
def arrays(draw: st.DrawFn, size: int) -> Any:
    """Return values for a column, an index level or labels, of any type that pandas knows."""

    def some(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=size, max_size=size))

    kind = draw(st.sampled_from(KINDS_OF_VALUES))
    if kind in NUMBERS:
        values = np.array(some(NUMBERS[kind]), dtype="int64" if kind[0] == "t" else kind)
        return pd.TimedeltaIndex(values.view(kind)) if kind[0] == "t" else values
    if kind in EXTENSIONS:
        return pd.array(some(EXTENSIONS[kind]), dtype=kind)
    if kind in CATEGORIES:
        codes = some(st.integers(-1, len(CATEGORIES[kind]) - 1))
        categories = draw(st.permutations(CATEGORIES[kind]))
        return pd.Categorical.from_codes(codes, categories, ordered=draw(st.booleans()))
    if kind in ("object", "surrogates"):
        values = np.empty(size, dtype=object)
        values[:] = some(st.none() | (WORDS if kind == "object" else st.text(PLANE, max_size=2)))
        return pd.Index(values, dtype=object)  # which stays so; pandas 3 makes text of an array
    if kind == "datetime":
        unit = draw(st.sampled_from(list(PER_SECOND)))
        far = 10**9 * PER_SECOND[unit]
        moments = np.array(some(st.integers(-far, far) | MISSING_TIME), dtype="int64")
        zone = draw(ZONES)
        values = pd.DatetimeIndex(moments.view(f"M8[{unit}]"))
        return values.tz_localize("UTC").tz_convert(zone) if zone else values
    if kind == "range":
        return dates(draw(st.sampled_from(list(OFFSETS))), size + 4, draw(ZONES))[:size]
    numbers = np.array(some(st.sampled_from([np.nan, 1.5])))
    return pd.arrays.FloatingArray(numbers, np.array(some(st.booleans()), dtype=bool))


@st.composite
def indexes(draw: st.DrawFn, size: int) -> pd.Index:
    levels = draw(st.integers(0, 3))
    if not levels:
        return pd.RangeIndex(5, 5 - 2 * size, -2, name=draw(LABELS))
    values = [draw(arrays(size)) for _ in range(levels)]
    names = draw(st.lists(LABELS, min_size=levels, max_size=levels))
    if levels == 1:
        return pd.Index(values[0], name=names[0])
    return pd.MultiIndex.from_arrays(values, names=names)


@st.composite
def any_frame(draw: st.DrawFn) -> pd.DataFrame:
    length, width = draw(st.integers(0, 4)), draw(st.integers(0, 4))
    parts = [pd.Series(draw(arrays(length)), index=range(length)) for _ in range(width)]
    frame = pd.concat(parts, axis=1) if parts else pd.DataFrame(index=range(length))
    frame.index = draw(indexes(length))
    if draw(st.booleans()):
        names = draw(st.lists(LABELS, min_size=width, max_size=width))
        frame.columns = pd.Index(names, dtype=object, tupleize_cols=False, name=draw(LABELS))
    else:
        frame.columns = draw(indexes(width))
    if length and draw(st.booleans()):
        frame = frame.iloc[draw(st.lists(st.integers(0, length - 1), max_size=4))]
    return frame


def seen(values: Any, *, level: bool = False) -> str:
    """Return all that can be seen of an index or a column; of a level not its frequency."""
    if isinstance(values, pd.MultiIndex):
        levels = [seen(values.get_level_values(n), level=True) for n in range(values.nlevels)]
        return repr((levels, list(values.names)))
    dtype, freq = values.dtype, None if level else getattr(values, "freq", None)
    categories = None
    if isinstance(dtype, pd.CategoricalDtype):
        categories = dtype.categories.tolist(), str(dtype.categories.dtype), dtype.ordered
    items = [(type(value).__name__, value) for value in values.tolist()]
    return repr((str(dtype), items, values.name, freq, categories))


@settings(max_examples=300, deadline=None)
@given(any_frame())
def test_any_frame_comes_back_exactly_or_is_refused(frame: pd.DataFrame) -> None:
    try:
        data = encode_frame(frame)
    except NotTabularError:
        return
    back = decode_frame(data)
    assert seen(back.index) == seen(frame.index)
    assert type(back.index) is type(frame.index)
    assert seen(back.columns) == seen(frame.columns)
    assert type(back.columns) is type(frame.columns)
    for position in range(frame.shape[1]):
        # The label is compared above, and not all of them can be names.
        one, other = (part.iloc[:, position].rename(None) for part in (back, frame))
        assert seen(one, level=True) == seen(other, level=True)


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
