"""The name of a token: everything that is needed to choose, claim and fence a task.

``<rank>-<time>-<id>.<epoch>.<attempts>.<result>`` and, in ``running``, ``.<origin>.<worker>``, all
of fixed width, so that the names of a directory sort into the order in which tasks are taken.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from ..errors import TaskValueError

__all__ = [
    "DONE",
    "FAILED",
    "NO_RESULT",
    "ORIGINS",
    "PART_DONE",
    "RUNNING",
    "STATUSES",
    "WAITING",
    "Token",
    "id_of",
    "is_token",
    "parse_token",
    "priority_of",
    "rank_of",
    "worker_of",
]

WAITING: Final = "waiting"
RUNNING: Final = "running"
PART_DONE: Final = "part_done"
DONE: Final = "done"
FAILED: Final = "failed"
STATUSES: Final = (WAITING, RUNNING, PART_DONE, DONE, FAILED)

# The status from which a running task was claimed, and its letter in the name.
ORIGINS: Final = {WAITING: "w", PART_DONE: "p"}
_STATUS_OF: Final = {letter: status for status, letter in ORIGINS.items()}

NO_RESULT: Final = "0" * 18

_GRAMMAR: Final = re.compile(
    r"([0-9a-f]{8})-([0-9a-f]{16})-([0-9a-f]{24})"
    r"\.([0-9a-f]{6})\.([0-9a-f]{2})\.([0-9a-f]{18})(?:\.([wp])\.([0-9a-f]{12}))?"
)
_IDS: Final = slice(26, 50)
_WORKERS: Final = slice(82, 94)

# Priorities are what a signed 32-bit number holds but its least; a greater one has a lesser rank.
_GREATEST: Final = 0x7FFF_FFFF
_UNSET: Final = "ffffffff"


class Token(NamedTuple):
    """A token's name, taken apart.

    ``rank`` and ``time`` order it, ``time`` (of insertion, in ns on the server's clock, as hex)
    tells two tasks of one id apart, ``epoch`` grows with every change of state, ``attempts``
    counts failures, ``result`` names the accepted result. ``origin`` and ``worker`` are empty
    unless it is running.
    """

    rank: str
    time: str
    id: str
    epoch: int
    attempts: int
    result: str
    origin: str = ""
    worker: str = ""

    @property
    def name(self) -> str:
        """The name of the entry."""
        name = (
            f"{self.rank}-{self.time}-{self.id}.{self.epoch:06x}.{self.attempts:02x}.{self.result}"
        )
        return f"{name}.{self.origin}.{self.worker}" if self.worker else name

    @property
    def status(self) -> str | None:
        """The status that a running task goes back to; None if it does not run."""
        return _STATUS_OF.get(self.origin)

    @property
    def has_result(self) -> bool:
        """Whether a result was accepted."""
        return self.result != NO_RESULT

    def claimed(self, origin: str, worker: str) -> Token:
        """Return the token of the task when a worker has claimed it from a status."""
        return Token(
            self.rank, self.time, self.id, self.epoch + 1, self.attempts, self.result,
            ORIGINS[origin], worker,
        )  # fmt: skip

    def released(
        self, *, attempts: int | None = None, result: str | None = None, taken: bool = False
    ) -> Token:
        """Return the token when nobody holds the task any more; `taken`: from its owner.

        The owner, and who takes it for dead, never give the same name: else the owner would
        believe that it was its own rename which has ended the attempt.
        """
        return Token(
            self.rank,
            self.time,
            self.id,
            self.epoch + 1 + taken,
            self.attempts if attempts is None else attempts,
            self.result if result is None else result,
        )


def parse_token(name: str) -> Token | None:
    """Take a name apart; None for a foreign one.

    Examples
    --------
    >>> token = Token("ffffffff", "0" * 16, "a" * 24, 1, 0, NO_RESULT)
    >>> parse_token(token.name) == token
    True
    >>> parse_token(".nfs000000001") is None
    True
    """
    found = _GRAMMAR.fullmatch(name)
    if found is None:
        return None
    rank, time, identity, epoch, attempts, result, origin, worker = found.groups("")
    return Token(rank, time, identity, int(epoch, 16), int(attempts, 16), result, origin, worker)


def is_token(name: str) -> bool:
    """Whether a name is a token's."""
    return _GRAMMAR.fullmatch(name) is not None


def id_of(name: str) -> str:
    """Return the task's id in the name of a token."""
    return name[_IDS]


def worker_of(name: str) -> str:
    """Return the owner's id in the name of a running token."""
    return name[_WORKERS]


def rank_of(priority: int | None) -> str:
    """Return the first part of a token's name; the less, the sooner the task is taken.

    Examples
    --------
    >>> rank_of(5) < rank_of(0) < rank_of(-1) < rank_of(None)
    True

    Raises
    ------
    TaskValueError
        If the priority is no whole number of 32 bits.
    """
    if priority is None:
        return _UNSET
    if type(priority) is not int or not -_GREATEST <= priority <= _GREATEST:
        raise TaskValueError(
            f"the priority {priority!r} is no whole number between -{_GREATEST} and {_GREATEST}. "
            "Nothing was changed."
        )
    return f"{_GREATEST - priority:08x}"


def priority_of(rank: str) -> int | None:
    """Return the priority that a rank stands for; None if none was set."""
    return None if rank == _UNSET else _GREATEST - int(rank, 16)
