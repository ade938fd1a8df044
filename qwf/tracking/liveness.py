"""Whether the process that runs a recorder is alive: by its pid here, by its heartbeat elsewhere.

Of a process on another host only its heartbeat is seen: while it lives, it sets the modification
time of ``recorder.json`` every few seconds, by the file server's clock.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ..process.identity import runs_here
from ..storage import fsio

__all__ = ["HEARTBEAT_SECONDS", "LEASE_SECONDS", "Observer", "beat"]

HEARTBEAT_SECONDS: Final = 20.0

# Six heartbeats: a node that is short of memory or network for a minute is not given up.
LEASE_SECONDS: Final = 120.0

# Where nothing can be written the server's clock cannot be asked, and this host's may be wrong.
_CLOCK_DOUBT_SECONDS: Final = 3600.0


def beat(path: Path) -> None:
    """Say that the process which runs the recorder of this file is alive."""
    with contextlib.suppress(OSError):  # deleted, or the server is away: the next one may reach it
        fsio.renew_time(path)


class Observer:
    """Judges the recorders of one listing; the file server is asked for its time at most once."""

    def __init__(self) -> None:
        self._now: tuple[float, float] | None = None

    def is_lost(self, sessions: Sequence[Mapping[str, Any]], path: Path) -> bool:
        """Whether no process runs a recorder any more, although its status says so.

        Parameters
        ----------
        sessions : sequence of mapping
            Those of ``recorder.json``. Without one that has not ended nobody claims to run it,
            and its status was set so on purpose.
        path : Path
            The file itself, for its heartbeat.
        """
        going = [session for session in sessions if session.get("ended_at") is None]
        # The newest is the likeliest to be alive.
        return bool(going) and not any(self._is_alive(one, path) for one in reversed(going))

    def _is_alive(self, session: Mapping[str, Any], path: Path) -> bool:
        runs = runs_here(session)
        return self._has_heartbeat(path) if runs is None else runs

    def _has_heartbeat(self, path: Path) -> bool:
        try:
            beaten = fsio.modified_at(path)
        except OSError:
            return True  # gone: then it is not shown at all
        if self._now is None:
            try:
                self._now = fsio.server_time(path), LEASE_SECONDS
            except OSError:
                self._now = time.time(), LEASE_SECONDS + _CLOCK_DOUBT_SECONDS
        now, patience = self._now
        return now - beaten <= patience
