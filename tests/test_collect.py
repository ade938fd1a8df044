"""Collectors: which recorders, which artifacts, under which keys."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from qwf import R
from qwf.collect import Collector, MergeCollector, RecorderCollector, list_recorders
from qwf.errors import ArtifactCorruptError, DataError, ExperimentNotFoundError, LoadObjectError
from qwf.tracking.recorder import Recorder


def new_run(status: str = "FINISHED", experiment: str = "e", **artifacts: Any) -> Recorder:
    R.start_exp(experiment_name=experiment)
    if artifacts:
        R.save_objects(**{f"{name}.pkl": obj for name, obj in artifacts.items()})
    recorder = R.get_recorder()
    R.end_exp(status)
    return recorder


def damage(recorder: Recorder, name: str) -> None:
    Path(recorder.get_local_dir(), "artifacts", name).write_bytes(b"?")


class Fixed(Collector):
    def __init__(self, found: dict[Any, Any], process_list: Any = ()) -> None:
        super().__init__(process_list)
        self.found = found

    def collect(self) -> dict[Any, Any]:
        return self.found


# --- which recorders -------------------------------------------------------------------------


def test_check_57_finished_recorders_are_collected_newest_first(store: Path) -> None:
    old = new_run(pred=1)
    new_run("FAILED", pred=2)
    new_run("SCHEDULED", pred=3)
    new = new_run(pred=4)
    collected = RecorderCollector("e").collect()
    assert collected == {"pred": {new.id: 4, old.id: 1}}
    assert list(collected["pred"]) == [new.id, old.id]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("FAILED", [2]),
        (["FAILED", "FINISHED"], [4, 2, 1]),
        ({"SCHEDULED"}, [3]),
        (None, [4, 3, 2, 1]),
        ((), []),
    ],
)
def test_check_57_the_status_says_which_are_looked_at(
    store: Path, status: Any, expected: list[int]
) -> None:
    for one, pred in (("FINISHED", 1), ("FAILED", 2), ("SCHEDULED", 3), ("FINISHED", 4)):
        new_run(one, pred=pred)
    collected = RecorderCollector("e", status=status).collect()
    assert list(collected.get("pred", {}).values()) == expected


def test_check_57_a_filter_is_asked_for_recorders_of_the_right_status_only(store: Path) -> None:
    new_run("FAILED", pred=0)
    first, second = new_run(pred=1), new_run(pred=2)
    asked: list[str] = []

    def wanted(recorder: Recorder) -> bool:
        asked.append(recorder.id)
        return recorder.id != first.id

    collector = RecorderCollector("e", rec_filter_func=wanted)
    assert collector.collect() == {"pred": {second.id: 2}}
    assert asked == [second.id, first.id]
    other = collector.collect(rec_filter_func=lambda recorder: recorder.id == first.id)
    assert other == {"pred": {first.id: 1}}


def test_check_57_an_experiment_its_name_and_a_function_are_equal(store: Path) -> None:
    recorder = new_run(pred=1)
    experiment = R.get_exp(experiment_name="e")
    for source in ("e", experiment, lambda: [recorder]):
        assert RecorderCollector(source).collect() == {"pred": {recorder.id: 1}}
    assert RecorderCollector("e").get_exp_name() == "e"
    assert RecorderCollector(experiment).get_exp_name() == "e"
    with pytest.raises(DataError, match="function"):
        RecorderCollector(list).get_exp_name()


def test_an_experiment_is_looked_up_when_collecting_and_never_made(store: Path) -> None:
    collector = RecorderCollector("later")
    with pytest.raises(ExperimentNotFoundError, match="'later'"):
        collector.collect()
    assert not store.exists()
    recorder = new_run(experiment="later", pred=1)
    assert collector.collect() == {"pred": {recorder.id: 1}}


def test_list_kwargs_are_passed_on(store: Path) -> None:
    new_run(pred=1)
    newest = new_run(pred=2)
    collector = RecorderCollector("e", list_kwargs={"max_results": 1, "rtype": "dict"})
    assert collector.collect() == {"pred": {newest.id: 2}}


# --- which artifacts -------------------------------------------------------------------------


def test_check_57_what_is_missing_is_absent(store: Path) -> None:
    whole, without = new_run(pred=1, ic=2), new_run(pred=3)
    paths = {"p": "pred.pkl", "i": "ic.pkl", "n": "none.pkl"}
    collected = RecorderCollector("e", artifacts_path=paths).collect()
    assert collected == {"p": {without.id: 3, whole.id: 1}, "i": {whole.id: 2}}
    assert RecorderCollector("e", artifacts_path={"n": "none.pkl"}).collect() == {}


def test_check_57_without_only_exist_what_is_missing_raises(store: Path) -> None:
    new_run()
    with pytest.raises(LoadObjectError, match=r"no artifact 'pred.pkl'"):
        RecorderCollector("e").collect(only_exist=False)


def test_a_damaged_artifact_is_passed_over_with_a_warning_or_raised(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, broken = new_run(pred=1), new_run(pred=2)
    damage(broken, "pred.pkl")
    collector = RecorderCollector("e")
    assert collector.collect() == {"pred": {whole.id: 1}}
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "pred.pkl is damaged" in record.getMessage()
    with pytest.raises(ArtifactCorruptError):
        collector.collect(only_exist=False)


def test_check_57_the_key_raw_gives_the_recorder(store: Path) -> None:
    recorder = new_run()
    assert RecorderCollector.ART_KEY_RAW == "__raw"
    collected = RecorderCollector("e", artifacts_key=["__raw", "pred"]).collect()
    assert collected == {"__raw": {recorder.id: recorder}}
    assert RecorderCollector("e").collect(artifacts_key="__raw") == collected


def test_the_artifacts_wanted_can_be_chosen(store: Path) -> None:
    recorder = new_run(a=1, b=2)
    paths = {"a": "a.pkl", "b": "b.pkl"}
    assert RecorderCollector("e", artifacts_path=paths, artifacts_key="b").collect() == {
        "b": {recorder.id: 2}
    }
    chosen = RecorderCollector("e", artifacts_path=paths).collect(artifacts_key=["a"])
    assert chosen == {"a": {recorder.id: 1}}
    with pytest.raises(KeyError, match="did you mean 'pred'"):
        RecorderCollector("e", artifacts_key="perd")
    with pytest.raises(KeyError, match="'c'"):
        RecorderCollector("e", artifacts_path=paths).collect(artifacts_key="c")


# --- under which keys ------------------------------------------------------------------------


def test_check_57_of_equal_keys_the_newest_run_wins(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = new_run(pred=1)
    new_run(pred=2)
    collected = RecorderCollector("e", rec_key_func=lambda recorder: "same").collect()
    assert collected == {"pred": {"same": 2}}
    (record,) = caplog.records
    assert old.id in record.getMessage()


def test_a_newest_run_without_the_artifact_does_not_hide_an_older_one(store: Path) -> None:
    new_run(pred=1)
    new_run()
    collected = RecorderCollector("e", rec_key_func=lambda recorder: "same").collect()
    assert collected == {"pred": {"same": 1}}


def test_all_artifacts_of_a_key_come_from_one_run(store: Path) -> None:
    new_run(pred="old", label="old")
    newer = new_run(pred="new", label="new")
    damage(newer, "pred.pkl")
    paths = {"pred": "pred.pkl", "label": "label.pkl"}
    collector = RecorderCollector("e", rec_key_func=lambda _: "same", artifacts_path=paths)
    assert collector.collect() == {"label": {"same": "new"}}
    damage(newer, "label.pkl")
    assert collector.collect() == {"pred": {"same": "old"}, "label": {"same": "old"}}
    new_run("FAILED", pred="failed")
    assert collector.collect() == {"pred": {"same": "old"}, "label": {"same": "old"}}


def test_keys_are_made_by_a_function_of_the_recorder(store: Path) -> None:
    for number in (1, 2):
        new_run(task={"number": number}, pred=number * 10)
    collector = RecorderCollector(
        "e", rec_key_func=lambda recorder: ("m", recorder.load_object("task.pkl")["number"])
    )
    assert collector.collect() == {"pred": {("m", 2): 20, ("m", 1): 10}}


# --- processing ------------------------------------------------------------------------------


def test_processes_are_applied_in_order_to_each_artifact(store: Path) -> None:
    new_run(pred=1)
    new_run(pred=2)
    collector = RecorderCollector("e", [lambda found: sorted(found.values()), sum])
    assert collector() == {"pred": 3}
    assert RecorderCollector("e", lambda found: len(found))() == {"pred": 2}


def test_process_collect_passes_arguments_and_changes_nothing() -> None:
    found = {"a": 1, "b": 2}
    result = Collector.process_collect(found, [lambda x, by, plus: x * by + plus], 10, plus=1)
    assert result == {"a": 11, "b": 21}
    assert found == {"a": 1, "b": 2}
    assert Collector.process_collect(found) == found


@pytest.mark.parametrize("bad", [["text"], [len, 3]])
def test_a_process_that_cannot_be_called_is_refused(bad: list[Any]) -> None:
    with pytest.raises(NotImplementedError, match="cannot be called"):
        Fixed({}, bad)


def test_check_57_merged_keys_are_pairs_or_made_by_a_function() -> None:
    parts = {"A": Fixed({"x": 1, "y": 2}), "B": Fixed({"x": 3}, [lambda value: value * 100])}
    assert MergeCollector(parts)() == {("A", "x"): 1, ("A", "y"): 2, ("B", "x"): 300}
    merged = MergeCollector(parts, [str], merge_func=lambda one, key: f"{one}.{key}")
    assert merged() == {"A.x": "1", "A.y": "2", "B.x": "300"}
    assert MergeCollector({})() == {}


# --- list_recorders --------------------------------------------------------------------------


def test_list_recorders_filters_and_keeps_the_order(store: Path) -> None:
    old, new = new_run(), new_run("FAILED")
    assert list(list_recorders("e")) == [new.id, old.id]
    experiment = R.get_exp(experiment_name="e")
    wanted = list_recorders(experiment, lambda recorder: recorder.status == "FINISHED")
    assert list(wanted) == [old.id]
    assert list_recorders("e", lambda recorder: False) == {}


def test_list_recorders_of_a_typo_raises_and_creates_nothing(store: Path) -> None:
    new_run()
    with pytest.raises(ExperimentNotFoundError, match=r"did you mean 'e'|there are: 'e'"):
        list_recorders("ee")
    assert list(R.list_experiments()) == ["e"]


def test_a_broken_recorder_does_not_stop_a_collection(store: Path) -> None:
    whole, broken = new_run(pred=1), new_run(pred=2)
    Path(broken.get_local_dir(), "recorder.json").write_text("{")
    assert RecorderCollector("e").collect() == {"pred": {whole.id: 1}}
    filtered = RecorderCollector(
        "e", rec_filter_func=lambda recorder: "cmd-sys.argv" in recorder.list_params()
    )
    assert filtered.collect() == {"pred": {whole.id: 1}}


def test_a_broken_recorder_is_passed_over_whatever_the_status_wanted(store: Path) -> None:
    whole, broken = new_run(pred=1), new_run(pred=2)
    Path(broken.get_local_dir(), "recorder.json").write_text("{")
    assert RecorderCollector("e", status=None).collect() == {"pred": {whole.id: 1}}
