"""What one process is set to: `C`, `init`, and the ``QWF_`` environment variables.

Knows no experiment and opens no file. Rooms above that hold live state (an active run) refuse a
change through `add_guard`; rooms that derive something from a setting read `C` when they need it.
"""

from __future__ import annotations

import logging
import operator
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from .errors import ConfigError, suggest

__all__ = ["C", "Config", "add_guard", "init", "parse_kernels"]

# Setting -> the values it may have.
_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "pickle_policy": ("trusted", "restricted", "never"),
    "provenance": ("full", "light", "off"),
}

_DEFAULTS: Final[Mapping[str, Any]] = {
    "uri": "qwf_store",
    "default_exp_name": "Experiment",
    "provider_uri": None,
    "calendar": None,
    "kernels": 1,
    "logging_level": None,
    "pickle_policy": "trusted",
    "pickle_allow": (),
    "provenance": "full",
}

_ENVIRONMENT: Final[Mapping[str, str]] = {
    "uri": "QWF_URI",
    "default_exp_name": "QWF_DEFAULT_EXP_NAME",
    "provider_uri": "QWF_PROVIDER_URI",
    "kernels": "QWF_KERNELS",
    "pickle_policy": "QWF_PICKLE_POLICY",
    "provenance": "QWF_PROVENANCE",
}

# Settings of Qlib for servers, markets and caches that a plain directory has no use for. Scripts
# and YAML files that pass them run unchanged.
_QLIB_ONLY: Final = frozenset(
    {
        "auto_mount",
        "calendar_cache",
        "calendar_provider",
        "client_provider",
        "custom_ops",
        "dataset_cache",
        "default_conf",
        "default_disk_cache",
        "expression_cache",
        "expression_provider",
        "feature_provider",
        "flask_port",
        "flask_server",
        "instrument_provider",
        "joblib_backend",
        "local_cache_path",
        "logging_config",
        "maxtasksperchild",
        "min_data_shift",
        "mongo",
        "mount_path",
        "redis_host",
        "redis_port",
        "redis_task_db",
        "region",
        "task_queue",
        "trade_unit",
    }
)


class Config:
    """The settings of this process, readable as attributes and as items.

    A setting given to `init` beats its environment variable, which beats the default.

    Examples
    --------
    >>> config = Config()
    >>> config.default_exp_name == config["default_exp_name"]
    True
    >>> config.uril
    Traceback (most recent call last):
        ...
    AttributeError: there is no setting 'uril'; did you mean 'uri'?
    """

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self.registered = False
        self.generation = 0  # grows with every `init`
        self.origin = ""  # the working directory at `init`, where relative paths start

    def __getattr__(self, name: str) -> Any:
        # Private names are looked up by copy and pickle before __init__ has run.
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in _DEFAULTS:
            raise AttributeError(f"there is no setting {name!r}; {suggest(name, _DEFAULTS)}")
        if name in self._values:
            return self._values[name]
        variable = _ENVIRONMENT.get(name)
        if variable is not None and variable in os.environ:
            return _from_environment(name, variable)
        return _DEFAULTS[name]

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self, name)
        except AttributeError as error:
            raise KeyError(str(error)) from None

    def __iter__(self) -> Iterator[str]:
        return iter(_DEFAULTS)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self)
        return f"Config({shown})"

    def get(self, name: str, default: Any = None) -> Any:
        """Return a setting, or the default when there is no such setting."""
        return getattr(self, name) if name in _DEFAULTS else default

    def provider(self, freq: str) -> Any:
        """Return the Qlib data directory for a frequency; None when there is none.

        Raises
        ------
        ConfigError
            If there is one for other frequencies only.
        """
        uri = self.provider_uri
        if not isinstance(uri, Mapping):
            return uri
        if freq not in uri:
            raise ConfigError(
                f"provider_uri has no directory for the frequency {freq!r}; {suggest(freq, uri)}"
            )
        return uri[freq]

    @property
    def located(self) -> bool:
        """Whether the user has said where the store is: by `init` or by ``QWF_URI``."""
        return self.registered or "QWF_URI" in os.environ

    def replace(self, values: Mapping[str, Any]) -> None:
        """Forget what was set before and take these values. They are checked before any change."""
        checked = _checked(values)
        self._values = checked
        self.registered = True
        self.generation += 1
        self.origin = os.getcwd()

    def state(self) -> dict[str, Any]:
        """Return what a worker needs to have the same settings, those of the environment too.

        Only ``kernels`` is 1: what a worker does is not to be multiplied by what runs beside it.
        """
        given = {name for name, variable in _ENVIRONMENT.items() if variable in os.environ}
        values = {name: getattr(self, name) for name in (*self._values, *sorted(given))}
        return {
            "values": {**values, "kernels": 1},
            "registered": self.located,
            "origin": self.origin or os.getcwd(),
        }

    @staticmethod
    def restore(state: Mapping[str, Any]) -> None:
        """Take over, in a worker process, the settings that `state` returned in another.

        Raises
        ------
        RecorderInitializationError
            If an experiment is active in this process. Nothing was changed.
        """
        for guard in _guards:
            guard()
        C._values = dict(state["values"])
        C.registered = state["registered"]
        C.origin = state["origin"]
        C.generation += 1


C: Final = Config()

_guards: list[Callable[[], None]] = []


def add_guard(guard: Callable[[], None]) -> None:
    """Register a function that raises when the settings must not change now."""
    if guard not in _guards:
        _guards.append(guard)


def init(default_conf: str = "client", **settings: Any) -> None:
    """Say where this process keeps its experiments, and from where it takes its calendar.

    Parameters
    ----------
    default_conf : str, default "client"
        Accepted for Qlib's scripts; it chooses nothing.
    **settings
        ``uri`` : str or Path
            Directory of the store (also as ``file:`` URI), relative to the present working
            directory. Default: ``QWF_URI``, else ``qwf_store``. It is created by the first write.
        ``default_exp_name`` : str, default ``"Experiment"``
            The experiment used when none is named.
        ``exp_manager`` : dict
            Qlib's form of both: ``{"kwargs": {"uri": ..., "default_exp_name": ...}}``.
        ``provider_uri`` : str, Path, or dict of frequency to these
            A Qlib data directory; its ``calendars/day.txt`` becomes the calendar.
        ``calendar`` : sequence of dates, path of a text file, DataFrame or calendar object
            The trading calendar; beats ``provider_uri``.
        ``kernels`` : int, default 1
            How many tasks a trainer trains at once, each in a process of its own.
        ``logging_level`` : int or str
            Level of the logger ``qwf``.
        ``pickle_policy`` : {"trusted", "restricted", "never"}
            Which pickled artifacts may be loaded; ``restricted`` loads only plain containers,
            dates, arrays, frames, and what the modules in ``pickle_allow`` define.
        ``pickle_allow`` : sequence of str
            Modules (with all below them) or ``module.Class`` names that ``restricted`` may load.
        ``provenance`` : {"full", "light", "off"}, default "full"
            What a run captures of its surroundings when it starts. ``full``: Python, the versions
            of packages, and of the git repository of your script (else of the working directory)
            the commit, the branch, what was changed since, and the names of new files; the
            changes may hold what you would not commit. ``light``: the same without git. ``off``:
            nothing of it. Default: ``QWF_PROVENANCE``, else ``full``.
        ``skip_if_reg`` : bool, default False
            Do nothing when `init` was called before.

    Raises
    ------
    ConfigError
        If a setting is unknown or impossible. Nothing was changed.
    RecorderInitializationError
        If an experiment is active. Nothing was changed.
    """
    if settings.pop("skip_if_reg", False) and C.registered:
        return
    values = _from_qlib(settings)
    _checked(values)
    for guard in _guards:
        guard()
    C.replace(values)
    if values.get("logging_level") is not None:
        logging.getLogger("qwf").setLevel(values["logging_level"])


def _from_qlib(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Translate Qlib's ``exp_manager`` and drop what has no meaning here."""
    values = {name: value for name, value in settings.items() if name not in _QLIB_ONLY}
    manager = values.pop("exp_manager", None)
    if manager is not None:
        if not isinstance(manager, Mapping):
            raise ConfigError(f"exp_manager has to be a dict with 'kwargs', not {manager!r}.")
        for name, value in manager.get("kwargs", {}).items():
            values.setdefault(name, value)
    if values.get("provenance") is False:
        values["provenance"] = "off"  # which YAML reads as False unless it is quoted
    return values


def _checked(values: Mapping[str, Any]) -> dict[str, Any]:
    for name in values:
        if name not in _DEFAULTS:
            known = [*_DEFAULTS, "exp_manager", "skip_if_reg"]
            raise ConfigError(
                f"unknown setting {name!r}: {suggest(name, known)} Nothing was changed."
            )
    for name in _CHOICES:
        if name in values:
            _check_choice(name, values[name], name)
    if "uri" in values and not isinstance(values["uri"], (str, os.PathLike)):
        raise ConfigError(f"uri is {values['uri']!r}; expected a path. Nothing was changed.")
    allow = values.get("pickle_allow", ())
    if isinstance(allow, str) or not all(isinstance(name, str) for name in _items(allow)):
        raise ConfigError(f"pickle_allow is {allow!r}; expected a list of names.")
    name = values.get("default_exp_name", "Experiment")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"default_exp_name is {name!r}; expected a name. Nothing was changed.")
    parse_kernels(values.get("kernels", 1))
    _check_level(values.get("logging_level"))
    return dict(values)


def _check_level(level: object) -> None:
    if isinstance(level, int) or level is None:
        return
    if not isinstance(level, str) or not isinstance(logging.getLevelName(level), int):
        levels = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
        raise ConfigError(
            f"logging_level is {level!r}; {suggest(level, levels)} Nothing was changed."
        )


def _from_environment(name: str, variable: str) -> Any:
    value = os.environ[variable]
    if name == "kernels":
        return parse_kernels(int(value) if value.strip().isdecimal() else value, variable)
    if name in _CHOICES:
        _check_choice(name, value, f"the environment variable {variable}")
    return value


def _check_choice(name: str, value: object, shown: str) -> None:
    if value not in _CHOICES[name]:
        raise ConfigError(
            f"{shown} is {value!r}; {suggest(value, _CHOICES[name])} Nothing was changed."
        )


def parse_kernels(value: Any, name: str = "kernels") -> int:
    """Return how many may run at once.

    Raises
    ------
    ConfigError
        If it is no whole number of 1 or more.
    """
    try:
        kernels = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        kernels = 0
    if kernels < 1:
        raise ConfigError(
            f"{name} is {value!r}; expected a whole number of 1 or more. Nothing was changed."
        )
    return kernels


def _items(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]
