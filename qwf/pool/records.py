"""What the files of a pool hold: the pool's own settings, definitions, results, failures."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from ..errors import CorruptRecordError, FormatVersionError
from ..storage.codec import canonical, dump_json, load_json
from ..types import Json
from ..version import POOL_FORMAT

__all__ = [
    "POOL_KIND",
    "Failure",
    "Result",
    "encode_definition",
    "encode_failure",
    "encode_result",
    "encode_worker",
    "identity_of",
    "parse_definition",
    "parse_failure",
    "parse_result",
    "parse_worker",
    "stored_moment",
]

POOL_KIND: Final = "qwf-pool"
_TASK_KIND: Final = "qwf-task"
_RESULT_KIND: Final = "qwf-task-result"
_FAILURE_KIND: Final = "qwf-task-failure"
_WORKER_KIND: Final = "qwf-worker"

_ID_DIGITS: Final = 24
_TUPLE: Final = "$tuple"
_DEF: Final = b'"def":'


@dataclass(frozen=True)
class Result:
    """What an attempt has come to: ``res`` is JSON; by whom, and when by that host's clock."""

    res: Json
    by: dict[str, Json]


@dataclass(frozen=True)
class Failure:
    """Why an attempt failed: one line, the traceback (or what was seen), by whom, when."""

    error: str
    traceback: str
    by: dict[str, Json]


def identity_of(definition: Json) -> str:
    """Return the id of a task: equal definitions have one.

    As for MongoDB, 1 equals 1.0 and a tuple the list of the same; unlike there, the order of keys
    does not matter.

    Examples
    --------
    >>> identity_of({"a": 1, "b": {"$tuple": [2.0]}}) == identity_of({"b": [2], "a": 1.0})
    True
    """
    return hashlib.sha256(canonical(_alike(definition))).hexdigest()[:_ID_DIGITS]


def _alike(form: Json) -> Json:
    if isinstance(form, dict):
        if len(form) == 1 and _TUPLE in form:
            return _alike(form[_TUPLE])
        return {key: _alike(item) for key, item in form.items()}
    if isinstance(form, list):
        return [_alike(item) for item in form]
    if isinstance(form, float) and form.is_integer():
        return int(form)
    return form


def encode_definition(definition: Json) -> bytes:
    """Return the bytes of a task's file."""
    end = dump_json({"def": definition})[1:]
    crc32 = f"{zlib.crc32(end):08x}"
    head: dict[str, Json] = {"format": _TASK_KIND, "version": POOL_FORMAT, "crc32": crc32}
    return dump_json(head).rstrip(b"}\n") + b"," + end


def parse_definition(data: bytes, path: str, load: Callable[[bytes], Any] = load_json) -> Json:
    """Return the definition that a task's file holds, in the form in which `load` reads JSON.

    Raises
    ------
    CorruptRecordError
        If it is no such file.
    FormatVersionError
        If a newer qwf wrote it.
    """
    fields = _parsed(data, path, _TASK_KIND, load)
    definition: Json = _field(fields, "def", path)
    # What was edited would be done, and kept as the result of what the id stands for.
    if "crc32" in fields and fields["crc32"] != f"{zlib.crc32(data[data.find(_DEF) :]):08x}":
        raise CorruptRecordError(path, "it was changed since it was inserted")
    return definition


def encode_result(identity: str, result: Result) -> bytes:
    """Return the bytes of a result's file."""
    return dump_json({**_head(_RESULT_KIND, identity), "res": result.res, **result.by})


def parse_result(data: bytes, path: str) -> Result:
    """Return what a result's file holds; raises as `parse_definition`."""
    fields = _parsed(data, path, _RESULT_KIND)
    return Result(_field(fields, "res", path), _rest(fields, "res"))


def encode_failure(identity: str, failure: Failure) -> bytes:
    """Return the bytes of a failure's file: indented, because people look at it."""
    said: dict[str, Json] = {"error": failure.error, "traceback": failure.traceback}
    return dump_json({**_head(_FAILURE_KIND, identity), **said, **failure.by}, indent=1)


def parse_failure(data: bytes, path: str) -> Failure:
    """Return what a failure's file holds; raises as `parse_definition`."""
    fields = _parsed(data, path, _FAILURE_KIND)
    error, traceback = (str(_field(fields, key, path)) for key in ("error", "traceback"))
    return Failure(error, traceback, _rest(fields, "error", "traceback"))


def encode_worker(process: dict[str, Json], lease: float) -> bytes:
    """Return the bytes of a worker's file."""
    return dump_json(
        {"format": _WORKER_KIND, "version": POOL_FORMAT, "lease": lease, **process}, indent=1
    )


def parse_worker(data: bytes, path: str) -> dict[str, Any]:
    """Return what a worker's file holds; raises as `parse_definition`."""
    return _parsed(data, path, _WORKER_KIND)


def stored_moment(seconds: float) -> str:
    """Return a moment, in seconds since the epoch, as files of a pool write it."""
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _head(kind: str, identity: str) -> dict[str, Json]:
    return {"format": kind, "version": POOL_FORMAT, "id": identity}


def _parsed(
    data: bytes, path: str, kind: str, load: Callable[[bytes], Any] = load_json
) -> dict[str, Any]:
    try:
        fields = load(data)
    except ValueError as error:
        reason = "it is empty" if not data.strip() else f"it is not whole JSON ({error})"
        raise CorruptRecordError(path, reason) from error
    if not isinstance(fields, dict) or fields.get("format") != kind:
        found = fields.get("format") if isinstance(fields, dict) else type(fields).__name__
        raise CorruptRecordError(path, f"expected format {kind!r} and found {found!r}")
    version = fields.get("version")
    if not isinstance(version, int) or not 1 <= version <= POOL_FORMAT:
        raise FormatVersionError(Path(path), found=version, readable=POOL_FORMAT)
    return fields


def _field(fields: dict[str, Any], key: str, path: str) -> Any:
    if key not in fields:
        raise CorruptRecordError(path, f"it has no {key!r}")
    return fields[key]


def _rest(fields: dict[str, Any], *known: str) -> dict[str, Any]:
    without = {"format", "version", "id", *known}
    return {key: value for key, value in fields.items() if key not in without}
