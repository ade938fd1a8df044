"""Prices are read as they stand, from whatever holds them, or refused with the faulty place."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qwf.data.panel import PricePanel, read_panel
from qwf.errors import DataError

SP500 = Path(__file__).parent.parent / "examples" / "data" / "sp500_20.parquet"


def wide() -> pd.DataFrame:
    dates = pd.to_datetime(["2020-01-02", "2020-01-03", "2020-01-06"])
    return pd.DataFrame(
        {"A": [1.0, 1.5, np.nan], "B": [2.0, 2.5, 3.0]}, index=dates.rename("datetime")
    )


def long() -> pd.DataFrame:
    rows = [
        ("2020-01-02", "A", 1.0, 100),
        ("2020-01-02", "B", 2.0, 200),
        ("2020-01-03", "A", 1.5, 300),
        ("2020-01-03", "B", 2.5, 400),
        ("2020-01-06", "B", 3.0, 500),
    ]
    return pd.DataFrame(rows, columns=["datetime", "instrument", "close", "volume"])


def assert_is_wide(panel: PricePanel) -> None:
    close = panel.field("close")
    assert close.columns.tolist() == ["A", "B"]
    np.testing.assert_array_equal(close, [[1.0, 2.0], [1.5, 2.5], [np.nan, 3.0]])
    assert [str(day.date()) for day in close.index] == ["2020-01-02", "2020-01-03", "2020-01-06"]
    assert close.index.name == "datetime"
    assert close.columns.name == "instrument"
    assert close.index.dtype == "datetime64[ns]"
    assert (close.dtypes == np.float64).all()


@pytest.mark.parametrize(
    "source",
    [
        wide(),
        wide().rename_axis(None),
        wide().rename_axis("Date").reset_index(),
        wide().set_axis(["2020-01-02", "2020-01-03", "2020-01-06"], axis=0),
        wide().iloc[[2, 0, 1], [1, 0]],
        long(),
        long().iloc[::-1],
        long().assign(datetime=pd.to_datetime(long()["datetime"])),
        long().rename(columns={"datetime": "date", "instrument": "symbol"}),
        long().assign(datetime=long()["datetime"].str.replace("-", "").astype(int)),
        long().set_index(["datetime", "instrument"]),
        long().set_index(["instrument", "datetime"]).rename(columns={"close": "$close"}),
        long().assign(close=long()["close"].astype(str)),
    ],
)
def test_wide_and_long_frames_in_any_order_give_the_same_closes(source: pd.DataFrame) -> None:
    before = source.copy(deep=True)
    assert_is_wide(read_panel(source))
    pd.testing.assert_frame_equal(source, before)


def test_a_file_gives_what_its_frame_gives(tmp_path: Path) -> None:
    wide().to_csv(tmp_path / "wide.csv")
    wide().to_csv(tmp_path / "wide.csv.gz")
    wide().to_parquet(tmp_path / "wide.parquet")
    long().to_csv(tmp_path / "long.csv", index=False)
    long().to_parquet(tmp_path / "long.pq")
    for name in ("wide.csv", "wide.csv.gz", "wide.parquet", "long.csv", "long.pq"):
        assert_is_wide(read_panel(tmp_path / name))
        assert_is_wide(read_panel(str(tmp_path / name)))


def test_a_csv_file_has_the_same_bits_as_the_parquet_file(tmp_path: Path) -> None:
    closes = pd.read_parquet(SP500).iloc[:800] / 3
    closes.to_csv(tmp_path / "closes.csv.gz")
    read = read_panel(tmp_path / "closes.csv.gz").field("close")
    assert (read[closes.columns].to_numpy() == closes.to_numpy()).all()


def test_the_example_data_are_what_their_readme_says() -> None:
    panel = read_panel(SP500)
    closes = panel.field("close")
    assert closes.shape == (8313, 21)
    assert [str(panel.dates[i].date()) for i in (0, -1)] == ["1990-01-02", "2022-12-28"]
    assert closes.loc["1990-01-02", ["AAPL", "SP500"]].tolist() == [0.264, 359.69]
    assert closes.loc["2022-12-28", ["XOM", "SP500"]].tolist() == [106.627, 3783.22]
    assert not closes.isna().any().any()
    assert SP500.stat().st_size < 1_000_000


def test_instruments_that_look_like_numbers_or_nothing_keep_their_names(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text("date,instrument,close\n2020-01-02,000001,5\n2020-01-02,NA,6\n")
    assert read_panel(path).instruments.tolist() == ["000001", "NA"]


def test_intraday_bars_keep_their_time_of_day() -> None:
    frame = wide().set_axis(pd.date_range("2020-01-02 09:31", periods=3, freq="min"), axis=0)
    panel = read_panel(frame)
    assert str(panel.dates[1]) == "2020-01-02 09:32:00"
    found = panel.calendar("2020-01-02 09:32", "2020-01-02 10:00", freq="1min")
    assert [str(bar) for bar in found] == ["2020-01-02 09:32:00", "2020-01-02 09:33:00"]


def test_only_the_fields_asked_for_are_read() -> None:
    named = long().assign(name="text")
    assert list(read_panel(named, fields=["close"]).fields) == ["close"]
    assert list(read_panel(long()).fields) == ["close", "volume"]
    assert read_panel(long()).field("volume").loc["2020-01-06", "B"] == 500
    with pytest.raises(DataError, match=r"no field 'closs'; did you mean 'close'\?"):
        read_panel(long(), fields=["closs"])
    with pytest.raises(DataError, match="the frame has 5 values that are no numbers"):
        read_panel(named)


def test_a_panel_is_a_calendar_and_can_be_reduced() -> None:
    panel = read_panel(wide())
    assert [bar.day for bar in panel.calendar()] == [2, 3, 6]
    assert [bar.day for bar in panel.calendar("2020-01-03", "9999-12-31", future=True)] == [3, 6]
    assert panel.select(["B"]).instruments.tolist() == ["B"]
    assert "2 instruments, 3 bars from 2020-01-02" in repr(panel)
    assert read_panel(panel) is panel
    with pytest.raises(DataError, match=r"no instrument 'AA'; did you mean 'A'"):
        panel.select(["AA"])
    with pytest.raises(DataError, match="an empty list"):
        panel.select([])
    with pytest.raises(DataError, match="a frame have no field 'open'; there are: 'close'"):
        panel.field("open")


BAD = [
    (wide().iloc[:0], "holds no prices"),
    (wide()[[]], "holds no prices"),
    (wide() * np.nan, "every value is missing"),
    (wide().iloc[[0, 0, 1]], "has bars more than once: 2020-01-02 00:00:00"),
    (wide().set_axis(["A", "A"], axis=1), "has instruments more than once: A"),
    (wide().astype(object).mask(wide() == 2.5, "n/a"), r"2020-01-03 00:00:00: 'n/a'"),
    (wide().replace(2.5, np.inf), "infinite on 2020-01-03 00:00:00 for B"),
    (wide().reset_index(drop=True), r"has no dates: its columns are \['A', 'B'\]"),
    (wide().tz_localize("UTC"), "have the time zone UTC"),
    (wide().set_axis(["2020-01-02", "soon", "2020-01-06"], axis=0), "row 1: 'soon'"),
    (wide().set_axis([pd.NaT, *wide().index[1:]], axis=0), "row 0: NaT"),
    (wide().set_axis(["01/02/2020", "2020-01-03", "2020-01-06"], axis=0), "no ISO 8601 dates"),
    (pd.concat({"close": wide()}, axis=1), "has columns of 2 levels"),
    (
        pd.concat([long(), long().iloc[[3]]]),
        "1 rows for a date and instrument .* 2020-01-03 00:00:00 B",
    ),
    (long().replace({"instrument": {"A": None}}), "has no instrument in row 0"),
    (long()[["datetime", "instrument"]], "holds no prices"),
]


@pytest.mark.parametrize(("frame", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_prices_that_cannot_be_used_are_refused_with_their_place(
    frame: pd.DataFrame, sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        read_panel(frame)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"not parquet")
    (tmp_path / "a.csv").write_text("")
    (tmp_path / "twice.csv").write_text("datetime,A,A\n2020-01-02,1,2\n")
    (tmp_path / "a.csv.gz").write_bytes(b"not gzip")
    (tmp_path / "a.xlsx").write_bytes(b"x")
    for name in ("a.parquet", "a.csv", "a.csv.gz", "none.csv"):
        with pytest.raises(DataError, match=f"cannot read prices from .*{re.escape(name)}"):
            read_panel(tmp_path / name)
    with pytest.raises(DataError, match="the header has 'A' more than once"):
        read_panel(tmp_path / "twice.csv")
    with pytest.raises(DataError, match=r"expected a file that ends in \.parquet"):
        read_panel(tmp_path / "a.xlsx")
    with pytest.raises(DataError, match="there is no such path"):
        read_panel(tmp_path / "nowhere")
    with pytest.raises(DataError, match="expected a path, a DataFrame or a PricePanel"):
        read_panel(7)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="market 'csi300' is asked for and a frame has no markets"):
        read_panel(wide(), market="csi300")


def write_qlib(path: Path) -> None:
    """Three days; A has values from the second day on, B from the first."""
    for folder in ("calendars", "instruments", "features/a", "features/b"):
        (path / folder).mkdir(parents=True)
    (path / "calendars/day.txt").write_text("2020-01-02\n2020-01-03\n2020-01-06\n")
    everyone = "A\t2020-01-03\t2020-01-06\nB\t2020-01-02\t2020-01-06\n"
    (path / "instruments/all.txt").write_text(everyone)
    spans = "B\t2020-01-02\t2020-01-02\nB\t2020-01-06\t2099-12-31\n"
    (path / "instruments/some.txt").write_text(spans)
    np.array([1, 10.5, 11.25], dtype="<f4").tofile(path / "features/a/close.day.bin")
    np.array([0, 1, np.nan, 3], dtype="<f4").tofile(path / "features/b/close.day.bin")
    np.array([0, 7, 8, 9], dtype="<f4").tofile(path / "features/b/volume.day.bin")


def test_a_qlib_directory_gives_its_fields_on_its_calendar(tmp_path: Path) -> None:
    write_qlib(tmp_path)
    panel = read_panel(tmp_path)
    assert list(panel.fields) == ["close", "volume"]
    close = panel.field("close")
    assert close["A"].tolist() == pytest.approx([np.nan, 10.5, 11.25], nan_ok=True)
    assert close["B"].tolist() == pytest.approx([1, np.nan, 3], nan_ok=True)
    assert panel.field("volume")["A"].isna().all()
    assert panel.members is not None
    assert panel.members["A"].tolist() == [False, True, True]


def test_a_market_keeps_prices_from_outside_its_spans_and_says_who_belongs(tmp_path: Path) -> None:
    write_qlib(tmp_path)
    panel = read_panel(tmp_path, fields=["volume"], market="some")
    assert panel.field("volume")["B"].tolist() == [7, 8, 9]
    assert panel.members is not None
    assert panel.members["B"].tolist() == [True, False, True]
    assert panel.select(["B"]).members is not None


def test_damaged_qlib_directories_are_refused_with_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_qlib(tmp_path)
    with pytest.raises(DataError, match=r"no Qlib data directory: .*1min\.txt"):
        read_panel(tmp_path, freq="1min")
    with pytest.raises(DataError, match=r"cannot read the instruments .*; did you mean 'some'\?"):
        read_panel(tmp_path, market="same")
    with pytest.raises(DataError, match=r"no instrument .* has one of the fields \['vwap'\]"):
        read_panel(tmp_path, fields=["vwap"])
    with caplog.at_level(logging.WARNING, logger="qwf"):
        read_panel(tmp_path, fields=["volume"])
    assert "no features for 1 instruments: ['A']" in caplog.text

    (tmp_path / "instruments/all.txt").write_text("A\t2020-01-03\n")
    with pytest.raises(DataError, match=r"all\.txt, line 1: found 'A\\t2020-01-03'"):
        read_panel(tmp_path)
    (tmp_path / "instruments/all.txt").write_text("\n")
    with pytest.raises(DataError, match=r"all\.txt is empty"):
        read_panel(tmp_path)

    feature = tmp_path / "features/b/close.day.bin"
    for content, sentence in [
        (np.array([1, 1, 2, 3], dtype="<f4").tobytes(), "starts at bar 1 and has 3 values"),
        (np.array([np.nan, 1], dtype="<f4").tobytes(), "does not fit the calendar"),
        (b"", "it has 0 bytes"),
        (b"12345", "it has 5 bytes"),
    ]:
        feature.write_bytes(content)
        with pytest.raises(DataError, match=sentence):
            read_panel(tmp_path, market="some")
