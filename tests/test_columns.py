"""Files of columns: what was put in comes out, and damage is noticed or harmless."""

from __future__ import annotations

import contextlib
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwf.errors import CorruptRecordError
from qwf.storage.columns import ColumnFile, encode_columns

# A pair of surrogates is what JSON takes for one character, and no text of a store holds one.
LONE = st.text(st.characters(categories=["Cs"]), min_size=1, max_size=1)
TEXTS = st.text(max_size=5) | LONE | st.sampled_from(["", "nan", "inf", "-inf", "None", "[]"])
FLOATS = st.floats() | st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf, 5e-324])
VALUES = st.none() | TEXTS | st.integers() | FLOATS
KEYS = st.tuples(st.sampled_from(["row", "params", "tags", "metrics"]), TEXTS)


@st.composite
def columns_of(draw: st.DrawFn, rows: int) -> list[Any]:
    """One column: of anything, of few distinct values, of one, or with few values."""
    few = draw(st.lists(VALUES, min_size=1, max_size=3))
    return draw(
        st.one_of(
            st.lists(values, min_size=rows, max_size=rows)
            for values in (
                VALUES,
                TEXTS,
                FLOATS,
                st.sampled_from(few),
                st.just(few[0]),
                st.sampled_from([None] * 9 + few),
            )
        )
    )


@st.composite
def tables(draw: st.DrawFn) -> tuple[dict[tuple[str, str], list[Any]], int]:
    rows = draw(st.integers(0, 30))
    return draw(st.dictionaries(KEYS, columns_of(rows), max_size=4)), rows


def exactly(values: list[Any]) -> list[str]:
    """With types, the sign of zero, and NaN like itself."""
    return [repr(value) for value in values]


def written(directory: Path, data: bytes) -> Path:
    path = directory / "columns"
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("columns")


@given(tables())
@example(({("params", "a"): [1, 1.0]}, 2))
@example(({("metrics", "a"): [0.0, -0.0]}, 2))
@example(({("tags", "a"): ["\ud800"] * 9}, 9))
@example(({("tags", "a"): ["nan", math.nan]}, 2))
@example(({}, 3))
def test_what_was_put_into_columns_comes_out(
    directory: Path, table: tuple[dict[tuple[str, str], list[Any]], int]
) -> None:
    columns, rows = table
    file = ColumnFile(written(directory, encode_columns(columns, rows)))
    assert file.rows == rows
    for (family, key), values in columns.items():
        assert exactly(file.column(family, key)) == exactly(values)
        assert key in file.keys(family)
    assert file.column("tags", "one that nobody has") == [None] * rows
    file.verify()


@given(tables(), st.randoms(use_true_random=False))
def test_a_changed_byte_is_noticed_or_changes_nothing(
    directory: Path,
    table: tuple[dict[tuple[str, str], list[Any]], int],
    chance: random.Random,
) -> None:
    columns, rows = table
    data = bytearray(encode_columns(columns, rows))
    for _ in range(10):
        place = chance.randrange(len(data))
        before = data[place]
        data[place] = chance.choice([before ^ (1 << chance.randrange(8)), 10, 34])
        assert_noticed_or_harmless(written(directory, bytes(data)), columns)
        data[place] = before


@given(tables(), st.data())
def test_a_file_that_was_cut_off_is_noticed_or_reads_as_before(
    directory: Path, table: tuple[dict[tuple[str, str], list[Any]], int], data: st.DataObject
) -> None:
    columns, rows = table
    whole = encode_columns(columns, rows)
    size = data.draw(st.integers(0, len(whole) - 1))
    assert_noticed_or_harmless(written(directory, whole[:size]), columns)


def assert_noticed_or_harmless(path: Path, columns: dict[tuple[str, str], list[Any]]) -> None:
    with contextlib.suppress(CorruptRecordError):
        file = ColumnFile(path)
        for (family, key), values in columns.items():
            with contextlib.suppress(CorruptRecordError):
                assert exactly(file.column(family, key)) == exactly(values)


def test_more_columns_than_fit_into_the_first_read_are_all_found(directory: Path) -> None:
    columns = {("params", f"a rather long name of a param {n}"): [n, None] for n in range(3000)}
    file = ColumnFile(written(directory, encode_columns(columns, 2)))
    assert len(file.keys("params")) == 3000
    assert file.column("params", "a rather long name of a param 2999") == [2999, None]


def test_columns_that_repeat_themselves_are_small(directory: Path) -> None:
    rows = 1000
    same = {("params", "model"): ["LGBModel"] * rows}
    coded = {("params", "model"): ["LGBModel" if row % 2 else "Linear" for row in range(rows)]}
    rare = {("params", "model"): [None] * (rows - 1) + ["LGBModel"]}
    assert len(encode_columns(same, rows)) < 200
    assert len(encode_columns(coded, rows)) < 3 * rows
    assert len(encode_columns(rare, rows)) < 200
