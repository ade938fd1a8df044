"""Both nodes log into one experiment and change one recorder; a run is seen to live and to die."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import qwf
from qwf import R
from qwf.tracking import liveness, recorder
from qwf.tracking.check import check_store

from .nodes import LOSING, Mount
from .pool import store_of

__all__ = ["Watched", "log_together"]

WRITERS_PER_NODE = 2
TAGS = 15
STEPS = 20
LEASE = 3.0

_HEARTBEAT = 0.5
_PATIENCE = 60.0


def log_together(mount: Mount) -> dict[str, Any]:
    """Let each writer have a run of its own, and set tags of a run that several share.

    Both nodes share it, but where replies are lost. There, and where locks exclude nobody, a node
    may repeat a rename that has happened, and by that rename what another has named so meanwhile.

    Returns
    -------
    dict
        ``writers``, ``taggers``, ``each``, ``steps``: who logs, who sets how many tags, how many
        metrics each logs. ``tags``: of the shared run, as the other node reads them; ``runs``: of
        each writer's run its status, last metric, number of metrics and artifact; ``findings``: of
        the check.
    """
    shared = mount.nodes[0].ask(_shared_run, store_of(mount, 0))
    sharing = mount.nodes[:1] if mount.name == LOSING else mount.nodes
    writers, taggers = {}, []
    for number, node in enumerate(mount.nodes):
        for name in (f"{node.name}{writer}" for writer in range(WRITERS_PER_NODE)):
            tagged = shared if node in sharing else None
            writers[name] = node.process(_log, store_of(mount, number), name, tagged)
            taggers += [name] if tagged else []
    for process in writers.values():
        process.start()
    for process in writers.values():
        process.join(_PATIENCE)
    return {
        "writers": list(writers),
        "taggers": taggers,
        "each": TAGS,
        "steps": STEPS,
        "exit codes": [process.exitcode for process in writers.values()],
        **mount.nodes[1].ask(_read, store_of(mount, 1), shared),
    }


def _shared_run(store: Path) -> str:
    qwf.init(uri=store)
    with R.start(experiment_name="together", recorder_name="shared"):
        identity: str = R.get_recorder().id
    return identity


def _log(store: Path, writer: str, tagged: str | None) -> None:
    qwf.init(uri=store)
    with R.start(experiment_name="together", recorder_name=writer):
        own = R.get_recorder()
        common = R.get_recorder(recorder_id=tagged, experiment_name="together") if tagged else None
        for step in range(STEPS):
            own.log_metrics(step=step, loss=1 / (step + 1))
            if common is not None and step < TAGS:
                common.set_tags(**{f"{writer}-{step}": step})
        own.save_objects(result=[writer])


def _read(store: Path, shared: str) -> dict[str, Any]:
    qwf.init(uri=store)
    runs = R.list_recorders(experiment_name="together").values()
    return {
        "tags": R.get_recorder(recorder_id=shared, experiment_name="together").list_tags(),
        "runs": {
            run.name: [
                run.status,
                run.list_metrics()["loss"],
                len(run.metric_history()),
                run.load_object("result"),
            ]
            for run in runs
            if run.id != shared
        },
        "findings": [str(finding) for finding in check_store(store)],
    }


class Watched:
    """A run on node A of which node B knows only the heartbeat, with a shorter lease."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self._process = mount.nodes[0].process(self._run, store_of(mount, 0))
        self._killed = 0.0

    def start(self) -> None:
        self._process.start()

    def status(self) -> Any:
        """Return how node B shows the run."""
        return self._mount.nodes[1].ask(self._status, store_of(self._mount, 1))

    def kill(self) -> None:
        """Kill its process."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._killed = time.monotonic()

    def status_after_lease(self) -> Any:
        """Return how node B shows the run when its last heartbeat is older than the lease."""
        time.sleep(max(0.0, self._killed + LEASE + _HEARTBEAT - time.monotonic()))
        return self.status()

    @staticmethod
    def _run(store: Path) -> None:
        vars(recorder)["HEARTBEAT_SECONDS"] = _HEARTBEAT
        qwf.init(uri=store)
        with R.start(experiment_name="watched"):
            time.sleep(1000)

    @staticmethod
    def _status(store: Path) -> Any:
        vars(liveness)["LEASE_SECONDS"] = LEASE
        qwf.init(uri=store)
        (run,) = R.list_recorders(experiment_name="watched").values()
        return run.status
