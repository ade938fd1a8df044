"""What SIGTERM does to programs with open runs; a batch system sends it before it kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import qwf
from qwf import R

BEGIN = """
import os, signal, subprocess, sys, threading, time
import qwf
from qwf import R
from qwf.process import exits
qwf.init(uri=sys.argv[1])
def ready():
    print("ready", flush=True)
def sleep():
    while True:
        time.sleep(60)
def wait():
    ready()
    sleep()
"""


class Program:
    """A program that says when it is ready for the signal."""

    def __init__(self, source: str, store: Path, folder: Path) -> None:
        script = folder / "program.py"
        script.write_text(BEGIN + source)
        self.process = subprocess.Popen(
            [sys.executable, script, store],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(qwf.__file__).parent.parent)},
        )
        self.told = self.wait_for("ready")

    def wait_for(self, word: str) -> str:
        """Wait for a line that begins with a word, and return the rest of it."""
        first, _, rest = self.process.stdout.readline().strip().partition(" ")
        assert first == word, first + self.process.stderr.read()
        return rest

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, self.told + out, err


@pytest.fixture
def begin(store: Path, tmp_path: Path) -> Iterator[Callable[[str], Program]]:
    started: list[Program] = []

    def start(source: str) -> Program:
        started.append(Program(source, store, tmp_path))
        return started[-1]

    yield start
    for program in started:
        program.process.kill()
        program.process.communicate()


@pytest.fixture
def terminated(begin: Callable[[str], Program]) -> Callable[[str], tuple[int, str, str]]:
    """Run a program, send it SIGTERM when it is ready, and return its exit code and outputs."""

    def run(source: str) -> tuple[int, str, str]:
        program = begin(source)
        program.terminate()
        return program.end()

    return run


def statuses() -> dict[str, str]:
    return {
        name: recorder.status
        for name, experiment in R.list_experiments().items()
        for recorder in experiment.list_recorders("list")
    }


def test_a_block_ends_failed_and_the_program_with_143(terminated: Callable[..., Any]) -> None:
    code, out, err = terminated(
        """
with R.start(experiment_name="e"):
    R.log_metrics(loss=1.0)
    try:
        wait()
    finally:
        print("cleaned up")
"""
    )
    assert (code, out, err) == (143, "cleaned up\n", "")
    assert statuses() == {"e": "FAILED"}
    (recorder,) = R.list_recorders(experiment_name="e").values()
    assert recorder.list_metrics() == {"loss": 1.0}
    assert all(session["ended_at"] for session in recorder.sessions())


def test_a_run_without_a_block_ends_failed(terminated: Callable[..., Any]) -> None:
    code, _, err = terminated("R.start_exp(experiment_name='e'); wait()")
    assert (code, err, statuses()) == (143, "", {"e": "FAILED"})


def test_nested_runs_all_end_failed(terminated: Callable[..., Any]) -> None:
    code, _, err = terminated(
        """
with R.start(experiment_name="outer"):
    R.start_exp(experiment_name="between")
    with R.start(experiment_name="inner"):
        wait()
"""
    )
    assert (code, err) == (143, "")
    assert statuses() == dict.fromkeys(("outer", "between", "inner"), "FAILED")


def test_a_run_that_has_ended_before_keeps_its_status(terminated: Callable[..., Any]) -> None:
    terminated(
        """
with R.start(experiment_name="first"):
    pass
R.start_exp(experiment_name="paused")
R.end_exp("PAUSED")
R.start_exp(experiment_name="e")
wait()
"""
    )
    assert statuses() == {"first": "FINISHED", "paused": "PAUSED", "e": "FAILED"}


@pytest.mark.parametrize(
    "source",
    [
        "wait()",
        "R.list_experiments(); wait()",
        "with R.start(experiment_name='e'): pass\nwait()",
        "R.start_exp(experiment_name='e'); R.end_exp(); wait()",
    ],
)
def test_a_program_without_open_runs_dies_of_the_signal(
    terminated: Callable[..., Any], source: str
) -> None:
    code, _, err = terminated(source)
    assert (code, err) == (-signal.SIGTERM, "")
    assert set(statuses().values()) <= {"FINISHED"}


def test_a_handler_of_the_program_is_kept(terminated: Callable[..., Any]) -> None:
    code, out, _ = terminated(
        """
def mine(number, frame):
    print("mine", flush=True)
    R.end_exp("PAUSED")
    os._exit(7)
signal.signal(signal.SIGTERM, mine)
R.start_exp(experiment_name="e")
wait()
"""
    )
    assert (code, out, statuses()) == (7, "mine\n", {"e": "PAUSED"})


def test_a_handler_that_is_set_while_a_run_is_open_is_kept(terminated: Callable[..., Any]) -> None:
    code, out, _ = terminated(
        """
R.start_exp(experiment_name="e")
signal.signal(signal.SIGTERM, lambda *_: (print("mine", flush=True), sys.exit(7)))
with R.start(experiment_name="inner"):
    wait()
"""
    )
    assert (code, out) == (7, "mine\n")
    assert statuses() == {"e": "FAILED", "inner": "FAILED"}


def test_a_program_that_ignores_the_signal_goes_on(
    begin: Callable[[str], Program], tmp_path: Path
) -> None:
    program = begin(
        """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with R.start(experiment_name="e"):
    ready()
    while not os.path.exists("go"):
        time.sleep(0.01)
"""
    )
    program.terminate()
    (tmp_path / "go").touch()
    assert program.end()[0] == 0
    assert statuses() == {"e": "FINISHED"}


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_of_multiprocessing_ends_its_run_and_not_that_of_its_parent(
    terminated: Callable[..., Any], method: str
) -> None:
    code, out, _ = terminated(
        f"""
import multiprocessing
def work(pipe):
    with R.start(experiment_name="child"):
        pipe.send("started")
        time.sleep(60)
if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    with R.start(experiment_name="parent"):
        here, there = context.Pipe()
        child = context.Process(target=work, args=(there,))
        child.start()
        here.recv()
        child.terminate()
        child.join()
    R.start_exp(experiment_name="last")
    print("ready", child.exitcode, flush=True)
    sleep()
"""
    )
    assert (code, out) == (143, "143")
    assert statuses() == {"parent": "FINISHED", "child": "FAILED", "last": "FAILED"}


def test_a_forked_child_without_runs_of_its_own_dies_of_the_signal(
    terminated: Callable[..., Any],
) -> None:
    code, out, _ = terminated(
        """
with R.start(experiment_name="parent"):
    begun, begin = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(begin, b".")
        while True:
            time.sleep(60)
    os.read(begun, 1)  # Python forgets a signal that a child gets while it is still being forked
    os.kill(child, signal.SIGTERM)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print("ready", code, R.get_recorder().status, flush=True)
    sleep()
"""
    )
    assert (code, out) == (143, f"{-signal.SIGTERM} RUNNING")
    assert statuses() == {"parent": "FAILED"}


def test_a_program_that_was_started_inside_a_run_gets_the_signal_as_ever(
    terminated: Callable[..., Any],
) -> None:
    _, out, _ = terminated(
        """
with R.start(experiment_name="e"):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    child.terminate()
    child.wait()
    print("ready", child.returncode, flush=True)
    sleep()
"""
    )
    assert out == str(-signal.SIGTERM)


def test_the_run_of_a_thread_is_lost_when_the_main_thread_never_ran_one(
    terminated: Callable[..., Any],
) -> None:
    # Only the main thread may ask to be told of a signal.
    code, _, _ = terminated(
        """
def work():
    with R.start(experiment_name="e"):
        wait()
thread = threading.Thread(target=work, daemon=True)
thread.start()
thread.join()
"""
    )
    assert (code, statuses()) == (-signal.SIGTERM, {"e": "LOST"})


@pytest.mark.parametrize("daemon", [True, False])
def test_the_run_of_a_thread_ends_failed_when_the_main_thread_has_run_one_before(
    terminated: Callable[..., Any], daemon: bool
) -> None:
    code, _, _ = terminated(
        f"""
exits._GRACE_SECONDS = 0.5  # a thread that is no daemon is waited for
with R.start(experiment_name="first"):
    pass
def work():
    with R.start(experiment_name="e"):
        wait()
thread = threading.Thread(target=work, daemon={daemon})
thread.start()
thread.join()
"""
    )
    assert (code, statuses()) == (143, {"first": "FINISHED", "e": "FAILED"})


def test_a_main_thread_that_sits_in_a_lock_is_ended(terminated: Callable[..., Any]) -> None:
    code, _, err = terminated(
        """
R.start_exp(experiment_name="e")
lock = threading.Lock()
lock.acquire()
ready()
lock.acquire()
"""
    )
    assert (code, err, statuses()) == (143, "", {"e": "FAILED"})


def test_a_main_thread_that_holds_what_starts_threads_is_ended(
    terminated: Callable[..., Any],
) -> None:
    # The signal may come while the program is just starting a thread of its own.
    code, _, _ = terminated(
        """
R.start_exp(experiment_name="e")
with threading._active_limbo_lock:
    wait()
"""
    )
    assert (code, statuses()) == (143, {"e": "FAILED"})


def test_a_program_that_catches_the_exit_is_ended_after_a_while(
    terminated: Callable[..., Any],
) -> None:
    code, out, _ = terminated(
        """
exits._GRACE_SECONDS = 0.3
with R.start(experiment_name="e"):
    try:
        wait()
    except SystemExit:
        print("caught", flush=True)
    sleep()
"""
    )
    assert (code, out) == (143, "caught\n")
    assert statuses() == {"e": "FAILED"}


def test_a_program_that_catches_the_exit_may_still_end_well(terminated: Callable[..., Any]) -> None:
    code, out, _ = terminated(
        """
with R.start(experiment_name="e"):
    try:
        wait()
    except SystemExit:
        R.log_metrics(saved=1.0)
        R.end_exp("PAUSED")
print("done")
"""
    )
    assert (code, out, statuses()) == (0, "done\n", {"e": "PAUSED"})


def test_a_second_signal_does_not_disturb_what_the_first_has_begun(
    terminated: Callable[..., Any],
) -> None:
    code, out, err = terminated(
        """
with R.start(experiment_name="e"):
    try:
        wait()
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        print("cleaned", flush=True)
"""
    )
    assert (code, out, err) == (143, "cleaned\n", "")
    assert statuses() == {"e": "FAILED"}


@pytest.mark.parametrize("block", [True, False])
def test_a_second_signal_while_the_run_is_being_ended_changes_nothing(
    terminated: Callable[..., Any], block: bool
) -> None:
    code, out, err = terminated(
        f"""
from qwf.tracking.recorder import Recorder
real = Recorder.end_run
def slow(*args):
    print("ending", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    real(*args)
Recorder.end_run = slow
if {block}:
    with R.start(experiment_name="e"):
        wait()
R.start_exp(experiment_name="e")
wait()
"""
    )
    assert (code, out, err) == (143, "ending\n", "")
    assert statuses() == {"e": "FAILED"}


def test_a_first_signal_while_the_program_ends_its_runs_leaves_them_with_its_end(
    terminated: Callable[..., Any],
) -> None:
    code, out, err = terminated(
        """
from qwf.tracking.recorder import Recorder
real, handler = Recorder.end_run, exits._on_sigterm
come = threading.Event()
def noted(number, frame):
    come.set()
    handler(number, frame)
def slow(*args):
    ready()
    while not come.is_set():
        time.sleep(0.01)
    real(*args)
signal.signal(signal.SIGTERM, noted)
Recorder.end_run = slow
R.start_exp(experiment_name="e")
"""
    )
    assert (code, out, err) == (0, "", "")
    assert statuses() == {"e": "FINISHED"}


def test_a_worker_whose_pool_goes_on_after_the_signal_starts_no_other_run(
    store: Path, run_script: Callable[..., Any]
) -> None:
    source = """
        import multiprocessing, sys, time
        import qwf
        from qwf import R

        def work(begun):
            try:
                with R.start(experiment_name="first"):
                    begun.set()
                    time.sleep(60)
            except SystemExit:
                pass  # as a pool does, which takes it for what the task has come to
            with R.start(experiment_name="second"):
                pass

        qwf.init(uri=sys.argv[1])
        context = multiprocessing.get_context("fork")
        begun = context.Event()
        worker = context.Process(target=work, args=(begun,))
        worker.start()
        begun.wait()
        worker.terminate()
        worker.join()
        print(worker.exitcode)
    """
    result = run_script(source, store)
    assert result.stdout == f"{-signal.SIGTERM}\n", result.stderr
    first = R.list_recorders(experiment_name="first").values()
    assert [recorder.status for recorder in first] == ["FAILED"]
    assert R.get_exp(experiment_name="second").list_recorders() == {}
