"""One JSON file that several processes may change: read whole, changed by compare-and-swap.

The rule of a change from revision N to N+1: link a complete private file to ``<name>.<N+1>`` (this
never replaces, so one writer gets it), look that the file is still at N, and rename the link over
the file. While the link exists nobody can pass revision N, so no change is lost even where locks
exclude nobody; the lock only keeps writers from competing. A link left by a crash is published or
dropped by the next writer.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

from ..errors import CorruptRecordError, FormatVersionError
from . import fsio, lock
from .codec import dump_json, load_json
from .reading import read_whole

__all__ = [
    "Document",
    "encode_document",
    "is_as_written",
    "new_document",
    "read_document",
    "update_document",
]

Document: TypeAlias = dict[str, Any]

_CHECKSUM: Final = b',\n "crc32": "'
_END: Final = b"\n}\n"


def new_document(kind: str, version: int, **fields: Any) -> Document:
    """Return the first revision of a document."""
    return {"format": kind, "version": version, "revision": 1, **fields}


def encode_document(document: Document) -> bytes:
    """Return the bytes of a document: indented JSON, for people with `cat`, and its checksum."""
    body = dump_json({key: value for key, value in document.items() if key != "crc32"}, indent=1)
    return body[: -len(_END)] + b'%s%08x"%s' % (_CHECKSUM, zlib.crc32(body), _END)


def is_as_written(data: bytes) -> bool:
    """Whether the bytes of a document are those that `encode_document` made.

    Reading does not ask this: a document that somebody has edited by hand is still read. The
    check of a store does.
    """
    body, mark, rest = data.rpartition(_CHECKSUM)
    return bool(mark) and rest == b'%08x"%s' % (zlib.crc32(body + _END), _END)


def read_document(path: Path, *, kind: str, version: int) -> Document:
    """Read a document and check that it is one that this release understands.

    Raises
    ------
    FileNotFoundError
        If it is not there.
    CorruptRecordError
        If it is not a document of this kind.
    FormatVersionError
        If a newer qwf wrote it.

    Notes
    -----
    *Readers* take no lock and see one revision, never a mixture.
    """
    return parse_document(read_whole(path), path, kind=kind, version=version)


def parse_document(data: bytes, path: Path, *, kind: str, version: int) -> Document:
    """Parse and check the bytes of a document that were read from `path`."""
    try:
        document: Any = load_json(data)
    except ValueError as error:
        reason = "it is empty" if not data.strip() else f"it is not whole JSON ({error})"
        raise CorruptRecordError(path, reason) from error
    if not isinstance(document, dict) or document.get("format") != kind:
        found = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise CorruptRecordError(path, f"expected format {kind!r} and found {found!r}")
    for number in ("version", "revision"):
        if not isinstance(document.get(number), int):
            raise CorruptRecordError(path, f"it has no {number} number")
    if not 1 <= document["version"] <= version:
        raise FormatVersionError(path, found=document["version"], readable=version)
    return document


def update_document(
    path: Path,
    change: Callable[[Document], Document],
    *,
    kind: str,
    version: int,
    seconds: float = lock.LOCK_SECONDS,
    announce: Callable[[Document], None] | None = None,
) -> Document:
    """Change a document; concurrent changes are applied one after the other, none is lost.

    Parameters
    ----------
    path : Path
        An existing document.
    change : callable
        Gets the present document (its own copy) and returns the new one; it may be called again
        with a newer revision, so it must have no other effect. Raising leaves all as it was.
    seconds : float
        How long to compete with other writers.
    announce : callable, optional
        Gets the present document before anybody can see that its next revision is coming; so
        whoever relies on the announcement misses no change.

    Returns
    -------
    dict
        The document as committed; durable.

    Notes
    -----
    *Readers* see the old or the new revision. *A crash* leaves the old revision, or the new one
    with or without a claim file ``<name>.<revision>``, which the next change settles.
    """
    patience = lock.Patience(path, seconds)
    with lock.hold(path.parent / f".{path.name}.lock", seconds=seconds):
        while True:
            present = read_document(path, kind=kind, version=version)
            revision = present["revision"]
            changed = {**change(present), "revision": revision + 1}
            if announce is not None:
                announce(present)
            if _commit(path, changed, kind=kind, version=version):
                return changed
            patience.wait()


def _commit(path: Path, changed: Document, *, kind: str, version: int) -> bool:
    """Publish `changed` if the document is still at the revision before it."""
    claim = path.with_name(f"{path.name}.{changed['revision']}")
    temporary = fsio.write_temporary(path, encode_document(changed))
    try:
        if not fsio.create_exclusive(temporary, claim, durable=False):
            _settle(path, claim, kind=kind, version=version)
            return False
        present = read_document(path, kind=kind, version=version)
        if present["revision"] == changed["revision"] - 1:
            _publish(claim, path, changed, kind=kind, version=version)
            return True
        if fsio.is_same_file(temporary, claim):
            # Someone else made this revision, published it and freed its name before we took it.
            fsio.remove_file(claim)
            return False
        # Somebody took us for dead. A claim that was dropped keeps a second name; one that was
        # published has it only until the next revision, and is in effect.
        return fsio.is_same_file(temporary, path) or fsio.count_names(temporary) == 1
    finally:
        fsio.drop_private(temporary)


def _publish(claim: Path, path: Path, changed: Document, *, kind: str, version: int) -> None:
    try:
        fsio.replace_with(claim, path)
    except FileNotFoundError:
        # Somebody who took us for dead has published our claim, or the reply was lost (NFS v3),
        # or the whole directory has gone to the trash: then this raises.
        present = read_document(path, kind=kind, version=version)
        if present["revision"] < changed["revision"]:
            raise


def _settle(path: Path, claim: Path, *, kind: str, version: int) -> None:
    """Publish the claim of an owner that seems dead; leave one that may be alive."""
    try:
        if not lock.is_abandoned(claim):
            return
        present = read_document(path, kind=kind, version=version)
        if claim.name == f"{path.name}.{present['revision'] + 1}":
            fsio.replace_with(claim, path)
        else:
            fsio.make_private(claim)  # not removed: its owner, if alive, counts its names
    except FileNotFoundError:
        return
