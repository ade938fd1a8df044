"""The lying filesystem lies as it is told to, and no more."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from qwf.errors import NotDurableError, WriteError
from qwf.storage import fsio
from qwf.testing.faults import Fault, LateNames, LyingOs, StaleListing, clock_off_by, faulty


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "old"
    path.write_bytes(b"content")
    return path


# --- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["rename", "replace", "link"])
@pytest.mark.parametrize(
    "code", [errno.ENOENT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EEXIST]
)
def test_a_name_may_be_given_although_an_error_says_no(call: str, code: int, old: Path) -> None:
    new = old.with_name("new")
    rules = [Fault(kind, "*/new", error=code, after=True) for kind in ("rename", "link")]
    lying = LyingOs(*rules)
    with pytest.raises(OSError, match="new") as told:
        getattr(lying, call)(old, new)
    assert told.value.errno == code
    assert new.read_bytes() == b"content"
    assert old.exists() == (call == "link")


def test_an_error_instead_of_a_call_leaves_everything_as_it_was(old: Path) -> None:
    lying = LyingOs(Fault("rename", error=errno.EIO), Fault("unlink", error=errno.ETIMEDOUT))
    with pytest.raises(OSError, match="old"):
        lying.rename(old, old.with_name("new"))
    with pytest.raises(TimeoutError):
        lying.unlink(old)
    assert os.listdir(old.parent) == ["old"]
    assert [one.call for one in lying.injected] == ["rename", "unlink"]


def test_an_error_raises_the_class_that_the_system_would_raise(old: Path) -> None:
    for code, kind in ((errno.ENOENT, FileNotFoundError), (errno.EEXIST, FileExistsError)):
        with pytest.raises(kind) as told:
            LyingOs(Fault("link", error=code)).link(old, old.with_name("new"))
        assert (told.value.filename, told.value.filename2) == (str(old), str(old.parent / "new"))


def test_what_is_removed_may_be_told_to_be_there(old: Path) -> None:
    with pytest.raises(OSError, match="old"):
        LyingOs(Fault("unlink", error=errno.EIO, after=True)).unlink(old)
    assert not old.exists()


def test_a_full_disk_takes_half_of_what_is_written(tmp_path: Path) -> None:
    lying = LyingOs(Fault("write", error=errno.ENOSPC))
    descriptor = lying.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    with pytest.raises(OSError, match="No space"):
        lying.write(descriptor, b"12345678")
    lying.close(descriptor)
    assert (tmp_path / "file").read_bytes() == b"1234"


def test_a_full_disk_leaves_nothing_of_a_file_that_storage_writes(tmp_path: Path) -> None:
    with faulty(Fault("write", error=errno.ENOSPC)), pytest.raises(WriteError, match="No space"):
        fsio.write_atomic(tmp_path / "file", b"12345678")
    assert os.listdir(tmp_path) == []


def test_only_the_paths_that_match_are_concerned(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with faulty(Fault("fsync", "*/a", error=errno.EIO)) as injected:
        fsio.write_atomic(tmp_path / "b" / "file", b"x")
        with pytest.raises(NotDurableError):  # the directory: the file itself was synced
            fsio.write_atomic(tmp_path / "a" / "file", b"x")
    assert [one.paths for one in injected] == [(str(tmp_path / "a"),)]
    with faulty(Fault("fsync", "*/a/*", error=errno.EIO)), pytest.raises(WriteError):
        fsio.write_atomic(tmp_path / "a" / "other", b"x")
    assert os.listdir(tmp_path / "a") == ["file"]


def test_a_file_may_vanish_while_it_is_read(old: Path) -> None:
    with faulty(Fault("open", error=errno.ESTALE, count=2), Fault("read", error=errno.ESTALE)):
        with pytest.raises(OSError, match="old") as told:
            fsio.read_bytes(old)
        assert told.value.errno == errno.ESTALE
    with faulty(Fault("read", error=errno.ESTALE, count=2)):
        assert fsio.read_bytes(old) == b"content"


def test_a_rule_lets_some_calls_pass_and_ends_after_some(old: Path) -> None:
    lying = LyingOs(Fault("stat", error=errno.EIO, skip=2, count=1))
    lying.stat(old)
    assert lying.path.lexists(old)
    assert not lying.path.exists(old)
    lying.lstat(old)
    assert [one.call for one in lying.injected] == ["stat"]


def test_chance_is_the_same_at_every_run_of_one_seed(old: Path) -> None:
    def failures(seed: int) -> list[bool]:
        lying = LyingOs(Fault("stat", error=errno.EIO, chance=0.1), seed=seed)
        return [not lying.path.exists(old) for _ in range(1000)]

    assert failures(1) == failures(1) != failures(2)
    assert 50 < sum(failures(1)) < 200  # 100 of 1000, give or take five deviations


def test_a_call_may_come_late(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    LyingOs(Fault("rename", delay_seconds=0.5)).rename(old, old.with_name("new"))
    assert slept == [0.5]
    assert old.with_name("new").exists()


def test_an_opened_file_is_closed_when_its_opening_is_denied(old: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    lying = LyingOs(Fault("open", error=errno.EIO, after=True))
    with pytest.raises(OSError, match="old"):
        lying.open(old, os.O_RDONLY)
    assert len(os.listdir("/dev/fd")) == before


# --- listings --------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["listdir", "scandir"])
def test_a_listing_may_be_some_calls_old(call: str, old: Path) -> None:
    lying = LyingOs(StaleListing(calls=2))

    def names() -> list[str]:
        return sorted(str(getattr(entry, "name", entry)) for entry in getattr(lying, call)(folder))

    folder = old.parent
    assert names() == ["old"]
    old.with_name("new").touch()  # by another client
    assert [names(), names(), names()] == [["old"], ["old"], ["new", "old"]]
    assert [one.call for one in lying.injected] == [call, call]


def test_a_listing_may_be_some_seconds_old(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    lying = LyingOs(StaleListing(seconds=3))
    assert lying.listdir(old.parent) == ["old"]
    old.unlink()
    now[0] += 2.9
    assert lying.listdir(old.parent) == ["old"]
    now[0] += 0.2
    assert lying.listdir(old.parent) == []


def test_a_client_sees_what_it_did_itself_but_not_what_it_was_told_has_failed(old: Path) -> None:
    folder = old.parent
    lying = LyingOs(StaleListing(calls=9), Fault("rename", error=errno.EIO, after=True, skip=1))
    assert lying.listdir(folder) == ["old"]
    lying.rename(old, folder / "new")
    assert lying.listdir(folder) == ["new"]
    with pytest.raises(OSError, match="newer"):
        lying.rename(folder / "new", folder / "newer")
    assert lying.listdir(folder) == ["new"]


def test_a_client_sees_a_directory_as_it_is_after_it_has_set_its_time(old: Path) -> None:
    lying = LyingOs(StaleListing(calls=9))
    assert lying.listdir(old.parent) == ["old"]
    old.unlink()
    assert lying.listdir(old.parent) == ["old"]
    lying.utime(old.parent)
    assert lying.listdir(old.parent) == []


def test_scandir_can_be_used_as_a_block(old: Path) -> None:
    with LyingOs().scandir(old.parent) as entries:
        assert [entry.stat().st_size for entry in entries] == [7]


# --- names -----------------------------------------------------------------------------------


@pytest.fixture
def late(tmp_path: Path) -> tuple[LyingOs, Path]:
    """A client that has looked for a file before another one has made it."""
    lying, path = LyingOs(LateNames()), tmp_path / "file"
    assert not lying.path.exists(path)
    path.write_bytes(b"content")
    return lying, path


def test_a_name_that_was_looked_up_too_early_stays_missing(late: tuple[LyingOs, Path]) -> None:
    lying, path = late
    assert not lying.path.lexists(path)
    for call in (
        lambda: lying.stat(path),
        lambda: lying.open(path, os.O_RDONLY),
        lambda: lying.rename(path, path.with_name("other")),
    ):
        with pytest.raises(FileNotFoundError):
            call()
    assert path.read_bytes() == b"content"


def test_listing_the_directory_shows_the_name(late: tuple[LyingOs, Path]) -> None:
    lying, path = late
    assert lying.listdir(path.parent) == ["file"]
    assert lying.path.lexists(path)


def test_opening_the_directory_shows_the_name(late: tuple[LyingOs, Path]) -> None:
    lying, path = late
    os.close(lying.open(path.parent, os.O_RDONLY))
    lying.rename(path, path.with_name("other"))
    assert path.with_name("other").read_bytes() == b"content"


def test_a_client_knows_the_names_that_it_gives(late: tuple[LyingOs, Path], old: Path) -> None:
    lying, path = late
    lying.replace(old, path)
    assert lying.stat(path).st_size == 7


# --- where it is put -------------------------------------------------------------------------


def test_storage_is_lied_to_only_inside_the_block(old: Path) -> None:
    with faulty(Fault("utime", error=errno.EPERM)) as injected:
        with pytest.raises(PermissionError):
            fsio.renew_time(old)
        assert len(injected) == 1
    fsio.renew_time(old)
    assert fsio.system() is os


def test_the_clock_of_the_process_is_wrong_and_that_of_the_server_right(tmp_path: Path) -> None:
    before = time.time()
    with clock_off_by(600):
        assert time.time() >= before + 600
        assert time.time_ns() >= (before + 600) * 1e9
        assert abs(fsio.server_time(tmp_path / "probe") - before) < 300
    assert time.time() < before + 300
