"""Changes of a document by many writers: none lost or torn, also where locks exclude nobody."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwf.errors import CorruptRecordError, FormatVersionError, LockTimeoutError
from qwf.storage import fsio, lock
from qwf.storage.documents import (
    encode_document,
    new_document,
    read_document,
    update_document,
)
from qwf.storage.lock import hold

KIND, VERSION = "test", 3


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "doc.json"
    fsio.write_atomic(file, encode_document(new_document(KIND, VERSION, counts={})))
    return file


def update(path: Path, change: Any, **options: Any) -> dict[str, Any]:
    return update_document(path, change, kind=KIND, version=VERSION, **options)


def read(path: Path) -> dict[str, Any]:
    return read_document(path, kind=KIND, version=VERSION)


def setting(key: str, value: object) -> Any:
    return lambda document: {**document, "counts": {**document["counts"], key: value}}


def test_a_change_adds_one_to_the_revision_and_keeps_unknown_fields(path: Path) -> None:
    update(path, lambda document: {**document, "of_a_newer_release": [1]})
    update(path, setting("a", 1))
    document = read(path)
    assert document["revision"] == 3
    assert document["of_a_newer_release"] == [1]
    assert document["counts"] == {"a": 1}


def test_nothing_but_the_document_and_its_lock_is_left(path: Path) -> None:
    update(path, setting("a", 1))
    assert sorted(os.listdir(path.parent)) == [".doc.json.lock", "doc.json"]


def test_a_change_that_raises_leaves_the_document(path: Path) -> None:
    def fails(_: dict[str, Any]) -> dict[str, Any]:
        raise KeyError("x")

    with pytest.raises(KeyError):
        update(path, fails)
    assert read(path)["revision"] == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b'{"format": "te', "not whole JSON"),
        (b"[1]", "expected format 'test' and found 'list'"),
        (b'{"format": "other"}', "found 'other'"),
        (b'{"format": "test", "version": 3}', "no revision"),
        (b'{"format": "test", "version": "3", "revision": 1}', "no version"),
        (b"\xff\xfe", "not whole JSON"),
    ],
)
def test_a_damaged_document_is_told_from_a_sound_one(
    path: Path, content: bytes, reason: str
) -> None:
    path.write_bytes(content)
    with pytest.raises(CorruptRecordError, match=reason):
        read(path)


@pytest.mark.parametrize("version", [4, 0, 99])
def test_an_unknown_version_is_refused(path: Path, version: object) -> None:
    path.write_text(json.dumps({"format": KIND, "version": version, "revision": 1}))
    with pytest.raises(FormatVersionError, match="reads versions 1 to 3"):
        read(path)
    with pytest.raises(FormatVersionError):
        update(path, setting("a", 1))


def test_a_lock_that_is_held_is_waited_for_and_then_reported(path: Path) -> None:
    with hold(path.parent / ".doc.json.lock"), pytest.raises(LockTimeoutError, match=r"0\.05 s"):
        update(path, setting("a", 1), seconds=0.05)
    update(path, setting("a", 1))


# --- where locks exclude nobody ---


@contextlib.contextmanager
def no_lock(path: Path, *, seconds: float = 0) -> Iterator[None]:
    yield


def _many_changes(path: Path, writer: int, n: int, *, locked: bool) -> None:
    if not locked:
        vars(lock)["hold"] = no_lock
    for number in range(n):
        update(path, setting(f"{writer}-{number}", os.getpid()))


@pytest.mark.stress
@pytest.mark.parametrize("locked", [True, False])
def test_concurrent_changes_are_all_kept(path: Path, locked: bool) -> None:
    n_writers, n = 4, 25
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=_many_changes, args=(path, w, n), kwargs={"locked": locked})
        for w in range(n_writers)
    ]
    for writer in writers:
        writer.start()
    seen: list[int] = []
    while any(writer.is_alive() for writer in writers):
        seen.append(read(path)["revision"])  # never torn
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    document = read(path)
    wanted = {f"{w}-{number}" for w in range(n_writers) for number in range(n)}
    assert set(document["counts"]) == wanted
    assert document["revision"] == 1 + n_writers * n
    assert seen == sorted(seen), "a reader saw an older revision after a newer one"


def test_a_writer_that_slept_before_its_claim_does_not_undo_what_came_since(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slow writer has read revision 1; meanwhile 2 and 3 are committed; it links 2 again."""
    monkeypatch.setattr(lock, "hold", no_lock)
    asleep, awake = threading.Event(), threading.Event()
    real = fsio.create_exclusive
    slow_thread: list[int] = []

    def create_exclusive(temporary: Path, target: Path, **options: Any) -> bool:
        if threading.get_ident() in slow_thread and not asleep.is_set():
            asleep.set()
            assert awake.wait(10)
        return real(temporary, target, **options)

    monkeypatch.setattr(fsio, "create_exclusive", create_exclusive)

    def slow() -> None:
        slow_thread.append(threading.get_ident())
        update(path, setting("slow", 1))

    thread = threading.Thread(target=slow)
    thread.start()
    assert asleep.wait(10)
    update(path, setting("fast", 1))
    update(path, setting("fast", 2))
    awake.set()
    thread.join(10)
    assert read(path)["counts"] == {"slow": 1, "fast": 2}
    assert read(path)["revision"] == 4


def test_the_claim_of_a_dead_writer_is_published_by_the_next(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = {**read(path), "counts": {"dead": 1}, "revision": 2}
    claim = path.with_name("doc.json.2")
    claim.write_bytes(encode_document(dead))
    monkeypatch.setattr(lock, "ABANDONED_SECONDS", 0.0)
    update(path, setting("next", 1))
    assert read(path)["counts"] == {"dead": 1, "next": 1}
    assert not claim.exists()


def test_a_young_claim_is_left_to_its_owner(path: Path) -> None:
    claim = path.with_name("doc.json.2")
    claim.write_bytes(encode_document({**read(path), "counts": {"owner": 1}, "revision": 2}))
    with pytest.raises(LockTimeoutError):
        update(path, setting("next", 1), seconds=0.2)
    assert claim.exists()
    assert read(path)["revision"] == 1


def test_a_full_disk_leaves_the_document_and_no_claim(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fsio, "write_all", full)
    with pytest.raises(OSError, match="No space left"):
        update(path, setting("a", 1))
    monkeypatch.undo()
    assert sorted(os.listdir(path.parent)) == [".doc.json.lock", "doc.json"]
    update(path, setting("a", 1))
