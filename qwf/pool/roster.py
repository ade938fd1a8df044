"""Who works on a pool, for people who wonder: nothing is decided by it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from ..errors import CorruptRecordError, FormatVersionError, WriteError
from ..process.identity import runs_here
from ..storage import fsio
from ..storage.entries import list_entries
from .directory import Directory
from .records import parse_worker
from .workers import LEASE_SECONDS, is_worker

__all__ = ["Seen", "roster"]


@dataclass(frozen=True)
class Seen:
    """A worker as its file shows it.

    Attributes
    ----------
    worker : str
    host, pid
        None if its file does not tell.
    silent : float
        Seconds since its last sign of life, on the file server's clock.
    lease : float
        After how many of these others may take its tasks.
    lives : bool
        Whether it is not known to have ended, and silent for no longer than its lease.
    """

    worker: str
    host: str | None
    pid: int | None
    silent: float
    lease: float
    lives: bool


def roster(directory: Directory) -> list[Seen]:
    """Return all workers of which the pool has a file, the one that was heard last first.

    Files that cannot be read are passed over. On a mount that is read-only the time is this host's.
    """
    names = [name for name in list_entries(directory.workers) if is_worker(name)]
    now = _now(directory) if names else 0.0
    found = []
    for name in names:
        path = Path(directory.workers, name)
        try:
            noted = parse_worker(fsio.read_bytes(path), str(path))
            silent = max(0.0, now - fsio.modified_at(path))
        except (OSError, CorruptRecordError, FormatVersionError):
            continue
        lease = noted.get("lease", LEASE_SECONDS)
        lives = runs_here(noted) is not False and silent <= lease
        found.append(Seen(name, noted.get("host"), noted.get("pid"), silent, lease, lives))
    return sorted(found, key=lambda seen: seen.silent)


def _now(directory: Directory) -> float:
    try:
        return fsio.server_time(Path(directory.private, "clock"))
    except (OSError, WriteError):
        return time.time()
