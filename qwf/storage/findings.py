"""What the check of a store has found, and what setting it right does: nothing is ever deleted."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from ..errors import CorruptRecordError, FormatVersionError
from . import fsio, layout, trees
from .codec import load_json
from .documents import Document, encode_document, is_as_written, read_document

__all__ = ["UPGRADE", "Finding", "Remedy", "Workbench", "newer"]

UPGRADE: Final = "upgrade qwf"

_CLAIM: Final = re.compile(r".+\.json\.\d+")


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

    def foreign(self, path: Path, problem: str = "it is not of qwf") -> Finding:
        """Return what says that an entry, or something about it, is not of qwf."""
        where = path.relative_to(self.root).as_posix()
        return Finding(where, problem, "it is left alone", foreign=True)

    def leftover(self, path: Path, *, claims: bool = True) -> Iterator[Finding]:
        """Tell of an entry that an unfinished write left, if it is old.

        Parameters
        ----------
        path : Path
        claims : bool
            Whether ``<name>.json.<number>`` is a claim on a revision there.
        """
        unfinished = fsio.is_temporary(path.name) or (claims and _CLAIM.fullmatch(path.name))
        if unfinished and self.is_old(path):
            yield self.finding(path, "an unfinished write left it", self.parking(path))

    # --- documents ---

    def document(
        self, path: Path, kind: str, version: int, fresh: Callable[[], Document]
    ) -> Iterator[Finding]:
        """Look at a document that can be written anew without losing what a user has saved."""
        try:
            read_document(path, kind=kind, version=version)
            yield from self._as_written(path)
        except FileNotFoundError:
            yield self.finding(path, "it is missing", self._rewriting(path, fresh))
        except CorruptRecordError as error:
            yield self.finding(path, error.reason, self._rewriting(path, fresh))

    def _rewriting(self, path: Path, fresh: Callable[[], Document]) -> Remedy:
        def apply() -> str:
            kept = f"; the old one is {self.copy_aside(path)}" if path.exists() else ""
            fsio.write_atomic(path, encode_document(fresh()))
            return f"it was written anew{kept}"

        return Remedy("writes it anew", apply)

    def _as_written(self, path: Path) -> Iterator[Finding]:
        data = fsio.read_bytes(path)
        if is_as_written(data):
            return

        def apply() -> str:
            fsio.write_atomic(path, encode_document(load_json(data)))  # type: ignore[arg-type]  # parsed before
            return "it was accepted as it is"

        problem = "it does not match its checksum: edited by hand, or damaged"
        yield self.finding(path, problem, Remedy("accepts it as it is", apply))

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
