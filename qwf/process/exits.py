"""What becomes of runs that are still open when the interpreter ends.

They become FAILED when the program ends by an exception, an interrupt or an exit with an error,
and FINISHED when it comes to its end. Whatever was raised and caught meanwhile does not matter. An
interactive session fails only by ``exit(code)``.

Python does not tell the code of a ``raise SystemExit(code)`` that passes neither `sys.exit` nor
`exit`, nor (outside ``__main__``) by a name that ``from sys import exit`` has bound before the
first run. Such an end counts as an error, with a warning.

SIGTERM becomes ``sys.exit(143)`` in the main thread while runs are open, unless the program has a
handler of its own, so that ``with`` blocks end their runs FAILED; a program that does not end by it
is ended a few seconds later, and a second SIGTERM changes nothing. ``os._exit``, other signals
that kill, and a crash leave a run RUNNING, and it is shown as LOST from then on.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
from _sitebuiltins import Quitter
from collections.abc import Callable
from opcode import opname
from types import FrameType
from typing import Any, Final, NoReturn

from ..errors import QwfError

__all__ = ["is_open", "keep", "leave_if_terminated", "release"]

_logger: Final = logging.getLogger("qwf.process")

# Since Python 3.13 a forked child ends here, and the local `code` is its exit code.
_FORKING: Final = ("multiprocessing.popen_fork", "multiprocessing.forkserver")

# How long a program may take to end after SIGTERM; batch systems kill after about 30 s.
_GRACE_SECONDS: Final = 10.0

# What to call with a status, per open run; insertion order, so that inner runs end first.
_open: dict[tuple[int, str], Callable[[bool], None]] = {}
_this_process: int
_installed = False
# The outermost frame of the main thread: whether it returned tells whether the program did.
_program: FrameType | None = None
# Whether the last exit that the main thread asked for was one with an error; None for no exit.
_exit_failed: bool | None = None
_worker: int | None = None  # the multiprocessing child that ends its runs itself
# Processes by their pid, because a forked child must not take these for its own.
_terminated: int | None = None  # has got SIGTERM
_ending: int | None = None  # is ending its open runs, which are not open any more


def keep(key: str, end: Callable[[bool], None]) -> None:
    """Have ``end(failed)`` called when the interpreter ends, unless released before."""
    global _exit_failed
    _install()
    _install_in_worker()
    _handle_sigterm()
    if _program is None:
        _exit_failed = None  # an exit was caught, or we would not be here
    # A forked child inherits the runs of its parent and must not end them.
    _open[os.getpid(), key] = end


def release(key: str) -> None:
    """Forget a run that has ended."""
    _open.pop((os.getpid(), key), None)


def is_open(key: str) -> bool:
    """Whether a run was started in this process and has not ended."""
    return (_this_process, key) in _open


def _note_process() -> None:
    global _this_process
    _this_process = os.getpid()


# Every logged metric asks, and the system call would take a tenth of its time.
_note_process()
os.register_at_fork(after_in_child=_note_process)


# --- being told of the end -------------------------------------------------------------------


def _install() -> None:
    global _installed, _program
    if _installed:
        return
    _installed = True
    atexit.register(_end_with_process)
    _chain_exits()
    if not (hasattr(sys, "ps1") or sys.flags.interactive or sys.flags.inspect):
        main = sys._current_frames().get(threading.main_thread().ident or 0)
        _program = None if main is None else _outermost(main)


def _install_in_worker() -> None:
    """Be told of the end of a forked `multiprocessing` child, which passes over `atexit`."""
    global _worker
    process, util = map(sys.modules.get, ("multiprocessing.process", "multiprocessing.util"))
    if process is None or util is None or process.parent_process() is None:
        return
    if _worker != os.getpid():
        _worker = os.getpid()
        # Below the priority of all others, which may still log.
        util.Finalize(None, _end_with_process, exitpriority=-100)


# --- SIGTERM ---------------------------------------------------------------------------------


def _handle_sigterm() -> None:
    """Be told of SIGTERM, if nobody else wants to be and this is the thread that may ask."""
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _on_sigterm)


def _on_sigterm(number: int, _: FrameType | None) -> None:
    global _terminated
    me = os.getpid()
    if _terminated == me:
        return  # another exit would interrupt what the first one makes blocks do
    # A copy, because other threads start and end runs.
    if _ending != me and not any(pid == me for pid, _ in list(_open)):
        _die_of(number)
    _terminated = me
    # Not ended here: what the signal has interrupted may hold the locks that this would need.
    watcher = threading.Timer(_GRACE_SECONDS, _end_by_force, [number])
    watcher.daemon = True
    watcher.start()
    if _ending != me:
        sys.exit(128 + number)


def leave_if_terminated() -> None:
    """End a worker that has got SIGTERM: a pool takes the exit for what its task has come to."""
    process = sys.modules.get("multiprocessing.process")
    if _terminated == os.getpid() and process is not None and process.parent_process() is not None:
        _end_by_force(signal.SIGTERM)


def _end_by_force(number: int) -> None:
    """End a program that waits for its threads, or has caught the exit."""
    _end_all(failed=True)
    _die_of(number)


def _die_of(number: int) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(128 + number)  # other threads may not change what a signal does


def _chain_exits() -> None:
    leave, quit_ = sys.exit, Quitter.__call__

    def noted_leave(status: Any = None, /) -> NoReturn:
        _note_exit(status)
        leave(status)

    def noted_quit(quitter: Quitter, code: Any = None) -> NoReturn:
        _note_exit(code)
        quit_(quitter, code)

    sys.exit = noted_leave
    setattr(Quitter, "__call__", noted_quit)  # noqa: B010 - mypy allows no plain assignment
    names = vars(sys.modules["__main__"])
    names.update({name: noted_leave for name, value in names.items() if value is leave})


def _note_exit(status: object) -> None:
    # By the time of `atexit` the status is gone. In other threads an exit ends the thread only.
    global _exit_failed
    if threading.get_ident() == threading.main_thread().ident:
        _exit_failed = _is_error(status)


def _is_error(status: object) -> bool:
    return not (status is None or (isinstance(status, int) and status == 0))


# --- the end ---------------------------------------------------------------------------------


def _end_with_process() -> None:
    failed = _worker_failed() if _worker == os.getpid() else _program_failed()
    ended = _end_all(failed=failed is not False)
    if ended and failed is None:
        _logger.warning(
            "the program ended by a SystemExit that was raised directly, whose code is not known; "
            "%d open runs are now FAILED. Call sys.exit instead, or end the runs before.",
            ended,
        )


def _worker_failed() -> bool:
    """Return whether a `multiprocessing` child, which is just being ended, ends with an error."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "_bootstrap":  # until Python 3.12, in its `finally` clause
            error, trace = sys.exc_info()[1:]
            # Any other error is one that the parent was handling when it forked.
            if error is None or trace is None or trace.tb_frame is not frame:
                return False
            return not isinstance(error, SystemExit) or _is_error(error.code)
        if frame.f_globals.get("__name__") in _FORKING and "code" in frame.f_locals:
            return _is_error(frame.f_locals["code"])
        frame = frame.f_back
    return bool(_exit_failed)


def _program_failed() -> bool | None:
    """Return whether the program ends with an error; None when that cannot be known."""
    if _program is None:
        return bool(_exit_failed)
    if _outermost(sys._getframe()) is _program:
        return False  # somebody calls the functions of `atexit` while the program goes on
    if opname[_program.f_code.co_code[_program.f_lasti]].startswith("RETURN"):
        return False
    uncaught = getattr(sys, "last_traceback", None)
    if uncaught is not None and uncaught.tb_frame is _program:
        return True
    return _exit_failed


def _outermost(frame: FrameType) -> FrameType:
    while frame.f_back is not None:
        frame = frame.f_back
    return frame


def _end_all(*, failed: bool) -> int:
    """End the open runs and return how many could be."""
    global _ending
    ended = 0
    _ending = os.getpid()
    try:
        for key in [key for key in reversed(list(_open)) if key[0] == _ending]:
            end = _open.pop(key, None)
            if end is not None:
                # A store or run that is gone must not hide the exit, nor keep others from ending.
                try:
                    end(failed)
                    ended += 1
                except (OSError, QwfError):
                    pass
                except Exception:
                    _logger.exception("a run could not be ended with its program")
    finally:
        _ending = None
    return ended
