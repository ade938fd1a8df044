"""Metrics wait a moment to be written together: nothing of that is lost, doubled or raised."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import math
import os
import pickle
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Children, FaultyOs
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from qwf.errors import (
    CorruptRecordError,
    MetricsLostError,
    RecorderNotFoundError,
    UnsafeNameError,
    WriteError,
)
from qwf.process import pulse
from qwf.storage.journal import JournalWriter
from qwf.tracking import metric_log
from qwf.tracking.manager import ExpManager
from qwf.tracking.metric_lines import Points, read_journals
from qwf.tracking.metric_log import MetricLog
from qwf.tracking.metrics import current, histories, history
from qwf.tracking.recorder import Recorder

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def run(tmp_path: Path) -> Recorder:
    manager = ExpManager(tmp_path / "store")
    return manager.get_exp(experiment_name="e").create_recorder().start_run()


def same(run: Recorder) -> Recorder:
    """The recorder as another object of this process, or another process, sees it."""
    return ExpManager(Path(run.uri)).get_exp(experiment_name="e").get_recorder(run.id)


def directory(run: Recorder) -> Path:
    return Path(run.get_local_dir())


def journals(run: Recorder) -> list[Path]:
    return sorted(directory(run).glob("metrics.*"))


def logged(found: pd.DataFrame) -> list[tuple[str, int, float]]:
    return list(zip(found["key"], found["step"], found["value"], strict=True))


def on_disk(place: Path) -> list[tuple[str, int, float]]:
    """What another process would read now, oldest first."""
    found = []
    for part in read_journals(place):
        if isinstance(part, Points):
            found += list(zip(*part, strict=True))
        else:
            for number, (moment, step) in enumerate(zip(part.times, part.steps, strict=True)):
                found += [(moment, step, key, column[number])
                          for key, column in part.values.items()]  # fmt: skip
    found.sort(key=lambda one: one[0])
    return [(key, step, float(value)) for _, step, key, value in found]


@pytest.fixture
def no_pulse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written but by calls."""
    monkeypatch.setattr(pulse, "watch", lambda *_, **__: None)


@pytest.fixture
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """The clock stands still; call with the seconds by which it goes on."""
    moments = [1_700_000_000 * 10**9]

    def go_on(seconds: float) -> None:
        moments[0] += round(seconds * 1e9)

    monkeypatch.setattr(metric_log.time, "time_ns", lambda: moments[0])
    return go_on


# --- when it is written ----------------------------------------------------------------------


def test_values_that_come_slowly_are_written_at_once(
    run: Recorder, no_pulse: None, slow_clock: Callable[[float], None]
) -> None:
    for step in range(5):
        run.log_metrics(step=step, a=step)
        assert on_disk(directory(run)) == [("a", number, number) for number in range(step + 1)]
        slow_clock(0.2)


def test_values_that_come_fast_are_written_together_a_moment_later(
    run: Recorder, no_pulse: None, slow_clock: Callable[[float], None]
) -> None:
    for step in range(100):
        run.log_metrics(step=step, a=step)
    assert len(on_disk(directory(run))) == 1
    slow_clock(0.2)
    run.log_metrics(step=100, a=100)
    assert on_disk(directory(run)) == [("a", number, number) for number in range(101)]
    (journal,) = journals(run)
    assert len(journal.read_bytes().splitlines()) == 3, "a header, a single value, a column"


def test_what_waits_is_written_without_another_call(run: Recorder) -> None:
    written = threading.Event()
    for step in range(3):
        run.log_metrics(step=step, a=step)
    pulse.watch("test", lambda: written.set() if len(on_disk(directory(run))) == 3 else None,
                seconds=0.01)  # fmt: skip
    assert written.wait(20)
    pulse.unwatch("test")


def test_thousands_of_values_do_not_wait_for_the_clock(
    run: Recorder, no_pulse: None, slow_clock: Callable[[float], None]
) -> None:
    for step in range(10_000):
        run.log_metrics(step=step, a=step)
    assert len(on_disk(directory(run))) > 5_000


@pytest.mark.parametrize("read", ["list_metrics", "metric_history"])
def test_every_object_of_this_process_reads_what_waits(
    run: Recorder, no_pulse: None, read: str
) -> None:
    other = same(run)
    for step in range(3):
        run.log_metrics(step=step, a=step)
        found = getattr(other, read)()
        assert (found["a"] if read == "list_metrics" else found["value"].iloc[-1]) == step


def test_the_end_writes_what_waits_also_through_other_objects(
    run: Recorder, no_pulse: None
) -> None:
    other = same(run)
    for step in range(5):
        run.log_metrics(step=step, a=step)
        other.log_metrics(step=step, b=step)
    run.end_run("FINISHED")
    assert sorted(on_disk(directory(run))) == [(key, n, n) for key in "ab" for n in range(5)]
    assert same(run).list_metrics() == {"a": 4, "b": 4}


def test_what_a_thread_logs_while_the_run_ends_is_in_the_journal_and_listed(
    run: Recorder, no_pulse: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.log_metrics(a=1)
    real = Recorder._update

    def late(self: Recorder, *args: Any) -> Any:
        result = real(self, *args)
        with monkeypatch.context() as patch:
            patch.setattr(Recorder, "_update", real)
            thread = threading.Thread(target=lambda: run.log_metrics(late=2))
            thread.start()
            thread.join()
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "_update", late)
        run.end_run("FINISHED")
    assert {key for key, *_ in on_disk(directory(run))} == {"a", "late"}
    assert same(run).list_metrics() == {"a": 1, "late": 2}


def test_nothing_is_watched_when_nothing_waits(run: Recorder) -> None:
    for step in range(5):
        run.log_metrics(step=step, a=step)
    assert run._metric_log in pulse._watches
    run.end_run("FINISHED")
    assert run._metric_log not in pulse._watches
    assert run._metric_log not in metric_log._waiting


def test_killing_a_process_in_a_burst_loses_the_end_only(run: Recorder, children: Children) -> None:
    def burst() -> None:
        mine = MetricLog(directory(run))
        for step in itertools.count():
            mine.append({"a": float(step)}, step)
            if step == 50_000:
                os.kill(os.getpid(), signal.SIGKILL)

    children.add(burst)
    assert children.exit_codes() == [-signal.SIGKILL]
    found = on_disk(directory(run))
    assert found == [("a", step, step) for step in range(len(found))]
    assert len(found) > 40_000
    run.log_metrics(step=60_000, a=-1)
    assert run.list_metrics() == {"a": -1}


def test_a_signal_in_the_middle_of_a_call_may_end_the_run(
    run: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write

    def interrupted(descriptor: int, data: Any) -> int:
        result = real(descriptor, data)
        monkeypatch.undo()
        run.log_metrics(b=1)  # what a handler does, between two instructions of `log_metrics`
        run.end_run("FINISHED")
        return result

    monkeypatch.setattr("qwf.storage.fsio.os", FaultyOs(write=interrupted))
    run.log_metrics(a=1)
    assert sorted(logged(run.metric_history())) == [("a", 0, 1), ("b", 0, 1)]
    assert same(run).list_metrics() == {"a": 1, "b": 1}


@pytest.mark.parametrize("part", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("before", [0, 1])
def test_an_interrupt_while_it_is_written_neither_loses_nor_doubles(
    run: Recorder, part: float, before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.log_metrics(**{f"before{number}": 0 for number in range(before)})

    def interrupted(descriptor: int, data: bytes) -> int:
        os.write(descriptor, data[: int(len(data) * part)])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("qwf.storage.fsio.os", FaultyOs(write=interrupted))
        with pytest.raises(KeyboardInterrupt):
            run.log_metric_history({"a": [1, 2], "b": [3, 4]})
    run.log_metrics(c=5)
    run.end_run("FINISHED")
    expected = [("before0", 0, 0)] * before
    expected += [("a", 0, 1), ("b", 0, 3), ("a", 1, 2), ("b", 1, 4), ("c", 0, 5)]
    assert logged(run.metric_history()) == expected
    assert run.list_metrics() == {**dict.fromkeys(["before0"][:before], 0), "a": 2, "b": 4, "c": 5}


# --- disks -----------------------------------------------------------------------------------


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.ESTALE, errno.EDQUOT])
@pytest.mark.parametrize("call", ["open", "write", "fsync"])
def test_a_disk_that_refuses_is_told_once_and_nothing_is_lost(
    run: Recorder, code: int, call: str, os_fails: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with os_fails(OSError(code, os.strerror(code)), call):
        for step in range(500):
            run.log_metrics(step=step, a=step)
            run._metric_log.flush()  # type: ignore[union-attr]
        run.log_metric_history({"b": np.arange(3.0)})
    (told,) = errors(caplog)
    assert str(run.id) in told
    assert os.strerror(code) in told
    assert "1 values" in told
    run.end_run("FINISHED")
    assert [one for one in caplog.messages if "written again" in one] != []
    expected = [("a", step, step) for step in range(500)]
    assert on_disk(directory(run)) == [*expected, ("b", 0, 0), ("b", 1, 1), ("b", 2, 2)]
    assert same(run).list_metrics() == {"a": 499, "b": 2}
    assert len(journals(run)) == 1, "no empty files are left"


def test_a_disk_that_stays_full_for_metrics_is_raised_by_the_end_which_can_be_repeated(
    run: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Any, *args: Any) -> int:
        if "metrics." in str(path):
            raise FULL
        return os.open(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr("qwf.storage.fsio.os", FaultyOs(open=full))
        run.log_metrics(a=1)
        assert run.list_metrics() == {"a": 1}, "this process reads what waits"
        with pytest.raises(WriteError, match="No space left"):
            run.end_run("FAILED")
        assert same(run).status == "FAILED", "the status is true all the same"
        assert same(run).list_metrics() == {"a": 1}
    run.end_run("FAILED")
    assert on_disk(directory(run)) == [("a", 0, 1)]


def test_the_buffer_is_bounded_and_what_is_lost_is_counted(
    run: Recorder, monkeypatch: pytest.MonkeyPatch, os_fails: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(metric_log, "_MOST", 10)
    with os_fails(FULL, "write"):
        for step in range(30):
            run.log_metrics(step=step, a=step)
        run.log_metric_history({"b": range(20)})
    full, bound = errors(caplog)
    assert "wait in memory" in full
    assert "lost" in bound
    with pytest.raises(MetricsLostError) as caught:
        run.end_run("FINISHED")
    kept = on_disk(directory(run))
    assert kept == [("a", step, step) for step in range(len(kept))]
    assert 10 <= len(kept) <= 11
    assert caught.value.count == 50 - len(kept)
    assert str(run.id) in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert same(run).status == "FINISHED"
    assert same(run).list_metrics() == {"a": len(kept) - 1}
    run.end_run("FINISHED")


def test_a_recorder_that_is_gone_is_told_by_the_call(run: Recorder) -> None:
    shutil.rmtree(directory(run))
    for _ in range(3):
        with pytest.raises(RecorderNotFoundError):
            run.log_metrics(a=1)
    with pytest.raises(RecorderNotFoundError):
        run.log_metric_history({"a": [1]})
    assert run._metric_log not in metric_log._waiting


def test_a_worker_that_logs_into_the_run_of_another_process_is_not_stopped_by_its_disk(
    run: Recorder, children: Children, os_fails: Callable[..., Any]
) -> None:
    def work() -> None:
        mine = same(run)
        with os_fails(FULL, "write"):
            for step in range(3):
                mine.log_metrics(step=step, a=step)
        mine.log_metrics(step=3, a=3)

    children.add(work)
    assert children.exit_codes() == [0]
    assert on_disk(directory(run)) == [("a", step, step) for step in range(4)]


def test_logging_into_a_run_that_has_ended_raises_what_the_disk_says(
    run: Recorder, os_fails: Callable[..., Any]
) -> None:
    run.end_run("FINISHED")
    with os_fails(FULL, "write"), pytest.raises(WriteError):
        run.log_metrics(a=1)


# --- processes and threads -------------------------------------------------------------------


def test_a_forked_child_does_not_write_what_waits_in_its_parent(
    run: Recorder, children: Children, no_pulse: None
) -> None:
    for step in range(10):
        run.log_metrics(step=step, parent=step)

    def child() -> None:
        assert run._metric_log is not None
        assert run._metric_log.flush() is None
        run.metric_history()
        for step in range(10):
            run.log_metrics(step=step, child=step)
        run.list_metrics()

    children.add(child)
    assert children.exit_codes() == [0]
    assert sum(key == "parent" for key, *_ in on_disk(directory(run))) <= 1
    run.end_run("FINISHED")
    found = on_disk(directory(run))
    for key in ("parent", "child"):
        assert [one for one in found if one[0] == key] == [(key, n, n) for n in range(10)]


def test_threads_of_all_kinds_log_into_one_recorder(run: Recorder) -> None:
    def calls(name: str) -> None:
        for step in range(2_000):
            run.log_metrics(step=step, **{name: step})

    def bulk(name: str) -> None:
        for step in range(20):
            run.log_metric_history(
                {name: np.arange(100)}, steps=range(step * 100, step * 100 + 100)
            )

    def reads(_: str) -> None:
        for _ in range(20):
            run.list_metrics()

    threads = [threading.Thread(target=call, args=(f"{call.__name__}{number}",))
               for call in (calls, bulk, reads) for number in range(2)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run.end_run("FINISHED")
    found = run.metric_history()
    assert len(found) == 8_000
    for name, group in found.groupby("key"):
        assert group["step"].tolist() == list(range(2_000)), name


# --- many at once ----------------------------------------------------------------------------

MANY: dict[str, tuple[Any, Any, list[int]]] = {
    "lists": ({"a": [1, 2.5], "b": [math.inf, -1]}, None, [0, 1]),
    "arrays": ({"a": np.array([1, 2]), "b": np.float32([3, 4])}, None, [0, 1]),
    "series": ({"a": pd.Series([1, 2], index=[5, 6])}, None, [0, 1]),
    "series with a missing value": ({"a": pd.Series([1, None], dtype="Float64")}, None, [0, 1]),
    "given steps": ({"a": [1, 2]}, [7, 3], [7, 3]),
    "an array of steps": ({"a": [1, 2]}, np.array([7, 3], np.int8), [7, 3]),
    "a frame": (pd.DataFrame({"a": [1, 2], "b": [True, False]}), None, [0, 1]),
    "a frame with steps": (pd.DataFrame({"a": [1.0, 2.0]}, index=[10, -20]), None, [10, -20]),
    "a frame by date": (
        pd.DataFrame({"a": [1.0, 2.0]}, index=pd.to_datetime(["2020-01-01", "2020-01-02"])),
        None,
        [0, 1],
    ),
}


@pytest.mark.parametrize("name", MANY)
def test_many_values_are_logged_row_by_row(run: Recorder, name: str) -> None:
    metrics, given, steps = MANY[name]
    run.log_metric_history(metrics, steps=given)
    expected = [
        (key, step, float(np.asarray(metrics[key])[row]))
        for row, step in enumerate(steps)
        for key in metrics
    ]
    assert repr(on_disk(directory(run))) == repr(expected), "at once"
    assert repr(logged(run.metric_history())) == repr(expected)


def test_nan_and_infinities_are_values(run: Recorder) -> None:
    values = [math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308]
    run.log_metric_history({"a": values, "b": range(6)})
    for step, value in enumerate(values):
        run.log_metrics(step=step, c=value)
    found = run.metric_history()
    for key in ("a", "c"):
        assert repr(found.loc[found["key"] == key, "value"].tolist()) == repr(values)
    run.end_run("FINISHED")
    assert run.list_metrics() == {"a": values[-1], "b": 5, "c": values[-1]}


@pytest.mark.parametrize(
    ("metrics", "steps", "error", "said"),
    [
        ([1, 2], None, TypeError, "list"),
        (pd.Series([1, 2]), None, TypeError, "Series"),
        ({"a": [1, 2], "b": [1]}, None, ValueError, "lengths"),
        ({"a": [1, "x"]}, None, TypeError, "'a'.*'x'"),
        ({"a": [1, None]}, None, TypeError, "'a'.*NoneType"),
        ({"a": np.array(["x"])}, None, TypeError, "'a'.*'x'"),
        ({"a": np.ones((2, 2))}, None, TypeError, "2 dimensions"),
        ({"a": 1.0}, None, TypeError, "'a' is a float"),
        ({"a": "12"}, None, TypeError, "'a'.*sequence"),
        ({"": [1]}, None, UnsafeNameError, "a metric"),
        (pd.DataFrame([[1, 2]]), None, UnsafeNameError, "a metric"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), None, UnsafeNameError, "two columns"),
        ({"a": [1, 2]}, [1], ValueError, "1 steps for 2"),
        ({"a": [1, 2]}, [1, 1.5], TypeError, "step is 1.5"),
        ({"a": [1, 2]}, [1, 2**63], TypeError, "step is"),
        ({"a": [1, 2]}, 3, TypeError, "'steps'"),
    ],
)
def test_what_cannot_be_logged_is_refused_as_a_whole(
    run: Recorder, metrics: Any, steps: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        run.log_metric_history(metrics, steps=steps)
    assert journals(run) == []
    run.log_metrics(a=1)
    assert run.list_metrics() == {"a": 1}


@pytest.mark.parametrize("nothing", [{}, {"a": []}, pd.DataFrame()])
def test_no_values_are_no_error(run: Recorder, nothing: Any) -> None:
    run.log_metric_history(nothing)
    assert run.metric_history().empty
    assert journals(run) == []


@pytest.mark.stress
def test_a_million_values_come_back_exactly_and_in_order(run: Recorder) -> None:
    values = np.random.default_rng(0).random(1_000_000)
    run.log_metric_history({"a": values})
    for step in range(20_000):
        run.log_metrics(step=step, b=step, c=-step)
    run.end_run("FINISHED")
    found = run.metric_history("a")
    assert np.array_equal(found["value"], values)
    assert np.array_equal(found["step"], np.arange(1_000_000))
    assert len(run.metric_history()) == 1_040_000
    assert run.list_metrics() == {"a": values[-1], "b": 19_999, "c": -19_999}
    longest = max(len(line) for path in journals(run) for line in path.read_bytes().splitlines())
    assert longest < 500_000, "a damaged line costs thousands of values, not all"


# --- reading ---------------------------------------------------------------------------------


def written_by_the_first_release(path: Path, count: int) -> None:
    """Write a journal as version 1 had it: a line per call, times as decimals."""
    writer = JournalWriter(path)
    for step in range(count):
        writer.append(f'[{1_700_000_000 + step}.000001,{step},{{"a":{step}.5}}]\n'.encode())
    writer.close()
    path.write_bytes(path.read_bytes().replace(b"qwf-journal/2", b"qwf-journal/1"))


def test_journals_of_both_versions_are_read_together(run: Recorder) -> None:
    run.log_metric_history({"a": [10.0, 11.0]}, steps=[10, 11])
    written_by_the_first_release(directory(run) / "metrics.old-1-1.journal", 3)
    found = run.metric_history("a")
    assert logged(found) == [
        ("a", 0, 0.5),
        ("a", 1, 1.5),
        ("a", 2, 2.5),
        ("a", 10, 10),
        ("a", 11, 11),
    ]
    assert str(found["time"].iloc[1]) == "2023-11-14 22:13:21.000001+00:00"
    assert run.list_metrics() == {"a": 11}


@pytest.mark.parametrize(
    "entry",
    [
        b"1",
        b"[]",
        b'[1.0,2]',
        b'[1.0,2,3]',
        b'["x",2,{"a":1}]',
        b'[1.0,2,{"a":"x"}]',
        b'[[1],[2],{"a":[1,2]}]',
        b'[[1,1],[2],{"a":[1]}]',
        b'[[],[],{}]',
        b'[[1],[2],{"a":["x"]}]',
        b'[[1],[2],[1]]',
        b'[[1],["x"],{"a":[1]}]',
    ],
)  # fmt: skip
def test_an_entry_that_is_none_of_metrics_is_damage(run: Recorder, entry: bytes) -> None:
    writer = JournalWriter(directory(run) / "metrics.odd-1-1.journal")
    writer.append(entry + b"\n")
    writer.close()
    with pytest.raises(CorruptRecordError):
        run.metric_history()


def test_the_history_of_many_recorders_is_one_frame(tmp_path: Path) -> None:
    experiment = ExpManager(tmp_path / "store").get_exp(experiment_name="e")
    runs = [experiment.create_recorder().start_run() for _ in range(3)]
    runs[0].log_metric_history({"a": [1, 2], "b": [3, 4]})
    runs[2].log_metrics(step=7, a=5)
    directories = {str(run.id): directory(run) for run in runs}
    found = histories(directories, ["a"])
    assert list(found) == ["recorder_id", *history(directory(runs[0]))]
    assert found["recorder_id"].tolist() == [runs[0].id, runs[0].id, runs[2].id]
    assert logged(found) == [("a", 0, 1), ("a", 1, 2), ("a", 7, 5)]
    assert found.dtypes.astype(str).to_dict() == histories({}).dtypes.astype(str).to_dict()
    assert len(histories(directories)) == 5


# --- anything in any order -------------------------------------------------------------------

NUMBERS = st.one_of(st.floats(), st.integers(-9, 9).map(float))
KEYS = st.sampled_from(["a", "b", "a b"])


class Logging(RuleBasedStateMachine):
    """What is logged, against a list of it; disks fail and processes die in between."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.place = Path(self.folder.name)
        self.log = MetricLog(self.place)
        self.model: list[tuple[str, int, float]] = []
        self.safe = 0  # so many of them are on disk for sure
        self.patch = pytest.MonkeyPatch()
        self.full = False

    @rule(metrics=st.dictionaries(KEYS, NUMBERS, min_size=1), step=st.integers(-2, 4))
    def log_one(self, metrics: dict[str, float], step: int) -> None:
        self.log.append(dict(metrics), step)
        self.model += [(key, step, value) for key, value in metrics.items()]

    @rule(rows=st.lists(st.tuples(st.integers(-2, 4), NUMBERS, NUMBERS), min_size=1, max_size=5))
    def log_many(self, rows: list[tuple[int, float, float]]) -> None:
        steps, a, b = map(list, zip(*rows, strict=True))
        self.log.extend(steps, {"a": a, "c": b})
        for step, one, other in rows:
            self.model += [("a", step, one), ("c", step, other)]

    @rule()
    def flush(self) -> None:
        if self.log.flush() is None:
            self.safe = len(self.model)

    @rule()
    def close(self) -> None:
        with contextlib.suppress(OSError):
            if self.log.close() is None:
                self.safe = len(self.model)

    @rule(part=st.sampled_from([0.0, 0.3, 0.9]))
    def fill_the_disk(self, part: float) -> None:
        begun: dict[int, bool] = {}

        def write(descriptor: int, data: Any) -> int:
            if begun.setdefault(descriptor, False) or part == 0:
                raise FULL
            begun[descriptor] = True
            return os.write(descriptor, data[: max(1, int(len(data) * part))])

        self.patch.setattr("qwf.storage.fsio.os", FaultyOs(write=write))
        self.full = True

    @rule()
    def free_the_disk(self) -> None:
        self.patch.undo()
        self.full = False

    @rule()
    def crash(self) -> None:
        """Go on as another process, after this one was killed."""
        left = on_disk(self.place)
        assert len(left) >= self.safe
        assert repr(left) == repr(self.model[: len(left)])
        self.model = self.model[: len(left)]
        self.safe = len(left)
        metric_log._waiting.discard(self.log)
        pulse.unwatch(self.log)
        self.log._begin()
        self.log = MetricLog(self.place)

    @invariant()
    def is_read_as_it_was_logged(self) -> None:
        if not hasattr(self, "log"):
            return
        assert repr(logged(history(self.place))) == repr(self.model)
        newest: dict[str, tuple[int, float]] = {}
        for key, step, value in self.model:
            if key not in newest or step >= newest[key][0]:
                newest[key] = step, value
        expected = {key: value for key, (_, value) in newest.items()}
        for points in (current(self.place), self.log.summary()):
            assert repr({key: points[key].value for key in expected}) == repr(expected)
            assert points.keys() == expected.keys()

    def teardown(self) -> None:
        if hasattr(self, "log"):
            self.patch.undo()
            self.log.close()
            assert repr(on_disk(self.place)) == repr(self.model)
            self.folder.cleanup()


TestLogging = Logging.TestCase
