"""Which status may follow which, and what a paused run is."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Children

from qwf import R
from qwf.errors import FilterError, RecorderStateError, UnknownStatusError
from qwf.tracking.manager import ExpManager
from qwf.tracking.recorder import Recorder

# From each status (rows) to each (columns): what the documentation says, written out once more.
ALLOWED = """
             SCHEDULED RUNNING PAUSED FINISHED FAILED
SCHEDULED    yes       yes     no     yes      yes
RUNNING      yes       yes     yes    yes      yes
PAUSED       no        yes     yes    yes      yes
FINISHED     no        yes     no     yes      yes
FAILED       no        yes     no     yes      yes
"""
HEAD, *LINES = (line.split() for line in ALLOWED.strip().splitlines())
PAIRS = [
    (line[0], after, answer == "yes")
    for line in LINES
    for after, answer in zip(HEAD, line[1:], strict=True)
]


def elsewhere(store: Path, recorder: Recorder) -> Recorder:
    """Return the same recorder as another process would open it."""
    return ExpManager(store).get_exp(experiment_id=recorder.experiment_id).get_recorder(recorder.id)


def in_status(status: str) -> Recorder:
    """Return a recorder that has this status on disk."""
    recorder = R.get_exp(experiment_name="e").create_recorder().start_run()
    if status != "RUNNING":
        recorder.end_run(status)
    return recorder


def change(recorder: Recorder, status: str) -> None:
    if status == "RUNNING":
        recorder.start_run()
    else:
        recorder.end_run(status)


def test_the_table_is_whole() -> None:
    assert {pair[:2] for pair in PAIRS} == set(itertools.product(Recorder.STATUSES, repeat=2))


@pytest.mark.parametrize(("before", "after", "allowed"), PAIRS)
def test_a_status_follows_another_only_as_the_table_says(
    store: Path, snapshot: Callable[[Path], Any], before: str, after: str, allowed: bool
) -> None:
    recorder = in_status(before)
    other = elsewhere(store, recorder)
    kept = snapshot(Path(recorder.get_local_dir()))
    if allowed:
        change(other, after)
        assert elsewhere(store, recorder).status == other.status == after
        assert (other.end_time is None) == (after == "RUNNING")
    else:
        with pytest.raises(RecorderStateError, match=f"{other.id} is {before}.*become {after}"):
            change(other, after)
        assert elsewhere(store, recorder).status == before
        assert snapshot(Path(recorder.get_local_dir())) == kept
    for one in (other, recorder):
        with contextlib.suppress(RecorderStateError):
            one.end_run("FINISHED")


def test_a_refused_change_tells_what_would_be_possible(store: Path) -> None:
    recorder = in_status("FINISHED")
    with pytest.raises(RecorderStateError) as caught:
        recorder.pause()
    assert str(caught.value) == (
        f"recorder {recorder.id} is FINISHED and cannot become PAUSED; it can become FAILED, "
        "RUNNING. Nothing was changed. Resume it first to go on with it."
    )
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("status", ["LOST", "BROKEN", "paused", "", None])
def test_a_status_that_is_only_shown_cannot_be_given(store: Path, status: Any) -> None:
    recorder = in_status("RUNNING")
    with pytest.raises(UnknownStatusError, match="PAUSED"):
        recorder.end_run(status)
    assert elsewhere(store, recorder).status == "RUNNING"
    recorder.end_run("FINISHED")


def test_a_status_of_a_later_release_is_shown_and_can_only_be_resumed(store: Path) -> None:
    recorder = in_status("FINISHED")
    recorder._update(lambda document: {**document, "status": "ARCHIVED"})
    found = elsewhere(store, recorder)
    assert found.status == "ARCHIVED"
    assert [one.status for one in R.list_recorders(experiment_name="e").values()] == ["ARCHIVED"]
    with pytest.raises(RecorderStateError, match="is ARCHIVED and cannot become FINISHED"):
        found.end_run("FINISHED")
    found.start_run()
    found.end_run("FINISHED")
    assert elsewhere(store, recorder).status == "FINISHED"


# --- pausing -------------------------------------------------------------------------------------


def test_a_paused_run_is_set_aside_with_all_it_has(store: Path) -> None:
    with R.start(experiment_name="e"):
        R.log_params(lr=0.1)
        R.log_metrics(step=1, loss=3.0)
        R.save_objects(model=[1, 2])
        recorder = R.get_recorder()
        R.end_exp("PAUSED")
        assert R.exp_manager.active_experiment is None
    found = elsewhere(store, recorder)
    assert (recorder.status, found.status, Recorder.STATUS_P) == ("PAUSED",) * 3
    assert found.end_time is not None
    assert found.list_metrics() == {"loss": 3.0}
    assert found.load_object("model") == [1, 2]
    assert all(session["ended_at"] for session in found.sessions())


def test_pausing_inside_a_block_is_not_undone_by_the_end_of_the_block(store: Path) -> None:
    with R.start(experiment_name="e"):
        recorder = R.get_recorder()
        recorder.pause()
    assert elsewhere(store, recorder).status == "PAUSED"
    assert R.exp_manager.active_experiment is None
    with pytest.raises(KeyError), R.start(experiment_name="e"):  # noqa: PT012
        other = R.get_recorder()
        other.pause()
        raise KeyError
    assert elsewhere(store, other).status == "PAUSED"


def test_a_paused_run_that_was_resumed_inside_its_block_ends_with_the_block(store: Path) -> None:
    with R.start(experiment_name="e"):
        recorder = R.get_recorder()
        recorder.pause()
        recorder.start_run()
    assert elsewhere(store, recorder).status == "FINISHED"


def test_a_run_that_was_never_started_cannot_be_paused(store: Path) -> None:
    with pytest.raises(RecorderStateError, match="never started"):
        R.get_exp(experiment_name="e").create_recorder().pause()


def test_paused_runs_are_listed_and_found_by_their_status(store: Path) -> None:
    paused, _, failed = map(in_status, ("PAUSED", "FINISHED", "FAILED"))
    experiment = R.get_exp(experiment_name="e")
    assert list(experiment.list_recorders(status="PAUSED")) == [paused.id]
    found = R.search_records(experiment.id, filter_string="attributes.status = 'PAUSED'")
    assert list(found["run_id"]) == [paused.id]
    either = experiment.list_recorders(filter_string="status IN ('PAUSED', 'FAILED')")
    assert list(either) == [failed.id, paused.id]


def test_another_process_resumes_a_paused_run_by_its_id(
    store: Path, run_script: Callable[..., Any]
) -> None:
    with R.start(experiment_name="e"):
        R.log_metrics(step=1, loss=3.0)
        recorder = R.get_recorder()
        R.end_exp("PAUSED")
    started = recorder.start_time
    result = run_script(
        """
        import sys
        import qwf
        from qwf import R
        qwf.init(uri=sys.argv[1])
        with R.start(experiment_name="e", recorder_id=sys.argv[2], resume=True):
            print(R.get_recorder().status)
            R.log_metrics(step=2, loss=2.0)
        """,
        store,
        recorder.id,
    )
    assert (result.stdout, result.stderr) == ("RUNNING\n", "")
    found = elsewhere(store, recorder)
    assert (found.status, found.start_time) == ("FINISHED", started)
    assert found.list_metrics() == {"loss": 2.0}
    pids = [session["pid"] for session in found.sessions()]
    assert (len(pids), pids[0]) == (2, os.getpid())


def test_a_block_that_resumes_goes_on_with_the_paused_run(store: Path) -> None:
    with R.start(experiment_name="e"):
        first = R.get_recorder()
        R.end_exp("PAUSED")
    with R.start(experiment_name="e", resume=True):
        second = R.get_recorder()
        assert second.status == "RUNNING"
        R.end_exp("PAUSED")
    with R.start(experiment_name="e", resume=True):
        assert R.get_recorder().id == first.id
    assert (second.id, elsewhere(store, first).status) == (first.id, "FINISHED")
    assert len(first.sessions()) == 3


def test_a_paused_run_is_not_lost_when_its_process_is_gone(
    store: Path, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = R.get_exp(experiment_name="e").create_recorder().start_run()
    recorder.end_run("SCHEDULED")

    def pause() -> None:
        mine = elsewhere(store, recorder).start_run()
        mine.pause()
        os._exit(0)

    children.add(pause)
    assert children.exit_codes() == [0]
    assert elsewhere(store, recorder).status == "PAUSED"


def test_the_end_of_the_program_leaves_a_paused_run_paused(
    store: Path, run_script: Callable[..., Any]
) -> None:
    result = run_script(
        """
        import sys
        import qwf
        from qwf import R
        qwf.init(uri=sys.argv[1])
        R.start_exp(experiment_name="e")
        R.get_recorder().pause()
        R.start_exp(experiment_name="e")
        sys.exit(3)
        """,
        store,
    )
    assert result.returncode == 3
    listed = R.list_recorders(experiment_name="e").values()
    assert [recorder.status for recorder in listed] == ["FAILED", "PAUSED"]


def test_a_filter_may_ask_for_any_status(store: Path) -> None:
    in_status("PAUSED")
    for status in ("LOST", "BROKEN", "nonsense"):
        with contextlib.suppress(FilterError):
            assert R.search_records(filter_string=f"status = '{status}'").empty
