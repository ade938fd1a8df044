"""Record the changing calls of an operation, and hold them against the rules of durability."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..storage import fsio
from .crash import CHANGING_CALLS

__all__ = ["Call", "assert_durable", "assert_synced_before", "recorded_calls"]


@dataclass(frozen=True)
class Call:
    """One call: its name, the path it acts on, and for renames and links where to.

    ``create`` is an `os.open` that made a new file; other opens are not recorded.
    """

    name: str
    path: Path
    target: Path | None = None


class _RecordingOs:
    """Stands for the module `os` in `fsio`, and knows which descriptor is which file."""

    def __init__(self, calls: list[Call]) -> None:
        self._calls = calls
        self._paths: dict[int, Path] = {}

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CHANGING_CALLS:
            return real

        def call(*args: Any, **kwargs: Any) -> Any:
            new = name == "open" and not os.path.lexists(args[0])
            result = real(*args, **kwargs)
            if name == "open":
                self._paths[result] = Path(args[0])
                if new:
                    self._calls.append(Call("create", Path(args[0])))
            elif name in ("write", "fsync"):
                self._calls.append(Call(name, self._paths[args[0]]))
            else:
                target = Path(args[1]) if name in ("replace", "rename", "link") else None
                self._calls.append(Call(name, Path(args[0]), target))
            return result

        return call


@contextlib.contextmanager
def recorded_calls() -> Iterator[list[Call]]:
    """Record what `fsio` does during a ``with`` block."""
    calls: list[Call] = []
    module = vars(fsio)
    real = module["os"]
    module["os"] = _RecordingOs(calls)
    try:
        yield calls
    finally:
        module["os"] = real


def assert_durable(calls: list[Call]) -> None:
    """Assert that nothing of an operation that has returned can be lost with the power.

    The rules: what is renamed or linked was synced after its last write; every directory that
    got or lost a name is synced after that (but for names that were removed, or only ever
    private); every file that was written and kept is synced at the end.

    Raises
    ------
    AssertionError
        With the call that breaks a rule.
    """
    unsynced: set[Path] = set()
    pending: set[Path] = set()  # names of which the directory was not synced yet
    for call in calls:
        if call.name == "write":
            unsynced.add(call.path)
        elif call.name == "fsync":
            unsynced.discard(call.path)
            pending = {name for name in pending if name.parent != call.path}
        elif call.target is not None:
            assert call.path not in unsynced, f"{call} before the content was synced"
            was_new = call.path in pending
            if call.name != "link":
                pending.discard(call.path)
                if not was_new and call.path.parent != call.target.parent:
                    pending.add(call.path)  # else it may be in both places
            pending.add(call.target)
        elif call.name in ("create", "mkdir"):
            pending.add(call.path)
        elif call.name in ("unlink", "rmdir"):
            unsynced.discard(call.path)
            pending.discard(call.path)
    assert not unsynced, f"written and never synced: {sorted(map(str, unsynced))}"
    assert not pending, f"names that may be lost: {sorted(map(str, pending))}"


def assert_synced_before(calls: list[Call], directory: Path, document: Path) -> None:
    """Assert that names given in a directory were durable before a document that relies on them.

    Parameters
    ----------
    calls : list of Call
        What an operation did.
    directory : Path
        Where files are linked or renamed to.
    document : Path
        The file whose replacement says that they are there.

    Raises
    ------
    AssertionError
        If `document` was replaced while a name in `directory` could still be lost, or if there
        was no replacement after a name was given.
    """
    pending: set[Path] = set()
    given = relied = False
    for call in calls:
        if call.name == "fsync" and call.path == directory:
            pending.clear()
        elif call.target is not None and call.target.parent == directory:
            pending.add(call.target)
            given = True
        elif call.target == document:
            assert not pending, f"{call} while these names may be lost: {sorted(map(str, pending))}"
            relied = given
    assert relied, f"{document} was not replaced after a name was given in {directory}"
