"""Trainers: from tasks to recorders, in order, each with what it needs to be used again."""

from __future__ import annotations

import copy
import os
import socket
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from qwf import R
from qwf.errors import PlaceholderError, QwfError
from qwf.trainer import (
    DelayTrainerR,
    Trainer,
    TrainerR,
    begin_task_train,
    end_task_train,
    task_train,
)

HERE = __name__
DAYS = pd.date_range("2020-01-01", periods=3, name="datetime")
INDEX = pd.MultiIndex.from_product([DAYS, ["A", "B", "C"]], names=["datetime", "instrument"])


class Model:
    """Predicts what it was fitted to, which no other model does."""

    def __init__(self, number: float = 1.0, fails: bool = False) -> None:
        self.number = number
        self.fails = fails
        self.fitted_in: int | None = None
        self.reweighter: Any = None

    def fit(self, dataset: Any, *, reweighter: Any = None) -> None:
        if self.fails:
            raise ArithmeticError("did not converge")
        self.fitted_in = os.getpid()
        self.reweighter = reweighter

    def predict(self, dataset: Any, segment: str = "test") -> pd.Series:
        return dataset.rows * self.number


class PlainModel(Model):
    def fit(self, dataset: Any) -> None:
        super().fit(dataset)


class Dataset:
    """Has data that must not be saved, and a label."""

    def __init__(self, segments: Any = None) -> None:
        self.segments = segments
        self.rows: Any = pd.Series(range(len(INDEX)), index=INDEX, dtype="float64")
        self.dump_all = True

    def config(self, dump_all: bool = True, recursive: bool = False) -> None:
        self.dump_all = dump_all

    def prepare(self, segments: str, col_set: str = "feature", data_key: str = "infer") -> Any:
        assert (segments, col_set, data_key) == ("test", "label", "raw")
        return (self.rows**2).to_frame("LABEL0")

    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        if not self.dump_all:
            state["rows"] = None
        return state


class BareDataset:
    """The least that a dataset can be."""

    def __init__(self) -> None:
        self.rows = pd.Series(1.0, index=INDEX)


class Remember:
    """A record of one's own."""

    def __init__(self, recorder: Any, model: Any, dataset: Any, note: Any = None) -> None:
        self.recorder, self.model, self.dataset, self.note = recorder, model, dataset, note

    def generate(self) -> None:
        self.recorder.save_objects(
            remembered=[type(self.model).__name__, type(self.dataset).__name__, self.note]
        )


def part(cls: type, **kwargs: Any) -> dict[str, Any]:
    return {"class": cls.__name__, "module_path": HERE, "kwargs": kwargs}


def task(number: float = 1.0, **more: Any) -> dict[str, Any]:
    return {
        "model": part(Model, number=number),
        "dataset": part(Dataset, segments={"test": ("2020-01-01", "2020-01-03")}),
        "record": [
            {"class": "SignalRecord", "kwargs": {"model": "<MODEL>", "dataset": "<DATASET>"}},
            {"class": "SigAnaRecord"},
        ],
        **more,
    }


# --- task_train ------------------------------------------------------------------------------


def test_check_50_a_trained_task_leaves_everything_in_its_recorder(store: Path) -> None:
    given = task(2.0)
    recorder = task_train(given, "e", "mine")
    assert (recorder.name, recorder.status) == ("mine", "FINISHED")
    assert recorder.list_artifacts() == [
        "dataset",
        "label.pkl",
        "params.pkl",
        "pred.pkl",
        "sig_analysis",
        "task",
    ]
    assert recorder.load_object("task") == given
    assert recorder.load_object("params.pkl").number == 2.0
    assert recorder.load_object("dataset").rows is None
    prediction = recorder.load_object("pred.pkl")
    assert list(prediction) == ["score"]
    assert list(prediction["score"]) == [2.0 * row for row in range(9)]
    assert list(recorder.load_object("label.pkl")["LABEL0"]) == [float(row**2) for row in range(9)]
    assert recorder.list_tags()["hostname"] == socket.gethostname()
    params = recorder.list_params()
    assert params["model.class"] == "Model"
    assert params["model.kwargs.number"] == "2.0"
    assert params["dataset.kwargs.segments.test"] == "('2020-01-01', '2020-01-03')"
    assert recorder.list_metrics()["Rank IC"] == pytest.approx(1.0)
    assert R.exp_manager.active_experiment is None


def test_check_50_an_error_fails_the_run_and_is_raised(store: Path) -> None:
    bad = task()
    bad["model"]["kwargs"]["fails"] = True
    with pytest.raises(ArithmeticError, match="did not converge"):
        task_train(bad, "e")
    (recorder,) = R.list_recorders(experiment_name="e").values()
    assert recorder.status == "FAILED"
    assert recorder.load_object("task") == bad
    assert "params.pkl" not in recorder.list_artifacts()
    assert R.exp_manager.active_experiment is None


def test_check_51_training_a_task_twice_stores_the_predictions_of_each(store: Path) -> None:
    given = task(1.0)
    before = copy.deepcopy(given)
    first = task_train(given, "e")
    given["model"]["kwargs"]["number"] = 5.0
    second = task_train(given, "e")
    given["model"]["kwargs"]["number"] = 1.0
    assert given == before
    assert first.load_object("pred.pkl")["score"].iloc[-1] == 8.0
    assert second.load_object("pred.pkl")["score"].iloc[-1] == 40.0
    assert second.load_object("task")["record"] == before["record"]


def test_a_task_is_saved_as_given_and_not_as_filled(store: Path) -> None:
    given = task(record=part(Remember, note="<dataset.kwargs.segments.test.0>"))
    recorder = task_train(given, "e")
    assert recorder.load_object("remembered") == ["Model", "Dataset", "2020-01-01"]
    assert recorder.load_object("task") == given


@pytest.mark.parametrize(
    ("where", "placeholder"),
    [("model", "<MODLE>"), ("dataset", "<DATASET>"), ("record", "<MODLE>"), ("model", "<MODEL>")],
)
def test_an_unknown_placeholder_is_refused_before_anything_starts(
    store: Path, where: str, placeholder: str
) -> None:
    bad = task()
    config = part(Remember, note=placeholder) if where == "record" else {**bad[where]}
    config["kwargs"] = {**config["kwargs"], "note": placeholder}
    bad[where] = config
    for train in (task_train, begin_task_train):
        with pytest.raises(
            PlaceholderError, match=f"{where}.*'{placeholder}'.*Nothing was started"
        ):
            train(bad, "e")
    assert not store.exists()


@pytest.mark.parametrize("missing", ["model", "dataset"])
def test_a_task_without_model_or_dataset_is_refused_before_anything_starts(
    store: Path, missing: str
) -> None:
    bad = task()
    del bad[missing]
    with pytest.raises(KeyError, match=missing):
        task_train(bad, "e")
    with pytest.raises(TypeError, match="dict"):
        task_train([task()], "e")
    assert not store.exists()


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({"model": {"class": "Modle", "module_path": HERE}}, "Modle"),
        ({"dataset": {"class": "Datasett", "module_path": HERE}}, "Datasett"),
        ({"record": {"class": "SignlRecord"}}, "SignlRecord"),
        ({"record": [{"class": "SignalRecord"}, {"class": "PortAnaRecord"}]}, "PortAnaRecord"),
    ],
)
def test_an_unknown_class_is_refused_before_anything_is_started(
    store: Path, more: dict[str, Any], name: str
) -> None:
    for train in (task_train, begin_task_train):
        with pytest.raises((QwfError, AttributeError), match=name):
            train(task(**more), "e")
    assert not store.exists()


class OpensRun(Model):
    def fit(self, dataset: Any) -> None:
        R.start_exp(experiment_name="helper")


class EndsRun(Model):
    def fit(self, dataset: Any) -> None:
        R.end_exp()
        if self.fails:
            raise ArithmeticError("did not converge")


def test_a_model_that_leaves_a_run_open_does_not_take_the_end_of_its_own(store: Path) -> None:
    recorder = task_train(task(model=part(OpensRun), record=[]), "e")
    assert recorder.status == "FINISHED"
    assert [one.status for one in R.list_recorders(experiment_name="helper").values()] == [
        "FINISHED"
    ]
    assert R.exp_manager.active_experiment is None


def test_a_model_that_ends_a_run_too_many_ends_its_own_only(store: Path) -> None:
    with R.start(experiment_name="outer"):
        outer = R.get_recorder()
        recorder = task_train(task(model=part(EndsRun), record=[]), "e")
        with pytest.raises(ArithmeticError):
            task_train(task(model=part(EndsRun, fails=True), record=[]), "e")
        assert R.get_recorder() is outer
        assert outer.status == "RUNNING"
    found = R.list_recorders(experiment_name="e").values()
    assert [one.status for one in found] == ["FAILED", "FINISHED"]
    assert recorder.load_object("params.pkl").number == 1.0


def test_objects_may_stand_for_their_configurations(store: Path) -> None:
    model, dataset = Model(3.0), Dataset()
    recorder = task_train({"model": model, "dataset": dataset, "record": []}, "e")
    assert model.fitted_in == os.getpid()
    assert recorder.load_object("params.pkl").number == 3.0
    assert recorder.load_object("dataset").rows is None
    assert dataset.rows is not None


def test_the_reweighter_reaches_a_model_that_takes_one(store: Path) -> None:
    recorder = task_train(task(reweighter="heavy"), "e")
    assert recorder.load_object("params.pkl").reweighter == "heavy"
    recorder = task_train(task(model=part(PlainModel), reweighter="heavy"), "e")
    assert recorder.load_object("params.pkl").reweighter is None


def test_the_least_dataset_is_saved_by_its_configuration(store: Path) -> None:
    config = part(BareDataset)
    record = {"class": "SignalRecord"}
    recorder = task_train({"model": part(Model), "dataset": config, "record": record}, "e")
    assert recorder.load_object("dataset") == config
    assert recorder.list_artifacts() == ["dataset", "params.pkl", "pred.pkl", "task"]


def test_training_inside_a_run_leaves_that_run_alone(store: Path) -> None:
    with R.start(experiment_name="outer"):
        outer = R.get_recorder()
        recorder = task_train(task(), "e")
        assert R.get_recorder() is outer
    assert recorder.id != outer.id
    assert outer.list_artifacts() == []


# --- in two steps ----------------------------------------------------------------------------


def test_a_begun_task_is_scheduled_until_it_is_trained(store: Path) -> None:
    recorder = begin_task_train(task(2.0), "e", "mine")
    assert (recorder.name, recorder.status) == ("mine", "SCHEDULED")
    assert recorder.list_artifacts() == ["task"]
    assert list(R.get_exp(experiment_name="e").list_recorders(status="FINISHED")) == []
    same = end_task_train(recorder, "e")
    assert same is recorder
    assert (recorder.status, recorder.name) == ("FINISHED", "mine")
    assert recorder.load_object("params.pkl").number == 2.0
    assert list(R.list_recorders(experiment_name="e")) == [recorder.id]


def test_a_begun_task_is_trained_in_its_own_store(store: Path, tmp_path: Path) -> None:
    with R.uri_context(tmp_path / "other"):
        recorder = begin_task_train(task(), "e")
    end_task_train(recorder, "quite another name")
    assert recorder.status == "FINISHED"
    assert not store.exists()


def test_a_begun_task_that_fails_is_failed_and_can_be_tried_again(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = begin_task_train(task(), "e")
    with monkeypatch.context() as patch:
        patch.setattr(Model, "fit", lambda self, dataset: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            end_task_train(recorder, "e")
        assert R.get_recorder(experiment_name="e", recorder_id=recorder.id).status == "FAILED"
        assert recorder.status == "FAILED"
    end_task_train(recorder, "e")
    assert recorder.status == "FINISHED"


# --- trainers --------------------------------------------------------------------------------


@pytest.mark.parametrize("in_subprocess", [False, True])
def test_check_52_recorders_come_in_the_order_of_the_tasks(
    store: Path, in_subprocess: bool
) -> None:
    trainer = TrainerR("e", call_in_subproc=in_subprocess, default_rec_name="rolling")
    assert (trainer.is_delay(), trainer.has_worker()) == (False, False)
    recorders = trainer.train([task(float(number)) for number in (3, 1, 2)])
    assert [one.load_object("params.pkl").number for one in recorders] == [3.0, 1.0, 2.0]
    assert {one.name for one in recorders} == {"rolling"}
    assert {one.status for one in recorders} == {"FINISHED"}
    assert {one.list_tags()["train_status"] for one in recorders} == {"begin_task_train"}
    assert trainer.end_train(recorders) == recorders
    assert {one.list_tags()["train_status"] for one in recorders} == {"end_task_train"}
    trained_here = recorders[0].load_object("params.pkl").fitted_in == os.getpid()
    assert trained_here is not in_subprocess


@pytest.mark.parametrize("trainer_class", [TrainerR, DelayTrainerR])
def test_check_52_one_task_and_no_task_are_accepted(
    store: Path, trainer_class: type[TrainerR]
) -> None:
    trainer = trainer_class("e")
    assert trainer.train([]) == []
    assert trainer.end_train([]) == []
    assert trainer([]) == []
    assert R.list_experiments() == {}
    (recorder,) = trainer.train(task())
    assert trainer.end_train(recorder) == [recorder]
    assert recorder.status == "FINISHED"


@pytest.mark.parametrize("in_subprocess", [False, True])
def test_check_52_a_delay_trainer_trains_at_the_end_and_once(
    store: Path, in_subprocess: bool
) -> None:
    trainer = DelayTrainerR("e", call_in_subproc=in_subprocess)
    assert trainer.is_delay()
    recorders = trainer.train([task(1.0), task(2.0)])
    assert [one.list_artifacts() for one in recorders] == [["task"], ["task"]]
    assert {one.status for one in recorders} == {"SCHEDULED"}
    before = [one.id for one in recorders]
    trained = trainer.end_train(recorders)
    assert trained == recorders
    assert [one.id for one in trained] == before
    assert {one.status for one in recorders} == {"FINISHED"}
    assert [one.load_object("params.pkl").number for one in recorders] == [1.0, 2.0]
    ended = [one.end_time for one in recorders]
    calls: list[Any] = []
    trainer.end_train(recorders, end_train_func=lambda *args, **_: calls.append(args))
    assert calls == []
    assert [one.end_time for one in recorders] == ended


def test_check_52_a_delay_trainer_goes_on_where_another_process_has_stopped(
    store: Path,
) -> None:
    prepared = DelayTrainerR("e").train([task(1.0), task(2.0)])
    DelayTrainerR("e").end_train(prepared[:1])
    found = [R.get_recorder(experiment_name="e", recorder_id=one.id) for one in prepared]
    calls: list[str] = []

    def end(recorder: Any, name: str | None, **_: Any) -> Any:
        calls.append(recorder.id)
        return end_task_train(recorder, name)

    DelayTrainerR("e", end_train_func=end).end_train(found)
    assert calls == [prepared[1].id]
    assert {one.list_tags()["train_status"] for one in found} == {"end_task_train"}


def test_calling_a_trainer_does_both_steps_in_the_named_experiment(store: Path) -> None:
    for trainer in (TrainerR("unused"), DelayTrainerR("unused")):
        (recorder,) = trainer(task(), experiment_name="named")
        assert recorder.status == "FINISHED"
        assert recorder.list_tags()["train_status"] == "end_task_train"
    assert set(R.list_experiments()) == {"named"}


def test_a_trainer_without_experiment_uses_the_default_one(store: Path) -> None:
    TrainerR().train(task())
    assert list(R.list_experiments()) == ["Experiment"]


def test_a_train_function_of_ones_own_gets_the_arguments(store: Path) -> None:
    seen: list[Any] = []

    def train(config: Any, experiment_name: str, **kwargs: Any) -> Any:
        seen.append((config, experiment_name, kwargs))
        return begin_task_train(task(), experiment_name)

    trainer = TrainerR("e", train_func=train, default_rec_name="name")
    trainer.train([{"any": 1}], extra=2)
    trainer.train([{"any": 2}], train_func=train, experiment_name="f", recorder_name="other")
    assert seen == [
        ({"any": 1}, "e", {"recorder_name": "name", "extra": 2}),
        ({"any": 2}, "f", {"recorder_name": "other"}),
    ]


@pytest.mark.parametrize("in_subprocess", [False, True])
def test_the_first_failing_task_is_raised_and_those_before_it_are_kept(
    store: Path, in_subprocess: bool
) -> None:
    tasks = [task(1.0), task(2.0), task(3.0)]
    tasks[1]["model"]["kwargs"]["fails"] = True
    with pytest.raises(ArithmeticError, match="did not converge"):
        TrainerR("e", call_in_subproc=in_subprocess).train(tasks)
    statuses = [one.status for one in R.list_recorders(experiment_name="e").values()]
    assert statuses == ["FAILED", "FINISHED"]
    assert R.exp_manager.active_experiment is None


def test_a_subprocess_uses_the_store_of_its_parent_inside_a_run(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with R.start(experiment_name="outer"):
        (recorder,) = TrainerR("e", call_in_subproc=True).train(task())
        outer = R.get_recorder()
        assert outer.status == "RUNNING"
    assert recorder.uri == str(store)
    assert outer.list_artifacts() == []


def test_a_subprocess_uses_the_store_that_is_meant_here_and_now(
    store: Path, tmp_path: Path
) -> None:
    R.set_uri(tmp_path / "set")
    trainer = TrainerR("e", call_in_subproc=True)
    (recorder,) = trainer.train(task(record=[]))
    assert recorder.uri == str(tmp_path / "set")
    with R.uri_context(tmp_path / "context"):
        (recorder,) = trainer.train(task(record=[]))
    assert recorder.uri == str(tmp_path / "context")
    assert not store.exists()


@pytest.mark.parametrize("in_subprocess", [False, True])
def test_a_recorder_shows_that_its_delayed_training_has_failed(
    store: Path, in_subprocess: bool
) -> None:
    trainer = DelayTrainerR("e", call_in_subproc=in_subprocess)
    (recorder,) = trainer.train(task(model=part(Model, fails=True)))
    with pytest.raises(ArithmeticError, match="did not converge"):
        trainer.end_train(recorder)
    assert recorder.status == "FAILED"


class Crash(Model):
    def fit(self, dataset: Any) -> None:
        os._exit(9)


def test_a_subprocess_that_dies_is_told_of_and_fails_its_recorder(store: Path) -> None:
    trainer = DelayTrainerR("e", call_in_subproc=True)
    recorders = DelayTrainerR("e").train([task(model=part(Crash)), task()])
    with pytest.raises(
        BrokenProcessPool, match=r"task 0 \(end_task_train for experiment 'e'\) died"
    ):
        trainer.end_train(recorders)
    assert [one.status for one in recorders] == ["FAILED", "SCHEDULED"]
    with pytest.raises(BrokenProcessPool, match=r"task 0 \(task_train for experiment 'f'\) died"):
        TrainerR("f", call_in_subproc=True).train(task(model=part(Crash)))


def test_the_base_class_says_what_is_missing() -> None:
    trainer = Trainer()
    for call in (lambda: trainer.train([]), trainer.worker):
        with pytest.raises(NotImplementedError, match="Trainer has no"):
            call()
    assert (trainer.is_delay(), trainer.has_worker()) == (False, False)
