"""Metrics: what is logged is there, whoever logs it, whenever it is read."""

from __future__ import annotations

import errno
import math
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Children, FaultyOs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwf import R
from qwf.errors import CorruptRecordError, UnsafeNameError
from qwf.tracking.recorder import Recorder


@pytest.fixture
def recorder(store: Path) -> Iterator[Recorder]:
    with R.start(experiment_name="e"):
        yield R.get_recorder()


def ended_run() -> Recorder:
    with R.start(experiment_name="e"):
        return R.get_recorder()


@pytest.mark.parametrize(
    "number",
    [
        1,
        2.5,
        True,
        np.float32(0.1),
        np.float64(0.1),
        np.int8(-3),
        np.bool_(True),
        Decimal("0.1"),
        Fraction(1, 3),
        5e-324,
        1.7976931348623157e308,
        10**300,
        -0.0,
    ],
)
def test_a_number_of_any_kind_is_logged_as_its_float(recorder: Recorder, number: Any) -> None:
    recorder.log_metrics(m=number)
    assert recorder.list_metrics() == {"m": float(number)}
    assert math.copysign(1, recorder.list_metrics()["m"]) == math.copysign(1, float(number))


@pytest.mark.parametrize("value", ["1.5", b"1", None, 1j, [1.0], {}, pd.NA, object()])
def test_what_is_no_number_is_refused_with_its_name(recorder: Recorder, value: Any) -> None:
    with pytest.raises(TypeError, match=r"'bad'.*Nothing was logged"):
        recorder.log_metrics(good=1, bad=value)
    assert recorder.list_metrics() == {}
    recorder.log_metrics(good=2)
    assert recorder.list_metrics() == {"good": 2.0}


def test_a_number_too_large_for_a_float_is_refused_with_its_name(recorder: Recorder) -> None:
    with pytest.raises(TypeError, match=r"'bad'.*Nothing was logged"):
        recorder.log_metrics(good=1, bad=10**400)
    assert recorder.list_metrics() == {}


def test_an_empty_name_is_refused(recorder: Recorder) -> None:
    with pytest.raises(UnsafeNameError, match="a metric"):
        recorder.log_metrics(**{"": 1.0})
    assert recorder.list_metrics() == {}


@pytest.mark.parametrize(
    "name",
    ["self", "Rank IC", "loss/train", "../m", "l2.valid", "收益", "a" * 5000, "\n", '"', "\ud800"],
)
def test_a_metric_may_have_any_other_name(recorder: Recorder, name: str) -> None:
    recorder.log_metrics(**{name: 1.0})
    assert recorder.list_metrics() == {name: 1.0}
    recorder.end_run("FINISHED")
    assert recorder.list_metrics() == {name: 1.0}


def test_nothing_given_logs_nothing(recorder: Recorder) -> None:
    recorder.log_metrics()
    recorder.log_metrics(step=3)
    assert recorder.list_metrics() == {}
    assert recorder.metric_history().empty


def test_the_step_none_is_zero_and_steps_may_be_negative(recorder: Recorder) -> None:
    recorder.log_metrics(step=-2, m=1)
    assert recorder.list_metrics() == {"m": 1.0}
    recorder.log_metrics(m=2)
    recorder.log_metrics(step=-1, m=3)
    assert recorder.list_metrics() == {"m": 2.0}
    assert list(recorder.metric_history("m")["step"]) == [-2, 0, -1]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b"]),
            st.integers(-3, 3),
            st.floats(allow_nan=False),
        ),
        max_size=12,
    )
)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_last_logged_value_of_the_highest_step_is_the_metric(
    store: Path, logged: list[tuple[str, int, float]]
) -> None:
    expected: dict[str, tuple[int, float]] = {}
    with R.start(experiment_name="e"):
        for key, step, value in logged:
            R.log_metrics(step=step, **{key: value})
            if key not in expected or step >= expected[key][0]:
                expected[key] = step, value
        recorder = R.get_recorder()
        values = {key: value for key, (_, value) in expected.items()}
        assert recorder.list_metrics() == values
    assert recorder.list_metrics() == values
    history = recorder.metric_history()
    assert list(zip(history["key"], history["step"], history["value"], strict=True)) == logged


def test_the_history_has_types_also_when_it_is_empty(recorder: Recorder) -> None:
    for _ in range(2):
        history = recorder.metric_history()
        assert list(history) == ["key", "step", "time", "value"]
        assert str(history["step"].dtype) == "int64"
        assert str(history["value"].dtype) == "float64"
        assert str(history["time"].dtype) == "datetime64[ns, UTC]"
        recorder.log_metrics(m=1)
    elapsed = pd.Timestamp.now("UTC") - recorder.metric_history()["time"].iloc[-1]
    assert pd.Timedelta(0) <= elapsed + pd.Timedelta("1us") < pd.Timedelta("60s")


def test_the_history_can_be_asked_for_some_metrics(recorder: Recorder) -> None:
    recorder.log_metrics(a=1, b=2, c=3)
    assert sorted(recorder.metric_history("a", "c")["key"]) == ["a", "c"]
    assert recorder.metric_history("unknown").empty


def test_metrics_are_readable_by_others_while_the_run_goes_on(recorder: Recorder) -> None:
    other = R.get_recorder(recorder_id=recorder.id)
    for number in range(3):
        recorder.log_metrics(m=number, step=number)
        assert other.list_metrics() == {"m": float(number)}


def test_a_run_without_metrics_has_no_journal(recorder: Recorder) -> None:
    recorder.log_params(a=1)
    recorder.end_run("FINISHED")
    assert not list(Path(recorder.get_local_dir()).glob("metrics*"))


@pytest.mark.parametrize("status", ["SCHEDULED", "FINISHED", "FAILED"])
def test_a_metric_logged_after_the_end_is_listed_and_changes_no_status(
    store: Path, status: str
) -> None:
    R.start_exp(experiment_name="e")
    R.log_metrics(before=1)
    recorder = R.get_recorder()
    R.end_exp(status)
    recorder.log_metrics(late=2)
    expected = {"before": 1.0, "late": 2.0}
    assert (recorder.list_metrics(), recorder.status) == (expected, status)
    again = R.get_recorder(experiment_name="e", recorder_id=recorder.id)
    assert (again.list_metrics(), again.status) == (expected, status)


def test_a_metric_logged_through_an_object_found_before_the_end_is_listed(store: Path) -> None:
    with R.start(experiment_name="e"):
        R.log_metrics(m=1)
        found_before = R.get_recorder(recorder_id=R.get_recorder().id)
    found_before.log_metrics(late=2)
    assert found_before.list_metrics() == {"m": 1.0, "late": 2.0}


def test_metrics_of_a_resumed_run_go_on(store: Path) -> None:
    with R.start(experiment_name="e"):
        R.log_metrics(m=1, n=1, step=1)
    with R.start(experiment_name="e", resume=True):
        R.log_metrics(m=2, step=2)
        recorder = R.get_recorder()
        assert recorder.list_metrics() == {"m": 2.0, "n": 1.0}
    assert recorder.list_metrics() == {"m": 2.0, "n": 1.0}
    assert list(recorder.metric_history("m")["value"]) == [1.0, 2.0]


def test_threads_may_log_into_one_recorder(recorder: Recorder) -> None:
    def log(number: int) -> None:
        for step in range(50):
            recorder.log_metrics(step=step, **{f"m{number}": step})

    threads = [threading.Thread(target=log, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    history = recorder.metric_history()
    assert len(history) == 200
    assert recorder.list_metrics() == {f"m{number}": 49.0 for number in range(4)}


def test_forked_processes_may_log_into_one_recorder(recorder: Recorder, children: Children) -> None:
    recorder.log_metrics(parent=1)

    def log(number: int) -> None:
        for step in range(50):
            recorder.log_metrics(step=step, **{f"m{number}": step})

    for number in range(3):
        children.add(lambda number=number: log(number))
    assert children.exit_codes() == [0, 0, 0]
    recorder.log_metrics(parent=2)
    recorder.end_run("FINISHED")
    assert len(recorder.metric_history()) == 152
    assert recorder.list_metrics() == {"m0": 49.0, "m1": 49.0, "m2": 49.0, "parent": 2.0}


def test_a_pickled_recorder_logs_where_it_was(recorder: Recorder) -> None:
    again = pickle.loads(pickle.dumps(recorder))
    again.log_metrics(m=1)
    assert recorder.list_metrics() == {"m": 1.0}


def test_a_torn_last_line_is_passed_over(recorder: Recorder) -> None:
    recorder.log_metrics(m=1)
    (journal,) = Path(recorder.get_local_dir()).glob("metrics*")
    whole = journal.read_bytes()
    for cut in range(len(whole)):
        journal.write_bytes(whole[:cut])
        assert recorder.list_metrics() == {}
    journal.write_bytes(whole)
    assert recorder.list_metrics() == {"m": 1.0}


def test_a_changed_line_is_damage(store: Path) -> None:
    R.start_exp(experiment_name="e")
    R.log_metrics(m=1)
    R.log_metrics(m=2)
    recorder = R.get_recorder()
    R.end_exp("SCHEDULED")
    (journal,) = Path(recorder.get_local_dir()).glob("metrics*")
    journal.write_bytes(journal.read_bytes().replace(b'"m":1', b'"m":7'))
    with pytest.raises(CorruptRecordError, match="line 2 does not match its checksum"):
        recorder.list_metrics()


def test_a_full_disk_in_the_middle_of_a_line_costs_nothing(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder.log_metrics(m=1, step=1)

    def half(descriptor: int, data: memoryview) -> int:
        if len(data) > 10:
            return os.write(descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("qwf.storage.fsio.os", FaultyOs(write=half))
        recorder.log_metric_history({"m": [2.0]}, steps=[2])
    recorder.log_metrics(m=3, step=3)
    assert list(recorder.metric_history()["value"]) == [1.0, 2.0, 3.0]
    recorder.end_run("FINISHED")
    assert recorder.list_metrics() == {"m": 3.0}


def test_a_full_disk_at_the_first_metric_costs_nothing(
    recorder: Recorder, os_fails: Callable[..., Any]
) -> None:
    with os_fails(OSError(errno.ENOSPC, "full"), "write"):
        recorder.log_metrics(m=1)
    recorder.log_metrics(n=2)
    assert recorder.list_metrics() == {"m": 1.0, "n": 2.0}
    assert len(list(Path(recorder.get_local_dir()).glob("metrics*"))) == 1


def test_metrics_of_an_unstarted_recorder_are_refused(store: Path) -> None:
    recorder = R.get_exp(experiment_name="e").create_recorder()
    with pytest.raises(ValueError, match="never started"):
        recorder.log_metrics(m=1)


@pytest.mark.parametrize("step", [2**70, 1.5, "a", float("nan")])
def test_a_step_that_is_no_whole_number_is_refused_and_logging_goes_on(
    store: Path, step: Any
) -> None:
    with R.start(experiment_name="e"):
        with pytest.raises(TypeError, match=r"step is .*Nothing was logged"):
            R.log_metrics(step=step, m=1)
        R.log_metrics(step=3.0, m=2)
        recorder = R.get_recorder()
    assert recorder.metric_history()["step"].tolist() == [3]
