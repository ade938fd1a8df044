"""Time of loading an artifact: a small dict, a frame of 2,500 days x 300 instruments, a model.

The page cache is warm. qwf compares a sha256 of the bytes at every load, which the others do not;
the floor reads the bytes that qwf keeps, plain pickle reads a file of its own.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import floor
import numpy as np
import pandas as pd
from measure import (
    print_machine,
    print_results,
    read_options,
    take_turns,
    timed,
    workshop,
)
from peers import qlib_on_mlflow

import qwf


class Trees:
    """As large as a boosted model of medium size: text of its trees, some arrays."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.text = "\n".join(f"split={value!r}" for value in random.random(40_000).tolist())
        self.gains = random.random((158, 200))


def predictions(days: int, instruments: int) -> pd.DataFrame:
    """Return scores, indexed by (datetime, instrument)."""
    dates = pd.bdate_range("2015-01-01", periods=days)
    dates.freq = None  # trading days have none
    names = [f"SH{600000 + number}" for number in range(instruments)]
    index = pd.MultiIndex.from_product([dates, names], names=["datetime", "instrument"])
    return pd.DataFrame({"score": np.random.default_rng(0).standard_normal(len(index))}, index)


def settings() -> dict[str, Any]:
    kwargs = {f"option_{number}": number / 7 for number in range(20)}
    return {"model": {"class": "LGBModel", "kwargs": kwargs}, "test": ("2020-01-01", None)}


def saved_in(recorder: Any, objects: Mapping[str, object], **where: Any) -> Any:
    """Save the objects in a new run and return its recorder."""
    with recorder.start(experiment_name="objects", **where):
        recorder.save_objects(**objects)
        return recorder.get_recorder()


def unpickle(path: Path) -> object:
    with path.open("rb") as file:
        return pickle.load(file)


def contestants_for(
    name: str, folder: Path, ours: Any, theirs: Any
) -> dict[str, Callable[[], Any]]:
    stored = f"{ours.artifact_uri}/{name}"
    plain = folder / name
    contestants = {
        "floor: read the bytes": lambda: floor.read(stored),
        "qwf load_object": lambda: ours.load_object(name),
        "plain pickle": lambda: unpickle(plain),
    }
    if theirs is not None:
        contestants["Qlib load_object"] = lambda: theirs.load_object(name)
    return contestants


def main() -> None:
    options = read_options(__doc__)
    days = 250 if options.quick else 2_500
    objects = {
        "settings": settings(),
        "pred.pkl": predictions(days, 300),
        "model.pkl": Trees(),
    }
    with workshop() as folder:
        qwf.init(uri=folder / "store")
        ours = saved_in(qwf.R, objects)
        peer = qlib_on_mlflow(folder)
        theirs = None if peer is None else saved_in(peer.R, objects, uri=peer.file_uri)
        print_machine(folder, options)
        for name, obj in objects.items():
            # Protocol 4, as Qlib and qwf write it.
            (folder / name).write_bytes(pickle.dumps(obj, protocol=4))
            contestants = contestants_for(name, folder, ours, theirs)
            sizes = Path(ours.artifact_uri, name).stat().st_size, (folder / name).stat().st_size
            measured = take_turns(
                {label: timed(call) for label, call in contestants.items()},
                5 if options.quick else 30,
            )
            notes = {
                "qwf load_object": f"{ours.artifacts()[name].kind}, {sizes[0]} bytes",
                "plain pickle": f"{sizes[1]} bytes",
            }
            print_results(f"load_object: {name}", measured, options, notes=notes)


if __name__ == "__main__":
    main()
