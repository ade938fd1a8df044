"""Which tasks follow from a template: rolling over time, and one task per label horizon.

A task is the user's dict; only ``dataset.kwargs.segments`` and, for the default `handler_mod`,
the handler's ``end_time`` are read and written here. A template is never changed.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from ..calendar import Bars
from ..errors import ConfigError, LookAheadError, SegmentError, suggest
from ..types import Date, Task
from .segments import TimeAdjuster, check_rolling_type

__all__ = [
    "MultiHorizonGenBase",
    "RollingGen",
    "TaskGen",
    "handler_mod",
    "task_generator",
    "trunc_segments",
]


class TaskGen(ABC):
    """Makes several tasks from one."""

    @abstractmethod
    def generate(self, task: Task) -> list[Task]:
        """Return the tasks that follow from a template, which is not changed."""

    def __call__(self, task: Task) -> list[Task]:
        """Do the same as `generate`."""
        return self.generate(task)


def task_generator(
    tasks: Task | Sequence[Task], generators: TaskGen | Sequence[TaskGen]
) -> list[Task]:
    """Apply generators one after the other, each to every task made by the one before.

    Parameters
    ----------
    tasks : dict or sequence of dict
        The templates.
    generators : TaskGen or sequence of TaskGen
        With n templates and generators that make a and b tasks each, n * a * b tasks result.

    Returns
    -------
    list of dict
        In the order of nested loops: templates outermost, the last generator innermost.
    """
    made = [tasks] if isinstance(tasks, dict) else list(tasks)
    for generator in [generators] if isinstance(generators, TaskGen) else generators:
        made = [follower for task in made for follower in generator.generate(task)]
    return made


def handler_mod(task: Task, rolling_gen: RollingGen) -> None:
    """Let the data handler of a rolled task reach to the end of its test segment, in place.

    Its ``end_time`` becomes the end of the test segment when that is later, counted in bars, or
    open. A handler without ``end_time``, one given as a string or as an object, and one whose
    ``end_time`` is None are left alone.

    Parameters
    ----------
    task : dict
        A rolled task.
    rolling_gen : RollingGen
        The generator it comes from.
    """
    handler = task["dataset"]["kwargs"].get("handler")
    settings = handler.get("kwargs") if isinstance(handler, Mapping) else None
    if not isinstance(settings, MutableMapping) or settings.get("end_time") is None:
        return
    test_end = task["dataset"]["kwargs"]["segments"][rolling_gen.test_key][1]
    if test_end is None or rolling_gen.ta.cal_interval(settings["end_time"], test_end) < 0:
        settings["end_time"] = test_end


def trunc_segments(
    ta: TimeAdjuster, segments: MutableMapping[str, Any], days: int, test_key: str = "test"
) -> None:
    """Cut every segment but the test so that it ends at least `days` bars before it, in place.

    Parameters
    ----------
    ta : TimeAdjuster
        The calendar to count on.
    segments : dict
        Segments by name. Open ends are cut too; see `TimeAdjuster.truncate`.
    days : int
        Number of bars between the last one left and the start of the test, the former counted:
        the reach of the label into the future.
    test_key : str, default "test"
        The name of the test segment.

    Raises
    ------
    SegmentError
        If there is no test segment, or nothing is left of a segment. Nothing was changed.
    """
    test_start = _named(segments, test_key)[0]
    cut = {
        name: _for_segment(name, ta.truncate, segment, test_start, days)
        for name, segment in segments.items()
        if name != test_key
    }
    segments.update(cut)


class RollingGen(TaskGen):
    """Makes the tasks of a model that is trained again every `step` bars.

    The first task tests the first `step` bars of the template's test segment; in each following
    one all segments lie `step` bars later, until the test segment of the template is used up. With
    the default type the train segment keeps its start.

    Parameters
    ----------
    step : int, default 40
        How many bars each task tests.
    rtype : {"expanding", "sliding"}
        Whether the train segment grows or moves.
    ds_extra_mod_func : callable, optional
        Called as ``f(task, rolling_gen)`` on each finished task, which it changes in place.
    test_key, train_key : str
        The names of the two segments; ``train_key=None`` lets every segment move.
    trunc_days : int, optional
        Every segment but the test ends at least so many bars before it: the reach of the label
        into the future. None leaves the segments as the template has them.
    task_copy_func : callable, default `copy.deepcopy`
        Copies a task. One that shares what is large and never changed saves memory.
    freq : str, default "day"
        The frequency of the bars.
    calendar : optional
        As for `TimeAdjuster`. Default: the calendar of this process.

    Raises
    ------
    ConfigError
        If `step` is not a positive whole number, `rtype` is unknown, or the segment to roll is the
        one that keeps its start.
    LookAheadError
        If `trunc_days` is negative.

    Examples
    --------
    >>> import pandas as pd
    >>> rolling = RollingGen(step=2, calendar=pd.bdate_range("2020-01-01", "2020-01-31"))
    >>> segments = {"train": ("2020-01-01", "2020-01-07"), "test": ("2020-01-08", "2020-01-10")}
    >>> for task in rolling.generate({"dataset": {"kwargs": {"segments": segments}}}):
    ...     for name, (start, end) in task["dataset"]["kwargs"]["segments"].items():
    ...         print(name, start.date(), end.date())
    train 2020-01-01 2020-01-07
    test 2020-01-08 2020-01-09
    train 2020-01-01 2020-01-09
    test 2020-01-10 2020-01-13
    """

    ROLL_EX: Final = TimeAdjuster.SHIFT_EX
    ROLL_SD: Final = TimeAdjuster.SHIFT_SD

    def __init__(  # noqa: PLR0913, PLR0917 - Qlib's signature, and where the bars come from
        self,
        step: int = 40,
        rtype: str = ROLL_EX,
        ds_extra_mod_func: Callable[[Task, RollingGen], object] | None = handler_mod,
        test_key: str = "test",
        train_key: str | None = "train",
        trunc_days: int | None = None,
        task_copy_func: Callable[[Task], Task] = copy.deepcopy,
        freq: str = "day",
        calendar: object = None,
    ) -> None:
        _check_step(step)
        check_rolling_type(rtype)
        if rtype == self.ROLL_EX and test_key == train_key:
            raise ConfigError(
                f"test_key and train_key are both {test_key!r}, and an expanding segment never "
                "moves on. Pass train_key=None to roll this segment."
            )
        if trunc_days is not None and trunc_days < 0:
            raise LookAheadError(
                f"trunc_days is {trunc_days}: the training would reach into the test. Pass the "
                "number of bars the label looks ahead, or None to leave the segments alone."
            )
        self.step = step
        self.rtype = rtype
        self.ds_extra_mod_func = ds_extra_mod_func
        self.test_key = test_key
        self.train_key = train_key
        self.trunc_days = trunc_days
        self.task_copy_func = task_copy_func
        self.ta = TimeAdjuster(freq=freq, calendar=calendar)

    def generate(self, task: Task) -> list[Task]:
        """Return the rolled tasks of a template, the earliest test first.

        Parameters
        ----------
        task : dict
            The template, with ``dataset.kwargs.segments``. An open test end, or one after the last
            bar, means up to the last bar that has happened.

        Returns
        -------
        list of dict
            At least one task. Segments are pairs of Timestamps; an end past the calendar is None.

        Raises
        ------
        SegmentError
            If there is no test segment, it has no start, a segment starts after it ends, or
            nothing is left of one before the test.
        SessionOutOfBoundsError
            If a segment starts after the last bar or ends before the first one.
        """
        with self.ta.hold():
            segments = self.ta.align_seg(_segments_of(task))
            start, end = _named(segments, self.test_key)
            if start is None:
                raise _open_start(self.test_key, end)
            _check_order(segments)
            bars = self.ta.bars
            first = bars.first_at_or_after(start)
            last = first + self.step - 1
            segments[self.test_key] = start, bars.moments[last] if last < len(bars) else None
            if self.trunc_days is not None:
                trunc_segments(self.ta, segments, self.trunc_days, self.test_key)
            made = self._moved(task, segments)
            return [made, *self.gen_following_tasks(made, self._last_start(end))]

    def gen_following_tasks(self, task: Task, test_end: Date | None) -> Iterator[Task]:
        """Return the tasks after a rolled one, while their test starts until `test_end`.

        Parameters
        ----------
        task : dict
            A rolled task; not part of the result, and not changed.
        test_end : date or None
            The last bar a test may start at; None for the last bar that has happened.

        Returns
        -------
        iterator of dict
            The earliest test first; each is made when it is asked for.

        Raises
        ------
        SegmentError
            If there is no test segment or it has no start.
        SessionOutOfBoundsError
            If a segment starts after the last bar or ends before the first one.
        """
        bars = self.ta.bars
        segments = self.ta.align_seg(_segments_of(task))
        start, end = _named(segments, self.test_key)
        if start is None:
            raise _open_start(self.test_key, end)
        moving = {
            name: _Moving.of(bars, segment, grows=self._grows(name))
            for name, segment in segments.items()
        }
        until = bars.last_at_or_before(self._last_start(None) if test_end is None else test_end)
        return self._roll(task, bars, moving, until)

    def _roll(
        self, task: Task, bars: Bars, moving: Mapping[str, _Moving], until: int
    ) -> Iterator[Task]:
        """Yield copies of a task, each moved by one more step.

        Positions only grow, so an end that has left the calendar never comes back.
        """
        shift = self.step
        while all(item.starts_within(bars, shift) for item in moving.values()):
            if not moving[self.test_key].starts_until(until, shift):
                return
            yield self._moved(task, {name: item.at(bars, shift) for name, item in moving.items()})
            shift += self.step

    def _grows(self, name: str) -> bool:
        return name == self.train_key and self.rtype == self.ROLL_EX

    def _last_start(self, test_end: pd.Timestamp | None) -> pd.Timestamp:
        """Return the last bar a test may start at: never one that is only expected."""
        last: pd.Timestamp = self.ta.trading_calendar.known.moments[-1]
        return last if test_end is None else min(last, test_end)

    def _moved(self, task: Task, segments: dict[str, Any]) -> Task:
        """Return a finished copy of a task that has other segments."""
        if self.task_copy_func is copy.deepcopy:
            # Copying the old segments, Timestamp by Timestamp, only to drop them takes half the
            # time of a copy; the memo tells deepcopy what to put in their place.
            made = copy.deepcopy(task, {id(_segments_of(task)): segments})
        else:
            made = self.task_copy_func(task)
            made["dataset"]["kwargs"]["segments"] = segments
        if self.ds_extra_mod_func is not None:
            self.ds_extra_mod_func(made, self)
        return made


@dataclass(frozen=True, slots=True)
class _Moving:
    """A segment as positions, and which of its ends move."""

    first: int | None
    last: int | None
    grows: bool

    @classmethod
    def of(cls, bars: Bars, segment: tuple[Any, Any], *, grows: bool) -> _Moving:
        start, end = segment
        return cls(
            first=None if start is None else bars.first_at_or_after(start),
            last=None if end is None else bars.last_at_or_before(end),
            grows=grows,
        )

    def starts_within(self, bars: Bars, shift: int) -> bool:
        return self.grows or self.first is None or self.first + shift < len(bars)

    def starts_until(self, position: int, shift: int) -> bool:
        return self.first is not None and self.first + shift <= position

    def at(self, bars: Bars, shift: int) -> tuple[pd.Timestamp | None, pd.Timestamp | None]:
        moments = bars.moments
        start, end = self.first, None if self.last is None else self.last + shift
        if start is not None and not self.grows:
            start += shift
        return (
            None if start is None else moments[start],
            None if end is None or end >= len(moments) else moments[end],
        )


class MultiHorizonGenBase(TaskGen):
    """Makes one task per label horizon, with no label of the training reaching into the test.

    Parameters
    ----------
    horizon : sequence of int, default (5,)
        How many bars ahead each label looks.
    label_leak_n : int, default 2
        How many bars more a label needs than its horizon: 2 when it is traded on the bar after
        the signal and measured to the bar after the horizon.
    freq : str, default "day"
        The frequency of the bars.
    calendar : optional
        As for `TimeAdjuster`. Default: the calendar of this process.
    """

    def __init__(
        self,
        horizon: Sequence[int] = (5,),
        label_leak_n: int = 2,
        freq: str = "day",
        calendar: object = None,
    ) -> None:
        self.horizon = list(horizon)
        self.label_leak_n = label_leak_n
        self.test_key = "test"
        self.ta = TimeAdjuster(freq=freq, calendar=calendar)

    @abstractmethod
    def set_horizon(self, task: Task, hr: int) -> None:
        """Write a horizon into the label of a task, in place."""

    def generate(self, task: Task) -> list[Task]:
        """Return a task per horizon, each cut ``horizon + label_leak_n`` bars before its test.

        Raises
        ------
        SegmentError
            If there is no test segment or nothing is left of another before it.
        SessionOutOfBoundsError
            If a segment starts after the last bar or ends before the first one.
        """
        made = []
        for hr in self.horizon:
            follower = copy.deepcopy(task)
            self.set_horizon(follower, hr)
            segments = self.ta.align_seg(_segments_of(follower))
            trunc_segments(self.ta, segments, hr + self.label_leak_n, self.test_key)
            follower["dataset"]["kwargs"]["segments"] = segments
            made.append(follower)
        return made


def _check_step(step: object) -> None:
    if isinstance(step, bool) or not isinstance(step, int) or step < 1:
        raise ConfigError(f"step is {step!r}; expected a whole number of bars, at least 1.")


def _segments_of(task: Task) -> Mapping[str, Any]:
    found: Any = task
    for depth, key in enumerate(("dataset", "kwargs", "segments")):
        if not isinstance(found, Mapping) or key not in found:
            path = ".".join(("task", "dataset", "kwargs", "segments")[: depth + 1])
            keys = sorted(map(str, found)) if isinstance(found, Mapping) else found
            raise SegmentError(f"{path} has no {key!r}, only {keys}; a task needs segments there.")
        found = found[key]
    if not isinstance(found, Mapping):
        raise SegmentError(
            f"task.dataset.kwargs.segments is {found!r}; expected a dict of name to (start, end)."
        )
    return found


def _named(segments: Mapping[str, Any], name: str) -> Any:
    if name not in segments:
        raise SegmentError(f"there is no test segment {name!r}; {suggest(name, segments)}")
    return segments[name]


def _check_order(segments: Mapping[str, Any]) -> None:
    for name, (start, end) in segments.items():
        if start is not None and end is not None and start > end:
            raise SegmentError(
                f"segment {name!r} holds no bar: its first would be {start} and its last {end}. "
                "Give it a later end or an earlier start."
            )


def _open_start(name: str, end: object) -> SegmentError:
    return SegmentError(
        f"the test segment {name!r} is (None, {end}); it needs a start date to roll from."
    )


def _for_segment(name: str, cut: Callable[..., Any], *args: Any) -> Any:
    try:
        return cut(*args)
    except SegmentError as error:
        raise SegmentError(f"segment {name!r}: {error}") from error
