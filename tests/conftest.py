"""What several test files need: a store of their own, real processes, scripts, log records."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import qwf
from qwf.config import C
from qwf.process import exits, pulse
from qwf.tracking import manager

# The same examples at every run; the nightly one looks for new ones.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("nightly", max_examples=1000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


# Whether git has answered yet would make the files of a store differ from run to run; what tests
# this sets it back.
os.environ.setdefault("QWF_PROVENANCE", "light")


@pytest.fixture
def settings_restored() -> Iterator[None]:
    """Give the process its settings back, and fail if a run was left active."""
    before = dict(vars(C))
    try:
        yield
        left = [layer.experiment.name for layer in manager._runs if layer.experiment]
        assert not left, f"left active: {left}"
        assert not manager._layers.get(), "a uri_context was left open"
    finally:
        for watched in list(pulse._watches):  # by runs that were left open on purpose
            pulse.unwatch(watched)
        manager._runs.clear()
        manager._layers.set(())
        # A generation of its own, so that no manager of this test is used again.
        vars(C).update(before, generation=C.generation + 1)


@pytest.fixture
def store(tmp_path: Path, settings_restored: None) -> Path:
    """The process is set to a new store at this path (which does not exist yet)."""
    path = tmp_path / "store"
    qwf.init(uri=path)
    return path


@pytest.fixture
def run_script(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program in a fresh interpreter; its arguments are in ``sys.argv[1:]``."""

    def run(source: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        environment = {key: text for key, text in os.environ.items() if key[:4] != "QWF_"}
        environment["QWF_PROVENANCE"] = os.environ["QWF_PROVENANCE"]
        root = str(Path(qwf.__file__).parent.parent)
        known = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{root}{os.pathsep}{known}" if known else root
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(source), *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=environment,
            timeout=60,
        )

    return run


class Children:
    """Forked processes that begin together when `go` is called."""

    def __init__(self) -> None:
        self._pids: list[int] = []
        self._gate, self._opener = os.pipe()

    def add(self, call: Callable[[], Any]) -> None:
        """Fork a process that waits for `go`, calls and ends with 0, or with 1 if it raises."""
        with warnings.catch_warnings():
            # Python warns of threads in the parent; the child touches none of their locks.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid:
            self._pids.append(pid)
            return
        code = 1
        try:
            os.close(self._opener)
            os.read(self._gate, 1)  # returns when the parent closes its end
            call()
            code = 0
        except BaseException:  # noqa: BLE001 - nothing may pass on into the parent's stack
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def go(self) -> None:
        if self._opener >= 0:
            os.close(self._opener)
            os.close(self._gate)
            self._opener = -1

    def exit_codes(self) -> list[int]:
        """Wait for all; return their exit codes in the order they were added."""
        self.go()
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in self._pids]
        self._pids = []
        return codes


@pytest.fixture
def children() -> Iterator[Children]:
    """Start processes with ``add``; whatever still runs at the end is waited for."""
    started = Children()
    try:
        yield started
    finally:
        started.exit_codes()


class FaultyOs:
    """Stands for the module `os` in `fsio`; some of its calls fail."""

    def __init__(self, **faults: Callable[..., Any]) -> None:
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        return self._faults.get(name) or getattr(os, name)


@pytest.fixture
def os_fails(monkeypatch: pytest.MonkeyPatch) -> Callable[..., contextlib.AbstractContextManager]:
    """``with os_fails(OSError(...), "write", "fsync"):`` makes these calls of storage raise."""

    @contextlib.contextmanager
    def failing(error: OSError, *calls: str) -> Iterator[None]:
        def fail(*_: object, **__: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr("qwf.storage.fsio.os", FaultyOs(**dict.fromkeys(calls, fail)))
            yield

    return failing


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, bytes]]:
    """``snapshot(directory)`` returns the content of every file and the name of every directory."""

    def take(directory: Path) -> dict[str, bytes]:
        found = {}
        for path in sorted(directory.rglob("*")):
            name = path.relative_to(directory).as_posix()
            found[name] = path.read_bytes() if path.is_file() else b"directory"
        return found

    return take


@pytest.fixture
def temporary_files() -> Callable[[Path], Sequence[str]]:
    """``temporary_files(directory)`` lists what unfinished writes left below it."""

    def find(directory: Path) -> Sequence[str]:
        return sorted(str(path) for path in directory.rglob(".tmp-*"))

    return find


def pytest_sessionfinish() -> None:
    """Forget the runs that tests have left open on purpose; their stores are gone."""
    exits._open.clear()
