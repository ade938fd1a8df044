"""Every operation meets a full or failing disk at every call; what is said and left afterwards.

The counterpart of the crash tests: the process lives on, so its message must be true, nothing
private may be left, and nobody may have to wait for a writer that has given up.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from qwf.errors import NotDurableError, WriteError
from qwf.storage import lock
from qwf.testing.crash import failing_call
from qwf.tracking.check import check_store
from qwf.tracking.manager import ExpManager
from qwf.tracking.recorder import Recorder

pytestmark = pytest.mark.crash

State = dict[str, Any]


def open_recorder(root: Path) -> Recorder:
    (recorder,) = ExpManager(root).get_exp(experiment_name="e").list_recorders("list")
    return recorder


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A store with one running recorder that has a param, a tag and three artifacts."""
    root = tmp_path / "prepared"
    run = ExpManager(root).get_exp(experiment_name="e").create_recorder("r").start_run()
    run.log_params(p=1)
    run.set_tags(t="old")
    run.save_objects(kept="old", also="old", other={1})
    return root


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "kept"
    path.write_bytes(b"new")
    return path


def plain(obj: Any) -> Any:
    if isinstance(obj, pd.Series):
        return ("series", *obj)
    return obj


def state(recorder: Recorder) -> State:
    """All that a reader can see; loading fails if an artifact is torn."""
    document = recorder._read()
    found = {f"artifact {name}": plain(load(recorder, name)) for name in document["artifacts"]}
    return {
        **found,
        "params": recorder.list_params(),
        "tags": recorder.list_tags(),
        "metrics": recorder.list_metrics(),
        "status": document["status"],
        "sessions": len(document["sessions"]),
    }


def load(recorder: Recorder, name: str) -> Any:
    if recorder.artifacts()[name].kind == "file":
        return Path(recorder.download_artifact(name)).read_bytes()
    return recorder.load_object(name)


SERIES = pd.Series([1.0, 2.0])

OPERATIONS: dict[str, Callable[[Recorder, Path], object]] = {
    "new": lambda run, _: run.save_objects(a=1, b=SERIES),
    "overwrite": lambda run, _: run.save_objects(kept="new"),
    "overwrite two": lambda run, _: run.save_objects(kept="new", also="new"),
    "new and overwrite": lambda run, _: run.save_objects(kept="new", a=1),
    "another kind": lambda run, _: run.save_objects(kept=SERIES),
    "a file over an object": lambda run, source: run.save_objects(local_path=source),
    "params": lambda run, _: run.log_params(p=2, q=3),
    "tags": lambda run, _: run.set_tags(t="new", u="new"),
    "deleted tags": lambda run, _: run.delete_tags("t"),
    "the first metric": lambda run, _: run.log_metrics(m=1),
    "end": lambda run, _: run.end_run("FINISHED"),
    "resume": lambda run, _: run.start_run(),
}


@dataclass(frozen=True)
class Failure:
    """What one failing call made of an operation; `error` is None if it was not told."""

    call: str
    where: str
    root: Path
    error: BaseException | None


def failures(prepared: Path, operation: Callable[[Recorder], object], code: int
             ) -> Iterator[Failure]:  # fmt: skip
    """Let each call of an operation fail, one after the other."""
    for step in itertools.count(1):
        root = prepared.with_name(f"step-{code}-{step}")
        shutil.copytree(prepared, root)
        recorder = open_recorder(root)
        told: BaseException | None = None
        with failing_call(step, OSError(code, os.strerror(code))) as planned:
            try:
                operation(recorder)
            except OSError as error:
                told = error
        if planned.failed is None:
            assert step > 2, "the harness has let nothing fail"
            return
        where = f"{planned.failed} (call {step}) failed: {told}"
        yield Failure(planned.failed, where, root, told)
        shutil.rmtree(root)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["full", "broken"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_after_a_failure_at_any_call_the_message_is_true_and_nothing_is_torn(
    name: str,
    code: int,
    prepared: Path,
    source: Path,
    temporary_files: Callable[[Path], Sequence[str]],
) -> None:
    done = prepared.with_name("done")
    shutil.copytree(prepared, done)
    OPERATIONS[name](open_recorder(done), source)
    before, after = state(open_recorder(prepared)), state(open_recorder(done))
    assert before != after
    for failure in failures(prepared, lambda run: OPERATIONS[name](run, source), code):
        found, error, where = state(open_recorder(failure.root)), failure.error, failure.where
        if error is None or isinstance(error, NotDurableError):
            assert found == after, where
        else:
            assert isinstance(error, WriteError), where
            assert "unchanged" in str(error), where
            assert found == before or is_partly_new(found, before, after, error), where
        if failure.call != "unlink":  # what cannot be removed stays, for the check
            assert temporary_files(failure.root) == [], where
        problems = {finding.problem for finding in check_store(failure.root, older_than_seconds=0)}
        expected = {"an unfinished write left it"} if failure.call == "unlink" else set()
        if error is None:
            expected.add("it was being overwritten")
        assert problems <= expected, where


def is_partly_new(found: State, before: State, after: State, error: WriteError) -> bool:
    """Whether an earlier one of several artifacts is new, and the one that failed is old."""
    changed = {key for key in before if found[key] != before[key]}
    failed = f"artifact {Path(error.path).name}"
    return (
        found.keys() in (before.keys(), after.keys())
        and all(found[key] == after[key] for key in changed)
        and failed in before
        and failed not in changed
    )


@pytest.mark.parametrize("name", list(OPERATIONS)[:6])
def test_nobody_waits_for_a_writer_whose_disk_was_full(
    name: str, prepared: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_waiting(_: object) -> None:
        raise AssertionError("the next writer had to wait")

    for failure in failures(prepared, lambda run: OPERATIONS[name](run, source), errno.ENOSPC):
        announced = [
            entry
            for entry in open_recorder(failure.root).artifacts().values()
            if entry.replaces is not None
        ]
        assert not announced or failure.error is None, failure.where
        if not announced:
            with monkeypatch.context() as patch:
                patch.setattr(lock.Patience, "wait", no_waiting)
                open_recorder(failure.root).save_objects(kept="next", also="next", a=3, b=4)
            assert open_recorder(failure.root).load_object("kept") == "next"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["full", "broken"])
def test_a_start_that_failed_can_be_repeated_on_the_same_object(code: int, tmp_path: Path) -> None:
    for step in itertools.count(1):
        root = tmp_path / f"store-{step}"
        experiment = ExpManager(root).get_exp(experiment_name="e")
        recorder = experiment.create_recorder("r")
        with failing_call(step, OSError(code, os.strerror(code))) as planned:
            try:
                recorder.start_run()
            except OSError:
                recorded = len(experiment.list_recorders())
                assert recorded == (recorder.id is not None), planned
        if planned.failed is None:
            assert step > 2
            break
        recorder.start_run()
        assert recorder.status == "RUNNING"
        assert [one.id for one in experiment.list_recorders("list")] == [recorder.id], planned
        recorder.end_run("FINISHED")
