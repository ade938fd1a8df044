"""Configuration → object."""

from __future__ import annotations

import datetime
import functools
import logging
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qwf.config import C
from qwf.errors import InstantiationError, PickleRefusedError
from qwf.instantiate import (
    accepted_keywords,
    auto_filter_kwargs,
    get_callable_kwargs,
    get_cls_kwargs,
    get_module_by_module_path,
    init_instance_by_config,
    split_module_path,
)

HERE = __name__


class Model:
    def __init__(self, alpha: float = 1.0, *, seed: int = 0) -> None:
        self.alpha, self.seed = alpha, seed


class SignalLike:
    def __init__(self, recorder: Any, model: Any = None) -> None:
        self.recorder, self.model = recorder, model


class Base:
    def __init__(self, recorder: Any) -> None:
        self.recorder = recorder


class Forwarding(Base):
    """As PortAnaRecord does, it hands all keywords to a base that does not know `model`."""

    def __init__(self, recorder: Any, topk: int = 5, **kwargs: Any) -> None:
        super().__init__(recorder, **kwargs)
        self.topk = topk


class Collecting(Base):
    def __init__(self, recorder: Any, **kwargs: Any) -> None:
        super().__init__(recorder)
        self.kwargs = kwargs


class Broken:
    calls = 0

    def __init__(self, recorder: Any, model: Any = None) -> None:
        type(self).calls += 1
        raise TypeError("unsupported operand type(s) for +: 'int' and 'str'")


class BrokenDeep:
    calls = 0

    def __init__(self, model: Any = None) -> None:
        type(self).calls += 1
        dict.fromkeys([], model=model)  # type: ignore[call-arg]


class NeedsTwo:
    def __init__(self, first: int, second: int) -> None:
        self.both = first, second


def make(alpha: float = 1.0) -> Model:
    return Model(alpha)


NOT_CALLABLE = 3


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a directory importable, and forget afterwards what was imported from it."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def package(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for folder in path.relative_to(root).parents:
            (root / folder / "__init__.py").touch()
        path.write_text(text)


# --- forms of a configuration ----------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {"class": "Model", "module_path": HERE, "kwargs": {"alpha": 2.0}},
        {"class": f"{HERE}.Model", "kwargs": {"alpha": 2.0}},
        {
            "class": f"{HERE}.Model",
            "module_path": "ignored.when.the.class.has.one",
            "kwargs": {"alpha": 2.0},
        },
        {"class": Model, "kwargs": {"alpha": 2.0}},
        {"func": "make", "module_path": HERE, "kwargs": {"alpha": 2.0}},
        {"func": make, "kwargs": {"alpha": 2.0}},
    ],
)
def test_each_form_of_a_dict_builds_the_object(config: dict[str, Any]) -> None:
    before = {
        key: dict(value) if isinstance(value, dict) else value for key, value in config.items()
    }
    built = init_instance_by_config(config)
    assert type(built) is Model
    assert built.alpha == 2.0
    assert config == before


def test_a_string_builds_the_object_without_keywords() -> None:
    assert init_instance_by_config(f"{HERE}.Model").alpha == 1.0
    assert init_instance_by_config("Model", default_module=HERE).alpha == 1.0
    assert init_instance_by_config("Model", default_module=sys.modules[HERE], alpha=3).alpha == 3


def test_empty_kwargs_of_a_yaml_file_are_none() -> None:
    assert init_instance_by_config({"class": Model, "kwargs": None}).alpha == 1.0


def test_a_live_object_of_an_accepted_type_is_taken_as_it_is() -> None:
    model = Model()
    assert init_instance_by_config(model, accept_types=Model) is model
    assert init_instance_by_config(model, accept_types=(int, Model)) is model
    with pytest.raises(InstantiationError, match=r"of type Model: expected .* instance of Base"):
        init_instance_by_config(model, accept_types=Base)


def test_callable_and_keywords_are_returned_without_a_call() -> None:
    config = {"class": "Model", "module_path": HERE, "kwargs": {"alpha": 2}}
    called, kwargs = get_callable_kwargs(config)
    assert called is Model
    assert kwargs == config["kwargs"]
    assert kwargs is not config["kwargs"]
    assert get_callable_kwargs("Model", default_module=HERE) == (Model, {})
    assert get_cls_kwargs is get_callable_kwargs


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (3, "of type int: expected a dict with 'class'"),
        (None, "of type NoneType"),
        ([{"class": "Model"}], "of type list"),
        ({"clas": "Model"}, r"unknown key 'clas' in \{'clas': 'Model'\}; did you mean 'class'\?"),
        ({"class": "Model", "kwarg": {}}, r"unknown key 'kwarg'.*did you mean 'kwargs'\?"),
        ({}, "expected one of 'class' and 'func', found neither"),
        ({"class": "Model", "func": "make"}, "found both"),
        ({"class": "Model", "kwargs": [1]}, r"'kwargs' is \[1\]; expected a dict"),
        ({"class": "Model", "kwargs": {1: 2}}, "expected a dict whose keys are names"),
        ({"class": "NOT_CALLABLE"}, "expected a class or function, and it names a int"),
        (
            {"class": "Model", "kwargs": {"alhpa": 1}},
            r"cannot build Model .*no keyword 'alhpa'; did you mean 'alpha'\?",
        ),
        ({"class": "NeedsTwo", "kwargs": {"first": 1}}, "missing a required argument: 'second'"),
    ],
)
def test_what_is_no_configuration_is_refused_with_what_is_wrong(config: Any, sentence: str) -> None:
    with pytest.raises(InstantiationError, match=sentence) as caught:
        init_instance_by_config(config, default_module=HERE)
    assert isinstance(caught.value, TypeError)
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args


def test_a_keyword_given_twice_is_refused() -> None:
    with pytest.raises(InstantiationError, match="alpha is given in the configuration and by the"):
        init_instance_by_config({"class": Model, "kwargs": {"alpha": 1}}, alpha=2)


# --- keywords that are tried -----------------------------------------------------------------


def test_tried_keywords_reach_only_a_class_that_takes_them() -> None:
    tried = {"model": 1, "dataset": 2}
    with_model = init_instance_by_config({"class": SignalLike}, try_kwargs=tried, recorder=0)
    assert (with_model.recorder, with_model.model) == (0, 1)
    assert init_instance_by_config({"class": Base}, try_kwargs=tried, recorder=0).recorder == 0
    assert (
        init_instance_by_config({"class": Collecting}, try_kwargs=tried, recorder=0).kwargs == tried
    )


def test_a_keyword_of_the_configuration_beats_a_tried_one() -> None:
    config = {"class": SignalLike, "kwargs": {"model": "mine"}}
    assert init_instance_by_config(config, try_kwargs={"model": 1}, recorder=0).model == "mine"


def test_a_base_that_refuses_a_tried_keyword_goes_without() -> None:
    built = init_instance_by_config(
        {"class": Forwarding, "kwargs": {"topk": 9}}, try_kwargs={"model": 1}, recorder=0
    )
    assert (built.recorder, built.topk) == (0, 9)


def test_a_base_that_refuses_a_keyword_of_the_configuration_is_an_error() -> None:
    config = {"class": Forwarding, "kwargs": {"model": 9}}
    with pytest.raises(TypeError, match="unexpected keyword argument 'model'"):
        init_instance_by_config(config, try_kwargs={"model": 1}, recorder=0)


@pytest.mark.parametrize("broken", [Broken, BrokenDeep])
def test_a_type_error_of_the_class_itself_is_raised_after_one_call(broken: Any) -> None:
    broken.calls = 0
    kwargs = {"recorder": 0} if broken is Broken else {}
    with pytest.raises(TypeError) as caught:
        init_instance_by_config({"class": broken}, try_kwargs={"model": 1}, **kwargs)
    assert not isinstance(caught.value, InstantiationError)
    assert broken.calls == 1


def test_a_class_without_a_signature_gets_no_tried_keywords() -> None:
    assert init_instance_by_config("builtins.dict", try_kwargs={"model": 1}, a=2) == {"a": 2}


# --- modules ---------------------------------------------------------------------------------


def test_a_missing_module_is_named_with_the_nearest() -> None:
    with pytest.raises(
        ModuleNotFoundError, match=r"no module 'qwf.confg'; did you mean qwf.config\?"
    ):
        init_instance_by_config({"class": "C", "module_path": "qwf.confg"})
    with pytest.raises(
        ModuleNotFoundError, match=r"no module 'jsn.decoder'; did you mean json\?"
    ) as caught:
        init_instance_by_config("jsn.decoder.JSONDecoder")
    assert caught.value.name == "jsn"
    with pytest.raises(ModuleNotFoundError, match=r"no module 'qwf.config.zz'. Install it"):
        get_module_by_module_path("qwf.config.zz")


def test_a_class_without_any_module_says_so() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"cannot find 'Model' of .*Add 'module_path'"):
        init_instance_by_config({"class": "Model"})


@pytest.mark.parametrize("name", ["", ".models", "..x"])
def test_a_relative_module_is_refused(name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="expected a full name"):
        get_module_by_module_path(name)


def test_a_missing_class_is_named_with_the_nearest() -> None:
    with pytest.raises(AttributeError, match=r"has no 'Modle'; did you mean 'Model'\?"):
        init_instance_by_config({"class": "Modle", "module_path": HERE})


def test_a_module_that_fails_to_import_something_is_not_called_missing(on_path: Path) -> None:
    package(on_path, {"broken_models.py": "import not_installed_anywhere\n"})
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'not_installed_anywhere'$"):
        init_instance_by_config("broken_models.Model")


def test_a_module_is_returned_as_it_is() -> None:
    assert get_module_by_module_path(logging) is logging


def test_the_path_of_a_class_is_split_at_the_last_dot() -> None:
    assert split_module_path("a.b.C") == ("a.b", "C")
    assert split_module_path("C") == ("", "C")


def test_a_class_in_a_file_is_built_and_can_be_pickled(on_path: Path) -> None:
    package(
        on_path,
        {"sub/my-models.py": "class M:\n    def __init__(self, a=1):\n        self.a = a\n"},
    )
    built = init_instance_by_config(
        {"class": "M", "module_path": "sub/my-models.py", "kwargs": {"a": 2}}
    )
    assert built.a == 2
    assert pickle.loads(pickle.dumps(built)).a == 2
    again = init_instance_by_config({"class": "M", "module_path": "sub/my-models.py"})
    assert type(again) is type(built)
    absolute = init_instance_by_config(
        {"class": "M", "module_path": str(on_path / "sub" / "my-models.py")}
    )
    assert absolute.a == 1


def test_a_file_never_takes_the_name_of_another_module(
    on_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(on_path, {"x/json.py": "MARK = 'user'\n"})
    package(on_path, {f"{folder}/model.py": f"MARK = {folder!r}\n" for folder in ("x", "y")})
    json_before = sys.modules["json"]
    monkeypatch.chdir(on_path / "x")
    assert get_module_by_module_path("json.py").MARK == "user"
    assert sys.modules["json"] is json_before
    first = get_module_by_module_path("model.py")
    monkeypatch.chdir(on_path / "y")
    second = get_module_by_module_path("model.py")
    assert (first.MARK, second.MARK) == ("x", "y")
    assert first.__name__ != second.__name__
    assert get_module_by_module_path("model.py") is second


def test_a_missing_file_is_a_missing_module(tmp_path: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"there is no file '.*nothing\.py' to import"):
        get_module_by_module_path(str(tmp_path / "nothing.py"))


def test_a_file_that_fails_is_not_kept_as_a_module(on_path: Path) -> None:
    package(on_path, {"failing.py": "raise RuntimeError('at import')\n"})
    for _ in range(2):
        with pytest.raises(RuntimeError, match="at import"):
            get_module_by_module_path(str(on_path / "failing.py"))


# --- names of Qlib ---------------------------------------------------------------------------


@pytest.fixture
def without_qlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide Qlib where it is installed."""
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "qlib" else find(name, *a)
    )
    for name in [name for name in sys.modules if name.partition(".")[0] == "qlib"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """Put small modules in the place of qwf's own, which are tested elsewhere."""
    made = {}
    for name in ("qwf.records", "qwf.data.models", "qwf.data.dataset"):
        made[name] = ModuleType(name)
        made[name].__dict__["Part"] = type("Part", (), {"of": name})
        monkeypatch.setitem(sys.modules, name, made[name])
    return made


@pytest.mark.usefixtures("without_qlib", "stand_ins")
@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("qlib.workflow.record_temp", "qwf.records"),
        ("qlib.contrib.workflow.record_temp", "qwf.records"),
        ("qlib.contrib.model.linear", "qwf.data.models"),
        ("qlib.data.dataset", "qwf.data.dataset"),
    ],
)
def test_names_of_qlib_mean_the_parts_of_qwf(path: str, meant: str) -> None:
    assert init_instance_by_config({"class": "Part", "module_path": path}).of == meant
    assert init_instance_by_config(f"{path}.Part").of == meant


@pytest.mark.usefixtures("without_qlib")
def test_other_names_of_qlib_say_that_it_is_not_installed() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"Qlib is not installed; .*qlib.data.dataset"):
        init_instance_by_config("qlib.contrib.model.gbdt.LGBModel")


@pytest.mark.usefixtures("stand_ins")
def test_where_qlib_is_installed_its_models_win_and_its_other_records_are_found(
    on_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "qlib"]:
        monkeypatch.delitem(sys.modules, name)
    package(
        on_path,
        {
            "qlib/contrib/model/linear.py": "class Part:\n    of = 'qlib'\n",
            "qlib/workflow/record_temp.py": (
                "class Part:\n    of = 'qlib'\nclass PortAnaRecord:\n    of = 'qlib'\n"
            ),
        },
    )
    assert init_instance_by_config("qlib.contrib.model.linear.Part").of == "qlib"
    assert init_instance_by_config("qlib.workflow.record_temp.Part").of == "qwf.records"
    assert init_instance_by_config("qlib.workflow.record_temp.PortAnaRecord").of == "qlib"


# --- pickled objects -------------------------------------------------------------------------


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> Any:
    def choose(name: str, allow: tuple[str, ...] = ()) -> None:
        monkeypatch.setattr(C, "_values", {"pickle_policy": name, "pickle_allow": allow})

    return choose


def saved(folder: Path, obj: Any, name: str = "object.pkl") -> Path:
    path = folder / name
    path.write_bytes(pickle.dumps(obj))
    return path


def test_a_pickled_object_is_loaded_from_a_path_or_a_uri(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, {"day": datetime.date(2022, 1, 3)})
    saved(tmp_path, "with blank", "an object.pkl")
    saved(tmp_path, "with percent", "100%25.pkl")
    monkeypatch.chdir(tmp_path.parent)
    expected = {"day": datetime.date(2022, 1, 3)}
    for config in (
        path,
        path.as_uri(),
        f"file:{path}",
        f"file://localhost{path}",
        f"file://{tmp_path.name}/object.pkl",
        f"FILE:{tmp_path.name}/object.pkl",
    ):
        assert init_instance_by_config(config) == expected
    assert init_instance_by_config((tmp_path / "an object.pkl").as_uri()) == "with blank"
    assert init_instance_by_config(f"file://{tmp_path}/100%25.pkl") == "with percent"


def test_the_pickle_policy_is_obeyed(tmp_path: Path, policy: Any) -> None:
    plain, own = saved(tmp_path, [1, 2], "plain.pkl"), saved(tmp_path, Model(2.0), "own.pkl")
    policy("trusted")
    assert init_instance_by_config(own).alpha == 2.0
    policy("restricted")
    assert init_instance_by_config(plain) == [1, 2]
    with pytest.raises(PickleRefusedError, match=r"own\.pkl asks for .*Model"):
        init_instance_by_config(own)
    policy("restricted", allow=(HERE,))
    assert init_instance_by_config(own).alpha == 2.0
    policy("never")
    with pytest.raises(PickleRefusedError, match="never"):
        init_instance_by_config(plain.as_uri())


def test_a_missing_pickle_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"cannot load an object from .*gone\.pkl: there is"
    ):
        init_instance_by_config(f"file://{tmp_path}/gone.pkl")


# --- which keywords a callable takes ---------------------------------------------------------


class Fitter:
    def fit(self, dataset: Any, *, reweighter: Any = None) -> Any:
        return dataset, reweighter

    def __call__(self, dataset: Any, /, seed: int = 0) -> Any:
        return dataset, seed


def free(dataset: Any, **kwargs: Any) -> Any:
    return dataset, kwargs


@pytest.mark.parametrize(
    ("func", "taken"),
    [
        (Fitter().fit, ["reweighter"]),
        (Fitter.fit, ["reweighter"]),
        (Fitter(), ["seed"]),
        (free, ["reweighter", "seed", "epochs"]),
        (functools.partial(Fitter().fit, "prices"), ["reweighter"]),
        (Model, ["seed"]),
        (dict, []),
    ],
)
def test_keyword_only_bound_and_partial_parameters_are_known(func: Any, taken: list[str]) -> None:
    assert accepted_keywords(func, ["reweighter", "seed", "epochs"]) == taken


def test_filtered_calls_leave_out_what_is_not_taken_and_say_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fit = auto_filter_kwargs(Fitter().fit)
    with caplog.at_level("WARNING", logger="qwf"):
        assert fit("prices", reweighter=1, epochs=3) == ("prices", 1)
    assert "Fitter.fit does not take 'epochs'" in caplog.text
    assert "reweighter" not in caplog.text


def test_filtered_calls_can_be_silent_and_keep_all_for_open_functions(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert auto_filter_kwargs(Fitter(), warning=False)("p", seed=1, epochs=3) == ("p", 1)
    assert auto_filter_kwargs(free)("p", epochs=3) == ("p", {"epochs": 3})
    assert auto_filter_kwargs(dict)(a=1) == {"a": 1}
    assert caplog.text == ""


def test_a_positional_only_parameter_is_no_keyword() -> None:
    assert auto_filter_kwargs(Fitter(), warning=False)("p", dataset="q") == ("p", 0)
