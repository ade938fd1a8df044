"""What one node sees of what the other has just done, in quick succession.

Version 3 shows changes of a directory by its time alone. Two within one tick of the server's clock
look like one, so that a listing taken between them stays as it is until the directory changes
again, be it for hours. A node that touches the directory first gets a new one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qwf.storage import fsio

from .nodes import FORK, Mount

__all__ = ["ALWAYS", "QUESTIONS", "TIMES", "look"]

TIMES = 20

_PATIENCE = 30.0

QUESTIONS = {
    "listing": "a new name, by listing",
    "touched": "... after touching the directory",
    "asked": "a new name that was asked for before, by stat",
    "asked, listed": "... after listing",
    "asked, touched": "... after touching the directory",
    "time": "a new time of a file, by stat",
    "time, opened": "... by opening it",
    "content": "a new content, by reading",
}

# What qwf relies on.
ALWAYS = ("touched", "asked, touched", "time, opened", "content")


def look(mount: Mount) -> dict[str, int]:
    """Return in how many of `TIMES` cases node B saw what node A had done before B looked."""
    here, there = FORK.Pipe()
    first, second = mount.nodes
    below = f"visibility-{mount.name}"
    (mount.on_server / below).mkdir()

    def act() -> None:
        directory = mount.on(first) / below
        for number in range(TIMES):
            there.recv()
            fsio.write_atomic(directory / str(number), b"first")
            there.send("done")
            there.recv()
            os.utime(directory / str(number), (number, number))
            there.send("done")
            there.recv()
            fsio.write_atomic(directory / str(number), b"other")
            there.send("done")

    def order() -> None:
        here.send("go on")
        if not here.poll(_PATIENCE):
            raise TimeoutError("node A does nothing")
        here.recv()

    def observe() -> dict[str, int]:
        seen = dict.fromkeys(QUESTIONS, 0)
        for number in range(TIMES):
            for question, answer in _observe(mount.on(second) / below, number, order).items():
                seen[question] += answer
        return seen

    actor = first.process(act)
    actor.start()
    seen: dict[str, int] = second.ask(observe)
    actor.join()
    return seen


def _observe(directory: Path, number: int, order: Callable[[], Any]) -> dict[str, bool]:
    path, answers = directory / str(number), {}
    os.listdir(directory)
    path.exists()
    order()  # the file is created
    answers["asked"] = path.exists()
    answers["listing"] = path.name in os.listdir(directory)
    answers["asked, listed"] = path.exists()
    os.utime(directory)
    answers["touched"] = path.name in os.listdir(directory)
    answers["asked, touched"] = path.exists()
    path.stat()
    order()  # its time is set
    answers["time"] = path.stat().st_mtime == number
    answers["time, opened"] = fsio.modified_at(path) == number
    fsio.read_bytes(path)
    order()  # it is replaced
    answers["content"] = fsio.read_bytes(path) == b"other"
    return answers
