"""Mutual exclusion between processes and nodes, by a lock file inside the store.

A lock here only makes conflicts rare. What must not be lost is committed by compare-and-swap
(`documents`), because on some network mounts a lock excludes nobody.
"""

from __future__ import annotations

import contextlib
import errno
import inspect
import logging
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from filelock import BaseFileLock, FileLock, Timeout

from ..errors import LockTimeoutError, WriteError, WriteRefusedError
from . import fsio
from .appending import AppendFile

__all__ = ["ABANDONED_SECONDS", "LOCK_SECONDS", "Patience", "hold", "is_abandoned"]

# Longer than any write under a lock takes, short enough that a hung peer is noticed.
LOCK_SECONDS: Final = 60.0

# What a writer has announced and not finished for so long (on the file server's clock) belongs to
# one that died or sleeps; a living one needs milliseconds.
ABANDONED_SECONDS = 5.0

# A wait that a user would notice.
_TELL_SECONDS: Final = 1.0

# What a mount answers on which nobody can lock. Compare-and-swap is enough then.
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)

_OWNER: Final = 0o600

_PARAMETERS: Final = inspect.signature(FileLock.__init__).parameters

_logger: Final = logging.getLogger("qwf.storage")

# Critical sections last about a millisecond; filelock's own default would sleep 50.
_POLL_SECONDS: Final = 0.002


@contextlib.contextmanager
def hold(path: Path, *, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold the lock file at `path` for the length of a ``with`` block.

    Parameters
    ----------
    path : Path
        The lock file; its directory must exist. The file stays when the lock is released.
    seconds : float, default 60
        How long to wait for another holder.

    Raises
    ------
    LockTimeoutError
        If another process or thread held it all the time.
    WriteError
        If the lock file cannot be created, as in a directory that may not be written.
    FileNotFoundError
        If the directory does not exist.

    Notes
    -----
    *A crash* of the holder releases the lock (the kernel does). Threads of one process exclude
    each other too. It is not reentrant. On a mount that refuses to lock, nobody is excluded.
    """
    if not path.parent.is_dir():  # filelock would create it, and so bring back what was deleted
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
    lock = _file_lock(path)
    try:
        lock.acquire(timeout=seconds, poll_interval=_POLL_SECONDS)
    except Timeout as error:
        raise LockTimeoutError(path, seconds) from error
    except (OSError, NotImplementedError) as error:
        if not isinstance(error, NotImplementedError) and error.errno not in _NO_LOCKS:
            raise _refusal(path, error) from error
        _warn_once(path)
    try:
        yield
    finally:
        lock.release()


def _file_lock(path: Path) -> BaseFileLock:
    try:
        mode = fsio.permissions(path)
    except FileNotFoundError:
        try:
            AppendFile(path).close()  # with the umask and group of all other files
            mode = fsio.permissions(path)
        except OSError as error:
            raise _refusal(path, error) from error
    if mode & _OWNER != _OWNER:
        closed = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        raise WriteRefusedError(path.parent, closed)
    if "fallback_to_soft" in _PARAMETERS:
        # A file in place of a lock would be taken for held for ever by those who can lock.
        return FileLock(path, mode=mode, thread_local=False, fallback_to_soft=False)
    return FileLock(path, mode=mode, thread_local=False)


def _refusal(path: Path, error: OSError) -> WriteError:
    if isinstance(error, WriteError):
        return error
    refused = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    return (WriteRefusedError if refused else WriteError)(path.parent, error)


_warned: set[Path] = set()


def _warn_once(path: Path) -> None:
    if path.parent not in _warned:
        _warned.add(path.parent)
        _logger.info("%s: this filesystem has no locks; writers may have to retry", path.parent)


def is_abandoned(path: Path, *, since: float | None = None) -> bool:
    """Whether the writer of a file must have given up what it had announced.

    Parameters
    ----------
    path : Path
        The file.
    since : float, optional
        When it was announced, on the file server's clock; default: when `path` was changed.

    Raises
    ------
    FileNotFoundError
        If it is gone.
    """
    announced = fsio.modified_at(path) if since is None else since
    return fsio.server_time(path) - announced >= ABANDONED_SECONDS


class Patience:
    """How long a writer waits for another that is in its way.

    Parameters
    ----------
    path : Path
        What it waits for, for the messages.
    seconds : float
        When to give up.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self._path, self._seconds = path, seconds
        self._start = time.monotonic()
        self._told = False

    def wait(self) -> None:
        """Sleep for a few milliseconds, of random length so that competitors spread out.

        Raises
        ------
        LockTimeoutError
            If the time is over.
        """
        waited = time.monotonic() - self._start
        if waited > self._seconds:
            raise LockTimeoutError(self._path, self._seconds)
        if waited > _TELL_SECONDS and not self._told:
            self._told = True
            _logger.warning(
                "waiting for another writer of %s; if it has died, it is given up after %g s",
                self._path,
                ABANDONED_SECONDS,
            )
        time.sleep(random.uniform(0.001, 0.01))
