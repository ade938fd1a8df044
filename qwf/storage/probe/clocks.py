"""What is told about times and durability: the server's clock, its grain, fsync."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Final

from ...types import Json
from .. import fsio
from .files import put_file
from .findings import Finding, Grade, Level, show_seconds, why
from .peers import Peer

__all__ = ["clock_difference", "probe_clock", "probe_directory_times", "probe_fsync"]

_SYNCS: Final = 8
_SLOW_SYNC_SECONDS: Final = 0.1

# No disk and no server answers so fast; memory and empty promises do.
_FREE_SYNC_SECONDS: Final = 1e-5

# FAT counts in steps of two seconds, and nothing that is known in longer ones.
_LONGEST_GRAIN_SECONDS: Final = 2.0
_PATIENCE_SECONDS: Final = 4.5


def probe_fsync(directory: Path) -> Iterator[Finding]:
    """Have data and names put on stable storage, and see how long it takes."""
    try:
        files = _timed(directory / "file", lambda number: fsio.write_all(number, bytes(4096)))
    except OSError as error:
        yield Finding(
            name="fsync",
            grade=Grade.MISSING,
            sentence=f"a file cannot be put on stable storage: {why(error)}.",
            store=Level.FORBIDDEN,
            pool=Level.FORBIDDEN,
            because="saving fails where fsync does (look at the disk, or mount it otherwise)",
        )
        return
    facts: dict[str, Json] = {"file_seconds": median(files), "fastest_seconds": min(files)}
    if min(files) < _FREE_SYNC_SECONDS:
        yield Finding(
            name="fsync",
            grade=Grade.MISSING,
            sentence=f"putting a file on stable storage takes {show_seconds(median(files))}, "
            "which no disk can do: either this is memory, or the mount promises nothing.",
            store=Level.RESTRICTED,
            pool=Level.RESTRICTED,
            because="what is saved here does not survive the loss of power",
            facts=facts,
        )
        return
    slow = median(files) > _SLOW_SYNC_SECONDS
    yield Finding(
        name="fsync",
        grade=Grade.SLOW if slow else Grade.OK,
        sentence=f"putting a file on stable storage takes {show_seconds(median(files))}"
        f"{'; each change of a run takes a few of these' if slow else ''}.",
        facts=facts,
    )
    yield from _directory_sync(directory)


def _directory_sync(directory: Path) -> Iterator[Finding]:
    name = "fsync of directories"
    try:
        fsio.fsync_directory(directory)
        system = fsio.system()
        descriptor = system.open(directory, os.O_RDONLY)
        try:
            system.fsync(descriptor)
        except OSError as error:  # `fsio` bears some that are to be told here
            yield Finding(
                name=name,
                grade=Grade.MISSING,
                sentence=f"it is refused ({error.strerror}): whether a new name survives the loss "
                "of power is up to the server.",
                store=Level.TOLD,
                pool=Level.TOLD,
                because="new names survive the loss of power only as far as the server sees to it",
            )
            return
        finally:
            system.close(descriptor)
    except OSError as error:
        yield Finding(
            name=name,
            grade=Grade.WRONG,
            sentence=f"it fails: {why(error)}.",
            store=Level.FORBIDDEN,
            pool=Level.FORBIDDEN,
            because="saving fails where fsync of a directory does (look at the disk)",
        )
        return
    yield Finding(name=name, sentence="new names can be put on stable storage.")


def _timed(path: Path, write: Callable[[int], None]) -> list[float]:
    """Write and sync a few times; return how long each sync took."""
    system = fsio.system()
    took: list[float] = []
    descriptor = system.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        end = time.monotonic() + 1.0
        while len(took) < _SYNCS and (not took or time.monotonic() < end):
            write(descriptor)
            start = time.perf_counter()
            system.fsync(descriptor)
            took.append(time.perf_counter() - start)
    finally:
        system.close(descriptor)
    return took


# --- clocks ----------------------------------------------------------------------------------


def clock_difference(directory: Path) -> float:
    """Return by how many seconds the server's clock is ahead of this host's."""
    before = time.time()
    there = fsio.server_time(directory / "now")
    return there - (before + time.time()) / 2


def probe_clock(directory: Path) -> Iterator[Finding]:
    """Touch a file again and again, and see what time the server says that it is."""
    path = fsio.write_temporary(directory / "file", b"", durable=False)
    times = _times(path)
    steps = [later - earlier for earlier, later in itertools.pairwise(times)]
    difference = clock_difference(directory)
    facts: dict[str, Json] = {
        "grain_seconds": max(steps, default=None),
        "ahead_of_this_host_seconds": difference,
    }
    if not steps or min(steps) < 0:
        how = "stands still" if not steps else "goes backwards"
        yield Finding(
            name="clock",
            grade=Grade.WRONG,
            sentence=f"the time that files get when they are touched {how}: nobody could tell "
            "whether a worker still lives.",
            store=Level.RESTRICTED,
            pool=Level.FORBIDDEN,
            because=f"the clock of files {how}, so that dead and living processes look alike",
            facts=facts,
        )
        return
    grain = min(steps)
    off = (
        f"this host's clock and that of files differ by {abs(difference):,.1f} s, which is harmless"
        if abs(difference) > max(1.0, 2 * grain)
        else "this host's clock agrees"
    )
    facts["grain_seconds"] = grain
    said = (
        f"files are stamped by a clock that runs, in steps of at most {show_seconds(grain)}; {off}"
    )
    if grain < 1:
        yield Finding(name="clock", sentence=f"{said}.", facts=facts)
        return
    long = grain > _LONGEST_GRAIN_SECONDS + 0.1
    yield Finding(
        name="clock",
        grade=Grade.SLOW,
        sentence=f"{said}. Listings read more than they would have to.",
        store=Level.RESTRICTED if long else Level.TOLD,
        pool=Level.TOLD,
        because=f"times have a grain of {show_seconds(grain)}"
        + (
            ", within which a listing may miss a change"
            if long
            else ", which makes listings slower"
        ),
        facts=facts,
    )


def _times(path: Path) -> list[float]:
    """Return different times that a file gets, until the clock has made two whole steps."""
    times = [fsio.modified_at(path)]
    end = time.monotonic() + _PATIENCE_SECONDS
    while len(times) < 4 and time.monotonic() < end:
        fsio.renew_time(path)
        now = fsio.modified_at(path)
        if now != times[-1]:
            times.append(now)
            if now < times[-2]:
                break
    return times


def probe_directory_times(directory: Path, other: Peer) -> Iterator[Finding]:
    """See whether the stamp of a directory tells that an entry came, and a name that it went."""
    moved = directory / "file"
    put_file(moved, b"")
    fsio.renew_time(moved)
    before = fsio.stamp(directory)
    end = time.monotonic() + _PATIENCE_SECONDS
    count, changed = 0, False
    while not changed and time.monotonic() < end:
        count += 1
        other.ask(put_file, directory / f"new{count}", b"")
        changed = fsio.stamp(directory) != before
    if changed:
        yield Finding(name="directory times", sentence="a directory tells that something came.")
    else:
        yield Finding(
            name="directory times",
            grade=Grade.WRONG,
            sentence="a directory keeps its time when something comes, so that listings of runs "
            "miss new ones.",
            store=Level.RESTRICTED,
            because="listings may miss new runs, because directories keep their time",
        )
    other.ask(_take_away, moved)
    yield _renewed_when_gone(moved)


def _take_away(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # what a server that lost its answer says
        fsio.system().rename(path, path.with_name("elsewhere"))


def _renewed_when_gone(path: Path) -> Finding:
    name = "heartbeat of a lost file"
    try:
        fsio.renew_time(path)
    except FileNotFoundError:
        return Finding(name=name, sentence="touching a file that another process took is noticed.")
    return Finding(
        name=name,
        grade=Grade.SLOW,
        sentence="touching a file that another process took succeeds for a while; qwf does not "
        "rely on it.",
    )
