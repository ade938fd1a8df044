"""By what a process is known, and whether one that was noted down still runs on this host.

A process is known by host, machine, boot, pid namespace, pid and the moment it started, so that a
pid that is used again, or the same pid in another container, is not taken for it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..storage import fsio
from ..types import Json

__all__ = ["runs_here", "this_process"]


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


def runs_here(noted: Mapping[str, Any]) -> bool | None:
    """Whether a process that `this_process` has noted runs, as far as this host can tell.

    None if it cannot: it is on another host, in another container, or of another user where
    those are not shown. One that is stopped runs.
    """
    here = _this_host(os.getpid())
    same_machine = all(noted.get(key) == here[key] for key in ("host", "machine"))
    boot, pid = noted.get("boot"), noted.get("pid")
    if not (same_machine and boot and here["boot"] and isinstance(pid, int)):
        return None
    if boot != here["boot"]:
        return False if here["machine"] else None  # this machine was started again since
    if noted.get("pid_space") != here["pid_space"]:
        return None
    return _runs(pid, noted.get("pid_started"))


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
