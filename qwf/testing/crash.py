"""Kill an operation at every step that changes the filesystem, or let that step fail."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from ..storage import fsio

__all__ = [
    "CHANGING_CALLS",
    "CrashPoint",
    "FailingCall",
    "copy_tree",
    "crash_points",
    "failing_call",
]

# Calls of `os` after which the filesystem may be different. `open` counts when it may create.
CHANGING_CALLS: Final = frozenset(
    {"open", "write", "fsync", "replace", "rename", "link", "unlink", "mkdir", "rmdir"}
)

_DIED: Final = 77
_RAISED: Final = 78


@dataclass(frozen=True)
class CrashPoint:
    """What is left when an operation died at its `step`-th change.

    Attributes
    ----------
    step : int
        Counted from 1.
    directory : Path
        The directory that it worked on.
    acknowledged : bool
        Whether the operation returned, so that its effect must be there.
    """

    step: int
    directory: Path
    acknowledged: bool


@dataclass
class FailingCall:
    """The one call that is to fail, counted from 1, and what it was, once it has failed."""

    step: int
    error: OSError
    failed: str | None = None


class _InterruptingOs:
    """Stands for the module `os` in `fsio`; interrupts one of its changing calls."""

    def __init__(self, step: int, interrupt: Callable[[str], None]) -> None:
        self._left = step
        self._interrupt = interrupt

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CHANGING_CALLS:
            return real

        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and not args[1] & os.O_CREAT:
                return real(*args, **kwargs)
            self._left -= 1
            if self._left == 0:
                if name == "write":  # half of it reaches the file
                    real(args[0], args[1][: len(args[1]) // 2])
                self._interrupt(name)
            return real(*args, **kwargs)

        return call


def crash_points(
    prepared: Path, operation: Callable[[Path], object], workspace: Path
) -> Iterator[CrashPoint]:
    """Run an operation again and again, each time dying one step later, until it survives.

    Parameters
    ----------
    prepared : Path
        A directory with what the operation starts from; copied for each try.
    operation : callable
        Gets the path of the copy. It runs in a forked process.
    workspace : Path
        Where the copies are made.

    Yields
    ------
    CrashPoint
        After each try; the last one is acknowledged.

    Raises
    ------
    AssertionError
        If the operation raises instead of dying.

    Notes
    -----
    A killed process loses nothing that it wrote, so this cannot show a missing ``fsync``; see
    `qwf.testing.calls` for that.
    """
    for step in itertools.count(1):
        directory = workspace / f"step-{step}"
        copy_tree(prepared, directory)
        code = _in_child(partial(_die_at, step, operation, directory))
        if code not in (0, _DIED):
            raise AssertionError(f"the operation raised at step {step}; see its traceback above")
        yield CrashPoint(step, directory, acknowledged=code == 0)
        if code == 0:
            return


def copy_tree(source: Path, target: Path) -> None:
    """Copy a directory; files with several names have them in the copy too."""
    copies: dict[tuple[int, int], str] = {}

    def copy(name: str, other: str) -> None:
        found = os.stat(name, follow_symlinks=False)
        known = copies.setdefault((found.st_dev, found.st_ino), other)
        if known == other:
            shutil.copy2(name, other, follow_symlinks=False)
        else:
            os.link(known, other)

    shutil.copytree(source, target, symlinks=True, copy_function=copy)


def _die_at(step: int, operation: Callable[[Path], object], directory: Path) -> None:
    vars(fsio)["os"] = _InterruptingOs(step, lambda _: os._exit(_DIED))
    operation(directory)


@contextlib.contextmanager
def failing_call(step: int, error: OSError) -> Iterator[FailingCall]:
    """Let one changing call of `fsio` raise during a ``with`` block; the others work.

    Parameters
    ----------
    step : int
        Which of the changing calls, counted from 1.
    error : OSError
        What it raises; a ``write`` leaves half of its data before.

    Yields
    ------
    FailingCall
        Its ``failed`` tells the name of the call, or None if there were fewer calls.
    """
    planned = FailingCall(step, error)

    def fail(name: str) -> None:
        planned.failed = name
        raise error

    module = vars(fsio)
    real = module["os"]
    module["os"] = _InterruptingOs(step, fail)
    try:
        yield planned
    finally:
        module["os"] = real


def _in_child(call: Callable[[], None]) -> int:
    with warnings.catch_warnings():
        # Python warns of threads in the parent; the child touches none of their locks.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = _RAISED
        try:
            call()
            code = 0
        except BaseException:  # noqa: BLE001 - nothing may pass on into the parent's stack
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
