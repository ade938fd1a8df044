"""One pass over the directories of a pool, for its check."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..storage.entries import list_entries
from ..storage.findings import Remedy
from .directory import Directory
from .recovery import Private, split_private
from .tokens import STATUSES, Token, parse_token
from .workers import is_worker

__all__ = ["Look", "Problem"]

_IDENTITY: Final = re.compile(r"[0-9a-f]{24}")
_RESULT: Final = re.compile(r"[0-9a-f]{24}\.[0-9a-f]{16}\.[0-9a-f]{18}")
_FAILURE: Final = re.compile(r"[0-9a-f]{24}\.[0-9a-f]{16}\.[0-9a-f]{6}\.[0-9a-f]{12}")


@dataclass(frozen=True)
class Problem:
    """What seems to be wrong at a path, until it has been seen twice."""

    path: Path
    text: str
    remedy: Remedy | str
    foreign: bool = False


class Look:
    """What there is in a pool.

    Results are listed before tokens, tokens before definitions, definitions before the trash. So
    a result that no token names belongs to an attempt that goes on or is over, and a token without
    definition to a removal that goes on, of which the trash tells, or is over.

    Attributes
    ----------
    results, failures, definitions, workers : set of str
        Names.
    private, trash : list of Private
    tokens : dict of str to list
        Status and token, by the id of the task.
    strange : list of tuple of str
        Directory and name of what is none of these.
    """

    def __init__(self, directory: Directory) -> None:
        self.strange: list[tuple[str, str]] = []
        self.workers = self._names(directory.workers, is_worker)
        self.results = self._names(directory.results, _RESULT.fullmatch)
        self.failures = self._names(directory.failures, _FAILURE.fullmatch)
        self.private = self._private(directory.private)
        self.tokens: dict[str, list[tuple[str, Token]]] = {}
        for status in STATUSES:
            for name in self._names(directory.status_path(status), parse_token):
                token = parse_token(name)
                if token is not None:
                    self.tokens.setdefault(token.id, []).append((status, token))
        self.definitions = self._names(directory.definitions, _IDENTITY.fullmatch)
        self.trash = self._private(directory.trash)
        known = {Path(place).name for place in directory.places()} | {"pool.json", "order"}
        self._names(str(directory.root), known.__contains__)
        self.being_inserted = {
            token.id for one in self.private if (token := parse_token(one.end)) is not None
        }
        self.being_removed = {one.end.partition(".")[0] for one in self.trash}

    def _names(self, place: str, fits: Callable[[str], object]) -> set[str]:
        names = set()
        for name in _listed(place):
            if fits(name):
                names.add(name)
            else:
                self.strange.append((place, name))
        return names

    def _private(self, place: str) -> list[Private]:
        found = []
        for name in self._names(place, split_private):
            parts = split_private(name)
            if parts is not None:
                found.append(Private(name, *parts))
        return found

    def all_tokens(self) -> list[tuple[str, Token]]:
        """Return status and token of all tasks."""
        return [one for found in self.tokens.values() for one in found]

    def owners(self) -> set[str]:
        """Return the workers to whom something here belongs."""
        running = {token.worker for _, token in self.all_tokens() if token.worker}
        return running | {one.worker for one in (*self.private, *self.trash)}


def _listed(place: str) -> list[str]:
    try:
        return list_entries(place)
    except FileNotFoundError:
        return []  # a finding of its own
