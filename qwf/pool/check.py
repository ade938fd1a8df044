"""What is wrong in a pool, and what can be set right without losing anything.

Whoever works on the pool meanwhile is not disturbed: what seems wrong must seem so at two looks,
and is changed only by renames of the very names that were seen. In between, what a living worker
was doing has ended or is known by its private name.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from ..errors import FormatVersionError
from ..storage import fsio, layout
from ..storage.documents import Document, new_document
from ..storage.findings import UPGRADE, Finding, Remedy, Workbench, newer
from ..version import POOL_FORMAT
from .check_tasks import TaskCheck
from .directory import DEFAULT_ATTEMPTS, Directory
from .look import Look, Problem
from .records import POOL_KIND
from .recovery import Recovery
from .tokens import RUNNING
from .workers import LEASE_SECONDS, Worker, worker_for

__all__ = ["check", "check_pools"]

# Between two looks.
_PAUSE_SECONDS: Final = 1.0
# What is set right may show something else, as the results of a task that was set aside.
_ROUNDS: Final = 4


def check_pools(
    root: Path, *, repair: bool = False, older_than_seconds: float = 3600.0
) -> list[Finding]:
    """Check all task pools of a store; see `check`.

    Parameters
    ----------
    root : Path
        The store.
    repair : bool
    older_than_seconds : float
        From which age on what an unfinished write left belongs to nobody.
    """
    bench = Workbench(root, repair=repair, older_than_seconds=older_than_seconds)
    findings = []
    for name in sorted(fsio.list_names(root / layout.TASKS)):
        if not name.startswith("."):
            findings += check(Directory(root / layout.TASKS / name), bench)
    return findings


def check(directory: Directory, bench: Workbench, *, lease: float = LEASE_SECONDS) -> list[Finding]:
    """Look at every file of a pool.

    Parameters
    ----------
    directory : Directory
        The pool.
    bench : Workbench
        Of the store that the pool is in. Unless it repairs, nothing is changed.
    lease : float
        Of this process, when it becomes a worker of the pool to set something right.

    Returns
    -------
    list of Finding
        Empty for a sound pool. What others are just doing is none.

    Notes
    -----
    Reads every definition and result. Damaged files go to the store's ``quarantine/``. *A crash*
    while repairing leaves what the next repair goes on with.
    """
    one = _PoolCheck(directory, bench, lease)
    findings: list[Finding] = []
    for _ in range(_ROUNDS):
        known = {(finding.path, finding.problem) for finding in findings}
        found = one.findings()
        findings += [each for each in found if (each.path, each.problem) not in known]
        if not any(each.repaired for each in found):
            break
    return findings


class _PoolCheck:
    def __init__(self, directory: Directory, bench: Workbench, lease: float) -> None:
        self._directory, self._bench, self._lease = directory, bench, lease
        self._recovery = Recovery(directory)

    def findings(self) -> list[Finding]:
        try:
            return list(self._findings())
        except FormatVersionError as error:
            return [self._bench.finding(Path(error.path), newer(error), UPGRADE)]
        except OSError as error:
            root = self._directory.root
            if not fsio.exists(root):
                return []  # it was deleted meanwhile
            problem = f"it cannot be checked to its end: {error}"
            return [self._bench.finding(root, problem, "look at the disk")]

    def _findings(self) -> Iterator[Finding]:
        directory, bench = self._directory, self._bench
        missing = [place for place in directory.places() if not Path(place).is_dir()]
        if not directory.exists() and len(missing) == len(directory.places()):
            yield bench.foreign(directory.root)
            return
        yield from bench.document(directory.settings, POOL_KIND, POOL_FORMAT, _fresh_settings)
        for place in missing:
            yield bench.finding(Path(place), "it is missing", Remedy("makes it", self._complete))
        for path in [directory.root, *map(Path, directory.places())]:
            for entry in _hidden_or_claims(path):
                yield from bench.leftover(entry)
        seen = self._problems(patient=True)
        if seen:
            time.sleep(_PAUSE_SECONDS)
            again = self._problems(patient=False)
            for path in sorted(seen.keys() & again.keys()):
                yield self._told(again[path])

    def _complete(self) -> str:
        self._directory.complete()
        return "it was made"

    def _told(self, problem: Problem) -> Finding:
        if problem.foreign:
            return self._bench.foreign(problem.path, problem.text)
        return self._bench.finding(problem.path, problem.text, problem.remedy)

    def _problems(self, *, patient: bool) -> dict[Path, Problem]:
        look = Look(self._directory)
        dead = self._recovery.observer.dead(look.owners() | look.workers, patient=patient)
        tasks = TaskCheck(self._directory, self._bench, self._worker, look)
        found = (*tasks.problems(), *self._left_by(look, dead), *self._foreign(look))
        return {problem.path: problem for problem in found}

    def _worker(self) -> Worker:
        # Only who sets right becomes a worker, which writes a file.
        return worker_for(self._directory, self._lease)

    # --- what the dead have left ---

    def _left_by(self, look: Look, dead: dict[str, str]) -> Iterator[Problem]:
        recovery, directory = self._recovery, self._directory
        for status, token in look.all_tokens():
            if status == RUNNING and token.worker in dead:
                why = dead[token.worker]
                apply = self._doing("it was given back", recovery.take_back, token, why)
                path = Path(directory.path(status, token))
                yield Problem(path, f"it runs, and {why}", Remedy("gives it back", apply))
        for place, private, finish, what in (
            (directory.private, look.private, recovery.finish_insertion, "insertion"),
            (directory.trash, look.trash, recovery.finish_removal, "removal"),
        ):
            for one in private:
                if one.worker in dead:
                    apply = self._doing(f"the {what} was finished", finish, one)
                    text = f"an unfinished {what}; {dead[one.worker]}"
                    remedy = Remedy(f"finishes the {what}", apply)
                    yield Problem(Path(place, one.name), text, remedy)
        yield from self._workers(look, dead)

    def _doing(self, done: str, call: Callable[..., object], *args: object) -> Callable[[], str]:
        def apply() -> str:
            call(self._worker(), *args)
            return done

        return apply

    def _workers(self, look: Look, dead: dict[str, str]) -> Iterator[Problem]:
        for name in sorted(look.workers):
            path = Path(self._directory.workers, name)
            if not self._recovery.observer.describe(name) and fsio.exists(path):
                text = "it cannot be read, so that only its age tells whether the worker lives"
                alive = "wait until the worker has ended, and check again"
                yield Problem(path, text, self._bench.parking(path) if name in dead else alive)

    # --- what is not of the pool ---

    def _foreign(self, look: Look) -> Iterator[Problem]:
        for place, name in look.strange:
            path = Path(place, name)
            if not name.startswith(".") and path not in _hidden_or_claims(path.parent):
                yield Problem(path, "it is not of qwf", "", foreign=True)


def _hidden_or_claims(directory: Path) -> list[Path]:
    """Return what an unfinished write may have left in a directory of a pool."""
    with contextlib.suppress(OSError):
        return [one for one in directory.iterdir() if one.name.startswith((".", "pool.json."))]
    return []


def _fresh_settings() -> Document:
    return new_document(POOL_KIND, POOL_FORMAT, max_attempts=DEFAULT_ATTEMPTS)
