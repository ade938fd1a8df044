"""The pickle policy decides what may be loaded, and runs nothing of what it refuses."""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from qwf.data.models import LinearModel
from qwf.errors import PickleRefusedError
from qwf.storage import pickles
from qwf.storage.pickles import dump_pickle, load_pickle


class Touch:
    """Creates a file when it is unpickled, as a malicious pickle would."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def load(data: bytes, policy: str = "restricted", allow: tuple[str, ...] = ()) -> Any:
    return load_pickle(data, policy=policy, allow=allow, source="model.pkl")


@pytest.mark.parametrize(
    "obj",
    [
        {1, 2},
        np.arange(3.0),
        np.float64(2.5),
        np.array(["a"], dtype="U1"),
        pd.DataFrame({"a": [1.0], "b": ["x"]}),
        pd.Series([1.0], index=pd.MultiIndex.from_tuples([(pd.Timestamp("2020-01-01"), "a")])),
        pd.DataFrame({"a": pd.Categorical(["x"]), "t": pd.to_datetime(["2020-01-01"])}),
        pd.Timestamp("2020-01-01", tz="Asia/Shanghai"),
        pd.DataFrame({"t": pd.date_range("2020-01-01", periods=2, tz="Asia/Shanghai")}),
        pd.DataFrame({"a": pd.array([1, None], dtype="Int8"), "b": [True, False]}),
    ],
)
def test_restricted_loads_arrays_and_frames(obj: Any) -> None:
    back = load(dump_pickle(obj))
    assert type(back) is type(obj)
    assert str(back) == str(obj)


@pytest.mark.parametrize("allow", [(), ("posix.rmdir",), ("qwf",)])
def test_restricted_refuses_a_function_and_does_not_run_it(tmp_path: Path, allow: Any) -> None:
    victim = tmp_path / "made"
    with pytest.raises(PickleRefusedError, match=r"model.pkl asks for (posix|os)\.mkdir"):
        load(dump_pickle(Touch(str(victim))), allow=allow)
    assert not victim.exists()


def test_an_allowed_module_does_not_open_the_way_to_what_it_imports(tmp_path: Path) -> None:
    # The name "os.mkdir" inside an allowed module, as only a crafted pickle would ask for it.
    crafted = b"\x80\x04\x8c\x10qwf.storage.fsio\x8c\x08os.mkdir\x93\x8c" + bytes(
        [len(str(tmp_path / "x"))]
    ) + str(tmp_path / "x").encode() + b"\x85R."  # fmt: skip
    with pytest.raises(PickleRefusedError):
        load(crafted, allow=("qwf",))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["numpy.memmap", "pandas.read_pickle", "builtins.eval"])
def test_dangerous_names_of_safe_modules_are_refused(name: str) -> None:
    module, _, attribute = name.partition(".")
    crafted = f"c{module}\n{attribute}\n.".encode()
    with pytest.raises(PickleRefusedError):
        load(crafted)


def test_the_users_own_classes_can_be_allowed() -> None:
    data = dump_pickle(argparse.Namespace(x=1))
    with pytest.raises(PickleRefusedError, match="pickle_allow"):
        load(data)
    assert load(data, allow=("argparse",)).x == 1


def test_never_refuses_everything() -> None:
    with pytest.raises(PickleRefusedError, match="'never'"):
        load(dump_pickle(1), policy="never")


def test_trusted_loads_everything(tmp_path: Path) -> None:
    load(dump_pickle(Touch(str(tmp_path / "made"))), policy="trusted")
    assert (tmp_path / "made").is_dir()


def build(target: bytes, state: bytes) -> bytes:
    """Return a pickle that sets the state, a dict of attributes, on what `target` leaves."""
    slots = pickle.MARK + pickle.NONE + state + pickle.TUPLE
    return pickle.PROTO + b"\x04" + target + slots + pickle.BUILD + pickle.STOP


def attribute(name: str, value: bytes) -> bytes:
    return pickle.EMPTY_DICT + pickle.UNICODE + name.encode() + b"\n" + value + pickle.SETITEM


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    ("target", "name"),
    [
        (b"cqwf.data.models\nLinearModel\n", "predict"),
        (b"cpandas\nDataFrame\n", "dropna"),
        (b"cbuiltins\ngetattr\n", "__name__"),
        (b"cbuiltins\ngetattr\n(czoneinfo\nZoneInfo\nX\x09\x00\x00\x00_unpickletR", "__doc__"),
        (b"cpandas._libs.tslibs.timestamps\n_unpickle_timestamp\n", "__name__"),
        (b"czoneinfo\nZoneInfo\n(X\x03\x00\x00\x00UTCtR", "utcoffset"),
    ],
)
def test_restricted_changes_no_class_or_function(target: bytes, name: str, *, plain: bool) -> None:
    watched = (LinearModel, pd.DataFrame, pickles._zone_reader)
    before = [dict(vars(one)) for one in watched], pickles._zone_reader.__name__
    state = attribute(name, b"cbuiltins\ndict\n")
    forged = build(target, state)
    if plain:  # the other way of BUILD: a dict for the __dict__ of the target
        forged = pickle.PROTO + b"\x04" + target + state + pickle.BUILD + pickle.STOP
    with pytest.raises(PickleRefusedError, match=r"model.pkl would change .* itself"):
        load(forged)
    assert ([dict(vars(one)) for one in watched], pickles._zone_reader.__name__) == before


def test_restricted_still_sets_the_state_of_what_the_pickle_made() -> None:
    model = LinearModel()
    model.anything = {"a": (1, 2)}  # type: ignore[attr-defined]
    assert vars(load(dump_pickle(model))) == vars(model)


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
def test_restricted_reads_every_protocol_with_binary_data(protocol: int) -> None:
    frame = pd.DataFrame({"a": np.arange(3.0), "b": ["x", "y", None]}, index=[3, 4, 5])
    pd.testing.assert_frame_equal(load(pickle.dumps(frame, protocol)), frame)
