"""The examples and the README's code run as they stand, in an empty directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))
README = (ROOT / "README.md").read_text()


def run(script: Path, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name != "QWF_URI"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.name)
def test_an_example_runs(script: Path, tmp_path: Path) -> None:
    assert run(script, tmp_path)
    assert not list(tmp_path.iterdir()), "an example leaves nothing behind"


def test_the_code_of_the_readme_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    script = tmp_path / "readme.py"
    script.write_text("\n".join(blocks))
    first, *rest = run(script, tmp_path).splitlines()
    assert first == "FINISHED {'loss': 0.1} {'a': 1.5}"
    assert rest[0] == "{'done': 8} [0.0, 0.03, 0.06, 0.09, 0.12, 0.15, 0.18, 0.21]"
    assert rest[1].split() == ["run_id", "status", "metrics.loss", "params.lr"]
    assert rest[2].split()[2:] == ["FINISHED", "0.1", "0.001"]


def test_every_command_of_the_readme_is_a_target_of_make() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    used = set(re.findall(r"make ([a-z-]+)", README))
    assert used
    assert used <= targets


def test_every_link_of_the_readme_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
