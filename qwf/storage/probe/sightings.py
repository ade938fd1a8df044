"""How long until one process sees what another has done: names, contents, heartbeats.

A sight is looked at before, so that caches hold the old state; then another process makes the
change, and it is looked at until it differs. Clocks are not compared.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...types import Json
from .. import fsio
from .files import new_file, put_file
from .findings import Finding, Grade, Level, show_seconds

__all__ = ["SIGHTS", "Sight", "judge_sights", "make", "prepare", "touch"]

# A heartbeat comes every 20 s, and six may be missed.
_HEARTBEAT_SECONDS: Final = 20.0
_SOON_SECONDS: Final = 1.0
_TOLD_SECONDS: Final = 3.0
_POLL_SECONDS: Final = 0.002
_MANY: Final = 30


@dataclass(frozen=True)
class Sight:
    """Something that one process does and another looks for, in a directory of its own."""

    in_words: str
    look: Callable[[Path], object]
    make: Callable[[Path], None]
    relied_on: bool = True
    is_listing: bool = False

    def seconds_until_seen(self, place: Path, before: object, limit: float) -> float | None:
        """Look until something else is seen than before; None when it takes too long.

        A listing that stays old is asked for anew, as a worker does that must know.
        """
        start = time.monotonic()
        if not self._changes(place, before, self.limit(limit)):
            if not self.is_listing:
                return None
            fsio.list_fresh(place)
            if not self._changes(place, before, limit):
                return None
        return time.monotonic() - start

    def limit(self, seconds: float) -> float:
        """Return how long to look at first: not so long for what is not waited for."""
        return seconds if self._is_patient else min(seconds, _TOLD_SECONDS)

    @property
    def _is_patient(self) -> bool:
        return self.relied_on and not self.is_listing

    def _changes(self, place: Path, before: object, limit: float) -> bool:
        end = time.monotonic() + limit
        while self.look(place) == before:
            if time.monotonic() > end:
                return False
            time.sleep(_POLL_SECONDS)
        return True


def _create(directory: Path) -> None:
    put_file(directory / "new", b"")


def _remove(directory: Path) -> None:
    fsio.remove_file(directory / "file")


def _create_many(directory: Path) -> None:
    for number in range(_MANY):
        new_file(directory / f"new{number}")
        time.sleep(_POLL_SECONDS)


def _replace(directory: Path) -> None:
    put_file(directory / "file", b"new content")


def _beat(directory: Path) -> None:
    touch(directory / "file")


def touch(path: Path) -> None:
    """Set the time of a file to the server's present one, until that is another than before."""
    before = fsio.modified_at(path)
    end = time.monotonic() + _SOON_SECONDS * 3
    while fsio.modified_at(path) == before and time.monotonic() < end:
        fsio.renew_time(path)


def _listed(directory: Path) -> object:
    return sorted(fsio.list_names(directory))


def _all_listed(directory: Path) -> object:
    return f"new{_MANY - 1}" in fsio.list_names(directory)


def _opened_first(directory: Path) -> object:
    system = fsio.system()
    system.close(system.open(directory, os.O_RDONLY))
    return fsio.exists(directory / "new")


def _looked_up(directory: Path) -> object:
    return fsio.exists(directory / "new")


def _content(directory: Path) -> object:
    return fsio.read_bytes(directory / "file")


def _beaten(directory: Path) -> object:
    return fsio.modified_at(directory / "file")


def _beaten_by_stat(directory: Path) -> object:
    return fsio.system().stat(directory / "file").st_mtime_ns


SIGHTS: Final[Mapping[str, Sight]] = {
    "listing": Sight("a new file, in a listing", _listed, _create, is_listing=True),
    "many": Sight(
        "the last of many new files, in a listing", _all_listed, _create_many, is_listing=True
    ),
    "removal": Sight("a removed file, in a listing", _listed, _remove, is_listing=True),
    "name": Sight("a new file, by its name after opening its directory", _opened_first, _create),
    "content": Sight("a file that was replaced", _content, _replace),
    "heartbeat": Sight("a heartbeat, by opening its file", _beaten, _beat),
    "heartbeat_stat": Sight("a heartbeat, without opening it", _beaten_by_stat, _beat, False),
    "looked_up": Sight("a new file, by its name alone", _looked_up, _create, False),
}


def prepare(directory: Path) -> None:
    """Make the directories of all sights, before anybody looks."""
    system = fsio.system()
    for name in SIGHTS:
        system.mkdir(directory / name)
        put_file(directory / name / "file", b"old content")


def make(directory: Path, name: str) -> None:
    """Do what another process is to see."""
    SIGHTS[name].make(directory / name)


def judge_sights(seen: Mapping[str, Sequence[float | None]], *, who: str, limit: float) -> Finding:
    """Say how long it took until changes were seen, the slowest of each kind."""
    delays = {name: _slowest(values) for name, values in seen.items()}
    facts: dict[str, Json] = {f"{name}_seconds": delay for name, delay in delays.items()}
    relied = {name: delay for name, delay in delays.items() if SIGHTS[name].relied_on}
    worst = max(relied, key=lambda name: _or_never(relied[name]))
    delay = relied[worst]
    others = ", ".join(
        f"{SIGHTS[name].in_words}: {_in_words(one, SIGHTS[name].limit(limit))}"
        for name, one in delays.items()
        if not SIGHTS[name].relied_on and _or_never(one) > _SOON_SECONDS
    )
    aside = f" ({others}; qwf does not rely on that)" if others else ""
    slowest = f"{SIGHTS[worst].in_words}: {_in_words(delay, limit)}"
    if SIGHTS[worst].is_listing and delay is not None and delay >= min(limit, _TOLD_SECONDS):
        slowest += ", and only when asked for anew"
    if _or_never(delay) <= _SOON_SECONDS:
        return Finding(
            name="visibility",
            sentence=f"what {who} does is seen at once, the latest {slowest}{aside}.",
            facts=facts,
        )
    late = _or_never(delay) > _HEARTBEAT_SECONDS or delay is None
    return Finding(
        name="visibility",
        grade=Grade.WRONG if late else Grade.SLOW,
        sentence=f"what {who} does is seen late: {slowest}{aside}.",
        store=Level.RESTRICTED if late else Level.TOLD,
        pool=Level.FORBIDDEN if late else Level.TOLD,
        because=f"changes are seen too late ({slowest})"
        if late
        else f"what others do is seen late ({slowest}), so it may take a minute more",
        facts=facts,
    )


def _slowest(values: Sequence[float | None]) -> float | None:
    return None if None in values else max(one for one in values if one is not None)


def _or_never(delay: float | None) -> float:
    return float("inf") if delay is None else delay


def _in_words(delay: float | None, limit: float) -> str:
    return f"not within {limit:g} s" if delay is None else f"after {show_seconds(delay)}"
