"""Which experiment and which recorder are meant: Qlib's three tables, row by row.

A row where qwf answers otherwise than Qlib does says so in its id, beginning with ``not_as_qlib``.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from qwf import R
from qwf.errors import ExperimentNotFoundError, RecorderNotFoundError
from qwf.tracking.experiment import Experiment
from qwf.tracking.recorder import Recorder


def names() -> set[str]:
    return set(R.list_experiments())


def new_run(name: str | None = None, experiment: str = "e") -> Recorder:
    with R.start(experiment_name=experiment, recorder_name=name):
        return R.get_recorder()


# --- get_exp: with nothing active ------------------------------------------------------------

EXISTING = ("known", "Experiment")


def given(what: dict[str, str]) -> dict[str, str]:
    """Replace the name of an experiment by its id where an id is wanted."""
    ids = {name: experiment.id for name, experiment in R.list_experiments().items()}
    wanted = dict(what)
    if "experiment_id" in wanted:
        wanted["experiment_id"] = ids.get(wanted["experiment_id"], wanted["experiment_id"])
    return wanted


@pytest.mark.parametrize(
    ("create", "existing", "what", "expected"),
    [
        pytest.param(True, (), {}, "Experiment", id="create-nothing_given-default_made"),
        pytest.param(True, EXISTING, {}, "Experiment", id="create-nothing_given-default_found"),
        pytest.param(True, (), {"experiment_name": "n"}, "n", id="create-name-made"),
        pytest.param(True, EXISTING, {"experiment_name": "known"}, "known", id="create-name-found"),
        pytest.param(True, EXISTING, {"experiment_id": "known"}, "known", id="create-id-found"),
        pytest.param(
            True,
            EXISTING,
            {"experiment_id": "known", "experiment_name": "Experiment"},
            "known",
            id="create-id_and_name-id_wins",
        ),
        pytest.param(
            True,
            EXISTING,
            {"experiment_id": "unknown", "experiment_name": "n"},
            "n",
            id="create-unknown_id_and_name-name_made",
        ),
        pytest.param(
            True,
            EXISTING,
            {"experiment_id": "unknown", "experiment_name": "known"},
            "known",
            id="not_as_qlib-create-unknown_id_and_known_name-found",
        ),
        pytest.param(False, EXISTING, {}, "Experiment", id="read-nothing_given-default_found"),
        pytest.param(False, EXISTING, {"experiment_name": "known"}, "known", id="read-name-found"),
        pytest.param(False, EXISTING, {"experiment_id": "known"}, "known", id="read-id-found"),
    ],
)
def test_get_exp_returns_the_one_that_is_meant(
    store: Path, create: bool, existing: tuple[str, ...], what: dict[str, str], expected: str
) -> None:
    for name in existing:
        R.get_exp(experiment_name=name)
    found = R.get_exp(**given(what), create=create)
    assert found.name == expected
    assert names() == {*existing, expected}
    assert R.exp_manager.active_experiment is None
    assert found.active_recorder is None


@pytest.mark.parametrize(
    ("create", "what"),
    [
        pytest.param(False, {}, id="read-nothing_given-default_missing"),
        pytest.param(False, {"experiment_name": "unknown"}, id="read-name"),
        pytest.param(False, {"experiment_id": "unknown"}, id="read-id"),
        pytest.param(False, {"experiment_name": "deleted"}, id="read-deleted_name"),
        pytest.param(False, {"experiment_id": "deleted"}, id="read-deleted_id"),
        pytest.param(True, {"experiment_id": "unknown"}, id="not_as_qlib-create-unknown_id"),
    ],
)
def test_get_exp_raises_for_what_is_not_there_and_creates_nothing(
    store: Path, create: bool, what: dict[str, str]
) -> None:
    R.get_exp(experiment_name="known")
    wanted = given(what)
    R.get_exp(experiment_name="deleted")
    R.delete_exp(experiment_name="deleted")
    with pytest.raises(ExperimentNotFoundError):
        R.get_exp(**wanted, create=create)
    assert names() == {"known"}


def test_not_as_qlib_a_deleted_name_is_made_anew(store: Path) -> None:
    new_run()
    R.delete_exp(experiment_name="e")
    assert R.get_exp(experiment_name="e").list_recorders() == {}


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("start", [True, False])
def test_get_exp_without_arguments_returns_the_active_object(
    store: Path, create: bool, start: bool
) -> None:
    with R.start(experiment_name="active") as active:
        recorder = active.active_recorder
        assert R.get_exp(create=create, start=start) is active
        assert active.active_recorder is recorder
    assert names() == {"active"}


@pytest.mark.parametrize("what", [{}, {"experiment_name": "known"}, {"experiment_id": "known"}])
def test_get_exp_with_start_and_nothing_active_starts_a_new_recorder(
    store: Path, what: dict[str, str]
) -> None:
    old = new_run(experiment="known")
    experiment = R.get_exp(**given(what), start=True)
    assert R.exp_manager.active_experiment is experiment
    assert experiment.active_recorder.status == "RUNNING"
    assert experiment.active_recorder.id != old.id
    R.end_exp()
    assert R.exp_manager.active_experiment is None


def test_get_exp_with_start_while_another_is_active_starts_nothing(store: Path) -> None:
    with R.start(experiment_name="active") as active:
        other = R.get_exp(experiment_name="other", start=True)
        assert other.active_recorder is None
        assert R.exp_manager.active_experiment is active
        assert other.list_recorders() == {}


def test_experiments_are_new_objects_at_every_call_unless_active(store: Path) -> None:
    first, second = R.get_exp(experiment_name="e"), R.get_exp(experiment_name="e")
    assert first is not second
    assert first == second
    assert hash(first) == hash(second)
    assert first != R.get_exp(experiment_name="f")


# --- start -----------------------------------------------------------------------------------


@pytest.mark.parametrize("recorder_id", [None, "unknown"])
@pytest.mark.parametrize("name", [None, "mine"])
def test_start_in_a_missing_experiment_makes_both(
    store: Path, recorder_id: str | None, name: str | None
) -> None:
    with R.start(experiment_name="new", recorder_id=recorder_id, recorder_name=name):
        recorder = R.get_recorder()
    assert recorder.name == (name or "mlflow_recorder")
    assert recorder.id != recorder_id
    assert list(R.list_recorders(experiment_name="new")) == [recorder.id]


@pytest.mark.parametrize("name", [None, "twin"])
def test_start_without_resume_makes_a_new_recorder(store: Path, name: str | None) -> None:
    old = new_run(name)
    new = new_run(name)
    assert new.id != old.id
    assert new.name == old.name == (name or "mlflow_recorder")


def test_start_without_resume_ignores_an_id_with_a_warning(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = new_run()
    with R.start(experiment_name="e", recorder_id=old.id):
        assert R.get_recorder().id != old.id
    assert f"recorder_id '{old.id}' has no meaning without resume=True" in caplog.text


@pytest.mark.parametrize("name", [None, "mine", "another name"])
def test_resume_by_id_goes_on_with_that_recorder(store: Path, name: str | None) -> None:
    old = new_run("mine")
    newer = new_run("mine")
    with R.start(experiment_name="e", recorder_id=old.id, recorder_name=name, resume=True):
        again = R.get_recorder()
        assert (again.id, again.name, again.status) == (old.id, "mine", "RUNNING")
        assert again.start_time == old.start_time
        assert list(R.list_recorders()) == [newer.id, old.id]
    assert len(R.list_recorders(experiment_name="e")) == 2


@pytest.mark.parametrize("name", [None, "mine"])
def test_not_as_qlib_resume_by_an_unknown_id_raises_and_starts_nothing(
    store: Path, name: str | None
) -> None:
    old = new_run("mine")
    before = R.get_recorder(experiment_name="e", recorder_id=old.id).info
    with (
        pytest.raises(RecorderNotFoundError, match="'unknown'"),
        R.start(experiment_name="e", recorder_id="unknown", recorder_name=name, resume=True),
    ):
        pytest.fail("the block was entered")
    assert R.exp_manager.active_experiment is None
    assert [one.info for one in R.list_recorders(experiment_name="e").values()] == [before]


@pytest.mark.parametrize("name", [None, "twin"])
def test_resume_without_id_takes_the_newest_of_the_name(store: Path, name: str | None) -> None:
    new_run(name)
    newest = new_run(name)
    new_run("other")
    with R.start(experiment_name="e", recorder_name=name, resume=True):
        assert R.get_recorder().id == newest.id


@pytest.mark.parametrize("name", [None, "mine"])
def test_resume_without_id_makes_one_if_there_is_none(store: Path, name: str | None) -> None:
    old = new_run("other")
    with R.start(experiment_name="e", recorder_name=name, resume=True):
        made = R.get_recorder()
    assert made.id != old.id
    assert made.name == (name or "mlflow_recorder")


def test_not_as_qlib_start_of_an_unknown_experiment_id_raises_and_makes_nothing(
    store: Path,
) -> None:
    with pytest.raises(ExperimentNotFoundError, match="'unknown'"):
        R.start_exp(experiment_id="unknown")
    assert R.exp_manager.active_experiment is None
    assert not store.exists()


def test_start_by_the_id_of_an_experiment(store: Path) -> None:
    identity = R.get_exp(experiment_name="e").id
    with R.start(experiment_id=identity, experiment_name="another name") as experiment:
        assert (experiment.id, experiment.name) == (identity, "e")
    assert names() == {"e"}


# --- get_recorder ----------------------------------------------------------------------------


@pytest.fixture
def experiment(store: Path) -> Experiment:
    return R.get_exp(experiment_name="e")


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("start", [True, False])
def test_get_recorder_without_arguments_returns_the_active_object(
    experiment: Experiment, create: bool, start: bool
) -> None:
    active = experiment.start(recorder_name="custom")
    assert experiment.get_recorder(create=create, start=start) is active
    experiment.end("FINISHED")
    assert len(experiment.list_recorders()) == 1


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("start", [True, False])
def test_get_recorder_without_arguments_returns_the_newest_default_named_one(
    experiment: Experiment, create: bool, start: bool
) -> None:
    new_run()
    newest = new_run()
    new_run("custom")
    found = experiment.get_recorder(create=create, start=start)
    assert (found.id, found.status) == (newest.id, "FINISHED")
    assert experiment.active_recorder is None


@pytest.mark.parametrize("create", [True, False])
def test_get_recorder_by_name_returns_the_newest_of_that_name(
    experiment: Experiment, create: bool
) -> None:
    new_run("twin")
    newest = new_run("twin")
    assert experiment.get_recorder(recorder_name="twin", create=create, start=True).id == newest.id


@pytest.mark.parametrize("create", [True, False])
def test_get_recorder_by_id_wins_over_the_name(experiment: Experiment, create: bool) -> None:
    one = new_run("one")
    new_run("other")
    found = experiment.get_recorder(recorder_id=one.id, recorder_name="other", create=create)
    assert (found.id, found.name) == (one.id, "one")


@pytest.mark.parametrize("name", [None, "mine"])
def test_get_recorder_makes_an_unstarted_one_if_there_is_none(
    experiment: Experiment, name: str | None
) -> None:
    new_run("other")
    made = experiment.get_recorder(recorder_name=name)
    assert (made.id, made.name, made.status) == (None, name or "mlflow_recorder", "SCHEDULED")
    assert len(experiment.list_recorders()) == 1


@pytest.mark.parametrize("name", [None, "mine"])
def test_get_recorder_with_start_starts_what_it_made(
    experiment: Experiment, name: str | None
) -> None:
    made = experiment.get_recorder(recorder_name=name, start=True)
    assert made.status == "RUNNING"
    assert experiment.active_recorder is made
    experiment.end("FINISHED")
    assert experiment.active_recorder is None
    assert list(experiment.list_recorders()) == [made.id]


@pytest.mark.parametrize("name", [None, "unknown"])
def test_get_recorder_without_create_raises_if_there_is_none(
    experiment: Experiment, name: str | None
) -> None:
    new_run("other")
    with pytest.raises(RecorderNotFoundError):
        experiment.get_recorder(recorder_name=name, create=False)


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("which", ["unknown", "of another experiment", "deleted"])
def test_not_as_qlib_get_recorder_of_an_id_that_is_not_there_raises(
    experiment: Experiment, create: bool, which: str
) -> None:
    identity = new_run(experiment="f").id if which == "of another experiment" else "unknown"
    if which == "deleted":
        identity = new_run().id
        experiment.delete_recorder(identity)
    with pytest.raises(RecorderNotFoundError, match=identity):
        experiment.get_recorder(recorder_id=identity, create=create)


def test_r_get_recorder_by_id_looks_in_the_default_experiment(store: Path) -> None:
    recorder = new_run(experiment="Experiment")
    assert R.get_recorder(recorder_id=recorder.id).id == recorder.id
    with R.start(experiment_name="active"), pytest.raises(RecorderNotFoundError, match="'active'"):
        R.get_recorder(recorder_id=recorder.id)


def test_r_get_recorder_never_creates(store: Path) -> None:
    calls: list[dict[str, Any]] = [{}, {"experiment_name": "x"}, {"recorder_name": "y"}]
    for call in calls:
        with pytest.raises(ValueError):  # noqa: PT011 - which of the two is another test's matter
            R.get_recorder(**call)
    assert not store.exists()


@pytest.mark.parametrize("what", [{"experiment_name": "typo"}, {"experiment_id": "typo"}])
def test_not_as_qlib_list_recorders_of_an_unknown_experiment_raises(
    store: Path, what: dict[str, str]
) -> None:
    with pytest.raises(ExperimentNotFoundError, match="'typo'"):
        R.list_recorders(**what)
    assert not store.exists()


def test_list_recorders_of_a_default_experiment_that_is_missing_is_empty(store: Path) -> None:
    assert R.list_recorders() == {}
    assert R.list_experiments() == {}
    assert not store.exists()


# --- what is written down nowhere in Qlib, and must not depend on luck -----------------------


def test_a_resumed_run_logs_into_the_recorder_that_is_meant(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = new_run("mine")
    with (
        caplog.at_level(logging.WARNING, logger="qwf"),
        R.start(experiment_name="e", recorder_name="mine", resume=True),
    ):
        R.log_metrics(m=1)
    assert old.list_metrics() == {"m": 1.0}
    assert caplog.records == []


def test_deleting_needs_something_that_is_not_active(store: Path) -> None:
    with R.start(experiment_name="e") as experiment:
        recorder = R.get_recorder()
        for delete in (
            lambda: R.delete_recorder(recorder_id=recorder.id),
            lambda: R.delete_exp(experiment_name="e"),
            lambda: R.delete_exp(experiment_id=experiment.id),
        ):
            with pytest.raises(ValueError, match="is active and cannot be deleted"):
                delete()
    assert recorder.status == "FINISHED"


def test_an_outer_run_cannot_be_deleted_from_within_an_inner_one(store: Path) -> None:
    with R.start(experiment_name="e"):
        outer = R.get_recorder()
        with R.start(experiment_name="e"):
            with pytest.raises(ValueError, match="is active"):
                R.delete_recorder(recorder_id=outer.id)
            with pytest.raises(ValueError, match="is active"):
                R.delete_exp(experiment_name="e")
    assert outer.status == "FINISHED"


def test_the_end_of_a_block_ends_what_was_started_inside_it(store: Path) -> None:
    with R.start(experiment_name="outer"):
        outer = R.get_recorder()
        R.start_exp(experiment_name="forgotten")
        forgotten = R.get_recorder()
    assert R.exp_manager.active_experiment is None
    assert (forgotten.status, outer.status) == ("FINISHED", "FINISHED")


def test_a_block_whose_run_was_ended_by_hand_does_not_end_the_outer_run(store: Path) -> None:
    with R.start(experiment_name="outer"):
        outer = R.get_recorder()
        with R.start(experiment_name="inner"):
            R.end_exp("FAILED")
        assert R.get_recorder() is outer
        assert outer.status == "RUNNING"
        R.log_params(a=1)
    assert outer.status == "FINISHED"
    assert outer.list_params()["a"] == "1"


def test_a_broken_recorder_is_not_the_one_that_is_meant_by_default(store: Path) -> None:
    broken = new_run()
    Path(broken.get_local_dir(), "recorder.json").write_text("{")
    with pytest.raises(RecorderNotFoundError):
        R.get_recorder(experiment_name="e")
    with R.start(experiment_name="e", resume=True):
        assert R.get_recorder().id != broken.id
