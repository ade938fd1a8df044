"""What several processes of this host can find out together: contests, locks, what each sees."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from ...errors import LockTimeoutError
from .. import fsio, lock
from . import contests, sightings
from .contests import Contest, Score
from .files import put_file
from .findings import Finding, Grade, Level, show_seconds, why
from .peers import Peer, at_once

__all__ = [
    "holders_in",
    "probe_claims",
    "probe_created_once",
    "probe_locks",
    "probe_published_once",
    "probe_replacing",
    "probe_visibility",
    "tasks",
]

_NAMES: Final = 150
_REPLACEMENTS: Final = 100
_COUNTS: Final = 15
_LOCK_SECONDS: Final = 0.1
_FREED_SECONDS: Final = 2.0

# On one host all processes see the same, unless something is wrong.
_SEEN_SECONDS: Final = 1.0


def tasks(number: int = _NAMES) -> list[str]:
    """Return names to contend for."""
    return [f"task{index:04}" for index in range(number)]


def holders_in(directory: Path) -> dict[str, list[str]]:
    """Return who has claimed each name, according to the directory."""
    holders: dict[str, list[str]] = {}
    for entry in fsio.list_names(directory):
        name, _, who = entry.partition(".")
        holders.setdefault(name, []).append(who)
    return holders


def prepare_claims(directory: Path, names: Sequence[str]) -> list[str]:
    """Make what is to be claimed; return the names that could be made in time."""
    waiting, running = directory / "waiting", directory / "running"
    fsio.system().mkdir(waiting)
    fsio.system().mkdir(running)
    contests.create_names(waiting, names, "")
    return sorted(fsio.list_names(waiting))


def probe_claims(directory: Path, others: Sequence[Peer]) -> Iterator[Finding]:
    """Have processes rename the same files in the same moment, as workers claim tasks."""
    names = prepare_claims(directory, tasks())
    waiting, running = directory / "waiting", directory / "running"
    scores = _scores(
        others, contests.claim_names, [waiting] * len(others), [running] * len(others),
        [names] * len(others),
    )  # fmt: skip
    yield judge_claims(waiting, running, names, scores)


def judge_claims(
    waiting: Path, running: Path, names: Sequence[str], scores: dict[str, Score]
) -> Finding:
    """Say who has claimed what, by what the contestants know and by the directories."""
    contest = Contest(
        name="claims",
        won="claimed",
        store=Level.TOLD,
        because="a task can be claimed by two workers",
        scores=scores,
        there=names,
        left=fsio.list_names(waiting),
        holders=holders_in(running),
    )
    return contests.judge_contest(contest)


def probe_published_once(directory: Path, others: Sequence[Peer]) -> Iterator[Finding]:
    """Have processes publish files under the same names in the same moment."""
    names = tasks(_NAMES // 3)
    scores = _scores(
        others, contests.publish_names, [directory] * len(others), [names] * len(others)
    )
    yield judge_published(directory, scores)


def judge_published(directory: Path, scores: dict[str, Score]) -> Finding:
    """Say whose file has each name."""
    contest = Contest(
        name="published once",
        won="published",
        store=Level.FORBIDDEN,
        because="two processes can publish one name, and the changes of one are lost",
        scores=scores,
        holders=_writers(directory),
    )
    return contests.judge_contest(contest)


def probe_created_once(directory: Path, others: Sequence[Peer]) -> Iterator[Finding]:
    """Have processes create the same files in the same moment."""
    names = tasks(_NAMES // 3)
    scores = _scores(
        others, contests.create_names, [directory] * len(others), [names] * len(others)
    )
    yield judge_created(directory, scores)


def judge_created(directory: Path, scores: dict[str, Score]) -> Finding:
    """Say who created each file."""
    contest = Contest(
        name="created once",
        won="created",
        store=Level.RESTRICTED,
        because="creating a file excludes nobody (O_EXCL), so only one process at a time may write",
        scores=scores,
        holders=_writers(directory),
    )
    return contests.judge_contest(contest)


def _writers(directory: Path) -> dict[str, list[str]]:
    return {
        name: [fsio.read_bytes(directory / name).decode(errors="replace")]
        for name in fsio.list_names(directory)
    }


def _scores(
    others: Sequence[Peer], call: Callable[..., Score], *columns: Sequence[object]
) -> dict[str, Score]:
    who = [f"p{index}" for index in range(len(others))]
    return dict(zip(who, at_once(others, call, *columns, who), strict=True))


# --- replacing beside a reader ---------------------------------------------------------------


def probe_replacing(directory: Path, other: Peer) -> Iterator[Finding]:
    """Replace a file again and again while another process reads it."""
    path = directory / "file"
    put_file(path, _pattern(0))
    other.begin(_replace_often, path)
    missing = torn = reads = 0
    while not other.has_answered() or not reads:
        try:
            data = fsio.read_bytes(path)
        except FileNotFoundError:
            missing += 1
        else:
            torn += data not in (_pattern(0), _pattern(1))
        reads += 1
    refused = other.answer()
    if not missing and not torn and refused:
        yield Finding(
            name="atomic replace",
            grade=Grade.SLOW,
            sentence=f"readers saw a whole file each, but {refused[0]} of {refused[1]} "
            f"replacements beside them were refused ({refused[2]}): such a change has to be "
            "made again.",
            store=Level.TOLD,
            because=f"a file may refuse to be replaced while it is read ({refused[2]})",
        )
        return
    if not missing and not torn:
        yield Finding(
            name="atomic replace",
            sentence=f"{reads:,} reads beside {_REPLACEMENTS} replacements saw a whole file each.",
        )
        return
    yield Finding(
        name="atomic replace",
        grade=Grade.WRONG,
        sentence=f"of {reads:,} reads of a file that was being replaced, {missing} found no file "
        f"and {torn} a part of one.",
        store=Level.FORBIDDEN,
        pool=Level.FORBIDDEN,
        because="readers can meet half a file, or none, while it is replaced",
        facts={"reads": reads, "missing": missing, "torn": torn},
    )


def _pattern(number: int) -> bytes:
    return bytes([number % 2]) * 20_000


def _replace_often(path: Path) -> tuple[int, int, str] | None:
    """Replace a file; return how many of how many tries failed and why, if any did."""
    end = time.monotonic() + _FREED_SECONDS
    failed, tries, error = 0, 0, ""
    while tries < _REPLACEMENTS and time.monotonic() < end:
        tries += 1
        try:
            put_file(path, _pattern(tries))
        except OSError as caught:
            failed, error = failed + 1, why(caught)
    return (failed, tries, error) if failed else None


# --- locks -----------------------------------------------------------------------------------

_held: Final = contextlib.ExitStack()


def _hold(path: Path) -> None:
    _held.enter_context(lock.hold(path, seconds=_FREED_SECONDS))


def _release() -> None:
    _held.close()


def _is_kept_out(path: Path) -> bool:
    """Whether a lock that somebody else holds keeps this process out."""
    try:
        with lock.hold(path, seconds=_LOCK_SECONDS):
            return False
    except LockTimeoutError:
        return True


def probe_locks(directory: Path, others: Sequence[Peer]) -> Iterator[Finding]:
    """Have a process hold a lock, others count under it, and a holder be killed."""
    path = directory / "held"
    others[0].ask(_hold, path)
    excluded = _is_kept_out(path)
    others[0].ask(_release)
    put_file(directory / "counter", b"0")
    at_once(others, contests.count_under_lock, [directory] * len(others), [_COUNTS] * len(others))
    yield contests.judge_counter(
        "locks",
        excluded=excluded,
        expected=_COUNTS * len(others),
        kept=contests.counted(directory),
        who="other processes",
        seconds=None,
    )
    if excluded:
        yield _freed_by_death(path)


def _freed_by_death(path: Path) -> Finding:
    name = "lock of a killed process"
    holder = Peer()
    try:
        holder.ask(_hold, path)
    finally:
        holder.kill()
    start = time.monotonic()
    try:
        with lock.hold(path, seconds=_FREED_SECONDS):
            took = time.monotonic() - start
    except LockTimeoutError:
        return Finding(
            name=name,
            grade=Grade.WRONG,
            sentence=f"the lock of a process that was killed is still held after "
            f"{_FREED_SECONDS:g} s: changes of its run fail after a minute.",
            store=Level.RESTRICTED,
            because="the locks of killed processes stay, and changes of their runs fail",
        )
    return Finding(
        name=name, sentence=f"it is free after {show_seconds(took)}.", facts={"seconds": took}
    )


# --- what each sees --------------------------------------------------------------------------


def probe_visibility(directory: Path, other: Peer) -> Iterator[Finding]:
    """Have another process change something that was looked at before."""
    sightings.prepare(directory)
    seen: dict[str, list[float | None]] = {}
    for name, sight in sightings.SIGHTS.items():
        place = directory / name

        def look(sight: sightings.Sight = sight, place: Path = place) -> object:
            return sight.look(place)

        before = look()
        other.begin(sightings.make, directory, name)
        while not other.has_answered():
            look()
        other.answer()
        seen[name] = [sight.seconds_until_seen(place, before, _SEEN_SECONDS)]
    yield sightings.judge_sights(seen, who="another process of this host", limit=_SEEN_SECONDS)
