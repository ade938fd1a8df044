"""Trainers over a task pool: with workers elsewhere, after deaths and failures, again and again."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import qwf
from qwf import (
    DelayTrainerRM,
    R,
    RollingGen,
    TaskManager,
    TrainerR,
    TrainerRM,
    begin_task_train,
    task_generator,
    task_train,
)
from qwf.errors import (
    RecorderStateError,
    RemoteTaskError,
    TaskNotFoundError,
    TaskValueError,
    TrainingError,
)

HERE = __name__
ROOT = Path(qwf.__file__).parent.parent
TM_ID = "_id in TaskManager"


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


class Model:
    """Notes in a directory who has fitted it, and does there what `does` says."""

    def __init__(self, number: int, place: str, does: str = "", pid: int = 0) -> None:
        self.number, self.place, self.does, self.pid = number, Path(place), does, pid

    def fit(self, dataset: Any) -> None:
        (self.place / f"{self.number}.{os.getpid()}.{uuid.uuid4().hex}").touch()
        mended = (self.place / "mended").exists()
        if self.does == "meet":
            wait_until(lambda: len({pid for _, pid in fits(self.place)}) > 1)
        elif self.does == "hold":
            wait_until((self.place / "go").exists)
        elif self.does == "kill":
            os.kill(self.pid, signal.SIGKILL)
        elif self.does == "die" and not mended:
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.does == "fail" and not mended:
            raise ArithmeticError(f"number {self.number} did not converge")


class Dataset:
    pass


def fits(place: Path) -> list[tuple[int, int]]:
    """Which numbers were fitted by which processes."""
    names = [path.name.split(".") for path in place.iterdir() if path.name.count(".") == 2]
    return [(int(number), int(pid)) for number, pid, _ in names]


def numbers(place: Path) -> dict[int, int]:
    """How often each number was fitted."""
    return dict(Counter(number for number, _ in fits(place)))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    path = tmp_path / "place"
    path.mkdir()
    return path


@pytest.fixture
def task(place: Path) -> Callable[..., dict[str, Any]]:
    def make(number: int = 0, does: str = "", **more: Any) -> dict[str, Any]:
        kwargs = {"number": number, "place": str(place), "does": does, **more}
        return {
            "model": {"class": "Model", "module_path": HERE, "kwargs": kwargs},
            "dataset": {"class": "Dataset", "module_path": HERE},
        }

    return make


WORKER = """
import sys
import qwf
import {here}
qwf.init(uri=sys.argv[1])
qwf.{trainer}("e").{call}
"""


@contextlib.contextmanager
def worker(
    store: Path, trainer: str = "TrainerRM", call: str = "worker()"
) -> Iterator[subprocess.Popen[str]]:
    """Run the worker of a trainer, or another of its methods, in a fresh interpreter."""
    source = WORKER.format(here=HERE, trainer=trainer, call=call)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"}
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", source, str(store)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def number_of(recorder: Any) -> int:
    number = recorder.load_object("task")["model"]["kwargs"]["number"]
    assert isinstance(number, int)
    return number


def statuses(experiment: str = "e") -> dict[str, int]:
    found = R.list_recorders(experiment_name=experiment).values()
    return dict(Counter(one.status for one in found))


def train_status(recorder: Any) -> str:
    return str(recorder.list_tags()["train_status"])


# --- one after the other, here -------------------------------------------------------------------


def test_check_53_recorders_come_in_the_order_of_the_tasks(
    store: Path, place: Path, task: Callable[..., Any]
) -> None:
    trainer = TrainerRM("e", default_rec_name="rolling")
    assert (trainer.is_delay(), trainer.has_worker()) == (False, True)
    recorders = trainer.train([task(number) for number in (3, 1, 2)])
    assert [one.load_object("params.pkl").number for one in recorders] == [3, 1, 2]
    assert {(one.name, one.status, train_status(one)) for one in recorders} == {
        ("rolling", "FINISHED", "begin_task_train")
    }
    assert trainer.end_train(recorders) == recorders
    assert {train_status(one) for one in recorders} == {"end_task_train"}
    assert TaskManager.list() == ["e"]
    pool = TaskManager("e")
    for recorder in recorders:
        done = pool.re_query(recorder.list_tags()[TM_ID])
        assert done["status"] == "done"
        assert done["res"] == recorder


def test_equal_tasks_have_one_recorder_and_one_or_no_task_is_accepted(
    store: Path, place: Path, task: Callable[..., Any]
) -> None:
    for trainer in (TrainerRM("e"), DelayTrainerRM("e")):
        assert trainer.train([]) == []
        assert trainer.end_train([]) == []
        assert trainer([]) == []
    assert not store.exists()
    first, second, again = TrainerRM("e").train([task(1), task(2), task(1)])
    assert first.id == again.id != second.id
    (single,) = TrainerRM("e").train(task(3))
    assert TrainerRM("e").end_train(single) == [single]
    assert numbers(place) == {1: 1, 2: 1, 3: 1}


def test_a_trainer_without_names_uses_those_of_the_default_experiment(
    store: Path, task: Callable[..., Any]
) -> None:
    TrainerRM().train(task())
    TrainerRM("e", task_pool="pool").train(task())
    TrainerRM("unused").train(task(), experiment_name="named")
    assert TaskManager.list() == ["Experiment", "named", "pool"]
    assert sorted(R.list_experiments()) == ["Experiment", "e", "named"]


def test_d_37_calling_a_trainer_does_both_steps_in_the_named_experiment(
    store: Path, task: Callable[..., Any]
) -> None:
    for number, trainer in enumerate((TrainerRM("unused"), DelayTrainerRM("unused"))):
        (recorder,) = trainer(task(number), experiment_name="named")
        assert recorder.status == "FINISHED"
        assert train_status(recorder) == "end_task_train"
    assert set(R.list_experiments()) == {"named"}
    assert TaskManager.list() == ["named"]


def test_d_37_a_train_function_gets_the_same_arguments_from_train_and_from_worker(
    store: Path, task: Callable[..., Any]
) -> None:
    seen: list[Any] = []

    def train(config: Any, **kwargs: Any) -> Any:
        seen.append(kwargs)
        return task_train(config, kwargs["experiment_name"], kwargs["recorder_name"])

    trainer = TrainerRM("e", train_func=train, default_rec_name="name")
    trainer.train(task(1))
    trainer.train(task(2), extra=3, default_rec_name="other")
    TaskManager("e").create_task([task(4)])
    trainer.worker()
    assert seen == [
        {"experiment_name": "e", "recorder_name": "name"},
        {"experiment_name": "e", "recorder_name": "other", "extra": 3},
        {"experiment_name": "e", "recorder_name": "name"},
    ]


def test_the_models_are_those_of_the_trainer_without_a_pool(store: Path) -> None:
    prices = ROOT / "examples" / "data" / "sp500_20.parquet"
    qwf.init(uri=store, calendar=pd.read_parquet(prices))
    handler = {
        "class": "PriceHandler",
        "module_path": "qwf.data.handler",
        "kwargs": {
            "panel": str(prices),
            "start_time": "2018-01-02",
            "infer_processors": [{"class": "RobustZScoreNorm"}, {"class": "Fillna"}],
            "learn_processors": [{"class": "DropnaLabel"}, {"class": "CSRankNorm"}],
        },
    }
    segments = {"train": ("2018-01-02", "2018-06-29"), "test": ("2018-07-02", "2018-10-31")}
    template = {
        "model": {"class": "LinearModel", "module_path": "qwf.data.models"},
        "dataset": {
            "class": "DatasetH",
            "module_path": "qwf.data.dataset",
            "kwargs": {"handler": handler, "segments": segments},
        },
        "record": ["SignalRecord", "SigAnaRecord"],
    }
    tasks = task_generator(template, RollingGen(step=60, trunc_days=7))
    assert len(tasks) == 2
    alone = TrainerR("alone")(tasks)
    for trainer in (TrainerRM("pool", kernels=2), DelayTrainerRM("delayed")):
        for one, other in zip(alone, trainer(tasks), strict=True):
            pd.testing.assert_frame_equal(
                one.load_object("pred.pkl"), other.load_object("pred.pkl")
            )
            assert one.list_metrics() == other.list_metrics()
            assert one.load_object("task") == other.load_object("task")


# --- again ---------------------------------------------------------------------------------------


def test_what_is_done_is_used_again_also_by_another_process_and_after_a_move(
    store: Path,
    place: Path,
    tmp_path: Path,
    task: Callable[..., Any],
    run_script: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    before = TrainerRM("e")([task(1), task(2)])
    after = TrainerRM("e").train([task(3), task(2), task(1)])
    assert [one.id for one in after[1:]] == [before[1].id, before[0].id]
    moved = tmp_path / "moved"
    shutil.move(store, moved)
    shown = run_script(
        """
        import pickle, sys, qwf
        qwf.init(uri=sys.argv[1])
        for one in qwf.TrainerRM("e").train(pickle.loads(bytes.fromhex(sys.argv[2]))):
            print(one.id, one.uri)
        """,
        moved,
        pickle.dumps([task(1), task(2), task(3)]).hex(),
    )
    assert shown.stderr == ""
    assert shown.stdout.split("\n")[:3] == [f"{one.id} {moved}" for one in (*before, after[0])]
    assert numbers(place) == {1: 1, 2: 1, 3: 1}
    qwf.init(uri=moved)
    assert statuses() == {"FINISHED": 3}


def test_d_38_what_is_trained_is_never_said_to_have_only_begun(
    store: Path, task: Callable[..., Any]
) -> None:
    trained = TrainerRM("e")([task(1)])
    again = TrainerRM("e").train([task(1), task(2)])
    assert [train_status(one) for one in again] == ["end_task_train", "begin_task_train"]
    delayed = DelayTrainerRM("d")([task(1)])
    assert [train_status(one) for one in DelayTrainerRM("d").train([task(1)])] == ["end_task_train"]
    assert [one.status for one in (*trained, *delayed)] == ["FINISHED"] * 2


def test_a_task_of_which_the_recorder_was_deleted_is_trained_again(
    store: Path, place: Path, task: Callable[..., Any]
) -> None:
    first, second = TrainerRM("e")([task(1), task(2)])
    R.get_exp(experiment_name="e").delete_recorder(recorder_id=first.id)
    again = TrainerRM("e")([task(1), task(2)])
    assert again[0].id != first.id
    assert again[1].id == second.id
    assert numbers(place) == {1: 2, 2: 1}
    assert statuses() == {"FINISHED": 2}
    (prepared,) = DelayTrainerRM("d").train([task(3)])
    R.get_exp(experiment_name="d").delete_recorder(recorder_id=prepared.id)
    (trained,) = DelayTrainerRM("d")([task(3)])
    assert trained.id != prepared.id
    assert trained.status == "FINISHED"


def test_tasks_that_are_no_plain_data_are_refused_unless_the_pool_may_keep_pickles(
    store: Path, place: Path, task: Callable[..., Any]
) -> None:
    bad = task(1)
    bad["model"]["class"] = Model
    with pytest.raises(TaskValueError, match=r"task 1.*model.*class"):
        TrainerRM("e").train([task(0), bad])
    assert not store.exists()
    (recorder,) = TrainerRM("e", TaskManager("pool", allow_pickle=True)).train(bad)
    assert number_of(recorder) == 1


# --- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", [1, 2])
def test_a_failing_task_does_not_lose_the_results_of_the_others(
    store: Path, place: Path, task: Callable[..., Any], kernels: int
) -> None:
    tasks = [task(0), task(1, "fail"), task(2), task(3, "fail"), task(4)]
    trainer = TrainerRM("e", TaskManager("e", max_attempts=2), kernels=kernels)
    with pytest.raises(TrainingError) as caught:
        trainer.train(tasks)
    recorders, failures = caught.value.recorders, caught.value.failures
    assert [one and number_of(one) for one in recorders] == [0, None, 2, None, 4]
    assert list(failures) == [1, 3]
    wanted = ArithmeticError if kernels == 1 else RemoteTaskError
    assert [type(one) for one in failures.values()] == [wanted] * 2
    assert "number 3 did not converge" in str(failures[3])
    assert numbers(place) == {0: 1, 1: 2, 2: 1, 3: 2, 4: 1}
    assert statuses() == {"FINISHED": 3, "FAILED": 4}
    assert {train_status(one) for one in recorders if one} == {"begin_task_train"}

    (place / "mended").touch()
    again = trainer.train(tasks)
    assert [number_of(one) for one in again] == [0, 1, 2, 3, 4]
    assert numbers(place) == {0: 1, 1: 3, 2: 1, 3: 3, 4: 1}
    assert TaskManager("e").task_stat() == {"done": 5}


def test_what_has_failed_elsewhere_is_told_with_its_place_and_traceback(
    store: Path, place: Path, task: Callable[..., Any]
) -> None:
    tasks = [task(0), task(1, "fail")]
    pool = TaskManager("e", max_attempts=1)
    pool.create_task(tasks)
    with worker(store) as other:
        with pytest.raises(TrainingError) as caught:
            TrainerRM("e", skip_run_task=True).train(tasks)
        said = other.communicate()[1]
        assert "TasksFailedError" in said
        assert other.returncode == 1
    failure = caught.value.failures[1]
    assert isinstance(failure, RemoteTaskError)
    assert failure.error == "ArithmeticError: number 1 did not converge"
    assert failure.pid == other.pid
    assert "in fit" in failure.traceback
    assert str(pickle.loads(pickle.dumps(failure))) == str(failure)
    assert f"{failure.error} (task {failure.identity}, pid {other.pid} on " in str(failure)


def test_a_train_function_that_returns_no_recorder_is_told(
    store: Path, task: Callable[..., Any]
) -> None:
    with pytest.raises(TrainingError, match="is a dict, and a recorder is expected"):
        TrainerRM("e", train_func=lambda config, **_: {"ic": 0.1}).train([task()])


def test_tasks_that_are_removed_meanwhile_are_told(store: Path, task: Callable[..., Any]) -> None:
    def train(config: Any, experiment_name: str, **_: Any) -> Any:
        if config["model"]["kwargs"]["number"] == 0:
            TaskManager("e").remove({"filter.model.kwargs.number": 1})
        return task_train(config, experiment_name)

    with pytest.raises(TrainingError) as caught:
        TrainerRM("e", train_func=train).train([task(0), task(1)])
    assert isinstance(caught.value.failures[1], TaskNotFoundError)
    assert number_of(caught.value.recorders[0]) == 0


def test_a_damaged_result_is_told_and_does_not_hide_the_others(
    store: Path, place: Path, task: Callable[..., Any]
) -> None:
    TrainerRM("e").train([task(0), task(1)])
    result = next((store / "tasks" / "e" / "res").iterdir())
    result.write_bytes(b"{")
    with pytest.raises(TrainingError, match=result.name) as caught:
        TrainerRM("e").train([task(0), task(1)])
    assert len(caught.value.failures) == 1
    assert len([one for one in caught.value.recorders if one]) == 1
    assert numbers(place) == {0: 1, 1: 1}


def test_an_attempt_that_has_lost_its_task_leaves_no_finished_recorder(
    store: Path, place: Path, task: Callable[..., Any]
) -> None:
    resets: list[int] = []

    def train(config: Any, experiment_name: str, **_: Any) -> Any:
        recorder = task_train(config, experiment_name)
        if not resets:  # as after a sleep that was longer than the lease
            resets.append(TaskManager("e").reset_waiting(force=True))
        return recorder

    (recorder,) = TrainerRM("e", train_func=train).train([task(1)])
    assert resets == [1]
    assert numbers(place) == {1: 2}
    assert statuses() == {"FINISHED": 1, "FAILED": 1}
    assert recorder.status == "FINISHED"


def test_an_interrupt_gives_the_task_back_and_the_next_train_goes_on(
    store: Path, place: Path, task: Callable[..., Any]
) -> None:
    def interrupted(config: Any, experiment_name: str, **_: Any) -> Any:
        if config["model"]["kwargs"]["number"] == 1:
            raise KeyboardInterrupt
        return task_train(config, experiment_name)

    with pytest.raises(KeyboardInterrupt):
        TrainerRM("e", train_func=interrupted).train([task(0), task(1), task(2)])
    assert TaskManager("e").task_stat() == {"waiting": 2, "done": 1}
    recorders = TrainerRM("e").train([task(0), task(1), task(2)])
    assert [number_of(one) for one in recorders] == [0, 1, 2]
    assert numbers(place) == {0: 1, 1: 1, 2: 1}


# --- with other processes ------------------------------------------------------------------------


def test_check_53_a_second_process_works_on_the_same_tasks(
    store: Path, place: Path, task: Callable[..., Any]
) -> None:
    tasks = [task(number, "meet") for number in range(6)]
    TaskManager("e").create_task(reversed(tasks))
    with worker(store) as other:
        recorders = TrainerRM("e")(tasks)
        assert other.wait() == 0
    assert [number_of(one) for one in recorders] == list(range(6))
    assert {one.status for one in recorders} == {"FINISHED"}
    assert numbers(place) == dict.fromkeys(range(6), 1)
    assert {pid for _, pid in fits(place)} == {os.getpid(), other.pid}
    assert statuses() == {"FINISHED": 6}


def test_a_trainer_that_skips_leaves_all_to_the_workers(
    store: Path, place: Path, task: Callable[..., Any]
) -> None:
    tasks = [task(number, "meet") for number in range(4)]
    TaskManager("e").create_task(tasks)
    with worker(store) as one, worker(store) as other:
        recorders = TrainerRM("e", skip_run_task=True).train(tasks)
        assert (one.wait(), other.wait()) == (0, 0)
    assert [number_of(recorder) for recorder in recorders] == list(range(4))
    assert {pid for _, pid in fits(place)} == {one.pid, other.pid}
    assert numbers(place) == dict.fromkeys(range(4), 1)


@pytest.mark.parametrize("kernels", [1, 2])
def test_the_task_of_a_killed_worker_is_taken_over_by_a_trainer_that_waits_for_it(
    store: Path, place: Path, task: Callable[..., Any], kernels: int
) -> None:
    held = task(0, "hold")
    pool = TaskManager("e")
    (identity,) = pool.create_task([held])
    with worker(store) as other:
        wait_until(lambda: len(fits(place)) == 1)
        os.kill(other.pid, signal.SIGSTOP)  # it does not go on, and holds its task all the same
        (place / "go").touch()
        trainer = TrainerRM("e", kernels=kernels)
        recorders = trainer.train([held, task(1), task(2, "kill", pid=other.pid)])
    assert [number_of(one) for one in recorders] == [0, 1, 2]
    assert numbers(place) == {0: 2, 1: 1, 2: 1}
    assert statuses() == {"FINISHED": 3, "LOST": 1}
    assert pool.re_query(identity)["res"].status == "FINISHED"
    (failure,) = pool.failures(identity)
    assert failure["pid"] == other.pid
    assert failure["error"].startswith("WorkerLost: ")


def test_worker_processes_of_a_trainer_share_the_tasks(
    store: Path, place: Path, task: Callable[..., Any]
) -> None:
    tasks = [task(number, "meet") for number in range(5)]
    recorders = TrainerRM("e", kernels=2).train(tasks)
    assert [number_of(one) for one in recorders] == list(range(5))
    assert numbers(place) == dict.fromkeys(range(5), 1)
    pids = {pid for _, pid in fits(place)}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_an_interrupt_ends_the_worker_processes_which_give_their_tasks_back(
    store: Path, place: Path, task: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        if len(fits(place)) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("qwf.tasks.waiting._show", interrupted)
    with pytest.raises(KeyboardInterrupt):
        TrainerRM("e", kernels=2).train([task(number, "hold") for number in range(3)])
    for _, pid in fits(place):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert TaskManager("e").task_stat() == {"waiting": 3}
    assert statuses() == {"FAILED": 2}
    assert [one["attempts"] for one in TaskManager("e").query(decode=False)] == [0, 0, 0]


def test_a_task_that_kills_its_process_is_set_aside_and_the_others_are_trained(
    store: Path, place: Path, task: Callable[..., Any]
) -> None:
    tasks = [task(0, "die"), task(1), task(2), task(3)]
    with pytest.raises(TrainingError) as caught:
        TrainerRM("e", kernels=2).train(tasks)
    assert [one and number_of(one) for one in caught.value.recorders] == [None, 1, 2, 3]
    assert str(caught.value.failures[0]).startswith("WorkerLost: ")
    assert numbers(place) == {0: 3, 1: 1, 2: 1, 3: 1}
    assert statuses() == {"FINISHED": 3, "LOST": 3}


class NobodyTakes(TaskManager):
    def fetch_except(self, *_: Any) -> Any:
        os._exit(9)


def test_processes_that_die_before_they_begin_are_not_started_for_ever(
    store: Path, task: Callable[..., Any]
) -> None:
    with pytest.raises(BrokenProcessPool, match="worker of pool 'e' died"):
        TrainerRM("e", NobodyTakes("e"), kernels=2).train([task(1), task(2)])
    assert TaskManager("e").task_stat() == {"waiting": 2}


def test_a_worker_with_several_processes_empties_the_pool_and_tells_what_failed(
    store: Path, place: Path, task: Callable[..., Any]
) -> None:
    pool = TaskManager("e", max_attempts=1)
    pool.create_task([task(number, "meet") for number in range(4)])
    TrainerRM("e", kernels=2).worker()
    assert pool.task_stat() == {"done": 4}
    pool.create_task([task(5, "fail"), task(6)])
    with pytest.raises(qwf.TasksFailedError, match="number 5 did not converge"):
        TrainerRM("e", kernels=2).worker()
    assert pool.task_stat() == {"done": 5, "failed": 1}


def test_a_trainer_can_be_pickled_with_its_pool(
    store: Path, tmp_path: Path, task: Callable[..., Any]
) -> None:
    pool = TaskManager("pool", max_attempts=1, lease=60.0)
    trainer = pickle.loads(pickle.dumps(TrainerRM("e", pool, kernels=2)))
    qwf.init(uri=tmp_path / "other")
    pool.create_task([task(1)])
    assert trainer.task_pool.task_stat() == {"waiting": 1}
    assert pickle.loads(pickle.dumps(pool)).fetch_task()["def"] == task(1)


def test_progress_is_that_of_all_who_work(
    store: Path,
    task: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    caplog.set_level(logging.INFO, logger="qwf")
    TrainerRM("e").train([task(1)])
    with pytest.raises(TrainingError):
        TrainerRM("e").train([task(1), task(2), task(3, "fail")])
    told = [one for one in caplog.messages if one.startswith("work on e: ")]
    assert told[-1].startswith("work on e: 2 of 3 done, 1 failed after ")
    assert len([one for one in caplog.messages if "of pool 'e' failed: Arithmetic" in one]) == 3


# --- in two steps --------------------------------------------------------------------------------


def test_check_53_a_delay_trainer_prepares_first_and_trains_at_the_end(
    store: Path, place: Path, task: Callable[..., Any]
) -> None:
    trainer = DelayTrainerRM("e", default_rec_name="name")
    assert (trainer.is_delay(), trainer.has_worker()) == (True, True)
    recorders = trainer.train([task(2), task(1)])
    assert {(one.status, one.name, train_status(one)) for one in recorders} == {
        ("SCHEDULED", "name", "begin_task_train")
    }
    assert TaskManager("e").task_stat() == {"part_done": 2}
    assert fits(place) == []
    assert [one.id for one in trainer.train([task(1), task(2)])] == [
        one.id for one in reversed(recorders)
    ]
    trained = trainer.end_train(recorders)
    assert all(one is other for one, other in zip(trained, recorders, strict=True))
    assert [one.load_object("params.pkl").number for one in recorders] == [2, 1]
    assert {(one.status, train_status(one)) for one in recorders} == {
        ("FINISHED", "end_task_train")
    }
    trainer.end_train(recorders)
    assert numbers(place) == {1: 1, 2: 1}
    assert TaskManager("e").task_stat() == {"done": 2}


def test_delayed_training_is_left_to_workers_elsewhere(
    store: Path, place: Path, task: Callable[..., Any]
) -> None:
    trainer = DelayTrainerRM("e", skip_run_task=True)
    recorders = trainer.train([task(number) for number in range(4)])
    with worker(store, "DelayTrainerRM") as other:
        trainer.end_train(recorders)
        assert other.wait() == 0
    assert {one.status for one in recorders} == {"FINISHED"}
    assert {pid for _, pid in fits(place)} == {other.pid}
    assert [number_of(one) for one in recorders] == list(range(4))


def begin_when_told(config: Any, experiment_name: str, **_: Any) -> Any:
    """Prepare number 0 when the other one was prepared in another process."""
    kwargs = config["model"]["kwargs"]
    place = Path(kwargs["place"])
    (place / f"preparing {kwargs['number']}").touch()
    if kwargs["number"] == 0:
        wait_until((place / "preparing 1").exists)
    return begin_task_train(config, experiment_name)


def test_d_30_a_delay_trainer_waits_for_what_others_are_just_preparing(
    store: Path, place: Path, task: Callable[..., Any]
) -> None:
    tasks = [task(0), task(1)]
    pool = TaskManager("e")
    pool.create_task(tasks[:1])
    call = f"train({tasks[:1]!r}, {HERE}.begin_when_told)"
    with worker(store, "DelayTrainerRM", call) as other:
        wait_until((place / "preparing 0").exists)
        recorders = DelayTrainerRM("e", train_func=begin_when_told).train(tasks)
        assert other.wait() == 0
    assert [number_of(one) for one in recorders] == [0, 1]
    assert statuses() == {"SCHEDULED": 2}
    assert recorders[0].sessions()[0]["pid"] == other.pid


def test_a_delay_trainer_does_not_wait_for_those_who_train_what_is_prepared(
    store: Path, place: Path, task: Callable[..., Any]
) -> None:
    tasks = [task(number, "hold") for number in range(2)]
    prepared = DelayTrainerRM("e").train(tasks)
    with worker(store, "DelayTrainerRM") as other:
        wait_until(lambda: len(fits(place)) == 1)
        again = DelayTrainerRM("e").train([*tasks, task(2)])
        assert [one.id for one in again[:2]] == [one.id for one in prepared]
        assert TaskManager("e").task_stat() == {"running": 1, "part_done": 2}
        (place / "go").touch()
        DelayTrainerRM("e").end_train(again)
        assert other.wait() == 0
    assert statuses() == {"FINISHED": 3}
    assert numbers(place) == {0: 1, 1: 1, 2: 1}


def test_the_recorder_of_a_killed_worker_is_trained_by_the_next(
    store: Path, place: Path, task: Callable[..., Any]
) -> None:
    (recorder,) = DelayTrainerRM("e").train(task(1, "hold"))
    with worker(store, "DelayTrainerRM") as other:
        wait_until(lambda: len(fits(place)) == 1)
        other.kill()
    (place / "go").touch()
    DelayTrainerRM("e").end_train(recorder)
    assert statuses() == {"FINISHED": 1}
    assert recorder.status == "FINISHED"
    assert [one["pid"] for one in recorder.sessions()][1:] == [other.pid, os.getpid()]


def test_delayed_training_goes_on_after_a_failure_with_what_is_not_trained(
    store: Path, place: Path, task: Callable[..., Any]
) -> None:
    trainer = DelayTrainerRM("e", TaskManager("e", max_attempts=1))
    prepared = trainer.train([task(0), task(1, "fail"), task(2)])
    with pytest.raises(TrainingError) as caught:
        trainer.end_train(prepared)
    assert [one.status for one in prepared] == ["FINISHED", "FAILED", "FINISHED"]
    assert caught.value.recorders == [prepared[0], None, prepared[2]]
    assert [train_status(one) for one in prepared] == [
        "end_task_train",
        "begin_task_train",
        "end_task_train",
    ]
    (place / "mended").touch()
    assert [one.id for one in trainer.train([task(1, "fail")])] == [prepared[1].id]
    assert trainer.end_train(prepared) == prepared
    assert {one.status for one in prepared} == {"FINISHED"}
    assert numbers(place) == {0: 1, 1: 2, 2: 1}


def test_a_recorder_that_no_task_stands_for_is_refused(
    store: Path, place: Path, task: Callable[..., Any]
) -> None:
    trainer = DelayTrainerRM("e")
    (prepared,) = trainer.train([task(1)])
    other = begin_task_train(task(2), "e")
    with pytest.raises(RecorderStateError, match=f"{other.id} has no tag '{TM_ID}'"):
        trainer.end_train([prepared, other])
    assert fits(place) == []
    other.set_tags(**prepared.list_tags())
    with pytest.raises(TrainingError, match="somebody has had it prepared again"):
        trainer.end_train([other])
    assert other.status == "SCHEDULED"
    assert TaskManager("e").task_stat() == {"done": 1}
