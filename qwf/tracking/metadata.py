"""What stands in ``qwf.json``, ``experiment.json`` and ``recorder.json``; FORMAT.md is its twin.

Changes work on the document itself, so that fields of a newer release are kept; reading parses it
once into a frozen record.
"""

from __future__ import annotations

import functools
import getpass
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final, TypeAlias

from ..errors import CorruptRecordError
from ..process.identity import this_process
from ..storage.artifacts import Digest
from ..storage.codec import NotPlainError, decode, encode
from ..storage.documents import Document, new_document
from ..storage.index import ID, REVISION
from ..types import Json
from ..version import EXPERIMENT_FORMAT, RECORDER_FORMAT, STORE_FORMAT

__all__ = [
    "EXPERIMENT_KIND",
    "RECORDER_KIND",
    "STORE_KIND",
    "ArtifactEntry",
    "ExperimentRecord",
    "MetricPoint",
    "RecorderRecord",
    "Session",
    "encode_param",
    "index_row",
    "local_time",
    "new_experiment",
    "new_recorder",
    "new_session",
    "new_store",
    "parse_experiment",
    "parse_recorder",
    "stored_time",
    "utc_now",
]

STORE_KIND: Final = "qwf-store"
EXPERIMENT_KIND: Final = "qwf-experiment"
RECORDER_KIND: Final = "qwf-recorder"

# Values of JSON that may stand for another; listing thousands of recorders meets few of them.
_NESTED: Final = (dict, list)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class ExperimentRecord:
    """One experiment as its file tells it."""

    id: str
    name: str
    created_at: str


@dataclass(frozen=True)
class MetricPoint:
    """The latest value of a metric; `time` is in seconds since the epoch."""

    value: float
    step: int
    time: float


@dataclass(frozen=True)
class ArtifactEntry:
    """What an artifact is and which bytes it may have.

    While an artifact is being overwritten, `replaces` says what it was before, and `since` when
    that began, on the file server's clock.
    """

    kind: str
    digest: Digest
    replaces: ArtifactEntry | None = None
    since: float = 0.0

    @property
    def accepted(self) -> dict[Digest, str]:
        """Digest -> kind of bytes that are whole, the newest first."""
        known = {self.digest: self.kind}
        return known if self.replaces is None else {**known, **self.replaces.accepted}

    def settled(self, found: Digest) -> ArtifactEntry | None:
        """Return the entry for the bytes that are there, or None if they are neither."""
        kind = self.accepted.get(found)
        return None if kind is None else ArtifactEntry(kind, found)

    def as_json(self) -> dict[str, Json]:
        """Return the entry as it stands in ``recorder.json``."""
        form: dict[str, Json] = {
            "kind": self.kind,
            "size": self.digest.size,
            "sha256": self.digest.sha256,
        }
        if self.replaces is not None:
            form["replaces"] = {**self.replaces.as_json(), "since": self.since}
        return form


# One process that ran a recorder, as it stands in the file.
Session: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class RecorderRecord:
    """One recorder as its file tells it."""

    id: str
    name: str
    status: str
    started_at: str | None
    ended_at: str | None
    params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, MetricPoint] = field(default_factory=dict)
    artifacts: Mapping[str, ArtifactEntry] = field(default_factory=dict)
    sessions: Sequence[Session] = ()
    parent_id: str | None = None


def utc_now() -> str:
    """Return the present moment as stored: ISO 8601 in UTC with microseconds."""
    return f"{datetime.now(timezone.utc).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def stored_time(seconds: float) -> str:
    """Return a moment in seconds since the epoch as stored."""
    moment = datetime.fromtimestamp(seconds, timezone.utc).replace(tzinfo=None)
    return f"{moment.isoformat(timespec='microseconds')}Z"


def local_time(stored: str | None) -> str | None:
    """Return a stored moment as Qlib shows it: local time, ``YYYY-MM-DD HH:MM:SS``."""
    if stored is None:
        return None
    return _moment(stored).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def new_store() -> Document:
    """Return the document of a new store."""
    return new_document(STORE_KIND, STORE_FORMAT, id=uuid.uuid4().hex, created_at=utc_now())


def new_experiment(identity: str, name: str) -> Document:
    """Return the document of a new experiment."""
    return new_document(
        EXPERIMENT_KIND, EXPERIMENT_FORMAT, id=identity, name=name, created_at=utc_now()
    )


def new_recorder(
    identity: str,
    name: str,
    experiment_id: str,
    status: str,
    *,
    parent_id: str | None = None,
    session: Mapping[str, Json] | None = None,
) -> Document:
    """Return the document of a recorder that starts now, in a session of this process."""
    params: dict[str, Json] = {"cmd-sys.argv": " ".join(sys.argv)}
    params |= {key: value for key, value in os.environ.items() if key.startswith("_QLIB_")}
    now = utc_now()
    return new_document(
        RECORDER_KIND,
        RECORDER_FORMAT,
        id=identity,
        name=name,
        experiment_id=experiment_id,
        status=status,
        parent_id=parent_id,
        started_at=now,
        ended_at=None,
        sessions=[dict(session or new_session(), started_at=now)],
        params=params,
        tags={},
        metrics={},
        artifacts={},
    )


def new_session() -> dict[str, Json]:
    """Return the entry of one process that runs a recorder: resuming adds another."""
    return {
        "started_at": utc_now(),
        "ended_at": None,
        **this_process(),
        "user": _user(),
        "argv": list(sys.argv),
        "cwd": _working_directory(),
    }


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without an entry for this uid
        return None


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def encode_param(value: object) -> Json:
    """Return a param as stored: with its type where that is exact, else as text."""
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        plain = value.item()  # type: ignore[attr-defined]  # NumPy is not loaded for this
        if str(plain) == str(value):
            value = plain
    try:
        return encode(value)
    except NotPlainError:
        return str(value)


# --- parsing ---------------------------------------------------------------------------------


def parse_experiment(document: Document, path: Path) -> ExperimentRecord:
    """Return the experiment that a document describes.

    Raises
    ------
    CorruptRecordError
        If a field is missing or of the wrong type.
    """
    # The directory is what the experiment is known by; a copied directory has another name.
    return ExperimentRecord(
        id=path.parent.name,
        name=_field(document, path, "name", str),
        created_at=_field(document, path, "created_at", str),
    )


def parse_recorder(document: Document, path: Path) -> RecorderRecord:
    """Return the recorder that a document describes.

    Raises
    ------
    CorruptRecordError
        If a field is missing or of the wrong type.
    """
    params = _field(document, path, "params", dict)
    metrics = _field(document, path, "metrics", dict)
    artifacts = _field(document, path, "artifacts", dict)
    try:
        return RecorderRecord(
            id=path.parent.name,
            name=_field(document, path, "name", str),
            status=_field(document, path, "status", str),
            started_at=_time(document, "started_at"),
            ended_at=_time(document, "ended_at"),
            params={
                key: decode(value) if type(value) in _NESTED else value
                for key, value in params.items()
            },
            tags=_field(document, path, "tags", dict),
            metrics={key: _metric(form) for key, form in metrics.items()},
            artifacts={name: parse_artifact(form) for name, form in artifacts.items()},
            sessions=_sessions(document, path),
            parent_id=_parent(document, path),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, CorruptRecordError):
            raise
        raise CorruptRecordError(path, f"a field is not as written ({error!r})") from error


def _time(document: Document, name: str) -> str | None:
    stored = document.get(name)
    if stored is not None:
        _moment(stored)  # raises if it is none
    return stored


def _parent(document: Document, path: Path) -> str | None:
    return None if document.get("parent_id") is None else _field(document, path, "parent_id", str)


def _sessions(document: Document, path: Path) -> list[Session]:
    sessions = document.get("sessions", [])
    if not isinstance(sessions, list) or not all(isinstance(one, dict) for one in sessions):
        raise CorruptRecordError(path, f"the field 'sessions' is {sessions!r}")
    return sessions


def index_row(record: RecorderRecord, revision: int) -> dict[tuple[str, str], Any]:
    """Return what the index knows of a recorder: plain values under (family, key).

    Params as text, of each metric the latest value, times also in milliseconds.
    """
    row: dict[tuple[str, str], Any] = {
        ID: record.id,
        REVISION: revision,
        ("attributes", "run_name"): record.name,
        ("attributes", "status"): record.status,
        ("attributes", "started_at"): record.started_at,
        ("attributes", "ended_at"): record.ended_at,
        ("attributes", "start_time"): _milliseconds(record.started_at),
        ("attributes", "end_time"): _milliseconds(record.ended_at),
        ("attributes", "parent_id"): record.parent_id,
    }
    for key, value in record.params.items():
        row[_key("params", key)] = value if type(value) is str else str(value)
    for key, text in record.tags.items():
        row[_key("tags", key)] = text if type(text) is str else str(text)
    for key, point in record.metrics.items():
        row[_key("metrics", key)] = point.value
    return row


@functools.lru_cache(maxsize=10_000)
def _key(family: str, key: str) -> tuple[str, str]:
    """Return one object for all rows: thousands of recorders have the same few dozen keys."""
    return family, key


def _milliseconds(stored: str | None) -> int | None:
    return None if stored is None else (_moment(stored) - _EPOCH) // timedelta(milliseconds=1)


def _moment(stored: str) -> datetime:
    return datetime.fromisoformat(stored.removesuffix("Z")).replace(tzinfo=timezone.utc)


def _field(document: Document, path: Path, name: str, kind: type) -> Any:
    value = document.get(name)
    if not isinstance(value, kind):
        raise CorruptRecordError(path, f"the field {name!r} is {value!r}, not a {kind.__name__}")
    return value


def _metric(form: dict[str, Any]) -> MetricPoint:
    return MetricPoint(value=float(form["value"]), step=int(form["step"]), time=form["time"])


def parse_artifact(form: dict[str, Any]) -> ArtifactEntry:
    """Return the artifact that an entry of ``recorder.json`` describes."""
    before = form.get("replaces")
    return ArtifactEntry(
        kind=form["kind"],
        digest=Digest(form["size"], form["sha256"]),
        replaces=None if before is None else parse_artifact(before),
        since=0.0 if before is None else float(before["since"]),
    )
