"""Settings: checked before any change; `init` beats the environment; Qlib's forms are known."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml

import qwf
from qwf import C, R
from qwf.config import Config
from qwf.errors import ConfigError

pytestmark = pytest.mark.usefixtures("settings_restored")


def test_an_unknown_setting_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    qwf.init(uri=tmp_path / "a")
    with pytest.raises(
        ConfigError, match="unknown setting 'provider_url': did you mean 'provider_"
    ):
        qwf.init(uri=tmp_path / "b", provider_url="x")
    assert R.get_uri() == str(tmp_path / "a")


@pytest.mark.parametrize(
    "settings",
    [
        {"pickle_policy": "sometimes"},
        {"pickle_policy": None},
        {"provenance": "ful"},
        {"provenance": None},
        {"provenance": True},
        {"pickle_allow": "sklearn"},
        {"uri": 3},
        {"kernels": 0},
        {"kernels": -2},
        {"kernels": 2.0},
        {"kernels": "4"},
        {"kernels": True},
        {"exp_manager": "MLflowExpManager"},
        {"exp_manager": {"kwargs": {"url": "x"}}},
    ],
)
def test_an_impossible_value_is_refused_before_anything_is_changed(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    qwf.init(uri=tmp_path)
    before = repr(C)
    with pytest.raises(ConfigError):
        qwf.init(**settings)
    assert repr(C) == before


def test_qlibs_form_of_the_experiment_manager_is_understood(tmp_path: Path) -> None:
    manager = {
        "class": "MLflowExpManager",
        "module_path": "qlib.workflow.expm",
        "kwargs": {"uri": f"file:{tmp_path}/s", "default_exp_name": "Mine"},
    }
    qwf.init(exp_manager=manager, region="cn", mongo={"task_url": "x"}, redis_host="y")
    R.log_params(a=1)
    R.end_exp()
    assert list(R.list_experiments()) == ["Mine"]
    assert (tmp_path / "s" / "qwf.json").exists()


def test_init_beats_the_environment_and_the_environment_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Config().uri == "qwf_store"
    monkeypatch.setenv("QWF_URI", str(tmp_path / "env"))
    assert Config().uri == str(tmp_path / "env")
    assert R.get_uri() == str(tmp_path / "env"), "QWF_URI alone makes R usable"
    qwf.init(uri=tmp_path / "given")
    assert R.get_uri() == str(tmp_path / "given")


def test_a_second_init_forgets_the_first(tmp_path: Path) -> None:
    qwf.init(uri=tmp_path, default_exp_name="Mine")
    qwf.init(uri=tmp_path)
    assert C.default_exp_name == "Experiment"


def test_skip_if_reg_keeps_the_first_init(tmp_path: Path) -> None:
    qwf.init(uri=tmp_path / "a")
    qwf.init(uri=tmp_path / "b", skip_if_reg=True)
    assert R.get_uri() == str(tmp_path / "a")


def test_init_creates_nothing(tmp_path: Path) -> None:
    qwf.init(uri=tmp_path / "s")
    assert R.list_experiments() == {}
    assert not (tmp_path / "s").exists()


def test_a_relative_store_stays_where_it_was_when_the_process_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    qwf.init(uri="s")
    monkeypatch.chdir(tmp_path / "elsewhere")
    with R.start(experiment_name="e"):
        pass
    assert (tmp_path / "s" / "qwf.json").exists()


def test_settings_read_as_attributes_and_items() -> None:
    assert C["default_exp_name"] == C.default_exp_name
    assert C.get("no_such_thing", 5) == 5
    with pytest.raises(KeyError, match="did you mean"):
        C["default_exp_nam"]
    with pytest.raises(AttributeError, match="did you mean 'calendar'"):
        C.calender  # noqa: B018


def test_the_logging_level_is_that_of_the_logger_qwf(tmp_path: Path) -> None:
    before = logging.getLogger("qwf").level
    try:
        qwf.init(uri=tmp_path, logging_level="ERROR")
        assert logging.getLogger("qwf").level == logging.ERROR
    finally:
        logging.getLogger("qwf").setLevel(before)


def test_a_recorder_travels_to_another_process_by_reference(tmp_path: Path) -> None:
    qwf.init(uri=tmp_path / "s")
    with R.start(experiment_name="e") as experiment:
        recorder = experiment.active_recorder
        R.save_objects(x=[1])
    data = pickle.dumps(recorder)
    assert len(data) < 500
    back = pickle.loads(data)
    assert back == recorder
    assert (back.status, back.load_object("x")) == ("FINISHED", [1])


def test_a_data_directory_may_be_given_for_each_frequency(tmp_path: Path) -> None:
    for name, line in (("day", "2020-01-02"), ("1min", "2020-01-02 09:31:00")):
        folder = tmp_path / name / "calendars"
        folder.mkdir(parents=True)
        (folder / f"{name}.txt").write_text(f"{line}\n")
    qwf.init(provider_uri={"day": tmp_path / "day", "1min": tmp_path / "1min"})
    assert [str(day) for day in qwf.D.calendar()] == ["2020-01-02 00:00:00"]
    assert [str(bar) for bar in qwf.D.calendar(freq="1min")] == ["2020-01-02 09:31:00"]
    with pytest.raises(ConfigError, match="no directory for the frequency '5min'"):
        qwf.D.calendar(freq="5min")


@pytest.mark.parametrize(
    "settings",
    [{"logging_level": "LOUD"}, {"default_exp_name": ""}, {"pickle_allow": 5}],
)
def test_a_value_that_would_fail_later_is_refused_now(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    qwf.init(uri=tmp_path / "one")
    with pytest.raises(ConfigError):
        qwf.init(uri=tmp_path / "two", **settings)
    assert R.get_uri() == str(tmp_path / "one")


def test_runs_capture_their_surroundings_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("QWF_PROVENANCE", raising=False)
    assert Config().provenance == "full"
    monkeypatch.setenv("QWF_PROVENANCE", "off")
    assert Config().provenance == "off"
    qwf.init(provenance="light")
    assert C.provenance == "light"


def test_a_bare_off_in_yaml_switches_off() -> None:
    qwf.init(**yaml.safe_load("provenance: off"))
    assert C.provenance == "off"


@pytest.mark.parametrize(
    ("variable", "setting"),
    [("QWF_PROVENANCE", "provenance"), ("QWF_PICKLE_POLICY", "pickle_policy")],
)
def test_an_impossible_value_in_the_environment_is_refused_when_it_is_needed(
    monkeypatch: pytest.MonkeyPatch, variable: str, setting: str
) -> None:
    monkeypatch.setenv(variable, "sometimes")
    with pytest.raises(ConfigError, match=f"variable {variable} is 'sometimes'; there are: "):
        getattr(Config(), setting)


def test_a_misspelt_choice_is_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match="provenance is 'ful'; did you mean 'full'"):
        qwf.init(provenance="ful")


def test_kernels_are_a_whole_number_and_come_from_the_environment_as_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert C.kernels == 1
    monkeypatch.setenv("QWF_KERNELS", " 4")
    assert C.kernels == 4
    qwf.init(uri=tmp_path, kernels=2)
    assert C.kernels == 2


@pytest.mark.parametrize("text", ["0", "-1", "two", "", "1.5"])
def test_impossible_kernels_of_the_environment_are_refused(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("QWF_KERNELS", text)
    with pytest.raises(ConfigError, match=r"QWF_KERNELS is .*; expected a whole number"):
        C.kernels  # noqa: B018


def test_what_a_worker_needs_holds_the_environment_and_one_kernel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(C, "origin", "")  # as before any `init`
    for name, text in {"QWF_URI": "from/environment", "QWF_KERNELS": "4"}.items():
        monkeypatch.setenv(name, text)
    monkeypatch.chdir(tmp_path)
    state = C.state()
    for name in ("QWF_URI", "QWF_KERNELS"):
        monkeypatch.delenv(name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    Config.restore(state)
    assert C.kernels == 1
    assert R.get_uri() == "from/environment"
    R.log_params(a=1)
    assert (tmp_path / "from" / "environment").is_dir()
    R.end_exp()
