"""Single directory entries of a protocol in which no name is ever given twice.

So whatever a server has answered to a rename (that the source is missing because the reply of the
first try was lost, an I/O error, a stale handle), the listing of the target's directory tells
whether it has happened. Names are never looked up to learn whether they exist: on NFS the answer
"no" stays in the client's cache for half a minute, while a listing is fresh.

Paths are strings: a hot loop moves tens of thousands of entries a second.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from ..errors import WriteError
from . import fsio

__all__ = [
    "AMBIGUOUS",
    "Mark",
    "list_entries",
    "move_entry",
    "name_privately",
    "read_mark",
    "renew_mark",
    "try_move",
    "unlink_entry",
    "write_batch",
]

# Answers after which an operation may have happened all the same.
AMBIGUOUS: Final = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR, errno.EAGAIN, errno.ECONNRESET}
)

_ATTEMPTS: Final = 6
_FIRST_PAUSE_SECONDS: Final = 0.02

# What a mark looks like to those who only compare it with what they saw before.
Mark = tuple[int, int]


def list_entries(directory: str) -> list[str]:
    """Return all names in a directory, unsorted, as they are on the file server now.

    What is not in the list is not there: see `fsio.list_fresh`.

    Raises
    ------
    FileNotFoundError
        If the directory is not there.
    """
    for _ in range(_ATTEMPTS - 1):
        try:
            return fsio.list_fresh(directory)
        except OSError as error:
            if error.errno not in AMBIGUOUS:
                raise
    return fsio.list_fresh(directory)


def try_move(source: str, target: str) -> bool:
    """Rename an entry, and do not look when the source is said to be missing.

    Returns
    -------
    bool
        Whether it is at `target` now. False, in the rare case of a lost reply, although it is: the
        caller has to list the target's directory before it relies on that.

    Raises
    ------
    WriteError
        If the system refuses.
    """
    try:
        fsio.system().rename(source, target)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in AMBIGUOUS:
            raise fsio.refusal(Path(source), error) from error
        return move_entry(source, target)
    return True


def move_entry(source: str, target: str) -> bool:
    """Rename an entry to a name that was never given before, and be sure of what has happened.

    Returns
    -------
    bool
        Whether it is at `target` now; False if somebody else has taken it from `source`.

    Raises
    ------
    WriteError
        If the system refuses, or answers with errors again and again; the entry is then where it
        was.
    FileNotFoundError
        If a directory is missing.

    Notes
    -----
    *Readers* find the entry at one of the two places; a listing that is read meanwhile may show
    both or none. *A crash* leaves it at one of them.
    """

    def outcome() -> bool | None:
        if _is_listed(target):
            return True
        return None if _is_listed(source) else False

    def rename() -> bool:
        fsio.system().rename(source, target)
        return True

    return _surely(Path(source), rename, outcome)


def name_privately(source: str, target: str) -> bool:
    """Give a private file, which has one name only, a second one, unless that is taken.

    Returns
    -------
    bool
        Whether `target` is this file. A lost reply makes a successful link report that the name
        is taken, so the number of names decides.

    Raises
    ------
    WriteError
        If the system refuses.
    FileNotFoundError
        If the private file is gone: somebody has taken its owner for dead.
    """

    def outcome() -> bool | None:
        return True if fsio.count_names(Path(source)) > 1 else None

    def link() -> bool:
        try:
            fsio.system().link(source, target)
        except FileExistsError:
            return fsio.count_names(Path(source)) > 1
        return True

    return _surely(Path(source), link, outcome)


def _surely(path: Path, call: Callable[[], bool], outcome: Callable[[], bool | None]) -> bool:
    """Call, and after an answer that may be wrong look at the outcome; None there: try again."""
    pause = _FIRST_PAUSE_SECONDS
    for attempt in range(_ATTEMPTS):
        try:
            return call()
        except OSError as error:
            if not isinstance(error, FileNotFoundError) and error.errno not in AMBIGUOUS:
                raise fsio.refusal(path, error) from error
            happened = outcome()
            if happened is not None:
                return happened
            if attempt == _ATTEMPTS - 1:
                raise WriteError(path, error) from error
        time.sleep(pause)
        pause *= 2
    raise AssertionError("unreachable")


def _is_listed(path: str) -> bool:
    directory, name = os.path.split(path)
    return name in list_entries(directory)


def unlink_entry(path: str) -> None:
    """Remove a name; one that is gone already is no error, nor is an answer that may be wrong.

    What is left then is found by the next recovery.

    Raises
    ------
    WriteError
        If the system refuses.
    """
    for _ in range(_ATTEMPTS):
        try:
            fsio.system().unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in AMBIGUOUS:
                raise fsio.refusal(Path(path), error) from error
        else:
            return


def write_batch(files: Sequence[tuple[str, bytes]]) -> None:
    """Create files of which the names are free, all durable when this returns.

    All are written before the first is synced, which lets the system write them out together. The
    names are not synced. If it fails, some of the files are left.

    Raises
    ------
    WriteError
        If the system refuses.
    """
    system = fsio.system()
    opened: list[int] = []
    path = ""
    try:
        for path, data in files:
            opened.append(system.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            fsio.write_all(opened[-1], data)
            _begin_writing_out(opened[-1])
        for descriptor in opened:
            system.fsync(descriptor)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise fsio.refusal(Path(path), error) from error
    finally:
        for descriptor in opened:
            system.close(descriptor)


def _begin_writing_out(descriptor: int) -> None:
    """Have the system begin now, so that the first sync finds the files behind it on their way."""
    advise = getattr(fsio.system(), "posix_fadvise", None)  # unknown to macOS
    if advise is not None:
        with contextlib.suppress(OSError):
            advise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def renew_mark(path: str) -> None:
    """Replace a file that others look at to learn whether something has changed.

    If the system refuses, they learn it later: what has changed has, and must not fail for this.
    """
    mark = Path(path)
    with contextlib.suppress(OSError):
        temporary = fsio.write_temporary(mark, b"", durable=False)
        # The grain of the server's clock is coarser than two changes may be apart.
        now = time.time_ns()
        with contextlib.suppress(OSError):
            fsio.system().utime(temporary, ns=(now, now))
        fsio.replace_with(temporary, mark, durable=False)


def read_mark(path: str) -> Mark | None:
    """Return what changes with every renewal; None while there was none.

    On NFS it may be some seconds old.
    """
    try:
        found = fsio.system().stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
