"""The arrows between rooms point down, and no file or function runs away."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "qwf"
BASE = {"errors", "version", "types"}
STORAGE = {"storage"}
ALL_BELOW_TASKS = {
    "storage", "config", "calendar", "instantiate", "process", "pool", "tracking", "parallel",
    "progress",
}  # fmt: skip
ALL_BELOW_FACADE = {
    "storage", "process", "config", "progress", "calendar", "instantiate", "ensemble",
    "tracking", "pool", "tasks", "collect", "records", "data", "parallel", "trainer",
}  # fmt: skip

# First name below qwf/ -> the first names it may import. ARCHITECTURE.md says why.
MAY_IMPORT = {
    "errors": {"version"},
    "version": set(),
    "types": set(),
    "storage": set(),
    "process": {"storage"},
    "config": set(),
    "progress": set(),
    "calendar": {"config"},
    "instantiate": {"config", "storage"},
    "ensemble": set(),
    "tracking": {"storage", "process", "config"},
    "pool": {"storage", "process"},
    "tasks": ALL_BELOW_TASKS,
    "collect": {"tracking", "ensemble"},
    "records": {"tracking", "instantiate", "calendar"},
    "data": {"calendar", "storage", "config", "instantiate"},
    "parallel": {"tracking", "process", "config"},
    "trainer": {"tracking", "config", "tasks", "records", "instantiate", "progress", "parallel"},
    "facade": {"tracking", "config"},
    "cli": ALL_BELOW_FACADE | {"facade"},
    "testing": {"storage", "tracking"},
    "__main__": {"cli"},
}
THIRD_PARTY = {"numpy", "pandas", "pyarrow", "filelock", "yaml", "tqdm"}
ONLY_IN = {
    "filelock": {"storage/lock.py"},
    "pyarrow": {"storage/frames.py", "data/panel.py"},
    "tqdm": {"progress.py"},
    "yaml": {"cli/definitions.py"},
}
MAX_LINES = 600
MAX_METHODS = 25  # public ones; Qlib's Recorder alone has two dozen

FILES = sorted(ROOT.rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (kind, first name) for each import, wherever it stands in the file."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _absolute(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from _absolute(node.module or "")
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - (node.level - 1)]
            parts = [*base, *(node.module or "").split(".")]
            parts = [part for part in parts if part]
            if parts:
                yield "qwf", parts[0]
            else:
                for alias in node.names:
                    yield "qwf", alias.name


def _absolute(name: str) -> Iterator[tuple[str, str]]:
    first, _, rest = name.partition(".")
    if first == "qwf":
        yield "qwf", rest.partition(".")[0] or "qwf"
    else:
        yield "other", first


def room(name: str) -> str:
    return name.partition("/")[0].removesuffix(".py")


@pytest.mark.parametrize(("path", "name"), list(zip(FILES, NAMES, strict=True)), ids=NAMES)
def test_a_module_imports_only_the_rooms_below_it(path: Path, name: str) -> None:
    if name == "__init__.py":
        return
    here = room(name)
    may = BASE | MAY_IMPORT[here] | {here}
    found = {target for kind, target in imported(path) if kind == "qwf"}
    assert found <= may, f"{name} may not import {sorted(found - may)}; see ARCHITECTURE.md"


@pytest.mark.parametrize(("path", "name"), list(zip(FILES, NAMES, strict=True)), ids=NAMES)
def test_a_module_imports_only_the_five_dependencies(path: Path, name: str) -> None:
    others = {target for kind, target in imported(path) if kind == "other"}
    foreign = others - set(sys.stdlib_module_names)
    assert foreign <= THIRD_PARTY, f"{name} imports {sorted(foreign - THIRD_PARTY)}"
    for library, places in ONLY_IN.items():
        assert library not in foreign or name in places, f"{name} imports {library}"


def test_the_table_of_rooms_has_no_cycle() -> None:
    def below(start: str, seen: tuple[str, ...]) -> None:
        for target in MAY_IMPORT[start]:
            assert target not in seen, f"cycle: {' -> '.join([*seen, target])}"
            below(target, (*seen, target))

    for start in MAY_IMPORT:
        below(start, (start,))


def test_modules_of_one_package_do_not_import_each_other_in_a_circle() -> None:
    edges: dict[str, set[str]] = {}
    for path, name in zip(FILES, NAMES, strict=True):
        siblings = {p.stem for p in path.parent.glob("*.py")} - {"__init__"}
        edges[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                targets = [node.module] if node.module else [alias.name for alias in node.names]
                for target in targets:
                    first = (target or "").partition(".")[0]
                    if first in siblings and path.stem != "__init__":
                        edges[name].add(str((path.parent / f"{first}.py").relative_to(ROOT)))

    def walk(name: str, seen: tuple[str, ...]) -> None:
        for target in edges.get(name, ()):
            assert target not in seen, f"cycle: {' -> '.join([*seen, target])}"
            walk(target, (*seen, target))

    for name in NAMES:
        walk(name, (name,))


@pytest.mark.parametrize(("path", "name"), list(zip(FILES, NAMES, strict=True)), ids=NAMES)
def test_files_and_classes_stay_small(path: Path, name: str) -> None:
    text = path.read_text()
    assert text.count("\n") <= MAX_LINES, name
    assert "TODO" not in text, f"{name} has a TODO; file an issue instead"
    assert "FIXME" not in text, f"{name} has a FIXME; file an issue instead"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            functions = [child for child in node.body if isinstance(child, ast.FunctionDef)]
            public = {child.name for child in functions if not child.name.startswith("_")}
            assert len(public) <= MAX_METHODS, f"{name}: {node.name} has {sorted(public)}"


def test_only_fsio_changes_the_filesystem() -> None:
    """Everything else asks it, so that the crash harness sees every step."""
    # Some modules beside it make theirs through `fsio.system()`, which the harness replaces.
    changing = {"open", "rename", "replace", "link", "unlink", "fsync", "mkdir", "rmdir", "write"}
    methods = {"write_bytes", "write_text", "touch", "rmdir", "symlink_to", "hardlink_to"}
    for path, name in zip(FILES, NAMES, strict=True):
        if name == "storage/fsio.py" or name.startswith(("testing/", "cli/")):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                owner = node.value.id if isinstance(node.value, ast.Name) else ""
                assert not (owner == "os" and node.attr in changing), f"{name}: os.{node.attr}"
                by_fsio = ast.unparse(node.value) == "fsio.system()"
                assert by_fsio or node.attr not in methods, f"{name}: {node.attr}"


def test_importing_qwf_alone_loads_neither_pandas_nor_pyarrow() -> None:
    import subprocess

    heavy = ("numpy", "pandas", "pyarrow", "yaml", "filelock")
    code = f"import sys, qwf; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
