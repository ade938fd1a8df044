"""Let the filesystem lie: errors for what has happened, old listings, names that are not seen.

What network filesystems do now and then, done on purpose, by rule, the same at every run.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from ..storage import fsio

__all__ = ["Fault", "Injected", "LateNames", "LyingOs", "StaleListing", "clock_off_by", "faulty"]

# Functions of `os` and what they are called in a rule: it is the server that is asked for the same.
_OPERATIONS: Final = {
    "open": "open", "read": "read", "pread": "read", "write": "write", "pwrite": "write",
    "fsync": "fsync", "rename": "rename", "replace": "rename", "link": "link",
    "unlink": "unlink", "remove": "unlink", "mkdir": "mkdir", "rmdir": "rmdir",
    "stat": "stat", "lstat": "stat", "fstat": "stat", "utime": "utime",
    "listdir": "list", "scandir": "list",
}  # fmt: skip

_TWO_PATHS: Final = {"rename", "link"}
_GIVES_OR_TAKES_NAMES: Final = {"rename", "link", "unlink", "mkdir", "rmdir"}
_LOOKS_UP: Final = {"open", "rename", "link", "unlink", "stat", "utime"}


@dataclass(frozen=True)
class Fault:
    """Some calls fail or are late.

    Attributes
    ----------
    operation : str
        ``open``, ``read``, ``write``, ``fsync``, ``rename`` (and replace), ``link``, ``unlink``,
        ``mkdir``, ``rmdir``, ``stat`` (and lstat, fstat), ``utime`` or ``list``.
    match : str, default ``"*"``
        A pattern (as of `fnmatch`) for the path, or for one of two.
    error : int, default 0
        The `errno` that is told; 0 tells none. Instead of a ``write``, half of it is written.
    after : bool, default False
        Do what was asked before the error is told, as when the reply gets lost.
    delay_seconds : float, default 0.0
        How much later the call is made.
    chance : float, default 1.0
        The part of the calls it happens to.
    skip : int, default 0
        How many calls are left alone before.
    count : int, optional
        To how many calls it happens at most.
    """

    operation: str
    match: str = "*"
    error: int = 0
    after: bool = False
    delay_seconds: float = 0.0
    chance: float = 1.0
    skip: int = 0
    count: int | None = None


@dataclass(frozen=True)
class StaleListing:
    """A directory's listing is what it was some calls or seconds ago, whichever is more.

    A client that changes a directory itself, or sets its time, and is told so, sees it as it is.

    Attributes
    ----------
    match : str, default ``"*"``
        A pattern for the directory.
    calls : int, default 0
        How often one listing is told again.
    seconds : float, default 0.0
        How long one listing is told again.
    """

    match: str = "*"
    calls: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class LateNames:
    """A name that was looked up before it existed stays missing.

    It does until its directory is opened or listed, or this client gives the name itself.

    Attributes
    ----------
    match : str, default ``"*"``
        A pattern for the path.
    """

    match: str = "*"


@dataclass(frozen=True)
class Injected:
    """One lie: the rule, the function of `os` it was told by, and the paths it was asked for."""

    fault: Fault | StaleListing | LateNames
    call: str
    paths: tuple[str, ...]


@dataclass
class _Listing:
    entries: list[Any]
    taken_at: float
    told: int = 0


class LyingOs:
    """Stands for the module `os`; its answers follow rules.

    One of them is one client of a file server: it has a memory of listings and missing names.

    Parameters
    ----------
    *faults : Fault, StaleListing or LateNames
        The rules. The first one that matches a call and is due decides.
    seed : int, default 0
        Which calls a `Fault` with a chance happens to.

    Attributes
    ----------
    injected : list of Injected
        Every lie, in order.
    """

    def __init__(self, *faults: Fault | StaleListing | LateNames, seed: int = 0) -> None:
        self.injected: list[Injected] = []
        self.path = _LyingPath(self)
        self._faults = [fault for fault in faults if isinstance(fault, Fault)]
        self._stale = [fault for fault in faults if isinstance(fault, StaleListing)]
        self._late = [fault for fault in faults if isinstance(fault, LateNames)]
        self._seen: dict[Fault, int] = {}
        self._done: dict[Fault, int] = {}
        self._random = random.Random(seed)
        self._opened: dict[int, str] = {}
        self._listings: dict[tuple[str, str], _Listing] = {}
        self._missing: dict[str, LateNames] = {}
        self._lock = threading.RLock()

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in _OPERATIONS:
            return real
        return lambda *args, **kwargs: self._call(name, real, args, kwargs)

    def _call(self, name: str, real: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        operation = _OPERATIONS[name]
        paths = self._paths(operation, args)
        fault = self._due(name, paths)
        if fault is not None:
            time.sleep(fault.delay_seconds)
            if fault.error and not fault.after:
                if operation == "write":
                    real(args[0], args[1][: len(args[1]) // 2], *args[2:])
                raise _told(fault.error, paths)
        if operation == "list":
            result = self._list(name, real, paths[0])
        else:
            result = self._act(name, real, paths, args, kwargs)
        if fault is not None and fault.error:
            if name == "open":
                os.close(result)
            raise _told(fault.error, paths)
        self._learn(name, paths, args, result)
        return result

    def _paths(self, operation: str, args: Any) -> tuple[str, ...]:
        asked = args[: 2 if operation in _TWO_PATHS else 1] or (".",)
        with self._lock:
            return tuple(
                self._opened.get(one, "") if isinstance(one, int) else os.fspath(one)
                for one in asked
            )

    def _due(self, name: str, paths: tuple[str, ...]) -> Fault | None:
        operation = _OPERATIONS[name]
        with self._lock:
            for fault in self._faults:
                if fault.operation == operation and _matches(fault, paths) and self._turn(fault):
                    self.injected.append(Injected(fault, name, paths))
                    return fault
        return None

    def _turn(self, fault: Fault) -> bool:
        self._seen[fault] = self._seen.get(fault, 0) + 1
        if self._seen[fault] <= fault.skip or self._done.get(fault, 0) == fault.count:
            return False
        if self._random.random() >= fault.chance:
            return False
        self._done[fault] = self._done.get(fault, 0) + 1
        return True

    # --- names that come late --------------------------------------------------------------------

    def _act(
        self, name: str, real: Callable[..., Any], paths: tuple[str, ...], args: Any, kwargs: Any
    ) -> Any:
        path = paths[0]
        creating = name == "open" and bool(args[1] & os.O_CREAT)
        if _OPERATIONS[name] not in _LOOKS_UP or isinstance(args[0], int) or creating:
            return real(*args, **kwargs)
        with self._lock:
            if path in self._missing:
                self.injected.append(Injected(self._missing[path], name, paths))
                raise _told(errno.ENOENT, paths)
        try:
            return real(*args, **kwargs)
        except FileNotFoundError:
            with self._lock:
                for rule in self._late:
                    if _matches(rule, (path,)):
                        self._missing.setdefault(path, rule)
            raise

    def _learn(self, name: str, paths: tuple[str, ...], args: Any, result: Any) -> None:
        """Remember what a client knows after a call that it was told has happened."""
        operation = _OPERATIONS[name]
        created = name == "open" and bool(args[1] & os.O_CREAT)
        with self._lock:
            if name == "open":
                self._opened[result] = paths[0]
                if self._missing and stat.S_ISDIR(os.fstat(result).st_mode):
                    self._look_again(paths[0])
            if operation == "utime":
                self._forget_listing(paths[0])
            if operation in _GIVES_OR_TAKES_NAMES or created:
                for path in paths:
                    self._missing.pop(path, None)
                    self._forget_listing(os.path.dirname(path))

    def _look_again(self, directory: str) -> None:
        for path in [path for path in self._missing if os.path.dirname(path) == directory]:
            del self._missing[path]

    # --- listings that are old -------------------------------------------------------------------

    def _list(self, name: str, real: Callable[..., Any], directory: str) -> Any:
        with self._lock:
            for rule in self._stale:
                if _matches(rule, (directory,)):
                    entries = self._remembered(rule, name, real, directory)
                    break
            else:
                entries = list(real(directory))
                self._look_again(directory)
        return entries if name == "listdir" else _Scan(entries)

    def _remembered(
        self, rule: StaleListing, name: str, real: Callable[..., Any], directory: str
    ) -> list[Any]:
        old = self._listings.get((name, directory))
        now = time.monotonic()
        if old and (old.told < rule.calls or now - old.taken_at < rule.seconds):
            old.told += 1
            self.injected.append(Injected(rule, name, (directory,)))
            return list(old.entries)
        new = self._listings[name, directory] = _Listing(list(real(directory)), now)
        self._look_again(directory)
        return list(new.entries)

    def _forget_listing(self, directory: str) -> None:
        for name in ("listdir", "scandir"):
            self._listings.pop((name, directory), None)


class _Scan(list[Any]):
    """What `os.scandir` returns, of entries that are known."""

    def __enter__(self) -> _Scan:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _LyingPath:
    """Stands for `os.path`: what it asks the filesystem, it asks a `LyingOs`."""

    def __init__(self, asked: LyingOs) -> None:
        self._asked = asked

    def __getattr__(self, name: str) -> Any:
        return getattr(os.path, name)

    def lexists(self, path: Any) -> bool:
        try:
            self._asked.lstat(path)
        except OSError:
            return False
        return True

    def exists(self, path: Any) -> bool:
        try:
            self._asked.stat(path)
        except OSError:
            return False
        return True


def _matches(rule: Fault | StaleListing | LateNames, paths: tuple[str, ...]) -> bool:
    return any(fnmatchcase(path, rule.match) for path in paths)


def _told(error: int, paths: tuple[str, ...]) -> OSError:
    # Given five arguments, OSError makes itself the subclass of that errno, with both names.
    two = (None, paths[1]) if len(paths) == 2 else ()
    return OSError(error, os.strerror(error), paths[0], *two)


@contextlib.contextmanager
def faulty(*faults: Fault | StaleListing | LateNames, seed: int = 0) -> Iterator[list[Injected]]:
    """Let the filesystem lie to `fsio` during a ``with`` block.

    Parameters
    ----------
    *faults : Fault, StaleListing or LateNames
        The rules; see there. The first one that matches a call and is due decides.
    seed : int, default 0
        Which calls a `Fault` with a chance happens to.

    Yields
    ------
    list of Injected
        Every lie so far, in order.

    Notes
    -----
    The whole process is lied to, threads included, and the children that it forks.

    Examples
    --------
    A rename that has happened says that it failed:

    >>> import errno
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as root:
    ...     _ = Path(root, "old").write_text("content")
    ...     with faulty(Fault("rename", "*/new", error=errno.EIO, after=True)) as injected:
    ...         try:
    ...             fsio.system().rename(f"{root}/old", f"{root}/new")
    ...         except OSError:
    ...             print("refused, and", Path(root, "new").read_text(), "is there")
    ...     len(injected)
    refused, and content is there
    1
    """
    module = vars(fsio)
    real = module["os"]
    module["os"] = lying = LyingOs(*faults, seed=seed)
    try:
        yield lying.injected
    finally:
        module["os"] = real


@contextlib.contextmanager
def clock_off_by(seconds: float) -> Iterator[None]:
    """Let the clock of this process, as `time` tells it, be wrong during a ``with`` block.

    The file server's is not: what the system writes beside a file stays right.
    """
    real, real_ns = time.time, time.time_ns
    module = vars(time)
    module["time"] = lambda: real() + seconds
    module["time_ns"] = lambda: real_ns() + round(seconds * 1e9)
    try:
        yield
    finally:
        module.update(time=real, time_ns=real_ns)
