"""The statuses of a recorder, and which may follow which."""

from __future__ import annotations

from typing import Final

from ..errors import RecorderStateError

__all__ = [
    "BROKEN",
    "FAILED",
    "FINISHED",
    "LOST",
    "PAUSED",
    "RUNNING",
    "SCHEDULED",
    "STATUSES",
    "check_transition",
]

SCHEDULED: Final = "SCHEDULED"
RUNNING: Final = "RUNNING"
PAUSED: Final = "PAUSED"
FINISHED: Final = "FINISHED"
FAILED: Final = "FAILED"

# Those that are written.
STATUSES: Final = (SCHEDULED, RUNNING, PAUSED, FINISHED, FAILED)

# Shown only: the process of a running recorder has died; the file of a recorder is damaged.
LOST: Final = "LOST"
BROKEN: Final = "BROKEN"

# What may come next. What has ended may be called by another end: a training may be found to have
# failed afterwards, and one that was given up may come to its end after all. But only what runs
# can be paused or put off.
_NEXT: Final = {
    SCHEDULED: {RUNNING, FINISHED, FAILED, SCHEDULED},
    RUNNING: {RUNNING, PAUSED, SCHEDULED, FINISHED, FAILED},
    PAUSED: {RUNNING, PAUSED, FINISHED, FAILED},
    FINISHED: {RUNNING, FINISHED, FAILED},
    FAILED: {RUNNING, FINISHED, FAILED},
}


def check_transition(recorder: object, present: str, wanted: str) -> None:
    """Refuse a change of status that cannot be.

    Raises
    ------
    RecorderStateError
        It names both, and what would be possible.
    """
    possible = _NEXT.get(present, {RUNNING})
    if wanted not in possible:
        others = ", ".join(sorted(possible - {present}))
        raise RecorderStateError(
            f"recorder {recorder} is {present} and cannot become {wanted}; it can become "
            f"{others}. Nothing was changed. Resume it first to go on with it."
        )
