"""Files and directories change whole or not at all, and errors say what happened."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from qwf.errors import WriteError, WriteRefusedError
from qwf.storage import fsio, trees
from qwf.testing.faults import Fault, LateNames, faulty


class FailingOs:
    """The module `os`, but one call fails with an errno (always, or the first `times`)."""

    def __init__(self, name: str, number: int, times: int = 10**9, *, after: bool = False) -> None:
        self.name, self.number, self.times, self.after = name, number, times, after

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name != self.name:
            return real

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.times <= 0:
                return real(*args, **kwargs)
            self.times -= 1
            if self.after:
                real(*args, **kwargs)
            raise OSError(self.number, os.strerror(self.number))

        return call


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    fsio.write_atomic(path, b"one")
    fsio.write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_content_and_no_debris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "a"
    fsio.write_atomic(path, b"one")
    monkeypatch.setattr(fsio, "os", FailingOs(call, errno.ENOSPC))
    with pytest.raises(WriteError, match=r"cannot write .*/a: No space left") as caught:
        fsio.write_atomic(path, b"two")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"one"
    assert names(tmp_path) == ["a"]


def test_a_read_only_directory_is_a_permission_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsio, "os", FailingOs("open", errno.EROFS))
    with pytest.raises(WriteRefusedError, match="can be read") as caught:
        fsio.write_atomic(tmp_path / "a", b"x")
    assert isinstance(caught.value, PermissionError)


def test_a_missing_directory_is_not_created_by_a_write(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fsio.write_atomic(tmp_path / "no" / "a", b"x")


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class ShortOs:
        def __getattr__(self, name: str) -> Any:
            if name == "write":
                return lambda descriptor, data: os.write(descriptor, bytes(data)[:3])
            return getattr(os, name)

    monkeypatch.setattr(fsio, "os", ShortOs())
    fsio.write_atomic(tmp_path / "a", b"0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"


def test_the_mode_of_a_file_follows_the_umask_and_the_group_the_directory(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        fsio.write_atomic(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_the_group_of_a_setgid_directory_is_inherited(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root may give a directory to another group")
    os.chown(tmp_path, -1, 12345)
    os.chmod(tmp_path, 0o2775)
    trees.publish_directory(tmp_path / "d", {"f": b"x"})
    fsio.write_atomic(tmp_path / "d" / "g", b"x")
    assert (tmp_path / "d" / "f").stat().st_gid == 12345
    assert (tmp_path / "d" / "g").stat().st_gid == 12345


def test_an_exclusive_name_is_given_once(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert fsio.create_exclusive(fsio.write_temporary(path, b"one"), path)
    for private in tmp_path.glob(".tmp-*"):
        private.unlink()
    second = fsio.write_temporary(path, b"two")
    assert not fsio.create_exclusive(second, path)
    assert path.read_bytes() == b"one"
    assert second.read_bytes() == b"two", "kept for another try"
    second.unlink()
    assert not fsio.create_whole(path, b"three")
    assert names(tmp_path) == ["a"]


def test_a_replacement_that_happened_counts_although_the_replaced_file_is_still_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a client of NFS 3 shows after a lost reply, until the file is opened."""
    path = tmp_path / "a"
    path.write_bytes(b"old")
    replaced = os.lstat(path)
    opened = False

    class Showing:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def replace(self, source: Path, target: Path) -> None:
            os.replace(source, target)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

        def open(self, name: Path, *arguments: int) -> int:
            nonlocal opened
            opened |= name == path
            return os.open(name, *arguments)

        def lstat(self, name: Path) -> os.stat_result:
            return replaced if name == path and not opened else os.lstat(name)

    monkeypatch.setattr(fsio, "os", Showing())
    fsio.write_atomic(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_link_that_happened_although_the_server_reports_eexist_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    temporary = fsio.write_temporary(path, b"one")
    monkeypatch.setattr(fsio, "os", FailingOs("link", errno.EEXIST, after=True))
    assert fsio.create_exclusive(temporary, path)


def test_a_replacement_that_happened_although_the_server_reports_enoent_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What NFS 3 answers to a rename when its first answer was lost."""
    monkeypatch.setattr(fsio, "os", FailingOs("replace", errno.ENOENT, after=True))
    fsio.write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


def test_a_replacement_that_did_not_happen_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(fsio, "os", FailingOs("replace", errno.ENOENT))
    with pytest.raises(FileNotFoundError):
        fsio.write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_directory_that_was_published_although_the_server_reports_enoent_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsio, "os", FailingOs("rename", errno.ENOENT, after=True))
    assert trees.publish_directory(tmp_path / "d", {"f": b"1"})
    assert (tmp_path / "d" / "f").read_bytes() == b"1"
    assert names(tmp_path) == ["d"]


def test_a_listing_is_asked_of_the_server_after_the_directory_was_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client of NFS 3 keeps a listing until it sees another time of the directory."""

    class Keeping:
        kept: ClassVar = ["old"]

        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def utime(self, path: Path) -> None:
            os.utime(path)
            self.kept = os.listdir(path)

        def listdir(self, path: Path) -> list[str]:
            return self.kept

    (tmp_path / "new").touch()
    monkeypatch.setattr(fsio, "os", Keeping())
    assert fsio.list_fresh(tmp_path) == ["new"]
    tmp_path.chmod(0o500)
    assert fsio.list_fresh(tmp_path) == ["new"], "also where only reading is allowed"


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_names_that_were_given_although_the_server_reports_an_error_count(
    code: int, tmp_path: Path
) -> None:
    path = tmp_path / "a"
    rules = [Fault(kind, error=code, after=True) for kind in ("rename", "link")]
    with faulty(*rules, LateNames()):
        assert not fsio.exists(path)
        fsio.write_atomic(path, b"one")
        fsio.write_atomic(path, b"two")
        assert trees.publish_directory(tmp_path / "d", {"f": b"1"})
        assert not fsio.exists(tmp_path / "b")
        fsio.move(path, tmp_path / "b")
        assert fsio.make_private(tmp_path / "b").read_bytes() == b"two"
        assert fsio.create_whole(tmp_path / "c", b"three")
    assert [name for name in names(tmp_path) if name[0] != "."] == ["c", "d"]


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EIO])
def test_names_that_were_not_given_are_not_believed_to_be(code: int, tmp_path: Path) -> None:
    path = tmp_path / "a"
    fsio.write_atomic(path, b"one")
    with faulty(Fault("rename", error=code), Fault("link", error=code)):
        with pytest.raises(OSError, match="a"):
            fsio.write_atomic(path, b"two")
        with pytest.raises(OSError, match="d"):
            trees.publish_directory(tmp_path / "d", {"f": b"1"})
        with pytest.raises(OSError, match="b"):
            fsio.create_whole(tmp_path / "b", b"three")
        with pytest.raises(OSError, match="a"):
            fsio.move(path, tmp_path / "b")
    assert path.read_bytes() == b"one"
    assert names(tmp_path) == ["a"]


def test_a_directory_is_published_with_its_files_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trees.publish_directory(tmp_path / "d", {"f": b"1"})
    assert not trees.publish_directory(tmp_path / "d", {"f": b"2"})
    assert (tmp_path / "d" / "f").read_bytes() == b"1"
    monkeypatch.setattr(fsio, "os", FailingOs("fsync", errno.ENOSPC))
    with pytest.raises(WriteError):
        trees.publish_directory(tmp_path / "e", {"f": b"1"})
    assert names(tmp_path) == ["d"]


def test_reading_survives_a_stale_handle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x")
    monkeypatch.setattr(fsio, "os", FailingOs("open", errno.ESTALE, times=2))
    assert fsio.read_bytes(path) == b"x"


@pytest.mark.parametrize("read", [fsio.read_bytes, fsio.modified_at])
def test_a_file_that_stays_stale_until_its_directory_is_opened_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object]
) -> None:
    """What a client of NFS 4 does when another node has replaced the file a moment ago."""
    path = tmp_path / "a"
    path.write_bytes(b"x")
    expected = read(path)
    looked_up_again = False

    class Promised:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def open(self, opened: Path, flags: int) -> int:
            nonlocal looked_up_again
            looked_up_again |= opened == tmp_path
            return os.open(opened, flags)

        def fstat(self, descriptor: int) -> os.stat_result:
            if not looked_up_again:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return os.fstat(descriptor)

    monkeypatch.setattr(fsio, "os", Promised())
    assert read(path) == expected


def test_a_filesystem_without_fsync_of_directories_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsio, "os", FailingOs("fsync", errno.EINVAL))
    fsio.fsync_directory(tmp_path)


def test_moving_never_replaces(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    with pytest.raises(WriteError):
        fsio.move(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"b"


def test_removing_a_tree_does_not_follow_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"x")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "link").symlink_to(outside)
    trees.remove_tree(tree)
    assert names(outside) == ["precious"]
    assert not tree.exists()


def test_a_file_that_grows_while_it_is_read_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 10)
    real = os.fstat

    class Growing:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def fstat(self, descriptor: int) -> os.stat_result:
            result = real(descriptor)
            with path.open("ab") as file:
                file.write(b"y" * 5)
            return result

    saved = vars(fsio)["os"]
    vars(fsio)["os"] = Growing()
    try:
        assert fsio.read_bytes(path) == b"x" * 10 + b"y" * 5
    finally:
        vars(fsio)["os"] = saved
