"""What becomes of runs that are still open when the interpreter ends.

An uncaught exception, an interrupt, or an exit with an error leaves them FAILED, a normal end
FINISHED. The hooks are installed by the first run and pass on to those that were there before.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn

from ..errors import QwfError

__all__ = ["is_open", "keep", "release"]

# What to call with a status, per open run; insertion order, so that inner runs end first.
_open: dict[tuple[int, str], Callable[[bool], None]] = {}
_failed = False
_installed = False


def keep(key: str, end: Callable[[bool], None]) -> None:
    """Have ``end(failed)`` called when the interpreter ends, unless released before."""
    global _failed
    _install()
    _failed = False  # an exit that was asked for before has been caught, or we would not be here
    # A forked child inherits the runs of its parent and must not end them.
    _open[os.getpid(), key] = end


def release(key: str) -> None:
    """Forget a run that has ended."""
    _open.pop((os.getpid(), key), None)


def is_open(key: str) -> bool:
    """Whether a run was started in this process and has not ended."""
    return (os.getpid(), key) in _open


def _install() -> None:
    global _installed
    if _installed:
        return
    _installed = True
    atexit.register(_end_all)
    _chain_excepthook(sys.excepthook)
    _chain_exit(sys.exit)


def _chain_excepthook(
    before: Callable[[type[BaseException], BaseException, TracebackType | None], Any],
) -> None:
    def hook(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
        _note_failure()
        try:
            _end_all()
        finally:
            before(kind, value, trace)

    sys.excepthook = hook


def _chain_exit(before: Callable[[Any], NoReturn]) -> None:
    def leave(status: Any = None, /) -> NoReturn:
        # By the time of `atexit` the status is gone. Whoever catches the exit keeps the run open,
        # so only note it here.
        if status not in (None, 0):
            _note_failure()
        before(status)

    sys.exit = leave


def _note_failure() -> None:
    global _failed
    _failed = True


def _end_all() -> None:
    mine = [key for key in _open if key[0] == os.getpid()]
    for key in reversed(mine):
        end = _open.pop(key, None)
        if end is not None:
            # A store or run that is gone must not hide the exit, nor keep others from ending.
            with contextlib.suppress(OSError, QwfError):
                end(_failed)
