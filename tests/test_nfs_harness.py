"""The parts of `make test-nfs` that decide: what is lost, what is refused, what counts as wrong."""

from __future__ import annotations

import contextlib
import copy
import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nfs import kernel, packages, run, summary
from nfs.losing_proxy import (
    ConnectionEndedError,
    LosingProxy,
    read_message,
    rename_call,
    write_message,
)
from nfs.refusal import CannotRunError
from nfs.visibility import QUESTIONS, TIMES

# --- the proxy that loses replies ---------------------------------------------------------------

RENAME, LOOKUP = 14, 3


def call(number: int, procedure: int, *, program: int = 100003, version: int = 3) -> bytes:
    """A call as RFC 5531 has it: its number, CALL, version 2 of RPC, what is called, and more."""
    return struct.pack(">6I", number, 0, 2, program, version, procedure) + b"credentials and names"


def reply(number: int) -> bytes:
    return struct.pack(">3I", number, 1, 0) + b"done"


def test_a_rename_of_version_3_is_recognised() -> None:
    assert rename_call(call(7, RENAME)) == 7


@pytest.mark.parametrize(
    "message",
    [
        call(7, LOOKUP),
        call(7, RENAME, version=4),
        call(7, RENAME, program=100005),
        reply(14),
        b"short",
    ],
    ids=["another procedure", "another version", "another program", "a reply", "no message"],
)
def test_other_messages_are_no_renames(message: bytes) -> None:
    assert rename_call(message) is None


def test_a_message_in_fragments_is_read_whole() -> None:
    here, there = socket.socketpair()
    with here, there:
        there.sendall(struct.pack(">I", 3) + b"abc" + struct.pack(">I", 1 << 31 | 2) + b"de")
        assert read_message(here) == b"abcde"


class Server:
    """Answers every call of one connection after the other, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with self._listener, contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, contextlib.suppress(ConnectionEndedError):
                    while True:
                        (number,) = struct.unpack(">I", read_message(connection)[:4])
                        self.asked.append(number)
                        write_message(connection, reply(number))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()


def ask(connection: socket.socket, message: bytes) -> bytes | None:
    """Return the reply; None if the connection ends before it."""
    write_message(connection, message)
    with contextlib.suppress(ConnectionEndedError):
        return read_message(connection)
    return None


def test_the_reply_to_every_second_rename_is_lost_and_its_repetition_answered() -> None:
    with contextlib.closing(Server()) as server:
        proxy = LosingProxy(("127.0.0.1", 0), server.address, every=2)
        proxy.start()
        with contextlib.closing(proxy):
            with socket.create_connection(proxy.address) as connection:
                assert ask(connection, call(1, RENAME)) == reply(1)
                assert ask(connection, call(2, LOOKUP)) == reply(2), "others are not counted"
                assert ask(connection, call(3, RENAME)) is None
            assert server.asked == [1, 2, 3], "the server has renamed"
            with socket.create_connection(proxy.address) as connection:
                assert ask(connection, call(3, RENAME)) == reply(3)
                assert ask(connection, call(4, RENAME)) == reply(4)
            assert (proxy.renames, proxy.lost) == (3, 1)


# --- why nothing can be tested here -------------------------------------------------------------


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "x86_64"), ("Linux", "aarch64")])
def test_other_machines_are_refused_by_name(system: str, machine: str) -> None:
    with pytest.raises(CannotRunError, match=f"Linux on x86-64, and this is {system} {machine}"):
        run.check_machine(system, machine)


@pytest.mark.parametrize("covered", ["/mnt/clone", "/run/ci", "/var/lib/jenkins/python3"])
def test_what_lies_where_the_guest_has_its_own_directories_is_refused(covered: str) -> None:
    with pytest.raises(CannotRunError, match=f"needs {covered}"):
        run.check_places(Path("/home/me/qwf"), Path(covered))


def test_a_project_whose_path_no_kernel_takes_is_refused() -> None:
    with pytest.raises(CannotRunError, match="cannot name /home/my projects/qwf"):
        run.check_places(Path("/home/my projects/qwf"))


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Write a shell script that is found instead of a program of the machine."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")

    def write(name: str, script: str) -> None:
        (directory / name).write_text(f"#!/bin/sh\n{script}\n")
        (directory / name).chmod(0o755)

    return write


APT = """
lists={lists}
case "$*" in
*update*) touch $lists ;;
*simulate*) [ -e $lists ] || {{ echo "E: Unable to locate package" >&2; exit 100; }}
            echo "Inst rpcbind (1.2.6 Debian:12 [amd64])"; echo "Conf rpcbind (1.2.6)" ;;
*download*) touch "$(echo "$*" | sed 's/.*download //')_1.deb" ;;
esac
"""


def test_packages_are_looked_for_anew_if_the_machine_does_not_know_them(
    tmp_path: Path, programs: Callable[[str, str], None]
) -> None:
    programs("apt-get", APT.format(lists=tmp_path / "lists"))
    programs("dpkg", 'mkdir -p "$3/usr/sbin"; touch "$3/usr/sbin/$(basename "$2")"')
    root = packages.prepare(tmp_path / "cache")
    assert [path.name for path in (root / "usr/sbin").iterdir()] == ["rpcbind_1.deb"]
    programs("apt-get", "exit 1")
    assert packages.prepare(tmp_path / "cache") == root, "nothing is fetched twice"


def test_without_network_the_last_line_of_apt_is_told(
    tmp_path: Path, programs: Callable[[str, str], None]
) -> None:
    programs("apt-get", "echo 'E: Temporary failure resolving deb.debian.org' >&2; exit 100")
    with pytest.raises(CannotRunError, match="packages: E: Temporary failure resolving"):
        packages.prepare(tmp_path / "cache")
    assert not (tmp_path / "cache" / "root").exists(), "half a root is none"


def test_without_apt_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotRunError, match="apt-get is missing"):
        packages.prepare(tmp_path / "cache")


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """Call the whole program with a shell script as kernel; return its exit code."""
    cache = tmp_path / "cache"
    programs = cache / "root" / "usr" / "bin"
    programs.mkdir(parents=True)
    monkeypatch.setattr(run, "CACHE", cache)
    monkeypatch.setattr(run, "check_machine", lambda system, machine: None)
    monkeypatch.setattr(run, "check_places", lambda *paths: None)
    for name in ("mkfs.ext4", "linux.uml"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)

    def call(script: str) -> int:
        (programs / "linux.uml").write_text(f"#!/bin/sh\n{script}\n")
        return run.main()

    return call


def test_a_kernel_that_cannot_start_is_no_failure(
    guest: Callable[[str], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert guest("echo 'check_ptrace : ptrace failed, Operation not permitted'; exit 1") == 77
    told = capsys.readouterr().out
    assert told.startswith("NFS tests not run: User-Mode-Linux does not start on this machine: ")
    assert told.endswith("ptrace failed, Operation not permitted\n")
    assert told.count("\n") == 1


def test_a_guest_that_ends_without_a_result_is_a_failure(
    guest: Callable[[str], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert guest("echo ModuleNotFoundError; echo 'reboot: System halted'") == 1
    assert "FAILED: the guest ended without a result" in capsys.readouterr().out


def test_a_guest_that_hangs_is_ended_with_its_children(
    guest: Callable[[str], int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "SECONDS", 1)
    child = tmp_path / "child"
    assert guest(f"sleep 1000 & echo $! > {child}; wait") == 1
    assert "FAILED: the guest did not end within 1 s" in capsys.readouterr().out
    with contextlib.suppress(ProcessLookupError):  # it has ended, and nobody remembers it
        ending = os.pidfd_open(int(child.read_text()))
        ended, _, _ = select.select([ending], [], [], 60)
        os.close(ending)
        assert ended


# --- modules of the guest's kernel --------------------------------------------------------------


def test_modules_are_loaded_after_those_they_need_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "modules.dep").write_text(
        "fs/nfsd.ko: fs/lockd.ko net/sunrpc.ko\nfs/lockd.ko: net/sunrpc.ko\nnet/sunrpc.ko:\n"
        "net/br-netfilter.ko:\n"
    )
    loaded: list[str] = []
    monkeypatch.setattr(kernel, "_insert", lambda path: loaded.append(path.name))
    kernel.load_modules(tmp_path, ["nfsd", "lockd", "br_netfilter", "built_in"])
    assert sorted(loaded) == ["br-netfilter.ko", "lockd.ko", "nfsd.ko", "sunrpc.ko"]
    assert loaded.index("sunrpc.ko") < loaded.index("lockd.ko") < loaded.index("nfsd.ko")


# --- what counts as wrong -----------------------------------------------------------------------


def found_on_one_mount(*, losing: bool) -> dict[str, Any]:
    return {
        "race": {
            "files": ["0", "1"],
            "claimed": ["0"] if losing else ["0", "1"],
            "denied": ["1"] if losing else [],
            "moved": ["0", "1"],
        },
        "lost replies": 2 if losing else 0,
        "seconds": 1.0,
        "visibility": dict.fromkeys(QUESTIONS, TIMES),
        "drain": {
            "ids": [["x", "y", "z"], ["x", "y", "z"]],
            "trained": [[0, 10], [1, 20], [2, 20], [2, 10]],
            "killed": [20],
            "exit codes": [0],
            "books": {
                "stat": {"done": 3},
                "done": [[0, 0, 10], [1, 1, 20], [2, 2, 10]],
                "findings": [],
            },
            "disk": {"waiting": [], "running": [], "done": ["a", "b", "c"], "odd": []},
        },
        "sleeper": {
            "refused": ["LeaseLostError", "LeaseLostError"],
            "results": ["of the other", "of the other"],
            "stat": {"done": 2},
            "findings": [],
        },
        "tracking": {
            "writers": ["A0", "B0"],
            "taggers": ["A0"],
            "each": 2,
            "steps": 4,
            "exit codes": [0],
            "tags": {"A0-0": "0", "A0-1": "1"},
            "runs": {name: ["FINISHED", 0.25, 4, [name]] for name in ("A0", "B0")},
            "findings": [],
        },
        "watched": ["RUNNING", "LOST"],
    }


@pytest.fixture
def found() -> dict[str, Any]:
    return {
        "kernel": "6.1",
        "clients": ["node-A", "node-B"],
        "mounts": {
            name: [f"{kind} rw,{version},hard"] * 2
            for name, (kind, version) in summary.EXPECTED.items()
        },
        "scenarios": {
            name: found_on_one_mount(losing=name == "v3-losing") for name in summary.EXPECTED
        },
    }


def test_a_sound_result_has_no_failures_and_a_table(found: dict[str, Any]) -> None:
    assert summary.failures(found) == []
    (row,) = (line for line in summary.tables(found).splitlines() if line.startswith("v4.2"))
    assert row.split() == ["v4.2", "3", "3", "0", "1", "1", "2", "0", "of", "2", "1.0"]


WRONG: dict[str, tuple[str, Any, str]] = {
    "it is a plain directory": ("mounts/v3", ["ext4 rw"] * 2, "not mounted by nfs vers=3"),
    "one node has mounted it": ("mounts/v3", ["nfs rw,vers=3"], "not mounted by nfs vers=3"),
    "it is another version": ("mounts/v4.2", ["nfs4 vers=4.0"] * 2, "not mounted by nfs4 vers=4.2"),
    "the nodes are one client": ("clients", ["node-A"], "must have two clients"),
    "nothing was done": ("scenarios", {}, "v3: nothing was tested"),
    "a file went to two": ("v3/race/claimed", ["0", "1", "1"], "to no worker or to several"),
    "the proxy loses nothing": ("v3-losing/lost replies", 0, "no test of that"),
    "a time seen late": ("v3/visibility/time, opened", TIMES - 1, f"{TIMES - 1} of {TIMES} times"),
    "ids differ": ("v3/drain/ids", [["x", "y", "z"], ["x", "z", "y"]], "different ids"),
    "a task is missing": ("v3/drain/books/done", [[0, 0, 10], [1, 1, 20]], "2 tasks done of 3"),
    "a task is there twice": (
        "v3/drain/books/done",
        [[0, 0, 10], [1, 1, 20], [1, 1, 20]],
        "or one twice",
    ),
    "results are mixed up": (
        "v3/drain/books/done",
        [[0, 0, 10], [1, 2, 20], [2, 1, 10]],
        "the result of another",
    ),
    "a task is left behind": (
        "v3/drain/disk",
        {"running": ["c"], "done": ["a", "b"]},
        "2 done, and {'running': 1}",
    ),
    "a result is left over": (
        "v3/drain/disk",
        {"done": ["a", "b", "c"], "odd": ["x"]},
        "3 done, and {'odd': 1}",
    ),
    "the books count wrong": ("v3/drain/books/stat", {"done": 2, "running": 1}, "books end with"),
    "the pool is unsound": ("v3/drain/books/findings", ["x"], "check of the pool finds"),
    "a worker crashed": ("v3/drain/exit codes", [1], "ended with [1]"),
    "a task was trained twice by the living": (
        "v3/drain/trained",
        [[0, 10], [0, 10], [1, 20], [2, 20], [2, 10]],
        "in vain by workers that were not killed: {10}",
    ),
    "a result from nowhere": ("v3/drain/trained", [[1, 20], [2, 20], [2, 10]], "that never were"),
    "nobody was killed": ("v3/drain/killed", [], "0 workers were killed"),
    "the dead held nothing": (
        "v3/drain/trained",
        [[0, 10], [1, 20], [2, 10]],
        "1 workers were killed, [] taken over",
    ),
    "the sleeper committed": ("v3/sleeper/refused", ["LeaseLostError"], "after its lease was told"),
    "the sleeper did harm": (
        "v3/sleeper/results",
        ["of the other", "of the sleeper"],
        "the pool has",
    ),
    "a tag is lost": ("v3/tracking/tags", {"A0-0": "0"}, "of 2 tags that were set at once 1"),
    "a run is half": ("v3/tracking/runs", {}, "runs that were logged at once"),
    "the store is unsound": ("v3/tracking/findings", ["x"], "check of the store finds"),
    "a living run is shown as dead": ("v3/watched", ["LOST", "LOST"], "was shown as"),
}


@pytest.mark.parametrize(("place", "value", "sentence"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_told(
    found: dict[str, Any], place: str, value: Any, sentence: str
) -> None:
    *way, last = place.split("/")
    at = found["scenarios"] if way and way[0] in summary.EXPECTED else found
    for key in way:
        at = at[key]
    at[last] = copy.deepcopy(value)
    assert [told for told in summary.failures(found) if sentence in told]
