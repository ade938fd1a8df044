"""Nodes of a pool whose filesystem lies, each two ways: through a kernel mount, and without one.

Every node is another host to the others, so that heartbeats decide who is alive.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conftest import Children
from faultfs import Rule, mounted

from qwf.process import identity
from qwf.tasks.manage import TaskManager
from qwf.tasks.run import run_task
from qwf.testing.faults import Injected, clock_off_by, faulty

POOL = "pool"
STATUSES = ("waiting", "running", "part_done", "done", "failed")


def definitions(n: int) -> list[dict[str, Any]]:
    return [{"number": number} for number in range(n)]


class Node:
    """A host with its view of the store, and rules by which that lies.

    Attributes
    ----------
    store : Path
        Where the store is for processes of this node.
    """

    def __init__(self, name: str, store: Path, logs: Path, *rules: Rule) -> None:
        self.name, self.store, self._logs, self._rules = name, store, logs, rules

    @contextlib.contextmanager
    def entered(self, *, seed: int = 0, clock: float = 0.0) -> Iterator[list[Injected]]:
        """Be a process of this node, as far as qwf can tell."""
        known = dict.fromkeys(("host", "machine", "boot", "pid_space"), self.name)
        real = identity._this_host
        vars(identity)["_this_host"] = lambda _pid: known
        try:
            with clock_off_by(clock), faulty(*self._rules, seed=seed) as injected:
                yield injected
        finally:
            vars(identity)["_this_host"] = real

    def work(self, *, seed: int = 0, clock: float = 0.0, **options: Any) -> None:
        """Drain the pool; note each task that is run, and each lie that was told."""
        with self.entered(seed=seed, clock=clock) as injected:
            manager = TaskManager(POOL, uri=self.store, **options)
            run_task(self.run, manager)
            self.note("lies", *(one.call for one in injected))

    def fail(self) -> None:
        """Try each task of the pool until it has failed for good."""

        def failing(task: dict[str, Any]) -> None:
            self.note("ran", task["number"])
            raise ArithmeticError(task["number"])

        with self.entered(seed=os.getpid()):
            run_task(failing, TaskManager(POOL, uri=self.store))

    def run(self, task: dict[str, Any]) -> dict[str, int]:
        """What the tasks are: the expected result is known, and each run leaves a line."""
        self.note("ran", task["number"])
        return {"twice": 2 * task["number"]}

    def note(self, kind: str, *lines: object) -> None:
        with (self._logs / f"{kind}.{self.name}.{os.getpid()}").open("a") as file:
            file.writelines(f"{line}\n" for line in lines)


class Holder:
    """A process of a node that holds a task from now on, and commits it when it is told to.

    Parameters
    ----------
    node : Node
    clock : float
        By how many seconds the process's clock is wrong.
    lease : float, optional

    Attributes
    ----------
    held : str
        The id of the task.
    """

    def __init__(self, node: Node, *, clock: float = 0.0, lease: float | None = None) -> None:
        ids = multiprocessing.get_context("fork").SimpleQueue()
        told, self._tell = os.pipe()  # an Event would wait for a process that was killed

        def hold() -> None:
            with node.entered(clock=clock):
                manager = TaskManager(POOL, uri=node.store, lease=lease)
                task = manager.fetch_task()
                ids.put((task and task["_id"], os.getpid()))
                os.read(told, 1)
                manager.commit_task_res(task, node.run(task["def"]))

        self._process = Children()
        self._process.add(hold)
        self._process.go()
        self.held, self._pid = ids.get()
        os.close(told)

    def is_killed(self) -> None:
        """Kill it, and do not let it end in any other way."""
        os.kill(self._pid, signal.SIGKILL)
        assert self._process.exit_codes() == [-signal.SIGKILL]

    def commits(self) -> bool:
        """Let it commit; return whether it was allowed to."""
        if self._tell >= 0:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._tell, b".")
            os.close(self._tell)
            self._tell = -1
        return self._process.exit_codes() == [0]


class Nodes:
    """The nodes of one store, and what is left when they have ended.

    Parameters
    ----------
    root : Path
        An empty directory of the test.
    kernel : bool
        Whether the nodes see the store through mounts.
    """

    def __init__(self, root: Path, stack: contextlib.ExitStack, *, kernel: bool) -> None:
        self.store = root / "store"
        self.logs = root / "logs"
        self.store.mkdir()
        self.logs.mkdir()
        self._root, self._stack, self._kernel = root, stack, kernel

    def add(self, name: str, *rules: Rule, seed: int = 0) -> Node:
        if not self._kernel:
            return Node(name, self.store, self.logs, *rules)
        mount = self._stack.enter_context(mounted(self.store, self._root / name, *rules, seed=seed))
        return Node(name, mount.path, self.logs)

    def noted(self, kind: str) -> Counter[str]:
        lines: Counter[str] = Counter()
        for path in self.logs.glob(f"{kind}.*"):
            lines.update(path.read_text().split())
        return lines

    def tokens(self) -> dict[str, list[str]]:
        """Ids of tasks by status, as the names on the server say, without qwf."""
        found = {}
        for status in STATUSES:
            names = [path.name for path in (self.store / "tasks" / POOL / status).iterdir()]
            found[status] = sorted(name.split("-")[2].split(".")[0] for name in names)
        return found

    def heartbeat(self) -> Path:
        """The file by which the owner of the only running task shows to be alive."""
        pool = self.store / "tasks" / POOL
        (running,) = (pool / "running").iterdir()
        return pool / "workers" / running.name.rpartition(".")[2]

    def assert_drained(self, n: int) -> None:
        """Every task is done, once, with its result; nothing else is left."""
        tokens = self.tokens()
        counts = {status: len(ids) for status, ids in tokens.items()}
        assert counts == {**dict.fromkeys(STATUSES, 0), "done": n}
        assert len(set(tokens["done"])) == n
        manager = TaskManager(POOL, uri=self.store)
        found = {task["def"]["number"]: task["res"] for task in manager.query({"status": "done"})}
        assert found == {number: {"twice": 2 * number} for number in range(n)}
        self.assert_clean()

    def assert_clean(self) -> None:
        """The pool's own check finds nothing, and no private name is left."""
        manager = TaskManager(POOL, uri=self.store)
        assert manager.check() == []
        pool = self.store / "tasks" / POOL
        assert [*(pool / "tmp").iterdir(), *(pool / "trash").iterdir()] == []
        named = {path.name.split(".")[3] for path in (pool / "done").iterdir()}
        assert named <= {path.name.split(".")[2] for path in (pool / "res").iterdir()}

    def assert_ran_once(self, n: int) -> None:
        """No task was run twice, as the tasks themselves have noted."""
        assert self.noted("ran") == {str(number): 1 for number in range(n)}
