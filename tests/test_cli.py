"""The command line, run as a user runs it: in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwf.tracking.manager import ExpManager


def qwf(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qwf", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_demo_prints_recorders_ic_and_signals_and_runs_twice(tmp_path: Path) -> None:
    for time in (1, 2):
        done = qwf("demo", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        for wanted in ("[14/14]", "FINISHED", "Rank IC", "ensemble", "AAPL", "qwf_store"):
            assert wanted in done.stdout
        (experiment,) = ExpManager(tmp_path / "qwf_store").list_experiments().values()
        recorders = experiment.list_recorders()
        assert len(recorders) == 14 * time
        assert {recorder.status for recorder in recorders.values()} == {"FINISHED"}
    assert qwf("check", cwd=tmp_path).returncode == 0


def test_the_environment_says_where_the_store_is(tmp_path: Path) -> None:
    ExpManager(tmp_path / "there").create_exp("e")
    assert qwf("check", cwd=tmp_path, QWF_URI=str(tmp_path / "there")).returncode == 0


def test_the_check_reports_and_repairs(tmp_path: Path) -> None:
    store = tmp_path / "qwf_store"
    run = ExpManager(store).create_exp("e").create_recorder().start_run()
    stray = Path(run.get_local_dir()) / "artifacts" / "stray"
    stray.parent.mkdir()
    stray.touch()
    os.utime(stray, (0, 0))
    found = qwf("check", "--json", cwd=tmp_path)
    assert found.returncode == 1
    (finding,) = json.loads(found.stdout)
    assert finding["path"].endswith("artifacts/stray")
    assert stray.exists()
    mended = qwf("check", "--repair", cwd=tmp_path)
    assert mended.returncode == 0, mended.stdout
    assert "1 repaired, 0 wrong" in mended.stdout
    assert not stray.exists()


def test_a_missing_store_is_one_sentence_and_exit_code_1(tmp_path: Path) -> None:
    done = qwf("check", "nowhere", cwd=tmp_path)
    assert done.returncode == 1
    assert "there is no store here" in done.stdout
    assert not (tmp_path / "nowhere").exists()


def test_a_file_in_place_of_the_store_is_one_sentence_without_traceback(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    done = qwf("demo", "--uri", "f", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("qwf: ")
    assert "is a file and not a directory" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in qwf("--debug", "demo", "--uri", "f", cwd=tmp_path).stderr


def test_a_wrong_command_line_is_exit_code_2(tmp_path: Path) -> None:
    assert qwf("dmeo", cwd=tmp_path).returncode == 2


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["check", "--help"]])
def test_help_is_there(arguments: list[str], tmp_path: Path) -> None:
    done = qwf(*arguments, cwd=tmp_path)
    assert done.returncode == 0
    assert "usage: qwf" in done.stdout
