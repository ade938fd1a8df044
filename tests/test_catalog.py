"""Listings through the index show what is in the files, whatever has happened to either."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from catalogs import Bench, Row, bench, counted, fast, shown, small, unsynced
from conftest import FaultyOs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from qwf.errors import RestoreError
from qwf.storage import fsio
from qwf.storage.index import Index
from qwf.tracking import catalog as catalogs
from qwf.tracking.catalog import Catalog, catalog_of
from qwf.tracking.check import check_store
from qwf.tracking.store import Store
from qwf.tracking.trash import list_trash, restore_experiment, restore_recorders

__all__ = ["bench", "fast", "small"]


class Machine(RuleBasedStateMachine):
    """Everything that can happen to one experiment, listed by several processes in turn.

    The clock stands still but for `time_passes`, and the recorders' directory has a time in
    steps of two seconds, as on an old server: many changes leave no trace in it.
    """

    numbers = st.integers(0, 50)

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.place = Path(tempfile.mkdtemp())
        self.bench = Bench(self.place / "store").create()
        self.now = 1_000_000.0
        self.set = 0.0
        self.copies = 0
        self.backup: Path | None = None
        # Recorders whose file was damaged after they had ended, with what was last known.
        self.damaged: dict[str, Row] = {}
        self.catalogs = [self.bench.catalog() for _ in range(3)]
        self.patch.setattr(fsio, "os", unsynced())
        self.patch.setattr(fsio, "server_time", self.server_time)
        clock = SimpleNamespace(monotonic=lambda: self.now, perf_counter=time.perf_counter)
        self.patch.setattr(catalogs, "time", clock)

    def server_time(self, near: Path) -> float:
        if not near.parent.is_dir():
            raise FileNotFoundError(near)
        return self.now

    def teardown(self) -> None:
        self.patch.undo()
        shutil.rmtree(self.place)

    @initialize(few=st.sampled_from([1, 2, 4]), most=st.sampled_from([0, 2, 1000]))
    def thresholds(self, few: int, most: int) -> None:
        self.patch.setattr(catalogs, "_FEW", few)
        self.patch.setattr(catalogs, "_MOST_OTHERS", most)
        self.patch.setattr(catalogs, "_SLOW_SECONDS", 60.0)  # no threads
        self.bench.ended(4)
        self.settle()

    def settle(self) -> None:
        """Give the directory the coarse time, if it was changed."""
        if self.bench.recorders.exists() and os.stat(self.bench.recorders).st_mtime != self.set:
            self.set = self.now // 2 * 2
            os.utime(self.bench.recorders, (self.set, self.set))

    def names(self, *statuses: str) -> list[str]:
        return [
            row["id"]
            for row in self.bench.naive()
            if row["status"] in statuses and row["id"] not in self.damaged
        ]

    def one(self, number: int, *statuses: str) -> str | None:
        names = self.names(*statuses)
        return names[number % len(names)] if names else None

    # --- what happens ---

    @rule(seconds=st.sampled_from([0.5, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(ended=st.integers(0, 3))
    def start(self, ended: int) -> None:
        if not self.bench.ended(ended):
            self.bench.start()
        self.settle()

    @rule(number=numbers, status=st.sampled_from(["FINISHED", "FAILED", "PAUSED", "SCHEDULED"]))
    def end(self, number: int, status: str) -> None:
        identity = self.one(number, "RUNNING")
        if identity is not None:
            self.bench.end(identity, status, number / 3)

    @rule(number=numbers)
    def resume(self, number: int) -> None:
        identity = self.one(number, "FINISHED", "FAILED", "PAUSED", "SCHEDULED")
        if identity is not None:
            self.bench.resume(identity)

    @rule(number=numbers, key=st.sampled_from("ab"), text=st.text(max_size=2))
    def tag(self, number: int, key: str, text: str) -> None:
        identity = self.one(number, "FINISHED", "FAILED", "PAUSED", "SCHEDULED", "RUNNING")
        if identity is not None:
            self.bench.tag(identity, **{key: text})

    @rule(number=numbers)
    def log_param(self, number: int) -> None:
        identity = self.one(number, "FINISHED", "FAILED")
        if identity is not None:
            self.bench.change(identity, params={"p": number})

    @rule(number=numbers)
    def announce_and_die(self, number: int) -> None:
        identity = self.one(number, "FINISHED", "FAILED")
        if identity is not None:
            document = self.bench.store.read_recorder("e", identity)
            assert document is not None
            self.bench.store._announce("e", identity, document)

    @rule(number=numbers)
    def delete(self, number: int) -> None:
        identity = self.one(number, "FINISHED", "FAILED", "PAUSED", "SCHEDULED", "BROKEN")
        if identity is not None:
            self.bench.delete(identity)
            self.settle()

    @rule(number=numbers)
    def restore(self, number: int) -> None:
        kinds = {one.recorder_id for one in list_trash(self.bench.store) if one.recorder_id}
        if kinds:
            try:
                restore_recorders(self.bench.store, [sorted(kinds)[number % len(kinds)]])
            except RestoreError:
                return
            self.settle()

    @rule(kind=st.sampled_from(["file", "directory", "hidden"]))
    def put_something_foreign(self, kind: str) -> None:
        self.copies += 1
        path = self.bench.recorders / f"{'.' if kind == 'hidden' else ''}foreign {self.copies}"
        path.write_bytes(b"x") if kind == "file" else path.mkdir()
        self.settle()

    @rule(number=numbers)
    def copy(self, number: int) -> None:
        identity = self.one(number, "FINISHED", "FAILED", "RUNNING")
        if identity is not None:
            self.copies += 1
            shutil.copytree(
                self.bench.recorders / identity, self.bench.recorders / f"copy {self.copies}"
            )
            self.settle()

    # --- what happens rarely ---

    @rule(what=st.integers(0, 6), number=numbers)
    def disaster(self, what: int, number: int) -> None:
        (
            self.remove_index,
            self.damage_index,
            self.damage,
            self.make_again,
            self.bring_back_deleted,
            self.back_up,
            self.bring_back_copy,
        )[what](number)

    def remove_index(self, _: int) -> None:
        self.bench.remove_index()

    def damage_index(self, number: int) -> None:
        if not self.bench.index.exists():
            return
        paths = sorted(self.bench.index.iterdir(), key=lambda path: path.stat().st_ctime_ns)
        path = paths[number % len(paths)]
        size = (None, 0, 30, 200)[number % 4]
        if size is None:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:size])

    def damage(self, number: int) -> None:
        identity = self.one(number, "FINISHED", "RUNNING")
        if identity is None:
            return
        (before,) = [row for row in self.bench.naive() if row["id"] == identity]
        if before["status"] == "FINISHED":
            self.damaged[identity] = before
        path = self.bench.file(identity)
        path.write_bytes(path.read_bytes()[:-20])

    def make_again(self, _: int) -> None:
        self.bench.store.discard_experiment("e")
        self.bench.create()
        self.damaged.clear()
        self.settle()

    def bring_back_deleted(self, _: int) -> None:
        if any(one.recorder_id is None for one in list_trash(self.bench.store)):
            self.move_away()
            restore_experiment(self.bench.store, "e")
            self.settle()

    def back_up(self, _: int) -> None:
        if not self.damaged:
            self.backup = Path(tempfile.mkdtemp(dir=self.place)) / "backup"
            shutil.copytree(self.bench.directory, self.backup)

    def bring_back_copy(self, _: int) -> None:
        if self.backup is not None:
            self.move_away()
            shutil.copytree(self.backup, self.bench.directory)
            self.settle()

    def move_away(self) -> None:
        # Not removed: the copy could get the same inode.
        shutil.move(self.bench.directory, tempfile.mkdtemp(dir=self.place))
        self.damaged.clear()

    # --- what is seen ---

    @rule()
    def list_in_one_process(self) -> None:
        self.compare(self.catalogs[0])

    @rule()
    def list_in_another_process(self) -> None:
        self.compare(self.catalogs[1])

    @rule()
    def list_in_a_process_that_rarely_does(self) -> None:
        self.compare(self.catalogs[2])

    @rule()
    def list_in_a_new_process(self) -> None:
        self.compare(self.bench.catalog())

    def compare(self, catalog: Catalog) -> None:
        found, expected = shown(catalog.table()), self.bench.naive()
        damaged = {row["id"]: row for row in expected if row["id"] in self.damaged}
        # A file that nobody announced to change is not read again.
        for row in found:
            if row["id"] in damaged:
                assert row in (damaged[row["id"]], self.damaged[row["id"]])
        assert {row["id"] for row in found} >= damaged.keys()
        assert [row for row in found if row["id"] not in damaged] == [
            row for row in expected if row["id"] not in damaged
        ]


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    stateful_step_count=30, max_examples=settings.default.max_examples // 3
)


# --- few and many ----------------------------------------------------------------------------


def test_few_recorders_are_not_worth_an_index(bench: Bench, fast: None) -> None:
    bench.ended(catalogs._FEW - 1)
    bench.assert_shown()
    assert not bench.index.exists()
    bench.ended(1)
    bench.assert_shown()
    assert bench.index.exists()


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("fresh", [False, True])
def test_a_warm_listing_asks_the_same_of_the_system_however_many_have_ended(
    fresh: bool, tmp_path: Path
) -> None:
    def asked(number: int) -> list[str]:
        bench = Bench(tmp_path / f"{number}").create()
        bench.ended(number)
        catalog = bench.catalog()
        os.utime(bench.recorders, (1, 1))
        for _ in range(3):
            bench.assert_shown(catalog)
        catalog = bench.catalog() if fresh else catalog
        with counted() as counting:
            table = catalog.table()
        assert counting.opened("recorder.json") == []
        assert shown(table) == bench.naive()
        return [call for call, _ in counting.calls]

    assert asked(50) == asked(500)
    assert len(asked(20)) < (60 if fresh else 12)


@pytest.mark.usefixtures("fast")
def test_only_what_has_changed_is_read_again_by_all_together(bench: Bench) -> None:
    ended = bench.ended(40)
    first, second = bench.catalog(), bench.catalog()
    with counted() as counting:
        first.table()
    assert len(counting.opened("recorder.json")) == 40
    bench.tag(ended[3], a="x")
    going = bench.start()
    for catalog in (first, second, bench.catalog()):
        with counted() as counting:
            bench.assert_shown(catalog)
        assert sorted(map(Path, counting.opened("recorder.json"))) == sorted(
            [bench.file(ended[3]), bench.file(going)]
        )


@pytest.mark.usefixtures("fast")
def test_a_change_that_is_known_is_not_read_again_in_the_process(bench: Bench) -> None:
    ended = bench.ended(20)
    catalog = bench.catalog()
    catalog.table()
    bench.tag(ended[0], a="x")
    bench.assert_shown(catalog)
    with counted() as counting:
        bench.assert_shown(catalog)
    assert counting.opened("recorder.json") == []


@pytest.mark.usefixtures("fast")
def test_marks_that_were_taken_into_account_are_removed(bench: Bench) -> None:
    ended = bench.ended(40)
    catalog = bench.catalog()
    catalog.table()
    for identity in ended[:20]:
        bench.tag(identity, a="x")
    assert len(list(bench.changes.iterdir())) == 20
    bench.assert_shown(catalog)
    assert list(bench.changes.iterdir()) == []
    with counted() as counting:
        bench.assert_shown()
    assert counting.opened("recorder.json") == []


@pytest.mark.usefixtures("fast")
def test_the_mark_of_a_recorder_that_runs_again_stays(bench: Bench) -> None:
    ended = bench.ended(40)
    first, second = bench.catalog(), bench.catalog()
    first.table()
    second.table()
    bench.resume(ended[0])
    first.table()
    bench.ended(20)
    first.table()
    assert [path.name for path in bench.changes.iterdir()] == [f"{ended[0]}@3"]
    bench.assert_shown(second)
    bench.end(ended[0])
    bench.ended(20)
    bench.assert_shown(first)
    assert list(bench.changes.iterdir()) == []
    bench.assert_shown(second)
    bench.assert_shown()


@pytest.mark.usefixtures("fast", "small")
def test_a_table_shows_what_was_there_when_it_was_made_also_without_the_index(
    bench: Bench,
) -> None:
    bench.ended(5)
    bench.catalog().table()
    table, expected = bench.catalog().table(), bench.naive()
    bench.remove_index()
    assert shown(table) == expected


# --- what may not be written -----------------------------------------------------------------


def refusing() -> FaultyOs:
    """The module `os` of a read-only mount."""

    def refuse(path: Any, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    def opening(path: Any, flags: int, *args: Any) -> int:
        if flags & (os.O_CREAT | os.O_WRONLY):
            refuse(path)
        return os.open(path, flags, *args)

    calls = ("mkdir", "link", "rename", "replace", "unlink", "rmdir", "utime")
    return FaultyOs(open=opening, **dict.fromkeys(calls, refuse))


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("indexed", [False, True])
def test_a_read_only_store_is_listed_and_not_read_again(
    bench: Bench,
    indexed: bool,
    monkeypatch: pytest.MonkeyPatch,
    snapshot: Callable[[Path], dict[str, bytes]],
) -> None:
    ended = bench.ended(40)
    if indexed:
        bench.catalog().table()
    bench.tag(ended[0], a="x")
    before = snapshot(bench.root)
    catalog = bench.catalog()
    with monkeypatch.context() as patch:
        patch.setattr(fsio, "os", refusing())
        for read in (1 if indexed else 40, 0, 0):
            with counted() as counting:
                bench.assert_shown(catalog)
            assert len(counting.opened("recorder.json")) == read
    assert snapshot(bench.root) == before


@pytest.mark.usefixtures("fast")
def test_a_process_that_may_only_read_sees_what_others_have_changed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = bench.ended(40)
    catalog = bench.catalog()

    def look() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(fsio, "os", refusing())
            bench.assert_shown(catalog)

    look()
    bench.tag(ended[0], a="x")
    look()
    # Others write an index, remove the marks that it knows of, and lose it again.
    writer = bench.catalog()
    writer.table()
    for identity in ended[:20]:
        bench.tag(identity, a="y")
    writer.table()
    assert list(bench.changes.iterdir()) == []
    bench.remove_index()
    look()


def test_a_full_disk_fails_no_listing(
    bench: Bench, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    bench.ended(40)
    catalog = bench.catalog()
    with monkeypatch.context() as patch:
        patch.setattr(fsio, "os", FaultyOs(write=full))
        bench.assert_shown(catalog)
    bench.assert_shown(catalog)
    assert list(bench.index.glob("columns.*")) == []
    bench.assert_shown()
    assert len(list(bench.index.glob("columns.*"))) == 1


# --- damage ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("fast", "small")
@pytest.mark.parametrize("value", [b"0.5", b"FINISHED", b'["20'])
def test_a_damaged_column_is_read_from_the_recorders_and_the_index_written_anew(
    bench: Bench, value: bytes
) -> None:
    bench.ended(8)
    bench.catalog().table()
    (path,) = bench.index.glob("columns.*")
    data = path.read_bytes()
    place = data.index(value, data.index(b"]]}")) + 2
    path.write_bytes(data[:place] + b"X" + data[place + 1 :])
    catalog = bench.catalog()
    for _ in range(3):
        bench.assert_shown(catalog)
    bench.tag(bench.naive()[0]["id"], a="x")
    bench.tag(bench.naive()[1]["id"], a="x")
    bench.assert_shown(catalog)
    bench.assert_shown(catalog)
    Index(bench.index, catalogs.FAMILIES).verify()
    with counted() as counting:
        bench.assert_shown()
    assert len(counting.opened("recorder.json")) <= 2


@pytest.mark.usefixtures("fast")
def test_a_damaged_index_harms_nobody_and_the_check_finds_it(bench: Bench) -> None:
    bench.ended(20)
    bench.catalog().table()
    (path,) = bench.index.glob("columns.*")
    path.write_bytes(path.read_bytes()[:-1])
    findings = check_store(bench.root)
    assert [finding.path for finding in findings] == ["index/e"]
    assert [one.repaired for one in check_store(bench.root, repair=True)] == [True]
    bench.assert_shown()
    assert check_store(bench.root) == []


@pytest.mark.usefixtures("fast")
def test_a_file_that_was_replaced_behind_the_index_is_found_by_the_check(
    bench: Bench, tmp_path: Path
) -> None:
    ended = bench.ended(20)
    older = bench.file(ended[0]).read_bytes()
    bench.tag(ended[0], a="x")
    bench.catalog().table()
    bench.file(ended[0]).write_bytes(older)
    findings = check_store(bench.root, repair=True)
    assert [(finding.path, finding.repaired) for finding in findings] == [("index/e", True)]
    assert "does not agree with the file of" in findings[0].problem
    bench.assert_shown()


@pytest.mark.usefixtures("fast")
def test_the_check_finds_nothing_wrong_with_rows_that_nobody_believes(bench: Bench) -> None:
    ended = bench.ended(20)
    bench.catalog().table()
    bench.tag(ended[0], a="x")
    bench.resume(ended[1])
    for number in range(3):  # while it runs, its changes are not announced
        bench.tag(ended[1], a=str(number))
    assert check_store(bench.root) == []
    bench.ended(20)
    bench.catalog().table()
    assert check_store(bench.root) == []


# --- the same names, other recorders ---------------------------------------------------------


@pytest.mark.usefixtures("fast", "small")
@pytest.mark.parametrize("known", ["known", "unknown"])
@pytest.mark.parametrize("indexed", ["indexed", "not indexed"])
def test_an_experiment_that_was_replaced_by_a_copy_of_it_is_read_anew(
    bench: Bench, known: str, indexed: str, tmp_path: Path
) -> None:
    """As when a backup is brought back: ids and revisions are the same, the contents are not."""
    ended = bench.ended(5)
    shutil.copytree(bench.directory, tmp_path / "backup")
    bench.tag(ended[0], since="the backup")
    catalog = bench.catalog()
    if indexed == "indexed":
        for _ in range(2):
            catalog.table()
    if known == "unknown":
        catalog = bench.catalog()
    shutil.move(bench.directory, tmp_path / "aside")
    shutil.copytree(tmp_path / "backup", bench.directory)
    bench.assert_shown(catalog)
    bench.tag(ended[0], other="tag")  # the same revision as before
    bench.assert_shown(catalog)
    bench.assert_shown()


@pytest.mark.usefixtures("fast", "small")
def test_a_copied_experiment_has_marks_and_no_index(bench: Bench) -> None:
    ended = bench.ended(5)
    bench.catalog().table()
    bench.tag(ended[0], a="x")
    shutil.copytree(bench.directory, bench.directory.with_name("f"))
    copied = Bench(bench.root)
    copied.directory = bench.directory.with_name("f")
    copied.recorders = copied.directory / "recorders"
    copied.store.update_recorder("f", ended[0], lambda doc: {**doc, "tags": {"b": "y"}})
    catalog = Catalog(copied.store, "f")
    for _ in range(2):
        copied.assert_shown(catalog)
        bench.assert_shown()


@pytest.mark.usefixtures("fast", "small")
def test_a_file_that_vanished_is_not_shown_once_somebody_looks(bench: Bench) -> None:
    ended = bench.ended(5)
    catalog = bench.catalog()
    catalog.table()
    bench.tag(ended[0], a="x")
    bench.file(ended[0]).unlink()
    bench.assert_shown(catalog)
    bench.assert_shown()


def test_a_child_has_a_catalog_of_its_own(bench: Bench, children: Any) -> None:
    bench.ended(3)
    mine = catalog_of(bench.store, "e")
    assert catalog_of(Store(bench.root), "e") is mine
    with mine._lock:  # as if another thread listed in the moment of the fork

        def look() -> None:
            assert catalog_of(bench.store, "e") is not mine
            bench.assert_shown(catalog_of(bench.store, "e"))

        children.add(look)
        assert children.exit_codes() == [0]


@pytest.mark.usefixtures("fast")
def test_a_first_listing_that_is_broken_off_has_not_read_in_vain(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogs, "_AT_ONCE", 20)
    bench.ended(40)
    catalog, real, read = bench.catalog(), Catalog._document, []

    def broken_off(self: Catalog, name: str) -> object:
        read.append(name)
        if len(read) > 34:
            raise KeyboardInterrupt
        return real(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(Catalog, "_document", broken_off)
        with pytest.raises(KeyboardInterrupt):
            catalog.table()
    with counted() as counting:
        bench.assert_shown(bench.catalog())
    assert len(counting.opened("recorder.json")) == 20
    bench.assert_shown(catalog)


@pytest.mark.usefixtures("fast")
def test_recorders_that_were_all_deleted_are_not_listed_by_a_new_process(bench: Bench) -> None:
    ended = bench.ended(20)
    bench.catalog().table()
    for identity in ended:
        bench.store.discard_recorder("e", identity, "20260101-000000-000000-00000000")
    assert bench.catalog().table().rows == 0


@pytest.mark.usefixtures("fast")
def test_what_others_have_made_listed_and_deleted_is_not_listed(bench: Bench) -> None:
    bench.ended(20)
    first = bench.catalog()
    first.table()
    made = bench.ended(20)
    bench.catalog().table()
    for identity in made:
        bench.store.discard_recorder("e", identity, "20260101-000000-000000-00000000")
    bench.assert_shown(first)
    bench.assert_shown(bench.catalog())


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("number", [1, 30])
def test_a_recorder_that_is_changed_again_and_again_leaves_few_marks(
    bench: Bench, number: int
) -> None:
    changed, *_ = bench.ended(number)
    catalog = bench.catalog()
    for turn in range(300):
        bench.tag(changed, turn=str(turn))
        if turn % 50 == 0:
            bench.assert_shown(catalog)
    bench.assert_shown(catalog)
    assert len(list(bench.changes.iterdir())) <= 100
    bench.assert_shown(bench.catalog())


@pytest.mark.usefixtures("fast")
def test_a_directory_in_the_place_of_a_file_breaks_no_listing(bench: Bench) -> None:
    ended = bench.ended(20)
    bench.catalog().table()
    (bench.recorders / ended[3] / "recorder.json").unlink()
    (bench.recorders / ended[3] / "recorder.json").mkdir()
    bench.tag(ended[4], a="x")
    for path in list(bench.index.iterdir()):
        path.unlink()
        path.mkdir()
    table = bench.catalog().table()
    assert table.rows == 20
    assert table.column("attributes", "status").count("BROKEN") == 1
    Store(bench.root).list_experiments()
