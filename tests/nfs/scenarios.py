"""All that is done on each mount."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import pool, rename_race, tracking, visibility
from .nodes import LOSING, Mount

__all__ = ["run"]


def run(
    mounts: Sequence[Mount],
    memory: Path,
    lost_replies: Callable[[], int],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Do everything on every mount; return the facts by mount and scenario, not judged yet."""
    _prepare()
    say("imported")
    found: dict[str, Any] = {}
    for mount in mounts:
        began, lost_before = time.monotonic(), lost_replies()
        found[mount.name] = _on(mount, memory, say)
        found[mount.name]["lost replies"] = lost_replies() - lost_before
        found[mount.name]["seconds"] = round(time.monotonic() - began, 1)
    return found


def _prepare() -> None:
    """Do once what every process would do for itself, slowly: this kernel's system calls are."""
    os.environ["QWF_PROVENANCE"] = "light"
    for name in ("pandas", "qwf.tracking.metrics", "qwf.tracking.artifacts"):
        importlib.import_module(name)


def _on(mount: Mount, memory: Path, say: Callable[[str], None]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "race": rename_race.race(mount, memory),
        "visibility": visibility.look(mount),
    }
    say(f"{mount.name}: renames raced, nodes looked at each other")
    # What needs a lease to end waits for it while other things are done.
    watched, sleeper = tracking.Watched(mount), pool.Sleeper(mount, memory)
    watched.start()
    sleeper.fall_asleep()
    found["drain"] = pool.drain(mount, memory)
    say(f"{mount.name}: pool drained")
    found["sleeper"] = sleeper.wake()
    say(f"{mount.name}: the sleeper woke up")
    alive = watched.status()
    watched.kill()
    # Where a reply is lost and nobody can lock, a node repeats a rename, which names of recorders
    # do not bear; those of pools do.
    if mount.name != LOSING:
        found["tracking"] = tracking.log_together(mount)
    found["watched"] = [alive, watched.status_after_lease()]
    say(f"{mount.name}: runs tracked")
    return found
