"""Boot the guest and print what it found: ``python -m tests.nfs.run`` in the project's directory.

Exit codes: 0 all is well; 1 a test failed or the guest did not end in time; 77 nothing was tested,
because this machine lacks something, which is told in one line.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from . import guest, packages, summary
from .refusal import CannotRunError

__all__ = ["main"]

PROJECT = Path(__file__).resolve().parents[2]
CACHE = PROJECT / ".nfs"

NOT_RUN = 77

SECONDS = 240

CONSOLE = "console"

# What a kernel that has started tells at its end.
_SIGNS_OF_LIFE = ("System halted", "Kernel panic")

_DISK_BYTES = 512 << 20
_MEMORY_BYTES = 1 << 30


def main() -> int:
    """Prepare, boot, print; return the exit code."""
    began = time.monotonic()
    try:
        check_machine(platform.system(), platform.machine())
        check_places(PROJECT, Path(sys.executable), Path(sys.prefix), Path(sys.base_prefix))
        root = packages.prepare(CACHE)
        results = _fresh_results()
        in_time = _boot(root, results)
    except CannotRunError as error:
        print(f"NFS tests not run: {error}")
        return NOT_RUN
    code = _verdict(results, in_time)
    print(f"NFS tests {'failed' if code else 'passed'} in {time.monotonic() - began:.0f} s")
    return code


def check_machine(system: str, machine: str) -> None:
    """Refuse where the packages' programs cannot run."""
    if (system, machine) != ("Linux", "x86_64"):
        raise CannotRunError(
            f"User-Mode-Linux needs Linux on x86-64, and this is {system} {machine}"
        )


def check_places(project: Path, *others: Path) -> None:
    """Refuse if the guest could not see, or name, what it needs of the host."""
    if set(" ,:") & set(str(project)):
        raise CannotRunError(f"a kernel's command line cannot name {project}")
    for path in (project, *others):
        for covered in guest.SHADOWED:
            if path.resolve().is_relative_to(covered):
                raise CannotRunError(f"the guest has a {covered} of its own, and needs {path}")


def _fresh_results() -> Path:
    results = CACHE / "results"
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir()
    return results


def _boot(root: Path, results: Path) -> bool:
    """Run the guest to its end; return whether it ended by itself."""
    _make_disk(CACHE / "disk", root)
    linux = packages.find_program("linux.uml", root)
    if linux is None:
        raise CannotRunError("the package user-mode-linux has no program linux.uml")
    command = [
        *(str(linux), f"mem={_MEMORY_BYTES >> 20}M", "ubd0=disk", "uml_dir=uml"),
        *("root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"),
        *(f"init={_first_program(root, results)}", "con=null", "con0=null,fd:1", "quiet"),
    ]
    with (CACHE / CONSOLE).open("wb") as console:
        in_time = run_for(command, console, SECONDS)
    told = (CACHE / CONSOLE).read_text(errors="replace")
    if in_time and not any(sign in told for sign in _SIGNS_OF_LIFE):
        last = [line.strip() for line in told.splitlines() if line.strip()] or ["it told nothing"]
        raise CannotRunError(f"User-Mode-Linux does not start on this machine: {last[-1]}")
    return in_time


def run_for(command: Sequence[str], output: BinaryIO, seconds: float) -> bool:
    """Run a program for so long, then kill it and its children; return whether it ended before."""
    program = subprocess.Popen(
        command,
        cwd=CACHE,
        env={**os.environ, "TMPDIR": str(_place_of_memory())},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        program.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    else:
        return True
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()


def _place_of_memory() -> Path:
    # The guest's memory is a file that is mapped and executed; a container may have little room for
    # it where it would be fast, or forbid to execute there.
    fast = Path("/dev/shm")
    try:
        found = os.statvfs(fast)
    except FileNotFoundError:
        return CACHE
    fits = found.f_bavail * found.f_frsize > _MEMORY_BYTES
    return fast if fits and not found.f_flag & os.ST_NOEXEC else CACHE


def _make_disk(disk: Path, root: Path) -> None:
    program = packages.find_program("mkfs.ext4", root)
    if program is None:
        raise CannotRunError("mkfs.ext4 (package e2fsprogs) is missing, which makes the disk")
    disk.unlink(missing_ok=True)
    with disk.open("wb") as file:
        file.truncate(_DISK_BYTES)
    subprocess.run([program, "-q", "-F", disk], check=True)


def _first_program(root: Path, results: Path) -> Path:
    # The kernel's command line is too short for paths, and passes on no environment.
    program = CACHE / "init"
    call = shlex.join([sys.executable, "-B", "-m", "tests.nfs.guest", str(root), str(results)])
    program.write_text(
        "#!/bin/sh\n"
        "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/\n"
        f"cd {shlex.quote(str(PROJECT))} && exec {call}\n"
    )
    program.chmod(0o755)
    return program


def _verdict(results: Path, in_time: bool) -> int:
    log = results / guest.LOG if (results / guest.LOG).exists() else CACHE / CONSOLE
    told = log.read_text(errors="replace")
    if not in_time:
        print(f"{told}\nFAILED: the guest did not end within {SECONDS} s; its log is above")
        return 1
    answer = results / guest.ANSWER
    if not answer.exists():
        print(f"{told}\nFAILED: the guest ended without a result; its log is above")
        return 1
    found = json.loads(answer.read_text())
    print(summary.tables(found))
    failures = summary.failures(found)
    if failures:
        print(told)
    for failure in failures:
        print(f"FAILED: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
