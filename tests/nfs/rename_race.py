"""Workers on two nodes claim files by renaming them, believing what they are told.

This is not how qwf claims. It shows what the mount does: that every file goes to one worker only,
and that where replies are lost some renames are denied that have happened.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

from .nodes import Mount

__all__ = ["race"]

FILES = 200
WORKERS_PER_NODE = 2


def race(mount: Mount, memory: Path) -> dict[str, Any]:
    """Let the workers claim all files, and return who was told to have which.

    Returns
    -------
    dict
        ``claimed``: names as often as a worker was told to have it; ``denied``: names that a
        worker was told are gone although it has them; ``moved``: what the server's disk shows.
    """
    below = f"race-{mount.name}"
    (mount.on_server / below / "running").mkdir(parents=True)
    (mount.on_server / below / "waiting").mkdir()
    names = [f"{number:03}" for number in range(FILES)]
    for name in names:
        (mount.on_server / below / "waiting" / name).touch()
    notes = memory / below
    notes.mkdir()
    workers = [
        node.process(_claim_all, mount.on(node) / below, f"{node.name}{number}", notes)
        for node in mount.nodes
        for number in range(WORKERS_PER_NODE)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    told = [json.loads(path.read_text()) for path in sorted(notes.iterdir())]
    moved = os.listdir(mount.on_server / below / "running")
    return {
        "files": names,
        "claimed": sorted(name for one in told for name in one["claimed"]),
        "denied": sorted(name for one in told for name in one["denied"]),
        "moved": sorted(name.partition(".")[0] for name in moved),
    }


def _claim_all(top: Path, worker: str, notes: Path) -> None:
    claimed, denied = [], []
    order = random.Random(worker)
    while names := os.listdir(top / "waiting"):
        order.shuffle(names)
        for name in names:
            target = top / "running" / f"{name}.{worker}"
            try:
                os.rename(top / "waiting" / name, target)
            except FileNotFoundError:
                if target.name in os.listdir(top / "running"):
                    denied.append(name)
            else:
                claimed.append(name)
    (notes / worker).write_text(json.dumps({"claimed": claimed, "denied": denied}))
