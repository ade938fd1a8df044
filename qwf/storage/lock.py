"""Mutual exclusion between processes and nodes, by a lock file inside the store.

A lock here only makes conflicts rare. What must not be lost is committed by compare-and-swap
(`documents`), because on some network mounts a lock excludes nobody.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from ..errors import LockTimeoutError, WriteRefusedError
from . import fsio

__all__ = ["ABANDONED_SECONDS", "LOCK_SECONDS", "hold", "is_abandoned", "pause"]

# Longer than any write under a lock takes, short enough that a hung peer is noticed.
LOCK_SECONDS: Final = 60.0

# What a writer has announced and not finished for so long (on the file server's clock) belongs to
# one that died or sleeps; a living one needs milliseconds.
ABANDONED_SECONDS = 5.0

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
    WriteRefusedError
        If the directory may not be written.
    FileNotFoundError
        If the directory does not exist.

    Notes
    -----
    *A crash* of the holder releases the lock (the kernel does). Threads of one process exclude
    each other too. It is not reentrant.
    """
    if not path.parent.is_dir():  # filelock would create it, and so bring back what was deleted
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=seconds, poll_interval=_POLL_SECONDS)
    except Timeout as error:
        raise LockTimeoutError(path, seconds) from error
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise WriteRefusedError(path.parent, error) from error
        raise
    try:
        yield
    finally:
        lock.release()


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


def pause() -> None:
    """Sleep for a few milliseconds, of random length so that competitors spread out."""
    time.sleep(random.uniform(0.001, 0.01))
