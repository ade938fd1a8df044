"""Processes of their own that do what they are told, so that what is tried is tried for real."""

from __future__ import annotations

import contextlib
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Final, TypeVar

__all__ = ["Peer", "PeerSilentError", "at_once", "peers"]

T = TypeVar("T")

# Longer than any call that is tried, on a server that is slow.
_SECONDS: Final = 30.0

# Between telling the first and letting all begin: a pipe needs far less.
_START_SECONDS: Final = 0.005


class PeerSilentError(OSError):
    """A process that was to try something has not answered."""


class Peer:
    """A forked process; it ends when this one does."""

    def __init__(self) -> None:
        # Forked, because what stands for `os` in `fsio` is to stand there in the process too.
        context = get_context("fork")
        self._pipe, other = context.Pipe()
        self._told = 0
        self._process = context.Process(target=_obey, args=(self._pipe, other), daemon=True)
        with warnings.catch_warnings():
            # Python warns of threads in the parent; the child touches none of their locks.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()
        other.close()

    def begin(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Tell the process to call a function of a module."""
        self._told += 1
        self._pipe.send((self._told, call, arguments))

    def has_answered(self) -> bool:
        """Whether the call that was begun last has returned, or the process has died."""
        return self._pipe.poll()

    def answer(self) -> Any:
        """Wait for what the call returned; an OSError of it is raised here."""
        number = 0
        try:
            while number != self._told:  # one that nobody has asked for, after an error, is old
                if not self._pipe.poll(_SECONDS):
                    raise PeerSilentError(f"a process did not answer within {_SECONDS:g} s")
                number, value = self._pipe.recv()
        except EOFError as error:
            raise PeerSilentError("a process that was to try it died") from error
        if isinstance(value, OSError):
            raise value
        return value

    def ask(self, call: Callable[..., T], *arguments: Any) -> T:
        """Have the process call a function, and wait for what it returns."""
        self.begin(call, *arguments)
        value: T = self.answer()
        return value

    def kill(self) -> None:
        """End the process as ``kill -9`` does."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


@contextlib.contextmanager
def peers(number: int) -> Iterator[list[Peer]]:
    """Have some processes for the length of a ``with`` block."""
    started: list[Peer] = []
    try:
        for _ in range(number):
            started.append(Peer())
        yield started
    finally:
        for peer in started:
            peer.kill()


def at_once(
    contestants: Sequence[Peer], call: Callable[..., T], *arguments: Sequence[object]
) -> list[T]:
    """Have all call a function in the same moment; each gets its item of each of `arguments`."""
    start = time.monotonic() + _START_SECONDS
    for index, peer in enumerate(contestants):
        peer.begin(_at, start, call, *(column[index] for column in arguments))
    return [peer.answer() for peer in contestants]


def _at(start: float, call: Callable[..., T], *arguments: Any) -> T:
    while time.monotonic() < start:  # of one clock for all processes; a sleep would be too coarse
        pass
    return call(*arguments)


def _obey(parents: Connection, pipe: Connection) -> None:
    parents.close()  # else nobody would tell us that the parent is gone
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    with contextlib.suppress(EOFError, OSError):
        while True:
            number, call, arguments = pipe.recv()
            try:
                value = call(*arguments)
            except OSError as error:
                value = error
            pipe.send((number, value))
