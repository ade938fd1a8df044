"""Data handlers that many tasks share: built once, kept as a file, named by their configuration."""

from __future__ import annotations

import copy
import datetime
import hashlib
import json
import os
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..instantiate import accepted_keywords, get_callable_kwargs, init_instance_by_config
from ..storage import fsio, trees
from ..storage.pickles import dump_pickle
from ..types import Task

__all__ = ["replace_task_handler_with_cache"]

# Where the class of a handler is looked for when the task does not say, as `DatasetH` does.
_HANDLERS = "qwf.data.handler"


def replace_task_handler_with_cache(task: Task, cache_dir: str | os.PathLike[str] = ".") -> Task:
    """Return a copy of a task whose data handler is a file, which is made if it is not there.

    Parameters
    ----------
    task : dict
        With ``dataset.kwargs.handler``. A handler that is not a dict is left as it is.
    cache_dir : path, default "."
        Where the file is; it is created.

    Returns
    -------
    dict
        A handler without a fit window of its own gets the train segment of this task as one, as
        from `DatasetH`: of a template, all tasks rolled from it share what was fitted then. The
        handler is ``"file://<cache_dir>/<Class>.<digest>.pkl"``. The digest is one of the
        configuration, the same in every process. It knows nothing of the data behind the handler:
        remove the file when these have changed.

    Raises
    ------
    ConfigError
        If there is no handler, or its configuration holds an object that cannot be pickled and so
        gives no name.
    WriteError
        If the file cannot be written.

    Notes
    -----
    *Readers* see no file or the whole one. *Writers* racing on one handler leave the file of one
    of them. *A crash* leaves at most a temporary file.
    """
    handler = _with_fit_window(_handler_of(task), task)
    replaced = copy.deepcopy(task)
    if isinstance(handler, dict):
        folder = Path(cache_dir).expanduser().absolute()
        path = folder / f"{_class_name(handler)}.{_digest(handler)[:10]}.pkl"
        if not path.exists():
            fsio.make_directories(folder)
            _write(init_instance_by_config(handler, default_module=_HANDLERS), path)
        replaced["dataset"]["kwargs"]["handler"] = f"file://{path}"
    return replaced


def _handler_of(task: Task) -> Any:
    try:
        return task["dataset"]["kwargs"]["handler"]
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"the task has no dataset.kwargs.handler to keep as a file ({error!r}). "
            "Nothing was changed. Leave this task without a cache."
        ) from error


def _with_fit_window(handler: Any, task: Task) -> Any:
    """Return the handler's configuration with the fit window that its dataset would give it."""
    train = task["dataset"]["kwargs"].get("segments", {}).get("train")
    if not isinstance(handler, dict) or train is None:
        return handler
    kwargs = handler.get("kwargs", {})
    found, _ = get_callable_kwargs(handler, default_module=_HANDLERS)
    window = dict(zip(("fit_start_time", "fit_end_time"), train, strict=True))
    taken = accepted_keywords(found, window)
    filled = {name: window[name] for name in taken if kwargs.get(name) is None}
    return {**handler, "kwargs": {**kwargs, **filled}}


def _class_name(handler: Mapping[str, Any]) -> str:
    named = handler.get("class", "")
    name = named.__name__ if isinstance(named, type) else str(named).rpartition(".")[2]
    return name if name.isidentifier() else "handler"


def _digest(handler: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(handler, sort_keys=True, default=_text)
    except (TypeError, ValueError, AttributeError, pickle.PicklingError) as error:
        raise ConfigError(
            f"the handler {_class_name(handler)!r} cannot be kept as a file: its configuration "
            f"gives no name ({error}). Nothing was changed. Use values that can be pickled."
        ) from error
    return hashlib.sha256(text.encode()).hexdigest()


def _text(value: object) -> str:
    """Return what stands in JSON for a value that JSON does not know."""
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, (datetime.date, PurePath, np.generic)):
        return str(value)
    # The text of a frame leaves rows out and that of an object is an address, which another
    # process may give to another object: both would name the file of a different handler.
    return hashlib.sha256(dump_pickle(value)).hexdigest()


def _write(handler: Any, path: Path) -> None:
    if not callable(getattr(handler, "to_pickle", None)):
        fsio.write_atomic(path, dump_pickle(handler))
        return
    with tempfile.TemporaryDirectory() as scratch:
        handler.to_pickle(Path(scratch, path.name), dump_all=True)
        temporary, _, _ = trees.copy_whole(Path(scratch, path.name), path)
    fsio.replace_with(temporary, path)
