"""What stands in ``qwf.json``, ``experiment.json`` and ``recorder.json``; FORMAT.md is its twin.

Changes work on the document itself, so that fields of a newer release are kept; reading parses it
once into a frozen record.
"""

from __future__ import annotations

import getpass
import os
import socket
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from ..errors import CorruptRecordError
from ..storage.artifacts import Digest
from ..storage.codec import NotPlainError, decode, encode
from ..storage.documents import Document, new_document
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
    "encode_param",
    "local_time",
    "new_experiment",
    "new_recorder",
    "new_session",
    "new_store",
    "parse_experiment",
    "parse_recorder",
    "utc_now",
]

STORE_KIND: Final = "qwf-store"
EXPERIMENT_KIND: Final = "qwf-experiment"
RECORDER_KIND: Final = "qwf-recorder"


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


def utc_now() -> str:
    """Return the present moment as stored: ISO 8601 in UTC with microseconds."""
    return f"{datetime.now(timezone.utc).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def local_time(stored: str | None) -> str | None:
    """Return a stored moment as Qlib shows it: local time, ``YYYY-MM-DD HH:MM:SS``."""
    if stored is None:
        return None
    moment = datetime.fromisoformat(stored.removesuffix("Z")).replace(tzinfo=timezone.utc)
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def new_store() -> Document:
    """Return the document of a new store."""
    return new_document(STORE_KIND, STORE_FORMAT, id=uuid.uuid4().hex, created_at=utc_now())


def new_experiment(identity: str, name: str) -> Document:
    """Return the document of a new experiment."""
    return new_document(
        EXPERIMENT_KIND, EXPERIMENT_FORMAT, id=identity, name=name, created_at=utc_now()
    )


def new_recorder(identity: str, name: str, experiment_id: str, status: str) -> Document:
    """Return the document of a recorder that starts now."""
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
        started_at=now,
        ended_at=None,
        sessions=[new_session(now)],
        params=params,
        tags={},
        metrics={},
        artifacts={},
    )


def new_session(started_at: str) -> dict[str, Json]:
    """Return the entry of one process that runs a recorder: resuming adds another."""
    return {
        "started_at": started_at,
        "ended_at": None,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "user": _user(),
        "argv": list(sys.argv),
    }


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without an entry for this uid
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
            started_at=document.get("started_at"),
            ended_at=document.get("ended_at"),
            params={key: decode(value) for key, value in params.items()},
            tags=_field(document, path, "tags", dict),
            metrics={key: _metric(form) for key, form in metrics.items()},
            artifacts={name: parse_artifact(form) for name, form in artifacts.items()},
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, CorruptRecordError):
            raise
        raise CorruptRecordError(path, f"a field is not as written ({error!r})") from error


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
