"""Configuration → object: what is called, with which keywords, and what a bad one is told."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final
from urllib.parse import unquote

from ..config import C
from ..errors import InstantiationError, suggest
from .keywords import accepted_keywords, keyword_names, signature_of, takes_any_keyword
from .modules import find_attribute, split_module_path

__all__ = ["get_callable_kwargs", "get_cls_kwargs", "init_instance_by_config"]

_KEYS: Final = ("class", "func", "module_path", "kwargs")

# Long enough for the path of a class, and only a glimpse of its keywords.
_SHORT: Final = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxstring = 120


def init_instance_by_config(
    config: Any,
    default_module: str | ModuleType | None = None,
    accept_types: type | tuple[type, ...] = (),
    try_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Build the object that a configuration describes.

    Parameters
    ----------
    config : dict, str, Path or object
        * ``{"class": "C", "module_path": "a.b", "kwargs": {...}}``; the class may also be
          ``"a.b.C"`` or the class itself, the module a file ``"x.py"``; ``"func"`` names a function
          instead of a class.
        * ``"a.b.C"``: the same without keywords.
        * ``"file:///path/object.pkl"`` or a Path: a pickled object, loaded as
          ``qwf.init(pickle_policy=..., pickle_allow=...)`` allows.
        * An instance of `accept_types` is returned as it is.
    default_module : str or module, optional
        Where to look for a class that is given without a module.
    accept_types : type or tuple of types, default ()
        What a live object in the place of a configuration may be.
    try_kwargs : dict, optional
        Keywords passed only if the class takes them and nobody else gives them.
    **kwargs
        Further keywords of the class.

    Returns
    -------
    Any
        A new object; `config` is not changed, and the values in its ``kwargs`` are not copied.

    Raises
    ------
    InstantiationError
        If the configuration is none of these forms or has an unknown key, or if the class does not
        take one of the keywords or needs one more. It is a TypeError, too.
    ModuleNotFoundError, AttributeError
        If the module, or the class in it, does not exist.
    FileNotFoundError
        If there is no file to load the object from.
    PickleRefusedError
        If the object may not be loaded.

    Notes
    -----
    What the ``__init__`` of the class raises, a TypeError too, reaches the caller; the class is
    not called again without `try_kwargs`. One exception: a class that hands its own ``**kwargs`` to
    a base which then refuses one of `try_kwargs` is called without them.

    Examples
    --------
    >>> config = {"class": "timedelta", "module_path": "datetime", "kwargs": {"days": 2}}
    >>> init_instance_by_config(config, hours=12)
    datetime.timedelta(days=2, seconds=43200)
    >>> init_instance_by_config({"class": "datetime.timedelta", "kwarg": {"days": 2}})
    Traceback (most recent call last):
        ...
    qwf.errors.InstantiationError: unknown key 'kwarg' in {'class': 'datetime.timedelta', 'kwarg': \
{'days': 2}}; did you mean 'kwargs'?
    """
    if isinstance(config, accept_types):
        return config
    file = _file_of(config)
    if file is not None:
        return _load(file)
    if not isinstance(config, (dict, str)):
        raise InstantiationError(_not_a_config(config, accept_types))
    called, given = get_callable_kwargs(config, default_module=default_module)
    twice = sorted(given.keys() & kwargs.keys())
    if twice:
        raise InstantiationError(
            f"cannot build {_name(called)}: {', '.join(twice)} is given in the configuration and "
            "by the caller. Remove it from the configuration."
        )
    required = {**given, **kwargs}
    wanted = try_kwargs or {}
    optional = {
        name: wanted[name] for name in accepted_keywords(called, wanted) if name not in required
    }
    return _call(called, required, optional, config)


def get_callable_kwargs(
    config: dict[str, Any] | str, default_module: str | ModuleType | None = None
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return the class or function that a configuration names, and its keywords.

    Parameters
    ----------
    config : dict or str
        As for `init_instance_by_config`.
    default_module : str or module, optional
        Where to look for a class that is given without a module.

    Returns
    -------
    (callable, dict)
        The dict is new.

    Raises
    ------
    InstantiationError, ModuleNotFoundError, AttributeError
        As `init_instance_by_config` does.

    Examples
    --------
    >>> get_callable_kwargs("collections.OrderedDict")
    (<class 'collections.OrderedDict'>, {})
    """
    if isinstance(config, str):
        config = {"class": config}
    if not isinstance(config, dict):
        raise InstantiationError(_not_a_config(config, ()))
    named, kwargs = _checked(config)
    if isinstance(named, str):
        module_path, name = split_module_path(named)
        module = module_path or config.get("module_path") or default_module
        if module is None:
            raise ModuleNotFoundError(
                f"cannot find {name!r} of {_shown(config)}: no module is named. Add 'module_path', "
                f"or write the class as 'module.{name}'."
            )
        named = find_attribute(module, name)
    if not callable(named):
        raise InstantiationError(
            f"cannot build an object from {_shown(config)}: expected a class or function, and it "
            f"names a {type(named).__name__}."
        )
    return named, kwargs


get_cls_kwargs = get_callable_kwargs


def _checked(config: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return what a configuration calls and the keywords, or refuse it."""
    for key in config:
        if key not in _KEYS:
            raise InstantiationError(
                f"unknown key {key!r} in {_shown(config)}; {suggest(key, _KEYS)}"
            )
    named = [key for key in ("class", "func") if key in config]
    if len(named) != 1:
        found = "both" if named else "neither"
        raise InstantiationError(
            f"cannot build an object from {_shown(config)}: expected one of 'class' and 'func', "
            f"found {found}."
        )
    kwargs = config.get("kwargs")
    # An empty `kwargs:` in a YAML file is None.
    kwargs = {} if kwargs is None else kwargs
    if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
        raise InstantiationError(
            f"cannot build an object from {_shown(config)}: 'kwargs' is {_shown(kwargs)}; "
            "expected a dict whose keys are names."
        )
    return config[named[0]], dict(kwargs)


def _call(
    called: Callable[..., Any], required: dict[str, Any], optional: dict[str, Any], config: Any
) -> Any:
    try:
        return called(**required, **optional)
    except TypeError as error:
        if not _refused_by_base(error, called, optional):
            reason = _mismatch(called, required)
            if reason is None:
                raise
            raise InstantiationError(
                f"cannot build {_name(called)} from {_shown(config)}: {reason}"
            ) from error
    return called(**required)


def _refused_by_base(error: TypeError, called: Callable[..., Any], optional: Iterable[str]) -> bool:
    """Whether a base class does not know a keyword that only ``**kwargs`` of `called` took."""
    signature = signature_of(called)
    known = keyword_names(signature) if signature else []
    return any(
        f"unexpected keyword argument {name!r}" in str(error)
        for name in optional
        if name not in known
    )


def _mismatch(called: Callable[..., Any], kwargs: dict[str, Any]) -> str | None:
    """Say why these keywords cannot be given, None if they can."""
    signature = signature_of(called)
    if signature is None:
        return None
    known = keyword_names(signature)
    unknown = [name for name in kwargs if name not in known]
    if unknown and not takes_any_keyword(signature):
        return f"it takes no keyword {unknown[0]!r}; {suggest(unknown[0], known)}"
    try:
        signature.bind(**kwargs)
    except TypeError as mismatch:
        return f"{mismatch}. Add it to 'kwargs'."
    return None


def _file_of(config: Any) -> Path | None:
    """Return the file that a ``file:`` URI or a Path names, None for anything else."""
    if isinstance(config, Path):
        return config
    if not isinstance(config, str):
        return None
    scheme, colon, rest = config.partition(":")
    if not colon or scheme.lower() != "file":
        return None
    # A host can only be this one; "file://a/b.pkl" is a relative path in Qlib's files.
    here = rest.startswith("//localhost/")
    named = rest.removeprefix("//localhost" if here else "//")
    path = Path(named)
    return path if path.exists() else Path(unquote(named))


def _load(path: Path) -> Any:
    from ..storage.pickles import load_pickle

    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"cannot load an object from {path}: there is no such file (working directory "
            f"{Path.cwd()}). Save it first, or correct the path in the configuration."
        ) from error
    return load_pickle(content, policy=C.pickle_policy, allow=C.pickle_allow, source=path)


def _not_a_config(config: Any, accept_types: type | tuple[type, ...]) -> str:
    types = accept_types if isinstance(accept_types, tuple) else (accept_types,)
    live = "".join(f", or an instance of {accepted.__name__}" for accepted in types)
    return (
        f"cannot build an object from {_shown(config)} of type {type(config).__name__}: "
        f"expected a dict with 'class', a string 'module.Class' or 'file://...', a Path{live}."
    )


def _name(called: Callable[..., Any]) -> str:
    return str(getattr(called, "__qualname__", _shown(called)))


def _shown(config: Any) -> str:
    return _SHORT.repr(config)
