"""How far a loop is, and when it ends: counted in any order, said seldom, in words."""

from __future__ import annotations

import contextlib
import logging
import sys
from types import ModuleType
from typing import Any

import pytest

from qwf.progress import Meter


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def no_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, no_tqdm: None) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="qwf.progress")
    return caplog


def test_a_line_tells_what_is_done_and_failed_and_when_the_rest_will_be(
    log: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    with Meter(20, "train e", clock=clock) as meter:
        for failed in (False, True, False, False):
            clock.now += 15
            meter.count(failed=failed)
    # 4 in a minute, 16 left
    assert log.messages[3] == "train e: 3 of 20 done, 1 failed, 4 per min, about 4 min left"
    assert log.messages[-1] == "train e: 3 of 20 done, 1 failed after 60 s"
    assert {(line.name, line.levelname) for line in log.records} == {("qwf.progress", "INFO")}


def test_lines_come_seldom_and_one_at_the_end(log: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    with Meter(1000, "train e", clock=clock) as meter:
        for _ in range(1000):
            clock.now += 0.02
            meter.count()
    assert len(log.messages) in {4, 5}  # 20 seconds in all
    assert log.messages[-1] == "train e: 1000 of 1000 done after 20 s"


def test_the_end_is_told_of_an_interrupted_loop_as_well(log: pytest.LogCaptureFixture) -> None:
    with contextlib.suppress(KeyboardInterrupt), Meter(3, "train e", clock=Clock()) as meter:
        meter.count()
        raise KeyboardInterrupt
    assert log.messages == ["train e: 1 of 3 done after 0 s"]


def test_nothing_to_do_says_nothing(log: pytest.LogCaptureFixture) -> None:
    with Meter(0, "train e"):
        pass
    assert not log.messages


def test_lines_are_not_shown_unless_asked_for(
    no_tqdm: None, capfd: pytest.CaptureFixture[str]
) -> None:
    with Meter(1, "train e") as meter:
        meter.count()
    assert capfd.readouterr() == ("", "")


def test_before_anything_has_ended_there_is_no_estimate() -> None:
    meter = Meter(3, "train e", clock=Clock())
    assert meter.seconds_left is None
    assert str(meter) == "train e: 0 of 3 done"


@pytest.mark.parametrize(
    ("seconds_each", "rate", "words"),
    [
        (0.25, "4 per s", "2 s"),
        (4, "15 per min", "36 s"),
        (10, "6 per min", "90 s"),
        (20, "3 per min", "3 min"),
        (20 * 60, "3 per h", "3 h 0 min"),
        (25 * 60, "2.4 per h", "3 h 45 min"),
        (86400, "1 per day", "9 d 0 h"),
        (90000, "0.96 per day", "9 d 9 h"),
    ],
)
def test_the_rate_and_the_time_left_are_said_in_words(
    seconds_each: float, rate: str, words: str
) -> None:
    clock = Clock()
    meter = Meter(10, "train e", clock=clock)
    clock.now += seconds_each
    meter.count()
    assert str(meter) == f"train e: 1 of 10 done, {rate}, about {words} left"


class Bar:
    """Stands for `tqdm.tqdm`."""

    monitor_interval = 10
    watched = True
    made: list[Bar] = []  # noqa: RUF012 - a record of what happened

    def __init__(self, **kwargs: Any) -> None:
        self.kwargs, self.disable = kwargs, not self.watched
        self.n, self.postfix, self.closed = 0, {}, False
        self.made.append(self)

    def update(self) -> None:
        self.n += 1

    def set_postfix(self, **facts: int) -> None:
        self.postfix = facts

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    module = ModuleType("tqdm")
    module.tqdm = Bar  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tqdm", module)
    monkeypatch.setattr(Bar, "made", [])
    return Bar.made


def test_with_tqdm_and_a_terminal_it_is_a_bar(
    bars: list[Bar], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="qwf.progress")
    with Meter(3, "train e") as meter:
        meter.count()
        meter.count(failed=True)
    (bar,) = Bar.made
    assert bar.kwargs == {"total": 3, "desc": "train e", "disable": None}
    assert (bar.n, bar.postfix, bar.closed) == (2, {"failed": 1}, True)
    assert bar.monitor_interval == 0, "a thread, where a fork may follow"
    assert not caplog.records


def test_with_tqdm_and_no_terminal_there_are_lines(
    bars: list[Bar], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Bar, "watched", False)
    caplog.set_level(logging.INFO, logger="qwf.progress")
    with Meter(1, "train e") as meter:
        meter.count()
    assert Bar.made[0].n == 0
    assert len(caplog.records) == 1


def test_the_real_tqdm_takes_what_it_is_given(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    with Meter(2, "train e") as meter:
        meter.count()
        meter.count(failed=True)
    assert (meter.done, meter.failed) == (1, 1)
    assert capfd.readouterr() == ("", "")  # no terminal
