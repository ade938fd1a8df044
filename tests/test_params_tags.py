"""Params and tags: any value, any length, read back as text, never lost."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwf import R
from qwf.errors import RecorderStateError
from qwf.tracking.recorder import Recorder

AUTOMATIC = "cmd-sys.argv"


@pytest.fixture
def recorder(store: Path) -> Iterator[Recorder]:
    with R.start(experiment_name="e"):
        yield R.get_recorder()


def params_of(recorder: Recorder) -> dict[str, str]:
    return {key: text for key, text in recorder.list_params().items() if key != AUTOMATIC}


class Opaque:
    def __str__(self) -> str:
        return "opaque"


@pytest.mark.parametrize(
    "value",
    [
        0,
        -1.5,
        1e-3,
        "",
        "text",
        None,
        True,
        (1, 2),
        [1, [2]],
        {"a": {"b": 1}},
        {1: 2},
        {"$tuple": 1},
        {"$new": 1},
        float("inf"),
        10**3000,
        "x" * 100_000,
        "第一",
        "\ud800",
        "a\0b",
        datetime.date(2020, 1, 2),
        datetime.datetime(2020, 1, 2, 3, 4, 5, 6),
        pd.Timestamp("2020-01-02"),
        pd.Timestamp("2020-01-02", tz="Asia/Shanghai"),
        pd.NaT,
        np.float32(0.1),
        np.int64(7),
        np.array([1, 2]),
        {1, 2},
        b"bytes",
        Path("a/b"),
        int,
        Opaque(),
    ],
    ids=lambda value: f"{type(value).__name__}-{str(value)[:20]!a}",
)
def test_a_param_reads_back_as_its_text(recorder: Recorder, value: Any) -> None:
    recorder.log_params(p=value)
    assert params_of(recorder) == {"p": str(value)}
    recorder.end_run("FINISHED")
    assert params_of(R.get_recorder(recorder_id=recorder.id)) == {"p": str(value)}


@pytest.mark.parametrize("name", ["", "self", "a.b/c d", "参数", "$x", "x" * 1000, "a\nb"])
def test_params_and_tags_may_have_any_name(recorder: Recorder, name: str) -> None:
    recorder.log_params(**{name: 1})
    recorder.set_tags(**{name: 2})
    assert params_of(recorder) == {name: "1"}
    assert recorder.list_tags() == {name: "2"}


def test_the_command_line_is_a_param(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--lr", "0.1"])
    monkeypatch.setenv("_QLIB_SEED", "7")
    with R.start(experiment_name="e"):
        params = R.get_recorder().list_params()
    assert params == {"cmd-sys.argv": "train.py --lr 0.1", "_QLIB_SEED": "7"}


def test_another_value_replaces_a_param_with_a_warning(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.log_params(a=1, b=2)
    recorder.log_params(a=1)
    assert caplog.records == []
    recorder.log_params(a=3, c=4)
    assert params_of(recorder) == {"a": "3", "b": "2", "c": "4"}
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "['a']" in record.getMessage()


def test_a_nan_logged_twice_is_the_same_value(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.log_params(a=float("nan"))
    recorder.log_params(a=float("nan"))
    assert caplog.records == []


def test_tags_are_overwritten_and_deleted(recorder: Recorder) -> None:
    recorder.set_tags(a=1, b=2, c=3)
    recorder.set_tags(a="new")
    recorder.delete_tags("b", "c")
    assert recorder.list_tags() == {"a": "new"}
    with pytest.raises(RecorderStateError, match=r"\['b'\].*\['a'\].*Nothing was deleted"):
        recorder.delete_tags("a", "b")
    assert recorder.list_tags() == {"a": "new"}
    recorder.delete_tags()
    assert recorder.list_tags() == {"a": "new"}


def test_what_is_returned_is_a_copy(recorder: Recorder) -> None:
    recorder.set_tags(a=1)
    recorder.list_tags()["a"] = "changed"
    recorder.list_params()["a"] = "changed"
    assert recorder.list_tags() == {"a": "1"}
    assert params_of(recorder) == {}


def test_params_and_tags_can_be_set_after_the_end(store: Path) -> None:
    with R.start(experiment_name="e"):
        recorder = R.get_recorder()
    recorder.log_params(late=1)
    recorder.set_tags(late=2)
    assert recorder.status == "FINISHED"
    assert (params_of(recorder), recorder.list_tags()) == ({"late": "1"}, {"late": "2"})


def test_an_unstarted_recorder_takes_none(store: Path) -> None:
    recorder = R.get_exp(experiment_name="e").create_recorder()
    for call in (recorder.log_params, recorder.set_tags):
        with pytest.raises(ValueError, match="never started"):
            call(a=1)


def test_nothing_given_writes_nothing(recorder: Recorder) -> None:
    file = Path(recorder.get_local_dir(), "recorder.json")
    before = file.read_bytes()
    recorder.log_params()
    recorder.set_tags()
    assert file.read_bytes() == before


def test_fields_of_a_newer_release_are_kept(recorder: Recorder) -> None:
    file = Path(recorder.get_local_dir(), "recorder.json")
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, "mood": {"of": "tomorrow"}}))
    recorder.set_tags(a=1)
    recorder.save_objects(x=1)
    recorder.end_run("FINISHED")
    assert json.loads(file.read_text())["mood"] == {"of": "tomorrow"}


def test_a_deleted_recorder_cannot_be_changed_and_does_not_come_back(store: Path) -> None:
    with R.start(experiment_name="e") as experiment:
        recorder = R.get_recorder()
    experiment.delete_recorder(recorder.id)
    for call in (
        lambda: recorder.set_tags(a=1),
        lambda: recorder.save_objects(x=1),
        lambda: recorder.list_tags(),
        lambda: recorder.end_run("FINISHED"),
    ):
        with pytest.raises(ValueError, match=recorder.id):
            call()
    assert not Path(recorder.get_local_dir()).exists()


def test_a_late_writer_does_not_block_the_name_of_a_deleted_experiment(store: Path) -> None:
    with R.start(experiment_name="e"):
        recorder = R.get_recorder()
    R.delete_exp(experiment_name="e")
    with pytest.raises(ValueError, match=recorder.id):
        recorder.set_tags(a=1)
    with R.start(experiment_name="e"):
        again = R.get_recorder()
    assert list(R.list_recorders(experiment_name="e")) == [again.id]


texts = st.text(max_size=8)


@given(st.lists(st.dictionaries(texts, texts, max_size=3), max_size=5))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tags_are_a_dict(store: Path, updates: list[dict[str, str]]) -> None:
    expected: dict[str, str] = {}
    with R.start(experiment_name="e"):
        for update in updates:
            R.set_tags(**update)
            expected |= update
        assert R.get_recorder().list_tags() == expected


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(texts, inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(texts, plain, max_size=4))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_params_are_the_text_of_what_was_logged(store: Path, params: dict[str, Any]) -> None:
    with R.start(experiment_name="e"):
        R.log_params(**params)
        logged = R.get_recorder().list_params()
    logged.pop(AUTOMATIC)
    assert logged == {key: str(value) for key, value in params.items()}
