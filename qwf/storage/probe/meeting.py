"""Two doctors on two hosts that find each other in a directory, and try it out between them.

Each has a directory of its own, which the other finds by listing. The one whose name comes first
is the host: all happens in its directory. Both say the same number of things in the same order,
each in a file, so that everything that is said is also a barrier.
"""

from __future__ import annotations

import dataclasses
import json
import random
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ...errors import LockTimeoutError
from ...types import Json
from .. import fsio, lock
from . import clocks, contests, races, sightings
from .files import PREFIX, put_file
from .findings import Finding, Grade, Level, why

__all__ = ["meet"]

_POLL_SECONDS: Final = 0.005
_WELCOME_SECONDS: Final = 10.0
_ANSWER_SECONDS: Final = 90.0

_NAMES: Final = 200
_COUNTS: Final = 20
_LOCK_SECONDS: Final = 1.0
_HANDOVER_SECONDS: Final = 10.0

# Longer than one heartbeat, and shorter for what is only told.
_SEEN_SECONDS: Final = 25.0
_ROUNDS: Final = 2


class _PartnerLostError(Exception):
    """The other doctor says nothing any more."""


def meet(directory: Path, seconds: float) -> list[Finding]:
    """Wait for another doctor, and return what both find out between them.

    Parameters
    ----------
    directory : Path
        One's own, in the directory that is tried.
    seconds : float
        How long to wait.
    """
    fsio.system().mkdir(directory / "talk")
    refused: dict[str, str] = {}
    talk = _find_partner(directory, seconds, refused)
    if talk is None:
        return [_nobody(seconds, refused)]
    found: list[Finding] = []
    try:
        found.extend(_tried_between(talk))
        talk.part()
    except (_PartnerLostError, OSError) as error:
        found.append(_broken_off(why(error) if isinstance(error, OSError) else str(error)))
    return found


def _nobody(seconds: float, refused: Mapping[str, str]) -> Finding:
    met = "; ".join(f"{name} is there, but {reason}" for name, reason in refused.items())
    return Finding(
        name="meeting",
        grade=Grade.MISSING,
        sentence=f"nobody came within {seconds:g} s{f' ({met})' if met else ''}: run the same "
        "command on another host at the same time, on the same directory.",
        store=Level.RESTRICTED,
        pool=Level.RESTRICTED,
        because="nobody came to the meeting, so that only this host is tested",
        facts={"waited_seconds": seconds, "refused": dict(refused)},
    )


def _broken_off(reason: str) -> Finding:
    return Finding(
        name="meeting",
        grade=Grade.WRONG,
        sentence=f"it ended before all was tried: {reason}. Was the other interrupted? Try again.",
        store=Level.RESTRICTED,
        pool=Level.RESTRICTED,
        because="the meeting of two hosts ended before all was tried",
    )


# --- finding each other ----------------------------------------------------------------------


class _Talk:
    """What two doctors say to each other."""

    def __init__(self, place: Path, visitor: str, *, is_host: bool) -> None:
        self.place, self.is_host = place, is_host
        self.me, self.other = ("host", "guest") if is_host else ("guest", "host")
        self._home_of_other = visitor if is_host else place.name
        self._said = 0

    def exchange(self, said: Json = None, *, meanwhile: Callable[[], object] | None = None) -> Any:
        """Say something, and return what the other says; then both are at this point."""
        self._said += 1
        _say(self.place, f"{self._said}-{self.me}", said)
        return self._heard(f"{self._said}-{self.other}", meanwhile)

    def part(self) -> None:
        """Let the host remove the place only when the guest needs it no more."""
        if self.is_host:
            self._heard("parting")
        else:
            _say(self.place, "parting", None)

    def _heard(self, name: str, meanwhile: Callable[[], object] | None = None) -> Any:
        return _heard(self.place, name, self._home_of_other, _ANSWER_SECONDS, meanwhile)


def _say(place: Path, name: str, said: Json) -> None:
    put_file(place / "talk" / name, json.dumps(said).encode())


def _heard(
    place: Path,
    name: str,
    home: str,
    seconds: float,
    meanwhile: Callable[[], object] | None = None,
) -> Any:
    """Wait until somebody, whose directory is called `home`, has said something."""
    # Found by listing: a name that is looked up too early stays missing for half a minute on NFS.
    end, was_there = time.monotonic() + seconds, False
    while True:
        there = home in fsio.list_fresh(place.parent)
        if name in _listed(place / "talk"):  # asked last: it may be said before leaving
            return json.loads(fsio.read_bytes(place / "talk" / name))
        if was_there and not there:
            raise _PartnerLostError("the other has left")
        was_there = there
        if time.monotonic() > end:
            raise _PartnerLostError(f"the other has said nothing for {seconds:g} s")
        if meanwhile is not None:
            meanwhile()
        time.sleep(_POLL_SECONDS)


def _listed(directory: Path) -> list[str]:
    try:
        return fsio.list_fresh(directory)
    except FileNotFoundError:
        return []


def _find_partner(mine: Path, seconds: float, refused: dict[str, str]) -> _Talk | None:
    """Wait until somebody comes here, or go to somebody whose name comes before mine."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if "guest" in fsio.list_fresh(mine / "talk"):
            guest = fsio.read_bytes(mine / "talk" / "guest").decode()
            _say(mine, "welcome", guest)
            return _Talk(mine, guest, is_host=True)
        for name in _others(mine):
            if name < mine.name and name not in refused and _is_ready(mine.parent / name):
                reason = _visited(mine.parent / name, mine.name)
                if not reason:
                    return _Talk(mine.parent / name, mine.name, is_host=False)
                refused[name] = reason
        time.sleep(_POLL_SECONDS)
    return None


def _others(mine: Path) -> list[str]:
    """Return the directories of others who are here to meet somebody."""
    purpose = mine.name.rpartition("-")[2]
    return sorted(
        name
        for name in fsio.list_fresh(mine.parent)
        if name.startswith(PREFIX) and name.endswith(f"-{purpose}") and name != mine.name
    )


def _is_ready(place: Path) -> bool:
    try:
        return "talk" in _listed(place)
    except OSError:
        return True  # closed to this user: going there says so


def _visited(place: Path, me: str) -> str:
    """Go to somebody's place; return why not, or nothing when one is welcome."""
    try:
        if not fsio.create_whole(place / "talk" / "guest", me.encode(), durable=False):
            return "somebody else is with it"
        welcome = _heard(place, "welcome", place.name, _WELCOME_SECONDS)
    except _PartnerLostError:
        return "nobody answers there (left by a doctor that was killed? then remove it)"
    except OSError as error:
        return f"it cannot be written ({why(error)})"
    return "" if welcome == me else "somebody else is with it"


# --- what they try ---------------------------------------------------------------------------


def _tried_between(talk: _Talk) -> Iterator[Finding]:
    yield from _introductions(talk)
    yield _clocks_of_both(talk)
    names = races.tasks(_NAMES)
    yield _claims(talk, names)
    yield _published(talk, names[: _NAMES // 2])
    yield _created(talk, names[: _NAMES // 2])
    yield _locks(talk)
    yield _visibility(talk)


def _introductions(talk: _Talk) -> Iterator[Finding]:
    me: dict[str, Json] = {"host": socket.gethostname(), "boot": _boot()}
    other = talk.exchange(me)
    if me == other:
        yield Finding(
            name="meeting",
            grade=Grade.MISSING,
            sentence=f"another process of this host came ({other['host']}): that says nothing of "
            "other hosts.",
            store=Level.TOLD,
            pool=Level.TOLD,
            because="both who met are on one host",
            facts={"with": other["host"]},
        )
    else:
        yield Finding(
            name="meeting", sentence=f"{other['host']} came.", facts={"with": other["host"]}
        )


def _boot() -> str:
    try:
        return fsio.read_bytes(Path("/proc/sys/kernel/random/boot_id")).decode().strip()
    except OSError:
        return ""


def _clocks_of_both(talk: _Talk) -> Finding:
    mine = clocks.clock_difference(talk.place)
    theirs = float(talk.exchange(mine))
    apart = abs(mine - theirs)
    said = (
        f"the clocks of both hosts differ by {apart:,.1f} s. That is harmless: qwf uses only the "
        "server's"
        if apart > 1
        else "the clocks of both hosts agree"
    )
    return Finding(
        name="clocks of hosts",
        sentence=f"{said}.",
        facts={"server_ahead_of_this_seconds": mine, "server_ahead_of_other_seconds": theirs},
    )


def _directory(talk: _Talk, name: str) -> Path:
    place = talk.place / name
    if talk.is_host:
        fsio.system().mkdir(place)
    return place


def _between(finding: Finding) -> Finding:
    """Return the same finding, told as one between hosts."""
    return dataclasses.replace(finding, name=f"{finding.name} between hosts")


def _claims(talk: _Talk, names: list[str]) -> Finding:
    place = _directory(talk, "claims")
    waiting, running = place / "waiting", place / "running"
    if talk.is_host:
        names = races.prepare_claims(place, names)
        talk.exchange(list[Json](names))
    else:
        names = talk.exchange()
    fsio.list_names(waiting)  # as a worker does: names are never looked up without
    score = contests.claim_names(waiting, running, _in_some_order(names), talk.me)
    scores = {talk.me: score, talk.other: talk.exchange(score)}
    finding = races.judge_claims(waiting, running, names, scores)
    talk.exchange()
    return _between(finding)


def _in_some_order(names: list[str]) -> list[str]:
    # Two who go down one list in step meet only where one has just been.
    return random.sample(names, len(names))


def _published(talk: _Talk, names: list[str]) -> Finding:
    place = _directory(talk, "published")
    talk.exchange()
    score = contests.publish_names(place, names, talk.me)
    scores = {talk.me: score, talk.other: talk.exchange(score)}
    finding = races.judge_published(place, scores)
    talk.exchange()
    return _between(finding)


def _created(talk: _Talk, names: list[str]) -> Finding:
    place = _directory(talk, "created")
    talk.exchange()
    score = contests.create_names(place, names, talk.me)
    scores = {talk.me: score, talk.other: talk.exchange(score)}
    finding = races.judge_created(place, scores)
    talk.exchange()
    return _between(finding)


def _locks(talk: _Talk) -> Finding:
    place = _directory(talk, "locks")
    if talk.is_host:
        put_file(place / "counter", b"00000000")
        with lock.hold(place / "lock"):
            talk.exchange()
            excluded = bool(talk.exchange())
        talk.exchange()
        handover = talk.exchange()
    else:
        talk.exchange()
        excluded = _seconds_to_lock(place / "lock", _LOCK_SECONDS) is None
        talk.exchange(excluded)
        talk.exchange()
        handover = _seconds_to_lock(place / "lock", _HANDOVER_SECONDS)
        talk.exchange(handover)
    contests.count_under_lock(place, _COUNTS)
    talk.exchange()
    return contests.judge_counter(
        "locks between hosts",
        excluded=excluded,
        expected=2 * _COUNTS,
        kept=contests.counted(place),
        who="other hosts",
        seconds=handover,
    )


def _seconds_to_lock(path: Path, limit: float) -> float | None:
    """Return how long it took to get a lock; None if it was held all the time."""
    start = time.monotonic()
    try:
        with lock.hold(path, seconds=limit):
            return time.monotonic() - start
    except LockTimeoutError:
        return None


def _visibility(talk: _Talk) -> Finding:
    seen: dict[str, list[float | None]] = {name: [] for name in sightings.SIGHTS}
    for number in range(_ROUNDS):
        for watcher in ("host", "guest"):
            place = _directory(talk, f"sights-{watcher}-{number}")
            if talk.is_host:
                sightings.prepare(place)
            talk.exchange()
            for name in sightings.SIGHTS:
                seen[name].append(_seen(talk, place, name, watches=talk.me == watcher))
    return _between(sightings.judge_sights(seen, who="the other host", limit=_SEEN_SECONDS))


def _seen(talk: _Talk, place: Path, name: str, *, watches: bool) -> float | None:
    sight = sightings.SIGHTS[name]

    def look() -> object:
        return sight.look(place / name)

    if not watches:
        talk.exchange()
        sightings.make(place, name)
        talk.exchange()
        answer = talk.exchange()
        return None if answer is None else float(answer)
    before = look()
    talk.exchange()
    talk.exchange(meanwhile=look)
    delay = sight.seconds_until_seen(place / name, before, _SEEN_SECONDS)
    talk.exchange(delay)
    return delay
