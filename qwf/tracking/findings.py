"""What the check of a store has found, and what setting it right does: nothing is ever deleted."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from ..errors import FormatVersionError
from ..storage import fsio, layout, trees

__all__ = ["UPGRADE", "Finding", "Remedy", "Workbench", "newer"]

UPGRADE: Final = "upgrade qwf"


@dataclass(frozen=True)
class Finding:
    """One thing in a store that is wrong, or not of qwf.

    Attributes
    ----------
    path : str
        Where, below the store.
    problem : str
    action : str
        What was done about it, or what can be done.
    repaired : bool
        Whether nothing of it is left.
    foreign : bool
        Whether it is only something that qwf has not put there; then it is left alone.
    """

    path: str
    problem: str
    action: str
    repaired: bool = False
    foreign: bool = False


@dataclass(frozen=True)
class Remedy:
    """What `--repair` would do, and the function that does it and tells what it did."""

    offer: str
    apply: Callable[[], str]


class Workbench:
    """The store that is checked, and how findings are made and things are set aside in it.

    Parameters
    ----------
    root : Path
    repair : bool
        Whether remedies are applied.
    older_than_seconds : float
        From which age on what an unfinished write left belongs to nobody.
    """

    def __init__(self, root: Path, *, repair: bool, older_than_seconds: float) -> None:
        self.root = root
        self.repair = repair
        self.now = _server_time(root)
        self._older_than = older_than_seconds

    def is_past(self, moment: float) -> bool:
        """Whether a moment on the file server's clock is so long ago that its writer is gone."""
        return self.now - moment >= self._older_than

    def is_old(self, path: Path) -> bool:
        """Whether an entry was changed last so long ago; a vanished one is not."""
        try:
            return self.is_past(path.lstat().st_mtime)
        except FileNotFoundError:
            return False

    def finding(self, path: Path, problem: str, remedy: Remedy | str) -> Finding:
        """Return what was found at a path, after applying the remedy if that is wanted."""
        where = path.relative_to(self.root).as_posix()
        if isinstance(remedy, str):
            return Finding(where, problem, remedy)
        if self.repair:
            return Finding(where, problem, remedy.apply(), repaired=True)
        return Finding(where, problem, f"--repair {remedy.offer}")

    def foreign(self, path: Path) -> Finding:
        """Return what says that an entry is not of qwf."""
        where = path.relative_to(self.root).as_posix()
        return Finding(where, "it is not of qwf", "it is left alone", foreign=True)

    # --- quarantine ---

    def parking(self, path: Path, what: str = "it") -> Remedy:
        """Return the remedy that moves an entry to the quarantine."""
        return Remedy(f"moves {what} to {layout.QUARANTINE}/", partial(self.park, path))

    def park(self, path: Path) -> str:
        """Move an entry to the quarantine and tell where it is."""
        name = self._quarantine_name(path)
        try:
            fsio.move(path, self.root / layout.QUARANTINE / name)
        except FileNotFoundError:
            return "it has gone meanwhile"
        return f"it was moved to {layout.QUARANTINE}/{name}"

    def copy_aside(self, path: Path) -> str:
        """Copy a file to the quarantine, so that at every moment there is one of them."""
        target = self.root / layout.QUARANTINE / self._quarantine_name(path)
        copied, _, _ = trees.copy_whole(path, target)
        fsio.replace_with(copied, target)
        return f"{layout.QUARANTINE}/{target.name}"

    def _quarantine_name(self, path: Path) -> str:
        fsio.make_directories(self.root / layout.QUARANTINE)
        return layout.trash_name(path.relative_to(self.root).as_posix().replace("/", "@"))


def newer(error: FormatVersionError) -> str:
    """Return the problem of a file that a newer qwf wrote."""
    return f"it has format version {error.found}, newer than this qwf reads ({error.readable})"


def _server_time(root: Path) -> float:
    try:
        return fsio.server_time(root / layout.STORE_FILE)
    except OSError:  # a store that may only be read: nobody writes to it either
        return time.time()
