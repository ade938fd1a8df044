"""What is active belongs to the thread or asyncio task that started it."""

from __future__ import annotations

import asyncio
import contextvars
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import qwf
from qwf import R
from qwf.errors import ConfigError, RecorderInitializationError, RecorderNotFoundError
from qwf.facade import QlibRecorder
from qwf.tracking.manager import ExpManager, default_manager
from qwf.tracking.recorder import Recorder


def test_threads_have_their_own_active_run(store: Path) -> None:
    together = threading.Barrier(3)

    def work(number: int) -> Recorder:
        assert R.exp_manager.active_experiment is None
        with R.start(experiment_name=f"e{number}"):
            together.wait()
            R.log_params(number=number)
            together.wait()
            return R.get_recorder()

    with R.start(experiment_name="main"), ThreadPoolExecutor(3) as pool:
        recorders = list(pool.map(work, range(3)))
        R.log_params(number="main")
        main = R.get_recorder()
    found = [recorder.list_params()["number"] for recorder in (*recorders, main)]
    assert found == ["0", "1", "2", "main"]
    assert {recorder.status for recorder in recorders} == {"FINISHED"}


def test_a_thread_logs_into_a_run_that_it_is_given(store: Path) -> None:
    with R.start(experiment_name="e"):
        recorder = R.get_recorder()
        thread = threading.Thread(target=lambda: recorder.log_metrics(m=1))
        thread.start()
        thread.join()
    assert recorder.list_metrics() == {"m": 1.0}


def test_a_uri_context_holds_in_its_thread_only(store: Path, tmp_path: Path) -> None:
    with R.uri_context(tmp_path / "other"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(R.get_uri).result() == str(store)
        assert R.get_uri() == str(tmp_path / "other")


def test_tasks_have_their_own_active_run(store: Path) -> None:
    async def work(number: int, barrier: list[asyncio.Event]) -> Recorder:
        with R.start(experiment_name=f"e{number}"):
            barrier[number].set()
            for event in barrier:
                await event.wait()
            R.log_params(number=number)
            await asyncio.sleep(0)
            return R.get_recorder()

    async def main() -> list[Recorder]:
        barrier = [asyncio.Event() for _ in range(3)]
        with R.start(experiment_name="main"):
            outer = R.get_recorder()
            recorders = await asyncio.gather(*(work(number, barrier) for number in range(3)))
            assert R.get_recorder() is outer
            R.log_params(number="main")
        return [*recorders, outer]

    recorders = asyncio.run(main())
    assert [one.list_params()["number"] for one in recorders] == ["0", "1", "2", "main"]
    assert {one.status for one in recorders} == {"FINISHED"}


def test_a_task_inherits_the_active_run_of_its_creator(store: Path) -> None:
    async def log(number: int) -> None:
        R.log_metrics(step=number, m=number)

    async def main() -> Recorder:
        with R.start(experiment_name="e"):
            await asyncio.gather(*(log(number) for number in range(5)))
            return R.get_recorder()

    assert len(asyncio.run(main()).metric_history()) == 5
    assert len(R.list_recorders(experiment_name="e")) == 1


def test_runs_nest_to_any_depth(store: Path) -> None:
    recorders = []

    def nest(depth: int) -> None:
        if depth == 5:
            return
        with R.start(experiment_name="e"):
            recorder = R.get_recorder()
            recorders.append(recorder)
            nest(depth + 1)
            assert R.get_recorder() is recorder
            R.log_params(depth=depth)

    nest(0)
    assert [one.list_params()["depth"] for one in recorders] == ["0", "1", "2", "3", "4"]
    assert {one.status for one in recorders} == {"FINISHED"}


def test_one_experiment_may_be_active_twice(store: Path) -> None:
    with R.start(experiment_name="e") as outer:
        first = R.get_recorder()
        with R.start(experiment_name="e") as inner:
            assert inner is not outer
            assert inner == outer
            second = R.get_recorder()
        assert R.get_recorder() is first
        assert second != first


def test_end_exp_ends_the_innermost_run(store: Path) -> None:
    R.start_exp(experiment_name="outer")
    R.start_exp(experiment_name="inner")
    R.end_exp()
    assert R.get_exp().name == "outer"
    R.end_exp("FAILED")
    assert R.exp_manager.active_experiment is None
    statuses = [
        next(iter(R.list_recorders(experiment_name=name).values())).status
        for name in ("inner", "outer")
    ]
    assert statuses == ["FINISHED", "FAILED"]


def test_blocks_may_end_in_another_order_than_they_began(store: Path) -> None:
    first, second = R.start(experiment_name="first"), R.start(experiment_name="second")
    first.__enter__()
    one = R.get_recorder()
    second.__enter__()
    first.__exit__(None, None, None)
    assert one.status == "FINISHED"
    assert R.exp_manager.active_experiment is None
    second.__exit__(None, None, None)
    assert {
        recorder.status
        for name in ("first", "second")
        for recorder in R.list_recorders(experiment_name=name).values()
    } == {"FINISHED"}


def test_a_failed_start_leaves_the_uri_as_it_was(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown"):
        R.start_exp(experiment_id="unknown", uri=tmp_path / "other")
    assert R.get_uri() == str(store)
    with pytest.raises(ConfigError, match="scheme 'http'"):
        R.start_exp(uri="http://example.org")
    with pytest.raises(ConfigError, match="scheme 's3'"), R.uri_context("s3://bucket"):
        pass
    with pytest.raises(ConfigError, match="scheme 'sqlite'"):
        R.set_uri("sqlite:///x.db")
    assert R.get_uri() == str(store)
    assert not store.exists()


def test_the_innermost_uri_wins(store: Path, tmp_path: Path) -> None:
    one, two, three = (str(tmp_path / name) for name in ("one", "two", "three"))
    with R.start(experiment_name="a", uri=one):
        with R.uri_context(two):
            assert R.get_uri() == two
            R.log_params(where="the active run")
            with R.start(experiment_name="b"):
                assert R.get_uri() == two
                with R.start(experiment_name="c", uri=three):
                    assert R.get_uri() == three
                    assert R.get_exp(experiment_name="d").uri == three
                assert R.get_uri() == two
        assert R.get_uri() == one
        assert R.get_recorder().list_params()["where"] == "the active run"
    assert R.get_uri() == str(store)
    for uri, names in ((one, {"a"}), (two, {"b"}), (three, {"c", "d"}), (str(store), set())):
        with R.uri_context(uri):
            assert set(R.list_experiments()) == names


def test_a_run_started_in_a_uri_context_stays_in_its_store_after_it(
    store: Path, tmp_path: Path
) -> None:
    with R.uri_context(tmp_path / "other"):
        R.start_exp(experiment_name="e")
    R.log_params(a=1)
    recorder = R.get_recorder()
    R.end_exp()
    assert recorder.uri == str(tmp_path / "other")
    assert recorder.list_params()["a"] == "1"
    assert R.get_uri() == str(store)
    assert R.list_experiments() == {}


def test_a_generator_that_is_abandoned_ends_its_run(store: Path) -> None:
    def batches() -> Iterator[Recorder]:
        with R.start(experiment_name="e"):
            yield R.get_recorder()

    generator = batches()
    recorder = next(generator)
    generator.close()
    assert recorder.status == "FAILED"
    assert R.exp_manager.active_experiment is None


@pytest.mark.parametrize("error", [None, RuntimeError("training failed")])
def test_a_block_that_is_left_in_another_task_ends_its_run(
    store: Path, error: RuntimeError | None
) -> None:
    async def fixture() -> AsyncIterator[Recorder]:
        with R.start(experiment_name="e"):
            yield R.get_recorder()

    async def main() -> Recorder:
        generator = fixture()
        recorder = await asyncio.create_task(anext(generator))
        # The task is done, its block is not.
        with pytest.raises(ValueError, match="is active"):
            R.delete_exp(experiment_name="e")
        with pytest.raises(RecorderInitializationError, match="'e'"):
            qwf.init(uri=store)
        with pytest.raises(RuntimeError if error else StopAsyncIteration):
            await asyncio.create_task(generator.athrow(error) if error else anext(generator))
        return recorder

    recorder = asyncio.run(main())
    assert recorder.status == ("FAILED" if error else "FINISHED")
    qwf.init(uri=store)


def test_a_block_that_is_left_in_another_context_is_over_in_its_own(
    store: Path, tmp_path: Path
) -> None:
    own = contextvars.copy_context()
    block, place = R.start(experiment_name="e"), R.uri_context(tmp_path / "other")
    own.run(place.__enter__)
    own.run(block.__enter__)
    recorder = own.run(R.get_recorder)
    block.__exit__(None, None, None)
    place.__exit__(None, None, None)
    assert recorder.status == "FINISHED"
    assert own.run(lambda: R.exp_manager.active_experiment) is None
    assert own.run(R.get_uri) == str(store)


def test_a_run_that_was_ended_by_a_child_task_is_not_logged_to(store: Path) -> None:
    async def child() -> None:
        R.end_exp()

    async def main() -> tuple[Recorder, Recorder]:
        with R.start(experiment_name="e"):
            ended = R.get_recorder()
            await asyncio.create_task(child())
            assert R.exp_manager.active_experiment is None
            R.log_params(after=1)
            return ended, R.get_recorder()

    ended, implicit = asyncio.run(main())
    assert "after" not in ended.list_params()
    assert implicit.list_params()["after"] == "1"
    assert (ended.status, implicit.status) == ("FINISHED", "FINISHED")
    assert list(R.list_recorders()) == [implicit.id]


def test_an_inner_run_that_cannot_be_ended_does_not_keep_the_outer_from_ending(
    store: Path,
) -> None:
    block = R.start(experiment_name="outer")
    block.__enter__()
    outer = R.get_recorder()
    R.start_exp(experiment_name="inner")
    shutil.rmtree(R.get_recorder().get_local_dir())
    with pytest.raises(RecorderNotFoundError):
        block.__exit__(None, None, None)
    assert outer.status == "FINISHED"
    assert R.exp_manager.active_experiment is None
    qwf.init(uri=store)


def test_the_run_of_a_thread_that_has_died_does_not_keep_the_settings(
    store: Path, tmp_path: Path
) -> None:
    thread = threading.Thread(target=lambda: R.log_metrics(m=1))
    thread.start()
    thread.join()
    (recorder,) = R.list_recorders().values()
    with pytest.raises(ValueError, match=f"runs its recorders .*{recorder.id}"):
        R.delete_exp(experiment_name="Experiment")
    qwf.init(uri=tmp_path / "other")
    recorder.end_run("FINISHED")


def test_a_listing_shows_the_active_run_as_it_was_read(store: Path) -> None:
    with R.start(experiment_name="e") as experiment:
        active = R.get_recorder()
        other = ExpManager(store).get_exp(experiment_name="e").get_recorder(active.id)
        other.end_run("FAILED")
        (listed,) = experiment.list_recorders("list", status="FAILED")
        assert listed is active
        assert listed.status == "FAILED"
        assert experiment.list_recorders("list", status="RUNNING") == []


# --- settings --------------------------------------------------------------------------------


def test_init_is_refused_while_another_thread_has_a_run(store: Path, tmp_path: Path) -> None:
    started, release = threading.Event(), threading.Event()

    def work() -> None:
        with R.start(experiment_name="elsewhere"):
            started.set()
            release.wait(30)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert started.wait(30)
        with pytest.raises(RecorderInitializationError, match="'elsewhere'"):
            qwf.init(uri=tmp_path / "other")
    finally:
        release.set()
        thread.join()
    assert R.get_uri() == str(store)
    qwf.init(uri=tmp_path / "other")


def test_an_experiment_that_is_active_in_another_thread_is_not_deleted(store: Path) -> None:
    with R.start(experiment_name="e"), ThreadPoolExecutor(1) as pool:
        recorder = R.get_recorder()
        with pytest.raises(ValueError, match="is active"):
            pool.submit(R.delete_exp, experiment_name="e").result()
        experiment = pool.submit(R.get_exp, experiment_name="e").result()
        with pytest.raises(ValueError, match="is active"):
            pool.submit(experiment.delete_recorder, recorder.id).result()


def test_skip_if_reg_keeps_the_settings(store: Path, tmp_path: Path) -> None:
    with R.start(experiment_name="e"):
        qwf.init(uri=tmp_path / "other", skip_if_reg=True)
        assert R.get_uri() == str(store)


def test_settings_of_a_bad_init_are_not_taken(store: Path) -> None:
    for bad in ({"uril": "x"}, {"uri": 3}, {"pickle_policy": "maybe"}, {"exp_manager": "x"}):
        with pytest.raises(ConfigError):
            qwf.init(**{"default_exp_name": "other", **bad})
    assert R.get_uri() == str(store)
    assert qwf.C.default_exp_name == "Experiment"


def test_qlibs_form_of_the_settings_is_understood(store: Path, tmp_path: Path) -> None:
    qwf.init(
        provider_uri=None,
        region="cn",
        exp_manager={
            "class": "MLflowExpManager",
            "module_path": "qlib.workflow.expm",
            "kwargs": {"uri": f"file:{tmp_path / 'mlruns'}", "default_exp_name": "Default one"},
        },
    )
    R.save_objects(x=1)
    assert list(R.list_experiments()) == ["Default one"]
    assert (tmp_path / "mlruns").is_dir()


def test_managers_of_ones_own_are_independent(store: Path, tmp_path: Path) -> None:
    own = QlibRecorder(ExpManager(tmp_path / "own", "Mine"))
    with R.start(experiment_name="e"), own.start(experiment_name="f"):
        R.log_params(where="process")
        own.log_params(where="own")
        qwf_run, own_run = R.get_recorder(), own.get_recorder()
    assert (qwf_run.uri, own_run.uri) == (str(store), str(tmp_path / "own"))
    assert qwf_run.list_params()["where"] == "process"
    assert own_run.list_params()["where"] == "own"
    own.save_objects(x=1)
    assert set(own.list_experiments()) == {"f", "Mine"}
    with own.start():
        qwf.init(uri=tmp_path / "other")  # is none of its business
    assert own.get_uri() == str(tmp_path / "own")


def test_the_manager_of_the_process_is_one_object(store: Path) -> None:
    assert default_manager() is R.exp_manager
    assert R.exp_manager is R.exp_manager
    before = R.exp_manager
    qwf.init(uri=store)
    assert R.exp_manager is not before


def test_a_run_ends_even_if_the_settings_of_the_environment_change_meanwhile(
    settings_restored: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(qwf.C, "registered", False)
    monkeypatch.setattr(qwf.C, "_values", {})
    monkeypatch.setenv("QWF_URI", str(tmp_path / "one"))
    with R.start(experiment_name="e"):
        recorder = R.get_recorder()
        monkeypatch.setenv("QWF_URI", str(tmp_path / "two"))
    assert recorder.status == "FINISHED"


def test_what_a_block_raises_is_raised_also_if_its_run_cannot_be_ended(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def train() -> None:
        with R.start(experiment_name="e"):
            shutil.rmtree(R.get_recorder().get_local_dir())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert "could not be ended FAILED" in caplog.text


def test_r_lists_recorders_by_status_and_filter(store: Path) -> None:
    for number in range(3):
        R.start_exp(experiment_name="e")
        R.log_metrics(m=number)
        R.end_exp("FAILED" if number == 1 else "FINISHED")
    found = R.list_recorders(experiment_name="e", status="FINISHED", filter_string="metrics.m > 1")
    assert [recorder.list_metrics() for recorder in found.values()] == [{"m": 2.0}]
    assert len(R.list_recorders(experiment_name="e", max_results=2)) == 2
