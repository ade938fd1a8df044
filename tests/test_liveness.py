"""Whether the process of a running recorder lives: here by its pid, elsewhere by its heartbeat."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Children, FaultyOs

import qwf
from qwf import R
from qwf.errors import RecorderStateError
from qwf.process import exits, pulse
from qwf.storage import fsio
from qwf.tracking import liveness
from qwf.tracking.manager import ExpManager
from qwf.tracking.recorder import Recorder

OLD = liveness.LEASE_SECONDS + 60


class Program:
    """A process that has one open run, and waits."""

    def __init__(self, store: Path, *lines: str, within: Sequence[str] = ()) -> None:
        source = "\n".join(
            [
                "import os, sys, time",
                "import qwf",
                "from qwf import R",
                "qwf.init(uri=sys.argv[1])",
                "R.start_exp(experiment_name='e')",
                "R.log_metrics(step=1, loss=3.0)",
                *lines,
                "print(R.get_recorder().id, flush=True)",
                "sys.stdin.read()",
            ]
        )
        self.process = subprocess.Popen(
            [*within, sys.executable, "-c", source, store],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(qwf.__file__).parent.parent)},
        )
        self.recorder_id = self.process.stdout.readline().strip()

    def kill(self) -> None:
        """Kill it; nobody has asked for its exit code yet, so that it is a zombie."""
        self.process.kill()
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def program(store: Path) -> Iterator[Callable[..., Program]]:
    started: list[Program] = []

    def start(*lines: str, within: Sequence[str] = ()) -> Program:
        started.append(Program(store, *lines, within=within))
        return started[-1]

    try:
        yield start
    finally:
        for one in started:
            one.close()


def shown(recorder_id: str) -> str:
    """Return the status as listing, search and opening by id show it."""
    listed = R.list_recorders(experiment_name="e")[recorder_id].status
    frame = R.search_records("e").set_index("run_id")
    assert listed == frame["status"][recorder_id]
    assert listed == R.get_recorder(experiment_name="e", recorder_id=recorder_id).status
    return listed


def on_disk(recorder: Recorder) -> str:
    return recorder._read()["status"]


# --- processes that die --------------------------------------------------------------------------


def test_a_run_whose_process_was_killed_is_lost_at_once(program: Callable[..., Program]) -> None:
    alive, killed = program(), program()
    assert (shown(alive.recorder_id), shown(killed.recorder_id)) == ("RUNNING", "RUNNING")
    killed.close()
    assert (shown(alive.recorder_id), shown(killed.recorder_id)) == ("RUNNING", "LOST")
    assert list(R.get_exp(experiment_name="e").list_recorders(status="LOST")) == [
        killed.recorder_id
    ]
    found = R.search_records("e", filter_string="status = 'LOST'")
    assert list(found["run_id"]) == [killed.recorder_id]
    assert list(found["metrics.loss"]) == [3.0]


def test_a_zombie_runs_nothing(program: Callable[..., Program]) -> None:
    one = program()
    one.kill()
    assert Path(f"/proc/{one.process.pid}").exists()
    assert shown(one.recorder_id) == "LOST"


def test_a_stopped_process_is_alive(program: Callable[..., Program]) -> None:
    one = program()
    os.kill(one.process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, one.process.pid, os.WSTOPPED | os.WNOWAIT)
    os.utime(recorder_file(one.recorder_id), (1, 1))  # and however long it is stopped
    assert shown(one.recorder_id) == "RUNNING"
    with pytest.raises(RecorderStateError, match="is active"):
        R.get_exp(experiment_name="e").delete_recorder(one.recorder_id)


def test_a_process_whose_name_looks_like_a_state_is_alive(program: Callable[..., Program]) -> None:
    one = program("open('/proc/self/comm', 'w').write('a) Z 1 (b')")
    assert shown(one.recorder_id) == "RUNNING"


def test_a_forked_child_that_has_ended_does_not_make_the_run_of_its_parent_lost(
    store: Path, children: Children
) -> None:
    with R.start(experiment_name="e"):
        recorder = R.get_recorder()
        children.add(lambda: R.log_metrics(loss=1.0))
        assert children.exit_codes() == [0]
        assert shown(recorder.id) == "RUNNING"


def test_the_run_of_a_forked_child_is_lost_with_it(store: Path, children: Children) -> None:
    R.get_exp(experiment_name="e")

    def work() -> None:
        R.start_exp(experiment_name="e")
        os.kill(os.getpid(), signal.SIGKILL)

    children.add(work)
    assert children.exit_codes() == [-signal.SIGKILL]
    (recorder,) = R.list_recorders(experiment_name="e").values()
    assert recorder.status == "LOST"


IN_A_CONTAINER = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run([*IN_A_CONTAINER, "true"], check=False, capture_output=True).returncode != 0,
    reason="no pid namespace can be made here",
)
def test_a_run_in_a_container_of_this_machine_is_judged_by_its_heartbeat(
    program: Callable[..., Program],
) -> None:
    one = program(within=IN_A_CONTAINER)
    recorder = R.get_recorder(experiment_name="e", recorder_id=one.recorder_id)
    (session,) = recorder.sessions()
    assert session["pid"] == 1  # there; here it is another process, which lives
    assert shown(one.recorder_id) == "RUNNING"
    one.close()
    assert shown(one.recorder_id) == "RUNNING"
    os.utime(recorder_file(one.recorder_id), (1, 1))
    assert shown(one.recorder_id) == "LOST"


# --- what can be done with a lost one ------------------------------------------------------------


@pytest.fixture
def lost(program: Callable[..., Program]) -> Recorder:
    one = program("R.set_tags(model='LGB')", "R.save_objects(x=[1])")
    one.close()
    recorder = R.get_recorder(experiment_name="e", recorder_id=one.recorder_id)
    assert recorder.status == "LOST"
    return recorder


@pytest.mark.parametrize("status", ["FAILED", "FINISHED", "PAUSED", "SCHEDULED"])
def test_another_process_closes_a_lost_run(lost: Recorder, status: str) -> None:
    lost.end_run(status)
    assert shown(lost.id) == status
    assert lost.end_time is not None
    assert lost.list_metrics() == {"loss": 3.0}
    assert all(session["ended_at"] for session in lost.sessions())


def test_a_lost_run_is_resumed_and_keeps_what_it_had(
    lost: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    with R.start(experiment_name="e", recorder_id=lost.id, resume=True):
        assert shown(lost.id) == "RUNNING"
        R.log_metrics(step=2, ic=0.5)
    assert "another process" not in caplog.text
    assert shown(lost.id) == "FINISHED"
    assert lost.list_metrics() == {"loss": 3.0, "ic": 0.5}
    assert (lost.list_tags(), lost.load_object("x")) == ({"model": "LGB"}, [1])
    assert len(lost.sessions()) == 2


def test_a_run_that_is_resumed_while_another_process_runs_it_is_warned_of(
    program: Callable[..., Program], caplog: pytest.LogCaptureFixture
) -> None:
    one = program()
    with R.start(experiment_name="e", recorder_id=one.recorder_id, resume=True):
        pass
    assert f"{one.recorder_id} is resumed while another process runs it" in caplog.text


def test_a_lost_run_is_deleted_and_restored_as_lost(lost: Recorder) -> None:
    experiment = R.get_exp(experiment_name="e")
    experiment.delete_recorder(lost.id)
    assert R.list_recorders(experiment_name="e") == {}
    assert experiment.restore_recorder(lost.id).status == "LOST"
    assert shown(lost.id) == "LOST"


def test_an_experiment_with_lost_runs_only_is_deleted(lost: Recorder) -> None:
    R.delete_exp(experiment_name="e")
    assert R.list_experiments() == {}


def test_a_lost_run_can_still_be_read_and_tagged(lost: Recorder) -> None:
    lost.set_tags(note="killed by the batch system")
    assert lost.list_tags()["note"] == "killed by the batch system"
    assert lost.list_metrics() == {"loss": 3.0}
    assert (shown(lost.id), on_disk(lost)) == ("LOST", "RUNNING")


# --- sessions of other processes, hosts and times ------------------------------------------------


def recorder_file(recorder_id: str) -> Path:
    recorder = R.get_recorder(experiment_name="e", recorder_id=recorder_id)
    return Path(recorder.get_local_dir(), "recorder.json")


def claimed_by(*sessions: dict[str, Any], age: float = 0.0) -> str:
    """Make a recorder that is RUNNING in these sessions, with a heartbeat so many seconds ago.

    What a session does not tell is that of this very process.
    """
    recorder = R.get_exp(experiment_name="e").create_recorder().start_run()
    recorder.end_run("FINISHED")

    def claim(document: dict[str, Any]) -> dict[str, Any]:
        (mine,) = document["sessions"]
        claims = [{**mine, "ended_at": None, **session} for session in sessions]
        claims = [{key: one for key, one in claim.items() if one != "absent"} for claim in claims]
        return {**document, "status": "RUNNING", "ended_at": None, "sessions": claims}

    recorder._store.update_recorder(recorder.experiment_id, recorder.id, claim)
    path = Path(recorder.get_local_dir(), "recorder.json")
    moment = fsio.server_time(path) - age
    os.utime(path, (moment, moment))
    return recorder.id


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


ELSEWHERE = {"host": "node17", "machine": "0" * 32, "boot": "another"}


@pytest.mark.parametrize(
    ("session", "age", "status"),
    [
        pytest.param({}, OLD, "RUNNING", id="this_process"),
        pytest.param({"pid_started": "1"}, 0, "LOST", id="its_pid_is_used_by_a_later_process"),
        pytest.param({"pid_started": None}, OLD, "RUNNING", id="its_start_is_not_known"),
        pytest.param({"boot": "before"}, 0, "LOST", id="before_this_machine_was_started_again"),
        pytest.param({"pid_space": "pid:[1]"}, 0, "RUNNING", id="a_container_that_beats"),
        pytest.param({"pid_space": "pid:[1]"}, OLD, "LOST", id="a_container_that_does_not"),
        pytest.param(ELSEWHERE, 0, "RUNNING", id="another_host_that_beats"),
        pytest.param(ELSEWHERE, 100, "RUNNING", id="another_host_that_is_short_of_breath"),
        pytest.param(ELSEWHERE, OLD, "LOST", id="another_host_that_does_not"),
        pytest.param({"host": "node17"}, OLD, "LOST", id="another_host_of_the_same_image"),
        pytest.param({"host": "node17"}, 0, "RUNNING", id="another_host_of_the_same_image_beats"),
        pytest.param({"machine": "0" * 32}, 0, "RUNNING", id="another_host_of_the_same_name"),
        pytest.param({"boot": "absent"}, 0, "RUNNING", id="the_first_release_lately"),
        pytest.param({"boot": "absent"}, OLD, "LOST", id="the_first_release"),
        pytest.param({"boot": None}, OLD, "LOST", id="a_host_without_a_boot_id"),
        pytest.param({"pid": "no number"}, OLD, "LOST", id="a_pid_that_is_none"),
        pytest.param({"pid": 2**70}, 0, "LOST", id="a_pid_that_cannot_be"),
        pytest.param({"pid": -1}, 0, "LOST", id="a_pid_below_all"),
    ],
)
def test_a_session_is_judged_by_what_can_be_known_of_its_process(
    store: Path, session: dict[str, Any], age: float, status: str
) -> None:
    assert shown(claimed_by(session, age=age)) == status


def test_a_pid_that_is_used_by_nobody_is_dead_whatever_its_heartbeat(store: Path) -> None:
    assert shown(claimed_by({"pid": dead_pid()})) == "LOST"


def test_a_recorder_runs_while_one_of_its_sessions_does(store: Path) -> None:
    dead = {"pid": dead_pid()}
    ended = {"ended_at": "2026-01-01T00:00:00.000000Z"}
    assert shown(claimed_by(dead, {}, dead, age=OLD)) == "RUNNING"
    assert shown(claimed_by({}, dead, age=OLD)) == "RUNNING"
    assert shown(claimed_by(dead, dead)) == "LOST"
    assert shown(claimed_by(ended, dead)) == "LOST"
    assert shown(claimed_by(dead, {**ELSEWHERE}, age=OLD)) == "LOST"
    # What an ended session says of its process does not matter, be it this one.
    assert shown(claimed_by(ended, {**ELSEWHERE}, age=OLD)) == "LOST"


def test_a_status_that_nobody_claims_was_set_on_purpose(store: Path) -> None:
    ended = {"ended_at": "2026-01-01T00:00:00.000000Z"}
    assert shown(claimed_by(ended, age=OLD)) == "RUNNING"
    assert shown(claimed_by(age=OLD)) == "RUNNING"


def test_the_heartbeat_is_judged_by_the_clock_of_the_file_server(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = claimed_by(ELSEWHERE, age=OLD), claimed_by(ELSEWHERE)
    for offset in (-86400.0, 86400.0):
        with monkeypatch.context() as patch:
            real = time.time
            patch.setattr("time.time", lambda real=real, offset=offset: real() + offset)
            assert (shown(old), shown(new)) == ("LOST", "RUNNING")


def test_a_listing_asks_the_file_server_for_its_time_once(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [claimed_by(ELSEWHERE, age=age) for age in (0, OLD, 0, OLD)]
    asked: list[Path] = []
    real = fsio.server_time
    monkeypatch.setattr(fsio, "server_time", lambda near: (asked.append(near), real(near))[1])
    listed = R.list_recorders(experiment_name="e")
    assert [listed[one].status for one in ids] == ["RUNNING", "LOST", "RUNNING", "LOST"]
    assert len(asked) == 1


def test_in_a_store_that_may_only_be_read_an_hour_is_allowed_for_wrong_clocks(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubtful, old = claimed_by(ELSEWHERE, age=OLD), claimed_by(ELSEWHERE, age=OLD + 4000)
    killed = claimed_by({"pid": dead_pid()})

    def only_read(path: Any, flags: int, *mode: int) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return os.open(path, flags, *mode)

    monkeypatch.setattr(fsio, "os", FaultyOs(open=only_read))
    listed = R.list_recorders(experiment_name="e")
    assert [listed[one].status for one in (doubtful, old, killed)] == ["RUNNING", "LOST", "LOST"]


def test_a_process_of_another_user_that_proc_hides_is_judged_by_its_heartbeat(
    store: Path, monkeypatch: pytest.MonkeyPatch, program: Callable[..., Program]
) -> None:
    one = program()
    path = recorder_file(one.recorder_id)
    real = fsio.read_bytes

    def hidden(name: Path) -> bytes:
        if str(name).startswith(f"/proc/{one.process.pid}/"):
            raise FileNotFoundError(2, "hidden by the mount option hidepid")
        return real(name)

    monkeypatch.setattr(fsio, "read_bytes", hidden)
    assert shown(one.recorder_id) == "RUNNING"
    os.utime(path, (1, 1))
    assert shown(one.recorder_id) == "LOST"


def test_runs_of_the_first_release_are_judged_by_their_heartbeat(store: Path) -> None:
    shutil.copytree(Path(__file__).parent / "golden" / "first", store)
    experiment = R.get_exp(experiment_name="rolling/沪深300", create=False)
    for recorder in experiment.list_recorders("list"):
        recorder._store.update_recorder(
            recorder.experiment_id,
            recorder.id,
            lambda document: {
                **document,
                "status": "RUNNING",
                "sessions": [{**one, "ended_at": None} for one in document["sessions"]],
            },
        )
    assert {one.status for one in experiment.list_recorders("list")} == {"RUNNING"}
    for recorder in experiment.list_recorders("list"):
        os.utime(Path(recorder.get_local_dir(), "recorder.json"), (1, 1))
    assert {one.status for one in experiment.list_recorders("list")} == {"LOST"}
    recorder.end_run("FAILED")
    assert recorder.status == "FAILED"


# --- the heartbeat -------------------------------------------------------------------------------


def beats() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "qwf-pulse"]


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "IDLE_SECONDS", 0.0)
    pulse._step_aside()
    monkeypatch.setattr("qwf.tracking.recorder.HEARTBEAT_SECONDS", 0.01)


def test_the_file_of_an_open_run_is_touched_again_and_again_until_its_end(
    store: Path, quick: None
) -> None:
    with R.start(experiment_name="e"):
        path = recorder_file(R.get_recorder().id)
        before = path.read_bytes()
        for _ in range(3):
            os.utime(path, (1, 1))
            wait_until(lambda: path.stat().st_mtime > 1)
        assert path.read_bytes() == before
        (thread,) = beats()
        assert thread.daemon
    thread.join(30)
    assert beats() == []
    os.utime(path, (1, 1))
    with R.start(experiment_name="other"):  # the next thread does not touch what has ended
        other = Path(R.get_recorder().get_local_dir(), "recorder.json")
        os.utime(other, (1, 1))
        wait_until(lambda: other.stat().st_mtime > 1)
    assert path.stat().st_mtime == 1


def test_one_thread_beats_for_all_runs_and_goes_with_the_last(store: Path, quick: None) -> None:
    for number in range(3):
        R.start_exp(experiment_name=f"e{number}")
    (thread,) = beats()
    for _ in range(3):
        assert beats() == [thread]
        R.end_exp()
    thread.join(30)
    assert beats() == []


def test_a_run_beats_until_its_process_ends_it_and_not_when_another_has(
    store: Path, quick: None
) -> None:
    with R.start(experiment_name="e"):
        path = recorder_file(R.get_recorder().id)
        shutil.move(path.parent, store / "elsewhere")  # deleted by somebody: nothing breaks
        wait_until(lambda: bool(beats()))
        shutil.move(store / "elsewhere", path.parent)
        os.utime(path, (1, 1))
        wait_until(lambda: path.stat().st_mtime > 1)


def test_resuming_begins_to_beat_again(store: Path, quick: None) -> None:
    with R.start(experiment_name="e"):
        recorder = R.get_recorder()
    with R.start(experiment_name="e", resume=True):
        path = recorder_file(recorder.id)
        os.utime(path, (1, 1))
        wait_until(lambda: path.stat().st_mtime > 1)


def test_the_run_of_a_forked_child_beats_in_the_child(
    store: Path, quick: None, children: Children
) -> None:
    R.start_exp(experiment_name="parent")

    def work() -> None:
        with R.start(experiment_name="e"):
            path = Path(R.get_recorder().get_local_dir(), "recorder.json")
            os.utime(path, (1, 1))
            wait_until(lambda: path.stat().st_mtime > 1)

    children.add(work)
    assert children.exit_codes() == [0]
    path = Path(R.get_recorder().get_local_dir(), "recorder.json")
    os.utime(path, (1, 1))
    wait_until(lambda: path.stat().st_mtime > 1)  # and the parent's goes on after the fork
    R.end_exp()


# --- what is active ------------------------------------------------------------------------------


def test_what_is_active_is_per_context_and_its_life_is_not(store: Path) -> None:
    done, go = threading.Event(), threading.Event()
    found: dict[str, Any] = {}

    def work() -> None:
        with R.start(experiment_name="e"):
            found["id"] = R.get_recorder().id
            done.set()
            go.wait(30)

    thread = threading.Thread(target=work)
    with R.start(experiment_name="mine"):
        mine = R.get_recorder()
        thread.start()
        assert done.wait(30)
        assert R.get_recorder() is mine
        assert shown(found["id"]) == "RUNNING"
        with pytest.raises(RecorderStateError, match="active"):
            ExpManager(store).get_exp(experiment_name="e").delete_recorder(found["id"])
        go.set()
        thread.join()
        assert R.get_recorder() is mine
    assert shown(found["id"]) == "FINISHED"


def test_a_dead_session_ends_when_its_process_was_last_seen_alive(store: Path) -> None:
    recorder = R.get_exp(experiment_name="e").create_recorder().start_run()
    exits.release(str(recorder.id))

    def died(document: dict[str, Any]) -> dict[str, Any]:
        begin = "2020-01-01T00:00:00Z"
        session = {**document["sessions"][0], "pid_started": "1", "started_at": begin}
        return {**document, "sessions": [session], "started_at": begin}

    ExpManager(store).store.update_recorder("e", str(recorder.id), died)
    os.utime(recorder_file(str(recorder.id)), (1577836860, 1577836860))  # a minute later
    other = ExpManager(store).find_recorder(str(recorder.id))
    assert other.status == "LOST"
    other.end_run("FAILED")
    assert other.sessions()[0]["ended_at"] == "2020-01-01T00:01:00.000000Z"
    assert other._ended_at == "2020-01-01T00:01:00.000000Z"


def test_resuming_a_lost_run_closes_the_session_of_the_dead(store: Path) -> None:
    recorder = R.get_exp(experiment_name="e").create_recorder().start_run()
    exits.release(str(recorder.id))

    def died(document: dict[str, Any]) -> dict[str, Any]:
        return {**document, "sessions": [{**document["sessions"][0], "pid_started": "1"}]}

    ExpManager(store).store.update_recorder("e", str(recorder.id), died)
    with R.start(experiment_name="e", recorder_id=recorder.id, resume=True):
        assert [one["ended_at"] is None for one in R.get_recorder().sessions()] == [False, True]
