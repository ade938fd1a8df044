"""``qwf doctor`` finds what a directory cannot do, says what follows, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Children, FaultyOs

import qwf
from qwf.cli import main
from qwf.errors import NoDirectoryError
from qwf.storage.probe import clocks, contests, meeting, sightings
from qwf.storage.probe.examine import examine
from qwf.storage.probe.files import PREFIX
from qwf.storage.probe.findings import Finding, Grade, Level, Report
from qwf.storage.probe.mounts import Mount, judge_mount, parse_mounts

EXT4 = r"1 0 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"
BOTH = "A store may live here. A task pool may live here."


@pytest.fixture(autouse=True)
def on_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the tests run on is a disk with enough space, and keeps what is saved."""
    (disk,) = parse_mounts(EXT4)
    monkeypatch.setattr("qwf.storage.probe.examine.find_mount", lambda _: disk)
    monkeypatch.setattr("qwf.storage.probe.clocks._FREE_SYNC_SECONDS", 0.0)
    monkeypatch.setattr("qwf.storage.probe.entries._FEW_BYTES", 0)
    monkeypatch.setattr("qwf.storage.probe.entries._FEW_FILES", 0)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory with somebody's file; in the end there is nothing else."""
    path = tmp_path / "share"
    path.mkdir(mode=0o755)
    (path / "mine").write_text("untouched")
    yield path
    assert [entry.name for entry in path.iterdir()] == ["mine"]
    assert (path / "mine").read_text() == "untouched"


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``faulty(rename=...)`` replaces calls of the system, in all processes that are forked."""

    def replace(**faults: Callable[..., Any]) -> None:
        monkeypatch.setattr("qwf.storage.fsio.os", FaultyOs(**faults))

    return replace


def named(report: Report, name: str) -> Finding:
    (found,) = [one for one in report.findings if one.name == name]
    return found


def levels(report: Report) -> tuple[str, str]:
    return report.level("store").name, report.level("pool").name


def raising(error: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(error, os.strerror(error))

    return fail


# --- what is right ---------------------------------------------------------------------------


def test_a_store_and_a_pool_may_live_on_a_disk(place: Path) -> None:
    report = examine(place)
    assert report.verdict == BOTH
    assert report.may_live_here
    assert [one for one in report.findings if one.grade is not Grade.OK] == []


def test_the_command_prints_a_line_for_each_probe_and_a_verdict(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(place)]) == 0
    *lines, empty, verdict = capsys.readouterr().out.splitlines()
    assert (empty, verdict) == ("", BOTH)
    assert all(line.split()[0] == "ok" for line in lines)
    said = "\n".join(lines)
    for name in ("hard link", "rename", "claims", "locks", "fsync", "clock", "visibility", "names"):
        assert f"ok  {name} " in said


def test_json_holds_facts_of_each_probe(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(place), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["path"], document["verdict"]) == (str(place), BOTH)
    assert (document["store"], document["pool"]) == ("fine", "fine")
    facts = {one["probe"]: one["facts"] for one in document["probes"]}
    assert sum(facts["claims"]["won"].values()) == facts["claims"]["names"] > 100
    assert facts["locks"] | {"handover_seconds": None} == {
        "excluded": True,
        "expected": 45,
        "counted": 45,
        "handover_seconds": None,
    }
    assert facts["names"] == {"longest_name_bytes": 255, "unicode": True, "case_sensitive": True}


# --- faulty filesystems ----------------------------------------------------------------------


def copied(source: Path, target: Path) -> None:
    if os.path.isdir(source):
        os.rename(source, target)
    else:
        shutil.copyfile(source, target)


@pytest.mark.parametrize("rename", [lambda *_: None, copied], ids=["does nothing", "copies"])
def test_a_rename_that_does_not_move_allows_neither(
    place: Path, faulty: Callable[..., None], rename: Callable[..., None]
) -> None:
    faulty(rename=rename, replace=rename)
    report = examine(place)
    assert named(report, "rename").grade is Grade.WRONG
    assert levels(report) == ("FORBIDDEN", "FORBIDDEN")
    assert report.verdict.startswith("Neither a store nor a task pool may live here: a rename does")
    assert not report.may_live_here


def test_where_rename_copies_one_name_is_claimed_by_several(
    place: Path, faulty: Callable[..., None]
) -> None:
    faulty(rename=copied)
    found = named(examine(place), "claims")
    assert (found.grade, found.pool) == (Grade.WRONG, Level.FORBIDDEN)
    assert found.facts["won_twice"] == found.facts["names"]


def test_a_rename_that_happened_and_reports_an_error_is_borne(
    place: Path, faulty: Callable[..., None]
) -> None:
    calls = itertools.count(1)

    def rename(source: Path, target: Path) -> None:
        os.rename(source, target)
        if next(calls) % 5 == 0 and not os.path.isdir(target):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    faulty(rename=rename, replace=rename)
    report = examine(place)
    claims = named(report, "claims")
    assert claims.grade is Grade.SLOW
    assert claims.facts["answers_lost"] in range(1, 31)  # every fifth call of each process
    assert (claims.facts["won_twice"], claims.facts["lost"]) == (0, 0)
    assert report.may_live_here


def test_without_hard_links_neither_may_live_there(
    place: Path, faulty: Callable[..., None]
) -> None:
    faulty(link=raising(errno.EPERM))
    report = examine(place)
    assert named(report, "hard link").grade is Grade.MISSING
    assert levels(report) == ("FORBIDDEN", "FORBIDDEN")
    assert "qwf publishes files by hard links" in report.verdict


def test_a_link_that_copies_is_no_link(place: Path, faulty: Callable[..., None]) -> None:
    def link(source: Path, target: Path) -> None:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        shutil.copyfile(source, target)

    faulty(link=link)
    found = named(examine(place), "hard link")
    assert (found.grade, found.store, found.pool) == (
        Grade.WRONG,
        Level.FORBIDDEN,
        Level.FORBIDDEN,
    )


def test_a_link_that_replaces_lets_several_publish_one_name(
    place: Path, faulty: Callable[..., None]
) -> None:
    def link(source: Path, target: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target)
        with contextlib.suppress(FileExistsError):
            os.link(source, target)

    faulty(link=link)
    report = examine(place)
    assert named(report, "hard link").grade is Grade.WRONG
    assert named(report, "published once").grade is Grade.WRONG
    assert "two processes can publish one name" in report.verdict


def test_an_exclusive_create_that_excludes_nobody_is_found(
    place: Path, faulty: Callable[..., None]
) -> None:
    def opened(path: Path, flags: int, mode: int = 0o777) -> int:
        return os.open(path, flags & ~os.O_EXCL, mode)

    faulty(open=opened)
    report = examine(place)
    assert named(report, "exclusive create").grade is Grade.WRONG
    assert named(report, "created once").grade is Grade.WRONG
    assert levels(report) == ("RESTRICTED", "FORBIDDEN")
    assert report.verdict.startswith(
        "A store may live here, but creating a file excludes nobody (O_EXCL), so only one process "
        "at a time may write. A task pool may not live here: creating"
    )


@pytest.mark.parametrize("error", [errno.EIO, errno.EINVAL])
def test_where_fsync_fails_neither_may_live_there(
    place: Path, faulty: Callable[..., None], error: int
) -> None:
    faulty(fsync=raising(error))
    report = examine(place)
    assert named(report, "fsync").grade is Grade.MISSING
    assert levels(report) == ("FORBIDDEN", "FORBIDDEN")
    assert os.strerror(error) in named(report, "fsync").sentence


@pytest.mark.parametrize(
    ("error", "grade", "expected"),
    [
        (errno.EINVAL, Grade.MISSING, ("TOLD", "TOLD")),
        (errno.EIO, Grade.WRONG, ("FORBIDDEN", "FORBIDDEN")),
    ],
)
def test_a_directory_that_cannot_be_synced_is_borne_unless_the_disk_fails(
    place: Path,
    faulty: Callable[..., None],
    error: int,
    grade: Grade,
    expected: tuple[str, str],
) -> None:
    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(error, os.strerror(error))
        os.fsync(descriptor)

    faulty(fsync=fsync)
    report = examine(place)
    assert named(report, "fsync of directories").grade is grade
    assert levels(report) == expected
    assert report.may_live_here is (error == errno.EINVAL)


def test_an_fsync_that_costs_nothing_is_not_believed(
    place: Path, faulty: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clocks, "_FREE_SYNC_SECONDS", 3600.0)
    report = examine(place)
    assert "either this is memory, or the mount promises nothing" in named(report, "fsync").sentence
    assert levels(report) == ("RESTRICTED", "RESTRICTED")
    assert "does not survive the loss of power" in report.verdict


def test_a_lock_that_excludes_nobody_is_found_and_borne(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwf.storage.lock.hold", lambda *_, **__: contextlib.nullcontext())
    report = examine(place)
    assert named(report, "locks").grade is Grade.WRONG
    assert named(report, "locks").facts["excluded"] is False
    assert levels(report) == ("TOLD", "TOLD")
    assert report.may_live_here
    assert "Worth knowing: locks do not keep other processes out, which qwf bears" in report.verdict


def faked_times(clock: Callable[[float], float]) -> Callable[[int], SimpleNamespace]:
    """An `fstat` after which files have other times."""

    def fstat(descriptor: int) -> SimpleNamespace:
        found = os.fstat(descriptor)
        fields = {name: getattr(found, name) for name in dir(found) if name[:3] == "st_"}
        moment = clock(found.st_mtime)
        return SimpleNamespace(**fields | {"st_mtime": moment, "st_mtime_ns": int(moment * 1e9)})

    return fstat


@pytest.mark.parametrize(
    ("clock", "how"),
    [(lambda real: 4e9 - real, "goes backwards"), (lambda _: 1e9, "stands still")],
)
def test_a_clock_that_does_not_run_tells_nothing_of_the_living(
    place: Path,
    faulty: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    clock: Callable[[float], float],
    how: str,
) -> None:
    monkeypatch.setattr(clocks, "_PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(sightings, "_SOON_SECONDS", 0.1)
    faulty(fstat=faked_times(clock))
    report = examine(place)
    assert named(report, "clock").grade is Grade.WRONG
    assert report.level("pool") is Level.FORBIDDEN
    assert f"the clock of files {how}" in report.verdict


# The clock runs a hundred times faster, so that its steps take a hundredth of the time.
@pytest.mark.parametrize(("grain", "store"), [(2.0, "TOLD"), (10.0, "RESTRICTED")])
def test_a_coarse_clock_is_told_and_one_of_more_than_two_seconds_restricts_a_store(
    place: Path, faulty: Callable[..., None], grain: float, store: str
) -> None:
    faulty(fstat=faked_times(lambda real: real * 100 // grain * grain))
    report = examine(place)
    assert named(report, "clock").grade is Grade.SLOW
    assert named(report, "clock").facts["grain_seconds"] == grain
    assert levels(report) == (store, "TOLD")
    assert f"times have a grain of {grain} s" in report.verdict


def test_a_server_whose_clock_is_ten_minutes_ahead_is_harmless(
    place: Path, faulty: Callable[..., None]
) -> None:
    faulty(fstat=faked_times(lambda real: real + 600.0))
    report = examine(place)
    assert report.verdict == BOTH
    assert "differ by 600.0 s, which is harmless" in named(report, "clock").sentence


def test_names_that_are_refused_or_changed_are_told(
    place: Path, faulty: Callable[..., None]
) -> None:
    def opened(path: Path, flags: int, mode: int = 0o777) -> int:
        name = os.path.basename(path)
        if len(name) > 143 or not name.isascii():
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        return os.open(path, flags, mode)

    def mkdir(path: Path, mode: int = 0o777) -> None:
        os.mkdir(str(path).replace("Case", "case"), mode)

    faulty(open=opened, mkdir=mkdir)
    report = examine(place)
    facts = named(report, "names").facts
    assert facts == {"longest_name_bytes": 100, "unicode": False, "case_sensitive": False}
    assert levels(report) == ("RESTRICTED", "TOLD")
    assert report.verdict.startswith("A store may live here, but names of 200 bytes are refused")


@pytest.mark.parametrize(
    ("comes_right", "expected", "words"),
    [
        (True, ("TOLD", "TOLD"), "and only when asked for anew"),
        (
            False,
            ("RESTRICTED", "FORBIDDEN"),
            "changes are seen too late (a new file, in a listing: ",
        ),
    ],
)
def test_a_listing_that_stays_old_is_borne_if_it_can_be_asked_for_anew(
    place: Path,
    faulty: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    comes_right: bool,
    expected: tuple[str, str],
    words: str,
) -> None:
    monkeypatch.setattr("qwf.storage.probe.races._SEEN_SECONDS", 1.1)
    known: dict[str, list[str]] = {}

    def listdir(path: Path) -> list[str]:
        if os.path.basename(path) != "listing":
            return os.listdir(path)
        return known.setdefault(str(path), os.listdir(path))

    def utime(path: Path) -> None:  # NFS forgets what it knows of what it changes itself
        os.utime(path)
        if comes_right:
            known.pop(str(path), None)

    faulty(listdir=listdir, utime=utime)
    report = examine(place)
    for left in place.glob(f"{PREFIX}*"):  # for want of a true listing
        shutil.rmtree(left)
    assert levels(report) == expected
    assert words in report.verdict


def test_a_reader_that_meets_no_file_while_it_is_replaced_is_found(
    place: Path, faulty: Callable[..., None]
) -> None:
    def replace(source: Path, target: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target)
        time.sleep(0.001)
        os.rename(source, target)

    faulty(replace=replace)
    found = named(examine(place), "atomic replace")
    assert (found.grade, found.store) == (Grade.WRONG, Level.FORBIDDEN)


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS])
def test_where_nothing_can_be_written_neither_may_live(
    place: Path, os_fails: Callable[..., Any], error: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with os_fails(OSError(error, os.strerror(error)), "mkdir"):
        assert main(["doctor", str(place)]) == 1
    assert capsys.readouterr().out.endswith(
        "Neither a store nor a task pool may live here: "
        f"nothing can be written ({os.strerror(error)}).\n"
    )


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["mkdir", "open", "write", "fsync", "close"])
def test_a_full_disk_is_the_only_finding(
    place: Path,
    faulty: Callable[..., None],
    call: str,
    error: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*arguments: Any, **more: Any) -> None:
        if call == "close":  # it is closed even so
            os.close(*arguments)
        raise OSError(error, os.strerror(error))

    faulty(**{call: fail})
    assert main(["doctor", str(place), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    (found,) = [one for one in report["probes"] if one["probe"] != "filesystem"]
    assert found["sentence"].startswith("the disk is full; nothing else could be tried")
    assert report["verdict"].count("full") == 1
    assert "O_EXCL" not in report["verdict"]


def test_a_disk_that_is_full_while_it_is_tried_out_is_the_only_finding(
    place: Path, faulty: Callable[..., None]
) -> None:
    def mkdir(path: Path, mode: int = 0o777) -> None:
        if Path(path).name == "4":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.mkdir(path, mode)

    faulty(mkdir=mkdir)
    assert named(examine(place), "space").sentence.startswith("the disk is full")


def test_a_call_that_fails_in_the_middle_is_a_finding(
    place: Path, os_fails: Callable[..., Any]
) -> None:
    with os_fails(OSError(errno.EIO, os.strerror(errno.EIO)), "write"):
        report = examine(place)
    assert levels(report) == ("FORBIDDEN", "FORBIDDEN")
    assert named(report, "rename").sentence.startswith("it could not be tried to the end: Input/")


def test_what_cannot_be_removed_is_told(
    place: Path, os_fails: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwf.storage.probe.examine._REMOVAL_PAUSE_SECONDS", 0.0)
    with os_fails(OSError(errno.EBUSY, os.strerror(errno.EBUSY)), "rmdir"):
        report = examine(place)
    assert named(report, "left behind").grade is Grade.WRONG
    for left in place.glob(f"{PREFIX}*"):
        shutil.rmtree(left)


def test_little_space_is_a_restriction(place: Path, faulty: Callable[..., None]) -> None:
    full = SimpleNamespace(f_bavail=0, f_frsize=4096, f_favail=5, f_files=100)
    faulty(statvfs=lambda _: full)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qwf.storage.probe.entries._FEW_FILES", 10)
        report = examine(place)
    assert levels(report) == ("RESTRICTED", "RESTRICTED")
    assert named(report, "space").facts == {"free_bytes": 0, "free_files": 5}


# --- mounts ----------------------------------------------------------------------------------


def mount(kind: str, options: str = "rw", source: str = "server:/export") -> Mount:
    (found,) = parse_mounts(f"1 0 0:5 / /mnt rw,relatime - {kind} {source} {options}")
    return found


@pytest.mark.parametrize(
    ("kind", "options", "expected", "words"),
    [
        ("ext4", "rw", "FINE", "a disk of this machine"),
        ("ext4", "ro", "FORBIDDEN", "read-only"),
        ("ext4", "rw,barrier=0", "TOLD", "nobarrier"),
        ("tmpfs", "rw", "RESTRICTED", "memory"),
        ("overlay", "rw,lowerdir=/a", "TOLD", "vanishes with the container"),
        ("overlay", "rw,volatile", "RESTRICTED", "forget"),
        ("nfs4", "rw,vers=4.2,hard,local_lock=none", "TOLD", "NFS version 4.2"),
        ("nfs4", "rw,vers=4.2,soft", "RESTRICTED", "mount with hard"),
        ("nfs", "rw,vers=3,hard,nolock", "TOLD", "this host only"),
        ("nfs", "rw,vers=3,hard,local_lock=none", "TOLD", "stays until it is back"),
        ("nfs", "rw,vers=3,hard,nocto", "RESTRICTED", "nocto"),
        ("nfs4", "rw,vers=4.1,hard,noac,lookupcache=none", "TOLD", "noac, lookupcache=none"),
        ("cifs", "rw,soft,nobrl,cache=strict", "TOLD", "this host only"),
        ("9p", "rw,cache=loose", "RESTRICTED", "cache=loose"),
        ("fuse.sshfs", "rw", "TOLD", "--meet"),
        ("fuse.s3fs", "rw", "FORBIDDEN", "object store"),
        ("fuse.rclone", "rw", "FORBIDDEN", "object store"),
    ],
)
def test_kind_and_options_of_a_mount_are_said_in_words(
    kind: str, options: str, expected: str, words: str
) -> None:
    findings = judge_mount(mount(kind, options))
    report = Report(Path("/mnt"), findings)
    assert levels(report) == (expected, expected)
    assert words in " ".join(one.sentence for one in findings)


def test_a_kernel_that_tells_no_mounts_is_no_reason_against_a_directory() -> None:
    assert levels(Report(Path("/mnt"), judge_mount(None))) == ("FINE", "FINE")


def test_of_two_mounts_on_one_point_the_last_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    from qwf.storage.probe import mounts

    text = (
        f"{EXT4}\n2 1 0:9 / /mnt rw - ext4 /dev/b rw\n3 2 0:7 / /mnt rw - nfs4 s:/x rw,vers=4.2\n"
        r"4 1 0:8 / /mnt/with\040blank rw - xfs /dev/c rw" + "\n"
    )
    monkeypatch.setattr("qwf.storage.fsio.read_bytes", lambda _: text.encode())
    for path, kind in (
        ("/mnt/a", "nfs4"),
        ("/mnt", "nfs4"),
        ("/mnt/with blank/x", "xfs"),
        ("/mnta", "ext4"),
    ):
        found = mounts.find_mount(Path(path))
        assert found is not None
        assert found.kind == kind


# --- no directory; interrupts ----------------------------------------------------------------


def test_a_path_that_does_not_exist_is_told_with_the_nearest_that_does(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(place / "a" / "b")]) == 1
    err = capsys.readouterr().err
    assert "expected a directory and found nothing" in err
    assert f"The nearest directory above it is {place};" in err


def test_a_file_is_no_directory(place: Path) -> None:
    with pytest.raises(NoDirectoryError, match="found a file") as refused:
        examine(place / "mine")
    assert refused.value.nearest == place


@pytest.mark.parametrize("step", range(0, 40, 5))
def test_an_interrupt_leaves_nothing_behind(
    place: Path, faulty: Callable[..., None], step: int
) -> None:
    steps, this = itertools.count(), os.getpid()

    def mkdir(path: Path, mode: int = 0o777) -> None:
        os.mkdir(path, mode)
        if os.getpid() == this and next(steps) == step:
            raise KeyboardInterrupt

    faulty(mkdir=mkdir)
    with contextlib.suppress(KeyboardInterrupt):
        examine(place)


def started(*arguments: object) -> subprocess.Popen[str]:
    root = str(Path(qwf.__file__).parent.parent)
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "qwf", "doctor", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_doctor_that_is_told_to_end_while_it_waits_leaves_nothing_behind(
    place: Path, number: int, code: int
) -> None:
    with started(place, "--meet", "--wait", "10m") as doctor:
        while not list(place.glob(f"{PREFIX}*-meet/talk")):
            assert doctor.poll() is None, doctor.communicate()
        doctor.send_signal(number)
        doctor.communicate(timeout=60)
    assert doctor.returncode == code


# --- two nodes -------------------------------------------------------------------------------


def between(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["probe"]: one for one in report["probes"] if "between" in one["probe"]}


def both_meet(children: Children, place: Path, results: Path) -> list[dict[str, Any]]:
    """Let two processes meet, and return what they have found."""
    for name in ("a", "b"):

        def run(name: str = name) -> None:
            report = examine(place, meet_seconds=60.0)
            (results / name).write_text(json.dumps(report.to_json() | {"ok": report.may_live_here}))

        children.add(run)
    assert children.exit_codes() == [0, 0]
    return [json.loads((results / name).read_text()) for name in ("a", "b")]


def test_two_doctors_find_each_other_and_say_the_same(place: Path) -> None:
    with started(place, "--meet", "--json") as one, started(place, "--meet", "--json") as other:
        documents = [json.loads(each.communicate(timeout=60)[0]) for each in (one, other)]
    names = {
        f"{what} between hosts"
        for what in ("claims", "published once", "created once", "locks", "visibility")
    }
    for document in documents:
        found = between(document)
        assert set(found) == names
        assert {one["grade"] for one in found.values()} == {"ok"}
        assert sum(found["claims between hosts"]["facts"]["won"].values()) == 200
        assert found["locks between hosts"]["facts"]["counted"] == 40
        assert "both who met are on one host" in document["verdict"]
        assert "--meet" not in document["verdict"]
    assert (
        between(documents[0])["claims between hosts"]
        == between(documents[1])["claims between hosts"]
    )


def test_locks_that_reach_no_other_host_are_found_by_both(
    children: Children, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwf.storage.lock.hold", lambda *_, **__: contextlib.nullcontext())
    for report in both_meet(children, place, tmp_path):
        assert between(report)["locks between hosts"]["grade"] == "wrong"
        assert "locks do not keep other hosts out, which qwf bears" in report["verdict"]
        assert report["ok"] is True


def test_what_is_claimed_twice_between_hosts_is_found_by_both(
    children: Children, place: Path, tmp_path: Path, faulty: Callable[..., None]
) -> None:
    faulty(rename=copied)
    for report in both_meet(children, place, tmp_path):
        assert between(report)["claims between hosts"]["grade"] == "wrong"
        assert report["pool"] == "forbidden"
        assert report["ok"] is False


def test_when_nobody_comes_the_verdict_says_so(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(place), "--meet", "--wait", "0s"]) == 1
    out = capsys.readouterr().out
    assert "nobody came within 0 s: run the same command on another host" in out
    assert out.endswith(
        "may live here, but nobody came to the meeting, so that only this host is tested.\n"
    )


def test_a_doctor_that_was_killed_is_not_waited_for(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meeting, "_WELCOME_SECONDS", 0.1)
    dead = place / f"{PREFIX}+-1-0-meet"  # its name comes before all others
    (dead / "talk").mkdir(parents=True)
    report = examine(place, meet_seconds=1.0)
    shutil.rmtree(dead)
    assert f"{dead.name} is there, but nobody answers" in named(report, "meeting").sentence


def test_one_who_leaves_ends_the_meeting_of_the_other(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    (mine / "talk").mkdir(parents=True)
    other.mkdir()
    talk = meeting._Talk(mine, other.name, is_host=True)
    with pytest.raises(meeting._PartnerLostError, match="has left"):
        talk.exchange(meanwhile=lambda: shutil.rmtree(other, ignore_errors=True))


# --- judging ---------------------------------------------------------------------------------


def test_a_name_that_nobody_holds_afterwards_is_lost() -> None:
    contest = contests.Contest(
        name="claims",
        won="claimed",
        store=Level.TOLD,
        because="a task can be claimed by two workers",
        scores={"a": {"won": ["x"], "error": ""}, "b": {"won": [], "error": ""}},
        there=["x", "y", "z"],
        left=["y"],
        holders={"x": ["a"]},
    )
    found = contests.judge_contest(contest)
    assert (found.grade, found.facts["lost"], found.pool) == (Grade.WRONG, 1, Level.FORBIDDEN)


@pytest.mark.parametrize(
    ("delays", "grade", "pool"),
    [
        ([0.0, 0.3], Grade.OK, Level.FINE),
        ([0.0, 4.0], Grade.SLOW, Level.TOLD),
        ([0.0, 22.0], Grade.WRONG, Level.FORBIDDEN),
        ([0.0, None], Grade.WRONG, Level.FORBIDDEN),
    ],
)
def test_a_heartbeat_that_is_seen_too_late_forbids_a_pool(
    delays: list[float | None], grade: Grade, pool: Level
) -> None:
    seen: dict[str, list[float | None]] = {name: [0.0] for name in sightings.SIGHTS}
    found = sightings.judge_sights(seen | {"heartbeat": delays}, who="b", limit=25.0)
    assert (found.grade, found.pool) == (grade, pool)


@pytest.mark.parametrize("name", ["heartbeat_stat", "looked_up"])
def test_what_qwf_does_not_rely_on_may_be_seen_late(name: str) -> None:
    seen: dict[str, list[float | None]] = {one: [0.0] for one in sightings.SIGHTS}
    found = sightings.judge_sights(seen | {name: [None]}, who="b", limit=25.0)
    assert (found.grade, found.store, found.pool) == (Grade.OK, Level.FINE, Level.FINE)
    assert "not within" in found.sentence
