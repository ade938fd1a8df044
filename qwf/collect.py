"""From recorders to objects: which recorders, which artifacts, and what is made of them."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final, TypeAlias

from .errors import DataError, LoadObjectError, suggest
from .tracking.experiment import Experiment
from .tracking.manager import default_manager
from .tracking.recorder import Recorder

__all__ = ["Collector", "MergeCollector", "RecorderCollector", "list_recorders"]

_logger: Final = logging.getLogger("qwf.collect")

Process: TypeAlias = Callable[..., Any]
Processes: TypeAlias = "Process | Iterable[Process]"


def _as_list(process_list: Processes) -> list[Process]:
    processes = [process_list] if callable(process_list) else list(process_list)
    for process in processes:
        if not callable(process):
            raise NotImplementedError(
                f"{process!r} in process_list cannot be called; expected ensembles, groups or "
                "functions."
            )
    return processes


class Collector(ABC):
    """Collects something and processes it: ``collector()`` does both.

    Parameters
    ----------
    process_list : callable or iterable of callables
        Applied one after the other to each collected value.
    """

    def __init__(self, process_list: Processes = ()) -> None:
        self.process_list = _as_list(process_list)

    @abstractmethod
    def collect(self) -> dict[Any, Any]:
        """Return a dict of what there is."""

    @staticmethod
    def process_collect(
        collected_dict: Mapping[Any, Any],
        process_list: Processes = (),
        *args: Any,
        **kwargs: Any,
    ) -> dict[Any, Any]:
        """Apply the processes in order to each value of a dict; the dict is not changed."""
        result = {}
        for key, value in collected_dict.items():
            for process in _as_list(process_list):
                value = process(value, *args, **kwargs)
            result[key] = value
        return result

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """Collect and process."""
        return self.process_collect(self.collect(), self.process_list, *args, **kwargs)


class MergeCollector(Collector):
    """Several collectors as one.

    Parameters
    ----------
    collector_dict : dict of str to Collector
    process_list : callables
        See `Collector`.
    merge_func : callable, optional
        ``merge_func(collector_key, key)`` makes the key of the result; default: the pair of both.
    """

    def __init__(
        self,
        collector_dict: Mapping[Any, Collector],
        process_list: Processes = (),
        merge_func: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        super().__init__(process_list)
        self.collector_dict = dict(collector_dict)
        self.merge_func = merge_func

    def collect(self) -> dict[Any, Any]:
        """Return what the collectors return, under merged keys."""
        merge = self.merge_func or (lambda collector_key, key: (collector_key, key))
        return {
            merge(collector_key, key): value
            for collector_key, collector in self.collector_dict.items()
            for key, value in collector().items()
        }


class RecorderCollector(Collector):
    """Collects artifacts of the recorders of an experiment.

    Parameters
    ----------
    experiment : Experiment, str or callable
        The experiment, its name, or a function that returns a list of recorders. A name is
        looked up when collecting.
    process_list : callables
        See `Collector`; for example ``RollingGroup()``.
    rec_key_func : callable, optional
        Makes the key of a recorder; default: its id. Of recorders with equal keys the newest
        that has any of the wanted artifacts owns the key, with a warning: what it lacks is not
        taken from an older one, so that all artifacts of a key belong together.
    rec_filter_func : callable, optional
        Says whether a recorder is wanted.
    artifacts_path : dict of str to str, default ``{"pred": "pred.pkl"}``
        Name in the result -> artifact. The name ``"__raw"`` gives the recorder itself.
    artifacts_key : str or list of str, optional
        Which of these names to collect; default: all.
    list_kwargs : dict, optional
        Passed to `Experiment.list_recorders`.
    status : str or collection of str, default ``{"FINISHED"}``
        Which recorders are looked at; None for all.
    """

    ART_KEY_RAW: Final = "__raw"

    def __init__(
        self,
        experiment: Experiment | str | Callable[[], list[Recorder]],
        process_list: Processes = (),
        rec_key_func: Callable[[Recorder], Any] | None = None,
        rec_filter_func: Callable[[Recorder], bool] | None = None,
        artifacts_path: Mapping[str, str] | None = None,
        artifacts_key: str | Iterable[str] | None = None,
        list_kwargs: Mapping[str, Any] | None = None,
        status: str | Collection[str] | None = (Recorder.STATUS_FI,),
    ) -> None:
        super().__init__(process_list)
        self.experiment = experiment
        self.rec_key_func = rec_key_func
        self.rec_filter_func = rec_filter_func
        self.artifacts_path = dict(artifacts_path or {"pred": "pred.pkl"})
        self.artifacts_key = self._known_keys(artifacts_key)
        self.list_kwargs = {**(list_kwargs or {}), "rtype": Experiment.RT_L}
        self.status = (status,) if isinstance(status, str) else status

    def _known_keys(self, keys: str | Iterable[str] | None) -> list[str]:
        if keys is None:
            return list(self.artifacts_path)
        wanted = [keys] if isinstance(keys, str) else list(keys)
        for key in wanted:
            if key not in self.artifacts_path and key != self.ART_KEY_RAW:
                known = [*self.artifacts_path, self.ART_KEY_RAW]
                raise KeyError(f"no artifact is named {key!r}; {suggest(key, known)}")
        return wanted

    def get_exp_name(self) -> str:
        """Return the name of the experiment.

        Raises
        ------
        DataError
            If the collector was given a function.
        """
        if isinstance(self.experiment, str):
            return self.experiment
        if isinstance(self.experiment, Experiment):
            return self.experiment.name
        raise DataError("this collector gets its recorders from a function, not an experiment.")

    def _recorders(self) -> list[Recorder]:
        """Return the recorders, newest first where they come from an experiment."""
        experiment = self.experiment
        if isinstance(experiment, str):
            experiment = default_manager().get_exp(experiment_name=experiment, create=False)
        if isinstance(experiment, Experiment):
            found: list[Recorder] = experiment.list_recorders(**self.list_kwargs)
            return found
        return experiment()

    def collect(
        self,
        artifacts_key: str | Iterable[str] | None = None,
        rec_filter_func: Callable[[Recorder], bool] | None = None,
        only_exist: bool = True,
    ) -> dict[str, dict[Any, Any]]:
        """Return artifact name -> recorder's key -> object.

        Parameters
        ----------
        artifacts_key, rec_filter_func
            Instead of those given to the collector.
        only_exist : bool, default True
            Pass over (with a warning) what a recorder lacks or what cannot be loaded; else raise.

        Returns
        -------
        dict
            Newest recorders first. An artifact that no recorder has is absent.

        Raises
        ------
        ExperimentNotFoundError
            If the experiment does not exist.
        LoadObjectError
            With ``only_exist=False``.
        """
        keys = self.artifacts_key if artifacts_key is None else self._known_keys(artifacts_key)
        wanted = rec_filter_func or self.rec_filter_func
        collected: dict[str, dict[Any, Any]] = {}
        owned = set()
        for recorder in self._recorders():
            if recorder.status == Recorder.STATUS_BROKEN:
                continue  # the listing has said so
            if self.status is not None and recorder.status not in self.status:
                continue
            if wanted is not None and not wanted(recorder):
                continue
            rec_key = recorder.id if self.rec_key_func is None else self.rec_key_func(recorder)
            if rec_key in owned:
                _logger.warning(
                    "recorder %s has the key %r of a newer one; the newer is kept",
                    recorder.id,
                    rec_key,
                )
                continue
            found = self._load(recorder, keys, only_exist=only_exist)
            for key, obj in found.items():
                collected.setdefault(key, {})[rec_key] = obj
            if found:
                owned.add(rec_key)
        return collected

    def _load(self, recorder: Recorder, keys: list[str], *, only_exist: bool) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key in keys:
            if key == self.ART_KEY_RAW:
                found[key] = recorder
                continue
            try:
                found[key] = recorder.load_object(self.artifacts_path[key])
            except LoadObjectError as error:
                if not only_exist:
                    raise
                _logger.warning("passed over: %s", error)
        return found


def list_recorders(
    experiment: str | Experiment, rec_filter_func: Callable[[Recorder], bool] | None = None
) -> dict[str, Recorder]:
    """Return id -> recorder of an experiment, newest first, of those that the filter wants.

    Raises
    ------
    ExperimentNotFoundError
        If there is no experiment of that name.
    """
    if isinstance(experiment, str):
        experiment = default_manager().get_exp(experiment_name=experiment, create=False)
    recorders: dict[str, Recorder] = experiment.list_recorders()
    if rec_filter_func is None:
        return recorders
    return {key: recorder for key, recorder in recorders.items() if rec_filter_func(recorder)}
