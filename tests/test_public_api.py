"""Every name that Qlib's users import from the root is there, documented, and takes their words."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import qwf

# Callable -> the parameter names of Qlib that it has to accept, in Qlib's order.
PARAMETERS = {
    "R.start": "experiment_id experiment_name recorder_id recorder_name uri resume",
    "R.start_exp": "experiment_id experiment_name recorder_id recorder_name uri resume",
    "R.end_exp": "recorder_status",
    "R.list_recorders": "experiment_id experiment_name",
    "R.get_exp": "experiment_id experiment_name create start",
    "R.delete_exp": "experiment_id experiment_name",
    "R.set_uri": "uri",
    "R.uri_context": "uri",
    "R.get_recorder": "recorder_id recorder_name experiment_id experiment_name",
    "R.delete_recorder": "recorder_id recorder_name",
    "R.save_objects": "local_path artifact_path",
    "R.load_object": "name",
    "R.log_metrics": "step",
    "R.log_artifact": "local_path artifact_path",
    "R.download_artifact": "path dst_path",
    "ExpManager": "uri default_exp_name",
    "ExpManager.end_exp": "self recorder_status",
    "ExpManager.create_exp": "self experiment_name",
    "Experiment.start": "self recorder_id recorder_name resume",
    "Experiment.end": "self recorder_status",
    "Experiment.create_recorder": "self recorder_name",
    "Experiment.get_recorder": "self recorder_id recorder_name create start",
    "Experiment.delete_recorder": "self recorder_id recorder_name",
    "Experiment.list_recorders": "self rtype max_results status",
    "Recorder.end_run": "self status",
    "Recorder.save_objects": "self local_path artifact_path",
    "Recorder.load_object": "self name unpickler",
    "Recorder.log_metrics": "self step",
    "Recorder.list_artifacts": "self artifact_path",
    "Recorder.download_artifact": "self path dst_path",
    "TimeAdjuster": "future end_time",
    "TimeAdjuster.align_idx": "self time_point tp_type",
    "TimeAdjuster.truncate": "self segment test_start days",
    "TimeAdjuster.shift": "self seg step rtype",
    "RollingGen": "step rtype ds_extra_mod_func test_key train_key trunc_days task_copy_func",
    "RollingGen.generate": "self task",
    "RollingGen.gen_following_tasks": "self task test_end",
    "MultiHorizonGenBase": "horizon label_leak_n",
    "task_generator": "tasks generators",
    "handler_mod": "task rolling_gen",
    "trunc_segments": "ta segments days test_key",
    "get_date_by_shift": "trading_date shift future clip_shift freq align",
    "transform_end_date": "end_date freq",
    "replace_task_handler_with_cache": "task cache_dir",
    "task_train": "task_config experiment_name recorder_name",
    "begin_task_train": "task_config experiment_name recorder_name",
    "end_task_train": "rec experiment_name",
    "TrainerR": "experiment_name train_func call_in_subproc default_rec_name",
    "TrainerR.train": "self tasks train_func experiment_name",
    "DelayTrainerR": "experiment_name train_func end_train_func",
    "DelayTrainerR.end_train": "self models end_train_func experiment_name",
    "TrainerRM": "experiment_name task_pool train_func skip_run_task default_rec_name",
    "TrainerRM.train": "self tasks train_func experiment_name before_status after_status "
    "default_rec_name",
    "TrainerRM.end_train": "self recs",
    "TrainerRM.worker": "self train_func experiment_name",
    "DelayTrainerRM": "experiment_name task_pool train_func end_train_func skip_run_task",
    "DelayTrainerRM.train": "self tasks train_func experiment_name",
    "DelayTrainerRM.end_train": "self recs end_train_func experiment_name",
    "DelayTrainerRM.worker": "self end_train_func experiment_name",
    "Collector": "process_list",
    "MergeCollector": "collector_dict process_list merge_func",
    "RecorderCollector": "experiment process_list rec_key_func rec_filter_func artifacts_path "
    "artifacts_key list_kwargs status",
    "RecorderCollector.collect": "self artifacts_key rec_filter_func only_exist",
    "list_recorders": "experiment rec_filter_func",
    "SignalRecord": "model dataset recorder",
    "SigAnaRecord": "recorder ana_long_short ann_scaler label_col skip_existing",
    "SingleKeyEnsemble.__call__": "self ensemble_dict recursion",
    "Group": "group_func ens",
    "init_instance_by_config": "config default_module accept_types try_kwargs",
    "fill_placeholder": "config config_extend",
    "flatten_dict": "d parent_key sep",
    "auto_filter_kwargs": "func warning",
    "calc_ic": "pred label date_col dropna",
    "calc_long_short_return": "pred label date_col quantile dropna",
}


def resolve(path: str) -> Any:
    found: Any = qwf
    for part in path.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", sorted(qwf.__all__))
def test_every_public_name_exists(name: str) -> None:
    assert getattr(qwf, name) is not None


@pytest.mark.parametrize("name", sorted(qwf.__all__))
def test_every_public_class_and_function_and_its_methods_are_documented(name: str) -> None:
    found = getattr(qwf, name)
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        return
    assert (found.__doc__ or "").strip(), name
    if inspect.isclass(found):
        for method, value in vars(found).items():
            if not method.startswith("_") and inspect.isfunction(value):
                assert inspect.getdoc(value) or inspect.getdoc(getattr(found, method)), method


@pytest.mark.parametrize("path", PARAMETERS)
def test_qlibs_parameters_are_accepted(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = list(inspect.signature(resolve(path)).parameters)
    wanted = PARAMETERS[path].split()
    assert [name for name in parameters if name in wanted] == wanted, parameters


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(AttributeError, match="did you mean 'RollingGen'"):
        qwf.RollinGen  # noqa: B018
    assert not hasattr(qwf, "nothing_like_this")


def test_from_import_of_an_unknown_name_is_an_import_error() -> None:
    with pytest.raises(ImportError):
        from qwf import NoSuchName  # type: ignore[attr-defined] # noqa: F401
