"""Counts what a program asks of the filesystem, and lets every question take longer.

On a network filesystem each operation that names a file is a round trip to the server. So counted
are calls that take a name (open, stat, listing a directory, link, rename ...), ``fsync`` and
locks. Not counted: reading, writing and ``fstat`` of what is open already, and whatever does not go
through Python, such as SQLite.
"""

from __future__ import annotations

import builtins
import contextlib
import fcntl
import io
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

__all__ = ["counted_operations"]

_OF_OS = (
    "access chmod fsync link listdir lstat mkdir open readlink rename replace rmdir stat symlink "
    "truncate unlink utime"
).split()


@contextlib.contextmanager
def counted_operations(delay_seconds: float = 0.0) -> Iterator[Counter[str]]:
    """Count the file operations of a ``with`` block by name; each takes longer by the delay."""
    counts: Counter[str] = Counter()

    def ask(name: str) -> None:
        counts[name] += 1
        if delay_seconds:
            time.sleep(delay_seconds)

    places = [(os, name, name) for name in (*_OF_OS, "scandir")]
    places += [(builtins, "open", "open"), (io, "open", "open")]
    places += [(fcntl, "flock", "lock"), (fcntl, "lockf", "lock")]
    with contextlib.ExitStack() as stack:
        for module, name, counted_as in places:
            real = getattr(module, name)
            call = _scanning(real, ask) if name == "scandir" else _asking(real, counted_as, ask)
            stack.enter_context(mock.patch.object(module, name, call))
        yield counts


def _asking(real: Callable[..., Any], name: str, ask: Callable[[str], None]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        # A number is a file that is open already.
        if name in ("lock", "fsync") or not (args and isinstance(args[0], int)):
            ask(name)
        return real(*args, **kwargs)

    return call


def _scanning(real: Callable[..., Any], ask: Callable[[str], None]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> _Scan:
        ask("listdir")
        return _Scan(real(*args, **kwargs), ask)

    return call


class _Scan:
    """What `os.scandir` returns, with entries that ask when they are asked."""

    def __init__(self, real: Any, ask: Callable[[str], None]) -> None:
        self._real = real
        self._ask = ask

    def __iter__(self) -> _Scan:
        return self

    def __next__(self) -> _Entry:
        return _Entry(next(self._real), self._ask)

    def __enter__(self) -> _Scan:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._real.close()


class _Entry:
    """An entry of a directory: its name and kind came with the listing, all else is asked."""

    def __init__(self, real: os.DirEntry[Any], ask: Callable[[str], None]) -> None:
        self._real = real
        self._ask = ask

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def __fspath__(self) -> Any:
        return self._real.path

    def stat(self, **kwargs: Any) -> os.stat_result:
        self._ask("stat")
        return self._real.stat(**kwargs)
