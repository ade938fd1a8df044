"""Trying out a directory: in a private one below it, which is removed in the end."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from ...errors import NoDirectoryError
from .. import fsio, trees
from . import clocks, entries, races
from .files import PREFIX
from .findings import Finding, Grade, Level, Report, why
from .meeting import meet
from .mounts import find_mount, judge_mount
from .peers import peers

__all__ = ["examine"]

_PEERS: Final = 3

# `.nfs…` entries of files that were open go when these are closed, a moment later; and a listing
# may miss what another host has put there.
_REMOVALS: Final = 5
_REMOVAL_PAUSE_SECONDS: Final = 0.1

# More than all probes together write.
_ROOM_BYTES: Final = 1_000_000
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def examine(path: Path, *, meet_seconds: float | None = None) -> Report:
    """Find out whether a store, and whether a task pool, may live in a directory.

    Parameters
    ----------
    path : Path
        An existing directory.
    meet_seconds : float, optional
        Also test between two hosts, and wait so long for the other to come. The other is a
        process that does the same with the same directory.

    Returns
    -------
    Report
        What was found. A probe that fails is a finding, never an exception.

    Raises
    ------
    NoDirectoryError
        If there is no such directory.

    Notes
    -----
    All is done in private directories below `path`, which are removed in the end, after an
    interrupt too; a process that is killed leaves them (``.qwf-doctor-…``). Nothing else is
    touched. *Readers* of a store at `path` see an entry that they do not know, and ignore it.
    """
    if not path.is_dir():
        found = "a file" if path.exists() else "nothing"
        nearest = next(place for place in path.absolute().parents if place.is_dir())
        raise NoDirectoryError(path, found=found, nearest=nearest)
    findings = list(judge_mount(find_mount(path.resolve()), meets=meet_seconds is not None))
    try:
        with _private(path, "probe") as directory:
            _require_room(directory / "room")
            findings += _findings(directory)
        if meet_seconds is not None:
            with _private(path, "meet") as directory:
                findings += meet(directory, meet_seconds)
    except _FullError as error:
        findings.append(_full(error))
    except _NotWritableError as error:
        findings.append(_not_writable(error))
    findings += _left_behind(path)
    return Report(path, findings)


class _NotWritableError(Exception):
    """No directory could be made; its cause says why."""


class _FullError(Exception):
    """There is no room for what is to be tried; its cause says why."""


@contextlib.contextmanager
def _private(path: Path, purpose: str) -> Iterator[Path]:
    """Have a directory of one's own for the length of a ``with`` block."""
    host = re.sub(r"[^\w-]", "_", socket.gethostname().partition(".")[0])[:32]
    directory = path / f"{PREFIX}{host}-{os.getpid()}-{time.time_ns():x}-{purpose}"
    try:
        try:
            fsio.system().mkdir(directory)
        except OSError as error:
            kind = _FullError if error.errno in _FULL else _NotWritableError
            raise kind(why(error)) from error
        yield directory
    finally:
        _remove(directory)


def _remove(directory: Path) -> None:
    for attempt in range(_REMOVALS):
        with contextlib.suppress(OSError):  # what stays is told
            if attempt:
                time.sleep(_REMOVAL_PAUSE_SECONDS)
                for place in (directory, *filter(Path.is_dir, directory.rglob("*"))):
                    fsio.list_fresh(place)
            trees.remove_tree(directory)
            return


def _require_room(path: Path) -> None:
    """Raise if nothing fits any more: what fails for that would be taken for a broken promise."""
    system = fsio.system()
    try:
        descriptor = system.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            fsio.write_all(descriptor, os.urandom(_ROOM_BYTES))  # zeros may take no room
            system.fsync(descriptor)  # some servers say it only now
        finally:
            system.close(descriptor)
        fsio.remove_file(path)
    except OSError as error:  # whatever else it is, a probe tells it
        if error.errno in _FULL:
            raise _FullError(why(error)) from error


def _full(error: _FullError) -> Finding:
    return Finding(
        name="space",
        grade=Grade.MISSING,
        sentence=f"the disk is full; nothing else could be tried ({error}).",
        store=Level.FORBIDDEN,
        pool=Level.FORBIDDEN,
        because="the disk is full; make room, and try again",
    )


def _not_writable(error: _NotWritableError) -> Finding:
    return Finding(
        name="permissions",
        grade=Grade.MISSING,
        sentence=f"nothing can be written here: {error}. A store that is here can be read.",
        store=Level.FORBIDDEN,
        pool=Level.FORBIDDEN,
        because=f"nothing can be written ({error})",
    )


def _left_behind(path: Path) -> Iterator[Finding]:
    own = f"-{os.getpid()}-"
    left = [one for one in fsio.list_names(path) if one.startswith(PREFIX)]
    mine = [one for one in left if own in one]
    if mine:
        yield Finding(
            name="left behind",
            grade=Grade.WRONG,
            sentence=f"what was made for this test could not be removed: {', '.join(mine)}.",
            store=Level.TOLD,
            pool=Level.TOLD,
            because=f"{len(mine)} directories of this test are left, remove them",
        )


def _findings(directory: Path) -> list[Finding]:
    """Do all that one host can do; what fails unexpectedly is a finding too."""
    found: list[Finding] = []
    with peers(_PEERS) as others:
        probes: Sequence[tuple[str, Callable[[Path], Iterable[Finding]]]] = (
            ("permissions", entries.probe_permissions),
            ("exclusive create", entries.probe_exclusive_create),
            ("hard link", entries.probe_links),
            ("rename", entries.probe_rename),
            ("directories", entries.probe_directories),
            ("names", entries.probe_names),
            ("claims", partial(races.probe_claims, others=others)),
            ("published once", partial(races.probe_published_once, others=others)),
            ("created once", partial(races.probe_created_once, others=others)),
            ("atomic replace", partial(races.probe_replacing, other=others[0])),
            ("locks", partial(races.probe_locks, others=others)),
            ("visibility", partial(races.probe_visibility, other=others[0])),
            ("fsync", clocks.probe_fsync),
            ("clock", clocks.probe_clock),
            ("directory times", partial(clocks.probe_directory_times, other=others[0])),
            ("space", entries.probe_space),
        )
        for number, (name, probe) in enumerate(probes):
            found += _tried(name, probe, directory / str(number))
    return found


def _tried(
    name: str, probe: Callable[[Path], Iterable[Finding]], directory: Path
) -> Iterator[Finding]:
    try:
        fsio.system().mkdir(directory)
        yield from probe(directory)
    except OSError as error:
        if error.errno in _FULL:  # by others, since room was found
            raise _FullError(why(error)) from error
        yield Finding(
            name=name,
            grade=Grade.WRONG,
            sentence=f"it could not be tried to the end: {why(error)}.",
            store=Level.FORBIDDEN,
            pool=Level.FORBIDDEN,
            because=f"calls fail that always have to work ({name}: {why(error)})",
        )
