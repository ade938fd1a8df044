"""Workers on both nodes drain a pool; those of one are killed, and one sleeps past its lease."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from qwf.errors import LeaseLostError
from qwf.tasks.manage import TaskManager
from qwf.tasks.run import run_task

from .nodes import Mount

__all__ = ["Sleeper", "drain", "store_of"]

POOL = "rolling"
TASKS = 240
WORKERS_PER_NODE = 3
LEASE = 3.0

_TRAINING_SECONDS = 0.03
_PATIENCE = 60.0

Definition = dict[str, Any]


def store_of(mount: Mount, node: int) -> Path:
    """Return the mount's own store as one of the nodes sees it."""
    return mount.on(mount.nodes[node]) / f"store-{mount.name}"


def drain(mount: Mount, memory: Path) -> dict[str, Any]:
    """Insert the tasks from both nodes at once, drain the pool, kill node B's workers meanwhile.

    Returns
    -------
    dict
        ``ids``: what each node was told when it inserted. ``trained``: number of each task and pid
        of each time that one was begun, as the training function itself has noted it. ``killed``:
        pids. ``books``: what the pool says, asked from node B. ``disk``: what the server's disk
        shows, read by nothing of qwf.
    """
    began = time.monotonic()
    definitions: list[Definition] = [{"number": number} for number in range(TASKS)]
    ids = _at_once(mount, memory, definitions)
    notes = memory / f"trained-{mount.name}"
    notes.mkdir()
    hold = memory / f"hold-{mount.name}"
    teams = [
        [node.process(_work, store_of(mount, number), notes, hold) for _ in range(WORKERS_PER_NODE)]
        for number, node in enumerate(mount.nodes)
    ]
    for worker in (worker for pair in zip(*teams, strict=True) for worker in pair):
        worker.start()
    _until(lambda: len(_trained(notes)) >= TASKS // 3, "a third of the tasks")
    hold.mkdir()
    killed = [_pid(worker) for worker in teams[1]]
    _until(lambda: len(os.listdir(hold)) == len(killed), "node B in the middle of its tasks")
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    for worker in teams[0]:
        worker.join(_PATIENCE)
    return {
        "ids": ids,
        "trained": _trained(notes),
        "killed": killed,
        "exit codes": [worker.exitcode for worker in teams[0]],
        "books": mount.nodes[1].ask(_books, store_of(mount, 1)),
        "disk": _disk(mount),
        "seconds": round(time.monotonic() - began, 1),
    }


def _pid(process: BaseProcess) -> int:
    assert process.pid is not None
    return process.pid


def _at_once(mount: Mount, memory: Path, definitions: list[Definition]) -> list[list[str]]:
    """Insert equal definitions from both nodes; return the ids that each was told."""
    told = [memory / f"ids-{mount.name}-{node.name}" for node in mount.nodes]
    submitters = [
        node.process(_submit, store_of(mount, number), definitions, told[number])
        for number, node in enumerate(mount.nodes)
    ]
    for submitter in submitters:
        submitter.start()
    for submitter in submitters:
        submitter.join(_PATIENCE)
    return [path.read_text().split() for path in told]


def _submit(store: Path, definitions: list[Definition], told: Path) -> None:
    ids = TaskManager(POOL, uri=store, lease=LEASE).create_task(definitions)
    told.write_text(" ".join(ids))


def _work(store: Path, notes: Path, hold: Path) -> None:
    manager = TaskManager(POOL, uri=store, lease=LEASE)
    while True:
        run_task(_train, manager, notes=notes, hold=hold)
        if not manager.task_stat({"status": {"$in": ["waiting", "running"]}}):
            return
        time.sleep(0.2)  # others are at work, and may die


def _train(definition: Definition, notes: Path, hold: Path) -> Definition:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    descriptor = os.open(notes / str(os.getpid()), flags, 0o666)
    os.write(descriptor, f"{definition['number']}\n".encode())
    os.close(descriptor)
    if hold.exists() and socket.gethostname() == "node-B":
        (hold / str(os.getpid())).touch()
        time.sleep(1000)  # until it is killed
    time.sleep(_TRAINING_SECONDS)
    return {"number": definition["number"], "by": os.getpid()}


def _trained(notes: Path) -> list[tuple[int, int]]:
    return [
        (int(line), int(path.name))
        for path in sorted(notes.iterdir())
        for line in path.read_text().splitlines()
    ]


def _books(store: Path) -> dict[str, Any]:
    manager = TaskManager(POOL, uri=store)
    done = [(task["def"]["number"], task["res"]) for task in manager.query({"status": "done"})]
    return {
        "stat": manager.task_stat(),
        "done": [(number, res["number"], res["by"]) for number, res in done],
        "findings": [str(finding) for finding in manager.check()],
    }


def _disk(mount: Mount) -> dict[str, list[str]]:
    """Return the names of the tokens by status, and what a quiet pool must not have."""
    pool = mount.on_server / f"store-{mount.name}" / "tasks" / POOL
    statuses = ("waiting", "running", "part_done", "done", "failed")
    found = {status: sorted(os.listdir(pool / status)) for status in statuses}
    due = set()
    for token in found["done"]:
        place, _epoch, _attempts, result = token.split(".")
        _priority, time_of_insertion, identity = place.split("-")
        due.add(f"{identity}.{time_of_insertion}.{result}")
    odd = due ^ set(os.listdir(pool / "res"))
    odd.update(os.listdir(pool / "tmp"), os.listdir(pool / "trash"))
    odd.update(path.name for path in (pool / "def").iterdir() if path.stat().st_nlink != 2)
    return {**found, "odd": sorted(odd)}


def _until(reached: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + _PATIENCE
    while not reached():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {_PATIENCE:.0f} s for {what}")
        time.sleep(0.005)


class Sleeper:
    """A worker on node B that is stopped with two tasks, and wakes up after its lease.

    Node A has committed the one meanwhile and works on the other.
    """

    POOL = "sleeping"

    def __init__(self, mount: Mount, memory: Path) -> None:
        self._mount = mount
        self._at = memory / f"sleeper-{mount.name}"
        self._at.mkdir()
        self._process = mount.nodes[1].process(self._sleep, store_of(mount, 1))

    def fall_asleep(self) -> None:
        """Let it claim its tasks, and stop it."""
        self._process.start()
        _until((self._at / "claimed").exists, "the claims of the sleeper")
        os.kill(_pid(self._process), signal.SIGSTOP)

    def wake(self) -> dict[str, Any]:
        """Take its tasks over, wake it, and return what it was told and what the pool says.

        Returns
        -------
        dict
            ``refused``: how its commits were refused; ``results``: what is in the pool then.
        """
        other = self._mount.nodes[0].process(self._take_over, store_of(self._mount, 0))
        other.start()
        _until((self._at / "taken").exists, "the lease of the sleeper to end")
        (self._at / "late").touch()
        os.kill(_pid(self._process), signal.SIGCONT)
        self._process.join(_PATIENCE)
        (self._at / "go on").touch()
        other.join(_PATIENCE)
        results = self._mount.nodes[1].ask(self._results, store_of(self._mount, 1))
        return {"refused": (self._at / "refused").read_text().split(), **results}

    def _sleep(self, store: Path) -> None:
        manager = TaskManager(self.POOL, uri=store, lease=LEASE)
        manager.create_task([{"number": 0}, {"number": 1}])
        tasks = [manager.fetch_task(), manager.fetch_task()]
        (self._at / "claimed").touch()
        _until((self._at / "late").exists, "being stopped and woken")
        refused = []
        for task in tasks:
            try:
                manager.commit_task_res(task or {}, "of the sleeper")
            except LeaseLostError as error:
                refused.append(type(error).__name__)
        (self._at / "refused").write_text(" ".join(refused))

    def _take_over(self, store: Path) -> None:
        manager = TaskManager(self.POOL, uri=store, lease=LEASE)
        tasks: list[Any] = []

        def both() -> bool:
            tasks.extend(filter(None, [manager.fetch_task()]))
            return len(tasks) == 2

        _until(both, "the sleeper's tasks")
        manager.commit_task_res(tasks[0], "of the other")
        (self._at / "taken").touch()
        _until((self._at / "go on").exists, "the sleeper")
        manager.commit_task_res(tasks[1], "of the other")

    def _results(self, store: Path) -> dict[str, Any]:
        manager = TaskManager(self.POOL, uri=store)
        return {
            "results": [task["res"] for task in manager.query({"status": "done"})],
            "stat": manager.task_stat(),
            "findings": [str(finding) for finding in manager.check()],
        }
