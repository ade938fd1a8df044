"""Segments on a small calendar, by hand and by brute force."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwf.calendar import TradingCalendar
from qwf.config import C, init
from qwf.errors import ConfigError, SegmentError, SessionOutOfBoundsError
from qwf.tasks.segments import TimeAdjuster

#        0             1             2             3             4
DAYS = ["2020-01-02", "2020-01-03", "2020-01-06", "2020-01-07", "2020-01-08"]
AT = [pd.Timestamp(day) for day in DAYS]


@pytest.fixture(autouse=True)
def _fresh_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(C, "_values", {})
    monkeypatch.setattr(C, "registered", False)
    monkeypatch.delenv("QWF_PROVIDER_URI", raising=False)


@pytest.fixture
def adjuster() -> TimeAdjuster:
    return TimeAdjuster(calendar=DAYS)


def test_the_constants_are_those_of_qlib() -> None:
    assert (TimeAdjuster.SHIFT_SD, TimeAdjuster.SHIFT_EX) == ("sliding", "expanding")


def test_a_negative_position_is_refused_instead_of_counting_from_the_end(
    adjuster: TimeAdjuster,
) -> None:
    assert adjuster.get(4) == AT[4]
    assert adjuster.get(5) is None
    assert adjuster.get(None) is None
    with pytest.raises(SessionOutOfBoundsError, match="position -1"):
        adjuster.get(-1)


def test_a_bound_outside_the_calendar_is_named(adjuster: TimeAdjuster) -> None:
    with pytest.raises(SessionOutOfBoundsError, match="end 2020-01-01 is before the first"):
        adjuster.align_time("2020-01-01", "end")
    with pytest.raises(SessionOutOfBoundsError, match="start 2020-01-09 is after the last"):
        adjuster.align_time("2020-01-09", "start")
    with pytest.raises(SessionOutOfBoundsError, match=r"segment 'valid': .* before the first"):
        adjuster.align_seg({"train": (None, None), "valid": ("2019-01-01", "2019-12-31")})
    with pytest.raises(SegmentError, match="segment 'valid': 'today' is not a segment"):
        adjuster.align_seg({"valid": "today"})  # type: ignore[dict-item]


def test_an_unknown_kind_of_bound_or_rolling_is_refused(adjuster: TimeAdjuster) -> None:
    with pytest.raises(ConfigError, match="tp_type is 'middle'"):
        adjuster.align_idx(None, "middle")
    with pytest.raises(ConfigError, match="rtype is 'bogus'"):
        adjuster.shift((DAYS[0], DAYS[1]), 1, "bogus")


@pytest.mark.parametrize("segment", ["2020-01-02", (DAYS[0],), (*DAYS[:3],), None, 5])
def test_what_is_not_a_pair_is_refused(adjuster: TimeAdjuster, segment: object) -> None:
    for call in (
        adjuster.align_seg,
        lambda seg: adjuster.shift(seg, 1),
        lambda seg: adjuster.truncate(seg, DAYS[3], 1),
    ):
        with pytest.raises(SegmentError, match="not a segment"):
            call(segment)  # type: ignore[operator]


def test_lists_are_taken_like_tuples_and_tuples_returned(adjuster: TimeAdjuster) -> None:
    assert adjuster.align_seg(["2020-01-04", "2020-01-05"]) == (AT[2], AT[1])
    assert adjuster.shift([DAYS[0], DAYS[1]], 1) == (AT[1], AT[2])
    assert adjuster.truncate([DAYS[0], DAYS[4]], DAYS[3], 1) == (AT[0], AT[2])


@pytest.mark.parametrize(
    ("step", "out"), [(0, False), (1, False), (2, True), (3, True), (99, True)]
)
def test_a_shift_is_refused_exactly_when_the_start_leaves_the_calendar(
    adjuster: TimeAdjuster, step: int, out: bool
) -> None:
    if not out:
        assert adjuster.shift((DAYS[3], DAYS[3]), step) == (AT[3 + step], AT[3 + step])
        return
    with pytest.raises(SessionOutOfBoundsError, match="out of the calendar") as caught:
        adjuster.shift((DAYS[3], DAYS[3]), step)
    assert isinstance(caught.value, KeyError)


def test_a_shift_back_before_the_first_bar_is_refused(adjuster: TimeAdjuster) -> None:
    assert adjuster.shift((DAYS[3], DAYS[4]), -3) == (AT[0], AT[1])
    for segment, step, rtype in [
        ((DAYS[2], DAYS[4]), -3, "sliding"),
        ((None, DAYS[1]), -2, "sliding"),
        ((DAYS[0], DAYS[1]), -2, "expanding"),
        (("2019-01-01", "2020-01-01"), 1, "sliding"),
    ]:
        with pytest.raises(SessionOutOfBoundsError):
            adjuster.shift(segment, step, rtype)


def test_truncating_leaves_a_segment_that_starts_on_the_first_day(adjuster: TimeAdjuster) -> None:
    assert adjuster.truncate((DAYS[0], DAYS[3]), DAYS[2], 2) == (AT[0], AT[0])


def test_truncating_cuts_an_open_end_and_leaves_an_open_start(adjuster: TimeAdjuster) -> None:
    assert adjuster.truncate((DAYS[0], None), DAYS[3], 1) == (AT[0], AT[2])
    assert adjuster.truncate((None, DAYS[4]), DAYS[3], 1) == (None, AT[2])
    assert adjuster.truncate((None, None), DAYS[3], 2) == (None, AT[1])


def test_truncating_to_nothing_names_the_segment_and_the_dates(adjuster: TimeAdjuster) -> None:
    with pytest.raises(SegmentError, match=r"2020-01-02, 2020-01-03.*3 bars.*2020-01-06.*has 2"):
        adjuster.truncate((DAYS[0], DAYS[1]), DAYS[2], 3)
    with pytest.raises(SegmentError, match="test without a start"):
        adjuster.truncate((DAYS[0], DAYS[1]), None, 3)  # type: ignore[arg-type]
    with pytest.raises(SessionOutOfBoundsError, match="before the first"):
        adjuster.truncate(("2019-01-01", "2019-12-31"), DAYS[3], 1)


def test_a_segment_wholly_after_the_bound_is_reported(
    adjuster: TimeAdjuster, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "qwf.tasks"):
        assert adjuster.truncate((DAYS[3], DAYS[4]), DAYS[3], 1) == (AT[2], AT[2])
    assert "only that bar is left" in caplog.text


def test_an_interval_with_an_open_end_is_refused(adjuster: TimeAdjuster) -> None:
    assert adjuster.cal_interval("2020-01-04", DAYS[4]) == -2
    with pytest.raises(TypeError, match="both have to be dates"):
        adjuster.cal_interval(None, DAYS[0])  # type: ignore[arg-type]


day = st.integers(-3, 33).map(lambda number: pd.Timestamp("2020-01-01") + pd.Timedelta(number, "D"))


@given(
    st.sets(st.integers(0, 30), min_size=1).map(sorted),
    st.tuples(st.none() | day, st.none() | day),
    st.integers(-12, 12),
    st.sampled_from(["sliding", "expanding"]),
)
def test_a_shift_agrees_with_walking_over_a_list(
    numbers: list[int],
    segment: tuple[pd.Timestamp | None, pd.Timestamp | None],
    step: int,
    rtype: str,
) -> None:
    days = [pd.Timestamp("2020-01-01") + pd.Timedelta(number, "D") for number in numbers]
    start, end = segment
    first = None if start is None else len([d for d in days if d < start])
    last = None if end is None else len([d for d in days if d <= end]) - 1
    refused = last == -1
    if first is not None and rtype == "sliding":
        first += step
    if last is not None:
        last += step
    refused |= first is not None and not 0 <= first < len(days)
    refused |= last is not None and last < 0
    adjuster = TimeAdjuster(calendar=days)
    if refused:
        with pytest.raises(SessionOutOfBoundsError):
            adjuster.shift(segment, step, rtype)
        return
    walked = [*days, *[None] * 50]
    expected = tuple(None if at is None else walked[at] for at in (first, last))
    assert adjuster.shift(segment, step, rtype) == expected


@given(
    st.sets(st.integers(0, 30), min_size=2).map(sorted),
    st.tuples(st.none() | day, st.none() | day),
    st.integers(0, 30),
    st.integers(0, 10),
)
def test_nothing_that_is_left_is_nearer_to_the_test_than_asked(
    numbers: list[int],
    segment: tuple[pd.Timestamp | None, pd.Timestamp | None],
    test: int,
    days: int,
) -> None:
    calendar = [pd.Timestamp("2020-01-01") + pd.Timedelta(number, "D") for number in numbers]
    test_start = calendar[test % len(calendar)]
    bound = calendar.index(test_start) - days
    try:
        start, end = TimeAdjuster(calendar=calendar).truncate(segment, test_start, days)
    except SegmentError:
        assert bound < 0
    except SessionOutOfBoundsError:
        assert segment[1] is not None
        assert segment[1] < calendar[0]
    else:
        assert end is not None
        assert end <= calendar[bound]
        assert (start is None) == (segment[0] is None)
        assert start is None or start <= calendar[bound]


def test_the_future_counts_unless_it_is_left_out() -> None:
    calendar = TradingCalendar(DAYS[:3], DAYS)
    assert TimeAdjuster(calendar=calendar).max() == AT[4]
    assert TimeAdjuster(future=False, calendar=calendar).max() == AT[2]


def test_bars_after_the_end_time_do_not_exist() -> None:
    adjuster = TimeAdjuster(end_time="2020-01-05", calendar=DAYS)
    assert list(adjuster.cals) == AT[:2]
    adjuster.set_end_time("2019-01-01")
    with pytest.raises(SessionOutOfBoundsError, match="no bar until 2019-01-01"):
        adjuster.max()
    adjuster.set_end_time()
    assert adjuster.max() == AT[4]


def test_intraday_bars_are_counted_like_days() -> None:
    minutes = [f"2020-01-0{day} 09:3{minute}" for day in (2, 3) for minute in (1, 2)]
    adjuster = TimeAdjuster(freq="1min", calendar=minutes)
    moved = adjuster.shift((minutes[0], minutes[1]), 2)
    assert moved == (pd.Timestamp(minutes[2]), pd.Timestamp(minutes[3]))
    assert adjuster.align_time("2020-01-03", "end") == pd.Timestamp(minutes[1])


def test_a_calendar_of_another_frequency_is_refused() -> None:
    with pytest.raises(ConfigError, match="pass freq='day'"):
        TimeAdjuster(freq="1min", calendar=TradingCalendar(DAYS)).max()


def test_without_a_calendar_of_its_own_it_sees_that_of_the_process_grow(tmp_path: Path) -> None:
    adjuster = TimeAdjuster()
    path = tmp_path / "days.txt"
    path.write_text("\n".join(DAYS[:3]))
    init(calendar=path)
    assert adjuster.max() == AT[2]
    path.write_text("\n".join(DAYS))
    assert adjuster.max() == AT[4]


def test_while_held_the_calendar_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "days.txt"
    path.write_text("\n".join(DAYS[:3]))
    adjuster = TimeAdjuster(calendar=path)
    with adjuster.hold():
        path.write_text("\n".join(DAYS))
        assert adjuster.max() == AT[2]
    assert adjuster.max() == AT[4]


def test_a_pickle_holds_no_day_and_a_loaded_one_sees_later_days(tmp_path: Path) -> None:
    path = tmp_path / "days.txt"
    path.write_text("\n".join(DAYS[:3]))
    init(calendar=path)
    for adjuster in (TimeAdjuster(), TimeAdjuster(calendar=path), TimeAdjuster(calendar=DAYS[:3])):
        assert adjuster.max() == AT[2]
        stored = pickle.dumps(adjuster)
        assert len(stored) < 500
        assert b"2020" not in stored
        path.write_text("\n".join(DAYS))
        assert pickle.loads(stored).max() == AT[4]
        path.write_text("\n".join(DAYS[:3]))


def test_a_pickle_keeps_everything_but_the_calendar() -> None:
    init(calendar=DAYS)
    loaded = pickle.loads(pickle.dumps(TimeAdjuster(future=False, end_time=DAYS[2])))
    assert loaded.max() == AT[2]
    init(calendar=TradingCalendar(DAYS[:1], DAYS))
    assert loaded.max() == AT[0]
    assert loaded.freq == "day"


def test_a_copy_in_the_same_process_keeps_the_calendar_it_was_given() -> None:
    adjuster = TimeAdjuster(end_time=DAYS[3], calendar=DAYS)
    for copied in (copy.copy(adjuster), copy.deepcopy(adjuster)):
        assert copied.max() == AT[3]
