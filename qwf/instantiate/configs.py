"""Configurations as nested dicts, lists and tuples: copied, merged, flattened, told apart.

Leaves may be live objects (a handler, a frame): they are handed on as they are, never copied.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

__all__ = [
    "FLATTEN_TUPLE",
    "S_DROP",
    "deepcopy_basic_type",
    "flatten_dict",
    "hash_args",
    "is_container",
    "update_config",
    "with_children",
]

S_DROP: Final = "__DROP__"
FLATTEN_TUPLE: Final = "_FLATTEN_TUPLE"


def is_container(value: Any) -> bool:
    """Whether a value is a part of a configuration that has parts of its own."""
    return isinstance(value, (dict, list, tuple))


def with_children(container: Any, transform: Callable[[Any], Any]) -> Any:
    """Return a container of the same type whose children are those of the given one, transformed.

    Examples
    --------
    >>> with_children({"a": 1, "b": 2}, str)
    {'a': '1', 'b': '2'}
    """
    if isinstance(container, dict):
        filled = copy.copy(container)
        for key, child in container.items():
            filled[key] = transform(child)
        return filled
    children = [transform(child) for child in container]
    if isinstance(container, list):
        return children
    if hasattr(container, "_fields"):
        return type(container)(*children)
    return tuple(children)


def deepcopy_basic_type(obj: Any) -> Any:
    """Copy nested dicts, lists and tuples; share everything in them.

    Examples
    --------
    >>> config = {"segments": [1, (2, 3)], "handler": object()}
    >>> copied = deepcopy_basic_type(config)
    >>> copied == config, copied["segments"] is config["segments"]
    (True, False)
    """
    return with_children(obj, deepcopy_basic_type) if is_container(obj) else obj


def update_config(
    base_config: dict[Any, Any], ext_config: Mapping[Any, Any] | Sequence[Mapping[Any, Any]]
) -> dict[Any, Any]:
    """Return a configuration with changes merged into it.

    Parameters
    ----------
    base_config : dict
        The configuration to begin with.
    ext_config : dict or list of dict
        Changes, applied in their order. A dict is merged key by key, a list or any other value
        replaces what was there, and ``"__DROP__"`` (`S_DROP`) removes the key, if it is there.

    Returns
    -------
    dict
        A copy: neither input is changed or shares a dict, list or tuple with it.

    Raises
    ------
    TypeError
        If one of the inputs is not a dict.

    Examples
    --------
    >>> base = {"model": {"class": "LinearModel", "kwargs": {"alpha": 1, "l1": 0}}, "seed": 7}
    >>> update_config(base, [{"model": {"kwargs": {"alpha": 2, "l1": "__DROP__"}}}, {"seed": None}])
    {'model': {'class': 'LinearModel', 'kwargs': {'alpha': 2}}, 'seed': None}
    """
    merged = deepcopy_basic_type(base_config)
    for changes in ext_config if isinstance(ext_config, (list, tuple)) else [ext_config]:
        if not isinstance(merged, dict) or not isinstance(changes, Mapping):
            raise TypeError(
                f"cannot merge {type(changes).__name__} {changes!r} into a configuration of type "
                f"{type(merged).__name__}: expected two dicts. Nothing was changed."
            )
        _merge(merged, changes)
    return merged  # type: ignore[no-any-return]  # copies keep their type


def _merge(base: dict[Any, Any], changes: Mapping[Any, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, str) and value == S_DROP:
            base.pop(key, None)
        elif isinstance(value, dict):
            # Also into nothing: a mark to drop what is not there must not become a value.
            if not isinstance(base.get(key), dict):
                base[key] = {}
            _merge(base[key], value)
        else:
            base[key] = deepcopy_basic_type(value)


def flatten_dict(d: Mapping[Any, Any], parent_key: Any = "", sep: str = ".") -> dict[Any, Any]:
    """Return nested dicts as one dict whose keys are paths.

    Parameters
    ----------
    d : dict
        Dicts in it are entered, lists and tuples are values; a dict that is empty disappears.
    parent_key : str, default ""
        Put in front of each path.
    sep : str, default "."
        What joins the parts of a path. With `FLATTEN_TUPLE`, a path is a pair of parent path and
        last key, as Qlib returns it: ``(("c", "b"), "x")``.

    Returns
    -------
    dict
        In the order of the values. Of two equal paths (``{"a.b": 1, "a": {"b": 2}}``) the later
        holds.

    Raises
    ------
    TypeError
        If a key is not a string and `sep` is not `FLATTEN_TUPLE`.

    Examples
    --------
    >>> flatten_dict({"a": 1, "c": {"a": 2, "b": {"x": 5}}, "d": [1, {"e": 2}]})
    {'a': 1, 'c.a': 2, 'c.b.x': 5, 'd': [1, {'e': 2}]}
    >>> flatten_dict({"a": 1, "c": {"a": 2, "b": {"x": 5}}}, sep=FLATTEN_TUPLE)
    {'a': 1, ('c', 'a'): 2, (('c', 'b'), 'x'): 5}
    """
    flat: dict[Any, Any] = {}
    _flatten(d, "" if parent_key == "" else (parent_key,), sep, flat)
    return flat


def _flatten(d: Mapping[Any, Any], parent: Any, sep: str, flat: dict[Any, Any]) -> None:
    # The parent is "" at the top and else a tuple of one, because "" and 0 may be keys themselves.
    for key, value in d.items():
        if sep != FLATTEN_TUPLE and not isinstance(key, str):
            raise TypeError(
                f"cannot flatten a dict with key {key!r} of type {type(key).__name__}: expected a "
                "string. Quote the key in the configuration, or pass sep=FLATTEN_TUPLE."
            )
        path = key
        if parent:
            path = (parent[0], key) if sep == FLATTEN_TUPLE else f"{parent[0]}{sep}{key}"
        if isinstance(value, Mapping):
            _flatten(value, (path,), sep, flat)
        else:
            flat[path] = value


def hash_args(*args: Any) -> str:
    """Return a digest of the arguments, the one Qlib computes.

    The digest is the MD5 of their JSON with sorted keys; what JSON does not know counts as its
    ``str``, so the objects among them need one that tells them apart.

    Examples
    --------
    >>> hash_args({"a": 1, "b": [2]}) == hash_args({"b": [2], "a": 1})
    True
    """
    text = json.dumps(args, sort_keys=True, default=str)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
