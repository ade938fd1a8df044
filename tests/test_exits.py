"""What becomes of open runs when a program ends, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qwf
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
        pytest.param([OPEN, "os._exit(0)"], 0, "LOST", id="nothing_can_be_done"),
        pytest.param([OPEN, "exit(3)"], 3, "FAILED", id="builtin_exit_3"),
        pytest.param([OPEN, "quit()"], 0, "FINISHED", id="builtin_quit"),
        pytest.param(["from sys import exit", OPEN, "exit(3)"], 3, "FAILED", id="imported_exit_3"),
        pytest.param(["from sys import exit", OPEN, "exit(0)"], 0, "FINISHED", id="imported_exit"),
        pytest.param([OPEN, "raise SystemExit(3)"], 3, "FAILED", id="raise_exit_3"),
        pytest.param(
            [OPEN, "try: sys.exit(2)", "except SystemExit: pass"], 0, "FINISHED", id="caught_exit"
        ),
        pytest.param(
            [OPEN, "try: sys.exit(2)", "except SystemExit: sys.exit(0)"],
            0,
            "FINISHED",
            id="caught_exit_and_a_good_one",
        ),
        pytest.param(
            [OPEN, "try: sys.exit(0)", "finally: 1 / 0"], 1, "FAILED", id="error_after_a_good_exit"
        ),
        pytest.param(
            [
                OPEN,
                "import argparse",
                "try: argparse.ArgumentParser().parse_args(['--unknown'])",
                "except SystemExit: pass",
            ],
            0,
            "FINISHED",
            id="caught_argparse_error",
        ),
        pytest.param(
            [
                OPEN,
                "thread = threading.Thread(target=lambda: sys.exit(1))",
                "thread.start(); thread.join()",
            ],
            0,
            "FINISHED",
            id="exit_of_a_thread",
        ),
        pytest.param(
            [OPEN, "try: 1 / 0", "except ZeroDivisionError: sys.excepthook(*sys.exc_info())"],
            0,
            "FINISHED",
            id="an_error_that_was_only_shown",
        ),
        pytest.param(
            ["sys.excepthook = lambda *_: None", OPEN, "1 / 0"], 1, "FAILED", id="silent_hook"
        ),
        pytest.param(
            [
                f"thread = threading.Thread(target=lambda: {OPEN.split(';')[0]})",
                "thread.start(); thread.join()",
                "sys.exit(1)",
            ],
            1,
            "FAILED",
            id="the_run_of_a_thread",
        ),
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
    assert (recorder.end_time is None) == (status == "LOST")
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


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("parent", ["R.start_exp(experiment_name='parent')", "pass"])
@pytest.mark.parametrize(
    ("line", "code", "status"),
    [
        ("pass", 0, "FINISHED"),
        ("sys.exit(0)", 0, "FINISHED"),
        ("raise SystemExit(3)", 3, "FAILED"),
        ("raise ValueError('oops')", 1, "FAILED"),
    ],
)
def test_the_end_of_a_child_of_multiprocessing_ends_its_run(
    store: Path, tmp_path: Path, method: str, parent: str, line: str, code: int, status: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        BEGIN
        + f"""
import multiprocessing
def work():
    R.start_exp(experiment_name='child')
    R.log_metrics(m=1)
    {line}
if __name__ == '__main__':
    {parent}
    try:
        1 / 0
    except ZeroDivisionError:  # which the child inherits
        child = multiprocessing.get_context({method!r}).Process(target=work)
        child.start()
        child.join()
    sys.exit(child.exitcode)
"""
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(qwf.__file__).parent.parent)}
    result = subprocess.run(
        [sys.executable, script, store], check=False, env=environment, capture_output=True
    )
    assert result.returncode == code, result.stderr
    assert {statuses(name)[0] for name in R.list_experiments()} == {status}
    assert "child" in R.list_experiments()


def test_an_exit_whose_code_cannot_be_known_is_warned_of(
    store: Path, run_script: Callable[..., Any]
) -> None:
    result = run_script(program(OPEN, "raise SystemExit(0)"), store)
    assert (result.returncode, statuses("e")) == (0, ["FAILED"])
    assert "raised directly" in result.stderr
    assert "raised directly" not in run_script(program("raise SystemExit(0)"), store).stderr


def test_a_module_that_is_run_ends_its_run_like_a_script(store: Path, tmp_path: Path) -> None:
    for code, status in ((0, "FINISHED"), (3, "FAILED")):
        line = f"R.start_exp(experiment_name='e{code}'); sys.exit({code})"
        (tmp_path / "program.py").write_text(program(line))
        result = subprocess.run(
            [sys.executable, "-m", "program", store],
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(qwf.__file__).parent.parent)},
        )
        assert (result.returncode, statuses(f"e{code}")) == (code, [status])


@pytest.mark.parametrize(("last", "status"), [("", "FINISHED"), ("exit(3)\n", "FAILED")])
def test_a_typo_at_the_prompt_does_not_fail_the_session(
    store: Path, tmp_path: Path, last: str, status: str
) -> None:
    typed = f"sys.argv[1:] = [{str(store)!r}]\n{BEGIN}{OPEN}\n1 / 0\nR.log_metrics(m=2)\n{last}"
    result = subprocess.run(
        [sys.executable, "-i", "-c", "import sys"],
        input=typed,
        text=True,
        check=False,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(Path(qwf.__file__).parent.parent)},
    )
    assert "ZeroDivisionError" in result.stderr
    (recorder,) = R.list_recorders(experiment_name="e").values()
    assert (recorder.status, recorder.list_metrics()) == (status, {"m": 2.0})


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
