"""A kernel mount that lies: what programs see, and what storage makes of it.

Two mounts of one directory are two nodes. Where no such mount can be made, the tests are skipped
and say why; `test_faults.py` has the same lies without a kernel between.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faultfs import Node, Rule, mounted, reason_against

from qwf.errors import NotDurableError, WriteError
from qwf.storage import fsio
from qwf.testing.faults import Fault, LateNames, StaleListing


@pytest.fixture
def server(tmp_path: Path) -> Path:
    path = tmp_path / "server"
    path.mkdir()
    return path


@pytest.fixture
def mount(server: Path) -> Iterator[Callable[..., Node]]:
    """``mount("a", rule, ...)`` mounts the server's directory on a node of that name."""
    if reason := reason_against():
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:

        def make(name: str, *rules: Rule) -> Node:
            return stack.enter_context(mounted(server, server.with_name(name), *rules))

        yield make


def test_each_node_sees_what_the_other_does(mount: Callable[..., Node], server: Path) -> None:
    a, b = mount("a").path, mount("b").path
    fsio.make_directories(a / "folder")
    assert fsio.create_whole(a / "folder" / "file", b"content")
    assert not fsio.create_whole(b / "folder" / "file", b"other")
    assert fsio.list_names(b / "folder") == ["file"]
    os.link(b / "folder" / "file", b / "folder" / "second")
    assert fsio.count_names(a / "folder" / "file") == 2
    assert fsio.is_same_file(a / "folder" / "file", a / "folder" / "second")
    fsio.write_atomic(b / "folder" / "file", b"changed")
    assert fsio.read_bytes(a / "folder" / "file") == b"changed"
    fsio.remove_tree(a / "folder")
    assert os.listdir(server) == []


def test_times_are_the_clock_of_the_server(mount: Callable[..., Node], server: Path) -> None:
    node = mount("a").path
    fsio.write_atomic(node / "file", b"")
    os.utime(server / "file", (0, 0))
    assert fsio.modified_at(node / "file") == 0
    fsio.renew_time(node / "file")
    assert abs(fsio.modified_at(node / "file") - time.time()) < 300
    os.utime(node / "file", ns=(5, 7))
    assert os.stat(server / "file").st_mtime_ns == 7


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_rename_may_happen_and_report_an_error(code: int, mount: Callable[..., Node]) -> None:
    a = mount("a", Fault("rename", "*/new", error=code, after=True)).path
    b = mount("b").path
    (a / "old").write_text("content")
    with pytest.raises(OSError, match="old") as told:
        os.rename(a / "old", a / "new")
    # At ESTALE Linux itself looks the names up again; then the old one is gone.
    assert told.value.errno == (errno.ENOENT if code == errno.ESTALE else code)
    assert os.listdir(b) == ["new"]
    os.rename(b / "new", b / "old")
    assert os.listdir(a) == ["old"]


def test_a_listing_may_be_old_on_one_node(mount: Callable[..., Node]) -> None:
    a, b = mount("a", StaleListing(calls=1)).path, mount("b").path
    assert os.listdir(a) == []
    (b / "file").touch()
    assert [os.listdir(a), os.listdir(a)] == [[], ["file"]]
    assert os.listdir(b) == ["file"]


def test_a_name_may_stay_missing_until_its_directory_is_opened(mount: Callable[..., Node]) -> None:
    a, b = mount("a", LateNames()).path, mount("b").path
    assert not (a / "file").exists()
    (b / "file").write_text("content")
    assert not (a / "file").exists()
    with pytest.raises(FileNotFoundError):
        os.rename(a / "file", a / "other")
    os.close(os.open(a, os.O_RDONLY))
    assert (a / "file").read_text() == "content"


def test_a_file_that_fails_with_estale_is_read_again(mount: Callable[..., Node]) -> None:
    # Linux asks once more by itself when an open says ESTALE.
    node = mount("a", Fault("open", "*/file", error=errno.ESTALE, count=4)).path
    (node.parent / "server" / "file").write_bytes(b"content")
    assert fsio.read_bytes(node / "file") == b"content"


def test_what_cannot_be_synced_is_not_acknowledged(mount: Callable[..., Node]) -> None:
    a = mount("a", Fault("fsync", error=errno.EIO)).path
    with pytest.raises(WriteError, match="Input/output"):
        fsio.write_atomic(a / "file", b"content")
    assert os.listdir(a) == []


def test_names_that_cannot_be_synced_are_reported(mount: Callable[..., Node]) -> None:
    a = mount("a", Fault("fsync", "*/server", error=errno.EIO)).path
    with pytest.raises(NotDurableError):
        fsio.write_atomic(a / "file", b"content")


def test_a_full_disk_leaves_nothing_half(mount: Callable[..., Node]) -> None:
    a = mount("a", Fault("write", error=errno.ENOSPC)).path
    with pytest.raises(WriteError, match="No space"):
        fsio.write_atomic(a / "file", b"content")
    assert os.listdir(a) == []


def test_a_node_tells_at_its_end_how_often_it_lied(server: Path, tmp_path: Path) -> None:
    if reason := reason_against():
        pytest.skip(reason)
    rule = Fault("unlink", error=errno.EIO, count=2)
    with mounted(server, tmp_path / "a", rule) as node:
        (node.path / "file").touch()
        for _ in range(2):
            with pytest.raises(OSError, match="file"):
                (node.path / "file").unlink()
        (node.path / "file").unlink()
    assert node.injected == {"unlink": 2}
