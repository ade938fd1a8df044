"""What a run captures of its surroundings when it starts: installed packages, the user's code.

`environment` reads the names of directories, once per process. The state of the user's repository
is asked of git by a thread, so that no run waits for it; outside a repository nothing is started.
Environment variables, the addresses of remotes and absolute paths are never captured.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import functools
import os
import re
import signal
import site
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from ..storage.layout import STORE_FILE
from ..types import Json
from ..version import __version__

if TYPE_CHECKING:
    import subprocess

__all__ = ["SourceCapture", "environment", "source_of_process"]

GIT_SECONDS: Final = 10.0  # for all of its commands together
PATCH_BYTES: Final = 1 << 20
UNTRACKED_NAMES: Final = 100
REUSE_SECONDS: Final = 60.0

_MESSAGE_BYTES: Final = 4096
_NAMES_BYTES: Final = 1 << 17
_CHUNK: Final = 1 << 16
_REAP_SECONDS: Final = 1.0  # a killed process that waits for a dead file server cannot end

# Nothing of the user's configuration may change the form of an answer or run a program for it, but
# for the filters without which files look changed. Nothing is written: `git diff` would refresh
# the index in spite of GIT_OPTIONAL_LOCKS, and a commit made meanwhile would find it locked.
_GIT: Final = (
    "git --no-pager -c core.fsmonitor=false -c core.quotePath=false -c diff.autoRefreshIndex=false"
).split()
_DIFF: Final = (
    "diff --no-ext-diff --no-textconv --no-color --src-prefix=a/ --dst-prefix=b/ --submodule=short"
).split()
# What Python and Jupyter write beside the code that runs does not make it another code.
_UNTRACKED: Final = (
    "ls-files -z --others --directory --no-empty-directory --exclude-standard "
    "--exclude=__pycache__ --exclude=.ipynb_checkpoints"
).split()

# Held while a process is being started, and while this one forks: the fork would inherit the
# pipe's end for writing, and the answer would not end before the fork does.
_lock: Final = threading.RLock()
_recent: dict[Path, tuple[float, SourceCapture]] = {}
_running: set[SourceCapture] = set()


def environment() -> dict[str, Json]:
    """Return the Python of this process and the packages that it can import.

    Returns
    -------
    dict
        ``python``, ``implementation``, ``platform``, and ``packages``: version per normalised name,
        sorted; None where a package does not tell it. Equal installations give equal answers,
        whatever the host.

    Notes
    -----
    The packages are those of the first call in this process.
    """
    return {
        "python": sys.version.split()[0],
        "implementation": sys.implementation.name,
        "platform": f"{sys.platform}-{os.uname().machine}",
        "packages": dict(_packages()),
    }


@functools.cache
def _packages() -> dict[str, Json]:
    found: dict[str, Json] = {}
    for entry in sys.path:
        for name, version in _distributions(entry or os.curdir):
            found.setdefault(name, version)
    # This one may run from a directory of sources, with or without traces of an installation.
    found["qwf"] = __version__
    return dict(sorted(found.items()))


def _distributions(entry: str) -> Iterator[tuple[str, str | None]]:
    try:
        names = sorted(os.listdir(entry))
    except OSError:  # not there, or an archive
        return
    for directory in names:
        stem, suffix = os.path.splitext(directory)
        # A name that begins with ~ is what an interrupted pip has left.
        if suffix not in (".dist-info", ".egg-info") or stem.startswith("~"):
            continue
        name, _, rest = stem.partition("-")
        version = rest.partition("-py")[0] if suffix == ".egg-info" else rest
        normal = re.sub(r"[-_.]+", "-", name).lower()
        # What setuptools leaves beside editable sources has no version in its name.
        yield normal, version or _version_inside(os.path.join(entry, directory))


def _version_inside(directory: str) -> str | None:
    try:
        text = Path(directory, "PKG-INFO").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"^Version: *(\S+)", text, re.MULTILINE)
    return found and found[1]


# --- the user's code -------------------------------------------------------------------------


def source_of_process() -> SourceCapture | None:
    """Return what git says about the code that runs in this process; None outside a repository.

    It is the repository of the script or, if that is in none or is an installed program, that of
    the working directory. Runs that start within a minute share one answer.
    """
    top = _repository_of(_places())
    if top is None:
        return None
    with _lock:
        begun, capture = _recent.get(top, (0.0, None))
        now = time.monotonic()
        if capture is None or now - begun > REUSE_SECONDS:
            capture = SourceCapture(top)
            _recent[top] = now, capture
        return capture


def _places() -> list[str]:
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    folder = script and _folder_of_user(script)
    places = [folder] if folder else []
    with contextlib.suppress(OSError):  # the working directory may have been removed
        places.append(os.getcwd())
    return places


@functools.cache
def _folder_of_user(script: str) -> str | None:
    """Return where a script is; None if it came with an installation, as pytest and Jupyter do."""
    # Such a program may well lie in somebody's repository: that of pyenv, or of a project that
    # has its virtual environment inside.
    path = Path(os.path.realpath(script))
    binaries = [os.path.dirname(sys.executable or ""), os.path.join(site.getuserbase(), "bin")]
    libraries = [Path(__file__).parent.parent, Path(os.__file__).parent]
    is_installed = (
        path.parent in {Path(os.path.realpath(folder)) for folder in binaries}
        or any(path.is_relative_to(os.path.realpath(folder)) for folder in libraries)
        or not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
    )
    return None if is_installed else str(path.parent)


def _repository_of(places: Iterable[str]) -> Path | None:
    # Text, not paths: every run that starts passes here.
    for place in places:
        folder, below = place, ""
        while folder != below:
            mark = os.path.join(folder, ".git")
            # A file in worktrees and submodules. Git, too, passes over a directory without HEAD.
            if os.path.isfile(mark) or os.path.exists(os.path.join(mark, "HEAD")):
                return Path(folder)
            folder, below = os.path.dirname(folder), folder
    return None


class SourceCapture:
    """The state of one repository, which a thread asks of git from now on.

    Parameters
    ----------
    top : Path
        Its directory, where ``.git`` is.
    """

    def __init__(self, top: Path) -> None:
        self._top = top
        self._owner = os.getpid()
        self._facts: dict[str, Json] | None = None
        self._ready = threading.Event()
        self._git = _Git(top)
        self._thread = threading.Thread(target=self._ask, name="qwf-provenance", daemon=True)
        _running.add(self)
        _stop_with_worker()
        try:
            self._thread.start()
        except RuntimeError as error:  # the interpreter is ending, or there are too many threads
            self._settle({"error": f"git was not asked: {error}."})

    @classmethod
    def begin(cls, places: Sequence[Path]) -> SourceCapture | None:
        """Begin to ask about the repository of the first of these directories that is in one.

        Takes a few calls of `stat`; when none is in a repository, nothing is started.
        """
        top = _repository_of(map(os.path.realpath, places))
        return None if top is None else cls(top)

    def result(self, timeout: float | None) -> dict[str, Json] | None:
        """Return what git said, or None if it has not yet.

        Parameters
        ----------
        timeout : float or None
            Seconds to wait for it; None waits to the end, which its time limit brings.

        Returns
        -------
        dict or None
            ``commit`` (None before the first), ``branch`` (None when detached), ``dirty``,
            ``patch``, ``patch_truncated``, ``untracked``, ``untracked_truncated``. When git
            failed: what it said until then, and ``error``, a sentence.

            The patch is that from the commit (before the first, from nothing to what is staged)
            to the files as they are. It is text for readers: binary files are named without
            their content, bytes that are not UTF-8 are replaced, and beyond 1 MiB it is cut.
            ``untracked`` has at most 100 names, and one for a directory of which nothing is
            tracked; ignored files, stores of qwf and bytecode are not among them.
        """
        if self._owner == os.getpid():
            self._ready.wait(timeout)
        elif self._facts is None:  # the thread that would set it exists in the parent only
            return {"error": "git had not answered when this process was forked."}
        return copy.deepcopy(self._facts)

    def _ask(self) -> None:
        facts: dict[str, Json] = {}
        try:
            _collect(self._git, self._top, facts)
        except OSError as error:
            facts["error"] = str(error)
        except Exception as error:  # noqa: BLE001 - a thread that raises prints on stderr
            facts["error"] = f"git was not understood ({type(error).__name__})."
        self._settle(facts)

    def _settle(self, facts: dict[str, Json]) -> None:
        self._facts = facts
        self._ready.set()
        _running.discard(self)

    def _abandon(self) -> None:
        self._git.stop()
        # The thread reaps what was killed. Left alone, it would find the interpreter gone.
        self._thread.join(_REAP_SECONDS)


def _collect(git: _Git, top: Path, facts: dict[str, Json]) -> None:
    """Fill `facts` step by step, the quick ones first."""
    # The code 1 means here that there is none.
    commit = _text(git.ask("rev-parse", "--quiet", "--verify", "HEAD", codes=(0, 1)).output).strip()
    branch = _text(git.ask("symbolic-ref", "--quiet", "HEAD", codes=(0, 1)).output).strip()
    facts["commit"] = commit or None
    facts["branch"] = branch.removeprefix("refs/heads/") or None

    patch = git.ask(*_DIFF, commit or "--cached", limit=PATCH_BYTES)
    lines, newline, _ = patch.output.rpartition(b"\n")
    facts["patch"] = _text(lines + newline if patch.is_cut else patch.output)
    facts["patch_truncated"] = patch.is_cut

    names = git.ask(*_UNTRACKED, limit=_NAMES_BYTES)
    untracked = [_text(name) for name in names.output.split(b"\0")[:-1]]
    untracked = [name for name in untracked if not os.path.exists(top / name / STORE_FILE)]
    facts["untracked"] = list[Json](untracked[:UNTRACKED_NAMES])
    facts["untracked_truncated"] = names.is_cut or len(untracked) > UNTRACKED_NAMES
    facts["dirty"] = bool(patch.output or untracked)


# --- asking git ------------------------------------------------------------------------------


class _Answer(NamedTuple):
    output: bytes
    errors: bytes
    is_cut: bool


class _Git:
    """Asks git about one repository, within one time limit for all questions."""

    def __init__(self, top: Path) -> None:
        self._top = top
        self._deadline = time.monotonic() + GIT_SECONDS
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def ask(self, *arguments: str, codes: Sequence[int] = (0,), limit: int = _CHUNK) -> _Answer:
        """Return the first `limit` bytes of an answer.

        Raises
        ------
        OSError
            With a sentence without paths: there is no git, it did not end in time, or its exit
            code is none of `codes`.
        """
        import subprocess

        process = self._start(*arguments)
        try:
            answer = _read(process, limit, self._deadline)
            if not answer.is_cut:
                process.wait(max(self._deadline - time.monotonic(), 0))
        except (TimeoutError, subprocess.TimeoutExpired):
            raise TimeoutError(
                f"git {arguments[0]} did not end within the {GIT_SECONDS:g} s that git has in all."
            ) from None
        finally:
            _end(process)
        if not answer.is_cut and process.returncode not in codes:
            reason = _without_paths(_text(answer.errors)) or "it gave no reason."
            raise ChildProcessError(
                f"git {arguments[0]} failed with code {process.returncode}: {reason}"
            )
        return answer

    def stop(self) -> None:
        """Kill the process that runs, and start no other."""
        with _lock:
            self._stopped = True
            if self._process is not None:
                _kill(self._process)

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        import subprocess

        with _lock:
            if self._stopped:
                raise ChildProcessError("the process ended before git had answered.")
            try:
                self._process = subprocess.Popen(
                    [*_GIT, "-C", str(self._top), *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=_git_environment(self._top),
                    # A group that can be killed as one, which Ctrl-C passes over, and which has
                    # no terminal to ask for a password.
                    start_new_session=True,
                )
            except FileNotFoundError:
                raise FileNotFoundError("git is not installed, or not on PATH.") from None
            except OSError as error:
                raise ChildProcessError(f"git cannot be started: {error.strerror}.") from None
            return self._process


def _git_environment(top: Path) -> dict[str, str]:
    # A hook that starts a study has set GIT_DIR and others to its own repository. What stays tells
    # where git itself is, and which repositories of other users it may read.
    kept = ("GIT_CONFIG", "GIT_EXEC_PATH")
    variables = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name.startswith(kept)
    }
    return {
        **variables,
        "GIT_CEILING_DIRECTORIES": str(top.parent),
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
    }


def _read(process: subprocess.Popen[bytes], limit: int, deadline: float) -> _Answer:
    import selectors

    output, errors = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        for pipe, kept in ((process.stdout, output), (process.stderr, errors)):
            selector.register(pipe, selectors.EVENT_READ, kept)  # type: ignore[arg-type]  # pipes
        while selector.get_map():
            ready = selector.select(max(deadline - time.monotonic(), 0))
            if not ready or time.monotonic() > deadline:
                raise TimeoutError
            for key, _ in ready:
                chunk = os.read(key.fd, _CHUNK)
                key.data.extend(chunk)
                if not chunk:
                    selector.unregister(key.fileobj)
            del errors[_MESSAGE_BYTES:]
            if len(output) > limit:
                return _Answer(bytes(output[:limit]), bytes(errors), is_cut=True)
    return _Answer(bytes(output), bytes(errors), is_cut=False)


def _end(process: subprocess.Popen[bytes]) -> None:
    import subprocess

    _kill(process)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_REAP_SECONDS)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that has not ended, with all that it has started."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _without_paths(message: str) -> str:
    """Return the first line of a message of git without the absolute paths in it."""
    line = message.strip().partition("\n")[0]
    return re.sub(r"(['\"])/.*?\1|(?<![\w.])/[^\s'\":]+", "<path>", line)


# --- the ends of this process ----------------------------------------------------------------


def _stop() -> None:
    """Kill what git still does: nobody will read it."""
    for capture in list(_running):
        capture._abandon()


def _stop_with_worker() -> None:
    # A forked child of `multiprocessing` passes over `atexit`.
    process, util = map(sys.modules.get, ("multiprocessing.process", "multiprocessing.util"))
    if process is not None and util is not None and process.parent_process() is not None:
        # Below the priority of the runs that are ended there, which may ask for a result.
        util.Finalize(None, _stop, exitpriority=-200)


def _forget_in_child() -> None:
    _recent.clear()
    _running.clear()
    _lock.release()


os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_forget_in_child
)
# Registered before the end of open runs is, and so called after it.
atexit.register(_stop)
