"""A handler as a file: one name in every process, whole files only."""

from __future__ import annotations

import copy
import datetime
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from qwf.data.dataset import DatasetH
from qwf.errors import ConfigError
from qwf.instantiate import init_instance_by_config
from qwf.tasks.handler_cache import replace_task_handler_with_cache


class Handler:
    built = 0

    def __init__(self, **kwargs: Any) -> None:
        type(self).built += 1
        self.kwargs = kwargs


class QlibHandler(Handler):
    """Pickles itself, as Qlib's handlers do."""

    fails = False

    def to_pickle(self, path: Path, dump_all: bool = False) -> None:
        Path(path).write_bytes(pickle.dumps((dump_all, self.kwargs)))
        if self.fails:
            raise RuntimeError("disk on fire")


@pytest.fixture(autouse=True)
def _nothing_built_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "built", 0)
    monkeypatch.setattr(QlibHandler, "built", 0)


def task_of(handler: Any) -> dict[str, Any]:
    return {"dataset": {"kwargs": {"handler": handler, "segments": {}}}}


def config(cls: str = "Handler", **kwargs: Any) -> dict[str, Any]:
    return {"class": cls, "module_path": Handler.__module__, "kwargs": kwargs}


def file_of(task: dict[str, Any]) -> Path:
    uri = task["dataset"]["kwargs"]["handler"]
    assert uri.startswith("file:///")
    return Path(uri.removeprefix("file://"))


def test_a_handler_is_built_once_and_becomes_a_file(tmp_path: Path) -> None:
    template = task_of(config(end_time="2020-12-31"))
    before = copy.deepcopy(template)
    first = replace_task_handler_with_cache(template, tmp_path / "new" / "cache")
    second = replace_task_handler_with_cache(template, str(tmp_path / "new" / "cache"))
    assert first == second
    assert template == before
    assert Handler.built == 1
    path = file_of(first)
    assert path.parent == tmp_path / "new" / "cache"
    assert path.name.startswith("Handler.")
    assert len(path.name) == len("Handler.") + 10 + len(".pkl")
    assert pickle.loads(path.read_bytes()).kwargs == {"end_time": "2020-12-31"}


def test_the_file_is_what_the_dataset_will_load(tmp_path: Path) -> None:
    task = replace_task_handler_with_cache(task_of(config(x=1)), tmp_path / "with space %41")
    loaded = init_instance_by_config(task["dataset"]["kwargs"]["handler"])
    assert loaded.kwargs == {"x": 1}


def test_a_handler_that_pickles_itself_keeps_its_data(tmp_path: Path) -> None:
    task = replace_task_handler_with_cache(task_of(config("QlibHandler", x=1)), tmp_path)
    assert pickle.loads(file_of(task).read_bytes()) == (True, {"x": 1})


def test_a_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QlibHandler, "fails", True)
    with pytest.raises(RuntimeError, match="on fire"):
        replace_task_handler_with_cache(task_of(config("QlibHandler")), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("handler", ["file:///h.pkl", None, Handler], ids=["uri", "none", "class"])
def test_a_handler_that_is_no_dict_is_left_as_it_is(tmp_path: Path, handler: Any) -> None:
    task = replace_task_handler_with_cache(task_of(handler), tmp_path / "cache")
    assert task["dataset"]["kwargs"]["handler"] is handler
    assert not (tmp_path / "cache").exists()


def test_a_task_without_a_handler_is_refused(tmp_path: Path) -> None:
    for task in ({}, {"dataset": {"kwargs": {}}}, {"dataset": None}):
        with pytest.raises(ConfigError, match=r"dataset\.kwargs\.handler"):
            replace_task_handler_with_cache(task, tmp_path)


def test_different_configurations_have_different_files(tmp_path: Path) -> None:
    long = pd.DataFrame({"x": range(1000)})
    changed = long.copy()
    changed.loc[500, "x"] = -1
    configs = [
        config(x=1),
        config(x="1"),
        config(x=datetime.date(2020, 1, 1)),
        config(x=Path("a")),
        config(x=Handler),
        config(x=QlibHandler),
        config(x=long),
        config(x=changed),  # the same text as the one above
        config("QlibHandler", x=1),
    ]
    files = {file_of(replace_task_handler_with_cache(task_of(item), tmp_path)) for item in configs}
    assert len(files) == len(configs)


def test_the_order_of_keys_makes_no_difference(tmp_path: Path) -> None:
    forwards, backwards = config(a=1, b=(1, 2)), config(b=[1, 2], a=1)
    one = replace_task_handler_with_cache(task_of(forwards), tmp_path)
    other = replace_task_handler_with_cache(task_of(dict(reversed(backwards.items()))), tmp_path)
    assert file_of(one) == file_of(other)


def test_an_object_that_cannot_be_pickled_gives_no_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'Handler' cannot be kept as a file"):
        replace_task_handler_with_cache(task_of(config(x=lambda: 1)), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


SCRIPT = """
import datetime, sys
from qwf.tasks.handler_cache import replace_task_handler_with_cache
handler = {"class": "builtins.dict", "kwargs": {"b": datetime.date(2020, 1, 1), "a": [1.5, None]}}
task = {"dataset": {"kwargs": {"handler": handler}}}
print(replace_task_handler_with_cache(task, sys.argv[1])["dataset"]["kwargs"]["handler"])
"""


def test_processes_that_race_agree_on_the_name_and_leave_one_whole_file(tmp_path: Path) -> None:
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            cwd=Path(__file__).parent.parent,
        )
        for seed in (1, 2)
    ]
    names = {process.communicate()[0].strip() for process in running}
    (path,) = tmp_path.iterdir()
    assert names == {f"file://{path}"}
    assert pickle.loads(path.read_bytes()) == {"b": datetime.date(2020, 1, 1), "a": [1.5, None]}


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    stop, broken = threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            for path in tmp_path.glob("*.pkl"):
                try:
                    pickle.loads(path.read_bytes())
                except (EOFError, pickle.UnpicklingError) as error:
                    broken.append(error)

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for number in range(20):
            handler = config("QlibHandler" if number % 2 else "Handler", x="x" * 200_000, n=number)
            replace_task_handler_with_cache(task_of(handler), tmp_path)
    finally:
        stop.set()
        reader.join()
    assert broken == []
    assert len(list(tmp_path.iterdir())) == 20


def test_a_template_that_trains_with_a_fitted_step_can_be_cached(tmp_path: Path) -> None:
    """The handler gets the fit window and the module that its dataset would give it."""
    prices = Path(__file__).parent.parent / "examples" / "data" / "sp500_20.parquet"
    handler = {
        "class": "PriceHandler",
        "kwargs": {
            "panel": str(prices),
            "start_time": "2019-01-02",
            "infer_processors": [{"class": "RobustZScoreNorm"}],
        },
    }
    segments = {"train": ("2019-01-02", "2019-06-28"), "test": ("2019-07-01", "2019-07-31")}
    task = {"dataset": {"kwargs": {"handler": handler, "segments": segments}}}
    replaced = replace_task_handler_with_cache(task, tmp_path)
    direct = DatasetH(handler, segments).prepare("test", col_set="feature")
    cached = DatasetH(replaced["dataset"]["kwargs"]["handler"], segments)
    pd.testing.assert_frame_equal(cached.prepare("test", col_set="feature"), direct)
