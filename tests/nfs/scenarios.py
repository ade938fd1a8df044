"""All that is done on each mount."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import rename_race, visibility
from .nodes import Mount

__all__ = ["run"]


def run(
    mounts: Sequence[Mount],
    memory: Path,
    lost_replies: Callable[[], dict[str, int]],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Do everything on every mount; return the facts, unjudged, by mount and scenario."""
    found: dict[str, Any] = {}
    for mount in mounts:
        began, before = time.monotonic(), lost_replies()
        of_mount: dict[str, Any] = {}
        scenarios: dict[str, Callable[[], Any]] = {
            "race": lambda mount=mount: rename_race.race(mount, memory),
            "visibility": lambda mount=mount: visibility.look(mount),
        }
        for name, scenario in scenarios.items():
            of_mount[name] = scenario()
            say(f"{mount.name}: {name} done")
        of_mount["lost replies"] = lost_replies()["lost"] - before["lost"]
        of_mount["seconds"] = round(time.monotonic() - began, 1)
        found[mount.name] = of_mount
    return found
