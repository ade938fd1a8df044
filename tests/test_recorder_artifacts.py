"""Artifacts: any name that is safe, any object, whole at every moment."""

from __future__ import annotations

import datetime
import errno
import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Children, FaultyOs

import qwf
from qwf import R
from qwf.errors import (
    ArtifactCorruptError,
    ArtifactNotFoundError,
    LoadObjectError,
    PickleRefusedError,
    SaveObjectError,
    UnsafeNameError,
    WriteError,
)
from qwf.tracking.recorder import Recorder


@pytest.fixture
def recorder(store: Path) -> Iterator[Recorder]:
    with R.start(experiment_name="e"):
        yield R.get_recorder()


def area(recorder: Recorder) -> Path:
    return Path(recorder.get_artifact_uri())


class Thing:
    """Only a pickle can hold it."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Thing) and other.value == self.value

    __hash__ = None

    def __repr__(self) -> str:
        return f"Thing({self.value!r})"


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("no way")


# --- objects ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "obj",
    [
        None,
        0,
        "",
        "第一",
        b"\0\xff",
        [1, (2, {"a": None})],
        {1: {2}},
        datetime.date(2020, 1, 1),
        pd.Timestamp("2020-01-01", tz="UTC"),
        float("inf"),
        Thing([1]),
        int,
        len,
        {"$tuple": 1},
        range(3),
    ],
    ids=repr,
)
def test_an_object_reads_back_equal_and_of_its_type(recorder: Recorder, obj: Any) -> None:
    recorder.save_objects(x=obj)
    back = recorder.load_object("x")
    assert back == obj
    assert type(back) is type(obj)


def test_frames_and_arrays_read_back(recorder: Recorder) -> None:
    index = pd.MultiIndex.from_product(
        [pd.date_range("2020-01-01", periods=2), ["A", "B"]], names=["datetime", "instrument"]
    )
    frame = pd.DataFrame({"score": [1.0, np.nan, 3.0, 4.0]}, index=index)
    array = np.arange(6).reshape(2, 3)
    recorder.save_objects(**{"pred.pkl": frame, "s": frame["score"], "a": array})
    pd.testing.assert_frame_equal(recorder.load_object("pred.pkl"), frame)
    pd.testing.assert_series_equal(recorder.load_object("s"), frame["score"])
    np.testing.assert_array_equal(recorder.load_object("a"), array)


def test_an_object_that_cannot_be_pickled_is_refused_and_none_is_saved(
    recorder: Recorder, snapshot: Callable[[Path], dict[str, bytes]]
) -> None:
    recorder.save_objects(kept="old")
    before = snapshot(area(recorder))
    for bad in (Unpicklable(), lambda: None, (i for i in range(2)), open(os.devnull)):  # noqa: SIM115
        with pytest.raises(SaveObjectError, match=r"'bad'.*Nothing was saved"):
            recorder.save_objects(kept="new", bad=bad)
        if hasattr(bad, "close"):
            bad.close()
    assert snapshot(area(recorder)) == before
    assert recorder.load_object("kept") == "old"
    assert recorder.list_artifacts() == ["kept"]


def test_objects_can_be_saved_after_the_end(store: Path) -> None:
    with R.start(experiment_name="e"):
        recorder = R.get_recorder()
    recorder.save_objects(late=1)
    assert (recorder.load_object("late"), recorder.status) == (1, "FINISHED")


def test_an_unstarted_recorder_takes_and_has_none(store: Path) -> None:
    recorder = R.get_exp(experiment_name="e").create_recorder()
    for call in (
        lambda: recorder.save_objects(x=1),
        lambda: recorder.load_object("x"),
        recorder.list_artifacts,
    ):
        with pytest.raises((ValueError, LoadObjectError), match="never started"):
            call()


def test_the_kind_of_an_artifact_may_change(recorder: Recorder) -> None:
    for obj in ([1], Thing(2), pd.DataFrame({"a": [3]})):
        recorder.save_objects(x=obj)
        assert type(recorder.load_object("x")) is type(obj)
    assert sorted(path.name for path in area(recorder).iterdir()) == ["x"]


# --- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "pred.pkl",
        "a/b/c.pkl",
        "预测/结果.pkl",
        "with blanks .pkl",
        " ",
        "...",
        ".hidden",
        ".tmp-like-ours",
        "a\\b",
        "C:\\x",
        "a\nb",
        "a\0b",
        "50%25",
        "é",
        "e\u0301",
        "CON",
        "x" * 250,
        "长" * 250,
        "/".join("d" * 60 for _ in range(6)),
        "artifacts",
        "recorder.json",
        "~root",
        "$HOME",
        "*?[]",
    ],
    ids=lambda name: ascii(name)[:30],
)
def test_a_name_is_saved_listed_and_loaded_as_given(
    recorder: Recorder, tmp_path: Path, name: str
) -> None:
    recorder.save_objects(**{name: name})
    assert recorder.load_object(name) == name
    listed = []
    directories: list[str | None] = [None]
    while directories:
        for found in recorder.list_artifacts(directories.pop()):
            if found in recorder.artifacts():
                listed.append(found)
            else:
                directories.append(found)
    assert listed == [name]
    (file,) = (path for path in area(recorder).rglob("*") if path.is_file())
    assert area(recorder).resolve() in file.resolve().parents
    if "\0" not in name and len(name.encode()) < 500:  # others cannot be the name of a file
        outside = Path(recorder.download_artifact(name, tmp_path / "out"))
        assert (tmp_path / "out") in outside.resolve().parents
        assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [outside]


@pytest.mark.parametrize(
    "name", ["", "..", ".", "../x", "a/../b", "a/..", "/absolute", "a//b", "a/", "./a", "/"]
)
def test_a_name_that_leaves_its_place_is_refused(
    recorder: Recorder, tmp_path: Path, name: str, snapshot: Callable[[Path], dict[str, bytes]]
) -> None:
    before = snapshot(tmp_path)
    with pytest.raises(UnsafeNameError, match="an artifact"):
        recorder.save_objects(**{"good": 1, name: 1})
    with pytest.raises(LoadObjectError, match="an artifact"):
        recorder.load_object(name)
    with pytest.raises(ValueError, match="an artifact"):
        recorder.download_artifact(name)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("path", ["..", "a/../..", "/absolute", "./a", "a//b"])
def test_an_artifact_path_that_leaves_its_place_is_refused(
    recorder: Recorder, tmp_path: Path, path: str, snapshot: Callable[[Path], dict[str, bytes]]
) -> None:
    (tmp_path / "file").write_text("x")
    before = snapshot(tmp_path)
    for arguments in ({"x": 1}, {"local_path": tmp_path / "file"}):
        with pytest.raises(UnsafeNameError):
            recorder.save_objects(artifact_path=path, **arguments)
    with pytest.raises(UnsafeNameError):
        recorder.log_artifact(tmp_path / "file", path)
    assert recorder.list_artifacts(path) == []
    assert snapshot(tmp_path) == before


def test_names_that_differ_in_case_or_form_only_are_different(recorder: Recorder) -> None:
    names = ["a", "A", "é", "e\u0301", "x" * 300, "x" * 301, "x/y", "x%2Fy"]
    recorder.save_objects(**{name: number for number, name in enumerate(names)})
    assert [recorder.load_object(name) for name in names] == list(range(len(names)))


@pytest.mark.parametrize(("first", "second"), [("a", "a/b"), ("a/b", "a"), ("a/b/c", "a/b")])
def test_a_name_cannot_be_a_file_and_a_directory(
    recorder: Recorder, first: str, second: str
) -> None:
    recorder.save_objects(**{first: 1})
    with pytest.raises(UnsafeNameError, match="a file and a directory"):
        recorder.save_objects(**{second: 2, "other": 3})
    assert recorder.load_object(first) == 1
    assert list(recorder.artifacts()) == [first]


def test_one_call_cannot_make_a_name_a_file_and_a_directory(recorder: Recorder) -> None:
    for names in (("a", "a/b"), ("a/b", "a")):
        with pytest.raises(UnsafeNameError):
            recorder.save_objects(**dict.fromkeys(names, 1))
        assert recorder.artifacts() == {}
    recorder.save_objects(a=1)
    assert recorder.load_object("a") == 1


# --- files -----------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    (directory / "deep" / "er").mkdir(parents=True)
    (directory / "empty").mkdir()
    (directory / "a.txt").write_text("a")
    (directory / "deep" / "er" / "b.pkl").write_bytes(pickle.dumps({"b": 1}))
    (directory / "c.json").write_text('{"$tuple": [1]}')
    pd.DataFrame({"x": [1, 2]}).to_parquet(directory / "d.parquet")
    return directory


def test_a_file_is_saved_under_its_name(recorder: Recorder, source: Path) -> None:
    recorder.save_objects(local_path=str(source / "a.txt"))
    recorder.save_objects(local_path=source / "a.txt", artifact_path="in/here")
    assert recorder.list_artifacts() == ["a.txt", "in"]
    assert recorder.list_artifacts("in") == ["in/here"]
    assert recorder.list_artifacts("in/here/") == ["in/here/a.txt"]
    assert Path(recorder.download_artifact("in/here/a.txt")).read_text() == "a"
    assert (source / "a.txt").exists()


def test_files_are_loaded_by_their_suffix_else_as_pickles(recorder: Recorder, source: Path) -> None:
    recorder.save_objects(local_path=source)
    assert recorder.load_object("deep/er/b.pkl") == {"b": 1}
    assert recorder.load_object("c.json") == {"$tuple": [1]}
    assert list(recorder.load_object("d.parquet")["x"]) == [1, 2]
    with pytest.raises(LoadObjectError, match=r"a.txt.* cannot be read as pickle"):
        recorder.load_object("a.txt")


def test_log_artifact_keeps_the_name_of_a_directory(recorder: Recorder, source: Path) -> None:
    recorder.log_artifact(source / "deep")
    recorder.log_artifact(source / "a.txt", "top")
    recorder.log_artifact(source / "deep", "top")
    assert sorted(recorder.artifacts()) == [
        "deep/er/b.pkl",
        "top/a.txt",
        "top/deep/er/b.pkl",
    ]


def test_a_path_that_is_not_there_is_refused_and_nothing_is_saved(
    recorder: Recorder, source: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        recorder.save_objects(local_path=source / "missing")
    with pytest.raises(FileNotFoundError, match="missing"):
        recorder.log_artifact(source / "missing")
    assert recorder.artifacts() == {}


def test_both_or_neither_of_path_and_objects_is_refused(recorder: Recorder, source: Path) -> None:
    with pytest.raises(ValueError, match="got both"):
        recorder.save_objects(local_path=source, x=1)
    with pytest.raises(ValueError, match="got neither"):
        recorder.save_objects()
    with pytest.raises(ValueError, match="got neither"):
        recorder.save_objects(artifact_path="p")
    assert recorder.artifacts() == {}


def test_a_file_is_copied_not_linked(recorder: Recorder, source: Path) -> None:
    link = source / "link.txt"
    link.symlink_to(source / "a.txt")
    recorder.log_artifact(link)
    (source / "a.txt").write_text("changed")
    stored = Path(recorder.download_artifact("link.txt"))
    assert stored.read_text() == "a"
    assert not stored.is_symlink()


def test_downloading_a_directory_copies_all_below_it(
    recorder: Recorder, source: Path, tmp_path: Path
) -> None:
    recorder.save_objects(local_path=source, artifact_path="s")
    target = Path(recorder.download_artifact("s/deep", tmp_path / "out"))
    assert target == tmp_path / "out" / "s" / "deep"
    assert [path.name for path in target.rglob("*") if path.is_file()] == ["b.pkl"]
    assert Path(recorder.download_artifact("s")).is_dir()


@pytest.mark.parametrize("name", ["absent", "s/absent", "sour", "s/deep/er/b.pkl/x"])
def test_downloading_what_is_not_there_raises(
    recorder: Recorder, source: Path, tmp_path: Path, name: str
) -> None:
    recorder.save_objects(local_path=source, artifact_path="s")
    with pytest.raises(ArtifactNotFoundError, match=name):
        recorder.download_artifact(name, tmp_path / "out")
    with pytest.raises(ArtifactNotFoundError, match=name):
        recorder.load_object(name)


# --- damage, policies ------------------------------------------------------------------------


def damage_missing(path: Path) -> None:
    path.unlink()


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_one_bit(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(bytes(whole))


def damage_longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


@pytest.mark.parametrize(
    "damage",
    [damage_missing, damage_empty, damage_one_bit, damage_longer],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("obj", [[1, 2], Thing(1), pd.DataFrame({"a": [1]})], ids=type)
def test_damaged_bytes_are_never_returned(
    recorder: Recorder, damage: Callable[[Path], None], obj: Any, tmp_path: Path
) -> None:
    recorder.save_objects(x=obj)
    damage(area(recorder) / "x")
    for read in (
        lambda: recorder.load_object("x"),
        lambda: recorder.download_artifact("x"),
        lambda: recorder.download_artifact("x", tmp_path / "out"),
    ):
        with pytest.raises(ArtifactCorruptError, match=r"x is damaged.*Save the object again"):
            read()
    recorder.save_objects(x=obj)  # the remedy that the message names
    assert type(recorder.load_object("x")) is type(obj)


@pytest.mark.parametrize("suffix", ["pkl", "parquet", "json"])
def test_the_policy_decides_about_pickles_and_not_the_name(store: Path, suffix: str) -> None:
    name = f"x.{suffix}"
    with R.start(experiment_name="e"):
        R.save_objects(**{name: Thing(1), f"plain-{name}": {"a": 1}})
        recorder = R.get_recorder()
    for policy in ("never", "restricted"):
        qwf.init(uri=store, pickle_policy=policy)
        with pytest.raises(PickleRefusedError, match=policy):
            recorder.load_object(name)
        assert recorder.load_object(f"plain-{name}") == {"a": 1}
    qwf.init(uri=store, pickle_policy="restricted", pickle_allow=[Thing.__module__])
    assert recorder.load_object(name) == Thing(1)


def test_an_unpickler_that_fails_is_a_load_object_error(recorder: Recorder) -> None:
    class Broken:
        def __init__(self, file: Any) -> None:
            pass

        def load(self) -> Any:
            raise RuntimeError("inside")

    recorder.save_objects(x=Thing(1), plain=1)
    for name in ("x", "plain"):
        with pytest.raises(LoadObjectError, match="RuntimeError: inside"):
            recorder.load_object(name, unpickler=Broken)


# --- writing fails ---------------------------------------------------------------------------


def refused(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_new_file(path: Any, flags: int, *mode: int) -> int:
    return os.open(path, flags, *mode) if not flags & os.O_CREAT else refused()  # type: ignore


FULL = {
    "write": {"write": refused},
    "fsync": {"fsync": refused},
    "rename": {"replace": refused},
    "create": {"open": no_new_file},
}


@pytest.mark.parametrize("faults", list(FULL.values()), ids=list(FULL))
def test_a_full_disk_leaves_the_artifacts_as_they_were(
    recorder: Recorder,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    snapshot: Callable[[Path], dict[str, bytes]],
    temporary_files: Callable[[Path], Sequence[str]],
    faults: dict[str, Any],
) -> None:
    def files() -> dict[str, bytes]:
        found = snapshot(area(recorder))
        return {name: data for name, data in found.items() if data != b"directory"}

    recorder.save_objects(x="old", y=1)
    before = files()
    for save in (
        lambda: recorder.save_objects(x="new", **{"z/z": 2}),
        lambda: recorder.save_objects(local_path=source),
    ):
        with monkeypatch.context() as patch:
            patch.setattr("qwf.storage.fsio.os", FaultyOs(**faults))
            with pytest.raises(WriteError, match=r"No space left.*unchanged"):
                save()
        assert recorder.load_object("x") == "old"
        assert sorted(recorder.artifacts()) == ["x", "y"]
        assert temporary_files(Path(recorder.get_local_dir())) == []
        assert files() == before
    recorder.save_objects(x="new", z=2, deep=3)  # these were to be directories
    assert [recorder.load_object(name) for name in ("x", "z", "deep")] == ["new", 2, 3]


# --- readers in other processes --------------------------------------------------------------


def version(number: int, form: str) -> Any:
    numbers = [number] * (10_000 + 1000 * number)
    if form == "json":
        return numbers
    return np.array(numbers) if form == "pickle" else pd.DataFrame({"n": numbers})


def assert_is_one_version(obj: Any) -> None:
    numbers = np.ravel(obj)
    assert (numbers == numbers[0]).all()
    assert len(numbers) == 10_000 + 1000 * numbers[0]


@pytest.mark.parametrize("form", ["json", "pickle", "parquet"])
def test_readers_never_see_a_torn_or_mixed_artifact(
    recorder: Recorder, children: Children, tmp_path: Path, form: str
) -> None:
    stop = tmp_path / "stop"

    def read() -> None:
        again = R.get_recorder(recorder_id=recorder.id)
        reads = 0
        while reads < 20 or not stop.exists():
            assert_is_one_version(again.load_object("x"))
            reads += 1

    recorder.save_objects(x=version(0, form))
    for _ in range(2):
        children.add(read)
    children.go()
    try:
        for number in range(1, 31):
            recorder.save_objects(x=version(number % 7, form))
    finally:
        stop.touch()
    assert children.exit_codes() == [0, 0]


def test_downloads_beside_a_writer_are_whole(
    recorder: Recorder, children: Children, tmp_path: Path
) -> None:
    stop = tmp_path / "stop"
    recorder.save_objects(x=["0"] * 5000)

    def download() -> None:
        target = tmp_path / str(os.getpid())
        while not stop.exists():
            text = Path(recorder.download_artifact("x", target)).read_text()
            shutil.rmtree(target)
            assert len(set(text.strip()[1:-1].split(","))) == 1

    children.add(download)
    children.go()
    try:
        for number in range(40):
            recorder.save_objects(x=[str(number)] * (5000 + number))
    finally:
        stop.touch()
    assert children.exit_codes() == [0]
