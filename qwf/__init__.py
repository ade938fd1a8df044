"""qwf: Qlib's workflow management on nothing but a directory.

``from qlib.<anything> import Name`` becomes ``from qwf import Name``. Names are loaded when they
are first used, so that ``import qwf`` alone costs a few milliseconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .config import C, init
from .errors import UnknownNameError, suggest
from .version import __version__

# Public name -> the module that defines it.
_PUBLIC = {
    # the active run, experiments, recorders
    "R": "facade",
    "QlibRecorder": "facade",
    "ExpManager": "tracking.manager",
    "Experiment": "tracking.experiment",
    "Recorder": "tracking.recorder",
    # records
    "RecordTemp": "records.base",
    "ACRecordTemp": "records.base",
    "SignalRecord": "records.signal",
    "SigAnaRecord": "records.signal",
    "calc_ic": "records.signal_metrics",
    "calc_long_short_return": "records.signal_metrics",
    "calc_long_short_prec": "records.signal_metrics",
    "pred_autocorr": "records.signal_metrics",
    # time
    "D": "calendar",
    "TradingCalendar": "calendar",
    "get_calendar": "calendar",
    "get_date_by_shift": "calendar",
    "transform_end_date": "calendar",
    "TimeAdjuster": "tasks.segments",
    "TaskGen": "tasks.generate",
    "RollingGen": "tasks.generate",
    "MultiHorizonGenBase": "tasks.generate",
    "task_generator": "tasks.generate",
    "handler_mod": "tasks.generate",
    "trunc_segments": "tasks.generate",
    "replace_task_handler_with_cache": "tasks.handler_cache",
    # the task pool
    "TaskManager": "tasks.manage",
    "run_task": "tasks.run",
    # training and collecting
    "Trainer": "trainer",
    "TrainerR": "trainer",
    "TrainerRM": "trainer",
    "DelayTrainerR": "trainer",
    "DelayTrainerRM": "trainer",
    "task_train": "trainer",
    "begin_task_train": "trainer",
    "end_task_train": "trainer",
    "Collector": "collect",
    "MergeCollector": "collect",
    "RecorderCollector": "collect",
    "list_recorders": "collect",
    "Ensemble": "ensemble",
    "SingleKeyEnsemble": "ensemble",
    "RollingEnsemble": "ensemble",
    "AverageEnsemble": "ensemble",
    "Group": "ensemble",
    "RollingGroup": "ensemble",
    # configuration to objects
    "init_instance_by_config": "instantiate",
    "get_callable_kwargs": "instantiate",
    "get_cls_kwargs": "instantiate",
    "get_module_by_module_path": "instantiate",
    "fill_placeholder": "instantiate",
    "flatten_dict": "instantiate",
    "update_config": "instantiate",
    "auto_filter_kwargs": "instantiate",
    "deepcopy_basic_type": "instantiate",
    "get_item_from_obj": "instantiate",
    "split_module_path": "instantiate",
    "hash_args": "instantiate",
    # ready-made parts
    "PricePanel": "data.panel",
    "read_panel": "data.panel",
    "PriceHandler": "data.handler",
    "DatasetH": "data.dataset",
    "LinearModel": "data.models",
    "EstimatorModel": "data.models",
    "DataHandlerLP": "data.handler",
    "Processor": "data.processors",
    "ZScoreNorm": "data.processors",
    "RobustZScoreNorm": "data.processors",
    "Fillna": "data.processors",
    "DropnaProcessor": "data.processors",
    "DropnaLabel": "data.processors",
    "CSZScoreNorm": "data.processors",
    "CSRankNorm": "data.processors",
    # protocols: what a model, dataset, record or calendar of yours has to have
    "Model": "types",
    "Dataset": "types",
    "Record": "types",
    "Calendar": "types",
    # errors
    "QwfError": "errors",
    "QlibException": "errors",
    "ExpAlreadyExistError": "errors",
    "ExperimentNotFoundError": "errors",
    "LoadObjectError": "errors",
    "RecorderInitializationError": "errors",
    "RecorderNotFoundError": "errors",
    "TrainingError": "errors",
    "LeaseLostError": "errors",
    "TasksFailedError": "errors",
    "PoolTimeoutError": "errors",
    "TaskNotFoundError": "errors",
}

__all__ = ["C", "__version__", "init", *_PUBLIC]


def __getattr__(name: str) -> Any:
    module = _PUBLIC.get(name)
    if module is None:
        raise UnknownNameError(f"qwf has no name {name!r}; {suggest(name, __all__)}")
    value = getattr(import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
