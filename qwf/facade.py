"""`R`: the experiments and the active run of this process, under the names Qlib's users know."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import C
from .errors import NotInitializedError
from .tracking.experiment import Experiment
from .tracking.manager import ExpManager, default_manager
from .tracking.recorder import Recorder

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["QlibRecorder", "R"]


class QlibRecorder:
    """What scripts call ``R``: every call acts on the active run, or on the default experiment.

    Parameters
    ----------
    exp_manager : ExpManager, optional
        Default: the manager of this process, which needs `qwf.init` or ``QWF_URI``.
    """

    def __init__(self, exp_manager: ExpManager | None = None) -> None:
        self._exp_manager = exp_manager

    @property
    def exp_manager(self) -> ExpManager:
        """The manager that does the work.

        Raises
        ------
        NotInitializedError
            If nobody said where the store is.
        """
        if self._exp_manager is not None:
            return self._exp_manager
        if not C.located:
            raise NotInitializedError(
                "R was used before qwf.init. Please run qwf.init(uri='path/of/the/store') first, "
                "or set QWF_URI."
            )
        return default_manager()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(manager={self.exp_manager!r})"

    # --- starting and ending ---

    @contextlib.contextmanager
    def start(
        self,
        *,
        experiment_id: str | None = None,
        experiment_name: str | None = None,
        recorder_id: str | None = None,
        recorder_name: str | None = None,
        uri: str | PathLike[str] | None = None,
        resume: bool = False,
        parent_id: str | None = None,
    ) -> Iterator[Experiment]:
        """Run a ``with`` block as one run.

        Yields the experiment; its ``active_recorder`` is the run. The run ends FINISHED, or
        FAILED when anything is raised (an interrupt and an exit included), which is passed on.
        Runs that were started inside the block and not ended end with it, wherever it is left.
        See `ExpManager.start_exp` and `ExpManager.run`; blocks may be nested.

        Examples
        --------
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as directory:
        ...     manager = ExpManager(directory)
        ...     with QlibRecorder(manager).start(experiment_name="demo") as experiment:
        ...         recorder = experiment.active_recorder
        ...         recorder.log_metrics(loss=0.5)
        ...     recorder.status, recorder.list_metrics()
        ('FINISHED', {'loss': 0.5})
        """
        with self.exp_manager.run(
            experiment_id=experiment_id,
            experiment_name=experiment_name,
            recorder_id=recorder_id,
            recorder_name=recorder_name,
            uri=uri,
            resume=resume,
            parent_id=parent_id,
        ) as run:
            yield run

    def start_exp(
        self,
        *,
        experiment_id: str | None = None,
        experiment_name: str | None = None,
        recorder_id: str | None = None,
        recorder_name: str | None = None,
        uri: str | PathLike[str] | None = None,
        resume: bool = False,
        parent_id: str | None = None,
    ) -> Experiment:
        """Start a run that lasts until `end_exp`; see `ExpManager.start_exp`."""
        return self.exp_manager.start_exp(
            experiment_id=experiment_id,
            experiment_name=experiment_name,
            recorder_id=recorder_id,
            recorder_name=recorder_name,
            uri=uri,
            resume=resume,
            parent_id=parent_id,
        )

    def end_exp(self, recorder_status: str = Recorder.STATUS_FI) -> None:
        """End the active run; nothing happens when none is active."""
        self.exp_manager.end_exp(recorder_status)

    # --- experiments ---

    def list_experiments(self) -> dict[str, Experiment]:
        """Return name -> experiment, newest first."""
        return self.exp_manager.list_experiments()

    def get_exp(
        self,
        *,
        experiment_id: str | None = None,
        experiment_name: str | None = None,
        create: bool = True,
        start: bool = False,
    ) -> Experiment:
        """Return an experiment; see `ExpManager.get_exp`."""
        return self.exp_manager.get_exp(
            experiment_id=experiment_id,
            experiment_name=experiment_name,
            create=create,
            start=start,
        )

    def delete_exp(
        self, experiment_id: str | None = None, experiment_name: str | None = None
    ) -> None:
        """Move an experiment to the trash; see `ExpManager.delete_exp`."""
        self.exp_manager.delete_exp(experiment_id, experiment_name)

    def restore_exp(self, experiment_name: str) -> Experiment:
        """Bring back a deleted experiment; see `ExpManager.restore_exp`."""
        return self.exp_manager.restore_exp(experiment_name)

    # --- where ---

    def get_uri(self) -> str:
        """Return the store that is meant here and now."""
        return self.exp_manager.uri

    def set_uri(self, uri: str | PathLike[str]) -> None:
        """Mean another store by default; what is active stays where it is."""
        self.exp_manager.default_uri = uri

    @contextlib.contextmanager
    def uri_context(self, uri: str | PathLike[str]) -> Iterator[None]:
        """Mean another store for the length of a ``with`` block."""
        with self.exp_manager.uri_context(uri):
            yield

    # --- recorders ---

    def search_records(
        self, experiment_ids: str | Sequence[str] | None = None, **kwargs: Any
    ) -> pd.DataFrame:
        """Return the recorders that match as a DataFrame; see `ExpManager.search_records`."""
        return self.exp_manager.search_records(experiment_ids, **kwargs)

    def list_recorders(
        self,
        experiment_id: str | None = None,
        experiment_name: str | None = None,
        *,
        max_results: int | None = None,
        status: str | None = None,
        filter_string: str = "",
    ) -> dict[str, Recorder]:
        """Return id -> recorder of an experiment, newest first; see `Experiment.list_recorders`.

        Raises
        ------
        ExperimentNotFoundError
            If there is no experiment of that id or name: reading creates nothing.
        """
        nothing_named = experiment_id is None and experiment_name is None
        if nothing_named and self.exp_manager.find_exp() is None:
            return {}
        experiment = self.get_exp(
            experiment_id=experiment_id, experiment_name=experiment_name, create=False
        )
        return experiment.list_recorders(
            max_results=max_results, status=status, filter_string=filter_string
        )

    def get_recorder(
        self,
        *,
        recorder_id: str | None = None,
        recorder_name: str | None = None,
        experiment_id: str | None = None,
        experiment_name: str | None = None,
    ) -> Recorder:
        """Return an existing recorder; see `Experiment.get_recorder`.

        Raises
        ------
        ExperimentNotFoundError, RecorderNotFoundError
            If there is none; both are ValueErrors.
        """
        experiment = self.get_exp(
            experiment_id=experiment_id, experiment_name=experiment_name, create=False
        )
        return experiment.get_recorder(recorder_id, recorder_name, create=False)

    def delete_recorder(
        self, recorder_id: str | None = None, recorder_name: str | None = None
    ) -> None:
        """Move a recorder of the active (else the default) experiment to the trash."""
        self.get_exp().delete_recorder(recorder_id, recorder_name)

    def restore_recorder(self, recorder_id: str) -> Recorder:
        """Bring back a deleted recorder; see `ExpManager.restore_recorder`."""
        return self.exp_manager.restore_recorder(recorder_id)

    # --- the active run ---

    def _active(self) -> Recorder:
        """Return the active run; start one in the default experiment when there is none."""
        active = self.exp_manager.active_experiment
        if active is not None and active.active_recorder is not None:
            return active.active_recorder  # the short way: this is called for every metric
        return self.get_exp(start=True).get_recorder(start=True)

    @contextlib.contextmanager
    def _active_or_own(self) -> Iterator[Recorder]:
        """Give the active run, or one that lasts for this call only."""
        if self.exp_manager.active_experiment is not None:
            yield self._active()
            return
        with self.start() as run:
            assert run.active_recorder is not None  # `start` made it
            yield run.active_recorder

    def save_objects(
        self,
        /,
        local_path: str | Path | None = None,
        artifact_path: str | None = None,
        **objects: Any,
    ) -> None:
        """Save objects or files in the active run; see `Recorder.save_objects`.

        When none is active, they are saved in a new run of the default experiment, which ends
        FINISHED with this call.
        """
        if (local_path is None) == (not objects):
            raise ValueError(
                "save_objects takes either local_path or objects as keywords. Nothing was saved."
            )
        with self._active_or_own() as recorder:
            recorder.save_objects(local_path, artifact_path, **objects)

    def load_object(self, name: str) -> Any:
        """Load an artifact of the active run, else of the default experiment's newest."""
        return self.get_recorder().load_object(name)

    def log_params(self, /, **params: Any) -> None:
        """Log params in the active run; when none is active, one is started and stays active."""
        self._active().log_params(**params)

    def log_metrics(self, /, step: int | None = None, **metrics: Any) -> None:
        """Log metrics in the active run; when none is active, one is started and stays active."""
        self._active().log_metrics(step=step, **metrics)

    def log_metric_history(self, metrics: Any, steps: Any = None) -> None:
        """Log arrays or a DataFrame in the active run; see `Recorder.log_metric_history`."""
        self._active().log_metric_history(metrics, steps)

    def log_artifact(self, local_path: str | Path, artifact_path: str | None = None) -> None:
        """Copy a file into the active run; when none is active, one is started and stays active."""
        self._active().log_artifact(local_path, artifact_path)

    def set_tags(self, /, **tags: Any) -> None:
        """Set tags of the active run; when none is active, one is started and stays active."""
        self._active().set_tags(**tags)

    def download_artifact(self, path: str, dst_path: str | Path | None = None) -> str:
        """Return a local path of an artifact; see `Recorder.download_artifact`."""
        return self.get_recorder().download_artifact(path, dst_path)


R = QlibRecorder()
