"""Faults that were found one by one: each test is the smallest thing that showed it."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest
from conftest import FaultyOs

from qwf import R
from qwf.errors import UnsafeNameError, WriteError
from qwf.process import exits
from qwf.storage import lock
from qwf.testing.calls import recorded_calls
from qwf.tracking import artifacts, metric_log
from qwf.tracking.manager import ExpManager
from qwf.tracking.recorder import Recorder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def run(root: Path) -> Recorder:
    return ExpManager(root).get_exp(experiment_name="e").create_recorder().start_run()


def same(run: Recorder) -> Recorder:
    """The recorder as another process sees it."""
    return ExpManager(Path(run.uri)).get_exp(experiment_name="e").get_recorder(run.id)


def in_child(call: Callable[[], object], *, seconds: int = 10) -> int:
    """Call in a forked process, which is killed if it hangs; return its exit code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(seconds)
            call()
            code = 0
        except BaseException:  # noqa: BLE001 - nothing may pass on into the parent's stack
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# --- metrics and the end of a run ------------------------------------------------------------


@pytest.mark.parametrize("moment", ["others", "sync_others", "summary"])
def test_metrics_that_another_process_logs_during_the_end_are_listed(
    run: Recorder, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.log_metrics(mine=1)
    real, calls = getattr(metric_log.MetricLog, moment), []

    def late(self: Any, **options: Any) -> Any:
        result = real(self, **options)
        if not calls:
            calls.append(1)
            assert in_child(lambda: same(run).log_metrics(late=2)) == 0
        return result

    monkeypatch.setattr(metric_log.MetricLog, moment, late)
    run.end_run("FINISHED")
    assert calls
    assert run.list_metrics() == {"mine": 1, "late": 2}


def test_metrics_that_another_process_logs_after_the_end_are_listed(run: Recorder) -> None:
    other = same(run)
    run.end_run("FINISHED")
    assert in_child(lambda: other.log_metrics(late=2)) == 0
    assert run.list_metrics() == {"late": 2}


def test_what_other_processes_have_logged_is_synced_at_the_end(run: Recorder) -> None:
    assert in_child(lambda: same(run).log_metrics(theirs=1)) == 0
    (journal,) = Path(run.get_local_dir()).glob("metrics.*")
    with recorded_calls() as calls:
        run.end_run("FINISHED")
    synced = [number for number, call in enumerate(calls)
              if call.name == "fsync" and call.path == journal]  # fmt: skip
    committed = [number for number, call in enumerate(calls) if call.name == "replace"]
    assert synced
    assert synced[0] < committed[0]


def test_a_journal_that_failed_to_close_never_writes_into_another_file(
    run: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.log_metrics(a=1)
    journal = run._metric_log._writer._file  # type: ignore[union-attr]
    number = journal._descriptor

    failed = []

    def fails(descriptor: int) -> None:
        os.close(descriptor)
        if descriptor == number and not failed:
            failed.append(descriptor)
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patch:
        patch.setattr("qwf.storage.fsio.os", FaultyOs(close=fails))
        with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
            run.end_run("FINISHED")
    assert same(run).status == "FINISHED"
    mine = os.open(tmp_path / "users.bin", os.O_CREAT | os.O_WRONLY)
    os.dup2(mine, number)  # somebody else's file has this number now
    journal.close()
    run.log_metrics(a=2)
    run.end_run("FINISHED")
    os.write(number, b"precious")
    for descriptor in {mine, number}:
        os.close(descriptor)
    assert (tmp_path / "users.bin").read_bytes() == b"precious"
    assert run.list_metrics() == {"a": 2}


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_an_end_that_failed_can_be_repeated_and_is_not_forgotten(
    run: Recorder, call: str, os_fails: Callable[..., Any]
) -> None:
    with (
        os_fails(OSError(errno.ENOSPC, "No space left on device"), call),
        pytest.raises(WriteError),
    ):
        run.end_run("FINISHED")
    assert exits.is_open(str(run.id)), "the end of the program will try again"
    run.end_run("FINISHED")
    assert same(run).status == "FINISHED"
    assert not exits.is_open(str(run.id))


def test_the_end_of_a_program_ends_a_run_whose_end_has_failed_before(
    root: Path, run_script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    source = """
        import sys
        import qwf
        from qwf import R
        from qwf.storage import fsio

        qwf.init(uri=sys.argv[1])
        R.start_exp(experiment_name="e")
        real = fsio.write_temporary
        def full(*_, **__):
            raise OSError(28, "No space left on device")
        fsio.write_temporary = full
        try:
            R.get_recorder().end_run("FAILED")
        except OSError:
            print("refused")
        fsio.write_temporary = real
    """
    result = run_script(source, root)
    assert result.stdout == "refused\n", result.stderr
    (found,) = ExpManager(root).get_exp(experiment_name="e").list_recorders("list")
    assert found.status == "FINISHED"


def test_the_session_that_ends_is_the_one_that_is_closed(run: Recorder) -> None:
    other = same(run).start_run()
    third = same(run).start_run()
    run.end_run("FINISHED")
    assert [one["ended_at"] is None for one in run._read()["sessions"]] == [False, True, True]
    third.end_run("FINISHED")
    assert [one["ended_at"] is None for one in run._read()["sessions"]] == [False, True, False]
    other.end_run("FINISHED")
    assert all(one["ended_at"] for one in run._read()["sessions"])


def test_of_two_threads_the_latter_to_log_has_the_value_before_and_after_the_end(
    run: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, go = threading.Event(), threading.Event()
    here = time.time_ns

    def slept() -> int:
        moment = here()
        if threading.current_thread() is first and not slow.is_set():
            slow.set()
            go.wait(0.2)  # the other one must wait, if the time is taken under the lock
        return moment

    first = threading.Thread(target=lambda: run.log_metrics(a=1))
    monkeypatch.setattr(metric_log.time, "time_ns", slept)
    first.start()
    assert slow.wait(10)
    run.log_metrics(a=2)
    go.set()
    first.join()
    before = run.list_metrics()
    run.end_run("FINISHED")
    assert before == run.list_metrics() == {"a": 2}


def test_a_clock_that_is_set_back_does_not_bring_old_values_back(
    run: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.log_metrics(a=1)
    here = time.time_ns
    monkeypatch.setattr(metric_log.time, "time_ns", lambda: here() - 3600 * 10**9)
    run.log_metrics(a=2)
    before = run.list_metrics()
    run.end_run("FINISHED")
    assert before == run.list_metrics() == {"a": 2}
    assert run.metric_history()["value"].tolist() == [1, 2]


def test_recorders_that_are_dropped_close_their_journals(run: Recorder) -> None:
    experiment = ExpManager(Path(run.uri)).get_exp(experiment_name="e")
    before = len(os.listdir("/dev/fd"))
    for number in range(300):
        experiment.get_recorder(run.id).log_metrics(step=number, a=number)
    gc.collect()
    assert len(os.listdir("/dev/fd")) <= before + 1
    assert run.list_metrics() == {"a": 299}


def test_a_fork_while_a_thread_logs_does_not_hang_the_child(
    run: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.log_metrics(a=0)
    inside, go = threading.Event(), threading.Event()

    def slow(descriptor: int, data: Any) -> int:
        if threading.current_thread() is thread:
            inside.set()
            go.wait(20)
        return os.write(descriptor, data)

    thread = threading.Thread(target=lambda: run.log_metric_history({"a": [1]}))
    monkeypatch.setattr("qwf.storage.fsio.os", FaultyOs(write=slow))
    thread.start()
    assert inside.wait(10)

    def child() -> None:
        run.log_metrics(a=2, step=1)
        run.end_run("FINISHED")

    code = in_child(child)
    go.set()
    thread.join()
    assert code == 0, "-14: it hung"
    assert run.metric_history()["value"].tolist() == [0, 1, 2]


# --- artifacts -------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    path = tmp_path / "outside"
    (path / "inner").mkdir(parents=True)
    (path / "theirs").write_bytes(b"precious")
    return path


@pytest.mark.parametrize("name", ["link/x", "link/theirs", "link/inner/x", "link"])
def test_links_below_the_artifacts_are_not_written_through(
    run: Recorder, outside: Path, name: str, snapshot: Callable[[Path], dict[str, bytes]]
) -> None:
    area = Path(run.get_artifact_uri())
    area.mkdir(exist_ok=True)
    (area / "link").symlink_to(outside)
    before = snapshot(outside)
    source = outside.with_name("source")
    source.write_bytes(b"new")
    for save in (
        lambda: run.save_objects(**{name: "new"}),
        lambda: run.save_objects(local_path=source, artifact_path=name),
    ):
        with pytest.raises(UnsafeNameError, match="a link out of the store"):
            save()
    assert snapshot(outside) == before
    assert run.artifacts() == {}


def test_an_empty_directory_behind_a_link_is_not_removed(
    run: Recorder, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "ABANDONED_SECONDS", 0.0)
    area = Path(run.get_artifact_uri())
    (area / "x").mkdir(parents=True)
    (area / "x" / "link").symlink_to(outside)
    with pytest.raises(OSError, match=r"x"):
        run.save_objects(x=1)
    assert (outside / "inner").is_dir()


class _Counting(str):
    """A name that counts how often it is hashed or compared."""

    count = 0

    def __hash__(self) -> int:
        _Counting.count += 1
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        _Counting.count += 1
        return super().__eq__(other)

    def startswith(self, *args: Any) -> bool:
        _Counting.count += 1
        return super().startswith(*args)


def test_the_work_of_looking_for_collisions_grows_with_the_number_of_names_only() -> None:
    def work(number: int) -> int:
        _Counting.count = 0
        names = [_Counting(f"a/{one % 10}/{one}") for one in range(number)]
        artifacts._refuse_collisions(names, [_Counting(f"b/{one}") for one in range(number)])
        return _Counting.count

    assert work(2000) < 5 * work(500)


def test_many_files_are_committed_with_one_change_of_the_record(
    run: Recorder, tmp_path: Path
) -> None:
    source = tmp_path / "many"
    source.mkdir()
    for number in range(200):
        (source / f"{number}.txt").write_bytes(b"x")
    with recorded_calls() as calls:
        run.save_objects(local_path=source)
    record = Path(run.get_local_dir()) / "recorder.json"
    assert sum(call.target == record for call in calls) == 1
    directory_syncs = [call for call in calls if call.name == "fsync" and call.path.is_dir()]
    assert len(directory_syncs) < 10
    assert len(run.artifacts()) == 200


# --- stores ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x" * 170, "长" * 60, "a/b 它" * 30])
def test_a_recorder_of_an_experiment_with_a_long_name_can_be_deleted(root: Path, name: str) -> None:
    manager = ExpManager(root)
    experiment = manager.get_exp(experiment_name=name)
    run = experiment.create_recorder().start_run()
    run.end_run("FINISHED")
    experiment.delete_recorder(run.id)
    assert experiment.list_recorders() == {}
    manager.delete_exp(experiment_name=name)
    assert len(list((root / "trash").iterdir())) == 2


def test_a_store_that_was_deleted_can_be_used_again(store: Path) -> None:
    for _ in range(2):
        with R.start(experiment_name="e"):
            R.log_params(a=1)
        assert (store / "qwf.json").exists()
        assert len(R.list_recorders(experiment_name="e")) == 1
        shutil.rmtree(store)
    assert R.list_experiments() == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_record_that_may_not_be_read_breaks_no_listing() -> None:
    with tempfile.TemporaryDirectory() as name:  # unlike tmp_path, others may be let in
        root = Path(name, "store")
        experiment = ExpManager(root).get_exp(experiment_name="e")
        runs = [experiment.create_recorder().start_run() for _ in range(2)]
        for run in runs:
            run.end_run("FINISHED")
        (Path(runs[0].get_local_dir()) / "recorder.json").chmod(0)
        for place in (root.parent, root, *root.rglob("*")):
            if place.is_dir():
                place.chmod(0o755)

        def listed() -> None:
            os.setuid(65534)
            here = ExpManager(root).get_exp(experiment_name="e", create=False)
            found = {one.id: one.status for one in here.list_recorders("list")}
            assert found == {runs[0].id: "BROKEN", runs[1].id: "FINISHED"}

        assert in_child(listed) == 0


# --- locks -----------------------------------------------------------------------------------


@pytest.mark.skipif(
    not hasattr(filelock, "SoftFileLease"), reason="an older filelock takes a refusal for a holder"
)
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_writes_go_on_where_nothing_can_be_locked(
    run: Recorder, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refused)
    start = time.monotonic()
    run.set_tags(a=1)
    run.save_objects(x=1)
    run.save_objects(x=2)
    assert time.monotonic() - start < 5
    assert run.list_tags()["a"] == "1"
    assert run.load_object("x") == 2


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    try:
        yield request.param
    finally:
        os.umask(before)


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077], indirect=True)
def test_lock_files_have_the_mode_of_all_other_files(umask: int, root: Path) -> None:
    run = ExpManager(root).get_exp(experiment_name="e").create_recorder().start_run()
    run.set_tags(a=1)
    run.save_objects(x=1)
    locks = list(root.rglob(".*.lock"))
    assert len(locks) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in locks} == {0o666 & ~umask}
