"""Answers recorded from Qlib, and what qwf says where Qlib's own answer is a documented defect.

The brute force in this file walks over a list of ISO strings; it is checked against every recorded
answer before it stands in for those that Qlib failed to give. The recorded ``handler_end_time`` of
an open test segment is None, as in Qlib's main branch (0.9.7 left the old one, and the last roll
loaded no data).
"""

from __future__ import annotations

import bisect
import copy
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from qwf.calendar import D, TradingCalendar, get_date_by_shift, transform_end_date
from qwf.config import C, init
from qwf.errors import ConfigError, NotSessionError, SegmentError, SessionOutOfBoundsError
from qwf.tasks.generate import MultiHorizonGenBase, RollingGen, trunc_segments
from qwf.tasks.segments import TimeAdjuster

ORACLES = Path(__file__).parent / "oracles" / "pure"
ADJACENT = {
    "train": ["2020-01-02", "2020-12-31"],
    "valid": ["2021-01-04", "2021-12-31"],
    "test": ["2022-01-03", "2022-06-30"],
}


def read(name: str) -> Any:
    return json.loads(gzip.decompress((ORACLES / f"{name}.json.gz").read_bytes()))


@pytest.fixture(params=["plain", "future"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    days = read(f"calendar_{request.param}")
    monkeypatch.setattr(C, "_values", {})
    monkeypatch.setattr(C, "registered", False)
    init(calendar=TradingCalendar(days["calendar"], days["calendar_future"]))
    return str(request.param)


def plain(value: Any) -> Any:
    """Return an answer in the notation of the oracles."""
    if isinstance(value, pd.Timestamp):
        return str(value.date())
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value


class Days:
    """The brute force: ISO strings sort like dates."""

    def __init__(self, kind: str) -> None:
        days = read(f"calendar_{kind}")
        self.known: list[str] = days["calendar"]
        self.all: list[str] = days["calendar_future"]

    def start(self, date: str | None) -> int | None:
        return None if date is None else bisect.bisect_left(self.all, date)

    def end(self, date: str | None) -> int | None:
        return None if date is None else bisect.bisect_right(self.all, date) - 1

    def at(self, position: int | None) -> str | None:
        if position is None or position >= len(self.all):
            return None
        assert position >= 0
        return self.all[position]

    def truncate(self, segment: list[Any], test_start: str, days: int) -> list[Any]:
        bound = bisect.bisect_left(self.all, test_start) - days
        start, end = (self.start(date) for date in segment)
        first = None if start is None else min(start, bound)
        return [self.at(first), self.at(bound if end is None else min(end, bound))]

    def shift(self, segment: list[Any], step: int, rtype: str) -> list[Any] | None:
        """Return the segment, or None where it has to be refused."""
        first, last = self.start(segment[0]), self.end(segment[1])
        if first is not None and rtype == "sliding":
            first += step
        if last is not None:
            last += step
        if (first is not None and not 0 <= first < len(self.all)) or (last or 0) < 0:
            return None
        return [self.at(first), self.at(last)]

    def roll(self, args: dict[str, Any]) -> list[dict[str, list[Any]]]:
        step, rtype = args["step"], args["rtype"]
        current = {
            name: [self.at(self.start(start)), self.at(self.end(end))]
            for name, (start, end) in args["segments"].items()
        }
        test_end = current["test"][1] or self.known[-1]
        until = min(test_end, self.known[-1])
        first = self.start(current["test"][0])
        assert first is not None
        current["test"] = [current["test"][0], self.at(first + step - 1)]
        if args["trunc_days"] is not None:
            for name in set(current) - {"test"}:
                current[name] = self.truncate(current[name], current["test"][0], args["trunc_days"])
        rolled = [current]
        while True:
            moved: dict[str, list[Any]] = {}
            for name, segment in rolled[-1].items():
                grows = name == "train" and rtype == "expanding"
                shifted = self.shift(segment, step, "expanding" if grows else "sliding")
                if shifted is None:
                    return rolled
                moved[name] = shifted
            if moved["test"][0] > until:
                return rolled
            rolled.append(moved)


def test_the_calendar_is_that_of_qlib(kind: str) -> None:
    recorded = read(f"calendar_{kind}")
    assert plain(list(D.calendar())) == recorded["calendar"]
    assert plain(list(D.calendar(future=True))) == recorded["calendar_future"]


def test_shifts_of_dates_are_those_of_qlib(kind: str) -> None:
    errors: dict[str, type[Exception]] = {
        "is not trading day": NotSessionError,
        "is out of range": SessionOutOfBoundsError,
        "align with value": ConfigError,
    }
    for case in read(f"get_date_by_shift_{kind}"):
        args = case["args"]
        if case["call"] == "transform_end_date":
            assert plain(transform_end_date(*args)) == case["ok"], case
        elif "error" in case:
            (expected,) = (errors[words] for words in errors if words in case["message"])
            with pytest.raises(expected):
                get_date_by_shift(**args)
        else:
            assert plain(get_date_by_shift(**args)) == case["ok"], case


def adjuster_calls(adjuster: TimeAdjuster) -> dict[str, Callable[..., Any]]:
    def limited() -> list[Any]:
        short = TimeAdjuster(end_time="2020-08-01")
        return [len(short.cals), short.max()]

    def unlimited() -> int:
        short = TimeAdjuster(end_time="2020-08-01")
        short.set_end_time(None)
        return len(short.cals)

    return {
        "len(cals)": lambda: len(adjuster.cals),
        "TimeAdjuster(end_time=2020-08-01) len,max": limited,
        "set_end_time(None) len": unlimited,
        "get": adjuster.get,
        "align_time": adjuster.align_time,
        "align_seg": adjuster.align_seg,
        "cal_interval": adjuster.cal_interval,
        "truncate": adjuster.truncate,
        "shift": adjuster.shift,
    }


def corrected(days: Days, case: dict[str, Any]) -> Any:
    """Return the right answer to a case, an error class where it has to be refused."""
    call, args = case["call"], case["args"]
    if call == "get" and args[0] is not None and args[0] < 0:
        return SessionOutOfBoundsError  # Qlib counts from the end
    if call in ("align_time", "align_seg"):
        return corrected_alignment(days, case)
    if call == "cal_interval" and None in args:
        return TypeError
    if call == "shift":
        if args[2] not in ("sliding", "expanding"):
            return ConfigError
        # Qlib takes no lists, counts from the end, and gives (None, None) one bar past the end.
        return days.shift(*args) or SessionOutOfBoundsError
    if call == "truncate":
        # Qlib takes no lists, no open start, and no segment that starts on the first day.
        return days.truncate(*args)
    return case["ok"]


def corrected_alignment(days: Days, case: dict[str, Any]) -> Any:
    if case["call"] == "align_seg":
        if not isinstance(case["args"][0], list):
            return SegmentError
        start, end = case["args"][0]
    else:
        date, bound = case["args"]
        start, end = (date, None) if bound == "start" else (None, date)
    if end is not None and end < days.all[0]:
        return SessionOutOfBoundsError  # Qlib returns the last day
    if start is not None and start > days.all[-1]:
        return SessionOutOfBoundsError
    return case["ok"]


def test_segments_are_those_of_qlib_or_corrected(kind: str) -> None:
    days, calls = Days(kind), adjuster_calls(TimeAdjuster())
    wraps = 0
    for case in read(f"time_adjuster_{kind}"):
        expected = corrected(days, case)
        if isinstance(expected, type):
            with pytest.raises(expected):
                calls[case["call"]](*case["args"])
            wraps += "ok" in case
            continue
        assert plain(calls[case["call"]](*case["args"])) == expected, case
        assert case.get("ok", expected) == expected, case
    # get(-1), two ends before the first day, a segment before it; and the shift one past the end
    assert wraps == (5 if kind == "plain" else 4)


def task_of(segments: dict[str, Any], handler_end_time: str | None) -> dict[str, Any]:
    kwargs: dict[str, Any] = {"segments": segments}
    if handler_end_time == "STR":
        kwargs["handler"] = "file:///x.pkl"
    elif handler_end_time != "NOHANDLER":
        kwargs["handler"] = {"class": "Alpha158", "kwargs": {"end_time": handler_end_time}}
    return {"model": {"class": "LGBModel"}, "dataset": {"class": "DatasetH", "kwargs": kwargs}}


def answer_of(task: dict[str, Any]) -> dict[str, Any]:
    kwargs = task["dataset"]["kwargs"]
    handler = kwargs.get("handler", {"kwargs": {"end_time": None}})
    end = handler if isinstance(handler, str) else handler["kwargs"]["end_time"]
    return {"segments": plain(kwargs["segments"]), "handler_end_time": plain(end)}


def handler_end(days: Days, given: str | None, segments: dict[str, Any]) -> str | None:
    if given in (None, "NOHANDLER"):
        return None
    if given == "STR":
        return "file:///x.pkl"
    test_end = segments["test"][1]
    if test_end is None:
        return None
    reaches = (days.start(given) or 0) >= (days.start(test_end) or 0)
    return given if reaches else test_end


def test_rolling_is_that_of_qlib_and_goes_on_where_qlib_fails(kind: str) -> None:
    days = Days(kind)
    cases = [case for case in read(f"rolling_{kind}") if case["call"] == "RollingGen.generate"]
    failed = 0
    for case in cases:
        args = case["args"]
        task = task_of(args["segments"], args["handler_end_time"])
        before = copy.deepcopy(task)
        made = RollingGen(
            step=args["step"], rtype=args["rtype"], trunc_days=args["trunc_days"]
        ).generate(task)
        assert task == before
        expected = [
            {
                "segments": item,
                "handler_end_time": handler_end(days, args["handler_end_time"], item),
            }
            for item in days.roll(args)
        ]
        assert [answer_of(item) for item in made] == expected, case["args"]
        # Qlib compares None with a day when the step divides what is left of the calendar, and
        # None with a position when the training is open at its start.
        assert case.get("error", "TypeError") == "TypeError"
        assert case.get("ok", expected) == expected, case["args"]
        failed += "error" in case
    assert failed == (44 if kind == "plain" else 12)


def test_the_tasks_after_a_rolled_one_are_those_of_qlib(kind: str) -> None:
    for case in read(f"rolling_{kind}"):
        if case["call"] != "gen_following_tasks":
            continue
        args = case["args"]
        rolling = RollingGen(step=args["step"], rtype=args["rtype"])
        made = rolling.gen_following_tasks(
            task_of(args["from_segments"], "2021-12-31"), pd.Timestamp(args["test_end"])
        )
        assert [answer_of(task) for task in made] == case["ok"], args


def test_rolling_without_a_change_of_the_handler_is_that_of_qlib(kind: str) -> None:
    for case in read(f"rolling_{kind}"):
        if case["call"] == "RollingGen.generate ds_extra_mod_func=None":
            args = case["args"]
            rolling = RollingGen(args["step"], args["rtype"], ds_extra_mod_func=None)
            made = rolling.generate(task_of(ADJACENT, "2021-12-31"))
            assert [answer_of(task) for task in made] == case["ok"]


class Horizons(MultiHorizonGenBase):
    def set_horizon(self, task: dict[str, Any], hr: int) -> None:
        task["horizon"] = hr


def test_one_task_per_horizon_is_that_of_qlib(kind: str) -> None:
    for case in read(f"rolling_{kind}"):
        if case["call"] == "MultiHorizonGenBase.generate":
            args = case["args"]
            made = Horizons(args["horizon"], args["label_leak_n"]).generate(
                task_of(args["segments"], None)
            )
            answers = [{"horizon": task["horizon"], **answer_of(task)} for task in made]
            assert answers == case["ok"]


def test_truncated_segments_are_those_of_qlib(kind: str) -> None:
    adjuster = TimeAdjuster()
    for case in read(f"rolling_{kind}"):
        if case["call"] == "trunc_segments":
            segments = adjuster.align_seg(case["args"][0])
            trunc_segments(adjuster, segments, case["args"][1])
            assert plain(segments) == case["ok"]
