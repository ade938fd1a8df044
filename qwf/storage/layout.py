"""Every file and directory name of a store, and how names given by users become file names."""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import unicodedata
from datetime import datetime, timezone
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from ..errors import ConfigError, NotAStoreError, UnsafeNameError

__all__ = [
    "ARTIFACTS",
    "CHANGES",
    "EXPERIMENTS",
    "EXPERIMENT_FILE",
    "INDEX",
    "LOCK_FILE",
    "PROVENANCE",
    "QUARANTINE",
    "RECORDERS",
    "RECORDER_FILE",
    "STORE_FILE",
    "TASKS",
    "TRASH",
    "artifact_path",
    "change_mark",
    "decode_name",
    "encode_name",
    "is_cut",
    "is_metrics_file",
    "metrics_file",
    "new_recorder_id",
    "new_trash_token",
    "parse_change_mark",
    "parse_trash_name",
    "parse_uri",
    "split_artifact_name",
    "trash_name",
]

STORE_FILE: Final = "qwf.json"
EXPERIMENTS: Final = "experiments"
EXPERIMENT_FILE: Final = "experiment.json"
RECORDERS: Final = "recorders"
RECORDER_FILE: Final = "recorder.json"
ARTIFACTS: Final = "artifacts"
LOCK_FILE: Final = ".lock"
TRASH: Final = "trash"
QUARANTINE: Final = "quarantine"
CHANGES: Final = "changes"
INDEX: Final = "index"
TASKS: Final = "tasks"
PROVENANCE: Final = "provenance"

_METRICS_PREFIX: Final = "metrics."
_METRICS_SUFFIX: Final = ".journal"

# Linux, macOS and NFS allow 255 bytes; the rest is room for suffixes of temporary files.
_MAX_NAME_BYTES: Final = 200
_MAX_TRASH_BYTES: Final = 150
_TRASH_END_BYTES: Final = 40
_MOMENT: Final = "%Y%m%d-%H%M%S-%f"
_DIGEST_MARK: Final = "~"
_UNESCAPED: Final = frozenset("-_. ()+=@,")


def parse_uri(uri: str | os.PathLike[str], *, base: str | os.PathLike[str] = "") -> Path:
    """Return the absolute path that a store's uri means now.

    Parameters
    ----------
    uri : str or path-like
        A path, absolute or relative to `base`, with ``~`` for the home directory; or a ``file:``
        URI.
    base : str or path-like, optional
        The directory that a relative uri starts from; default: the working directory.

    Raises
    ------
    ConfigError
        If the scheme is not ``file``, or the uri is empty.
    NotAStoreError
        If there is something at that path and it is no directory.

    Examples
    --------
    >>> parse_uri("file:///data/my%20store").as_posix()
    '/data/my store'
    """
    text = os.fspath(uri)
    if not text:
        raise ConfigError("the uri of a store must not be empty.")
    scheme, separator, rest = text.partition(":")
    if separator and scheme.lower() == "file":
        path = Path(unquote(urlsplit(text).path if rest.startswith("//") else rest))
    elif separator and rest.startswith("//"):
        raise ConfigError(
            f"{text!r} cannot be a store: qwf keeps its store in a directory, expected a path or a "
            f"file: URI and found the scheme {scheme!r}."
        )
    else:
        path = Path(text).expanduser()
    absolute = Path(os.path.abspath(os.path.join(base, path)))
    for place in (absolute, *absolute.parents):
        if not place.exists():
            continue
        # Asked in this order: another process may create the store between the two questions.
        if not place.is_dir():
            raise NotAStoreError(
                f"{absolute} cannot be a store: {place} is a file and not a directory. "
                "Nothing was changed. Give another uri to qwf.init."
            )
        break
    return absolute


def encode_name(name: object, what: str = "an experiment") -> str:
    """Return the file name that stands for a name given by a user.

    Letters and digits of any script and a few signs stand for themselves, every other character
    is written as ``%XX`` per UTF-8 byte, so that the name can be read back from a listing and
    can never be ``..``, hidden, or leave its directory. Very long names are cut and end in
    ``~`` and a digest.

    Raises
    ------
    UnsafeNameError
        If the name is empty, no string, or not encodable as UTF-8.

    Examples
    --------
    >>> encode_name("rolling/沪深300 v1.5")
    'rolling%2F沪深300 v1.5'
    >>> encode_name("..")
    '%2E%2E'
    """
    if not isinstance(name, str) or not name:
        raise UnsafeNameError(what, name, "a non-empty string is expected")
    try:
        encoded = "".join(_escape(character) for character in name)
    except UnicodeEncodeError as error:
        raise UnsafeNameError(what, name, "it is not valid Unicode") from error
    # A leading dot hides the entry or climbs out; a final dot or blank is lost on some systems.
    if encoded[0] in ". ":
        encoded = f"%{ord(encoded[0]):02X}{encoded[1:]}"
    if encoded[-1] in ". " and len(encoded) > 1:
        encoded = f"{encoded[:-1]}%{ord(encoded[-1]):02X}"
    return _shortened(encoded, name)


def _escape(character: str) -> str:
    # Characters with several Unicode forms are escaped: some filesystems store another form.
    plain = character.isalnum() and unicodedata.is_normalized("NFKC", character)
    if plain or character in _UNESCAPED:
        return character
    return "".join(f"%{byte:02X}" for byte in character.encode())


def _shortened(encoded: str, name: str) -> str:
    if len(encoded.encode()) <= _MAX_NAME_BYTES:
        return encoded
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    kept = encoded.encode()[: _MAX_NAME_BYTES - 20].decode(errors="ignore").rpartition("%")
    head = kept[0] if kept[1] and len(kept[2]) < 2 else "".join(kept)
    return f"{head}{_DIGEST_MARK}{digest}"


def decode_name(encoded: str) -> str:
    """Return the name that an encoded name stands for (a cut one stays cut)."""
    return unquote(encoded)


def split_artifact_name(name: object) -> tuple[str, ...]:
    """Return the parts of an artifact's name, which may contain ``/``.

    Raises
    ------
    UnsafeNameError
        If the name is empty or absolute, or a part is empty, ``.`` or ``..``.
    """
    if not isinstance(name, str) or not name:
        raise UnsafeNameError("an artifact", name, "a non-empty string is expected")
    parts = tuple(name.split("/"))
    for part in parts:
        if part in ("", ".", ".."):
            reason = "it must be relative, without empty parts, '.' or '..'"
            raise UnsafeNameError("an artifact", name, reason)
    return parts


def artifact_path(root: Path, name: str) -> Path:
    """Return the file below `root` that holds the artifact `name`."""
    return root.joinpath(*(encode_name(part, "an artifact") for part in split_artifact_name(name)))


def metrics_file(writer: str) -> str:
    """Return the name of the metric journal of one writer."""
    return f"{_METRICS_PREFIX}{writer}{_METRICS_SUFFIX}"


def is_metrics_file(name: str) -> bool:
    """Whether a name in a recorder's directory is a metric journal."""
    return name.startswith(_METRICS_PREFIX) and name.endswith(_METRICS_SUFFIX)


def change_mark(recorder_id: str, revision: int) -> str:
    """Return the name by which a change of an ended recorder to a revision is announced."""
    return f"{recorder_id}@{revision}"


def parse_change_mark(name: str) -> tuple[str, int] | None:
    """Return recorder and revision that a mark announces; None for a foreign name.

    Examples
    --------
    >>> parse_change_mark(change_mark("20200101-000000-000000-0123abcd", 7))
    ('20200101-000000-000000-0123abcd', 7)
    """
    recorder_id, at, revision = name.rpartition("@")
    return (recorder_id, int(revision)) if at and revision.isdecimal() else None


_id_lock = threading.Lock()
_last_microsecond = 0


def _forget_lock_of_parent() -> None:
    global _id_lock
    _id_lock = threading.Lock()


# A thread of the parent may hold the lock at the moment of the fork, and never release it here.
os.register_at_fork(after_in_child=_forget_lock_of_parent)


def new_recorder_id() -> str:
    """Return a fresh id that begins with the time: ``YYYYMMDD-HHMMSS-ffffff-<8 hex>`` in UTC.

    Ids made by one process sort in the order in which they were made.
    """
    global _last_microsecond
    with _id_lock:
        now = int(datetime.now(timezone.utc).timestamp() * 1_000_000)
        _last_microsecond = max(now, _last_microsecond + 1)
        moment = datetime.fromtimestamp(_last_microsecond / 1_000_000, timezone.utc)
    return f"{moment:{_MOMENT}}-{secrets.token_hex(4)}"


def new_trash_token() -> str:
    """Return what the names of all entries that go to the trash together end in."""
    return f"{datetime.now(timezone.utc):{_MOMENT}}-{secrets.token_hex(4)}"


def trash_name(entry: str, token: str | None = None) -> str:
    """Return a free name in the trash for an entry that is moved there."""
    # The time and the token need forty bytes of the name. The end of the entry is the id of a
    # recorder, by which those that go together differ.
    data = entry.encode()
    if len(data) > _MAX_TRASH_BYTES:
        data = data[: _MAX_TRASH_BYTES - _TRASH_END_BYTES] + data[-_TRASH_END_BYTES:]
    return f"{data.decode(errors='ignore')}@{token or new_trash_token()}"


def is_cut(entry: str) -> bool:
    """Whether an entry of `parse_trash_name` may be only a part of what was given."""
    # A character has up to four bytes, and may have been cut at two places.
    return len(entry.encode()) > _MAX_TRASH_BYTES - 8


def parse_trash_name(name: str) -> tuple[str, str, datetime] | None:
    """Return entry (cut if it was long), token and time of a name in the trash.

    None for a foreign name.
    """
    entry, _, token = name.rpartition("@")
    try:
        moment = datetime.strptime(token.rpartition("-")[0], _MOMENT)
    except ValueError:
        return None
    return (entry, token, moment.replace(tzinfo=timezone.utc)) if entry else None
