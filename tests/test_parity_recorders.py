"""What Qlib's documentation promises of experiments and recorders, one test per promise.

The numbers are those of the list of behaviours that qwf was built to. Where Qlib's code does not
keep its promise, the promise is tested.
"""

from __future__ import annotations

import math
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import Children

import qwf
from qwf import R
from qwf.errors import (
    ExperimentNotFoundError,
    LoadObjectError,
    MissingArgumentError,
    NotInitializedError,
    RecorderInitializationError,
    RecorderNotFoundError,
    UnknownStatusError,
    UnsafeNameError,
)
from qwf.tracking.recorder import Recorder

LOCAL_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")


def new_run(experiment: str, recorder: str | None = None, **params: Any) -> Recorder:
    with R.start(experiment_name=experiment, recorder_name=recorder):
        if params:
            R.log_params(**params)
        return R.get_recorder()


def running() -> list[str]:
    return [
        recorder.id
        for experiment in R.list_experiments().values()
        for recorder in experiment.list_recorders(rtype="list", status=Recorder.STATUS_R)
    ]


def test_check_01_r_before_init_raises_and_after_init_has_a_repr(
    run_script: Callable[..., Any], tmp_path: Path
) -> None:
    result = run_script(
        """
        import qwf
        from qwf import R
        from qwf.errors import NotInitializedError
        try:
            R.get_uri()
        except AttributeError as error:
            print(type(error).__name__, error)
        qwf.init(uri="here")
        print(repr(R))
        """
    )
    first, second = result.stdout.splitlines()
    assert first.startswith("NotInitializedError")
    assert "qwf.init" in first
    assert second == "QlibRecorder(manager=ExpManager(uri='here'))"
    assert not (tmp_path / "here").exists()  # a repr creates nothing


def test_check_01_every_member_of_r_says_that_init_is_missing(
    settings_restored: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("QWF_URI", raising=False)
    monkeypatch.setattr(qwf.C, "registered", False)
    calls: list[Callable[[], Any]] = [
        lambda: R.start().__enter__(),
        R.start_exp,
        R.end_exp,
        R.get_uri,
        R.list_experiments,
        R.get_recorder,
        lambda: R.log_params(a=1),
        lambda: R.save_objects(a=1),
    ]
    for call in calls:
        with pytest.raises(NotInitializedError, match=r"qwf.init"):
            call()


def test_check_01_a_store_named_by_the_environment_needs_no_init(
    settings_restored: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(qwf.C, "registered", False)
    monkeypatch.setattr(qwf.C, "_values", {})
    monkeypatch.setenv("QWF_URI", str(tmp_path / "named"))
    assert R.get_uri() == str(tmp_path / "named")


def test_check_02_a_block_is_a_run_that_ends_finished(store: Path) -> None:
    with R.start(experiment_name="e") as experiment:
        recorder = experiment.active_recorder
        assert (experiment.name, recorder.status) == ("e", "RUNNING")
        assert recorder.end_time is None
    assert recorder.status == "FINISHED"
    assert LOCAL_TIME.fullmatch(recorder.end_time)
    assert LOCAL_TIME.fullmatch(recorder.start_time)
    read = R.get_recorder(experiment_name="e", recorder_id=recorder.id)
    assert (read.status, read.end_time) == ("FINISHED", recorder.end_time)
    assert experiment.active_recorder is None


def test_check_02_an_exception_ends_the_run_failed_and_is_passed_on(store: Path) -> None:
    with pytest.raises(ZeroDivisionError), R.start(experiment_name="e"):  # noqa: PT012
        recorder = R.get_recorder()
        1 / 0  # noqa: B018
    read = R.get_recorder(experiment_name="e", recorder_id=recorder.id)
    assert (recorder.status, read.status) == ("FAILED", "FAILED")
    assert read.end_time is not None


def test_check_03_return_from_inside_the_block_ends_finished(store: Path) -> None:
    recorder = new_run("e")
    assert R.get_recorder(experiment_name="e", recorder_id=recorder.id).status == "FINISHED"


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_check_04_an_interrupt_inside_the_block_leaves_nothing_active(
    store: Path, kind: type[BaseException]
) -> None:
    with pytest.raises(kind), R.start(experiment_name="e"):  # noqa: PT012
        recorder = R.get_recorder()
        raise kind
    assert R.exp_manager.active_experiment is None
    assert R.get_recorder(experiment_name="e", recorder_id=recorder.id).status == "FAILED"


def test_check_05_get_exp_inside_a_block_returns_the_very_active_object(store: Path) -> None:
    with R.start(experiment_name="e") as experiment:
        assert R.get_exp() is experiment
        assert R.get_exp(experiment_name="e") is experiment
        assert R.get_exp(experiment_id=experiment.id) is experiment
        assert R.get_recorder() is experiment.active_recorder


def test_check_05_get_exp_outside_creates_the_default_one_without_activating_it(
    store: Path,
) -> None:
    experiment = R.get_exp()
    assert experiment.name == "Experiment"
    assert list(R.list_experiments()) == ["Experiment"]
    assert R.exp_manager.active_experiment is None
    assert experiment.list_recorders() == {}


def test_check_06_an_unknown_experiment_is_a_value_error(store: Path) -> None:
    for wanted in ({"experiment_name": "x"}, {"experiment_id": "x"}):
        with pytest.raises(ValueError, match="'x'"):
            R.get_exp(**wanted, create=False)
    assert not store.exists()


def test_check_07_an_id_wins_over_a_name(store: Path) -> None:
    one, other = R.get_exp(experiment_name="one"), R.get_exp(experiment_name="other")
    found = R.get_exp(experiment_id=one.id, experiment_name=other.name)
    assert (found.id, found.name) == (one.id, "one")


def test_check_07_start_activates_only_when_nothing_is_active(store: Path) -> None:
    experiment = R.get_exp(experiment_name="x", start=True)
    assert R.exp_manager.active_experiment is experiment
    assert experiment.active_recorder.status == "RUNNING"
    other = R.get_exp(experiment_name="y", start=True)
    assert other.active_recorder is None
    assert R.exp_manager.active_experiment is experiment
    assert R.list_recorders(experiment_name="y") == {}
    R.end_exp()


def test_check_08_get_recorder_outside_any_run_is_the_newest_default_named_one(
    store: Path,
) -> None:
    new_run("Experiment")
    newest = new_run("Experiment")
    new_run("Experiment", "custom")
    new_run("another")
    found = R.get_recorder()
    assert (found.id, found.name) == (newest.id, "mlflow_recorder")


def test_check_08_get_recorder_outside_any_run_raises_when_there_is_none(store: Path) -> None:
    with pytest.raises(ExperimentNotFoundError):
        R.get_recorder()
    R.get_exp()
    with pytest.raises(RecorderNotFoundError, match="mlflow_recorder"):
        R.get_recorder()


def test_check_09_of_two_recorders_with_one_name_the_newest_is_meant(store: Path) -> None:
    new_run("e", "twin")
    newest = new_run("e", "twin")
    new_run("e", "other")
    assert R.get_recorder(experiment_name="e", recorder_name="twin").id == newest.id


def test_check_10_only_custom_named_recorders_are_not_found_without_a_name(store: Path) -> None:
    new_run("e", "custom")
    with pytest.raises(ValueError, match=r"mlflow_recorder.*'custom'"):
        R.get_recorder(experiment_name="e")


def test_check_11_recorders_are_listed_newest_first(store: Path) -> None:
    made = [new_run("e", f"r{number}").id for number in range(5)]
    experiment = R.get_exp(experiment_name="e")
    listed = experiment.list_recorders()
    assert isinstance(listed, dict)
    assert list(listed) == made[::-1]
    assert [recorder.id for recorder in listed.values()] == made[::-1]
    assert list(R.list_recorders(experiment_name="e")) == made[::-1]


def test_check_11_recorders_are_listed_as_a_list_on_request(store: Path) -> None:
    made = [new_run("e").id for _ in range(2)]
    experiment = R.get_exp(experiment_name="e")
    for listed in (
        experiment.list_recorders("list"),
        experiment.list_recorders(rtype=experiment.RT_L),
    ):
        assert [recorder.id for recorder in listed] == made[::-1]
    with pytest.raises(NotImplementedError, match="'tuple'"):
        experiment.list_recorders(rtype="tuple")


def test_check_12_max_results_counts_after_the_filter_of_status(store: Path) -> None:
    old = new_run("e")
    finished = new_run("e")
    with pytest.raises(RuntimeError), R.start(experiment_name="e"):
        raise RuntimeError
    experiment = R.get_exp(experiment_name="e")
    assert list(experiment.list_recorders(max_results=1, status="FINISHED")) == [finished.id]
    assert list(experiment.list_recorders(status="FINISHED")) == [finished.id, old.id]
    assert len(experiment.list_recorders(max_results=2)) == 2
    assert len(experiment.list_recorders(max_results=50000)) == 3


def test_check_13_resume_by_id_keeps_what_there_was(store: Path) -> None:
    with R.start(experiment_name="e", recorder_name="mine"):
        recorder = R.get_recorder()
        R.log_params(a=1)
        R.set_tags(b=2)
        R.log_metrics(loss=0.5, step=1)
        R.save_objects(c=3)
    newer = new_run("e")
    with R.start(experiment_name="e", recorder_id=recorder.id, resume=True):
        again = R.get_recorder()
        assert (again.id, again.name, again.status) == (recorder.id, "mine", "RUNNING")
        assert again.end_time is None
        assert R.get_recorder(recorder_id=recorder.id).status == "RUNNING"
        R.log_metrics(loss=0.25, step=2)
    read = R.get_recorder(experiment_name="e", recorder_id=recorder.id)
    assert read.status == "FINISHED"
    assert read.start_time == recorder.start_time
    assert read.list_params()["a"] == "1"
    assert read.list_tags()["b"] == "2"
    assert read.load_object("c") == 3
    assert read.list_metrics() == {"loss": 0.25}
    assert list(R.list_recorders(experiment_name="e")) == [newer.id, recorder.id]


def test_check_14_resume_by_name_takes_the_newest_of_that_name(store: Path) -> None:
    new_run("e", "twin")
    newest = new_run("e", "twin")
    default = new_run("e")
    with R.start(experiment_name="e", recorder_name="twin", resume=True):
        assert R.get_recorder().id == newest.id
    with R.start(experiment_name="e", resume=True):
        assert R.get_recorder().id == default.id


def test_check_14_resume_without_any_of_the_name_makes_one(store: Path) -> None:
    with R.start(experiment_name="e", resume=True):
        assert R.get_recorder().name == "mlflow_recorder"
    with R.start(experiment_name="e", recorder_name="new", resume=True):
        assert R.get_recorder().name == "new"
    assert len(R.list_recorders(experiment_name="e")) == 2


def test_check_15_a_resume_by_a_process_with_other_arguments_logs_everything(
    store: Path, run_script: Callable[..., Any]
) -> None:
    recorder = new_run("e", before=1)
    result = run_script(
        """
        import sys, qwf
        from qwf import R
        qwf.init(uri=sys.argv[1])
        with R.start(experiment_name="e", recorder_id=sys.argv[2], resume=True):
            R.log_params(after=2)
            R.log_metrics(m=0.5)
            R.set_tags(t="x")
        """,
        store,
        recorder.id,
        "--quite-another-command-line",
    )
    assert result.returncode == 0, result.stderr
    assert (recorder.list_params()["before"], recorder.list_params()["after"]) == ("1", "2")
    assert recorder.list_metrics() == {"m": 0.5}
    assert recorder.list_tags() == {"t": "x"}
    assert recorder.status == "FINISHED"


def test_check_16_a_bad_log_call_raises_and_later_calls_work(store: Path) -> None:
    with R.start(experiment_name="e"):
        with pytest.raises(TypeError, match=r"'m'.*'many'"):
            R.log_metrics(m="many")
        R.log_params(a=1)
        R.log_metrics(m=1.0)
        R.set_tags(t=1)
        recorder = R.get_recorder()
    assert recorder.status == "FINISHED"
    assert recorder.list_metrics() == {"m": 1.0}
    assert recorder.list_params()["a"] == "1"
    assert recorder.list_tags() == {"t": "1"}


def test_check_17_logging_with_nothing_active_starts_the_default_run(store: Path) -> None:
    R.log_params(a=1)
    active = R.exp_manager.active_experiment
    assert active.name == "Experiment"
    recorder = R.get_recorder()
    R.log_metrics(m=2)
    R.set_tags(t=3)
    assert R.get_recorder() is recorder
    assert recorder.status == "RUNNING"
    assert recorder.list_params()["a"] == "1"
    R.end_exp()
    assert R.exp_manager.active_experiment is None
    assert R.get_recorder().id == recorder.id
    assert R.get_recorder().status == "FINISHED"
    assert recorder.list_metrics() == {"m": 2.0}


def test_check_17_a_new_default_run_never_writes_into_an_old_one(store: Path) -> None:
    old = new_run("Experiment")
    R.log_params(a=1)
    recorder = R.get_recorder()
    R.end_exp()
    assert recorder.id != old.id
    assert "a" not in old.list_params()


def test_check_18_saving_with_nothing_active_leaves_nothing_running(store: Path) -> None:
    old = new_run("Experiment")
    R.save_objects(x=1)
    assert R.exp_manager.active_experiment is None
    assert running() == []
    with R.start(experiment_name="e"):
        R.log_params(a=1)
    found = R.get_recorder()
    assert found.id != old.id
    assert (found.status, found.load_object("x")) == ("FINISHED", 1)
    assert R.load_object("x") == 1
    assert old.list_artifacts() == []


def test_check_18_a_refused_save_with_nothing_active_starts_no_run(
    store: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="either"):
        R.save_objects(local_path=tmp_path, x=1)
    with pytest.raises(ValueError, match="either"):
        R.save_objects()
    assert not store.exists()


def test_check_19_ending_with_nothing_active_does_nothing(store: Path) -> None:
    R.end_exp()
    R.end_exp("no status at all")
    assert not store.exists()


def test_check_19_an_unknown_status_is_refused_and_the_run_goes_on(store: Path) -> None:
    with R.start(experiment_name="e", uri=store.with_name("other")):
        with pytest.raises(AssertionError, match="'DONE'"):
            R.end_exp("DONE")
        assert R.exp_manager.active_experiment.name == "e"
        assert R.get_uri() == str(store.with_name("other"))
        R.log_params(a=1)
        recorder = R.get_recorder()
    assert (recorder.status, recorder.list_params()["a"]) == ("FINISHED", "1")
    with pytest.raises(UnknownStatusError):
        recorder.end_run("DONE")
    assert recorder.status == "FINISHED"


def test_check_20_nested_runs_are_a_stack(store: Path) -> None:
    with R.start(experiment_name="outer") as outer:
        R.log_params(where="outer")
        first = R.get_recorder()
        with R.start(experiment_name="inner") as inner:
            assert R.get_exp() is inner
            R.log_params(where="inner")
            second = R.get_recorder()
        assert R.get_exp() is outer
        assert (first.status, second.status) == ("RUNNING", "FINISHED")
        R.log_params(again="outer")
    assert first.status == "FINISHED"
    assert first.list_params()["where"] == "outer"
    assert first.list_params()["again"] == "outer"
    assert second.list_params()["where"] == "inner"
    assert "again" not in second.list_params()


def test_check_20_a_failed_inner_run_leaves_the_outer_one_as_it_was(store: Path) -> None:
    with R.start(experiment_name="outer"):
        outer = R.get_recorder()
        with pytest.raises(RuntimeError), R.start(experiment_name="inner"):  # noqa: PT012
            inner = R.get_recorder()
            raise RuntimeError
        with pytest.raises(RecorderNotFoundError), R.start(recorder_id="none", resume=True):
            pass
        assert R.get_recorder() is outer
    assert (outer.status, inner.status) == ("FINISHED", "FAILED")


def test_check_21_a_uri_holds_for_the_run_and_no_longer(store: Path) -> None:
    other = str(store.with_name("other"))
    with R.start(experiment_name="e", uri=other):
        assert R.get_uri() == other
        R.save_objects(x=1)
        recorder = R.get_recorder()
    assert R.get_uri() == str(store)
    assert R.list_experiments() == {}
    assert recorder.uri == other
    assert recorder.load_object("x") == 1
    with R.uri_context(other):
        assert list(R.list_experiments()) == ["e"]


def test_check_21_uri_context_is_left_by_an_exception_too(store: Path) -> None:
    other = store.with_name("other")
    with pytest.raises(RuntimeError), R.uri_context(other):  # noqa: PT012
        assert R.get_uri() == str(other)
        raise RuntimeError
    assert R.get_uri() == str(store)


def test_check_21_a_recorder_found_in_a_uri_context_stays_usable(store: Path) -> None:
    other = store.with_name("other")
    with R.uri_context(other):
        R.save_objects(x=[1, 2])
        recorder = R.get_recorder()
    assert recorder.load_object("x") == [1, 2]
    recorder.set_tags(late="yes")
    assert recorder.list_tags()["late"] == "yes"


def test_check_21_set_uri_changes_the_default_and_not_what_is_active(store: Path) -> None:
    other = store.with_name("other")
    with R.start(experiment_name="e"):
        R.set_uri(other)
        R.log_params(a=1)
        assert R.get_uri() == str(store)
        assert R.get_recorder().uri == str(store)
    assert R.get_uri() == str(other)
    R.set_uri(store)
    assert R.get_uri() == str(store)


def test_check_22_init_inside_a_run_is_refused_and_changes_nothing(store: Path) -> None:
    with R.start(experiment_name="e"):
        recorder = R.get_recorder()
        with pytest.raises(RecorderInitializationError, match="'e'"):
            qwf.init(uri=store.with_name("other"), default_exp_name="other")
        assert R.get_uri() == str(store)
        assert qwf.C.default_exp_name == "Experiment"
        R.log_params(a=1)
    assert recorder.list_params()["a"] == "1"
    assert recorder.status == "FINISHED"
    qwf.init(uri=store.with_name("other"))
    assert R.get_uri() == str(store.with_name("other"))


def test_check_23_params_and_tags_read_back_as_text_and_metrics_as_floats(store: Path) -> None:
    with R.start(experiment_name="e"):
        R.log_params(n=1, x=0.1, flag=True, nothing=None, items=[1, "a"], nan=math.nan)
        R.set_tags(n=1, flag=False, nothing=None)
        R.log_metrics(n=1, nan=math.nan, up=math.inf, down=-math.inf, flag=True)
        recorder = R.get_recorder()
        for _ in range(2):  # while it runs and after a read
            assert recorder.list_metrics()["up"] == math.inf
    params = recorder.list_params()
    argv = params.pop("cmd-sys.argv")
    assert isinstance(argv, str)
    assert params == {
        "n": "1",
        "x": "0.1",
        "flag": "True",
        "nothing": "None",
        "items": "[1, 'a']",
        "nan": "nan",
    }
    assert recorder.list_tags() == {"n": "1", "flag": "False", "nothing": "None"}
    metrics = recorder.list_metrics()
    assert all(type(value) is float for value in metrics.values())
    assert (metrics["n"], metrics["up"], metrics["down"], metrics["flag"]) == (
        1.0,
        math.inf,
        -math.inf,
        1.0,
    )
    assert math.isnan(metrics["nan"])


def test_check_24_a_metric_is_its_value_at_the_highest_step(store: Path) -> None:
    with R.start(experiment_name="e"):
        R.log_metrics(m=1.5, step=1)
        R.log_metrics(m=2.5, step=0)
        R.log_metrics(n=1.0)
        R.log_metrics(n=0.5)
        recorder = R.get_recorder()
        assert recorder.list_metrics() == {"m": 1.5, "n": 0.5}
    assert recorder.list_metrics() == {"m": 1.5, "n": 0.5}
    history = recorder.metric_history("m")
    assert list(history["value"]) == [1.5, 2.5]
    assert list(history["step"]) == [1, 0]


def test_check_25_metric_names_of_qlib_read_back(store: Path) -> None:
    metrics = {"loss/train": 0.1, "Rank IC": 0.2, "l2.valid": 0.3, "1day.excess-return": -1.0}
    with R.start(experiment_name="e"):
        R.log_metrics(step=3, **metrics)
        recorder = R.get_recorder()
    assert recorder.list_metrics() == metrics
    assert set(recorder.metric_history()["step"]) == {3}


def test_check_26_tags_are_visible_at_once(store: Path) -> None:
    with R.start(experiment_name="e"):
        recorder = R.get_recorder()
        for number in range(20):
            R.set_tags(number=number)
            assert recorder.list_tags() == {"number": str(number)}


def test_check_27_objects_are_saved_below_an_artifact_path(store: Path) -> None:
    with R.start(experiment_name="e"):
        R.save_objects(artifact_path="p", **{"pred.pkl": {"x": (1, 2)}})
        recorder = R.get_recorder()
    assert recorder.load_object("p/pred.pkl") == {"x": (1, 2)}
    assert recorder.list_artifacts() == ["p"]
    assert recorder.list_artifacts("p") == ["p/pred.pkl"]
    assert recorder.list_artifacts("unknown") == []


def test_check_28_a_directory_is_saved_as_its_contents(store: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "a.txt").write_text("a")
    (source / "deep" / "b.bin").write_bytes(b"\0")
    with R.start(experiment_name="e"):
        R.save_objects(local_path=source, artifact_path="d")
        recorder = R.get_recorder()
        with pytest.raises(ValueError, match="either"):
            R.save_objects(local_path=source, x=1)
    assert recorder.list_artifacts("d") == ["d/a.txt", "d/deep"]
    assert recorder.list_artifacts("d/deep") == ["d/deep/b.bin"]
    assert Path(recorder.download_artifact("d/a.txt")).read_text() == "a"


def test_check_29_an_artifact_can_be_overwritten(store: Path) -> None:
    with R.start(experiment_name="e"):
        for value in ([1] * 1000, {"two"}, 3):
            R.save_objects(x=value)
            assert R.load_object("x") == value
        assert R.get_recorder().list_artifacts() == ["x"]


def test_check_30_a_missing_or_broken_artifact_is_a_load_object_error(store: Path) -> None:
    with R.start(experiment_name="e"):
        R.save_objects(present={1, 2})
        recorder = R.get_recorder()
        with pytest.raises(LoadObjectError, match=r"'absent'.*'present'"):
            R.load_object("absent")
    for broken in (b"", b"\x80\x04garbage", b"x" * 10_000):
        Path(recorder.get_local_dir(), "artifacts", "present").write_bytes(broken)
        with pytest.raises(LoadObjectError, match=r"present.* is damaged"):
            recorder.load_object("present")


class UpperCase(pickle.Unpickler):
    def load(self) -> Any:
        return {text.upper() for text in super().load()}


def test_check_30_an_unpickler_of_ones_own_is_used(store: Path) -> None:
    R.save_objects(texts={"a"})
    assert R.get_recorder().load_object("texts", unpickler=UpperCase) == {"A"}


def test_check_31_download_returns_a_path_that_exists(store: Path, tmp_path: Path) -> None:
    with R.start(experiment_name="e"):
        R.save_objects(artifact_path="p", x=[1])
        inside = Path(R.download_artifact("p/x"))
        assert inside.is_file()
        copy = Path(R.download_artifact("p/x", tmp_path / "new" / "target"))
        assert copy == tmp_path / "new" / "target" / "p" / "x"
        assert copy.read_bytes() == inside.read_bytes()
        whole = Path(R.download_artifact("p", tmp_path / "whole"))
        assert [path.name for path in whole.iterdir()] == ["x"]
        with pytest.raises(LoadObjectError, match="'absent'"):
            R.download_artifact("absent")


def test_check_32_the_local_directory_holds_the_artifacts(store: Path) -> None:
    recorder = R.get_exp(experiment_name="e").create_recorder()
    for place in (recorder.get_local_dir, recorder.get_artifact_uri, lambda: recorder.artifact_uri):
        with pytest.raises(ValueError, match="never started"):
            place()
    recorder.start_run()
    recorder.save_objects(x=1)
    directory = Path(recorder.get_local_dir())
    assert (directory / "artifacts").is_dir()
    assert recorder.get_artifact_uri() == recorder.artifact_uri == str(directory / "artifacts")
    assert store in directory.parents
    recorder.end_run("FINISHED")


def test_check_33_recorders_are_equal_by_id(store: Path) -> None:
    recorder, other = new_run("e"), new_run("e")
    again = R.get_recorder(experiment_name="e", recorder_id=recorder.id)
    assert again is not recorder
    assert (again == recorder, hash(again) == hash(recorder)) == (True, True)
    assert again != other
    assert len({recorder, again, other}) == 2
    assert hash(recorder) == hash(recorder.id)
    assert list(recorder.info) == [
        "class",
        "id",
        "name",
        "experiment_id",
        "start_time",
        "end_time",
        "status",
    ]
    experiment = R.get_exp(experiment_name="e")
    assert experiment.info == {
        "class": "Experiment",
        "id": experiment.id,
        "name": "e",
        "active_recorder": None,
        "recorders": [other.id, recorder.id],
    }


def test_check_34_a_deleted_recorder_is_in_no_list(store: Path) -> None:
    recorder, kept = new_run("Experiment"), new_run("Experiment", "named")
    with pytest.raises(MissingArgumentError):
        R.delete_recorder()
    with pytest.raises(ValueError, match="'unknown'"):
        R.delete_recorder(recorder_id="unknown")
    R.delete_recorder(recorder_id=recorder.id)
    assert list(R.list_recorders()) == [kept.id]
    with pytest.raises(RecorderNotFoundError):
        R.get_recorder(recorder_id=recorder.id)
    R.delete_recorder(recorder_name="named")
    assert R.list_recorders() == {}


def test_check_35_the_name_of_a_deleted_experiment_can_be_used_again(store: Path) -> None:
    new_run("e")
    R.delete_exp(experiment_name="e")
    assert R.list_experiments() == {}
    with pytest.raises(ValueError, match="'e'"):
        R.delete_exp(experiment_name="e")
    again = new_run("e")
    assert list(R.list_recorders(experiment_name="e")) == [again.id]
    with pytest.raises(AssertionError, match="experiment_id or experiment_name"):
        R.delete_exp()


def test_check_36_search_gives_a_frame_in_the_order_asked_for(store: Path) -> None:
    best, none, worst = new_run("e", lr=0.1), new_run("e", "other", model="LGB"), new_run("e")
    best.log_metrics(m=3.0, n=1.0)
    worst.log_metrics(m=-1.0)
    none.set_tags(mark="x")
    frame = R.search_records(["e"], order_by=["metrics.m DESC"])
    assert isinstance(frame, pd.DataFrame)
    assert list(frame["run_id"]) == [best.id, worst.id, none.id]
    assert list(frame["metrics.m"][:2]) == [3.0, -1.0]
    assert math.isnan(frame["metrics.m"][2])
    assert list(frame["params.lr"]) == ["0.1", None, None]
    assert list(frame["tags.mark"]) == [None, None, "x"]
    assert list(R.search_records("e", order_by="metrics.m ASC")["run_id"]) == [
        worst.id,
        best.id,
        none.id,
    ]
    assert list(R.search_records("e")["run_id"]) == [worst.id, none.id, best.id]
    assert list(R.search_records("e", max_results=1)["run_id"]) == [worst.id]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('params."a" = "b" and tags."c" = "d"', [0]),
        ('params."a"="b" and tags."c"="d"', [0]),
        ("metrics.m > 1", [1, 2]),
        ("metrics.m >= 1 AND metrics.m < 3", [0, 1]),
        ("tags.x != 'y'", [2]),  # a recorder without the tag is not meant
        ("params.a LIKE 'b%'", [0, 1]),
        ("params.a ILIKE 'B%'", [0, 1]),
        ("attributes.status = 'FINISHED'", [0, 1, 2]),
        ("attributes.run_name = 'third'", [2]),
    ],
)
def test_check_37_a_filter_finds_what_it_says(store: Path, text: str, found: list[int]) -> None:
    runs = [new_run("e", a="b"), new_run("e", a="bc"), new_run("e", "third", a="C")]
    for number, tags in enumerate([{"c": "d"}, {"x": "y"}, {"x": "z"}]):
        runs[number].set_tags(**tags)
        runs[number].log_metrics(m=number + 1)
    frame = R.search_records(["e"], filter_string=text, order_by="attributes.start_time ASC")
    assert list(frame["run_id"]) == [runs[number].id for number in found]
    listed = R.get_exp(experiment_name="e").list_recorders(filter_string=text)
    assert set(listed) == set(frame["run_id"])


@pytest.mark.stress
@pytest.mark.parametrize("relative", [False, True])
def test_check_38_programs_that_start_one_new_experiment_at_once_share_it(
    store: Path, tmp_path: Path, relative: bool
) -> None:
    source = """
import sys
import qwf
from qwf import R
qwf.init(uri=sys.argv[1])
print("ready", flush=True)
sys.stdin.read()
with R.start(experiment_name="one/新"):
    R.log_params(number=sys.argv[2])
"""
    programs = []
    for number in range(4):
        here = tmp_path / f"cwd{number}"
        here.mkdir()
        uri = os.path.relpath(store, here) if relative else store
        programs.append(
            subprocess.Popen(
                [sys.executable, "-c", source, uri, str(number)],
                cwd=here,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(Path(qwf.__file__).parent.parent)},
            )
        )
    for program in programs:
        assert program.stdout.readline() == "ready\n"
    for program in programs:
        program.stdin.close()
    for program in programs:
        assert (program.wait(60), program.stderr.read()) == (0, "")
        program.stdout.close()
        program.stderr.close()
    assert list(R.list_experiments()) == ["one/新"]
    recorders = R.list_recorders(experiment_name="one/新").values()
    assert sorted(one.list_params()["number"] for one in recorders) == ["0", "1", "2", "3"]
    assert {one.status for one in recorders} == {"FINISHED"}
    assert not [left for number in range(4) for left in (tmp_path / f"cwd{number}").iterdir()]


def test_check_39_a_stray_directory_does_not_break_listing(store: Path) -> None:
    recorder = new_run("e")
    experiment = Path(recorder.get_local_dir()).parent.parent
    for parent in (store, store / "experiments", experiment, experiment / "recorders"):
        (parent / ".ipynb_checkpoints").mkdir()
        (parent / "Untitled Folder").mkdir()
    assert list(R.list_experiments()) == ["e"]
    assert list(R.list_recorders(experiment_name="e")) == [recorder.id]


def test_check_39_a_half_written_run_does_not_break_listing(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, torn = new_run("e"), new_run("e")
    file = Path(torn.get_local_dir(), "recorder.json")
    file.write_bytes(file.read_bytes()[:100])
    listed = R.list_recorders(experiment_name="e")
    assert list(listed) == [whole.id, torn.id]
    assert listed[torn.id].status == "BROKEN"
    assert "recorder.json is damaged" in caplog.text


def test_check_39_a_store_can_be_moved(store: Path) -> None:
    with R.start(experiment_name="e"):
        R.save_objects(x={"deep": [1, 2]})
        R.log_metrics(m=1)
        recorder = R.get_recorder()
    moved = store.with_name("moved")
    shutil.move(store, moved)
    with R.uri_context(moved):
        found = R.get_recorder(experiment_name="e", recorder_id=recorder.id)
    assert found.load_object("x") == {"deep": [1, 2]}
    assert found.list_metrics() == {"m": 1.0}
    assert Path(found.get_artifact_uri()).is_dir()
    found.set_tags(seen="yes")
    assert not os.path.lexists(store)


def test_check_40_the_recorder_of_a_killed_process_does_not_run_for_ever(
    store: Path, children: Children
) -> None:
    def die() -> None:
        R.start_exp(experiment_name="e")
        R.log_metrics(m=1.0)
        os.kill(os.getpid(), signal.SIGKILL)

    children.add(die)
    assert children.exit_codes() == [-signal.SIGKILL]
    (recorder,) = R.list_recorders(experiment_name="e").values()
    assert recorder.status == "LOST"
    assert R.get_recorder(experiment_name="e", recorder_id=recorder.id).status == "LOST"
    assert list(R.search_records("e")["status"]) == ["LOST"]
    assert recorder.list_metrics() == {"m": 1.0}
    assert running() == []
    recorder.end_run("FAILED")
    assert list(R.search_records("e")["status"]) == ["FAILED"]


@pytest.mark.parametrize("name", [5, 0, "", ["a"], Path("x")])
def test_a_recorder_name_that_is_no_text_is_refused_before_anything_is_written(
    store: Path, name: Any
) -> None:
    with pytest.raises(UnsafeNameError, match="Nothing was changed"):
        R.start_exp(experiment_name="e", recorder_name=name)
    assert R.list_recorders(experiment_name="e") == {}
