"""Which bars there are: every source, every refusal, shifts, and a calendar that grows."""

from __future__ import annotations

import datetime
import os
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwf.calendar import (
    D,
    TradingCalendar,
    get_calendar,
    get_date_by_shift,
    parse_calendar,
    parse_date,
    read_calendar,
    transform_end_date,
)
from qwf.config import C, init
from qwf.errors import ConfigError, NotSessionError, SessionOutOfBoundsError

DAYS = ["2020-01-02", "2020-01-03", "2020-01-06", "2020-01-07"]
MINUTES = [f"2020-01-0{day} 09:3{minute}:00" for day in (2, 3) for minute in (1, 2, 3)]


@pytest.fixture(autouse=True)
def _fresh_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(C, "_values", {})
    monkeypatch.setattr(C, "registered", False)
    monkeypatch.delenv("QWF_PROVIDER_URI", raising=False)


def stamps(*dates: str) -> list[pd.Timestamp]:
    return [pd.Timestamp(date) for date in dates]


def qlib_directory(root: Path, **files: list[str]) -> Path:
    (root / "calendars").mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        (root / "calendars" / f"{name.lstrip('_')}.txt").write_text("\n".join(lines) + "\n")
    return root


class Provider:
    """A calendar object as Qlib's ``D``; it may grow."""

    def __init__(self, days: list[str]) -> None:
        self.days = days

    def calendar(self, start_time=None, end_time=None, freq="day", future=False):
        days = [*self.days, "2020-02-03"] if future else self.days
        return [pd.Timestamp(day) for day in days]


@pytest.mark.parametrize(
    "source",
    [
        DAYS,
        tuple(DAYS),
        [pd.Timestamp(day) for day in DAYS],
        [datetime.date.fromisoformat(day) for day in DAYS],
        [datetime.datetime.fromisoformat(day) for day in DAYS],
        ["2020/01/02", "20200103", "2020-01-06", "Jan 7 2020"],
        np.array(DAYS, dtype="datetime64[D]"),
        np.array([pd.Timestamp(day) for day in DAYS], dtype=object),
        pd.DatetimeIndex(DAYS),
        pd.DataFrame({"close": 1.0}, index=pd.DatetimeIndex(DAYS)),
        pd.Series(1.0, index=pd.DatetimeIndex(DAYS)),
        pd.DataFrame({"close": 1.0}, index=pd.Index(DAYS, name="datetime")),
        pd.DataFrame(
            {"close": 1.0},
            index=pd.MultiIndex.from_product(
                [["B", "A"], pd.DatetimeIndex(DAYS[::-1])], names=["instrument", "datetime"]
            ),
        ),
        Provider(DAYS),
        TradingCalendar(DAYS),
    ],
    ids=lambda source: type(source).__name__,
)
def test_every_source_gives_the_same_bars(source: object) -> None:
    assert list(parse_calendar(source).known.moments) == stamps(*DAYS)


def test_a_calendar_object_is_asked_for_its_future_too() -> None:
    assert list(parse_calendar(Provider(DAYS)).expected.moments) == stamps(*DAYS, "2020-02-03")


def test_a_calendar_object_may_answer_through_getattr() -> None:
    class Wrapper:
        def __getattr__(self, name: str) -> object:
            return getattr(Provider(DAYS), name)

    assert list(parse_calendar(Wrapper()).known.moments) == stamps(*DAYS)


def test_a_column_named_calendar_is_no_calendar_object() -> None:
    panel = pd.DataFrame({"calendar": 1.0}, index=pd.DatetimeIndex(DAYS))
    assert list(parse_calendar(panel).known.moments) == stamps(*DAYS)
    init(calendar=panel)
    assert list(D.calendar()) == stamps(*DAYS)


def test_a_text_file_has_a_date_a_line_and_empty_lines_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "days.txt").write_text("\n2020-01-02\n\n 2020-01-03 \r\n2020-01-06\n\n")
    assert list(read_calendar(tmp_path / "days.txt").known.moments) == stamps(*DAYS[:3])


def test_a_qlib_directory_has_a_file_for_each_frequency_and_its_future(tmp_path: Path) -> None:
    root = qlib_directory(tmp_path, day=DAYS, day_future=[*DAYS, "2020-01-08"], _1min=MINUTES)
    assert list(read_calendar(root).expected.moments) == stamps(*DAYS, "2020-01-08")
    assert list(read_calendar(str(root), "1min").known.moments) == stamps(*MINUTES)


def test_future_bars_up_to_the_last_known_one_change_nothing() -> None:
    stale = TradingCalendar(DAYS, ["2020-01-02", "2020-01-04", "2020-01-07", "2020-01-08"])
    assert list(stale.expected.moments) == stamps(*DAYS, "2020-01-08")
    assert list(TradingCalendar(DAYS, DAYS[:2]).expected.moments) == stamps(*DAYS)


@pytest.mark.parametrize(
    ("bars", "words"),
    [
        ([], "is empty"),
        (["2020-01-02", "holiday"], "bar 1 of the calendar: 'holiday' is not a date"),
        (["2020-01-03", "2020-01-02"], "bar 1 .* comes after 2020-01-03"),
        (["2020-01-02", "2020-01-02"], "bar 1 .* is there twice"),
        ([20200102, 20200103], "20200102 is a number"),
        (np.array([1, 2]), "is a number"),
        ([pd.NaT], "missing"),
        ([None], "missing"),
        (["2020-01-02", ""], "bar 1 .* missing"),
        (pd.DatetimeIndex(["2020-01-02", None]), "bar 1 .* missing"),
        (pd.DatetimeIndex(["2020-01-02"], tz="UTC"), "time zone"),
        (["2020-01-02 09:30+08:00"], "time zone"),
        (["2020-01-02", "3020-01-02"], "1678 to 2261"),
    ],
)
def test_bad_bars_are_refused_by_position(bars: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TradingCalendar(bars)  # type: ignore[arg-type]


def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path) -> None:
    path = tmp_path / "days.txt"
    path.write_text("2020-01-02\n\n2020-01-03\nFriday the 3rd\n")
    with pytest.raises(ConfigError, match=r"days\.txt, line 4: 'Friday the 3rd' is not a date"):
        read_calendar(path)
    path.write_text("2020-01-02\n\n2020-01-03\n2020-01-03\n")
    with pytest.raises(ConfigError, match=r"days\.txt, line 4: .* twice"):
        read_calendar(path)
    path.write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        read_calendar(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot read a calendar"):
        read_calendar(path)


def test_a_missing_file_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        read_calendar(tmp_path / "nowhere")
    root = qlib_directory(tmp_path, day=DAYS)
    with pytest.raises(ConfigError, match=r"1min\.txt.*there are: day\.txt"):
        read_calendar(root, "1min")


@pytest.mark.parametrize(
    "source", [5, None, TradingCalendar, pd.DataFrame({"close": [1.0]})], ids=repr
)
def test_what_is_no_calendar_is_refused(source: object) -> None:
    with pytest.raises(ConfigError):
        parse_calendar(source)


def test_bars_of_another_frequency_are_refused() -> None:
    with pytest.raises(ConfigError, match="'1min' is asked for"):
        parse_calendar(TradingCalendar(DAYS), "1min")
    with pytest.raises(ConfigError, match="holds days only"):
        parse_calendar(DAYS, "1min")
    assert len(parse_calendar(MINUTES, "1min").known) == 6


@pytest.mark.parametrize("date", [5, 2.5, True, np.int64(5), "x", None, pd.NaT, b"2020"])
def test_what_is_no_date_is_refused(date: object) -> None:
    with pytest.raises(NotSessionError):
        parse_date(date)  # type: ignore[arg-type]


def test_a_date_with_a_time_zone_is_refused() -> None:
    with pytest.raises(NotSessionError, match="time zone"):
        parse_date(pd.Timestamp("2020-01-02", tz="Asia/Shanghai"))


def test_dates_far_outside_every_calendar_can_be_looked_up() -> None:
    bars = TradingCalendar(DAYS).known
    assert bars.first_at_or_after("9999-12-31") == 4
    assert bars.last_at_or_before("0001-01-01") == -1


@given(
    st.sets(st.integers(0, 60), min_size=1).map(sorted),
    st.integers(-3, 63),
    st.integers(-3, 63),
)
def test_lookups_agree_with_counting(days: list[int], one: int, other: int) -> None:
    def day(number: int) -> pd.Timestamp:
        return pd.Timestamp("2020-01-01") + pd.Timedelta(days=number)

    bars = TradingCalendar([day(number) for number in days]).known
    assert bars.first_at_or_after(day(one)) == sum(number < one for number in days)
    assert bars.last_at_or_before(day(one)) == sum(number <= one for number in days) - 1
    between = [day(number) for number in days if one <= number <= other]
    assert list(bars.between(day(one), day(other))) == between
    assert len(bars.until(day(one))) == sum(number <= one for number in days)


def test_the_process_calendar_comes_from_calendar_before_provider_uri(tmp_path: Path) -> None:
    root = qlib_directory(tmp_path, day=["2019-01-02"])
    init(provider_uri=str(root))
    assert list(D.calendar()) == stamps("2019-01-02")
    init(provider_uri=str(root), calendar=DAYS)
    assert list(D.calendar()) == stamps(*DAYS)


def test_without_a_calendar_the_error_says_what_to_pass() -> None:
    with pytest.raises(ConfigError, match=r"qwf\.init\(calendar=.*provider_uri="):
        get_calendar()
    init(calendar=D)
    with pytest.raises(ConfigError, match="names itself"):
        get_calendar()


def test_the_process_calendar_is_read_once_while_its_file_is_the_same(tmp_path: Path) -> None:
    init(provider_uri=qlib_directory(tmp_path, day=DAYS))
    assert get_calendar() is get_calendar()


def test_a_file_that_has_grown_is_read_again(tmp_path: Path) -> None:
    init(provider_uri=qlib_directory(tmp_path, day=DAYS))
    before = D.calendar()
    qlib_directory(tmp_path, day=[*DAYS, "2020-01-08"])
    assert len(before) == 4
    assert D.calendar()[-1] == pd.Timestamp("2020-01-08")
    qlib_directory(tmp_path, day_future=[*DAYS, "2020-01-08", "2020-01-09"])
    assert D.calendar(future=True)[-1] == pd.Timestamp("2020-01-09")


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "days.txt"
    path.write_text("2020-01-02\n")
    init(calendar=path)
    assert D.calendar()[-1] == pd.Timestamp("2020-01-02")
    times = path.stat()
    (tmp_path / "new.txt").write_text("2020-01-03\n")
    os.utime(tmp_path / "new.txt", ns=(times.st_atime_ns, times.st_mtime_ns))
    os.replace(tmp_path / "new.txt", path)
    assert D.calendar()[-1] == pd.Timestamp("2020-01-03")


def test_a_calendar_object_that_has_grown_is_read_again() -> None:
    provider = Provider(list(DAYS))
    init(calendar=provider)
    assert get_calendar() is get_calendar()
    provider.days.append("2020-01-08")
    assert D.calendar()[-1] == pd.Timestamp("2020-01-08")


def test_two_lists_are_two_calendars() -> None:
    init(calendar=DAYS)
    assert len(D.calendar()) == 4
    init(calendar=DAYS[:2])
    assert len(D.calendar()) == 2


def test_bounds_are_inclusive_and_outside_there_is_nothing() -> None:
    init(calendar=DAYS)
    assert list(D.calendar("2020-01-03", "2020-01-06")) == stamps("2020-01-03", "2020-01-06")
    assert list(D.calendar("2020-01-04", "2020-01-05")) == []
    assert list(D.calendar("2021-01-01")) == []
    assert list(D.calendar(end_time="2019-12-31")) == []
    assert list(D.calendar("2020-01-06", "2020-01-03")) == []
    answer = D.calendar()
    assert isinstance(answer, np.ndarray)
    assert all(type(moment) is pd.Timestamp for moment in answer)
    assert answer.max() == pd.Timestamp("2020-01-07")
    with pytest.raises(ValueError, match="read-only"):
        answer[0] = None


def test_without_future_bars_the_future_is_the_ordinary_calendar() -> None:
    init(calendar=DAYS)
    assert list(D.calendar(future=True)) == stamps(*DAYS)


def test_a_plain_date_is_its_midnight_among_intraday_bars() -> None:
    init(calendar=MINUTES)
    assert len(D.calendar(end_time="2020-01-03", freq="1min")) == 3
    assert len(D.calendar("2020-01-03", freq="1min")) == 3
    assert get_date_by_shift(MINUTES[1], 3, freq="1min") == pd.Timestamp(MINUTES[4])
    assert transform_end_date("2020-01-03 09:40", freq="1min") == pd.Timestamp(MINUTES[-1])
    assert transform_end_date("2020-01-03 09:32", freq="1min") == "2020-01-03 09:32"


def test_a_shift_from_a_date_that_is_no_bar_needs_a_side() -> None:
    init(calendar=DAYS)
    with pytest.raises(NotSessionError, match="is not trading day"):
        get_date_by_shift("2020-01-04", 1)
    assert get_date_by_shift("2020-01-04", 1, align="left") == pd.Timestamp("2020-01-06")
    assert get_date_by_shift("2020-01-04", 1, align="right") == pd.Timestamp("2020-01-07")
    with pytest.raises(ConfigError, match="align is 'middle'"):
        get_date_by_shift("2020-01-03", 1, align="middle")


def test_a_shift_out_of_the_calendar_is_clipped_or_refused() -> None:
    init(calendar=TradingCalendar(DAYS, ["2020-01-08"]))
    assert get_date_by_shift("2020-01-07", 1) == pd.Timestamp("2020-01-07")
    assert get_date_by_shift("2020-01-07", 1, future=True) == pd.Timestamp("2020-01-08")
    with pytest.raises(SessionOutOfBoundsError, match="position 4") as caught:
        get_date_by_shift("2020-01-07", 1, clip_shift=False)
    assert isinstance(caught.value, IndexError)


def test_an_end_up_to_now_is_never_a_day_that_is_only_expected() -> None:
    init(calendar=TradingCalendar(DAYS, ["2020-01-08"]))
    for end in (None, -1, "-1", "2020-01-08", "2030-01-01"):
        assert transform_end_date(end) == pd.Timestamp("2020-01-07")
    assert transform_end_date("2020-01-04") == "2020-01-04"


def test_a_calendar_survives_a_pickle() -> None:
    calendar = pickle.loads(pickle.dumps(TradingCalendar(DAYS, ["2020-01-08"])))
    assert list(calendar.expected.moments) == stamps(*DAYS, "2020-01-08")
