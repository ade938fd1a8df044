"""What was found, what it means for a store and for a task pool, and the verdict."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ...types import Json

__all__ = ["Finding", "Grade", "Level", "Report", "show_seconds", "why"]


class Grade(str, enum.Enum):
    """How something behaves."""

    OK = "ok"
    SLOW = "slow"
    MISSING = "missing"  # it is refused, or not there
    WRONG = "wrong"  # it claims to be there and does something else


class Level(enum.IntEnum):
    """What follows for those who want to keep something there."""

    FINE = 0
    TOLD = 1  # worth knowing; qwf keeps its promises without it
    RESTRICTED = 2  # a promise does not hold, or only for some
    FORBIDDEN = 3


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report.

    ``sentence`` says what was found, ``because`` is the part of the verdict's sentence that it
    gives the reason for, where `store` or `pool` is not fine.
    """

    name: str
    sentence: str
    grade: Grade = Grade.OK
    store: Level = Level.FINE
    pool: Level = Level.FINE
    because: str = ""
    facts: Mapping[str, Json] = field(default_factory=dict)

    def to_json(self) -> dict[str, Json]:
        """Return the finding as plain data."""
        return {
            "probe": self.name,
            "grade": self.grade.value,
            "sentence": self.sentence,
            "store": self.store.name.lower(),
            "pool": self.pool.name.lower(),
            "because": self.because,
            "facts": dict(self.facts),
        }


# What is broken in one place shows in many; the first that is tried is the nearest to the cause.
_REASONS: Final = 3

_ROOMS: Final = {"store": "a store", "pool": "a task pool"}


@dataclass(frozen=True)
class Report:
    """All findings about one directory."""

    path: Path
    findings: Sequence[Finding]

    def level(self, room: str) -> Level:
        """Return what follows for ``"store"`` or ``"pool"``: the worst of the findings."""
        return max((getattr(one, room) for one in self.findings), default=Level.FINE)

    @property
    def may_live_here(self) -> bool:
        """Whether both may live there, without a restriction that matters."""
        return max(map(self.level, _ROOMS)) < Level.RESTRICTED

    @property
    def verdict(self) -> str:
        """What follows for a store and a task pool, in a few sentences."""
        said = {room: self._said(room) for room in _ROOMS}
        levels = {self.level(room) for room in _ROOMS}
        if levels == {Level.FORBIDDEN}:
            reasons = self._reasons(Level.FORBIDDEN, *_ROOMS)
            judged = f"Neither a store nor a task pool may live here: {_listed(reasons)}."
        elif len(set(said.values())) == 1 and levels != {Level.FINE}:
            judged = f"A store and a task pool may{said['store']}"
        else:
            judged = " ".join(
                f"{name[0].upper()}{name[1:]} {_verb(self.level(room))}{said[room]}"
                for room, name in _ROOMS.items()
            )
        told = self._reasons(Level.TOLD)
        return f"{judged} Worth knowing: {_listed(told)}." if told else judged

    def _said(self, room: str) -> str:
        level = self.level(room)
        if level < Level.RESTRICTED:
            return " live here."
        reasons = _listed(self._reasons(level, room))
        return f" live here{', but' if level is Level.RESTRICTED else ':'} {reasons}."

    def _reasons(self, level: Level, *rooms: str) -> list[str]:
        """Return why, each reason once, in the order in which it was found."""
        found = [
            one.because
            for one in self.findings
            if one.because
            and (
                any(getattr(one, room) is level for room in rooms)
                if rooms
                else max(one.store, one.pool) is level
            )
        ]
        return list(dict.fromkeys(found))

    def to_json(self) -> dict[str, Json]:
        """Return the report as plain data."""
        return {
            "path": str(self.path),
            "store": self.level("store").name.lower(),
            "pool": self.level("pool").name.lower(),
            "verdict": self.verdict,
            "probes": [one.to_json() for one in self.findings],
        }


def _listed(reasons: Sequence[str]) -> str:
    more = len(reasons) - _REASONS
    shown = "; ".join(reasons[:_REASONS])
    return f"{shown}; and {more} more, see above" if more > 0 else shown


def _verb(level: Level) -> str:
    return "may not" if level is Level.FORBIDDEN else "may"


def why(error: OSError) -> str:
    """Return what the system said, without the file that it was about."""
    return str(getattr(error, "reason", None) or error.strerror or error)


def show_seconds(seconds: float) -> str:
    """Return a short time as people say it.

    Examples
    --------
    >>> show_seconds(0.0000042), show_seconds(0.0123), show_seconds(2.0)
    ('4 µs', '12 ms', '2.0 s')
    """
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
