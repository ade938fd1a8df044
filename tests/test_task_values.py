"""Definitions and results come back in any process; what cannot is refused with its place."""

from __future__ import annotations

import base64
import copy
import datetime
import enum
import json
import pickle
import shutil
import subprocess
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import qwf
from qwf import R
from qwf.errors import (
    ArtifactCorruptError,
    CorruptRecordError,
    LoadObjectError,
    PickleRefusedError,
    RecorderNotFoundError,
    TaskValueError,
)
from qwf.storage.codec import canonical
from qwf.tasks.results import MissingRecorder, Values, without_objects
from qwf.tracking.recorder import Recorder


class Colour(enum.Enum):
    RED = 1


class Model:
    """A live object, as some put into their tasks."""

    def __init__(self, depth: int) -> None:
        self.depth = depth

    def fit(self, dataset: Any) -> None: ...

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Model) and vars(other) == vars(self)

    __hash__ = None  # type: ignore[assignment]


def finished(name: str = "e", uri: Path | None = None, **params: Any) -> Recorder:
    with R.start(experiment_name=name, uri=None if uri is None else str(uri)):
        R.log_params(**params)
        return R.get_recorder()


def through_json(form: Any) -> Any:
    return json.loads(canonical(form))


# --- plain ---------------------------------------------------------------------------------------


def test_plain_data_is_kept_exactly(tmp_path: Path) -> None:
    values = Values(tmp_path, allow_pickle=False)
    value = {"segments": {"test": (pd.Timestamp("2020-01-01"), None)}, "day": datetime.date.today()}
    back = values.decode(through_json(values.encode(value, "the definition")), "x")
    assert back == value
    assert type(back["segments"]["test"]) is tuple


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        (np.float64(0.1), 0.1),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.uint8(255), 255),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (np.float64("inf"), float("inf")),
    ],
)
def test_scalars_of_numpy_become_those_of_python(tmp_path: Path, scalar: Any, value: Any) -> None:
    values = Values(tmp_path, allow_pickle=False)
    (back,) = values.decode(values.encode([scalar], "the result"), "x")
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"model": {"kwargs": {"loss": len}}}, "model.kwargs.loss is a builtin_function_or_method"),
        ({"model": Model(3)}, "model is a Model, not plain data"),
        ({"record": [1, {2}]}, "record[1] is a set"),
        ({"a": (0, frozenset())}, "a[1] is a frozenset"),
        ({"path": Path("x")}, "path is a PosixPath"),
        ({"colour": Colour.RED}, "colour is a Colour"),
        ({"a": OrderedDict(b=1)}, "a is a OrderedDict"),
        ({"a": b"x"}, "a is a bytes"),
        ({"a": np.arange(2)}, "a is a ndarray"),
        ({"a": np.datetime64("2020-01-01")}, "a is a datetime64"),
        ({"a": np.timedelta64(1, "D")}, "a is a timedelta64"),
        ({"a": np.longdouble(1)}, "a is a longdouble"),
        ({"a": pd.DataFrame()}, "a is a DataFrame"),
        ({"a": pd.Timedelta(1)}, "a is a Timedelta"),
        ({np.int64(1): 2}, "the key np.int64(1) is a int64"),
        (Model(3), "the value is a Model"),
    ],
)
def test_what_is_not_plain_is_refused_with_its_place(
    tmp_path: Path, value: object, message: str
) -> None:
    with pytest.raises(TaskValueError) as caught:
        Values(tmp_path, allow_pickle=False).encode(value, "the definition")
    text = str(caught.value)
    assert text.startswith(f"the definition cannot be kept: {message}")
    assert "allow_pickle=True" in text
    assert isinstance(caught.value, TypeError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == text


# --- recorders -----------------------------------------------------------------------------------


def test_a_recorder_comes_back_wherever_it_stands_in_a_result(store: Path) -> None:
    one, other = finished(), finished("f")
    values = Values(store, allow_pickle=False)
    form = through_json(values.encode({"best": one, "all": [one, (other,)]}, "the result"))
    assert str(store) not in json.dumps(form)
    assert form["best"] == {"$recorder": {"experiment": one.experiment_id, "recorder": one.id}}
    back = values.decode(form, "x")
    assert back == {"best": one, "all": [one, (other,)]}
    assert back["best"].status == Recorder.STATUS_FI
    assert back["all"][1][0].experiment_id == other.experiment_id


def test_a_recorder_comes_back_in_a_process_that_is_set_to_another_store(
    store: Path, run_script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    recorder = finished(alpha=0.5)
    form = Values(store, allow_pickle=False).encode(recorder, "the result")
    result = run_script(
        """
        import json, sys
        from pathlib import Path
        from qwf.tasks.results import Values
        recorder = Values(Path(sys.argv[1]), False).decode(json.loads(sys.argv[2]), "x")
        recorder.set_tags(seen="yes")
        print(recorder.id, recorder.status, recorder.list_params()["alpha"])
        """,
        store,
        json.dumps(form),
    )
    assert result.stdout.split() == [recorder.id, "FINISHED", "0.5"], result.stderr
    assert recorder.list_tags()["seen"] == "yes"


def test_recorders_are_found_again_when_the_store_was_moved(store: Path, tmp_path: Path) -> None:
    recorder = finished(alpha=1)
    form = Values(store, allow_pickle=False).encode(recorder, "the result")
    moved = tmp_path / "elsewhere" / "archive"
    moved.parent.mkdir()
    store.rename(moved)
    back = Values(moved, allow_pickle=False).decode(form, "x")
    assert back.list_params()["alpha"] == "1"
    assert back.uri == str(moved)


def test_a_recorder_of_another_store_is_found_in_its_direction(store: Path, tmp_path: Path) -> None:
    recorder = finished(uri=tmp_path / "runs", alpha=1)
    form = Values(store, allow_pickle=False).encode(recorder, "the result")
    assert form["$recorder"]["store"] == "../runs"  # type: ignore[index,call-overload]
    both = tmp_path / "both"
    both.mkdir()
    store.mkdir(exist_ok=True)
    store.rename(both / "store")
    (tmp_path / "runs").rename(both / "runs")
    back = Values(both / "store", allow_pickle=False).decode(form, "x")
    assert back.list_params()["alpha"] == "1"


def test_a_store_that_is_reached_by_a_link_is_the_same_store(store: Path, tmp_path: Path) -> None:
    recorder = finished()
    link = tmp_path / "link"
    link.symlink_to(store)
    form = Values(link, allow_pickle=False).encode(recorder, "the result")
    assert "store" not in form["$recorder"]  # type: ignore[operator,index,call-overload]


def test_a_recorder_that_was_never_started_is_refused(store: Path) -> None:
    recorder = R.get_exp(experiment_name="e").create_recorder()
    with pytest.raises(TaskValueError, match=r"\[0\] is a recorder that was never started"):
        Values(store, allow_pickle=True).encode([recorder], "the result of task aa")


def test_a_deleted_recorder_stands_missing_beside_the_others(store: Path) -> None:
    gone, there = finished(alpha=1), finished()
    values = Values(store, allow_pickle=False)
    form = through_json(values.encode([gone, there], "the result"))
    experiment = R.get_exp(experiment_name="e")
    experiment.delete_recorder(gone.id)
    missing, found = values.decode(form, "x")
    assert found == there
    assert isinstance(missing, MissingRecorder)
    assert (missing.id, missing.experiment_id) == (gone.id, gone.experiment_id)
    assert str(gone.id) in repr(missing)
    for name in ("status", "list_params", "load_object"):
        with pytest.raises(RecorderNotFoundError, match=str(gone.id)):
            getattr(missing, name)
    assert values.encode([missing, there], "the result") == form
    experiment.restore_recorder(gone.id)
    assert values.decode(form, "x")[0].list_params()["alpha"] == "1"


def test_the_recorders_of_a_deleted_experiment_are_missing(store: Path) -> None:
    recorder = finished()
    values = Values(store, allow_pickle=False)
    form = values.encode(recorder, "the result")
    R.delete_exp(experiment_name="e")
    missing = values.decode(form, "x")
    assert isinstance(missing, MissingRecorder)
    for copied in (copy.copy(missing), pickle.loads(pickle.dumps(missing))):
        assert copied == missing
        assert hash(copied) == hash(missing)


def test_a_damaged_recorder_is_broken_as_in_any_listing(store: Path) -> None:
    recorder = finished()
    values = Values(store, allow_pickle=False)
    form = values.encode(recorder, "the result")
    (Path(recorder.get_local_dir()) / "recorder.json").write_text("{")
    assert values.decode(form, "x").status == Recorder.STATUS_BROKEN


# --- pickles -------------------------------------------------------------------------------------


def test_other_objects_are_kept_as_pickles_when_that_is_allowed(tmp_path: Path) -> None:
    values = Values(tmp_path, allow_pickle=True)
    value = {"model": Model(3), "names": {"a", "b"}, "plain": [1, np.float64(2)]}
    form = through_json(values.encode(value, "the definition"))
    assert form["plain"] == [1, 2.0]
    assert set(form["model"]) == {"$pickle"}
    # Who reads need not say again that pickles are allowed.
    assert Values(tmp_path, allow_pickle=False).decode(form, "x") == value


def test_what_json_cannot_hold_is_pickled_with_the_whole(tmp_path: Path) -> None:
    values = Values(tmp_path, allow_pickle=True)
    value = {frozenset({1}): "\ud800\udc00"}
    assert values.decode(through_json(values.encode(value, "the result")), "x") == value
    endless: list[Any] = []
    endless.append(endless)
    (inner,) = back = values.decode(through_json(values.encode(endless, "the result")), "x")
    assert inner is back


def test_what_cannot_be_pickled_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(
        TaskValueError, match=r"loss is a function that cannot be pickled"
    ) as caught:
        Values(tmp_path, allow_pickle=True).encode({"loss": lambda x: x}, "the definition")
    assert "allow_pickle" not in str(caught.value)


def test_a_pickle_is_read_under_the_pickle_policy(store: Path) -> None:
    values = Values(store, allow_pickle=True)
    form = values.encode([Model(3)], "the result")
    plain = values.encode([{1, 2}], "the result")
    qwf.init(uri=store, pickle_policy="restricted")
    assert values.decode(plain, "x") == [{1, 2}]
    with pytest.raises(PickleRefusedError, match=r"the result of aa asks for .*Model"):
        values.decode(form, "the result of aa")
    qwf.init(uri=store, pickle_policy="restricted", pickle_allow=[Model.__module__])
    assert values.decode(form, "x") == [Model(3)]
    qwf.init(uri=store, pickle_policy="never")
    with pytest.raises(PickleRefusedError):
        values.decode(plain, "x")


class Trap:
    loaded = False

    def __reduce__(self) -> Any:
        return _spring, ()


def _spring() -> None:
    Trap.loaded = True


@pytest.mark.parametrize("data", [base64.b64encode(pickle.dumps(Trap())).decode(), "no base64 !"])
def test_a_pickle_that_is_not_the_one_written_is_not_loaded(tmp_path: Path, data: str) -> None:
    values = Values(tmp_path, allow_pickle=True)
    form: Any = values.encode({1, 2}, "the result")
    form["$pickle"]["data"] = data
    with pytest.raises(ArtifactCorruptError, match="the result of aa is damaged"):
        values.decode(form, "the result of aa")
    assert not Trap.loaded


def test_a_pickle_of_what_is_not_here_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = Values(tmp_path, allow_pickle=True)
    lost = type("Lost", (), {"__module__": __name__})
    monkeypatch.setitem(globals(), "Lost", lost)
    form = values.encode(lost(), "the result")
    monkeypatch.delitem(globals(), "Lost")
    with pytest.raises(LoadObjectError, match="a pickle that cannot be loaded: AttributeError"):
        values.decode(form, "the result of aa")


# --- forms that are no such forms ----------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [
        {"$later": 1},
        {"$recorder": {}},
        {"$recorder": "x"},
        {"$recorder": {"experiment": "e", "recorder": "r", "store": 3}},
        {"$pickle": {"sha256": "x"}},
        {"$pickle": None},
        {"$date": "yesterday"},
    ],
)
def test_a_form_that_qwf_does_not_write_is_damage(tmp_path: Path, form: Any) -> None:
    with pytest.raises(CorruptRecordError, match=r"^def/aa is damaged"):
        Values(tmp_path, allow_pickle=False).decode([form], "def/aa")


def test_a_dict_of_the_user_that_looks_like_a_reference_stays_a_dict(tmp_path: Path) -> None:
    values = Values(tmp_path, allow_pickle=False)
    for value in ({"$recorder": {"experiment": "e", "recorder": "r"}}, {"$pickle": "x"}):
        assert values.decode(values.encode(value, "the definition"), "x") == value


def test_without_objects_there_are_references_and_nothing_is_opened(store: Path) -> None:
    recorder = finished()
    values = Values(store, allow_pickle=True)
    form = values.encode({"rec": recorder, "obj": Trap(), "seg": (1, 2)}, "the result")
    shutil.rmtree(store)
    shown = without_objects(form, "x")
    assert shown["rec"] == {"experiment": recorder.experiment_id, "recorder": recorder.id}
    assert shown["seg"] == (1, 2)
    assert set(shown["obj"]) == {"pickle", "size"}
    assert not Trap.loaded
