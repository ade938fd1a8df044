"""Which module a name in a configuration means, and where in it an attribute is."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pkgutil
import re
import sys
from difflib import get_close_matches
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, Final, cast

from ..errors import suggest

__all__ = ["find_attribute", "get_module_by_module_path", "split_module_path"]

# So that Qlib's YAML files and saved tasks run. qwf's records work with qwf's recorders, and are
# taken even where Qlib is installed; what they lack (PortAnaRecord) is then looked up in Qlib.
_RECORDS: Final = {
    "qlib.workflow.record_temp": "qwf.records",
    "qlib.contrib.workflow.record_temp": "qwf.records",
}
# Stand-ins: where Qlib is installed, its own are taken.
_WITHOUT_QLIB: Final = {
    "qlib.contrib.model.linear": "qwf.data.models",
    "qlib.data.dataset": "qwf.data.dataset",
    "qlib.data.dataset.handler": "qwf.data.handler",
    "qlib.data.dataset.processor": "qwf.data.processors",
}


def split_module_path(module_path: str) -> tuple[str, str]:
    """Split the path of a class into that of its module, which may be empty, and its name.

    Examples
    --------
    >>> split_module_path("qwf.data.models.LinearModel"), split_module_path("LinearModel")
    (('qwf.data.models', 'LinearModel'), ('', 'LinearModel'))
    """
    module, _, name = module_path.rpartition(".")
    return module, name


def get_module_by_module_path(module_path: str | ModuleType) -> ModuleType:
    """Import a module by its name, or by the path of its file.

    Parameters
    ----------
    module_path : str or module
        ``"a.b"``, or ``"some/path/x.py"`` relative to the working directory. A file is run once;
        the module stays in ``sys.modules`` under a name made from the path as it is written, so
        that objects of its classes can be pickled. Names of Qlib's records mean qwf's; so do those
        of Qlib's linear model and dataset, unless Qlib is installed. A module is returned as it is.

    Raises
    ------
    ModuleNotFoundError
        If there is no such module or file.

    Examples
    --------
    >>> get_module_by_module_path("json.decoder").__name__
    'json.decoder'
    """
    if isinstance(module_path, ModuleType):
        return module_path
    if not module_path or module_path.startswith("."):
        raise ModuleNotFoundError(
            f"{module_path!r} does not name a module: expected a full name such as 'a.b', or the "
            "path of a file that ends with '.py'."
        )
    if module_path.endswith(".py"):
        return _module_of_file(module_path)
    return _import(_meant(module_path))


def find_attribute(module_path: str | ModuleType, name: str) -> Any:
    """Return what a module calls `name`.

    Raises
    ------
    ModuleNotFoundError
        If there is no such module.
    AttributeError
        If the module has nothing of this name.
    """
    module = get_module_by_module_path(module_path)
    if not hasattr(module, name) and module_path in _RECORDS and _qlib_is_installed():
        module = _import(str(module_path))
    try:
        return getattr(module, name)
    except AttributeError as error:
        # An AttributeError of a module's own __getattr__ says more than we know.
        if not hasattr(module, "__getattr__"):
            public = [known for known in vars(module) if not known.startswith("_")]
            raise AttributeError(
                f"module {module.__name__!r} has no {name!r}; {suggest(name, public)}"
            ) from error
        raise


def _qlib_is_installed() -> bool:
    return "qlib" in sys.modules or importlib.util.find_spec("qlib") is not None


def _meant(name: str) -> str:
    if name in _RECORDS:
        return _RECORDS[name]
    if name in _WITHOUT_QLIB and not _qlib_is_installed():
        return _WITHOUT_QLIB[name]
    return name


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name != missing and not name.startswith(f"{missing}."):
            raise  # the module is there, and something that it imports is not
        raise ModuleNotFoundError(
            f"there is no module {name!r}{_remedy(name, missing)}", name=missing
        ) from error


def _remedy(name: str, missing: str) -> str:
    if missing.partition(".")[0] == "qlib" and not _qlib_is_installed():
        known = sorted({**_RECORDS, **_WITHOUT_QLIB})
        return f". Qlib is not installed; qwf only has parts to stand in for {', '.join(known)}."
    parent, _, last = missing.rpartition(".")
    folder = getattr(sys.modules.get(parent), "__path__", ()) if parent else None
    siblings = [found.name for found in pkgutil.iter_modules(folder)]
    near = get_close_matches(last, siblings, n=1)
    if near:
        return f"; did you mean {f'{parent}.{near[0]}' if parent else near[0]}?"
    return ". Install it, or put its folder on sys.path (PYTHONPATH)."


def _module_of_file(written: str) -> ModuleType:
    path = Path(written).resolve()
    if not path.is_file():
        raise ModuleNotFoundError(
            f"there is no file {written!r} to import (looked for {path}). Give its path relative "
            f"to the working directory, or absolute."
        )
    name = re.sub(r"^[^a-zA-Z_]+|[^0-9a-zA-Z_]", "", written[:-3].replace("/", "_"))
    if not name or _is_taken(name, path):
        name += "_" + hashlib.md5(str(path).encode(), usedforsecurity=False).hexdigest()[:8]
    return sys.modules[name] if name in sys.modules else _run_file(name, path)


def _is_taken(name: str, path: Path) -> bool:
    """Whether the name is that of another module, loaded or not: "calendar.py" must not hide it."""
    if name in sys.modules:
        return getattr(sys.modules[name], "__file__", None) != str(path)
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin != str(path)


def _run_file(name: str, path: Path) -> ModuleType:
    loader = SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    module = importlib.util.module_from_spec(cast("ModuleSpec", spec))
    # Before it runs, so that dataclasses and pickle in it find their module.
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
