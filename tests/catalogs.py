"""What the tests of the catalog share: recorders made fast, and what a listing must show."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import FaultyOs

from qwf.storage import fsio, layout
from qwf.storage.documents import Document
from qwf.tracking.catalog import Catalog
from qwf.tracking.metadata import new_recorder, utc_now
from qwf.tracking.store import Store
from qwf.tracking.table import RecorderTable

Row = dict[str, Any]
_moments = itertools.count()


class Bench:
    """One experiment ``e`` of a store, whose recorders are made and changed as the library does."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Store(root)
        self.directory = root / "experiments" / "e"
        self.recorders = self.directory / "recorders"
        self.changes = self.directory / "changes"
        self.index = root / "index" / "e"

    def create(self) -> Bench:
        self.store.create_experiment("e")
        self.recorders.mkdir(exist_ok=True)
        return self

    def catalog(self) -> Catalog:
        """A catalog as another process has it."""
        return Catalog(Store(self.root), "e")

    def start(self) -> str:
        identity = layout.new_recorder_id()
        document = new_recorder(identity, f"run {next(_moments) % 3}", "e", "RUNNING")
        self.store.create_recorder("e", identity, document)
        return identity

    def change(self, identity: str, **fields: Any) -> None:
        def changed(document: Document) -> Document:
            merged = {
                key: {**document[key], **value} if isinstance(value, dict) else value
                for key, value in fields.items()
            }
            return {**document, **merged}

        self.store.update_recorder("e", identity, changed)

    def end(self, identity: str, status: str = "FINISHED", value: float = 0.5) -> None:
        metrics = {"IC": {"value": value, "step": 0, "time": 1.0}}
        self.change(identity, status=status, ended_at=utc_now(), metrics=metrics)

    def resume(self, identity: str) -> None:
        self.change(identity, status="RUNNING", ended_at=None)

    def tag(self, identity: str, **tags: str) -> None:
        self.change(identity, tags=tags)

    def ended(self, number: int) -> list[str]:
        """Make recorders that have ended."""
        made = [self.start() for _ in range(number)]
        for identity in made:
            self.end(identity)
        return made

    def delete(self, identity: str) -> None:
        self.store.discard_recorder("e", identity, layout.new_trash_token())

    def file(self, identity: str) -> Path:
        return self.recorders / identity / "recorder.json"

    def remove_index(self) -> None:
        shutil.rmtree(self.index, ignore_errors=True)

    def naive(self) -> list[Row]:
        """What is there, read from the files with nothing of the library."""
        rows, starts = [], {}
        for name in os.listdir(self.recorders) if self.recorders.exists() else ():
            try:
                data = (self.recorders / name / "recorder.json").read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                continue
            if name.startswith(".tmp-"):
                continue
            try:
                document = json.loads(data)
            except ValueError:
                rows.append({"id": name, "name": "(broken)", "status": "BROKEN"})
                starts[name] = ""
                continue
            row = {"id": name, "name": document["name"], "status": document["status"]}
            row |= {f"params.{key}": str(value) for key, value in document["params"].items()}
            row |= {f"tags.{key}": value for key, value in document["tags"].items()}
            if row["status"] != "RUNNING":  # else the journals tell, and there are none
                metrics = document["metrics"].items()
                row |= {f"metrics.{key}": point["value"] for key, point in metrics}
            rows.append(row)
            starts[name] = document["started_at"]
        rows.sort(key=lambda row: row["id"])
        return sorted(rows, key=lambda row: starts[row["id"]], reverse=True)

    def assert_shown(self, catalog: Catalog | None = None) -> None:
        assert shown((catalog or self.catalog()).table()) == self.naive()


def shown(table: RecorderTable) -> list[Row]:
    """A table in the form of `Bench.naive`."""
    columns = {
        "id": table.column("attributes", "run_id"),
        "name": table.column("attributes", "run_name"),
        "status": table.column("attributes", "status"),
    }
    for family in ("params", "tags", "metrics"):
        columns |= {f"{family}.{key}": table.column(family, key) for key in table.keys(family)}
    return [
        {key: column[row] for key, column in columns.items() if column[row] is not None}
        for row in range(len(table))
    ]


def unsynced() -> FaultyOs:
    """The module `os` without `fsync`, which takes most of the time and changes nothing here."""
    return FaultyOs(fsync=lambda _: None)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is synced."""
    monkeypatch.setattr(fsio, "os", unsynced())


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index is worth writing for two recorders."""
    monkeypatch.setattr("qwf.tracking.catalog._FEW", 2)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "store").create()


class CountingOs:
    """Stands for the module `os` in `fsio`; knows which calls there were, and on which path."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.calls: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)
        if not callable(real):
            return real

        def call(*args: Any, **kwargs: Any) -> Any:
            first = args[0] if args else ""
            self.calls.append((name, os.fspath(first) if isinstance(first, Path) else str(first)))
            return real(*args, **kwargs)

        return call

    def opened(self, name: str) -> list[str]:
        """The paths of this last name that were opened."""
        return [path for call, path in self.calls if call == "open" and path.endswith(f"/{name}")]


@contextlib.contextmanager
def counted() -> Iterator[CountingOs]:
    """Count what `fsio` asks of the system during a ``with`` block."""
    module = vars(fsio)
    real = module["os"]
    module["os"] = counting = CountingOs(real)
    try:
        yield counting
    finally:
        module["os"] = real


@contextlib.contextmanager
def before(owner: Any, name: str, action: Callable[[], object]) -> Iterator[list[Any]]:
    """Let something happen just before the first call of a function, as by another process.

    Yields a list, which is empty when it has happened.
    """
    real = getattr(owner, name)
    pending = [action]

    def first(*args: Any, **kwargs: Any) -> Any:
        if pending:
            pending.pop()()
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, first)
        yield pending
