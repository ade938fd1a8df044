"""``qwf doctor``: whether a store and a task pool may live in a directory."""

from __future__ import annotations

import signal
import sys
from argparse import Namespace
from pathlib import Path
from types import FrameType

from ..storage.probe.examine import examine
from .printing import note, print_facts, print_json, print_lines

__all__ = ["run_doctor"]


def run_doctor(options: Namespace) -> int:
    """Print what was found and the verdict; return 0 if both may live there, else 1."""
    # A batch system ends a job by SIGTERM, and what was made is to be removed then too.
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        if options.meet:
            note(f"Trying out {options.path}, then waiting up to {options.wait:g} s for another.")
        meet_seconds = options.wait if options.meet else None
        report = examine(Path(options.path).expanduser(), meet_seconds=meet_seconds)
    finally:
        signal.signal(signal.SIGTERM, before)
    if options.json:
        print_json(report.to_json())
    else:
        print_facts({f"{one.grade.value:>7}  {one.name}": one.sentence for one in report.findings})
        print_lines(["", report.verdict])
    return 0 if report.may_live_here else 1


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
