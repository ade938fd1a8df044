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

__all__ = ["Call", "assert_durable", "recorded_calls"]


@dataclass(frozen=True)
class Call:
    """One call: its name, the path it acts on, and for renames and links where to."""

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
            result = real(*args, **kwargs)
            if name == "open":
                self._paths[result] = Path(args[0])
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
    got a name is synced after that; every file that was written and kept is synced at the end.

    Raises
    ------
    AssertionError
        With the call that breaks a rule.
    """
    unsynced: set[Path] = set()
    pending_names: set[Path] = set()
    for call in calls:
        if call.name == "write":
            unsynced.add(call.path)
        elif call.name == "fsync":
            unsynced.discard(call.path)
            pending_names.discard(call.path)
        elif call.name in ("replace", "rename", "link"):
            assert call.path not in unsynced, f"{call} before the content was synced"
            assert call.target is not None
            pending_names.add(call.target.parent)
        elif call.name == "mkdir":
            pending_names.add(call.path.parent)
        elif call.name in ("unlink", "rmdir"):
            unsynced.discard(call.path)
            pending_names.discard(call.path)
    assert not unsynced, f"written and never synced: {sorted(map(str, unsynced))}"
    assert not pending_names, f"names that may be lost, in: {sorted(map(str, pending_names))}"
