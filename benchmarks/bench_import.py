"""Time of the import statements, each in a fresh interpreter; its start-up is not counted.

``import qwf`` alone loads names only when they are used, so what a script really imports is
measured too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from measure import (
    Budget,
    print_machine,
    print_results,
    read_options,
    say,
    take_turns,
    workshop,
)

CODE = "import time; begin = time.perf_counter(); {}; print(time.perf_counter() - begin)"
STATEMENTS = {
    "qwf: import qwf": "import qwf",
    "qwf: from qwf import R": "from qwf import R",
    "qwf: R, a trainer, RollingGen, a collector": (
        "from qwf import R, RecorderCollector, RollingGen, TrainerR"
    ),
    "import pandas": "import pandas",
    "Qlib: from qlib.workflow import R": "from qlib.workflow import R",
    "import mlflow": "import mlflow",
}


def seconds_of(statement: str, environment: dict[str, str]) -> Callable[[], float]:
    def contestant() -> float:
        found = subprocess.run(
            [sys.executable, "-c", CODE.format(statement)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return float(found.stdout.splitlines()[-1])

    return contestant


def main() -> None:
    options = read_options(__doc__)
    # Before the working directory changes; the environment may name relative paths.
    source = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry)
    with workshop() as folder:
        environment = {**os.environ, "PYTHONPATH": source}
        # The bytecode of all is compiled by the warm-up and kept here.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
        contestants = {}
        for name, statement in STATEMENTS.items():
            contestant = seconds_of(statement, environment)
            try:
                contestant()
            except subprocess.CalledProcessError as error:
                say(f"{name} is not measured: {error.stderr.splitlines()[-1]}")
            else:
                contestants[name] = contestant
        measured = take_turns(contestants, 3 if options.quick else 15)
        print_machine(folder, options)
        print_results("import", measured, options, budgets=[Budget("import pandas", 5)])


if __name__ == "__main__":
    main()
