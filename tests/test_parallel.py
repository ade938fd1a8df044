"""Many calls at once: each has an outcome of its own, and none outlives whoever asked for it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import qwf
from qwf import C, R, parallel
from qwf.errors import RecorderInitializationError
from qwf.parallel import (
    Call,
    Outcome,
    in_processes,
    on_executor,
    one_by_one,
    steps_in_processes,
)

Run = Callable[[Sequence[Call[Any]]], Iterator[Outcome[Any]]]


def calls(*runs: Callable[[], Any]) -> list[Call[Any]]:
    return [Call(f"call {number}", run) for number, run in enumerate(runs)]


def in_order(outcomes: Iterator[Outcome[Any]]) -> list[Outcome[Any]]:
    return sorted(outcomes, key=lambda outcome: outcome.index)


def ways() -> list[Any]:
    def on(kind: type[Executor]) -> Run:
        def run(todo: Sequence[Call[Any]]) -> Iterator[Outcome[Any]]:
            with kind(2) as pool:  # type: ignore[call-arg]
                yield from on_executor(todo, pool)

        return run

    return [
        pytest.param(one_by_one, id="one by one"),
        pytest.param(partial(in_processes, at_once=2), id="own processes"),
        pytest.param(on(ThreadPoolExecutor), id="threads"),
        pytest.param(on(ProcessPoolExecutor), id="process pool"),
    ]


def fail() -> None:
    raise ArithmeticError("did not converge")


def die(code: int = 9) -> None:
    os._exit(code)


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def is_alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# --- whatever runs the calls -----------------------------------------------------------------


@pytest.mark.parametrize("run", ways())
def test_each_call_has_its_own_outcome_and_a_failure_costs_the_others_nothing(
    store: Path, run: Run
) -> None:
    first, second, third = in_order(run(calls(partial(int, "7"), fail, partial(int, "9"))))
    assert (first.value, first.error, third.value, third.error) == (7, None, 9, None)
    assert type(second.error) is ArithmeticError
    assert second.error.args == ("did not converge",)


@pytest.mark.parametrize("run", ways())
def test_the_hook_of_a_failed_call_alone_is_called_here(store: Path, run: Run) -> None:
    heard: list[tuple[str, int]] = []
    todo = [
        Call("good", partial(int, "7"), lambda: heard.append(("good", os.getpid()))),
        Call("bad", fail, lambda: heard.append(("bad", os.getpid()))),
    ]
    list(run(todo))
    assert heard == [("bad", os.getpid())]


@pytest.mark.parametrize("run", ways())
def test_no_calls_have_no_outcomes(store: Path, run: Run) -> None:
    assert list(run([])) == []


def where_and_how() -> tuple[str, str, str]:
    return R.get_uri(), C.pickle_policy, C.default_exp_name


@pytest.mark.parametrize("run", ways())
def test_settings_and_store_are_those_of_the_caller(
    store: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWF_PICKLE_POLICY", "restricted")
    qwf.init(uri=store, default_exp_name="mine")
    assert [one.value for one in run(calls(where_and_how))] == [(str(store), "restricted", "mine")]
    R.set_uri(tmp_path / "set")
    assert [one.value for one in run(calls(where_and_how))] == [
        (str(tmp_path / "set"), "restricted", "mine")
    ]
    with R.uri_context(tmp_path / "context"):
        assert [one.value for one in run(calls(where_and_how))] == [
            (str(tmp_path / "context"), "restricted", "mine")
        ]


def active_experiment() -> Any:
    return R.exp_manager.active_experiment


@pytest.mark.parametrize("run", ways()[1:])
def test_a_run_that_is_active_here_is_not_active_in_a_worker(store: Path, run: Run) -> None:
    with R.start(experiment_name="outer"):
        assert [one.value for one in run(calls(active_experiment))] == [None]
        assert active_experiment() is not None


def kernels() -> int:
    return int(C.kernels)


@pytest.mark.parametrize("run", [ways()[1], ways()[3]])
def test_what_runs_in_another_process_does_not_multiply_the_kernels(store: Path, run: Run) -> None:
    qwf.init(uri=store, kernels=4)
    assert [one.value for one in run(calls(kernels))] == [1]


# --- processes of our own --------------------------------------------------------------------


def test_each_call_has_a_process_of_its_own_that_has_ended_when_its_outcome_comes(
    store: Path,
) -> None:
    pids = []
    for outcome in in_processes(calls(*[os.getpid] * 4), 2):
        assert outcome.value is not None
        assert not is_alive(outcome.value)
        pids.append(outcome.value)
    assert len({*pids, os.getpid()}) == 5


def meet(barrier: Any, log: Path) -> None:
    # Two lines, each one write to a file that is only appended to.
    with log.open("ab", buffering=0) as stream:
        stream.write(b"begin\n")
        barrier.wait(60)
        stream.write(b"end\n")


def test_as_many_run_at_once_as_were_asked_for_and_never_more(store: Path, tmp_path: Path) -> None:
    barrier = multiprocessing.get_context().Barrier(2)  # nobody passes it alone
    log = tmp_path / "log"
    outcomes = list(in_processes(calls(*[partial(meet, barrier, log)] * 6), 2))
    assert [one.error for one in outcomes] == [None] * 6
    at_once, most = 0, 0
    for line in log.read_text().splitlines():
        at_once += 1 if line == "begin" else -1
        most = max(most, at_once)
    assert most == 2


def wait_for_file(path: Path) -> str:
    while not path.exists():
        os.sched_yield()
    return "gone"


def test_who_asks_for_steps_may_do_something_else_while_calls_run(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwf.parallel._LOOK_AGAIN_SECONDS", 0.01)
    go = tmp_path / "go"
    with contextlib.closing(
        steps_in_processes([Call("waits", partial(wait_for_file, go))], 1)
    ) as steps:
        assert next(steps) is None  # the call cannot have ended
        go.touch()
        assert [step for step in steps if step is not None] == [Outcome(0, "gone")]


def test_an_outcome_may_be_answered_with_another_call() -> None:
    todo = calls(be_killed, os.getpid)
    seen = []

    class Coming(Iterator[Call[Any]]):
        def __next__(self) -> Call[Any]:
            if not todo:
                raise StopIteration
            return todo.pop(0)

    for outcome in in_processes(Coming(), 1):
        seen.append(outcome)
        if len(seen) < 4:
            todo.append(Call("again", partial(pow, 2, len(seen))))
    assert [outcome.index for outcome in seen] == [0, 1, 2, 3, 4]
    assert isinstance(seen[0].error, BrokenProcessPool)
    assert [outcome.value for outcome in seen[2:]] == [2, 4, 8]


@pytest.mark.parametrize(("way_to_die", "told"), [(die, "exit code 9"), (be_killed, "SIGKILL")])
def test_a_process_that_dies_costs_its_own_call_only(
    store: Path, way_to_die: Callable[[], None], told: str
) -> None:
    outcomes = in_order(in_processes(calls(os.getpid, way_to_die, os.getpid), 2))
    assert [one.error is None for one in outcomes] == [True, False, True]
    assert isinstance(outcomes[1].error, BrokenProcessPool)
    assert f"run call 1 died before it returned ({told})" in str(outcomes[1].error)


def test_an_error_of_another_process_shows_where_it_was_raised(store: Path) -> None:
    (outcome,) = in_processes(calls(fail), 1)
    assert outcome.error is not None
    assert 'raise ArithmeticError("did not converge")' in str(outcome.error.__cause__)
    assert "in fail" in str(outcome.error.__cause__)


class OddError(Exception):
    """Cannot be made again from its arguments, as pickle does, nor from its attributes."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} is not {two}")
        self.lock = threading.Lock()


def fail_oddly() -> None:
    raise OddError(1, 2)


def unpicklable() -> Any:
    return threading.Lock()


class OnlyThere:
    """Can be pickled, and not unpickled here."""

    def __reduce__(self) -> Any:
        return _made_in, (os.getpid(),)


def _made_in(pid: int) -> OnlyThere:
    if pid != os.getpid():
        raise LookupError("made elsewhere")
    return OnlyThere()


def test_what_does_not_survive_the_way_between_processes_is_told_of(store: Path) -> None:
    odd, result, foreign, good = in_order(
        in_processes(calls(fail_oddly, unpicklable, OnlyThere, os.getpid), 2)
    )
    assert type(odd.error) is RuntimeError
    assert str(odd.error) == "OddError: 1 is not 2"
    assert isinstance(result.error, TypeError)
    assert "lock" in str(result.error)
    assert isinstance(foreign.error, LookupError)
    assert good.error is None


def big(size: int) -> bytes:
    return b"x" * size


def test_a_result_larger_than_a_pipe_comes_whole(store: Path) -> None:
    outcomes = in_order(in_processes(calls(partial(big, 10_000_000), partial(big, 1)), 2))
    assert [len(one.value) for one in outcomes] == [10_000_000, 1]


def exit_with_error() -> None:
    raise SystemExit(3)


def test_an_exit_in_another_process_is_an_outcome(store: Path) -> None:
    (outcome,) = in_processes(calls(exit_with_error), 1)
    assert isinstance(outcome.error, SystemExit)
    assert outcome.error.args == (3,)


def leave_run_open(fails: bool) -> None:
    R.start_exp(experiment_name=f"left {fails}")
    if fails:
        fail()


def test_runs_that_a_call_leaves_open_end_as_the_call_did(store: Path) -> None:
    list(in_processes(calls(partial(leave_run_open, False), partial(leave_run_open, True)), 2))
    statuses = {
        name: [one.status for one in R.list_recorders(experiment_name=name).values()]
        for name in R.list_experiments()
    }
    assert statuses == {"left False": ["FINISHED"], "left True": ["FAILED"]}


def test_a_process_that_cannot_be_started_is_told_of(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(self: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", no_memory)
    outcomes = list(in_processes(calls(os.getpid, os.getpid), 2))
    assert [type(one.error) for one in outcomes] == [BlockingIOError] * 2


class Signpost:
    """Events between the test and its processes; nobody sleeps."""

    def __init__(self) -> None:
        context = multiprocessing.get_context()
        self.running, self.ended = context.Event(), context.Event()
        self.pid = context.Value("i", 0)


def run_until_told(post: Signpost) -> None:
    post.pid.value = os.getpid()
    try:
        post.running.set()
        while True:
            signal.pause()  # returns after every signal
    except SystemExit:
        # The next signals do not interrupt what has to be done at the end.
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        post.ended.set()
        raise


def wait_for(post: Signpost) -> int:
    assert post.running.wait(60)
    os.kill(post.pid.value, signal.SIGINT)  # as the terminal does to all; it is not theirs
    return int(post.pid.value)


def test_whoever_stops_asking_ends_the_processes_that_still_run(store: Path) -> None:
    post = Signpost()
    heard: list[str] = []
    todo = [
        Call("endless", partial(run_until_told, post), lambda: heard.append("endless")),
        Call("short", partial(wait_for, post)),
        Call("never begun", os.getpid, lambda: heard.append("never begun")),
    ]
    with contextlib.closing(in_processes(todo, 2)) as outcomes:
        pid = next(outcomes).value
        assert is_alive(pid)
    assert post.ended.is_set(), "it could end by itself"
    assert not is_alive(pid)
    assert heard == ["endless"]


def run_until_told_twice(post: Signpost) -> None:
    # As when the kernel gives the first signal to a thread that does not wake the others.
    obey = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(signal.SIGTERM, obey))
    run_until_told(post)


def test_a_process_that_has_missed_the_signal_is_told_again(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "_TELL_AGAIN_SECONDS", 0.01)
    post = Signpost()
    todo = calls(partial(run_until_told_twice, post), partial(wait_for, post))
    with contextlib.closing(in_processes(todo, 2)) as outcomes:
        pid = next(outcomes).value
    assert post.ended.is_set(), "it could end by itself"
    assert not is_alive(pid)


def hear_nothing(post: Signpost) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    post.pid.value = os.getpid()
    post.running.set()
    while True:
        signal.pause()


def test_a_process_that_does_not_end_when_told_is_killed(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "GRACE_SECONDS", 0.1)
    post = Signpost()
    todo = calls(partial(hear_nothing, post), partial(wait_for, post))
    with contextlib.closing(in_processes(todo, 2)) as outcomes:
        pid = next(outcomes).value
    assert not is_alive(pid)


def leave_a_thread() -> int:
    threading.Thread(target=threading.Event().wait).start()
    return os.getpid()


def test_a_thread_that_was_left_does_not_keep_a_process(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "GRACE_SECONDS", 0.1)
    (outcome,) = in_processes(calls(leave_a_thread), 1)
    assert outcome.error is None
    assert not is_alive(outcome.value)


def die_with_a_child(gate: int, opener: int) -> None:
    if os.fork() == 0:
        os.close(opener)
        os.read(gate, 1)  # it has all pipes of its parent, until the test lets it go
        os._exit(0)
    os._exit(9)


@pytest.mark.skipif(
    multiprocessing.get_start_method() != "fork", reason="pipes of the test are inherited by fork"
)
def test_a_death_is_seen_although_a_grandchild_holds_the_pipes(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "_LOOK_AGAIN_SECONDS", 0.01)
    gate, opener = os.pipe()
    try:
        (outcome,) = in_processes(calls(partial(die_with_a_child, gate, opener)), 1)
        assert isinstance(outcome.error, BrokenProcessPool)
    finally:
        os.close(opener)
        os.close(gate)


def nested() -> list[int]:
    return [one.value for one in in_processes(calls(os.getpid, os.getpid), 2)]


def test_a_call_may_itself_make_calls_in_processes(store: Path) -> None:
    (outcome,) = in_processes(calls(nested), 1)
    assert len(set(outcome.value)) == 2


def test_processes_may_be_started_from_a_thread(store: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        outcomes = pool.submit(lambda: list(in_processes(calls(os.getpid, fail), 2))).result(60)
    assert sorted(one.error is None for one in outcomes) == [False, True]


# --- an executor -----------------------------------------------------------------------------


def test_calls_that_have_not_begun_are_cancelled_when_no_more_are_asked_for(store: Path) -> None:
    begun, let_go = threading.Event(), threading.Event()
    made: list[int] = []

    def block() -> None:
        begun.set()
        let_go.wait(60)

    with ThreadPoolExecutor(1) as pool:
        outcomes = on_executor(calls(fail, block, partial(made.append, 1)), pool)
        assert next(outcomes).index == 0
        assert begun.wait(60)
        outcomes.close()
        let_go.set()
        assert pool.submit(os.getpid).result() == os.getpid(), "the executor is its owner's"
    assert made == []


def test_an_executor_that_refuses_a_call_does_not_lose_the_others(store: Path) -> None:
    class Closing(ThreadPoolExecutor):
        accepted = 0

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            self.accepted += 1
            if self.accepted == 2:
                self.shutdown(wait=True)
            return super().submit(fn, *args, **kwargs)

    first, *others = in_order(on_executor(calls(*[os.getpid] * 3), Closing(1)))
    assert first.value == os.getpid()
    assert [type(one.error) for one in others] == [RuntimeError] * 2


def test_a_call_that_was_cancelled_by_the_owner_is_an_outcome(store: Path) -> None:
    heard: list[int] = []
    begun, let_go = threading.Event(), threading.Event()

    def block() -> None:
        begun.set()
        let_go.wait(60)

    with ThreadPoolExecutor(1) as pool:
        blocked = pool.submit(block)
        assert begun.wait(60)
        todo = [Call("c", os.getpid, lambda: heard.append(1))]
        outcomes: list[Outcome[int]] = []
        asking = threading.Thread(target=lambda: outcomes.extend(on_executor(todo, pool)))
        submitted = threading.Event()
        submit = pool.submit

        def noted(*args: Any) -> Future[Any]:
            future = submit(*args)
            submitted.set()
            return future

        pool.submit = noted  # type: ignore[method-assign]
        asking.start()
        assert submitted.wait(60)
        pool.shutdown(wait=False, cancel_futures=True)
        let_go.set()
        asking.join(60)
        blocked.result(60)
    assert [type(one.error) for one in outcomes] == [CancelledError]
    assert heard == []


def test_threads_of_this_process_leave_its_settings_alone(store: Path) -> None:
    before = C.generation
    with R.start(experiment_name="outer"), ThreadPoolExecutor(2) as pool:
        list(on_executor(calls(where_and_how, where_and_how), pool))
        assert C.generation == before
        R.log_metrics(loss=1.0)


def from_elsewhere(**changes: Any) -> parallel._Settings:
    """The settings of this process, as if another had sent them."""
    return replace(parallel._Settings.here(), home=(0, "another host"), **changes)


@pytest.fixture
def nothing_adopted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_adopted", None)


def test_equal_settings_are_taken_over_once_so_that_runs_of_other_threads_stay_known(
    store: Path, tmp_path: Path, nothing_adopted: None
) -> None:
    first, second = from_elsewhere(), from_elsewhere(uri=str(tmp_path / "other"))
    with first.meant():
        generation = C.generation
        with R.start(experiment_name="e"):
            with second.meant():
                assert R.get_uri() == str(tmp_path / "other")
            assert C.generation == generation
            assert R.get_uri() == str(store)


def test_other_settings_are_refused_while_a_run_of_another_thread_is_active(
    store: Path, nothing_adopted: None
) -> None:
    with from_elsewhere().meant(), R.start(experiment_name="e"):
        other = from_elsewhere(mark="other", state={**C.state(), "values": {"uri": "x"}})
        with (
            pytest.raises(RecorderInitializationError, match="active"),
            contextlib.ExitStack() as stack,
        ):
            stack.enter_context(other.meant())
        assert C.pickle_policy == "trusted"
        R.log_metrics(loss=1.0)


def test_settings_that_were_changed_meanwhile_are_taken_over_again(
    store: Path, tmp_path: Path, nothing_adopted: None
) -> None:
    settings = from_elsewhere()
    with settings.meant():
        pass
    qwf.init(uri=tmp_path / "other", pickle_policy="never")
    with settings.meant():
        assert C.pickle_policy == "trusted"


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("not me")


def test_settings_that_have_no_pickle_still_have_a_mark(store: Path) -> None:
    qwf.init(uri=store, calendar=Unpicklable())
    mark = parallel._Settings.here().mark
    assert parallel._Settings.here().mark == mark
    qwf.init(uri=store, calendar=Unpicklable())
    assert parallel._Settings.here().mark != mark
