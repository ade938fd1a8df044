"""``qwf exp``, ``rec`` and ``gc``, run as a user runs them: in processes of their own."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import qwf
from qwf.cli import main
from qwf.tracking.experiment import Experiment
from qwf.tracking.manager import ExpManager
from qwf.tracking.recorder import Recorder

Run = Callable[..., subprocess.CompletedProcess[str]]
ROOT = str(Path(qwf.__file__).parent.parent)


def environment(**settings: str) -> dict[str, str]:
    kept = {key: text for key, text in os.environ.items() if key[:4] != "QWF_"}
    return {**kept, "PYTHONPATH": ROOT, "PYTHONIOENCODING": "utf-8", "TZ": "UTC", **settings}


def qwf_in(cwd: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "qwf", *arguments],
        cwd=cwd,
        env=environment(**settings),
        capture_output=True,
        check=False,
        timeout=60,
    )
    # Read as text, line ends would be translated.
    out, err = done.stdout.decode(), done.stderr.decode()
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


@pytest.fixture
def process(tmp_path: Path) -> Run:
    """``process("rec", "list")`` in a directory whose ``qwf_store`` is the store."""
    return partial(qwf_in, tmp_path)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The same in this process, which is faster, with streams like those of a process."""

    def command(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="\n") for _ in range(2))
        with monkeypatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(tmp_path)
            patch.delenv("QWF_URI", raising=False)
            for name, value in settings.items():
                patch.setenv(name, value)
            try:
                code = main(arguments)
            except SystemExit as ended:
                code = int(ended.code or 0)
        texts = []
        for stream in (out, err):
            stream.flush()
            texts.append(stream.detach().getvalue().decode())
        return subprocess.CompletedProcess(arguments, code, *texts)

    return command


@pytest.fixture
def manager(tmp_path: Path) -> ExpManager:
    return ExpManager(tmp_path / "qwf_store")


def finished(
    experiment: Experiment, name: str = "run", *, status: str = "FINISHED", **logged: Any
) -> Recorder:
    """A recorder that has ended, with params, metrics, tags and objects as given."""
    recorder = experiment.create_recorder(name).start_run()
    recorder.log_params(**logged.get("params", {}))
    recorder.log_metrics(**logged.get("metrics", {}))
    recorder.set_tags(**logged.get("tags", {}))
    if logged.get("objects"):
        recorder.save_objects(**logged["objects"])
    recorder.end_run(status)
    return recorder


def out_of(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def json_of(done: subprocess.CompletedProcess[str]) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(out_of(done), parse_constant=refuse)


def csv_of(done: subprocess.CompletedProcess[str]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(out_of(done), newline="")))


def short(recorder: Recorder) -> str:
    return str(recorder.id)[-8:]


# --- experiments -----------------------------------------------------------------------------


@pytest.fixture
def two(manager: ExpManager) -> dict[str, list[Recorder]]:
    """Two experiments: ``rolling`` with three recorders, and ``沪深 study`` with one."""
    rolling = manager.create_exp("rolling")
    recorders = [
        finished(
            rolling,
            f"r{number}",
            status="FAILED" if number == 2 else "FINISHED",
            params={"lr": 0.1 * number, "model": "ridge"},
            metrics={"IC": 0.01 * number, "loss": 1.5},
            tags={"owner": "ann"} if number else {},
        )
        for number in range(3)
    ]
    study = finished(manager.create_exp("沪深 study"), metrics={"Rank IC": 0.5})
    return {"rolling": recorders, "沪深 study": [study]}


def test_experiments_are_listed_with_their_recorders_by_status_last_used_first(
    process: Run, two: dict[str, list[Recorder]], manager: ExpManager
) -> None:
    manager.create_exp("empty")
    header, *lines = out_of(process("exp", "list")).splitlines()
    assert header.split() == "name recorders by status last start".split()
    assert [line.split("  ")[0] for line in lines] == ["沪深 study", "rolling", "empty"]
    assert "3  1 FAILED, 2 FINISHED" in lines[1]
    assert str(two["rolling"][2].start_time)[:10] in lines[1]
    found = json_of(process("exp", "list", "--json"))
    assert [(one["name"], one["recorders"], one["by_status"]) for one in found] == [
        ("沪深 study", 1, {"FINISHED": 1}),
        ("rolling", 3, {"FAILED": 1, "FINISHED": 2}),
        ("empty", 0, {}),
    ]
    assert found[2]["last_start"] is None
    rows = csv_of(process("exp", "list", "--csv"))
    assert [row["recorders"] for row in rows] == ["1", "3", "0"]


def test_one_experiment_is_shown_with_its_metrics_and_newest_recorders(
    run: Run, two: dict[str, list[Recorder]]
) -> None:
    shown = out_of(run("exp", "show", "rolling"))
    assert "3 = 1 FAILED, 2 FINISHED" in shown
    assert "IC, loss" in shown
    assert [line.split()[0] for line in shown.splitlines()[-3:]] == [
        recorder.id for recorder in reversed(two["rolling"])
    ]
    found = json_of(run("exp", "show", "rolling", "--json"))
    assert found["metrics"] == ["IC", "loss"]
    assert found["created_at"].endswith("Z")
    assert found["newest"][0]["run_id"] == two["rolling"][2].id


def test_an_unknown_experiment_is_one_sentence_that_names_the_nearest(
    run: Run, two: dict[str, list[Recorder]]
) -> None:
    for command in (["exp", "show"], ["exp", "delete"], ["rec", "list"]):
        done = run(*command, "roling")
        assert done.returncode == 1
        assert "did you mean 'rolling'?" in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""


def test_a_deleted_experiment_comes_back_by_the_command_that_is_printed(
    run: Run, two: dict[str, list[Recorder]], manager: ExpManager, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    done = qwf_in(elsewhere, "exp", "delete", "沪深 study", "--uri", "../qwf_store")
    said = out_of(done)
    assert "沪深 study" in said
    assert "recorders: 1" in said
    assert list(manager.list_experiments()) == ["rolling"]
    (command,) = [line for line in said.splitlines() if "qwf exp restore" in line]
    words = shlex.split(command[command.index("qwf exp restore") :])
    assert "沪深 study" in out_of(qwf_in(elsewhere, *words[1:]))
    assert set(manager.list_experiments()) == {"rolling", "沪深 study"}


@pytest.mark.parametrize("name", ["-x", "--uri", "it's 5 o'clock", "a/b"])
def test_experiments_of_any_name_are_deleted_and_come_back(
    run: Run, manager: ExpManager, name: str
) -> None:
    manager.create_exp(name)
    said = out_of(run("exp", "delete", "--", name))
    assert manager.list_experiments() == {}
    out_of(run(*shlex.split(said[said.index("qwf exp restore") :])[1:]))
    assert list(manager.list_experiments()) == [name]


def test_what_is_not_in_the_trash_cannot_come_back(
    run: Run, two: dict[str, list[Recorder]]
) -> None:
    done = run("exp", "restore", "rolling")
    assert done.returncode == 1
    assert "rolling" in done.stderr
    done = run("rec", "restore", str(two["rolling"][0].id))
    assert done.returncode == 1
    assert "trash" in done.stderr


# --- recorders: lists ------------------------------------------------------------------------


def ids_in(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines()[1:]]


def test_recorders_are_listed_newest_first_with_their_metrics(
    run: Run, two: dict[str, list[Recorder]]
) -> None:
    done = run("rec", "list")
    header, *lines = out_of(done).splitlines()
    assert header.split()[:4] == ["id", "experiment", "name", "status"]
    assert header.endswith("IC  loss  Rank IC")
    assert ids_in(done.stdout) == [
        two["沪深 study"][0].id,
        *(recorder.id for recorder in reversed(two["rolling"])),
    ]
    assert "FAILED" in lines[1]
    assert "0.02" in lines[1]
    assert done.stderr == ""


def test_recorders_of_one_experiment_do_not_repeat_its_name(
    run: Run, two: dict[str, list[Recorder]]
) -> None:
    done = run("rec", "list", "rolling")
    assert "experiment" not in done.stdout.splitlines()[0]
    assert len(ids_in(out_of(done))) == 3
    both = run("rec", "list", "rolling", "沪深 study")
    assert "experiment" in both.stdout.splitlines()[0]
    assert len(ids_in(out_of(both))) == 4


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        (["list", "rolling", "--status", "failed"], [2]),
        (["list", "rolling", "--status", "FAILED", "--status", "FINISHED"], [2, 1, 0]),
        (["list", "rolling", "--filter", "metrics.IC < 0.015"], [1, 0]),
        (["list", "rolling", "--filter", "metrics.IC < 0.015", "--status", "FAILED"], []),
        (["list", "rolling", "--order-by", "metrics.IC ASC"], [0, 1, 2]),
        (["list", "rolling", "--max", "2"], [2, 1]),
        (["search", "tags.owner = 'ann'"], [2, 1]),
        (["search", "tags.owner IS NULL", "rolling"], [0]),
        (["search", "params.lr = '0.1' OR run_name = 'r0'", "rolling"], [1, 0]),
    ],
)
def test_lists_are_filtered_ordered_and_cut(
    run: Run, two: dict[str, list[Recorder]], words: list[str], numbers: list[int]
) -> None:
    done = run("rec", *words)
    assert ids_in(out_of(done)) == [two["rolling"][number].id for number in numbers]
    if not numbers:
        assert done.stdout == ""
        assert "no such recorder" in done.stderr


def test_what_is_left_out_of_a_long_list_is_said_on_standard_error(
    run: Run, two: dict[str, list[Recorder]]
) -> None:
    done = run("rec", "list", "--max", "1")
    assert len(ids_in(out_of(done))) == 1
    assert "and 3 more" in done.stderr
    assert "--max 0" in done.stderr


def test_a_list_for_people_has_fifty_rows_and_one_for_programs_all(
    run: Run, manager: ExpManager
) -> None:
    experiment = manager.create_exp("many")
    for _ in range(53):
        experiment.create_recorder().start_run().end_run("FINISHED")
    done = run("rec", "list")
    assert len(ids_in(out_of(done))) == 50
    assert "and 3 more" in done.stderr
    for words in (["--max", "0"], ["--csv"]):
        done = run("rec", "list", *words)
        assert len(ids_in(out_of(done))) == 53
        assert done.stderr == ""
    assert len(json_of(run("rec", "list", "--json"))) == 53


def test_columns_that_are_chosen_replace_the_usual_metrics(
    run: Run, two: dict[str, list[Recorder]]
) -> None:
    done = run("rec", "list", "rolling", "--columns", "tags.owner,params.model,end_time")
    header, first, *_ = out_of(done).splitlines()
    assert header.split()[-3:] == ["owner", "model", "ended"]
    assert "IC" not in header
    assert first.split()[-4:-2] == ["ann", "ridge"]


def test_a_column_that_nothing_has_is_empty_and_the_nearest_is_named(
    run: Run, two: dict[str, list[Recorder]]
) -> None:
    done = run("rec", "list", "rolling", "--columns", "metrics.ICC")
    assert len(ids_in(out_of(done))) == 3
    assert "metrics.ICC" in done.stderr
    assert "did you mean 'IC'?" in done.stderr


def test_the_lists_for_programs_hold_everything_with_its_type(
    run: Run, two: dict[str, list[Recorder]]
) -> None:
    (one,) = json_of(run("rec", "list", "rolling", "--json", "--status", "FAILED"))
    recorder = two["rolling"][2]
    assert one["run_id"] == recorder.id
    assert one["experiment"] == "rolling"
    assert one["metrics"] == {"IC": 0.02, "loss": 1.5}
    assert one["params"]["lr"] == "0.2"
    assert one["tags"] == {"owner": "ann"}
    assert one["start_time"][:19].replace("T", " ") <= one["end_time"][:19].replace("T", " ")
    assert one["duration"] >= 0
    (row,) = csv_of(run("rec", "list", "rolling", "--csv", "--status", "FAILED"))
    assert row["run_id"] == recorder.id
    assert float(row["metrics.IC"]) == 0.02
    assert row["params.model"] == "ridge"
    assert row["start_time"] == one["start_time"]


def test_deleted_recorders_are_listed_apart(run: Run, two: dict[str, list[Recorder]]) -> None:
    gone, *others = two["rolling"]
    out_of(run("rec", "delete", str(gone.id)))
    assert ids_in(out_of(run("rec", "list", "--deleted"))) == [gone.id]
    assert ids_in(out_of(run("rec", "list", "rolling"))) == [one.id for one in reversed(others)]
    out_of(run("exp", "delete", "沪深 study"))
    for words in ([], ["沪深 study"]):
        found = json_of(run("rec", "list", "--deleted", "--json", *words))
        assert [one["experiment"] for one in found][:1] == ["沪深 study"]


def test_a_mistake_in_a_filter_is_pointed_at_and_exit_code_2(
    run: Run, two: dict[str, list[Recorder]]
) -> None:
    for words in (
        ["rec", "search", "metrics.IC >> 3"],
        ["rec", "list", "--filter", "metrics.IC >> 3"],
        ["rec", "list", "--order-by", "metrics.IC DOWN"],
        ["rec", "compare", "--filter", "metrics.IC >> 3"],
    ):
        done = run(*words)
        assert done.returncode == 2, words
        assert done.stderr.splitlines()[-1].strip() == "^"
        assert "Traceback" not in done.stderr
        assert done.stdout == ""


def test_a_broken_recorder_is_a_row_and_a_lost_one_is_told_apart(
    run: Run, two: dict[str, list[Recorder]], run_script: Run, manager: ExpManager
) -> None:
    (Path(two["rolling"][0].get_local_dir()) / "recorder.json").write_text("{")
    run_script(
        """
        import os, sys
        from qwf.tracking.manager import ExpManager
        ExpManager(sys.argv[1]).create_exp("killed").create_recorder().start_run()
        os._exit(9)
        """,
        manager.uri,
    )
    found = json_of(run("rec", "list", "--json"))
    status = {one["experiment"]: one["status"] for one in found}
    assert status["killed"] == "LOST"
    assert {one["run_id"]: one["status"] for one in found}[two["rolling"][0].id] == "BROKEN"
    assert two["rolling"][0].id in out_of(run("rec", "list", "--status", "BROKEN"))


# --- one recorder ----------------------------------------------------------------------------


@pytest.fixture
def rich(manager: ExpManager) -> Recorder:
    """A recorder that has something of everything."""
    return finished(
        manager.create_exp("rich study"),
        "the rich one",
        params={"lr": 0.001, "layers": (1, 2)},
        metrics={"IC": 0.03125, "bad": float("nan")},
        tags={"note": "two\nlines \x1b[31m", "owner": "ann"},
        objects={"pred.pkl": {"a": 1}, "dir/weights": {1, 2}},
    )


def test_show_tells_everything_about_a_recorder(run: Run, rich: Recorder) -> None:
    shown = out_of(run("rec", "show", short(rich)))
    for wanted in (
        str(rich.id), "the rich one", "rich study", "FINISHED", "0.001", "(1, 2)", "0.03125",
        "nan", "ann", "pred.pkl", "json", "dir/weights", "pickle", str(os.getpid()),
        r"two\nlines \x1b[31m",
    ):  # fmt: skip
        assert wanted in shown, wanted
    found = json_of(run("rec", "show", str(rich.id), "--json"))
    assert found["metrics"] == {"IC": 0.03125, "bad": None}
    assert found["tags"]["note"] == "two\nlines \x1b[31m"
    assert found["artifacts"]["pred.pkl"]["kind"] == "json"
    assert len(found["artifacts"]["pred.pkl"]["sha256"]) == 64
    assert found["sessions"][0]["pid"] == os.getpid()
    assert found["children"] == []
    assert "provenance" in found


def test_show_says_how_an_artifact_is_loaded_and_that_is_true(
    run: Run, rich: Recorder, run_script: Run
) -> None:
    shown = out_of(run("rec", "show", short(rich)))
    (line,) = [line for line in shown.splitlines() if "load_object" in line]
    code = line[line.index("R.get_recorder") :]
    done = run_script(
        f"import sys, qwf; from qwf import R; qwf.init(uri=sys.argv[1]); print({code})", rich.uri
    )
    assert out_of(done) == "{1, 2}\n"  # of dir/weights, the first by name


def test_parent_and_children_are_shown(run: Run, manager: ExpManager) -> None:
    experiment = manager.create_exp("family")
    parent = experiment.create_recorder("parent").start_run()
    child = experiment.create_recorder("child", parent_id=parent.id).start_run()
    child.end_run("FINISHED")
    parent.end_run("FINISHED")
    assert json_of(run("rec", "show", short(parent), "--json"))["children"] == [child.id]
    assert json_of(run("rec", "show", short(child), "--json"))["parent_id"] == parent.id
    assert str(parent.id) in out_of(run("rec", "show", short(child)))


def test_the_history_of_metrics_is_shown_or_only_the_last_values(
    run: Run, manager: ExpManager
) -> None:
    recorder = manager.create_exp("e").create_recorder().start_run()
    for step in range(3):
        recorder.log_metrics(step=step, loss=0.1 + step, other=float("nan"))
    recorder.end_run("FINISHED")
    rows = csv_of(run("rec", "metrics", short(recorder), "loss", "--csv"))
    assert [(row["key"], row["step"], row["value"]) for row in rows] == [
        ("loss", "0", "0.1"), ("loss", "1", "1.1"), ("loss", "2", "2.1"),
    ]  # fmt: skip
    assert rows[0]["time"].endswith("Z")
    assert len(out_of(run("rec", "metrics", short(recorder))).splitlines()) == 7
    last = run("rec", "metrics", short(recorder), "--last")
    assert [line.split() for line in out_of(last).splitlines()] == [
        ["key", "value"], ["loss", "2.1"], ["other", "nan"],
    ]  # fmt: skip
    assert json_of(run("rec", "metrics", short(recorder), "--last", "--json")) == {
        "loss": 2.1,
        "other": None,
    }
    wrong = run("rec", "metrics", short(recorder), "los")
    assert wrong.returncode == 1
    assert "did you mean 'loss'?" in wrong.stderr


def test_params_are_shown_as_they_read_back(run: Run, rich: Recorder) -> None:
    params = json_of(run("rec", "params", short(rich), "--json"))
    assert params == rich.list_params()
    assert "layers" in out_of(run("rec", "params", short(rich)))


def test_artifacts_are_listed_and_copied_out(run: Run, rich: Recorder, tmp_path: Path) -> None:
    rows = csv_of(run("rec", "artifacts", short(rich), "--csv"))
    assert [(row["name"], row["kind"]) for row in rows] == [
        ("dir/weights", "pickle"),
        ("pred.pkl", "json"),
    ]
    stored = Path(rich.get_local_dir()) / "artifacts" / "pred.pkl"
    assert int(rows[1]["size"]) == stored.stat().st_size
    assert "pred.pkl" in out_of(run("rec", "artifacts", short(rich)))
    (path,) = out_of(
        run("rec", "artifacts", short(rich), "--get", "pred.pkl", "--to", "out")
    ).splitlines()
    assert (tmp_path / path).read_bytes() == stored.read_bytes()
    assert (tmp_path / "out").is_dir()
    wrong = run("rec", "artifacts", short(rich), "--get", "pred")
    assert wrong.returncode == 1
    assert "did you mean 'pred.pkl'?" in wrong.stderr
    assert run("rec", "artifacts", short(rich), "--to", "out").returncode == 2


def test_an_id_that_means_none_or_several_is_refused(
    run: Run, two: dict[str, list[Recorder]]
) -> None:
    none = run("rec", "show", "ffffffffffff")
    assert none.returncode == 1
    assert "ffffffffffff" in none.stderr
    several = run("rec", "show", str(two["rolling"][0].id)[:4])
    assert several.returncode == 1
    assert "Traceback" not in several.stderr + none.stderr


# --- compare ---------------------------------------------------------------------------------


def test_compare_shows_only_what_differs(run: Run, two: dict[str, list[Recorder]]) -> None:
    first, second, _ = two["rolling"]
    done = run("rec", "compare", short(first), short(second))
    header, *lines = out_of(done).splitlines()
    assert header.split() == ["key", short(first), short(second)]
    assert [line.split() for line in lines] == [
        ["run_name", "r0", "r1"],
        ["params.lr", "0.0", "0.1"],
        ["metrics.IC", "0", "0.01"],
        ["tags.owner", "ann"],
    ]


def test_compare_can_show_all_and_be_turned(run: Run, two: dict[str, list[Recorder]]) -> None:
    first, second, _ = two["rolling"]
    everything = out_of(run("rec", "compare", short(first), short(second), "--all"))
    assert "params.model" in everything
    assert "start_time" in everything
    turned = run("rec", "compare", short(second), short(first), "--transpose")
    header, *lines = out_of(turned).splitlines()
    assert header.split() == ["recorder", "run_name", "params.lr", "metrics.IC", "tags.owner"]
    assert [line.split()[:2] for line in lines] == [[short(second), "r1"], [short(first), "r0"]]


def test_compare_for_programs_has_whole_ids_and_values(
    run: Run, two: dict[str, list[Recorder]]
) -> None:
    first, second, _ = two["rolling"]
    words = ["rec", "compare", short(first), short(second)]
    found = json_of(run(*words, "--json"))
    assert found["recorders"] == [first.id, second.id]
    assert {"key": "metrics.IC", "values": [0.0, 0.01]} in found["rows"]
    assert {"key": "tags.owner", "values": [None, "ann"]} in found["rows"]
    rows = csv_of(run(*words, "--csv"))
    assert {row["key"]: row[str(second.id)] for row in rows}["params.lr"] == "0.1"
    turned = csv_of(run(*words, "--csv", "--transpose"))
    assert [row["recorder"] for row in turned] == [first.id, second.id]


def test_compare_says_so_when_nothing_differs(run: Run, manager: ExpManager) -> None:
    experiment = manager.create_exp("e")
    same = [finished(experiment, params={"a": 1}, metrics={"m": float("nan")}) for _ in range(2)]
    done = run("rec", "compare", *map(short, same))
    assert out_of(done) == ""
    assert "do not differ" in done.stderr
    assert json_of(run("rec", "compare", *map(short, same), "--json"))["rows"] == []


def test_compare_shows_as_many_digits_as_tell_numbers_apart(run: Run, manager: ExpManager) -> None:
    experiment = manager.create_exp("e")
    pair = [finished(experiment, metrics={"m": value}) for value in (0.1234567891, 0.1234567892)]
    (_, line) = out_of(run("rec", "compare", *map(short, pair))).splitlines()
    _, first, second = line.split()
    assert first != second


def test_compare_takes_a_search_instead_of_ids(run: Run, two: dict[str, list[Recorder]]) -> None:
    done = run("rec", "compare", "--experiment", "rolling", "--filter", "metrics.IC > 0", "--csv")
    assert set(csv_of(done)[0]) == {"key", two["rolling"][1].id, two["rolling"][2].id}
    assert run("rec", "compare").returncode == 2
    assert run("rec", "compare", short(two["rolling"][0])).returncode == 2
    both = run("rec", "compare", short(two["rolling"][0]), "--filter", "metrics.IC > 0")
    assert both.returncode == 2


# --- changes ---------------------------------------------------------------------------------


def test_tags_notes_and_marks_are_set_deleted_and_found(
    run: Run, two: dict[str, list[Recorder]]
) -> None:
    recorder = two["rolling"][1]
    words = ["seen=a=b", "--note", "the good one", "--mark", "best", "--delete", "owner"]
    shown = out_of(run("rec", "tag", short(recorder), *words))
    assert "the good one" in shown
    assert recorder.list_tags() == {"seen": "a=b", "note": "the good one", "mark.best": "1"}
    found = run("rec", "search", "tags.mark.best IS NOT NULL")
    assert ids_in(out_of(found)) == [recorder.id]
    assert json_of(run("rec", "tag", short(recorder), "--json")) == recorder.list_tags()


def test_a_tag_that_cannot_be_deleted_leaves_all_as_it_was(
    run: Run, two: dict[str, list[Recorder]]
) -> None:
    recorder = two["rolling"][1]
    done = run("rec", "tag", short(recorder), "new=1", "--delete", "nothing")
    assert done.returncode == 1
    assert "nothing" in done.stderr
    both = run("rec", "tag", short(recorder), "owner=bob", "--delete", "owner")
    assert both.returncode == 2
    assert recorder.list_tags() == {"owner": "ann"}


def test_deleting_several_deletes_all_or_none(
    run: Run, two: dict[str, list[Recorder]], manager: ExpManager
) -> None:
    first, second, third = two["rolling"]
    experiment = manager.get_exp(experiment_name="rolling", create=False)
    refused = run("rec", "delete", short(first), "ffffffffffff")
    assert refused.returncode == 1
    assert len(experiment.list_recorders()) == 3
    online = two["沪深 study"][0]
    online.set_tags(online_status="online")
    refused = run("rec", "delete", short(first), short(online))
    assert refused.returncode == 1
    assert "online" in refused.stderr
    assert len(experiment.list_recorders()) == 3
    said = out_of(run("rec", "delete", short(first), short(second), short(first)))
    assert list(experiment.list_recorders()) == [third.id]
    (command,) = [line for line in said.splitlines() if "qwf rec restore" in line]
    words = shlex.split(command[command.index("qwf rec restore") :])
    out_of(run(*words[1:]))
    assert len(experiment.list_recorders()) == 3


def test_running_recorders_are_not_deleted(process: Run, manager: ExpManager) -> None:
    experiment = manager.create_exp("e")
    ended = finished(experiment)
    running = experiment.create_recorder().start_run()
    try:
        done = process("rec", "delete", short(ended), short(running))
        assert done.returncode == 1
        assert len(experiment.list_recorders()) == 2
    finally:
        running.end_run("FINISHED")


def test_a_parent_and_its_child_may_be_named_together(run: Run, manager: ExpManager) -> None:
    experiment = manager.create_exp("family")
    parent = finished(experiment, "parent")
    child = experiment.create_recorder("child", parent_id=parent.id).start_run()
    child.end_run("FINISHED")
    out_of(run("rec", "delete", short(child), short(parent)))
    assert experiment.list_recorders() == {}
    out_of(run("rec", "restore", str(parent.id), str(child.id)))
    assert set(experiment.list_recorders()) == {parent.id, child.id}


def test_restoring_several_restores_all_or_none(
    run: Run, two: dict[str, list[Recorder]], manager: ExpManager
) -> None:
    first, second, third = two["rolling"]
    experiment = manager.get_exp(experiment_name="rolling", create=False)
    out_of(run("rec", "delete", short(first), short(second)))
    refused = run("rec", "restore", short(first), short(third))
    assert refused.returncode == 1
    assert list(experiment.list_recorders()) == [third.id]
    out_of(run("rec", "restore", short(first)))
    assert set(experiment.list_recorders()) == {first.id, third.id}
    out_of(run("rec", "delete", short(first)))
    out_of(run("rec", "restore", short(first), str(second.id)))
    assert len(experiment.list_recorders()) == 3


def test_garbage_is_shown_first_and_then_removed_for_good(
    run: Run, two: dict[str, list[Recorder]], manager: ExpManager
) -> None:
    gone = two["rolling"][0]
    out_of(run("rec", "delete", short(gone)))
    out_of(run("exp", "delete", "沪深 study"))
    assert json_of(run("gc", "--older-than", "1d", "--json")) == []
    planned = json_of(run("gc", "--older-than", "0s", "--dry-run", "--json"))
    assert {(one["kind"], one["name"]) for one in planned} == {
        ("recorder", "r0"),
        ("experiment", "沪深 study"),
    }
    assert all(one["size"] > 0 for one in planned)
    done = run("gc", "--older-than", "0s")
    assert "r0" in out_of(done)
    assert "2 removed" in done.stderr
    assert run("rec", "restore", short(gone)).returncode == 1
    assert json_of(run("gc", "--older-than", "0s", "--json")) == []
    assert run("check").returncode == 0


# --- what all have in common -----------------------------------------------------------------

WITH_A_STORE = [
    "exp list", "exp show e", "exp delete e", "exp restore e", "rec list", "rec search a=1",
    "rec show x", "rec compare x y", "rec tag x", "rec metrics x", "rec params x",
    "rec artifacts x", "rec delete x", "rec restore x", "gc --older-than 1d",
]  # fmt: skip


@pytest.mark.parametrize("words", WITH_A_STORE)
def test_a_missing_store_is_one_sentence_and_nothing_is_created(
    run: Run, words: str, tmp_path: Path
) -> None:
    done = run(*words.split(), "--uri", "nowhere")
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("qwf: there is no store at ")
    assert str(tmp_path / "nowhere") in line
    assert list(tmp_path.iterdir()) == []


def test_the_store_is_the_option_then_the_environment_then_the_directory(
    run: Run, tmp_path: Path
) -> None:
    for name in ("qwf_store", "by_environment", "by_option"):
        ExpManager(tmp_path / name).create_exp(name)
    assert "qwf_store" in out_of(run("exp", "list"))
    assert "by_environment" in out_of(run("exp", "list", QWF_URI="by_environment"))
    chosen = run("exp", "list", "--uri", "by_option", QWF_URI="by_environment")
    assert "by_option" in out_of(chosen)


def test_debug_shows_the_traceback(process: Run) -> None:
    assert "Traceback" in process("--debug", "exp", "list").stderr
    assert "Traceback" in process("exp", "list", "--debug").stderr


@pytest.mark.parametrize(
    "words",
    [
        "exp list", "exp show rich*study", "rec list", "rec list --columns metrics.IC --json",
        "rec search metrics.IC>0", "rec show {}", "rec show {} --json", "rec tag {} a=b",
        "rec params {}", "rec artifacts {}", "rec metrics {} --last", "rec compare {} {}*",
    ],
)  # fmt: skip
def test_commands_load_neither_pandas_nor_pyarrow(
    words: str, rich: Recorder, run_script: Run, manager: ExpManager
) -> None:
    other = short(finished(manager.get_exp(experiment_name="rich study")))
    filled = words.replace("{}*", other).replace("{}", short(rich))
    arguments = [word.replace("*", " ") for word in filled.split()]
    done = run_script(
        """
        import sys
        from qwf.cli import main
        code = main(sys.argv[1:])
        print(code, "loaded", sorted({"numpy", "pandas", "pyarrow"} & set(sys.modules)))
        """,
        *arguments,
        "--uri",
        rich.uri,
    )
    assert done.stdout.splitlines()[-1] == "0 loaded []", done.stderr


def test_an_interrupted_command_says_so(
    run: Run, two: dict[str, list[Recorder]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ExpManager, "search", interrupted)
    done = run("rec", "list")
    assert done.returncode == 130
    assert done.stderr.startswith("qwf: interrupted")


def test_a_reader_that_has_seen_enough_is_no_error(
    two: dict[str, list[Recorder]], tmp_path: Path
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "qwf", "rec", "list"],
            cwd=tmp_path,
            env=environment(),
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_texts_of_users_break_no_line(run: Run, manager: ExpManager) -> None:
    nasty = "a\nb\r\x1b[2J\x9b31m\u202e\tz"
    experiment = manager.create_exp("e")
    recorder = finished(experiment, nasty, tags={"note": nasty}, params={nasty: nasty})
    for words in (
        ["rec", "list", "--columns", "tags.note"], ["rec", "show", short(recorder)],
        ["rec", "params", short(recorder)], ["rec", "tag", short(recorder)], ["exp", "show", "e"],
    ):  # fmt: skip
        text = out_of(run(*words))
        assert r"a\nb\r\x1b[2J\x9b31m\u202e\tz" in text
        assert not set(text) & set("\r\x1b\x9b\u202e\t")
    done = run("rec", "list", "--columns", "tags.note", "--csv")
    (row,) = csv_of(done)
    assert row["tags.note"] == nasty
    assert done.stdout.endswith("\r\n")


def test_a_name_that_the_encoding_lacks_does_not_end_a_command(
    process: Run, two: dict[str, list[Recorder]]
) -> None:
    done = process("exp", "list", PYTHONIOENCODING="ascii")
    assert r"\u6caa\u6df1 study" in out_of(done)
    assert json_of(process("exp", "list", "--json", PYTHONIOENCODING="ascii"))[0]["name"] == (
        "沪深 study"
    )
