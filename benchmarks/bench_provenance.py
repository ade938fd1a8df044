"""What capturing the surroundings costs the start of a run, inside and outside a repository.

The floor is one ``git rev-parse HEAD``, for which a program has to wait; a run begins its capture
and goes on. Inside, the repository has 300 files, two of them changed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from measure import print_machine, print_results, read_options, say, take_turns, timed, workshop

from qwf.tracking import provenance
from qwf.tracking.provenance import SourceCapture, environment

FILES = 300
WORK = 0.02  # seconds of pure Python, as the first steps of a run are


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(
        ["git", "-C", str(folder), "-c", "user.name=A", "-c", "user.email=a@b", *arguments],
        capture_output=True,
        check=True,
    )


def new_repository(folder: Path) -> Path:
    folder.mkdir()
    for number in range(FILES):
        (folder / f"factor_{number}.py").write_text(f"window = {number}\n" * 50)
    git(folder, "init")
    git(folder, "add", ".")
    git(folder, "commit", "--message", "one")
    (folder / "factor_1.py").write_text("window = 5\n" * 50)
    (folder / "new.py").write_text("window = 6\n")
    return folder


def begin_in(folder: Path, *, wait: bool) -> Callable[[], float]:
    """Return a contestant that begins a capture; what git does then is charged if it waits."""

    def contestant() -> float:
        begin = time.perf_counter()
        capture = SourceCapture.begin([folder])
        begun = time.perf_counter()
        if capture is not None:
            facts = capture.result(None)
            assert facts is not None
            assert "error" not in facts, facts
        return (time.perf_counter() if wait else begun) - begin

    return contestant


def work_beside(folder: Path, loops: int) -> Callable[[], float]:
    """Return a contestant that computes, while git answers if the folder is in a repository."""

    def contestant() -> float:
        capture = SourceCapture.begin([folder])
        begin = time.perf_counter()
        spin(loops)
        seconds = time.perf_counter() - begin
        if capture is not None:
            capture.result(None)
        return seconds

    return contestant


def spin(loops: int) -> None:
    for _ in range(loops):
        pass


def loops_of(seconds: float) -> int:
    begin = time.perf_counter()
    spin(1_000_000)
    return round(1_000_000 * seconds / (time.perf_counter() - begin))


def list_first() -> None:
    provenance._packages.cache_clear()
    environment()


def list_with_importlib() -> None:
    {found.metadata["Name"]: found.version for found in metadata.distributions()}


def main() -> None:
    options = read_options(__doc__)
    repeats = 10 if options.quick else 50
    with workshop() as folder:
        outside = folder / "outside"
        outside.mkdir()
        print_machine(folder, options)
        try:
            inside = new_repository(folder / "inside")
        except FileNotFoundError:
            say("git is not installed; what it answers is not measured")
        else:
            head = ["git", "-C", str(inside), "rev-parse", "HEAD"]
            contestants = {
                "floor: git rev-parse HEAD": timed(
                    lambda: subprocess.run(head, capture_output=True, check=True)
                ),
                "qwf: begin, inside": begin_in(inside, wait=False),
                "begin, outside": begin_in(outside, wait=False),
                "begin and wait for all, inside": begin_in(inside, wait=True),
            }
            print_results("the user's code", take_turns(contestants, repeats), options)
            loops = loops_of(WORK)
            contestants = {
                "floor: 20 ms of Python": work_beside(outside, loops),
                "the same while git is asked": work_beside(inside, loops),
            }
            print_results("work that goes on", take_turns(contestants, repeats), options)
        contestants = {
            "floor: os.listdir of sys.path": timed(
                lambda: [os.listdir(entry) for entry in sys.path if os.path.isdir(entry)]
            ),
            "qwf: environment, first": timed(list_first),
            "environment, later": timed(environment),
            "importlib.metadata": timed(list_with_importlib),
        }
        print_results("installed packages", take_turns(contestants, repeats), options)


if __name__ == "__main__":
    main()
