"""One training: what becomes of a task, as one run, at once or in two steps."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ..errors import PlaceholderError, suggest
from ..instantiate import (
    auto_filter_kwargs,
    fill_placeholder,
    find_placeholders,
    flatten_dict,
    get_callable_kwargs,
    init_instance_by_config,
)
from ..tracking.manager import default_manager
from ..tracking.recorder import Recorder
from ..types import Task

__all__ = ["begin_task_train", "end_task_train", "task_train"]

# Where the class of a record is looked for when the task does not say.
_RECORDS: Final = "qwf.records"

# Filled by training, in the records of a task; a record may fill others itself.
_FILLED: Final = ("<MODEL>", "<DATASET>")
_LEFT_TO_RECORDS: Final = ("<PRED>",)


def task_train(
    task_config: Task, experiment_name: str | None, recorder_name: str | None = None
) -> Recorder:
    """Train the model of a task and generate its records, as one run.

    Parameters
    ----------
    task_config : dict
        ``model``, ``dataset``: configurations or objects; ``record``: one or several
        configurations; ``reweighter``: an object, optional. It is not changed.
    experiment_name : str
        Created when it does not exist.
    recorder_name : str, optional

    Returns
    -------
    Recorder
        Ended FINISHED, with the params of the task, the tag ``hostname`` and the artifacts
        ``task``, ``params.pkl`` (the model), ``dataset`` (without data) and those of the records.

    Raises
    ------
    PlaceholderError
        If the task holds a placeholder that nothing fills. Nothing was started.
    Exception
        Whatever the model, dataset or a record raises; the recorder is then FAILED.
    """
    checked = _checked(task_config)
    with _run(
        Recorder.STATUS_FI, experiment_name=experiment_name, recorder_name=recorder_name
    ) as rec:
        _log_task(rec, task_config)
        _execute(rec, checked)
    return rec


def begin_task_train(
    task_config: Task, experiment_name: str | None, recorder_name: str | None = None
) -> Recorder:
    """Start the run of a task without training it.

    Returns
    -------
    Recorder
        With the params and the artifact ``task``; its status is SCHEDULED until
        `end_task_train` has trained it.
    """
    _checked(task_config)
    with _run(
        Recorder.STATUS_S, experiment_name=experiment_name, recorder_name=recorder_name
    ) as rec:
        _log_task(rec, task_config)
    return rec


def end_task_train(rec: Recorder, experiment_name: str | None = None, **kwargs: Any) -> Recorder:
    """Train the task that `begin_task_train` left in a recorder.

    Parameters
    ----------
    rec : Recorder
        Goes on in its own store and experiment.
    experiment_name : str, optional
        Qlib's scripts pass it; the recorder knows its experiment.

    Returns
    -------
    Recorder
        `rec`, now FINISHED.
    """
    task_config = rec.load_object("task")
    checked = _checked(task_config)
    where = {"uri": rec.uri, "experiment_id": rec.experiment_id, "recorder_id": rec.id}
    try:
        with _run(Recorder.STATUS_FI, resume=True, **where) as active:
            active.set_tags(hostname=socket.gethostname())
            _execute(active, checked)
    finally:
        rec.list_tags()  # reads the record, so that the caller's object shows the new status
    return rec


@contextlib.contextmanager
def _run(final_status: str, **start: Any) -> Iterator[Recorder]:
    """Give a run that ends with a status when the block ends well, and FAILED otherwise."""
    with default_manager().run(final_status, **start) as experiment:
        recorder = experiment.active_recorder
        assert recorder is not None  # it was started
        try:
            yield recorder
        except BaseException:
            if experiment.active_recorder is None:  # the model itself has ended the run
                recorder.end_run(Recorder.STATUS_FA)
            raise


def _checked(task_config: Task) -> Task:
    """Return the task with its own values filled in; refuse what nothing will fill."""
    if not isinstance(task_config, Mapping):
        raise TypeError(f"a task has to be a dict, not {type(task_config).__name__}.")
    for key in ("model", "dataset"):
        if key not in task_config:
            raise KeyError(f"the task has no {key!r}; {suggest(key, task_config)}")
    filled: Task = fill_placeholder(dict(task_config), {})
    for where, placeholder in find_placeholders(filled):
        allowed = (*_FILLED, *_LEFT_TO_RECORDS) if where.startswith("record") else ()
        if placeholder not in allowed:
            raise PlaceholderError(
                f"the task's {where} is {placeholder!r}, which nothing fills; "
                f"{suggest(placeholder, allowed)} Nothing was started."
            )
    _refuse_unknown_classes(filled)
    return filled


def _refuse_unknown_classes(task: Task) -> None:
    """Find every class of a task now: a record's would else be missed only after the training."""
    for config in (task["model"], task["dataset"], *_records(task)):
        # A file is a pickled object, which says itself what it is.
        if isinstance(config, dict) or (isinstance(config, str) and "://" not in config):
            get_callable_kwargs(config, default_module=_RECORDS)


def _records(task: Task) -> list[Any]:
    records = task.get("record", [])
    return list(records) if isinstance(records, (list, tuple)) else [records]


def _log_task(rec: Recorder, task_config: Task) -> None:
    rec.log_params(**flatten_dict(task_config))
    rec.save_objects(task=task_config)
    rec.set_tags(hostname=socket.gethostname())


def _execute(rec: Recorder, task: Task) -> None:
    model = _built(task["model"])
    dataset = _built(task["dataset"])
    auto_filter_kwargs(model.fit, warning=False)(dataset, reweighter=task.get("reweighter"))
    rec.save_objects(**{"params.pkl": model, "dataset": _without_data(dataset, task["dataset"])})
    records = task.get("record", [])
    if isinstance(records, (Mapping, str)) or not isinstance(records, (list, tuple)):
        records = [records]
    for config in fill_placeholder(
        list(records), dict(zip(_FILLED, (model, dataset), strict=True))
    ):
        record = init_instance_by_config(
            config,
            default_module=_RECORDS,
            try_kwargs={"model": model, "dataset": dataset},
            recorder=rec,
        )
        record.generate()


def _built(config: Any) -> Any:
    """Return the object that a configuration describes; an object is one already."""
    if isinstance(config, (Mapping, str, Path)):
        return init_instance_by_config(config)
    return config


def _without_data(dataset: Any, config: Any) -> Any:
    """Return what is saved of a dataset: itself without its data, or else how to build it."""
    if hasattr(dataset, "config"):
        auto_filter_kwargs(dataset.config, warning=False)(dump_all=False, recursive=True)
        return dataset
    return config if isinstance(config, Mapping) else dataset
