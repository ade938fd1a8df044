"""Which form an object takes on disk, and whether the bytes that come back are those that went in.

Frames and series become parquet, plain data JSON, everything else a pickle; a file of the user's is
kept as it is.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..errors import ArtifactCorruptError, FormatVersionError, LoadObjectError, SaveObjectError
from . import fsio
from .codec import NotPlainError, decode, dump_json, encode, load_json
from .pickles import dump_pickle, load_pickle

__all__ = [
    "FILE",
    "JSON",
    "PARQUET",
    "PICKLE",
    "Digest",
    "dump_object",
    "load_object",
    "measure",
    "measure_file",
]

PARQUET: Final = "parquet"
JSON: Final = "json"
PICKLE: Final = "pickle"
FILE: Final = "file"  # the user's own bytes


@dataclass(frozen=True)
class Digest:
    """What the bytes of an artifact are known by: size in bytes and sha256 in hex."""

    size: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.size} bytes with sha256 {self.sha256[:12]}"


def measure(data: bytes) -> Digest:
    """Return the digest of some bytes."""
    return Digest(len(data), hashlib.sha256(data).hexdigest())


def measure_file(path: Path) -> Digest:
    """Return the digest of a file, which is never whole in memory."""
    digest, size = hashlib.sha256(), 0
    for chunk in fsio.read_chunks(path):
        digest.update(chunk)
        size += len(chunk)
    return Digest(size, digest.hexdigest())


def dump_object(name: str, obj: Any) -> tuple[str, bytes]:
    """Return the kind and the bytes that an object is saved as.

    Raises
    ------
    SaveObjectError
        If the object can be none of the three forms (it cannot be pickled).
    """
    data = _as_parquet(obj)
    if data is not None:
        return PARQUET, data
    try:
        return JSON, dump_json(encode(obj))
    except NotPlainError:
        pass
    try:
        return PICKLE, dump_pickle(obj)
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
        raise SaveObjectError(name, obj, error) from error


def _as_parquet(obj: Any) -> bytes | None:
    pandas = sys.modules.get("pandas")  # without it, nothing can be a frame
    if pandas is None or not isinstance(obj, (pandas.DataFrame, pandas.Series)):
        return None
    from .frames import encode_frame

    try:
        return encode_frame(obj)
    except Exception:  # noqa: BLE001
        # Mostly NotTabularError. But pandas lets users and other packages bring types, offsets and
        # time zones of their own, which may raise anything when looked into, and an object that
        # can be pickled must never be lost because it has a better form as well.
        return None


def load_object(
    path: Path,
    accepted: Mapping[Digest, str],
    *,
    policy: str,
    allow: Sequence[str],
    unpickler: Callable[[io.BytesIO], Any] | None = None,
) -> Any:
    """Read an artifact, check its bytes and return the object.

    Parameters
    ----------
    path : Path
        The file.
    accepted : mapping of Digest to str
        The digests that the bytes may have, the one expected first, each with the kind that such
        bytes are of; ``file`` is read by its suffix, and else as a pickle, as Qlib does.
    policy, allow
        See `qwf.storage.pickles.load_pickle`.
    unpickler : callable, optional
        ``unpickler(file).load()`` makes the object, whatever form it has on disk.

    Raises
    ------
    FileNotFoundError
        If the file is not there.
    ArtifactCorruptError
        If the bytes have none of the digests.
    LoadObjectError
        If they cannot be read as this kind.
    """
    data = fsio.read_bytes(path)
    found = measure(data)
    if found not in accepted:
        raise ArtifactCorruptError(path, expected=str(next(iter(accepted))), found=str(found))
    kind = accepted[found]
    if kind == FILE:
        kind = _SUFFIXES.get(path.suffix.lower(), PICKLE)
    try:
        if unpickler is not None and kind == PICKLE:
            return unpickler(io.BytesIO(data)).load()
        obj = _parse(data, kind, path, policy=policy, allow=allow)
        if unpickler is not None:
            return unpickler(io.BytesIO(dump_pickle(obj))).load()
    except (LoadObjectError, FormatVersionError):
        raise
    except Exception as error:
        raise LoadObjectError(
            f"{path} ({found}) cannot be read as {kind}: {type(error).__name__}: {error}. "
            "It was left in place. A missing module has to be installed, or, if it is a file that "
            "a task named, loaded first with qwf.get_module_by_module_path(file). A file of "
            "another form can be fetched with download_artifact."
        ) from error
    return obj


_FOREIGN_JSON: Final = "foreign json"
_SUFFIXES: Final = {".parquet": PARQUET, ".json": _FOREIGN_JSON}


def _parse(data: bytes, kind: str, path: Path, *, policy: str, allow: Sequence[str]) -> Any:
    if kind == PARQUET:
        from .frames import decode_frame

        return decode_frame(data, source=path)
    if kind == JSON:
        return decode(load_json(data))
    if kind == _FOREIGN_JSON:  # the user's own, where a key may begin with "$"
        return load_json(data)
    if kind == PICKLE:
        return load_pickle(data, policy=policy, allow=allow, source=path)
    raise LoadObjectError(f"{path} is of kind {kind!r}, which this qwf does not know. Upgrade qwf.")
