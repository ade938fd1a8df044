"""What is watched is called again and again, in a thread that is there only for that."""

from __future__ import annotations

import logging
import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest
from conftest import Children

from qwf.process import pulse

SOON = 0.01
NEVER = 3600.0


@pytest.fixture(autouse=True)
def nothing_watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget what other tests have left watched; the thread ends as soon as nothing is."""
    monkeypatch.setattr(pulse, "IDLE_SECONDS", 0.0)
    for key in list(pulse._watches):
        pulse.unwatch(key)
    pulse._step_aside()
    yield
    assert not pulse._watches


def beating() -> threading.Thread | None:
    return next((one for one in threading.enumerate() if one.name == "qwf-pulse"), None)


class Calls:
    """Counts calls; `reached` waits for that many."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = threading.Condition()

    def __call__(self) -> None:
        with self._changed:
            self.count += 1
            self._changed.notify_all()

    def reached(self, count: int) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.count >= count, 20)


def ended(thread: threading.Thread | None) -> bool:
    if thread is not None:
        thread.join(20)
    return beating() is None


def test_what_is_watched_is_called_until_it_is_not() -> None:
    calls = Calls()
    pulse.watch("a", calls, seconds=SOON)
    assert calls.reached(3)
    thread = beating()
    pulse.unwatch("a")
    assert ended(thread)


def test_several_are_called_each_in_its_time() -> None:
    often, never = Calls(), Calls()
    pulse.watch("never", never, seconds=NEVER)
    pulse.watch("often", often, seconds=SOON)
    assert often.reached(3)
    assert never.count == 0
    pulse.unwatch("often")
    pulse.unwatch("never")


def test_a_watch_replaces_the_one_of_the_same_key() -> None:
    first, second = Calls(), Calls()
    pulse.watch("a", first, seconds=NEVER)
    pulse.watch("a", second, seconds=SOON)
    assert second.reached(1)
    assert first.count == 0
    pulse.unwatch("a")


def test_a_call_that_raises_is_logged_once_and_called_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls = Calls()

    def fail() -> None:
        calls()
        raise ValueError("broken")

    pulse.watch("a", fail, seconds=SOON)
    assert calls.reached(4)
    pulse.unwatch("a")
    told = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert len(told) == 1
    assert "'a' fails" in told[0].getMessage()
    assert told[0].exc_info


def test_a_call_may_watch_and_unwatch() -> None:
    calls = Calls()

    def once() -> None:
        pulse.unwatch("once")
        pulse.watch("next", calls, seconds=SOON)

    pulse.watch("once", once, seconds=SOON)
    assert calls.reached(2)
    pulse.unwatch("next")


def test_unwatching_does_not_wait_for_a_call_that_is_going_on() -> None:
    inside, go = threading.Event(), threading.Event()

    def slow() -> None:
        inside.set()
        go.wait(20)

    pulse.watch("a", slow, seconds=SOON)
    assert inside.wait(20)
    thread = beating()
    pulse.unwatch("a")
    calls = Calls()
    pulse.watch("b", calls, seconds=SOON)
    assert calls.reached(1), "a slow call that was forgotten delays nobody"
    go.set()
    assert thread is not None
    thread.join(20)
    assert not thread.is_alive()
    pulse.unwatch("b")


def test_a_forked_child_has_neither_thread_nor_watches(children: Children) -> None:
    calls = Calls()
    pulse.watch("a", calls, seconds=SOON)
    assert calls.reached(1)

    def child() -> None:
        assert not pulse._watches
        assert beating() is None
        mine = Calls()
        pulse.watch("b", mine, seconds=SOON)
        assert mine.reached(2)

    children.add(child)
    assert children.exit_codes() == [0]
    assert calls.reached(calls.count + 2), "the parent goes on"
    pulse.unwatch("a")


def test_at_the_moment_of_a_fork_there_is_no_thread(children: Children) -> None:
    calls = Calls()
    pulse.watch("a", calls, seconds=SOON)
    assert calls.reached(1)
    thread = beating()
    children.add(lambda: None)
    assert children.exit_codes() == [0]
    assert thread is not None
    assert not thread.is_alive()
    assert beating() not in (None, thread), "it is another one that goes on"
    pulse.unwatch("a")


def test_where_no_thread_can_be_started_nothing_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    calls = Calls()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        pulse.watch("a", calls, seconds=SOON)
    pulse.watch("b", calls, seconds=SOON)
    assert calls.reached(2), "the next watch tries again"
    pulse.unwatch("a")
    pulse.unwatch("b")


def test_an_interpreter_ends_although_something_is_watched(
    run_script: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    source = """
        from qwf.process import pulse
        pulse.watch("a", lambda: None, seconds=0.01)
        print("end")
    """
    result = run_script(source)
    assert (result.returncode, result.stdout, result.stderr) == (0, "end\n", "")
