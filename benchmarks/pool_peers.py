"""Queues that are files or SQLite: the raw system calls, SQL of our own, and those of others."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import floor
from measure import say
from pool_race import Contestant, Counts, Step, claiming, finishing, is_installed, stepping

__all__ = ["RESULT", "Raw", "Sqlite", "file_and_sqlite_queues", "raw_contestants"]

# What a task results in: a reference, as a training leaves it.
RESULT = {"experiment": "1f2e3d4c5b6a", "recorder": "0a1b2c3d4e5f60718293a4b5c6d7e8f9"}


MOST_TASKS_OF_THE_SLOW = 10_000


def _encoded(document: Any) -> bytes:
    return json.dumps(document).encode()


class Raw:
    """The bare calls of a pool of files: names as long as qwf's, no owner, no lease, no fence."""

    def __init__(self, folder: Path) -> None:
        self._waiting, self._running, self._done, self._results = (
            f"{folder}/{name}" for name in ("waiting", "running", "done", "res")
        )
        for name in (self._waiting, self._running, self._done, self._results):
            os.makedirs(name)

    def fill(self, tasks: Sequence[dict[str, Any]]) -> None:
        """Write a file per task, in the order of their names."""
        for number, task in enumerate(tasks):
            name = f"ffffffff-{number:016x}-{number:024x}.000000.00.{0:016x}"
            with open(f"{self._waiting}/{name}", "wb") as file:
                file.write(_encoded(task))

    def counts(self) -> Counts:
        """List the directories."""
        return Counts(len(os.listdir(self._waiting)), len(os.listdir(self._done)))

    def again(self) -> None:
        """Rename what was taken back."""
        for directory in (self._running, self._done):
            for name in os.listdir(directory):
                os.rename(f"{directory}/{name}", f"{self._waiting}/{name}")
        for name in os.listdir(self._results):
            os.unlink(f"{self._results}/{name}")

    def renaming(self) -> Step:
        """List once, sort, and rename down the list; reads nothing."""
        names: list[str] = []

        def step() -> str | None:
            if not names:
                names.extend(sorted(os.listdir(self._waiting), reverse=True))
            while names:
                name = names.pop()
                with contextlib.suppress(FileNotFoundError):
                    os.rename(f"{self._waiting}/{name}", f"{self._running}/{name}")
                    return name
            return None

        return step

    def step(self, *, finishes: bool) -> Step:
        """As above and read what was claimed; write a result and move to what is done, durable."""
        rename = self.renaming()
        result = _encoded(RESULT)

        def step() -> str | None:
            name = rename()
            if name is None:
                return None
            json.loads(floor.read(f"{self._running}/{name}"))
            if finishes:
                floor.write_new(f"{self._results}/{name}", result)
                floor.fsync_directory(self._results)
                os.rename(f"{self._running}/{name}", f"{self._done}/{name}")
                floor.fsync_directory(self._done)
            return name

        return step


def raw_contestants(folder: Path) -> list[Contestant]:
    """Return the three raw ways, which share one queue."""
    raw = Raw(folder / "raw")
    return [
        Contestant("floor: rename", raw, stepping(raw.renaming)),
        claiming("floor: rename, read", raw),
        finishing("floor: the same calls", raw),
    ]


class Sqlite:
    """What one would write oneself: a table, a partial index, ``UPDATE ... RETURNING``.

    Finishing is durable; claiming with ``synchronous="FULL"`` only.
    """

    _TABLE = """
        CREATE TABLE task (id INTEGER PRIMARY KEY, status TEXT NOT NULL DEFAULT 'waiting',
            priority INTEGER NOT NULL DEFAULT 0, definition TEXT NOT NULL UNIQUE,
            owner INTEGER, result TEXT)"""
    _INDEX = "CREATE INDEX waits ON task (priority DESC, id) WHERE status = 'waiting'"
    _CLAIM = """
        UPDATE task SET status = 'running', owner = ? WHERE id = (SELECT id FROM task
            WHERE status = 'waiting' ORDER BY priority DESC, id LIMIT 1)
        RETURNING id, definition"""
    _FINISH = "UPDATE task SET status = 'done', result = ? WHERE id = ? AND owner = ?"

    def __init__(self, folder: Path, synchronous: str) -> None:
        self._file = folder / f"sqlite-{synchronous}.db"
        self._claims = synchronous
        with contextlib.closing(self._opened()) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute(self._TABLE)
            database.execute(self._INDEX)

    def _opened(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._file, timeout=60, isolation_level=None)
        database.execute(f"PRAGMA synchronous = {self._claims}")
        return database

    def fill(self, tasks: Sequence[dict[str, Any]]) -> None:
        """Insert what is not there, in one transaction."""
        rows = [(json.dumps(task),) for task in tasks]
        with contextlib.closing(self._opened()) as database:
            database.execute("BEGIN")
            database.executemany("INSERT OR IGNORE INTO task (definition) VALUES (?)", rows)
            database.execute("COMMIT")

    def counts(self) -> Counts:
        """Ask the table."""
        with contextlib.closing(self._opened()) as database:
            rows = database.execute("SELECT status, count(*) FROM task GROUP BY status")
            found = dict(rows.fetchall())
        return Counts(found.get("waiting", 0), found.get("done", 0))

    def again(self) -> None:
        """Reset all rows."""
        with contextlib.closing(self._opened()) as database:
            database.execute("UPDATE task SET status = 'waiting' WHERE status != 'waiting'")

    def step(self, *, finishes: bool) -> Step:
        """Claim and decode; store a result."""
        database = self._opened()
        owner = os.getpid()
        result = json.dumps(RESULT)

        def step() -> str | None:
            found = database.execute(self._CLAIM, (owner,)).fetchone()
            if found is None:
                return None
            json.loads(found[1])
            if finishes:
                # It counts for one transaction after the other, and costs next to nothing.
                database.execute("PRAGMA synchronous = FULL")
                database.execute(self._FINISH, (result, found[0], owner))
                database.execute(f"PRAGMA synchronous = {self._claims}")
            return str(found[0])

        return step


class _OfOthers:
    """A queue of a library, with its own defaults; refilled before each race, as some delete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tasks: Sequence[dict[str, Any]] = []

    def fill(self, tasks: Sequence[dict[str, Any]]) -> None:
        """Put one after the other."""
        self._tasks = tasks
        self.folder.mkdir()
        self.put_all(tasks)

    def put_all(self, tasks: Sequence[dict[str, Any]]) -> None:
        raise NotImplementedError

    def again(self) -> None:
        """Make a new queue of the same tasks."""
        shutil.rmtree(self.folder)
        self.fill(self._tasks)


class Huey(_OfOthers):
    """The storage of huey, in SQLite or in files; a task is deleted when it is handed out."""

    def __init__(self, folder: Path, kind: str) -> None:
        super().__init__(folder / kind)
        self._kind = kind

    def _opened(self, **options: Any) -> Any:
        from huey import storage

        if self._kind == "FileStorage":
            return storage.FileStorage("tasks", str(self.folder))
        return storage.SqliteStorage("tasks", str(self.folder / "huey.db"), **options)

    def put_all(self, tasks: Sequence[dict[str, Any]]) -> None:
        """Enqueue all."""
        opened = self._opened(fsync=False)
        for task in tasks:
            opened.enqueue(_encoded(task))

    def counts(self) -> Counts:
        """Ask the storage."""
        opened = self._opened()
        return Counts(opened.queue_size(), opened.result_store_size())

    def step(self, *, finishes: bool) -> Step:
        """Dequeue and decode; store a result."""
        opened = self._opened()
        result = _encoded(RESULT)

        def step() -> str | None:
            data = opened.dequeue()
            if data is None:
                return None
            key = str(json.loads(data)["number"])
            if finishes:
                opened.put_data(key, result, is_result=True)
            return key

        return step


class PersistQueue(_OfOthers):
    """persist-queue: the queue that deletes what it hands out, or the one with acknowledgement."""

    def __init__(self, folder: Path, kind: str) -> None:
        super().__init__(folder / kind)
        self._kind = kind

    def _opened(self) -> Any:
        import persistqueue
        import persistqueue.serializers.json

        # Otherwise whoever opens the queue takes away all tasks from those who work on them.
        options = {"auto_resume": False} if self._kind == "SQLiteAckQueue" else {}
        json_lines = persistqueue.serializers.json
        return getattr(persistqueue, self._kind)(str(self.folder), serializer=json_lines, **options)

    def put_all(self, tasks: Sequence[dict[str, Any]]) -> None:
        """Put all."""
        opened = self._opened()
        opened._conn.execute("PRAGMA synchronous = OFF")  # there is no public way
        for task in tasks:
            opened.put(task)
        opened.close()

    def counts(self) -> Counts:
        """Ask a queue that has just been opened: an older one answers from memory."""
        opened = self._opened()
        done = opened.acked_count() if self._kind == "SQLiteAckQueue" else 0
        return Counts(opened.size, done)

    def step(self, *, finishes: bool) -> Step:
        """Get, which decodes; acknowledge. There is no place for a result."""
        from persistqueue import Empty

        opened = self._opened()

        def step() -> str | None:
            try:
                found = opened.get(block=False, raw=True)
            except Empty:
                return None
            if finishes:
                opened.ack(id=found["pqid"])
            return str(found["data"]["number"])

        return step


class LiteQueue(_OfOthers):
    """litequeue, whose connections have ``synchronous=NORMAL``."""

    def _opened(self) -> Any:
        import litequeue

        return litequeue.LiteQueue(self.folder / "queue.db")

    def put_all(self, tasks: Sequence[dict[str, Any]]) -> None:
        """Put all."""
        opened = self._opened()
        opened.conn.execute("PRAGMA synchronous = OFF")
        for task in tasks:
            opened.put(json.dumps(task))
        opened.close()

    def counts(self) -> Counts:
        """Ask its table."""
        with contextlib.closing(sqlite3.connect(self.folder / "queue.db")) as database:
            rows = database.execute("SELECT status, count(*) FROM Queue GROUP BY status").fetchall()
        found = dict(rows)
        return Counts(found.get(0, 0), found.get(2, 0))

    def step(self, *, finishes: bool) -> Step:
        """Pop and decode; mark as done. There is no place for a result."""
        opened = self._opened()

        def step() -> str | None:
            message = opened.pop()
            if message is None:
                return None
            if finishes:
                opened.done(message.message_id)
            return str(json.loads(message.data)["number"])

        return step


def file_and_sqlite_queues(folder: Path, tasks: int, *, peers: bool) -> list[Contestant]:
    """Return the contestants with tasks in files or in SQLite.

    Those that are not installed, and those that would take hours, are named and left out.
    """
    found = []
    if sqlite3.sqlite_version_info >= (3, 35):
        normal, full = Sqlite(folder, "NORMAL"), Sqlite(folder, "FULL")
        found += [
            claiming("SQLite, synchronous=NORMAL", normal),
            claiming("SQLite, synchronous=FULL", full),
            finishing("SQLite, NORMAL to claim, FULL to finish", normal),
            finishing("SQLite, FULL for both", full),
        ]
    return found + (_of_others(folder, tasks) if peers else [])


def _of_others(folder: Path, tasks: int) -> list[Contestant]:
    found = []
    if is_installed("huey"):
        on_sqlite = Huey(folder, "SqliteStorage")
        found += [claiming("huey, SQLite", on_sqlite), finishing("huey, SQLite", on_sqlite)]
        if tasks <= MOST_TASKS_OF_THE_SLOW:
            on_files = Huey(folder, "FileStorage")
            found.append(claiming("huey, files", on_files))
            found.append(finishing("huey, files (not durable)", on_files))
        else:
            say(f"huey lists its files at every claim: left out at {tasks:,} tasks.")
    if tasks > MOST_TASKS_OF_THE_SLOW:
        say(f"persist-queue and litequeue are left out at {tasks:,} tasks, which take long to put.")
        return found
    if is_installed("persistqueue"):
        plain = PersistQueue(folder, "SQLiteQueue")
        acknowledged = PersistQueue(folder, "SQLiteAckQueue")
        found += [
            claiming("persist-queue, SQLiteQueue", plain),
            claiming("persist-queue, SQLiteAckQueue", acknowledged),
            finishing("persist-queue, SQLiteAckQueue", acknowledged),
        ]
    if is_installed("litequeue"):
        lite = LiteQueue(folder / "litequeue")
        found += [claiming("litequeue", lite), finishing("litequeue (not durable)", lite)]
    return found
