"""Whether the process that runs a recorder is alive: by its pid here, by its heartbeat elsewhere.

A process is known by host, boot, pid namespace, pid and the moment it started, so that a pid that
is used again, or the same pid in another container, is not taken for it. Of a process on another
host only its heartbeat is seen: while it lives, it sets the modification time of ``recorder.json``
every few seconds, by the file server's clock.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ..storage import fsio
from ..types import Json

__all__ = ["HEARTBEAT_SECONDS", "LEASE_SECONDS", "Observer", "beat", "this_process"]

HEARTBEAT_SECONDS: Final = 20.0

# Six heartbeats: a node that is short of memory or network for a minute is not given up.
LEASE_SECONDS: Final = 120.0

# Where nothing can be written the server's clock cannot be asked, and this host's may be wrong.
_CLOCK_DOUBT_SECONDS: Final = 3600.0


def this_process() -> dict[str, Json]:
    """Return by what this process can be known: it stands in the session of a recorder."""
    return {**_this_host(os.getpid()), "pid": os.getpid(), "pid_started": _started(os.getpid())}


@functools.cache
def _this_host(_pid: int) -> dict[str, Json]:
    # Asked once per process: a child may be in another namespace.
    return {
        "host": socket.gethostname(),
        "machine": _line_of("/etc/machine-id"),
        "boot": _line_of("/proc/sys/kernel/random/boot_id"),
        "pid_space": _link_of("/proc/self/ns/pid"),
    }


def _line_of(path: str) -> str | None:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return fsio.read_bytes(Path(path)).decode().strip() or None
    return None


def _link_of(path: str) -> str | None:
    with contextlib.suppress(OSError):
        return os.readlink(path)
    return None


def _started(pid: int) -> str | None:
    """Return when a process of this host started, in ticks since the boot; None if unknown."""
    line = _line_of(f"/proc/{pid}/stat")
    # The second field is the program's name in parentheses, and may hold anything.
    fields = [] if line is None else line.rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else None


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
        here = _this_host(os.getpid())
        same_machine = all(session.get(key) == here[key] for key in ("host", "machine"))
        boot, pid = session.get("boot"), session.get("pid")
        if same_machine and boot and here["boot"] and isinstance(pid, int):
            if boot != here["boot"] and here["machine"]:
                return False  # this machine was started again since
            if boot == here["boot"] and session.get("pid_space") == here["pid_space"]:
                runs = _runs(pid, session.get("pid_started"))
                if runs is not None:
                    return runs
        return self._has_heartbeat(path)

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


def _runs(pid: int, started: object) -> bool | None:
    """Whether a process of this host runs: neither gone nor a zombie, and not a later one.

    None if there is one of which no more can be known.
    """
    line = _line_of(f"/proc/{pid}/stat")
    if line is None:
        # With the mount option hidepid, those of other users are not shown either.
        return None if _exists(pid) else False
    fields = line.rpartition(")")[2].split()
    return fields[0] not in ("Z", "X", "x") and started in (None, fields[19])


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return pid > 0  # others are groups of processes
