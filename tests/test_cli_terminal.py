"""What people see on a terminal of 40, 80 and 200 columns."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

import qwf
from qwf.tracking.experiment import Experiment
from qwf.tracking.manager import ExpManager

WIDTHS = (40, 80, 200)
EXPERIMENT = "滚动 rolling study"


def environment(columns: int) -> dict[str, str]:
    kept = {key: text for key, text in os.environ.items() if key[:4] != "QWF_"}
    root = str(Path(qwf.__file__).parent.parent)
    settings = {"PYTHONPATH": root, "PYTHONIOENCODING": "utf-8", "TZ": "UTC"}
    return {**kept, **settings, "COLUMNS": str(columns)}


def on_terminal(cwd: Path, columns: int, *arguments: str) -> tuple[list[str], str]:
    """Run a command whose output is a terminal; return its lines and what it noted."""
    keyboard, screen = pty.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "qwf", *arguments],
            cwd=cwd,
            env=environment(columns),
            stdin=subprocess.DEVNULL,
            stdout=screen,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        ) as process:
            os.close(screen)
            shown = b""
            while part := _read(keyboard):
                shown += part
            _, noted = process.communicate(timeout=60)
    finally:
        os.close(keyboard)
    assert process.returncode == 0, noted
    return shown.decode().replace("\r\n", "\n").splitlines(), noted


def _read(keyboard: int) -> bytes:
    try:
        return os.read(keyboard, 65536)
    except OSError:  # how Linux tells that the other end was closed
        return b""


def columns_of(line: str) -> int:
    return sum(1 + (unicodedata.east_asian_width(one) in ("W", "F")) for one in line)


def add(experiment: Experiment, number: int, name: str, **metrics: float) -> None:
    """Add a recorder with an id and times that are always the same."""
    recorder = experiment.create_recorder(name).start_run()
    recorder.log_params(lr=0.1 * number, features="open, high, low, close, volume " * 8)
    recorder.log_metrics(**metrics)
    recorder.set_tags(note="长长的笔记" * 20)
    recorder.save_objects(pred={"a": number})
    recorder.end_run("FINISHED")
    directory = Path(recorder.get_local_dir())
    path = directory / "recorder.json"
    document = json.loads(path.read_text())
    document["id"] = f"20260102-09300{number}-000000-0000000{number}"
    document["started_at"] = f"2026-01-02T09:30:0{number}.000000Z"
    document["ended_at"] = f"2026-01-02T09:3{number}:15.500000Z"
    path.write_text(json.dumps(document))
    directory.rename(directory.with_name(document["id"]))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a store that is the same at every run."""
    place = tmp_path_factory.mktemp("terminal")
    experiment = ExpManager(place / "qwf_store").create_exp(EXPERIMENT)
    add(experiment, 1, "ridge of all windows", IC=0.0312345678, loss=1.25)
    add(experiment, 2, "线性模型", IC=-0.5, loss=12.0, rank=1e-9)
    return place


NARROW = """\
id         name      status           IC
…00000002  线性模型  FINISHED       -0.5
…00000001  ridge o…  FINISHED  0.0312346
"""
USUAL = """\
id         name               status    started                  IC  loss   rank
…00000002  线性模型           FINISHED  2026-01-02 09:30       -0.5    12  1e-09
…00000001  ridge of all win…  FINISHED  2026-01-02 09:30  0.0312346  1.25
"""
WIDE = """\
id                               name                  status    started             duration  \
       IC  loss   rank
20260102-093002-000000-00000002  线性模型              FINISHED  2026-01-02 09:30  2 min 14 s  \
     -0.5    12  1e-09
20260102-093001-000000-00000001  ridge of all windows  FINISHED  2026-01-02 09:30  1 min 14 s  \
0.0312346  1.25
"""


@pytest.mark.parametrize(
    ("width", "shown", "noted"),
    [
        (40, NARROW, "started, duration, loss, rank"),
        (80, USUAL, "duration"),
        (200, WIDE, None),
    ],
)
def test_a_list_shows_what_fits_and_notes_what_does_not(
    place: Path, width: int, shown: str, noted: str | None
) -> None:
    lines, notes = on_terminal(place, width, "rec", "list", EXPERIMENT)
    assert lines == shown.splitlines()
    wanted = f"not shown, for want of width: {noted}; --json has all.\n"
    assert notes == (wanted if noted else "")


def test_a_list_in_a_pipe_is_shown_whole_whatever_the_terminal(place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qwf", "rec", "list", EXPERIMENT],
        cwd=place,
        env=environment(40),
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        check=True,
        timeout=60,
    )
    assert done.stdout == WIDE


def test_a_part_of_an_id_that_is_shown_names_the_recorder(place: Path) -> None:
    lines, _ = on_terminal(place, 40, "rec", "list", EXPERIMENT)
    shown, _ = on_terminal(place, 80, "rec", "show", lines[1].split()[0].lstrip("…"))
    assert shown[0].split() == ["recorder", "20260102-093002-000000-00000002"]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "words",
    [
        "exp list", "rec list", "rec list --columns tags.note,params.lr", "rec params 00000001",
        "rec metrics 00000001", "rec artifacts 00000001", "rec show 00000001", "rec tag 00000002",
        "rec compare 00000001 00000002", "rec compare 00000001 00000002 --transpose --all",
    ],
)  # fmt: skip
def test_nothing_is_wider_than_the_terminal(place: Path, width: int, words: str) -> None:
    lines, _ = on_terminal(place, width, *words.split())
    # Code is left to the terminal to wrap, so that it can be copied.
    lines = [line for line in lines if "load_object" not in line]
    assert lines
    assert max(map(columns_of, lines)) <= width
