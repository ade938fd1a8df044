"""What becomes of open runs when a program ends, however it ends."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwf import R

BEGIN = """
import os, sys, threading
import qwf
from qwf import R
qwf.init(uri=sys.argv[1])
"""


def statuses(*names: str) -> list[str]:
    return [
        recorder.status
        for name in names
        for recorder in R.list_recorders(experiment_name=name).values()
    ]


def program(*lines: str) -> str:
    return BEGIN + "\n".join(lines) + "\n"


OPEN = "R.start_exp(experiment_name='e'); R.log_metrics(m=1)"


@pytest.mark.parametrize(
    ("lines", "code", "status"),
    [
        pytest.param([OPEN], 0, "FINISHED", id="normal_end"),
        pytest.param([OPEN, "raise RuntimeError('oops')"], 1, "FAILED", id="exception"),
        pytest.param([OPEN, "raise KeyboardInterrupt"], -signal.SIGINT, "FAILED", id="ctrl_c"),
        pytest.param([OPEN, "sys.exit()"], 0, "FINISHED", id="exit"),
        pytest.param([OPEN, "sys.exit(0)"], 0, "FINISHED", id="exit_0"),
        pytest.param([OPEN, "sys.exit(3)"], 3, "FAILED", id="exit_3"),
        pytest.param([OPEN, "sys.exit('bad')"], 1, "FAILED", id="exit_text"),
        pytest.param([OPEN, "R.end_exp()", "sys.exit(3)"], 3, "FINISHED", id="ended_before"),
        pytest.param([OPEN, "R.end_exp('FAILED')"], 0, "FAILED", id="ended_failed"),
        pytest.param(["with R.start(experiment_name='e'): sys.exit(3)"], 3, "FAILED", id="block"),
        pytest.param(
            ["with R.start(experiment_name='e'): raise SystemExit(3)"],
            3,
            "FAILED",
            id="block_raise",
        ),
        pytest.param(["R.log_params(a=1)"], 0, "FINISHED", id="default_run"),
        pytest.param(["R.log_params(a=1)", "1 / 0"], 1, "FAILED", id="default_run_exception"),
        pytest.param(
            [
                OPEN,
                "try: sys.exit(3)",
                "except SystemExit: pass",
                "R.end_exp()",
                "R.start_exp(experiment_name='e')",
            ],
            0,
            "FINISHED",
            id="a_caught_exit_is_forgotten_by_the_next_run",
        ),
        pytest.param([OPEN, "os._exit(0)"], 0, "RUNNING", id="nothing_can_be_done"),
    ],
)
def test_the_end_of_a_program_ends_its_run(
    store: Path, run_script: Callable[..., Any], lines: list[str], code: int, status: str
) -> None:
    result = run_script(program(*lines), store)
    assert result.returncode == code, result.stderr
    name = "e" if "e" in R.list_experiments() else "Experiment"
    assert set(statuses(name)) == {status}
    recorder = next(iter(R.list_recorders(experiment_name=name).values()))
    assert (recorder.end_time is None) == (status == "RUNNING")
    assert "Error in" not in result.stderr


def test_all_open_runs_are_ended_the_inner_ones_first(
    store: Path, run_script: Callable[..., Any]
) -> None:
    result = run_script(
        program(
            "R.start_exp(experiment_name='outer')",
            "R.start_exp(experiment_name='inner')",
            "raise ValueError('oops')",
        ),
        store,
    )
    assert result.returncode == 1
    assert statuses("outer", "inner") == ["FAILED", "FAILED"]
    ended = [
        next(iter(R.list_recorders(experiment_name=name).values()))._ended_at
        for name in ("inner", "outer")
    ]
    assert ended == sorted(ended)


def test_the_hooks_that_were_there_before_are_still_called(
    store: Path, run_script: Callable[..., Any]
) -> None:
    result = run_script(
        program(
            "def mine(kind, value, trace): print('hook:', kind.__name__, value)",
            "sys.excepthook = mine",
            OPEN,
            "raise RuntimeError('oops')",
        ),
        store,
    )
    assert result.stdout == "hook: RuntimeError oops\n"
    assert statuses("e") == ["FAILED"]


def test_the_traceback_is_printed_once(store: Path, run_script: Callable[..., Any]) -> None:
    result = run_script(program(OPEN, "raise RuntimeError('oops')"), store)
    assert result.stderr.count("RuntimeError: oops") == 1
    assert result.stderr.count("Traceback") == 1


def test_a_program_without_runs_keeps_its_hooks(
    store: Path, run_script: Callable[..., Any]
) -> None:
    result = run_script(
        program(
            "R.list_experiments()",
            "print(sys.excepthook is sys.__excepthook__, type(sys.exit).__name__)",
        ),
        store,
    )
    assert result.stdout == "True builtin_function_or_method\n"


def test_a_forked_child_does_not_end_the_runs_of_its_parent(
    store: Path, run_script: Callable[..., Any]
) -> None:
    result = run_script(
        program(
            OPEN,
            "child = os.fork()",
            "if child == 0:",
            "    R.start_exp(experiment_name='child')",
            "    sys.exit(5)",
            "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))",
            "print(next(iter(R.list_recorders(experiment_name='e').values())).status)",
            "R.log_metrics(m=2)",
        ),
        store,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["5", "RUNNING"]
    assert statuses("e", "child") == ["FINISHED", "FAILED"]
    recorder = next(iter(R.list_recorders(experiment_name="e").values()))
    assert recorder.list_metrics() == {"m": 2.0}


def test_a_thread_that_dies_does_not_fail_the_program(
    store: Path, run_script: Callable[..., Any]
) -> None:
    result = run_script(
        program(
            OPEN,
            "def work():",
            "    with R.start(experiment_name='t'):",
            "        raise RuntimeError('in the thread')",
            "thread = threading.Thread(target=work)",
            "thread.start()",
            "thread.join()",
        ),
        store,
    )
    assert result.returncode == 0
    assert statuses("e", "t") == ["FINISHED", "FAILED"]


def test_runs_of_several_stores_are_ended(
    store: Path, tmp_path: Path, run_script: Callable[..., Any]
) -> None:
    other = tmp_path / "other"
    run_script(
        program(OPEN, "R.start_exp(experiment_name='e', uri=sys.argv[2])", "sys.exit(1)"),
        store,
        other,
    )
    assert statuses("e") == ["FAILED"]
    with R.uri_context(other):
        assert statuses("e") == ["FAILED"]


def test_a_run_that_was_deleted_meanwhile_does_not_keep_others_from_ending(
    store: Path, run_script: Callable[..., Any]
) -> None:
    result = run_script(
        program(
            "import shutil",
            OPEN,
            "R.start_exp(experiment_name='gone')",
            "shutil.rmtree(R.get_recorder().get_local_dir())",
            "raise RuntimeError('oops')",
        ),
        store,
    )
    assert statuses("e") == ["FAILED"]
    assert "RuntimeError: oops" in result.stderr
    assert result.stderr.count("Traceback") == 1


def test_a_killed_program_leaves_what_it_logged(
    store: Path, run_script: Callable[..., Any]
) -> None:
    result = run_script(
        program(
            "R.start_exp(experiment_name='e')",
            "R.log_params(p=1)",
            "R.set_tags(t=2)",
            "R.log_metrics(m=3)",
            "R.save_objects(x=[4])",
            "os.kill(os.getpid(), 9)",
        ),
        store,
    )
    assert result.returncode == -signal.SIGKILL
    (recorder,) = R.list_recorders(experiment_name="e").values()
    assert recorder.list_params()["p"] == "1"
    assert recorder.list_tags() == {"t": "2"}
    assert recorder.list_metrics() == {"m": 3.0}
    assert recorder.load_object("x") == [4]
    with R.start(experiment_name="e", recorder_id=recorder.id, resume=True):
        R.log_metrics(m=5)
    assert (recorder.list_metrics(), recorder.status) == ({"m": 5.0}, "FINISHED")
