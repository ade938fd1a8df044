"""Qlib on MLflow, set up as its users have it and quiet; nothing here is needed without them."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from measure import say

__all__ = ["qlib_on_mlflow", "without_git"]


def qlib_on_mlflow(folder: Path) -> Any:
    """Return Qlib with its R, RecorderCollector and the uris of two stores, or None without Qlib.

    Works in the current directory, which is made a git repository: outside of one, Qlib prints
    git's whole usage text at every start of a run.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DISABLE_MLFLOWGENAI_TELEMETRY", "true")
    # MLflow 3 refuses its file store otherwise, and draws a progress bar for every artifact.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    warnings.simplefilter("ignore")
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            import qlib
            from qlib.workflow import R
            from qlib.workflow.task.collect import RecorderCollector

            _start(qlib, folder)
    except ImportError as error:
        say(f"Qlib is not installed ({error}): only the floor is measured beside qwf.")
        return None
    return SimpleNamespace(
        R=R,
        RecorderCollector=RecorderCollector,
        # Not ``mlruns``, which the other store uses for its artifacts.
        file_uri=f"file:{folder / 'files'}",
        sqlite_uri=f"sqlite:///{folder / 'mlflow.db'}",
    )


def _start(qlib: Any, folder: Path) -> None:
    subprocess.run(["git", "init", "--quiet", "."], check=False, stderr=subprocess.DEVNULL)
    manager = {
        "class": "MLflowExpManager",
        "module_path": "qlib.workflow.expm",
        "kwargs": {"uri": f"file:{folder / 'files'}", "default_exp_name": "Experiment"},
    }
    qlib.init(provider_uri=str(folder), exp_manager=manager, logging_level=logging.ERROR)
    # Alembic sets the levels of loggers anew, so all are silenced, whatever their level.
    logging.disable(logging.WARNING)


def without_git() -> contextlib.AbstractContextManager[Any]:
    """Keep Qlib, within a ``with`` block, from saving git's state at every start of a run."""
    return mock.patch("qlib.workflow.recorder.MLflowRecorder._log_uncommitted_code")
