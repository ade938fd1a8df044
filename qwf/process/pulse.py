"""One thread per process that calls what is to happen about every so many seconds.

It exists while something is watched and a moment longer, never keeps the interpreter alive, and
steps aside while the process forks: a child begins without it, and without what its parent watched.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final

__all__ = ["unwatch", "watch"]

# A thread that nobody needs any more waits for the next run: starting one takes as long as many
# system calls.
IDLE_SECONDS = 5.0

_logger: Final = logging.getLogger("qwf.process")


@dataclass
class _Watch:
    call: Callable[[], None]
    seconds: float
    due: float  # by the monotonic clock
    failed: bool = False


# Reentrant, because a signal may come in the middle, and its handler end a run.
_changed = threading.Condition(threading.RLock())
_watches: dict[Hashable, _Watch] = {}
_thread: threading.Thread | None = None
_last: threading.Thread | None = None  # may not have ended yet
_calling = False
_asleep_until = 0.0  # 0 while it is awake


def watch(key: Hashable, call: Callable[[], None], *, seconds: float) -> None:
    """Have ``call()`` called about every `seconds` from now on, in a thread of its own.

    Parameters
    ----------
    key : hashable
        What `unwatch` is told; what was watched under it before is forgotten.
    call : callable
        If it raises, that is logged once, and it is called again.
    seconds : float
        From the beginning of one call to that of the next. All calls share one thread, so that a
        slow one delays the others.

    Notes
    -----
    Where no thread can be started (too many, or the interpreter is ending) nothing is called.
    """
    with _changed:
        due = time.monotonic() + seconds
        _watches[key] = _Watch(call, seconds, due)
        _start()
        if due < _asleep_until:  # waking it for nothing would cost each run more than all of this
            _changed.notify_all()


def unwatch(key: Hashable) -> None:
    """Forget what was watched; a call that is just going on goes on."""
    with _changed:
        if _watches.pop(key, None) is None or _watches:
            return
        if _calling:
            _stop()  # what is watched next need not wait for that call
        _changed.notify_all()


def _start() -> None:
    global _thread, _last
    if _thread is None and _watches:
        thread = threading.Thread(target=_beat, name="qwf-pulse", daemon=True)
        _thread = _last = thread
        try:
            thread.start()
        except RuntimeError:
            _thread = _last = None


def _stop() -> None:
    global _thread
    _thread = None
    _changed.notify_all()


def _beat() -> None:
    # A signal that is given to this thread does not wake the main one, which has to handle it.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    me = threading.current_thread()
    while True:
        with _changed:
            if not _watches:
                _sleep(IDLE_SECONDS)
            if _thread is me and not _watches:
                _stop()
            if _thread is not me:
                return
            key, next_one = min(_watches.items(), key=lambda item: item[1].due)
            now = time.monotonic()
            if next_one.due > now:
                _sleep(next_one.due - now)
                continue
            next_one.due = now + next_one.seconds
        _call(key, next_one)


def _sleep(seconds: float) -> None:
    global _asleep_until
    _asleep_until = time.monotonic() + seconds
    _changed.wait(seconds)
    _asleep_until = 0.0


def _call(key: Hashable, one: _Watch) -> None:
    global _calling
    _calling = True
    try:
        one.call()
    except Exception:
        if not one.failed:
            one.failed = True
            _logger.exception("%r fails; it is tried again every %g s", key, one.seconds)
    finally:
        _calling = False


# --- forks -----------------------------------------------------------------------------------


def _step_aside() -> None:
    """End the thread before a fork, unless it is in the middle of a call."""
    with _changed:
        _stop()
        thread = None if _calling else _last
    if thread is not None and thread is not threading.current_thread():
        thread.join(1.0)  # it has nothing left to do


def _resume() -> None:
    with _changed:
        _start()


def _begin_in_child() -> None:
    global _changed, _thread, _last, _calling, _asleep_until
    # A thread that is not here any more may hold the lock.
    _changed = threading.Condition(threading.RLock())
    _watches.clear()
    _thread, _last, _calling, _asleep_until = None, None, False, 0.0


# A child must not inherit what the thread has left half-way; and Python warns of forks in a process
# with threads.
os.register_at_fork(before=_step_aside, after_in_parent=_resume, after_in_child=_begin_in_child)
