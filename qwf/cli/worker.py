"""``qwf worker``: working on the tasks of a pool."""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from typing import Final

from ..config import C, init
from ..errors import CommandLineError, QwfError
from ..pool.tokens import FAILED
from ..storage.layout import parse_uri
from ..tasks.access import explained
from ..tasks.run import LOST, Ended
from ..tasks.summary import in_short
from ..tasks.worker import Job, Tally, work_together
from ..tracking.manager import default_manager
from .opening import open_pool
from .printing import note, show_duration

__all__ = ["print_attempt", "run_worker"]

_FUNCTIONS: Final = {"waiting": "qwf.task_train", "part_done": "qwf.end_task_train"}


def run_worker(options: Namespace) -> int:
    """Work on a pool, and return 1 if a task has failed here for good."""
    job = _job(options)
    _refuse_unknown_function(job)
    if not options.stay:
        open_pool(options)
    if not C.registered:  # the module of the function may have done it
        init(uri=job.uri)
    where = f"worker {os.getpid()} of pool {job.pool!r}"
    note(f"{where}: {options.n} processes call {job.function}, in {job.uri}")
    begun = time.monotonic()
    tally = Tally()
    try:
        with default_manager().uri_context(job.uri):
            work_together(job, options.n, print_attempt, tally)
    except (KeyboardInterrupt, SystemExit):
        where = f"{where} was told to end; what it worked on was given back"
        raise
    finally:
        note(f"{where}: {_counts(tally)} after {show_duration(time.monotonic() - begun)}")
    return 1 if tally.failed else 0


def _job(options: Namespace) -> Job:
    root = parse_uri(C.uri if options.uri is None else options.uri)
    experiment = options.pool if options.experiment is None else options.experiment
    return Job(
        options.pool,
        str(root),
        options.func or _FUNCTIONS[options.before_status],
        # As the loop of a trainer passes them.
        {"experiment_name": experiment, "recorder_name": None},
        options.query,
        options.before_status,
        options.after_status,
        options.force_release,
        options.lease,
        options.stay,
        options.max_tasks,
    )


def _refuse_unknown_function(job: Job) -> None:
    here = os.getcwd()
    if not {"", here} & set(sys.path):
        sys.path.insert(0, here)  # as with `python -m`
    try:
        job.work()
    except QwfError:
        raise
    except Exception as error:
        said, _ = explained(error)
        raise CommandLineError(
            f"the function {job.function!r} cannot be loaded: {said}. No task was taken."
        ) from error


def print_attempt(ended: Ended) -> None:
    """Write one line about an attempt to standard error."""
    error = "" if ended.error is None else explained(ended.error)[0]
    parts = [
        time.strftime("%Y-%m-%d %H:%M:%S"),
        str(os.getpid()),
        ended.id[:12],
        in_short(ended.definition),
        _said(ended),
        show_duration(ended.seconds),
        error,
    ]
    note("  ".join(part for part in parts if part))


def _said(ended: Ended) -> str:
    if ended.error is None or ended.status in (FAILED, LOST):
        return ended.status
    return f"{ended.status} again"


def _counts(tally: Tally) -> str:
    said = {
        "done": tally.done,
        "failed": tally.failed,
        "failed and tried again": tally.again,
        "lost to others": tally.lost,
        "processes died": tally.died,
    }
    return ", ".join(
        f"{number} {what}" for what, number in said.items() if number or what == "done"
    )
