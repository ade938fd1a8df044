"""Tasks from a template: rolling, horizons, and what is refused."""

from __future__ import annotations

import copy
import datetime
import pickle
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwf.calendar import TradingCalendar
from qwf.config import C, init
from qwf.errors import ConfigError, LookAheadError, SegmentError, SessionOutOfBoundsError
from qwf.tasks.generate import (
    MultiHorizonGenBase,
    RollingGen,
    TaskGen,
    handler_mod,
    task_generator,
    trunc_segments,
)
from qwf.tasks.segments import TimeAdjuster

DAYS = pd.bdate_range("2020-01-01", periods=300)  # to 2021-02-23
SEGMENTS = {"train": ("2020-01-01", "2020-03-31"), "test": ("2020-06-01", None)}


@pytest.fixture(autouse=True)
def _fresh_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(C, "_values", {})
    monkeypatch.setattr(C, "registered", False)
    init(calendar=DAYS)


def task_of(segments: dict[str, Any], **handler_kwargs: Any) -> dict[str, Any]:
    handler = {"class": "Alpha158", "kwargs": handler_kwargs}
    return {
        "model": {"class": "M"},
        "dataset": {"kwargs": {"segments": segments, "handler": handler}},
    }


def segments_of(tasks: Any, name: str) -> list[tuple[str | None, str | None]]:
    def text(moment: pd.Timestamp | None) -> str | None:
        return None if moment is None else str(moment.date())

    found = [task["dataset"]["kwargs"]["segments"][name] for task in tasks]
    return [(text(start), text(end)) for start, end in found]


class Times(TaskGen):
    """Makes n copies that carry their number."""

    def __init__(self, name: str, n: int) -> None:
        self.name, self.n = name, n

    def generate(self, task: dict[str, Any]) -> list[dict[str, Any]]:
        return [{**task, self.name: number} for number in range(self.n)]


def test_generators_are_applied_in_nested_order() -> None:
    made = task_generator([{"t": 0}, {"t": 1}], [Times("a", 2), Times("b", 3)])
    expected = [{"t": t, "a": a, "b": b} for t in range(2) for a in range(2) for b in range(3)]
    assert made == expected
    assert task_generator({"t": 0}, Times("a", 2)) == [{"t": 0, "a": 0}, {"t": 0, "a": 1}]
    assert Times("a", 1)({"t": 0}) == [{"t": 0, "a": 0}]


# Recorded from Qlib for this calendar.
TESTS = [
    ("2020-06-01", "2020-08-21"),
    ("2020-08-24", "2020-11-13"),
    ("2020-11-16", "2021-02-05"),
    ("2021-02-08", None),
]
SLIDING_TRAINS = [
    ("2020-01-01", "2020-03-31"),
    ("2020-03-25", "2020-06-23"),
    ("2020-06-17", "2020-09-15"),
    ("2020-09-09", "2020-12-08"),
]


@pytest.mark.parametrize("rtype", ["sliding", "expanding"])
def test_the_worked_example(rtype: str) -> None:
    template = task_of(SEGMENTS)
    before = copy.deepcopy(template)
    made = RollingGen(step=60, rtype=rtype).generate(template)
    grows = rtype == "expanding"
    assert segments_of(made, "test") == TESTS
    assert segments_of(made, "train") == [
        (SLIDING_TRAINS[0][0] if grows else start, end) for start, end in SLIDING_TRAINS
    ]
    assert template == before


@pytest.mark.parametrize("step", [96, 192])
def test_a_step_that_ends_with_the_calendar_gives_the_last_task(step: int) -> None:
    assert len(DAYS) - DAYS.get_loc(pd.Timestamp("2020-06-01")) == 192
    made = RollingGen(step=step).generate(task_of(SEGMENTS))
    assert len(made) == 192 // step
    assert segments_of(made, "test")[-1] == (str(DAYS[-step].date()), str(DAYS[-1].date()))


def test_every_bar_of_the_test_is_tested_once() -> None:
    made = RollingGen(step=7).generate(task_of(SEGMENTS))
    tested: list[pd.Timestamp] = []
    for task in made:
        start, end = task["dataset"]["kwargs"]["segments"]["test"]
        tested += list(DAYS[DAYS.slice_indexer(start, end)])
    assert tested == list(DAYS[DAYS >= "2020-06-01"])


@given(
    st.integers(1, 50),
    st.integers(0, 15),
    st.sampled_from(["sliding", "expanding"]),
    st.integers(20, 290),
    st.tuples(st.integers(-2, 299), st.integers(0, 299)),
)
def test_with_trunc_days_no_training_comes_near_its_test(
    step: int, trunc_days: int, rtype: str, test_at: int, train: tuple[int, int]
) -> None:
    start = None if train[0] < 0 else DAYS[min(train)]
    end = None if train[1] == 299 else DAYS[max(train)]
    template = task_of({"train": (start, end), "test": (DAYS[test_at], None)})
    made = RollingGen(step, rtype, trunc_days=trunc_days, calendar=DAYS).generate(template)
    for task in made:
        segments = task["dataset"]["kwargs"]["segments"]
        train_end = segments["train"][1]
        assert train_end is not None
        gap = DAYS.get_loc(segments["test"][0]) - DAYS.get_loc(train_end)
        assert gap >= trunc_days


def test_lists_and_dates_of_a_yaml_file_are_segments() -> None:
    segments = {
        "train": [datetime.date(2020, 1, 1), datetime.date(2020, 3, 31)],
        "test": [datetime.date(2020, 6, 1), None],
    }
    made = RollingGen(step=60, trunc_days=2).generate(task_of(segments))
    assert segments_of(made, "test") == TESTS
    assert all(
        type(pair) is tuple
        for task in made
        for pair in task["dataset"]["kwargs"]["segments"].values()
    )


def test_a_segment_open_at_both_ends_stays_so() -> None:
    made = RollingGen(step=60).generate(task_of({**SEGMENTS, "all": (None, None)}))
    assert segments_of(made, "all") == [(None, None)] * 4


def test_the_train_segment_can_be_the_one_that_is_rolled() -> None:
    template = task_of({"train": ("2020-06-01", "2020-12-31")})
    made = RollingGen(step=60, test_key="train", train_key=None).generate(template)
    assert segments_of(made, "train") == TESTS[:3]
    with pytest.raises(ConfigError, match="train_key=None"):
        RollingGen(step=60, test_key="train")


def test_bars_that_are_only_expected_are_tested_but_start_no_task() -> None:
    calendar = TradingCalendar(DAYS[:280], DAYS)  # known to 2021-01-26
    made = RollingGen(step=10, calendar=calendar).generate(
        task_of({**SEGMENTS, "test": (DAYS[265], "2021-12-31")})
    )
    ends = [(str(DAYS[at].date()), str(DAYS[at + 9].date())) for at in (265, 275)]
    assert segments_of(made, "test") == ends


def test_intraday_bars_are_rolled_by_their_number() -> None:
    minutes = pd.DatetimeIndex(
        [day + pd.Timedelta(minutes=570 + m) for day in DAYS[:3] for m in range(4)]
    )
    template = task_of({"train": (minutes[0], minutes[3]), "test": (minutes[4], minutes[11])})
    made = RollingGen(step=3, freq="1min", calendar=minutes).generate(template)
    tests = [task["dataset"]["kwargs"]["segments"]["test"] for task in made]
    assert tests == [(minutes[4], minutes[6]), (minutes[7], minutes[9]), (minutes[10], None)]


@pytest.mark.parametrize(
    ("handler_end", "expected"),
    [
        ("2020-07-31", [pd.Timestamp("2020-08-21"), pd.Timestamp("2020-11-13")]),
        ("2020-08-22", ["2020-08-22", pd.Timestamp("2020-11-13")]),
        ("2030-01-01", ["2030-01-01", "2030-01-01"]),
        (None, [None, None]),
    ],
)
def test_the_handler_reaches_to_the_end_of_the_test(handler_end: Any, expected: list[Any]) -> None:
    made = RollingGen(step=60).generate(task_of(SEGMENTS, end_time=handler_end))
    ends = [task["dataset"]["kwargs"]["handler"]["kwargs"]["end_time"] for task in made]
    assert ends[:2] == expected
    assert ends[-1] is None  # an open test needs all there is


@pytest.mark.parametrize("handler", ["file:///handler.pkl", object(), {"class": "H"}, None])
def test_a_handler_without_an_end_is_left_alone(handler: Any) -> None:
    rolling = RollingGen()
    task = {"dataset": {"kwargs": {"handler": handler, "segments": {"test": (DAYS[0], DAYS[1])}}}}
    handler_mod(task, rolling)
    assert task["dataset"]["kwargs"]["handler"] is handler
    del task["dataset"]["kwargs"]["handler"]
    handler_mod(task, rolling)


def test_every_task_is_handed_to_the_given_function_or_to_none() -> None:
    seen: list[Any] = []
    rolling = RollingGen(60, ds_extra_mod_func=lambda task, gen: seen.append((task, gen)))
    made = rolling.generate(task_of(SEGMENTS, end_time="2020-01-01"))
    assert [task for task, _ in seen] == made
    assert {gen for _, gen in seen} == {rolling}
    untouched = RollingGen(60, ds_extra_mod_func=None).generate(task_of(SEGMENTS, end_time="x"))
    assert {task["dataset"]["kwargs"]["handler"]["kwargs"]["end_time"] for task in untouched} == {
        "x"
    }


def test_tasks_share_nothing_with_each_other_or_the_template() -> None:
    template = {**task_of(SEGMENTS), "record": [{"class": "SignalRecord"}]}
    made = RollingGen(step=60).generate(template)
    parts = [part for task in [template, *made] for part in (task["record"], task["dataset"])]
    assert len({id(part) for part in parts}) == len(parts)
    assert len({id(task["dataset"]["kwargs"]["segments"]) for task in made}) == len(made)


def test_a_live_object_is_copied_once_per_task_and_not_with_a_copy_function_that_shares() -> None:
    class Live:
        copies = 0

        def __deepcopy__(self, memo: dict[int, Any]) -> Live:
            Live.copies += 1
            return self

    def share(task: dict[str, Any]) -> dict[str, Any]:
        kwargs = dict(task["dataset"]["kwargs"])
        return {**task, "dataset": {**task["dataset"], "kwargs": kwargs}}

    template = task_of(SEGMENTS)
    template["dataset"]["kwargs"]["handler"] = Live()
    assert len(RollingGen(step=60).generate(template)) == 4
    assert Live.copies == 4
    made = RollingGen(step=60, task_copy_func=share).generate(template)
    assert Live.copies == 4
    assert segments_of(made, "test") == TESTS
    assert template["dataset"]["kwargs"]["segments"] == SEGMENTS


def test_following_tasks_are_made_when_asked_for_from_any_dates() -> None:
    rolled = task_of({"train": ["2020-01-01", "2020-03-31"], "test": ["2020-05-30", "2020-08-23"]})
    following = RollingGen(60, "sliding").gen_following_tasks(rolled, "2020-12-31")
    first = next(following)
    assert segments_of([first], "test") == [TESTS[1]]
    assert segments_of(following, "test") == [TESTS[2]]
    all_of_them = RollingGen(60, "sliding").gen_following_tasks(first, None)
    assert segments_of(all_of_them, "test") == TESTS[2:]
    assert rolled["dataset"]["kwargs"]["segments"]["test"] == ["2020-05-30", "2020-08-23"]


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"rtype": "growing"}, ConfigError, "rtype is 'growing'"),
        ({"step": 0}, ConfigError, "step is 0"),
        ({"step": -1}, ConfigError, "step is -1"),
        ({"step": 2.5}, ConfigError, r"step is 2\.5"),
        ({"step": True}, ConfigError, "step is True"),
        ({"trunc_days": -1}, LookAheadError, "reach into the test"),
    ],
)
def test_impossible_settings_are_refused(
    settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        RollingGen(**settings)


@pytest.mark.parametrize(
    ("segments", "error", "words"),
    [
        ({"train": ("2020-01-01", None)}, SegmentError, "no test segment 'test'; .*'train'"),
        ({"test": (None, "2020-06-01")}, SegmentError, "needs a start date"),
        ({"test": ("2021-02-24", None)}, SessionOutOfBoundsError, "'test': .*after the last"),
        ({**SEGMENTS, "train": (None, "2019-01-01")}, SessionOutOfBoundsError, "'train': "),
        ({"test": "2020-06-01"}, SegmentError, "'test': '2020-06-01' is not a segment"),
        ([("2020-06-01", None)], SegmentError, "expected a dict of name"),
    ],
)
def test_segments_that_cannot_be_rolled_are_refused(
    segments: Any, error: type[Exception], words: str
) -> None:
    template = task_of(segments)
    before = copy.deepcopy(template)
    for call in (
        RollingGen().generate,
        lambda task: list(RollingGen().gen_following_tasks(task, None)),
    ):
        with pytest.raises(error, match=words):
            call(template)
        assert template == before


@pytest.mark.parametrize(
    ("name", "segment"),
    [("test", ("2020-06-06", "2020-06-07")), ("train", ("2020-03-31", "2020-01-01"))],
)
def test_a_segment_without_a_bar_is_refused(name: str, segment: Any) -> None:
    with pytest.raises(SegmentError, match=f"'{name}' holds no bar: its first would be"):
        RollingGen().generate(task_of({**SEGMENTS, name: segment}))


@pytest.mark.parametrize("task", [{}, {"dataset": None}, {"dataset": {"kwargs": {}}}, {"model": 1}])
def test_a_task_without_segments_says_where_they_belong(task: dict[str, Any]) -> None:
    with pytest.raises(SegmentError, match=r"task\S* has no '(dataset|kwargs|segments)'"):
        RollingGen().generate(task)


def test_truncation_that_leaves_nothing_names_the_segment_and_changes_nothing() -> None:
    segments = {"valid": (DAYS[2], DAYS[5]), "train": (DAYS[0], DAYS[1]), "test": (DAYS[3], None)}
    before = dict(segments)
    with pytest.raises(SegmentError, match="segment 'valid': nothing is left"):
        trunc_segments(TimeAdjuster(), segments, 4)
    assert segments == before
    trunc_segments(TimeAdjuster(), segments, 1)
    assert segments["valid"] == (DAYS[2], DAYS[2])
    with pytest.raises(SegmentError, match="no test segment 'later'"):
        trunc_segments(TimeAdjuster(), segments, 1, test_key="later")


class Horizons(MultiHorizonGenBase):
    def set_horizon(self, task: dict[str, Any], hr: int) -> None:
        task["horizon"] = hr


def test_a_longer_horizon_ends_the_training_earlier() -> None:
    template = task_of({"train": (DAYS[0], None), "test": (DAYS[100], DAYS[200])})
    made = Horizons([1, 20], label_leak_n=2)(template)
    ends = [task["dataset"]["kwargs"]["segments"]["train"][1] for task in made]
    assert ends == [DAYS[97], DAYS[78]]
    assert [task["horizon"] for task in made] == [1, 20]
    assert "horizon" not in template
    assert Horizons().horizon == [5]


def test_a_stored_generator_holds_no_day_and_makes_the_tasks_of_later_days(tmp_path: Path) -> None:
    path = tmp_path / "days.txt"
    path.write_text("\n".join(str(day.date()) for day in DAYS[:200]))
    init(calendar=path)
    rolling = RollingGen(step=60)
    n_before = len(rolling.generate(task_of(SEGMENTS)))
    stored = pickle.dumps(rolling)
    assert len(stored) < 1000
    path.write_text("\n".join(str(day.date()) for day in DAYS))
    assert n_before == 2
    assert len(pickle.loads(stored).generate(task_of(SEGMENTS))) == 4
    assert len(rolling.generate(task_of(SEGMENTS))) == 4
