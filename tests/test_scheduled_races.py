"""Writers that are stopped at one exact place, on a mount where locks exclude nobody.

What the stress tests meet by chance: a writer sleeps so long that others take it for dead, and
then wakes up. Each test names the place, lets others go on, and wakes the sleeper.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qwf.errors import LockTimeoutError, RecorderNotFoundError, WriteError
from qwf.storage import documents, fsio, lock
from qwf.tracking.artifacts import ArtifactArea
from qwf.tracking.check import check_store
from qwf.tracking.manager import ExpManager
from qwf.tracking.recorder import Recorder

PATIENCE = 20.0


@contextlib.contextmanager
def no_lock(path: Path, **_: Any) -> Iterator[None]:
    """What a lock is on a mount where locks exclude nobody."""
    yield


@pytest.fixture(autouse=True)
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "hold", no_lock)


@pytest.fixture
def run(tmp_path: Path) -> Recorder:
    return ExpManager(tmp_path / "store").get_exp(experiment_name="e").create_recorder().start_run()


def same(run: Recorder) -> Recorder:
    """The recorder as another process sees it."""
    return ExpManager(Path(run.uri)).get_exp(experiment_name="e").get_recorder(run.id)


def directory(run: Recorder) -> Path:
    return Path(run.get_local_dir())


class Sleeper:
    """A writer in a thread of its own, which falls asleep once, where it calls a function."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._thread = threading.Thread(target=self._work)
        self._asleep, self._wake = threading.Event(), threading.Event()
        self.error: BaseException | None = None

    def _work(self) -> None:
        try:
            self._call()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def falls_asleep(
        self,
        monkeypatch: pytest.MonkeyPatch,
        owner: Any,
        name: str,
        *,
        after: bool = False,
        when: Callable[..., bool] = lambda *_: True,
    ) -> Sleeper:
        """Start it and return when it sleeps before (or after) its first call of a function."""
        real = getattr(owner, name)

        def stopping(*args: Any, **kwargs: Any) -> Any:
            mine = threading.current_thread() is self._thread
            stop = mine and not self._asleep.is_set() and when(*args)
            if stop and not after:
                self._sleep()
            result = real(*args, **kwargs)
            if stop and after:
                self._sleep()
            return result

        monkeypatch.setattr(owner, name, stopping)
        self._thread.start()
        assert self._asleep.wait(PATIENCE), f"it never called {name}: {self.error!r}"
        return self

    def _sleep(self) -> None:
        self._asleep.set()
        assert self._wake.wait(PATIENCE)

    def wakes_up(self) -> BaseException | None:
        """Let it go on to its end; return the error it raised."""
        self._wake.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        return self.error


@contextlib.contextmanager
def taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if whatever others have begun had been begun long ago."""
    with monkeypatch.context() as patch:
        patch.setattr(lock, "ABANDONED_SECONDS", 0.0)
        yield


def is_named(name: str) -> Callable[..., bool]:
    """Whether the target of a rename or link has this name."""
    return lambda _, target, *__: target.name == name


def is_claim(_: Path, target: Path) -> bool:
    return target.name.startswith("recorder.json.")


def assert_sound(run: Recorder, name: str, value: object) -> None:
    assert run.load_object(name) == value
    assert all(entry.replaces is None for entry in run.artifacts().values())
    problems = [finding for finding in check_store(Path(run.uri), older_than_seconds=0)
                if "unfinished" not in finding.problem]  # fmt: skip
    assert problems == []


# --- new artifacts ---------------------------------------------------------------------------


def test_a_sleeper_whose_new_file_was_dropped_puts_it_back_or_gives_way(
    run: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Sleeper(lambda: same(run).save_objects(x="first"))
    first.falls_asleep(monkeypatch, ArtifactArea, "_commit")
    second = Sleeper(lambda: same(run).save_objects(x="second"))
    with taken_for_dead(monkeypatch):
        second.falls_asleep(monkeypatch, ArtifactArea, "_commit")
    assert first.wakes_up() is None
    assert isinstance(second.wakes_up(), LockTimeoutError)
    assert_sound(run, "x", "first")


def test_a_sleeper_whose_name_another_has_saved_is_refused(
    run: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Sleeper(lambda: same(run).save_objects(x="first"))
    first.falls_asleep(monkeypatch, ArtifactArea, "_commit")
    with taken_for_dead(monkeypatch):
        same(run).save_objects(x="second")
    assert isinstance(first.wakes_up(), LockTimeoutError)
    assert_sound(run, "x", "second")


def test_a_sleeper_that_fails_does_not_remove_the_file_of_another(
    run: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> bool:
        raise WriteError(directory(run), OSError(28, "No space left on device"))

    first = Sleeper(lambda: same(run).save_objects(x="first"))
    with monkeypatch.context() as patch:
        patch.setattr(ArtifactArea, "_commit", fails)
        first.falls_asleep(patch, ArtifactArea, "_commit")
    second = Sleeper(lambda: same(run).save_objects(x="second"))
    with taken_for_dead(monkeypatch):
        second.falls_asleep(monkeypatch, ArtifactArea, "_commit")
    assert isinstance(first.wakes_up(), WriteError)
    assert (directory(run) / "artifacts" / "x").exists()
    assert second.wakes_up() is None
    assert_sound(run, "x", "second")


def test_a_file_that_waited_long_for_its_name_is_not_taken_for_a_dead_writers(
    run: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fsio.create_exclusive

    def slow(temporary: Path, path: Path, **options: Any) -> bool:
        if path.name == "x":
            os.utime(temporary, (0, 0))  # written long ago, as the first of many
        return real(temporary, path, **options)

    monkeypatch.setattr(fsio, "create_exclusive", slow)
    first = Sleeper(lambda: same(run).save_objects(x="first"))
    first.falls_asleep(monkeypatch, ArtifactArea, "_commit")
    with monkeypatch.context() as patch:
        patch.setattr(lock, "LOCK_SECONDS", 0.05)
        with pytest.raises(LockTimeoutError):
            same(run).save_objects(x="second")
    assert first.wakes_up() is None
    assert_sound(run, "x", "first")


# --- overwritten artifacts -------------------------------------------------------------------


@pytest.fixture
def saved(run: Recorder) -> Recorder:
    run.save_objects(x="old")
    return run


def test_an_announced_artifact_belongs_to_who_has_announced_it(
    saved: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Sleeper(lambda: same(saved).save_objects(x="first"))
    first.falls_asleep(monkeypatch, ArtifactArea, "_overwrite")
    with monkeypatch.context() as patch:
        patch.setattr(lock, "LOCK_SECONDS", 0.05)
        with pytest.raises(LockTimeoutError):
            same(saved).save_objects(x="second")
    assert saved.load_object("x") == "old"
    assert first.wakes_up() is None
    assert_sound(saved, "x", "first")


def test_a_sleeper_that_sees_that_it_was_taken_for_dead_does_not_replace_what_came_since(
    saved: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Sleeper(lambda: same(saved).save_objects(x="first"))
    first.falls_asleep(monkeypatch, ArtifactArea, "_overwrite")
    with taken_for_dead(monkeypatch):
        same(saved).save_objects(x="second")
    assert first.wakes_up() is None
    assert_sound(saved, "x", "second")


def test_a_sleeper_that_renames_after_it_looked_says_which_bytes_are_there(
    saved: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Sleeper(lambda: same(saved).save_objects(x="first"))
    first.falls_asleep(monkeypatch, fsio, "replace_with", when=is_named("x"))
    with taken_for_dead(monkeypatch):
        same(saved).save_objects(x="second")
    assert first.wakes_up() is None
    assert_sound(saved, "x", "first")


def test_an_announcement_is_of_what_is_there_when_it_is_made(
    saved: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = ArtifactArea._overwrite

    def looking(self: ArtifactArea, staged: Any) -> None:
        seen.append(saved.load_object("x"))
        real(self, staged)

    first = Sleeper(lambda: same(saved).save_objects(x="first"))
    first.falls_asleep(monkeypatch, ArtifactArea, "_commit")
    same(saved).save_objects(x="second")
    monkeypatch.setattr(ArtifactArea, "_overwrite", looking)
    assert first.wakes_up() is None
    assert seen == ["second"]
    assert_sound(saved, "x", "first")


# --- the record ------------------------------------------------------------------------------


CHANGES: dict[str, Callable[[Recorder], object]] = {
    "deleted tags": lambda run: run.delete_tags("t"),
    "a new session": lambda run: run.start_run(),
    "a new artifact": lambda run: run.save_objects(x="new"),
    "an overwritten artifact": lambda run: run.save_objects(old="new"),
}


@pytest.mark.parametrize("later", [0, 1, 3])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_that_others_have_published_is_not_applied_again(
    name: str, later: int, run: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.set_tags(t="1")
    run.save_objects(old="old")
    sleeper = Sleeper(lambda: CHANGES[name](same(run)))
    sleeper.falls_asleep(monkeypatch, fsio, "create_exclusive", after=True, when=is_claim)
    claim = max(directory(run).glob("recorder.json.*"))
    with taken_for_dead(monkeypatch):
        documents._settle(directory(run) / "recorder.json", claim, kind="qwf-recorder", version=1)
    for number in range(later):
        same(run).set_tags(**{f"later{number}": "x"})
    assert sleeper.wakes_up() is None
    sessions = json.loads((directory(run) / "recorder.json").read_bytes())["sessions"]
    assert len(sessions) == (2 if name == "a new session" else 1)
    assert sum(tag.startswith("later") for tag in run.list_tags()) == later
    assert ("t" in run.list_tags()) == (name != "deleted tags")
    assert run.load_object("old") == ("new" if "overwritten" in name else "old")


def test_a_claim_that_came_too_late_is_dropped_and_its_change_applied_to_what_came_since(
    run: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = Sleeper(lambda: same(run).set_tags(late="x"))
    late.falls_asleep(monkeypatch, fsio, "create_exclusive", when=is_claim)
    # A third writer reads, then sleeps; a fourth makes and publishes the revision.
    third = Sleeper(lambda: same(run).set_tags(third="x"))
    third.falls_asleep(monkeypatch, fsio, "create_exclusive", when=is_claim)
    same(run).set_tags(fourth="x")
    # The late claim takes the name that is free again, and its writer sleeps before it looks.
    real = documents.read_document
    looked = threading.Event()

    def sleepy(*args: Any, **options: Any) -> Any:
        if threading.current_thread() is late._thread and not looked.is_set():
            looked.set()
            assert dropped.wait(PATIENCE)
        return real(*args, **options)

    dropped = threading.Event()
    monkeypatch.setattr(documents, "read_document", sleepy)
    late._wake.set()
    assert looked.wait(PATIENCE)
    with taken_for_dead(monkeypatch):
        assert third.wakes_up() is None
    assert sorted(run.list_tags()) == ["fourth", "third"]
    dropped.set()
    assert late.wakes_up() is None
    assert sorted(run.list_tags()) == ["fourth", "late", "third"]


def test_a_change_of_a_recorder_that_is_deleted_before_its_rename_is_refused(
    run: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper = Sleeper(lambda: same(run).log_params(a=1))
    sleeper.falls_asleep(monkeypatch, fsio, "replace_with", when=is_named("recorder.json"))
    os.rename(directory(run), Path(run.uri) / "gone")
    assert isinstance(sleeper.wakes_up(), RecorderNotFoundError)
    gone = json.loads((Path(run.uri) / "gone" / "recorder.json").read_bytes())
    assert "a" not in gone["params"]


def test_a_claim_that_somebody_has_removed_is_no_success(
    run: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper = Sleeper(lambda: same(run).log_params(a=1))
    sleeper.falls_asleep(monkeypatch, fsio, "replace_with", when=is_named("recorder.json"))
    for claim in directory(run).glob("recorder.json.*"):
        claim.unlink()
    assert sleeper.wakes_up() is not None
    assert "a" not in run.list_params()
