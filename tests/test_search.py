"""Searching recorders that are really on disk: as MLflow answers, and across experiments."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import Children, FaultyOs

from qwf import R
from qwf.errors import FilterError, SearchArgumentError
from qwf.storage import fsio, layout
from qwf.tracking import catalog
from qwf.tracking.experiment import Experiment
from qwf.tracking.metadata import encode_param, new_recorder
from qwf.tracking.recorder import Recorder

ORACLE = json.loads(
    gzip.decompress(
        (Path(__file__).parent / "oracles" / "search" / "mlflow_sqlite.json.gz").read_bytes()
    )
)
VIEWS = {"ACTIVE_ONLY": 1, "DELETED_ONLY": 2, "ALL": 3}
# Filters that MLflow refuses and qwf understands, and what they find; see test_filters.py.
RICHER = {
    "params.model IN ('LGB', 'GRU')": {0, 2, 3, 5, 6, 8, 11},
    "metrics.IC > 0 or params.model = 'LGB'": {0, 1, 2, 3, 4, 6},
    "(metrics.IC > 0)": {0, 1, 2, 3, 4},
}
# MLflow forgets in silence whatever was to follow.
CARELESS = {"metrics.IC > 0 and"}
NO_LIMIT = 50_000  # that of MLflow

ATTRIBUTES = [
    "run_id",
    "run_name",
    "experiment_id",
    "status",
    "start_time",
    "end_time",
    "parent_id",
]


def moment(milliseconds: int) -> str:
    at = datetime(1970, 1, 1) + timedelta(milliseconds=milliseconds)
    return f"{at.isoformat(timespec='microseconds')}Z"


def write_run(experiment: Experiment, run: dict[str, Any]) -> str:
    """Write a recorder as its process would have, with the times of a run of MLflow."""
    identity = layout.new_recorder_id()
    document = new_recorder(identity, run["name"], experiment.id, run["status"])
    started, running = run["start_time"], run["status"] == "RUNNING"
    session = {
        **document["sessions"][0],
        "started_at": moment(started),
        "ended_at": None if running else moment(started + 500),
    }
    points = {
        key: [(float(value), step) for step, value in values]
        for key, values in run["metrics"].items()
    }
    summary = {
        key: {
            "value": values[-1][0] if math.isfinite(values[-1][0]) else repr(values[-1][0]),
            "step": values[-1][1],
            "time": started / 1000,
        }
        for key, values in points.items()
    }
    experiment._store.create_recorder(
        experiment.id,
        identity,
        {
            **document,
            "started_at": moment(started),
            "ended_at": session["ended_at"],
            "sessions": [session],
            "params": {key: encode_param(text) for key, text in run["params"].items()},
            "tags": run["tags"],
            "metrics": {} if running else summary,
        },
    )
    if running:  # what it has logged until now is in its journal
        recorder = experiment.get_recorder(identity)
        for key, values in points.items():
            for value, step in values:
                recorder.log_metrics(step=step, **{key: value})
    return identity


@pytest.fixture
def twelve(store: Path) -> Experiment:
    """The experiment of the oracle."""
    experiment = R.get_exp(experiment_name="twelve")
    ids = {run["name"]: write_run(experiment, run) for run in ORACLE["runs"]}
    for name in ORACLE["deleted"]:
        experiment.delete_recorder(ids[name])
    return experiment


def by_start(names: list[str]) -> list[set[str]]:
    """Return names in order; those in a row that start together, in random order, as a set."""
    starts = {run["name"]: run["start_time"] for run in ORACLE["runs"]}
    return [set(group) for _, group in itertools.groupby(names, key=starts.__getitem__)]


def names(frame: pd.DataFrame) -> list[str]:
    return list(frame["run_name"])


# --- as MLflow -----------------------------------------------------------------------------------


def test_every_filter_finds_the_recorders_that_it_finds_in_mlflow(twelve: Experiment) -> None:
    for case in ORACLE["filters"]:
        text = case["filter"]
        if text in RICHER:
            found = names(R.search_records(twelve.id, filter_string=text))
            assert set(found) == {f"rec{number}" for number in RICHER[text]}, text
        elif "error" in case or text in CARELESS:
            with pytest.raises(FilterError):
                R.search_records(twelve.id, filter_string=text)
        else:
            found = names(R.search_records(twelve.id, filter_string=text))
            assert by_start(found) == by_start(case["ok"]), text
            listed = twelve.list_recorders("list", filter_string=text)
            assert [recorder.name for recorder in listed] == found, text


def test_every_order_is_that_of_mlflow(twelve: Experiment) -> None:
    for case in ORACLE["orders"]:
        order = case["order_by"]
        if "error" in case:
            with pytest.raises(FilterError):
                R.search_records(twelve.id, order_by=order)
            continue
        found = names(R.search_records(twelve.id, order_by=order))
        assert by_start(found) == by_start(case["ok"]), order
        if order and len(order) == 1:
            assert names(R.search_records(twelve.id, order_by=order[0])) == found, order


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_shows_what_it_shows_in_mlflow(twelve: Experiment, view: str) -> None:
    found = R.search_records(twelve.id, run_view_type=VIEWS[view])
    assert by_start(names(found)) == by_start(ORACLE["views"][view]["ok"])


def test_as_many_results_as_mlflow_gives_and_more(twelve: Experiment) -> None:
    for text, case in ORACLE["max_results"].items():
        number = int(text)
        if "error" in case and number <= NO_LIMIT:
            with pytest.raises(SearchArgumentError, match="positive"):
                R.search_records(twelve.id, max_results=number)
            continue
        found = R.search_records(twelve.id, max_results=number, order_by="metrics.IC DESC")
        expected = case.get("ok", ORACLE["max_results"][str(NO_LIMIT)]["ok"])
        assert names(found) == expected, number


def test_the_last_value_of_each_metric_is_that_of_mlflow(twelve: Experiment) -> None:
    found = R.search_records(twelve.id, run_view_type=3).set_index("run_name")
    for name, metrics in ORACLE["last_metric"].items():
        for key in ("IC", "ICIR"):
            value = float(metrics.get(key, "nan"))
            shown = found[f"metrics.{key}"][name]
            assert shown == value or (math.isnan(shown) and math.isnan(value)), (name, key)


def test_the_answers_are_the_same_whether_an_index_is_there(
    twelve: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers() -> list[pd.DataFrame]:
        catalog._catalogs.clear()  # as a new process
        texts = [case["filter"] for case in ORACLE["filters"] if "ok" in case]
        texts = [text for text in texts if text not in CARELESS]
        return [R.search_records(twelve.id, filter_string=text) for text in texts]

    index = twelve._store.index_directory(twelve.id)
    plain = answers()
    assert not fsio.list_names(index)
    monkeypatch.setattr(catalog, "_FEW", 1)
    R.search_records(twelve.id)
    indexed = answers()
    assert fsio.list_names(index)
    for one, other in zip(plain, indexed, strict=True):
        pd.testing.assert_frame_equal(one, other)


# --- the frame -----------------------------------------------------------------------------------


def test_the_frame_has_the_documented_columns_and_types(twelve: Experiment) -> None:
    frame = R.search_records(twelve.id)
    keys = {
        family: sorted(
            {key for run in ORACLE["runs"] if run["name"] != "rec9" for key in run[family]}
        )
        for family in ("metrics", "params", "tags")
    }
    assert list(frame.columns) == [
        *ATTRIBUTES,
        *(f"{family}.{key}" for family in keys for key in keys[family]),
    ]
    for name, kind in frame.dtypes.items():
        if name in ("start_time", "end_time"):
            assert kind == "datetime64[ns, UTC]"
        else:
            assert kind == ("float64" if str(name).startswith("metrics.") else object), name
    assert list(frame.index) == list(range(11))
    rows = frame.set_index("run_name")
    assert rows["start_time"]["rec0"] == datetime(2023, 11, 14, 22, 13, 20, tzinfo=timezone.utc)
    assert rows["end_time"]["rec0"] - rows["start_time"]["rec0"] == timedelta(milliseconds=500)
    assert rows["end_time"]["rec2"] is pd.NaT
    assert rows["params.cmd-sys.argv"]["rec6"] == "run.py --x"
    assert rows["params.cmd-sys.argv"]["rec0"] is None
    assert rows["tags.has space"]["rec0"] is None
    assert math.isnan(rows["metrics.ICIR"]["rec0"])
    assert set(rows["parent_id"]) == {None}
    assert set(rows["experiment_id"]) == {"twelve"}


@pytest.mark.parametrize("how", ["no store", "no recorder", "no match", "unknown experiment"])
def test_an_empty_answer_has_the_columns_that_every_recorder_has(store: Path, how: str) -> None:
    ids, text = "e", ""
    if how != "no store":
        R.get_exp(experiment_name="e")
    if how == "no match":
        R.get_exp(experiment_name="e").create_recorder().start_run().end_run("FINISHED")
        text = "params.none = 'x'"
    if how == "unknown experiment":
        ids = "unknown"
    for frame in (R.search_records(ids, filter_string=text), R.search_records([], max_results=1)):
        assert (len(frame), list(frame.columns)[:7]) == (0, ATTRIBUTES)
        assert frame["start_time"].dtype == "datetime64[ns, UTC]"
        assert frame["run_id"].dtype == object
    assert store.exists() == (how != "no store")  # searching creates nothing


def test_a_param_of_any_type_is_text_in_the_frame_and_the_filter(store: Path) -> None:
    with R.start(experiment_name="e"):
        R.log_params(number=0.5, flag=True, nothing=None, items=(1, "a"), text="x")
    (row,) = R.search_records("e").to_dict("records")
    assert {
        key: row[f"params.{key}"] for key in ("number", "flag", "nothing", "items", "text")
    } == {
        "number": "0.5",
        "flag": "True",
        "nothing": "None",
        "items": "(1, 'a')",
        "text": "x",
    }
    assert len(R.search_records("e", filter_string="params.flag = 'True'")) == 1
    assert len(R.search_records("e", filter_string="params.number = '0.5'")) == 1


# --- mistakes ------------------------------------------------------------------------------------


def test_a_wrong_filter_or_order_shows_where_and_reads_nothing(store: Path) -> None:
    (store / "experiments").mkdir(parents=True)
    text = "metrics.IC > 0.05 and params.model ~ 'LGB'"
    for search in (
        lambda: R.search_records(filter_string=text),
        lambda: R.get_exp(experiment_name="e").search_records(text),
        lambda: R.get_exp(experiment_name="e").list_recorders(filter_string=text),
    ):
        with pytest.raises(FilterError) as caught:
            search()
        lines = str(caught.value).splitlines()
        (at,) = [number for number, line in enumerate(lines) if line.strip() == "^"]
        assert lines[at - 1][lines[at].index("^") :].startswith("~")
        assert isinstance(caught.value, ValueError)
    with pytest.raises(FilterError, match="SIDEWAYS"):
        R.search_records(order_by="metrics.IC SIDEWAYS")


@pytest.mark.parametrize("wrong", [{"run_view_type": 0}, {"run_view_type": "ALL"},
                                   {"max_results": 0}, {"max_results": -1}])  # fmt: skip
def test_a_wrong_argument_is_told_with_what_is_expected(store: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(SearchArgumentError, match="expected") as caught:
        R.search_records(**wrong)
    assert repr(*wrong.values()) in str(caught.value)


# --- experiments ---------------------------------------------------------------------------------


def new_run(experiment: str, recorder: str | None = None, **metrics: float) -> Recorder:
    with R.start(experiment_name=experiment, recorder_name=recorder):
        R.log_metrics(**metrics)
        return R.get_recorder()


def ids(frame: pd.DataFrame) -> list[str]:
    return list(frame["run_id"])


def test_a_search_crosses_experiments(store: Path) -> None:
    a, b, c = new_run("一/one", m=1.0), new_run("two", m=3.0), new_run("three", m=2.0)
    assert ids(R.search_records()) == [c.id, b.id, a.id]
    assert list(R.search_records()["experiment_id"]) == ["three", "two", "一%2Fone"]
    chosen = [a.experiment_id, b.experiment_id]
    assert ids(R.search_records(chosen)) == [b.id, a.id]
    assert ids(R.search_records([*chosen, "unknown", *chosen])) == [b.id, a.id]
    assert ids(R.search_records(order_by="metrics.m DESC")) == [b.id, c.id, a.id]
    assert ids(R.search_records(order_by="metrics.m", max_results=2)) == [a.id, c.id]
    assert ids(R.search_records(filter_string="metrics.m > 1")) == [c.id, b.id]
    assert ids(R.get_exp(experiment_name="two").search_records()) == [b.id]
    assert ids(R.search_records([])) == []
    assert ids(R.search_records(["..", "a/b", "", "experiments"])) == []


def test_a_search_is_of_the_store_that_is_meant(store: Path) -> None:
    mine = new_run("e")
    with R.uri_context(store.with_name("other")):
        assert ids(R.search_records()) == []
        other = new_run("e")
        assert ids(R.search_records()) == [other.id]
    assert ids(R.search_records()) == [mine.id]


def test_metrics_of_a_running_recorder_are_found_as_they_are(
    store: Path, children: Children
) -> None:
    with R.start(experiment_name="e"):
        recorder = R.get_recorder()
        for step, value, latest in ((1, 1.0, 1.0), (5, 5.0, 5.0), (2, 2.0, 5.0)):
            R.log_metrics(step=step, loss=value)
            assert list(R.search_records("e")["metrics.loss"]) == [latest]
        children.add(lambda: recorder.log_metrics(step=9, loss=0.5))
        assert children.exit_codes() == [0]
        found = R.search_records("e", filter_string="metrics.loss < 1 and status = 'RUNNING'")
        assert ids(found) == [recorder.id]
    assert list(R.search_records("e")["metrics.loss"]) == [0.5]


def test_every_status_is_shown_and_can_be_asked_for(store: Path, children: Children) -> None:
    experiment = R.get_exp(experiment_name="e")
    expected = {}
    for status in ("SCHEDULED", "PAUSED", "FINISHED", "FAILED"):
        recorder = experiment.create_recorder().start_run()
        recorder.end_run(status)
        expected[status] = recorder.id

    def die() -> None:
        experiment.create_recorder("killed").start_run()
        os._exit(0)

    children.add(die)
    assert children.exit_codes() == [0]
    broken = experiment.create_recorder().start_run()
    broken.end_run("FINISHED")
    Path(broken.get_local_dir(), "recorder.json").write_text("{")
    expected["BROKEN"] = broken.id
    with R.start(experiment_name="e"):
        expected["RUNNING"] = R.get_recorder().id
        frame = R.search_records("e")
        expected["LOST"] = frame.set_index("run_name")["run_id"]["killed"]
        assert dict(zip(frame["status"], frame["run_id"], strict=True)) == expected
        assert ids(frame)[-1] == broken.id
        for status, identity in expected.items():
            text = f"attributes.status = '{status}'"
            assert ids(R.search_records("e", filter_string=text)) == [identity]
            assert list(experiment.list_recorders(status=status)) == [identity]
            rest = R.search_records("e", filter_string=f"status != '{status}'")
            assert set(ids(rest)) == set(expected.values()) - {identity}


def test_deleted_recorders_are_found_alone_and_with_their_experiment(store: Path) -> None:
    kept, gone = new_run("e", m=1.0), new_run("e", m=2.0)
    R.get_exp(experiment_name="e").delete_recorder(gone.id)
    whole = [new_run("old/它", m=3.0), new_run("old/它", m=4.0)]
    R.delete_exp(experiment_name="old/它")
    again = new_run("old/它", m=5.0)
    assert ids(R.search_records()) == [again.id, kept.id]
    deleted = R.search_records(run_view_type=2)
    assert ids(deleted) == [whole[1].id, whole[0].id, gone.id]
    assert list(deleted["metrics.m"]) == [4.0, 3.0, 2.0]
    assert list(deleted["experiment_id"]) == [again.experiment_id] * 2 + ["e"]
    assert ids(R.search_records(run_view_type=3)) == [
        again.id, whole[1].id, whole[0].id, gone.id, kept.id,
    ]  # fmt: skip
    assert ids(R.search_records("e", run_view_type=2)) == [gone.id]
    assert ids(R.search_records(run_view_type=3, filter_string="metrics.m IN (2, 5)")) == [
        again.id,
        gone.id,
    ]
    R.restore_recorder(gone.id)
    assert ids(R.search_records("e", run_view_type=2)) == []


def test_a_recorder_that_is_restored_is_found_with_what_it_has_now(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "_FEW", 1)
    runs = [new_run("e", m=float(number)) for number in range(4)]
    assert len(R.search_records("e")) == 4
    experiment = R.get_exp(experiment_name="e")
    for _ in range(3):
        experiment.delete_recorder(runs[1].id)
        assert ids(R.search_records("e")) == [runs[3].id, runs[2].id, runs[0].id]
        catalog._catalogs.clear()
        assert ids(R.search_records("e")) == [runs[3].id, runs[2].id, runs[0].id]
        experiment.restore_recorder(runs[1].id).set_tags(seen="yes")
        for _ in range(2):
            found = R.search_records("e", filter_string="tags.seen = 'yes'")
            assert ids(found) == [runs[1].id]
            catalog._catalogs.clear()


# --- listing with a filter -----------------------------------------------------------------------


def test_a_listing_combines_filter_status_and_number(store: Path) -> None:
    experiment = R.get_exp(experiment_name="e")
    runs = []
    for number, status in enumerate(["FINISHED", "FAILED", "FINISHED", "FINISHED"]):
        recorder = experiment.create_recorder().start_run()
        recorder.log_metrics(m=number)
        recorder.end_run(status)
        runs.append(recorder.id)
    text = "metrics.m < 3"
    assert list(experiment.list_recorders(filter_string=text)) == runs[2::-1]
    assert list(experiment.list_recorders(filter_string=text, status="FINISHED")) == [
        runs[2],
        runs[0],
    ]
    one = experiment.list_recorders("list", max_results=1, status="FINISHED", filter_string=text)
    assert [recorder.id for recorder in one] == [runs[2]]
    assert list(experiment.list_recorders(max_results=2)) == [runs[3], runs[2]]
    assert list(experiment.list_recorders(max_results=0)) == []
    assert list(experiment.list_recorders(max_results=99)) == runs[::-1]


# --- what is read --------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], Counter[str]]:
    """``opened(call)`` returns how often files of which name were opened by it."""

    def count(call: Callable[[], Any]) -> Counter[str]:
        names: Counter[str] = Counter()

        def noted(path: Any, flags: int, *mode: int) -> int:
            if not Path(path).is_dir() and not str(path).startswith("/proc"):
                names[Path(path).name] += 1
            return os.open(path, flags, *mode)

        with monkeypatch.context() as patch:
            patch.setattr(fsio, "os", FaultyOs(open=noted))
            call()
        return names

    return count


@pytest.mark.parametrize("number", [3, 40])
def test_a_recorder_is_opened_by_its_id_with_one_file_of_a_recorder(
    store: Path, opened: Callable[..., Counter[str]], number: int
) -> None:
    experiment = R.get_exp(experiment_name="e")
    runs = [new_run("e") for _ in range(number)]
    files = opened(lambda: R.get_recorder(experiment_name="e", recorder_id=runs[1].id))
    assert files["recorder.json"] == 1
    assert files.total() <= 3  # the experiment's and the store's
    assert opened(lambda: experiment.get_recorder(runs[1].id)) == {"recorder.json": 1}


def test_a_recorder_is_found_by_its_name_without_reading_those_that_have_ended(
    store: Path, opened: Callable[..., Counter[str]]
) -> None:
    runs = [new_run("e", f"name{number}") for number in range(24)]
    experiment = R.get_exp(experiment_name="e")
    assert opened(experiment.list_recorders)["recorder.json"] == 24
    with R.start(experiment_name="e", recorder_name="going"):
        for forget in (False, True):
            if forget:
                catalog._catalogs.clear()  # as a new process, which has only the index
            files = opened(lambda: experiment.get_recorder(recorder_name="name7"))
            assert files["recorder.json"] == 1  # of the one that runs
    catalog._catalogs.clear()
    found = experiment.get_recorder(recorder_name="name7")
    assert found.id == runs[7].id
    found.set_tags(seen="yes")
    files = opened(lambda: experiment.list_recorders(filter_string="tags.seen = 'yes'"))
    assert files["recorder.json"] <= 2  # what was changed, and what has ended since
    assert files.total() < 10


@pytest.mark.parametrize("number", [20, 60])
def test_a_search_over_many_recorders_reads_as_many_files_as_over_few(
    store: Path, opened: Callable[..., Counter[str]], number: int
) -> None:
    for value in range(number):
        new_run("e", m=float(value))
    R.search_records("e")
    catalog._catalogs.clear()
    files = opened(lambda: R.search_records("e", filter_string="metrics.m > 3"))
    assert files["recorder.json"] == 0
    assert files.total() < 20
