"""Trainers over processes and executors: all tasks trained, in order, and true statuses."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

import qwf
from qwf import C, R
from qwf.errors import ConfigError, QwfError, TrainingError
from qwf.trainer import DelayTrainerR, TrainerR, end_task_train, task_train

HERE = __name__
ROOT = Path(qwf.__file__).parent.parent


class Model:
    """Remembers its number, and what it was fitted with."""

    def __init__(self, number: int = 0) -> None:
        self.number = number

    def fit(self, dataset: Any) -> None:
        self.pid, self.thread = os.getpid(), threading.get_ident()
        self.policy, self.uri = C.pickle_policy, R.get_uri()


class Fails(Model):
    def fit(self, dataset: Any) -> None:
        raise ArithmeticError(f"number {self.number} did not converge")


class Dies(Model):
    def fit(self, dataset: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Dataset:
    pass


def task(number: int = 0, model: type[Model] = Model) -> dict[str, Any]:
    return {
        "model": {"class": model.__name__, "module_path": HERE, "kwargs": {"number": number}},
        "dataset": {"class": "Dataset", "module_path": HERE},
    }


def models(recorders: list[Any]) -> list[Any]:
    return [one.load_object("params.pkl") for one in recorders]


@pytest.fixture(scope="module")
def dask_client() -> Iterator[Any]:
    """A client of two processes on this machine, each with two threads."""
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=2, processes=True, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@contextlib.contextmanager
def _own_kernels(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    yield {"kernels": 2}


@contextlib.contextmanager
def _threads(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    with ThreadPoolExecutor(2) as pool:
        yield {"executor": pool}


@contextlib.contextmanager
def _processes(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    with ProcessPoolExecutor(2) as pool:
        yield {"executor": pool}


@contextlib.contextmanager
def _dask(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    yield {"executor": request.getfixturevalue("dask_client").get_executor()}


@pytest.fixture(params=[_own_kernels, _threads, _processes, _dask], ids=lambda way: way.__name__)
def way(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """The arguments that make a trainer train several tasks at once."""
    with request.param(request) as arguments:
        yield arguments


# --- every way -------------------------------------------------------------------------------


def test_recorders_come_in_the_order_of_the_tasks(store: Path, way: dict[str, Any]) -> None:
    trainer = TrainerR("e", default_rec_name="rolling", **way)
    recorders = trainer.train([task(number) for number in (3, 1, 2, 0)])
    assert [model.number for model in models(recorders)] == [3, 1, 2, 0]
    assert {(one.status, one.name, one.uri) for one in recorders} == {
        ("FINISHED", "rolling", str(store))
    }
    assert {one.list_tags()["train_status"] for one in recorders} == {"begin_task_train"}
    trainer.end_train(recorders)
    assert {one.list_tags()["train_status"] for one in recorders} == {"end_task_train"}


def test_equal_tasks_are_trained_as_often_as_they_are_given(
    store: Path, way: dict[str, Any]
) -> None:
    trainer = TrainerR("e", **way)
    recorders = [*trainer.train([task()] * 2), *trainer.train([task()] * 2)]
    assert len({one.id for one in recorders}) == 4


def test_a_delay_trainer_trains_at_the_end_and_once(store: Path, way: dict[str, Any]) -> None:
    trainer = DelayTrainerR("e", **way)
    prepared = trainer.train([task(number) for number in range(3)])
    assert {one.status for one in prepared} == {"SCHEDULED"}
    assert [one.list_artifacts() for one in prepared] == [["task"]] * 3
    trained = trainer.end_train(prepared)
    assert all(one is other for one, other in zip(trained, prepared, strict=True))
    assert {one.status for one in prepared} == {"FINISHED"}
    assert [model.number for model in models(prepared)] == [0, 1, 2]
    ended = [one.end_time for one in prepared]
    trainer.end_train(prepared, end_train_func=None)
    assert [one.end_time for one in prepared] == ended
    assert len(R.list_recorders(experiment_name="e")) == 3


def test_a_failing_task_does_not_lose_the_results_of_the_others(
    store: Path, way: dict[str, Any]
) -> None:
    tasks = [task(0), task(1, Fails), task(2), task(3, Fails), task(4)]
    with pytest.raises(TrainingError) as caught:
        TrainerR("e", **way).train(tasks)
    recorders, failures = caught.value.recorders, caught.value.failures
    assert [None if one is None else models([one])[0].number for one in recorders] == [
        *(0, None, 2, None, 4)
    ]
    assert [one.status for one in recorders if one] == ["FINISHED"] * 3
    assert {one.list_tags()["train_status"] for one in recorders if one} == {"begin_task_train"}
    assert list(failures) == [1, 3]
    assert [type(one) for one in failures.values()] == [ArithmeticError] * 2
    assert caught.value.__cause__ is failures[1]
    assert str(failures[3]) == "number 3 did not converge"
    statuses = [one.status for one in R.list_recorders(experiment_name="e").values()]
    assert sorted(statuses) == ["FAILED"] * 2 + ["FINISHED"] * 3


def test_delayed_training_goes_on_after_a_failure_with_what_is_not_trained(
    store: Path, way: dict[str, Any]
) -> None:
    trainer = DelayTrainerR("e", **way)
    prepared = trainer.train([task(0), task(1, Fails), task(2)])
    with pytest.raises(TrainingError) as caught:
        trainer.end_train(prepared)
    assert [one.status for one in prepared] == ["FINISHED", "FAILED", "FINISHED"]
    assert caught.value.recorders == [prepared[0], None, prepared[2]]
    prepared[1].save_objects(task=task(1))
    ended = prepared[0].end_time
    assert trainer.end_train(prepared) == prepared
    assert {one.status for one in prepared} == {"FINISHED"}
    assert prepared[0].end_time == ended
    assert models(prepared)[1].number == 1


def test_settings_and_store_travel_with_every_task(
    store: Path, tmp_path: Path, way: dict[str, Any]
) -> None:
    # Executors live on while the settings of this process change.
    for number, policy in enumerate(("restricted", "trusted")):
        qwf.init(uri=store, pickle_policy=policy)
        with R.uri_context(tmp_path / f"context {number}"):
            recorders = TrainerR("e", **way).train([task(), task()])
        qwf.init(uri=store)
        for model, recorder in zip(models(recorders), recorders, strict=True):
            assert (model.policy, model.uri) == (policy, str(tmp_path / f"context {number}"))
            assert recorder.uri == model.uri
    assert not store.exists()


def test_training_beside_an_active_run_leaves_that_run_alone(
    store: Path, way: dict[str, Any]
) -> None:
    with R.start(experiment_name="outer"):
        outer = R.get_recorder()
        (recorder,) = TrainerR("e", **way).train(task())
        assert R.get_recorder() is outer
        R.log_metrics(loss=1.0)
    assert (outer.status, outer.list_artifacts()) == ("FINISHED", [])
    assert recorder.status == "FINISHED"


@pytest.mark.parametrize("trainer_class", [TrainerR, DelayTrainerR])
def test_no_task_is_accepted(
    store: Path, way: dict[str, Any], trainer_class: type[TrainerR]
) -> None:
    assert trainer_class("e", **way)([]) == []
    assert not store.exists()


def train_nothing(config: Any, experiment_name: str, **kwargs: Any) -> Any:
    return None if config["model"]["kwargs"]["number"] == 1 else task_train(config, "e")


def test_a_train_function_that_returns_no_recorder_fails_its_task_only(
    store: Path, way: dict[str, Any]
) -> None:
    trainer = TrainerR("e", train_func=train_nothing, **way)
    with pytest.raises(TrainingError, match="task 1: AttributeError"):
        trainer.train([task(0), task(1), task(2)])
    assert len(R.list_recorders(experiment_name="e")) == 2


def test_a_recorder_given_twice_is_trained_once(store: Path, way: dict[str, Any]) -> None:
    trainer = DelayTrainerR("e", **way)
    (prepared,) = trainer.train(task())
    assert trainer.end_train([prepared, prepared]) == [prepared, prepared]
    assert prepared.status == "FINISHED"
    assert [session["ended_at"] is None for session in sessions(prepared)] == [False, False]


def sessions(recorder: Any) -> list[Any]:
    """Each begins when a process starts or resumes the run."""
    import json

    return list(json.loads(Path(recorder.get_local_dir(), "recorder.json").read_text())["sessions"])


# --- where -----------------------------------------------------------------------------------


def test_kernels_are_processes_and_each_task_has_a_fresh_one(store: Path) -> None:
    trained = models(TrainerR("e", kernels=2).train([task() for _ in range(3)]))
    assert len({model.pid for model in trained} | {os.getpid()}) == 4


def test_threads_are_those_of_the_executor(store: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        trained = models(TrainerR("e", executor=pool).train([task(), task()]))
        assert {model.pid for model in trained} == {os.getpid()}
        assert threading.get_ident() not in {model.thread for model in trained}
        assert pool.submit(int, "7").result() == 7, "the executor is its owner's"


def test_kernels_are_a_setting(store: Path) -> None:
    qwf.init(uri=store, kernels=2)
    trained = models(TrainerR("e").train([task(), task()]))
    assert len({model.pid for model in trained} | {os.getpid()}) == 3
    trained = models(TrainerR("e", kernels=1).train([task(), task()]))
    assert {model.pid for model in trained} == {os.getpid()}
    with ThreadPoolExecutor(1) as pool:
        (model,) = models(TrainerR("e", executor=pool).train(task()))
    assert model.pid == os.getpid()


def test_one_kernel_is_this_process_and_the_first_failing_task_is_raised(store: Path) -> None:
    with pytest.raises(ArithmeticError, match="number 1"):
        TrainerR("e").train([task(0), task(1, Fails), task(2)])
    assert len(R.list_recorders(experiment_name="e")) == 2


@pytest.mark.parametrize("kernels", [0, -1, 1.5, "2", True])
def test_impossible_kernels_are_refused(store: Path, kernels: Any) -> None:
    for call in (TrainerR, DelayTrainerR):
        with pytest.raises(ConfigError, match=r"kernels is .*expected a whole number"):
            call("e", kernels=kernels)


def test_an_executor_excludes_what_it_decides_itself(store: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        for more in ({"kernels": 2}, {"call_in_subproc": True}):
            with pytest.raises(ConfigError, match="an executor decides itself"):
                TrainerR("e", executor=pool, **more)


# --- processes that die ----------------------------------------------------------------------


def test_a_process_that_is_killed_costs_its_own_task_only(store: Path) -> None:
    trainer = DelayTrainerR("e", kernels=2)
    prepared = trainer.train([task(0), task(1, Dies), task(2), task(3)])
    with pytest.raises(TrainingError, match=r"task 1: BrokenProcessPool.*end_task_train.*SIGKILL"):
        trainer.end_train(prepared)
    assert [one.status for one in prepared] == ["FINISHED", "FAILED", "FINISHED", "FINISHED"]
    with pytest.raises(TrainingError) as caught:
        TrainerR("f", kernels=2).train([task(0), task(1, Dies), task(2)])
    assert [one is None for one in caught.value.recorders] == [False, True, False]
    # Nobody here knows the run that the process had made.
    statuses = [one.status for one in R.list_recorders(experiment_name="f").values()]
    assert sorted(statuses)[:2] == ["FINISHED", "FINISHED"]
    assert sorted(statuses)[2] in {"LOST", "RUNNING"}


def test_a_pool_that_breaks_leaves_no_recorder_running_and_what_was_trained_is_kept(
    store: Path,
) -> None:
    prepared = DelayTrainerR("e").train([task(0), task(1, Dies), task(2), task(3)])
    with ProcessPoolExecutor(1) as pool, pytest.raises(TrainingError) as caught:
        DelayTrainerR("e", executor=pool).end_train(prepared)
    assert {type(one) for one in caught.value.failures.values()} == {BrokenProcessPool}
    assert [one.status for one in prepared] == ["FINISHED", "FAILED", "SCHEDULED", "SCHEDULED"]
    with pytest.raises(BrokenProcessPool):
        DelayTrainerR("e", call_in_subproc=True).end_train(prepared)


# --- what is told ----------------------------------------------------------------------------


def test_the_error_names_the_first_failures_and_says_what_was_kept() -> None:
    failures: dict[int, BaseException] = {
        number: ValueError(f"bad {number}") for number in (7, 1, 3, 5)
    }
    error = TrainingError("e", recorders=[None] * 8 + ["r"], failures=failures)
    assert str(error) == (
        "4 of 9 tasks failed in experiment 'e': task 1: ValueError: bad 1; task 3: ValueError: "
        "bad 3; task 5: ValueError: bad 5; and 1 more. The other 5 are trained and kept, and "
        "`recorders` of this error holds them. Mend the tasks of `failures` and train those again."
    )
    assert isinstance(error, RuntimeError)
    assert isinstance(error, QwfError)


def test_the_error_can_be_sent_to_another_process(store: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        TrainerR("e", kernels=2).train([task(0), task(1, Fails)])
    same = pickle.loads(pickle.dumps(caught.value))
    assert str(same) == str(caught.value)
    assert same.recorders == caught.value.recorders


def test_progress_and_failures_are_logged_as_they_come(
    store: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    caplog.set_level(logging.INFO, logger="qwf")
    with pytest.raises(TrainingError):
        TrainerR("e", kernels=2).train([task(0), task(1, Fails), task(2)])
    assert [
        one for one in caplog.messages if "task 1 (task_train for experiment 'e') failed" in one
    ]
    assert caplog.messages[-1].startswith("train e: 2 of 3 done, 1 failed after ")


# --- Ctrl-C ----------------------------------------------------------------------------------

INTERRUPTED = """
    import os, sys, threading
    from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
    import qwf
    from qwf import DelayTrainerR, R, TrainerR

    class Dataset:
        pass

    class Model:
        def __init__(self, number):
            self.number = number

        def fit(self, dataset):
            if self.number > 0:
                os.write(1, b"fitting\\n")  # in one piece, also beside another process
                threading.Event().wait()

    def task(number):
        return {
            "model": {"class": Model, "kwargs": {"number": number}},
            "dataset": {"class": Dataset},
        }

    if __name__ == "__main__":
        qwf.init(uri="store")
        tasks = [task(number) for number in range(4)]
        delayed = sys.argv[1] == "delayed"
        trainer = DelayTrainerR("e", kernels=2) if delayed else TrainerR("e", kernels=2)
        try:
            trainer(tasks)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
            raise
"""


def processes_of(group: int) -> bool:
    """Whether the process group has a member; one that has ended may take a moment to go."""
    latest = time.monotonic() + 30
    while time.monotonic() < latest:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
    return True


@contextlib.contextmanager
def training_in(folder: Path, kind: str) -> Iterator[subprocess.Popen[str]]:
    """Run the program in a group of its own until two of its workers are fitting."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(INTERRUPTED))
    with subprocess.Popen(
        [sys.executable, "-W", "error", str(script), kind],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as program:
        try:
            assert program.stdout is not None
            assert [program.stdout.readline() for _ in range(2)] == ["fitting\n"] * 2
            yield program
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)


@pytest.mark.parametrize("kind", ["direct", "delayed"])
@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["process", "group"])
def test_ctrl_c_ends_with_true_statuses_and_leaves_no_process(
    tmp_path: Path, settings_restored: None, kind: str, send: Callable[[int, int], None]
) -> None:
    with training_in(tmp_path, kind) as program:
        send(program.pid, signal.SIGINT)
        told, errors = program.communicate(timeout=60)
        assert told == "interrupted\n"
        assert program.returncode == -signal.SIGINT
        assert errors.rstrip().endswith("KeyboardInterrupt")
        assert errors.count("Traceback") == 1, "of the program, and of no worker"
        assert not processes_of(program.pid)
    qwf.init(uri=tmp_path / "store")
    recorders = list(R.list_recorders(experiment_name="e").values())[::-1]
    statuses = {
        "direct": ["FAILED", "FAILED", "FINISHED"],
        "delayed": ["FAILED", "FAILED", "FINISHED", "SCHEDULED"],
    }
    assert sorted(one.status for one in recorders) == statuses[kind]
    tags = [one.list_tags().get("train_status") for one in recorders if one.status == "FINISHED"]
    assert tags == ["end_task_train" if kind == "delayed" else "begin_task_train"]


def test_sigterm_to_the_parent_ends_its_workers_too(
    tmp_path: Path, settings_restored: None
) -> None:
    with training_in(tmp_path, "direct") as program:
        os.kill(program.pid, signal.SIGTERM)
        program.communicate(timeout=60)
        assert program.returncode == 128 + signal.SIGTERM
        assert not processes_of(program.pid)
    qwf.init(uri=tmp_path / "store")
    statuses = [one.status for one in R.list_recorders(experiment_name="e").values()]
    assert sorted(statuses) == ["FAILED", "FAILED", "FINISHED"]


def test_ctrl_c_cancels_what_an_executor_has_not_begun_and_leaves_it_running(store: Path) -> None:
    let_go, all_submitted = threading.Event(), threading.Event()
    main = threading.main_thread().ident

    class Pool(ThreadPoolExecutor):
        accepted = 0

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            future = super().submit(fn, *args, **kwargs)
            self.accepted += 1
            if self.accepted == 2:
                all_submitted.set()
            return future

    def interrupt(config: Any, experiment_name: str, **kwargs: Any) -> Any:
        assert all_submitted.wait(60)
        signal.pthread_kill(main, signal.SIGINT)
        assert let_go.wait(60)
        return task_train(config, experiment_name)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Pool(1) as pool:
            with pytest.raises(KeyboardInterrupt):
                TrainerR("e", train_func=interrupt, executor=pool).train([task(0), task(1)])
            let_go.set()
            assert pool.submit(int, "7").result() == 7
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(R.list_recorders(experiment_name="e")) == 1


def test_recorders_of_processes_that_had_to_be_killed_are_failed(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwf.parallel.GRACE_SECONDS", 0.1)
    prepared = DelayTrainerR("e").train([task(0), task(1)])

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qwf.progress.Meter.count", interrupted)
    with pytest.raises(KeyboardInterrupt):
        DelayTrainerR("e", end_train_func=end_or_hang, kernels=2).end_train(prepared)
    assert [one.status for one in prepared] == ["FINISHED", "FAILED"]


def end_or_hang(recorder: Any, experiment_name: str | None, **kwargs: Any) -> Any:
    number = recorder.load_object("task")["model"]["kwargs"]["number"]
    beside = Path(recorder.uri).parent / "hanging"
    if number == 0:
        while not beside.exists():  # the other has begun, and cannot be told to end
            os.sched_yield()
        return end_task_train(recorder)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with R.start(experiment_id=recorder.experiment_id, recorder_id=recorder.id, resume=True):
        beside.touch()
        while True:
            signal.pause()
