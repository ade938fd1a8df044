"""Kill an operation at every step that changes the filesystem, and see what is left."""

from __future__ import annotations

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

__all__ = ["CHANGING_CALLS", "CrashPoint", "crash_points"]

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


class _CrashingOs:
    """Stands for the module `os` in `fsio`; ends the process at one of its changing calls."""

    def __init__(self, step: int) -> None:
        self._left = step

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
                os._exit(_DIED)
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
        shutil.copytree(prepared, directory, symlinks=True)
        code = _in_child(partial(_die_at, step, operation, directory))
        if code not in (0, _DIED):
            raise AssertionError(f"the operation raised at step {step}; see its traceback above")
        yield CrashPoint(step, directory, acknowledged=code == 0)
        if code == 0:
            return


def _die_at(step: int, operation: Callable[[Path], object], directory: Path) -> None:
    vars(fsio)["os"] = _CrashingOs(step)
    operation(directory)


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
