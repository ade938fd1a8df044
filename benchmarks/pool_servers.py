"""PostgreSQL and Redis as queues: private servers, each on a socket in a directory of its own."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from measure import say
from pool_peers import RESULT
from pool_race import Contestant, Counts, Step, claiming, finishing, is_installed

__all__ = ["Servers", "servers"]

_SECONDS_TO_START = 20


class Postgres:
    """A table and ``FOR UPDATE SKIP LOCKED``."""

    _TABLE = """
        CREATE TABLE task (id bigserial PRIMARY KEY, status text NOT NULL DEFAULT 'waiting',
            priority int NOT NULL DEFAULT 0, definition text NOT NULL, owner int, result text)"""
    _INDEX = "CREATE INDEX ON task (priority DESC, id) WHERE status = 'waiting'"
    _CLAIM = """
        UPDATE task SET status = 'running', owner = %s WHERE id = (SELECT id FROM task
            WHERE status = 'waiting' ORDER BY priority DESC, id LIMIT 1 FOR UPDATE SKIP LOCKED)
        RETURNING id, definition"""
    _FINISH = "UPDATE task SET status = 'done', result = %s WHERE id = %s AND owner = %s"

    def __init__(self, socket: Path, synchronous_commit: str) -> None:
        self._socket, self._commit = socket, synchronous_commit

    def _opened(self) -> Any:
        import psycopg

        where = {"host": str(self._socket), "user": "postgres", "dbname": "postgres"}
        database = psycopg.connect(**where, autocommit=True, prepare_threshold=1)
        database.execute(f"SET synchronous_commit TO {self._commit}")
        return database

    def answers(self) -> bool:
        """Whether the server takes connections by now."""
        import psycopg

        try:
            self._opened().close()
        except psycopg.OperationalError:
            return False
        return True

    def fill(self, tasks: Sequence[dict[str, Any]]) -> None:
        """Make the table and copy the tasks into it."""
        with self._opened() as database:
            database.execute("DROP TABLE IF EXISTS task")
            database.execute(self._TABLE)
            database.execute(self._INDEX)
            with database.cursor().copy("COPY task (definition) FROM STDIN") as copy:
                for task in tasks:
                    copy.write_row([json.dumps(task)])
            database.execute("VACUUM ANALYZE task")

    def counts(self) -> Counts:
        """Ask the table."""
        with self._opened() as database:
            rows = database.execute("SELECT status, count(*) FROM task GROUP BY status")
            found = dict(rows.fetchall())
        return Counts(found.get("waiting", 0), found.get("done", 0))

    def again(self) -> None:
        """Reset all rows, and the index, which would be full of what once waited."""
        with self._opened() as database:
            database.execute("UPDATE task SET status = 'waiting' WHERE status <> 'waiting'")
            database.execute("VACUUM ANALYZE task")

    def step(self, *, finishes: bool) -> Step:
        """Claim and decode; store a result."""
        database = self._opened()
        owner, result = os.getpid(), json.dumps(RESULT)

        def step() -> str | None:
            found = database.execute(self._CLAIM, (owner,)).fetchone()
            if found is None:
                return None
            json.loads(found[1])
            if finishes:
                database.execute(self._FINISH, (result, found[0], owner))
            return str(found[0])

        return step


class Redis:
    """A list of ids that wait, a hash of definitions, a list of what each worker holds."""

    def __init__(self, socket: Path, appendfsync: str) -> None:
        self._socket, self._appendfsync = socket, appendfsync
        self._tasks: Sequence[dict[str, Any]] = []

    def _opened(self) -> Any:
        import redis

        client = redis.Redis(unix_socket_path=str(self._socket))
        client.config_set("appendfsync", self._appendfsync)
        return client

    def answers(self) -> bool:
        """Whether the server takes connections by now."""
        import redis

        try:
            self._opened().close()
        except redis.ConnectionError:
            return False
        return True

    def fill(self, tasks: Sequence[dict[str, Any]]) -> None:
        """Push all, in batches."""
        self._tasks = tasks
        client = self._opened()
        client.config_set("appendfsync", "no")
        client.flushall()
        for begin in range(0, len(tasks), 1_000):
            batch = {str(task["number"]): json.dumps(task) for task in tasks[begin : begin + 1_000]}
            client.hset("definitions", mapping=batch)
            client.rpush("waiting", *batch)

    def counts(self) -> Counts:
        """Ask the lists."""
        client = self._opened()
        return Counts(client.llen("waiting"), client.llen("done"))

    def again(self) -> None:
        """Push all anew."""
        self.fill(self._tasks)

    def step(self, *, finishes: bool) -> Step:
        """Move to the list of this worker and decode; store a result in one transaction."""
        client = self._opened()
        mine, result = f"running:{os.getpid()}", json.dumps(RESULT)

        def step() -> str | None:
            key = client.lmove("waiting", mine, "LEFT", "RIGHT")
            if key is None:
                return None
            json.loads(client.hget("definitions", key))
            if finishes:
                with client.pipeline() as transaction:
                    transaction.hset("results", key, result)
                    transaction.lrem(mine, 1, key)
                    transaction.rpush("done", key)
                    transaction.execute()
            return str(int(key))

        return step


class Servers:
    """The servers that could be started."""

    def __init__(self, postgres: Path | None, redis: Path | None) -> None:
        self._postgres, self._redis = postgres, redis

    def contestants(self) -> list[Contestant]:
        """Return queues on the servers; those of the pool before are overwritten."""
        found = []
        if self._postgres is not None:
            for commit in ("off", "on"):  # the last one is durable, and finishes too
                queue = Postgres(self._postgres, commit)
                name = f"PostgreSQL, synchronous_commit={commit}"
                found.append(claiming(name, queue))
            found.append(finishing(name, queue))
        if self._redis is not None:
            for policy in ("everysec", "always"):
                store = Redis(self._redis, policy)
                name = f"Redis, appendfsync={policy}"
                found.append(claiming(name, store))
            found.append(finishing(name, store))
        return found


@contextlib.contextmanager
def servers() -> Iterator[Servers]:
    """Start what is installed, and end it."""
    with contextlib.ExitStack() as stack:
        yield Servers(
            postgres=stack.enter_context(_postgres()),
            redis=stack.enter_context(_redis()),
        )


@contextlib.contextmanager
def _postgres() -> Iterator[Path | None]:
    # Debian has them outside of the PATH, one directory per version.
    debian = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")))
    where = os.pathsep.join([os.environ.get("PATH", ""), *debian])
    initdb, postgres = shutil.which("initdb", path=where), shutil.which("postgres", path=where)
    if initdb is None or postgres is None:
        say("PostgreSQL is not on this machine: left out.")
    if initdb is None or postgres is None or not is_installed("psycopg"):
        yield None
        return
    with TemporaryDirectory(prefix="qwf-bench-postgres-") as name:
        folder = Path(name)
        account = _account_for_postgres(folder)
        data = folder / "data"
        # The directory is private to the account, so nobody else comes near the socket.
        form = [initdb, "--pgdata", data, "--username", "postgres", "--auth", "trust"]
        subprocess.run(form, check=True, stdout=subprocess.DEVNULL, user=account, cwd=folder)
        server = [postgres, "-D", data, "-k", folder, "-c", "listen_addresses="]
        with _running(server, lambda: Postgres(folder, "on").answers(), user=account, cwd=folder):
            yield folder


def _account_for_postgres(folder: Path) -> str | None:
    """Return another account for root, under which PostgreSQL refuses to run."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    account = "postgres" if "postgres" in names else "nobody"
    shutil.chown(folder, account)
    return account


@contextlib.contextmanager
def _redis() -> Iterator[Path | None]:
    server = shutil.which("redis-server")
    if server is None:
        say("Redis is not on this machine: left out.")
    if server is None or not is_installed("redis"):
        yield None
        return
    with TemporaryDirectory(prefix="qwf-bench-redis-") as name:
        socket = Path(name, "socket")
        quiet = ["--loglevel", "warning", "--logfile", Path(name, "log")]
        form = [server, "--port", "0", "--unixsocket", socket, "--dir", name, *quiet]
        durable = ["--save", "", "--appendonly", "yes"]
        with _running([*form, *durable], lambda: Redis(socket, "no").answers(), cwd=Path(name)):
            yield socket


@contextlib.contextmanager
def _running(
    command: list[Any], answers: Callable[[], bool], *, cwd: Path, user: str | None = None
) -> Iterator[None]:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=cwd, user=user, **quiet)
    try:
        patience = time.monotonic() + _SECONDS_TO_START
        while not answers():
            if process.poll() is not None or time.monotonic() > patience:
                raise RuntimeError(f"{command[0]} does not start")
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGINT)  # PostgreSQL would wait for its clients otherwise
        process.wait()
