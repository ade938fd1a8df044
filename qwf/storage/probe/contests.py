"""Contests for names: every name may be won by one contestant only, and none may be lost.

The contestants are processes of one host, or two hosts that have met; the rules are the same.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from ...types import Json
from .. import fsio, lock
from .files import new_file
from .findings import Finding, Grade, Level, why

__all__ = [
    "Contest",
    "Score",
    "claim_names",
    "count_under_lock",
    "counted",
    "create_names",
    "judge_contest",
    "judge_counter",
    "publish_names",
]

# A contest ends then, whatever is left: on a slow server it need not be long to be true.
_SECONDS: Final = 3.0

# How many of its names a contestant won, and the first error that it met instead of an answer.
Score: TypeAlias = "dict[str, Json]"


def _contend(names: Sequence[str], win: Callable[[str], bool]) -> Score:
    end = time.monotonic() + _SECONDS
    won: list[Json] = []
    error = ""
    for name in names:
        if time.monotonic() > end:
            break
        try:
            if win(name):
                won.append(name)
        except OSError as caught:
            error = error or why(caught)
    return {"won": won, "error": error}


def claim_names(waiting: Path, running: Path, names: Sequence[str], me: str) -> Score:
    """Rename as many names as possible to names of one's own, as workers claim tasks."""
    system = fsio.system()

    def win(name: str) -> bool:
        try:
            system.rename(waiting / name, running / f"{name}.{me}")
        except FileNotFoundError:
            return False
        return True

    return _contend(names, win)


def publish_names(directory: Path, names: Sequence[str], me: str) -> Score:
    """Publish files under as many names as possible, as qwf publishes what must not replace."""
    return _contend(
        names, lambda name: fsio.create_whole(directory / name, me.encode(), durable=False)
    )


def create_names(directory: Path, names: Sequence[str], me: str) -> Score:
    """Create as many files as possible with O_EXCL, which says that they are new."""

    def win(name: str) -> bool:
        try:
            new_file(directory / name, me.encode())
        except FileExistsError:
            return False
        return True

    return _contend(names, win)


@dataclass(frozen=True, kw_only=True)
class Contest:
    """A contest as it is told: its name, what the winning of a name is, and what breaks without."""

    name: str
    won: str
    store: Level
    because: str
    scores: Mapping[str, Score]
    # What there was to be won, what is left of it, and who has a name according to the directory.
    there: Sequence[str] = ()
    left: Sequence[str] = ()
    holders: Mapping[str, Sequence[str]] = field(default_factory=dict)


def judge_contest(contest: Contest) -> Finding:
    """Say whether each name went to one contestant, who knows it, and none was lost."""
    claims = Counter(str(name) for score in contest.scores.values() for name in _won(score))
    holders = contest.holders
    twice = sorted(name for name, n in claims.items() if n > 1)
    several = sorted(name for name, who in holders.items() if len(who) > 1)
    moved = set(holders) & set(contest.left)
    lost = {*contest.there, *claims} - set(holders) - set(contest.left)
    number = len({*holders, *contest.left, *lost})
    unheard = [
        name
        for name, who in holders.items()
        for one in who
        if one in contest.scores and name not in _won(contest.scores[one])
    ]
    error = next((str(one["error"]) for one in contest.scores.values() if one["error"]), "")
    facts: dict[str, Json] = {
        "names": number,
        "won": {who: len(_won(score)) for who, score in contest.scores.items()},
        "won_twice": len(set(twice) | set(several)),
        "lost": len(lost),
        "answers_lost": len(unheard),
        "error": error,
    }
    broken = {*twice, *several, *moved}
    if broken or lost:
        what = f"{len(broken)} were {contest.won} more than once" if broken else ""
        gone = f"{len(lost)} of them are gone" if lost else ""
        return Finding(
            name=contest.name,
            grade=Grade.WRONG,
            sentence=f"of {number} names {' and '.join(filter(None, (what, gone)))}.",
            store=contest.store,
            pool=Level.FORBIDDEN,
            because=contest.because,
            facts=facts,
        )
    return _judge_answers(contest, number, unheard, error, facts)


def _judge_answers(
    contest: Contest, number: int, unheard: Sequence[str], error: str, facts: Mapping[str, Json]
) -> Finding:
    each = f"{len(contest.scores)} contestants, {number} names, each {contest.won} once"
    if error and not facts["answers_lost"] and not any(map(_won, contest.scores.values())):
        return Finding(
            name=contest.name,
            grade=Grade.MISSING,
            sentence=f"no name could be {contest.won}: {error}.",
            store=contest.store,
            pool=Level.FORBIDDEN,
            because=contest.because,
            facts=facts,
        )
    if unheard or error:
        return Finding(
            name=contest.name,
            grade=Grade.SLOW,
            sentence=f"{each}, but the server said of {len(unheard)} that it had not happened"
            f"{f' (or: {error})' if error else ''}. qwf looks again in such a case.",
            facts=facts,
        )
    return Finding(name=contest.name, sentence=f"{each}.", facts=facts)


def _won(score: Score) -> Sequence[str]:
    won = score["won"]
    assert isinstance(won, list)
    return [str(name) for name in won]


# --- locks -----------------------------------------------------------------------------------


def count_under_lock(directory: Path, rounds: int) -> None:
    """Add one to the number in a file, again and again, each time under a lock."""
    for _ in range(rounds):
        with lock.hold(directory / "lock"):
            # Not replaced whole, on purpose: without the lock, numbers get lost.
            number = counted(directory)
            time.sleep(0)
            _overwrite(directory / "counter", b"%08d" % (number + 1))


def counted(directory: Path) -> int:
    """Return the number in the file; 0 if it is being overwritten, for want of a lock."""
    data = fsio.read_bytes(directory / "counter")
    return int(data) if data.isdigit() else 0


def _overwrite(path: Path, data: bytes) -> None:
    system = fsio.system()
    descriptor = system.open(path, os.O_WRONLY)
    try:
        fsio.write_all(descriptor, data)
    finally:
        system.close(descriptor)


def judge_counter(
    name: str, *, excluded: bool, expected: int, kept: int, who: str, seconds: float | None
) -> Finding:
    """Say whether a lock kept others out; qwf bears it when it did not."""
    facts: dict[str, Json] = {
        "excluded": excluded,
        "expected": expected,
        "counted": kept,
        "handover_seconds": seconds,
    }
    if excluded and kept == expected:
        return Finding(
            name=name,
            sentence=f"a lock keeps {who} out; {expected} of {expected} counts were kept.",
            facts=facts,
        )
    counts = f"{kept} of {expected} counts were kept"
    said = (
        f"a lock does not reach all: {counts}"
        if excluded
        else f"a lock is granted to two at once and does not keep {who} out; {counts}"
    )
    return Finding(
        name=name,
        grade=Grade.WRONG,
        sentence=f"{said}. qwf notices a change that another makes at the same moment, and makes "
        "its own again.",
        store=Level.TOLD,
        pool=Level.TOLD,
        because=f"locks do not keep {who} out, which qwf bears",
        facts=facts,
    )
