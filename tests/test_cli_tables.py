"""Tables of the command line: they fit whatever they hold, and no text of users breaks them."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwf.cli.tables import Column, cut, display_width, lay_out, lay_out_facts, printable

TEXTS = st.text(max_size=30) | st.text(alphabet="ab\n\t\x1b\x9b\u202e\u200b沪深éé…\\ ", max_size=30)


def columns_of(terminal_line: str) -> int:
    """Count as a terminal does: East Asian wide ones are two, combining marks none."""
    count = 0
    for character in terminal_line:
        if unicodedata.category(character) in ("Mn", "Me"):
            continue
        count += 1 + (unicodedata.east_asian_width(character) in ("W", "F"))
    return count


@st.composite
def tables(draw: st.DrawFn) -> list[Column]:
    rows = draw(st.integers(0, 4))
    numbers = st.none() | st.floats() | st.integers()

    def column(number: bool) -> Column:
        values = st.lists(numbers if number else TEXTS, min_size=rows, max_size=rows)
        return Column(
            name=draw(TEXTS),
            values=draw(values),
            number=number,
            keep_end=draw(st.booleans()),
            importance=draw(st.integers(0, 3)),
        )

    return [column(number) for number in draw(st.lists(st.booleans(), min_size=1, max_size=6))]


@given(tables(), st.integers(1, 60), st.sampled_from(["utf-8", "ascii", "latin-1", "gbk"]))
def test_a_table_is_never_wider_than_asked(
    columns: list[Column], width: int, encoding: str
) -> None:
    lines, left_out = lay_out(columns, width, encoding)
    assert len(lines) == 1 + len(columns[0].values)
    assert len(left_out) < len(columns)
    for line in lines:
        assert columns_of(line) <= width
        line.encode(encoding)


@given(tables(), st.integers(1, 200) | st.none())
def test_a_table_holds_nothing_that_a_terminal_obeys(
    columns: list[Column], width: int | None
) -> None:
    for line in lay_out(columns, width)[0]:
        for character in line:
            assert unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


@given(tables())
def test_without_a_width_every_value_is_shown_whole(columns: list[Column]) -> None:
    lines, left_out = lay_out(columns)
    assert left_out == []
    for column in columns:
        for line, value in zip(lines[1:], column.values, strict=True):
            if value is not None:
                assert printable(str(value)).rstrip() in line


@given(st.dictionaries(TEXTS, TEXTS, max_size=4), st.integers(1, 60))
def test_facts_are_never_wider_than_asked(facts: dict[str, str], width: int) -> None:
    for line in lay_out_facts(facts, width):
        assert columns_of(line) <= width


@given(st.text(alphabet="abc沪深", max_size=200), st.integers(20, 60))
def test_facts_lose_nothing_by_wrapping(value: str, width: int) -> None:
    lines = lay_out_facts({"name": value}, width)
    assert "".join(line[6:] for line in lines) == value


@given(TEXTS, st.integers(0, 40), st.booleans())
def test_a_cut_text_fits_and_shows_its_beginning_or_its_end(
    text: str, width: int, keep_end: bool
) -> None:
    whole = printable(text)
    short = cut(whole, width, keep_end=keep_end)
    assert columns_of(short) <= width
    if short != whole and width:
        assert short[0 if keep_end else -1] == "…"
        assert whole.endswith(short[1:]) if keep_end else whole.startswith(short[:-1])


def test_columns_are_aligned_numbers_on_the_right() -> None:
    lines, _ = lay_out(
        [
            Column(name="模型", values=["线性", "a", "tree"]),
            Column(name="IC", values=[0.5, None, -0.125], number=True),
            Column(name="note", values=["x", "y", None]),
        ]
    )
    assert lines == [
        "模型      IC  note",
        "线性     0.5  x",
        "a             y",
        "tree  -0.125",
    ]


def test_the_least_important_columns_go_first_and_then_the_last() -> None:
    columns = [
        Column(name="one", values=["1" * 8], importance=1),
        Column(name="two", values=["2" * 8], importance=0),
        Column(name="three", values=["3" * 8], importance=1),
    ]
    assert lay_out(columns, 18) == (["one       three", "11111111  33333333"], ["two"])
    assert lay_out(columns, 8) == (["one", "11111111"], ["two", "three"])


def test_long_texts_are_cut_before_a_column_goes_and_numbers_never() -> None:
    columns = [
        Column(name="note", values=["a long note about nothing"]),
        Column(name="IC", values=[0.03125], number=True),
    ]
    assert lay_out(columns, 20) == (["note              IC", "a long not…  0.03125"], [])
    assert lay_out(columns, 17) == (["note           IC", "a long …  0.03125"], [])
    assert lay_out(columns, 16) == (["note", "a long note abo…"], ["IC"])


def test_an_id_that_is_cut_keeps_the_end_by_which_it_can_be_named() -> None:
    column = Column(name="id", values=["20251124-093000-000000-1f9c2ab4"], keep_end=True)
    assert lay_out([column], 9)[0] == ["id", "…1f9c2ab4"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines", r"two\nlines"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\x9b2J", r"\x9b2J"),
        ("a\u202eb", r"a\u202eb"),
        ("\u2028", r"\u2028"),
        ("\ud800", r"\ud800"),
        ("全角\u3000空格", "全角\u3000空格"),
        ("naïve 沪深300 🎉", "naïve 沪深300 🎉"),
    ],
)
def test_control_characters_are_shown_escaped_and_scripts_as_they_are(
    text: str, shown: str
) -> None:
    assert printable(text) == shown


def test_what_the_encoding_lacks_is_shown_escaped() -> None:
    assert printable("é沪", "latin-1") == r"é\u6caa"
    lines, _ = lay_out([Column(name="n", values=["a text that is long"])], 8, "ascii")
    assert lines == ["n", "a text ~"]


@pytest.mark.parametrize(("text", "width"), [("abc", 3), ("沪深", 4), ("e\u0301", 1), ("Ａ", 2)])
def test_the_width_is_that_of_a_terminal(text: str, width: int) -> None:
    assert display_width(text) == width


def test_a_megabyte_of_text_is_cut_at_once() -> None:
    columns = [Column(name=str(i), values=["x" * 1_000_000]) for i in range(5)]
    lines, _ = lay_out(columns, 80)
    assert max(map(len, lines)) <= 80
