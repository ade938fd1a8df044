"""Listings and changes that meet at every possible place, are killed, stopped, or many at once."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from catalogs import Bench, before, bench, fast, shown, small
from conftest import Children

from qwf.process.identity import this_process
from qwf.storage import documents, fsio
from qwf.storage.index import Index
from qwf.testing.crash import crash_points
from qwf.tracking import catalog as catalogs
from qwf.tracking.catalog import Catalog
from qwf.tracking.check import check_store
from qwf.tracking.liveness import Observer
from qwf.tracking.store import Store
from qwf.tracking.trash import list_trash, restore_recorders

__all__ = ["bench", "fast", "small"]


# --- a listing, and others at each of its places ---------------------------------------------

PLACES: dict[str, tuple[Any, str]] = {
    f"{getattr(owner, '__name__', owner)}.{name}": (owner, name)
    for owner, name in (
        (catalogs, "marks_of"),
        (Index, "newest"),
        (Index, "_load"),
        (Catalog, "_look_at_snapshot"),
        (Catalog, "_take"),
        (Catalog, "_look_for_names"),
        (Index, "begin"),
        (Catalog, "_look_at"),
        (Catalog, "_document"),
        (Catalog, "_assembled"),
        (Catalog, "_write_index"),
        (Index, "commit"),
        (Index, "_write"),
        (Index, "_publish"),
        (fsio, "create_whole"),
        (fsio, "create_exclusive"),
        (Index, "_is_newest"),
        (Index, "_tidy"),
        (Catalog, "_remove_spent"),
        (fsio, "remove_file"),
    )
}


class Others:
    """What other processes do to a bench with recorders that have ended."""

    def __init__(self, bench: Bench, spare: Path) -> None:
        self.bench, self.spare = bench, spare
        self.ended = [row["id"] for row in bench.naive()]
        self.catalog = bench.catalog()
        self.catalog.table()

    def fold(self, times: int = 1) -> None:
        """Write the index, so that marks are removed."""
        for _ in range(times):
            for identity in self.ended[2:5]:
                self.bench.tag(identity, n="x" if _ % 2 else "y")
            self.catalog.table()

    def change(self) -> None:
        self.bench.tag(self.ended[0], late="x")

    def change_and_fold(self) -> None:
        self.change()
        self.fold()

    def fold_often(self) -> None:
        self.change()
        self.fold(4)

    def change_and_forget(self) -> None:
        self.change_and_fold()
        self.bench.remove_index()

    def begin_anew(self) -> None:
        self.change()
        self.bench.remove_index()
        self.catalog.table()

    def fold_and_begin_anew(self) -> None:
        self.change_and_fold()
        self.bench.remove_index()
        self.bench.catalog().table()
        self.fold(2)

    def damage_the_index(self) -> None:
        self.change_and_fold()
        for path in self.bench.index.glob("columns.*"):
            path.write_bytes(path.read_bytes()[:-9])

    def resume(self) -> None:
        self.bench.resume(self.ended[0])
        self.fold()

    def resume_and_end(self) -> None:
        self.resume()
        self.bench.end(self.ended[0], value=2.0)
        self.fold()

    def start_new_ones(self) -> None:
        self.bench.start()
        self.bench.ended(3)
        self.catalog.table()

    def delete(self) -> None:
        self.change()
        self.bench.delete(self.ended[0])
        self.fold()

    def delete_and_restore(self) -> None:
        self.delete()
        restore_recorders(self.bench.store, [self.ended[0]])
        self.change()
        self.fold()

    def make_the_experiment_again(self) -> None:
        self.change()
        self.bench.store.discard_experiment("e")
        self.bench.create()
        self.bench.ended(3)
        self.catalog.table()

    def bring_back_a_copy(self) -> None:
        shutil.copytree(self.bench.directory, self.spare / "copy")
        self.change_and_fold()
        shutil.move(self.bench.directory, self.spare / "aside")
        shutil.move(self.spare / "copy", self.bench.directory)
        self.bench.tag(self.ended[0], other="y")
        self.catalog.table()


ACTIONS = [name for name in vars(Others) if name[0] != "_" and name != "fold"]


@pytest.mark.usefixtures("fast", "small")
@pytest.mark.parametrize("reader", ["new", "warm"])
@pytest.mark.parametrize("action", ACTIONS)
def test_whatever_others_do_while_somebody_lists_all_see_it_afterwards(
    action: str, reader: str, tmp_path: Path
) -> None:
    met = 0
    for place, (owner, name) in PLACES.items():
        bench = Bench(tmp_path / place).create()
        bench.ended(6)
        slow = bench.catalog()
        if reader == "warm":
            slow.table()
        others = Others(bench, tmp_path / place)
        for identity in others.ended[3:]:
            bench.tag(identity, early="x")
        with before(owner, name, getattr(others, action)) as waiting:
            slow.table()
        met += not waiting  # else this listing does not come to this place
        for catalog in (slow, others.catalog, bench.catalog()):
            assert shown(catalog.table()) == bench.naive(), place
        if bench.naive():
            bench.tag(bench.naive()[0]["id"], last="x")
        for catalog in (slow, others.catalog, bench.catalog()):
            assert shown(catalog.table()) == bench.naive(), place
    assert met > 12


@pytest.mark.usefixtures("fast", "small")
def test_a_process_does_not_go_on_with_an_index_that_others_have_begun_anew(bench: Bench) -> None:
    ended = bench.ended(6)
    warm = bench.catalog()
    warm.table()
    bench.tag(ended[0], a="1")
    warm.table()  # one change: known to this process, and in no snapshot yet
    bench.tag(ended[0], a="2")
    for identity in ended[1:]:
        bench.tag(identity, a="2")
    bench.catalog().table()
    assert list(bench.changes.iterdir()) == []
    bench.remove_index()
    with pytest.raises(KeyboardInterrupt), before(Catalog, "_look_at", interrupted):
        bench.catalog().table()
    assert [path.name.partition(".")[0] for path in bench.index.iterdir()] == ["manifest"]
    bench.assert_shown(warm)


def interrupted() -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("fast")
def test_a_run_that_ends_with_its_process_while_somebody_lists_is_not_shown_as_lost(
    bench: Bench,
) -> None:
    identity = bench.start()
    process = forked(lambda: None)
    os.waitpid(process, 0)
    sessions = [{"ended_at": None, **this_process(), "pid": process}]
    bench.change(identity, sessions=sessions)
    assert shown(bench.catalog().table())[0]["status"] == "LOST"
    with before(Observer, "is_lost", lambda: bench.end(identity)) as waiting:
        assert shown(bench.catalog().table())[0]["status"] == "FINISHED"
    assert not waiting


@pytest.mark.usefixtures("fast", "small")
def test_a_recorder_deleted_after_it_was_listed_keeps_its_place_in_the_table(bench: Bench) -> None:
    ended = bench.ended(4)
    bench.catalog().table()
    table = bench.catalog().table()
    bench.remove_index()
    bench.delete(ended[0])
    assert len(table.column("tags", "none")) == 4
    assert table.column("attributes", "run_id") == ended[::-1]
    assert table.column("attributes", "status") == ["FINISHED"] * 4
    assert table.column("row", "revision") == [2] * 4
    bench.assert_shown()


@pytest.mark.usefixtures("fast", "small")
def test_an_index_of_which_only_a_part_is_removed_yet_is_not_believed(bench: Bench) -> None:
    ended = bench.ended(5)
    bench.catalog().table()
    for identity in ended:
        bench.tag(identity, a="x")
    bench.catalog().table()
    assert list(bench.changes.iterdir()) == []
    newest = max(bench.index.glob("manifest.*"), key=lambda path: int(path.suffix[1:]))
    newest.unlink()  # as `rm -r` may begin
    bench.assert_shown()


# --- a change, and listings at each of its places --------------------------------------------


@pytest.mark.usefixtures("fast", "small")
@pytest.mark.parametrize("action", ["fold", "fold_often", "change_and_forget", "begin_anew"])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Store, "_announce"),
        (fsio, "create_mark"),
        (documents, "_commit"),
        (fsio, "write_temporary"),
        (fsio, "create_exclusive"),
        (documents, "_publish"),
        (fsio, "replace_with"),
    ],
)
def test_a_slow_change_of_an_ended_recorder_is_seen_by_all_who_have_listed_meanwhile(
    owner: Any, name: str, action: str, bench: Bench, tmp_path: Path
) -> None:
    ended = bench.ended(7)
    others = Others(bench, tmp_path)
    others.ended.remove(ended[6])
    warm = bench.catalog()
    warm.table()

    def list_meanwhile() -> None:
        getattr(others, action)()
        warm.table()

    with before(owner, name, list_meanwhile) as waiting:
        bench.tag(ended[6], slow="x")
    assert not waiting
    for catalog in (warm, others.catalog, bench.catalog()):
        bench.assert_shown(catalog)
    others.fold()
    for catalog in (warm, others.catalog, bench.catalog()):
        bench.assert_shown(catalog)


@pytest.mark.usefixtures("small")
def test_a_stopped_process_that_wakes_up_changes_what_all_see(bench: Bench) -> None:
    ended = bench.ended(5)
    warm = bench.catalog()
    warm.table()

    def stop_and_change() -> None:
        with before(documents, "_publish", lambda: os.kill(os.getpid(), signal.SIGSTOP)):
            bench.tag(ended[0], late="x")

    pid = forked(stop_and_change)
    assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
    for identity in ended[1:]:
        bench.tag(identity, a="x")
    for catalog in (warm, bench.catalog()):
        bench.assert_shown(catalog)
    assert [path.name for path in bench.changes.iterdir()] == [f"{ended[0]}@3"]
    os.kill(pid, signal.SIGCONT)
    assert os.waitpid(pid, 0)[1] == 0
    assert bench.naive()[-1]["tags.late"] == "x"
    for catalog in (warm, bench.catalog()):
        bench.assert_shown(catalog)


def forked(call: Callable[[], object]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            call()
            code = 0
        finally:
            os._exit(code)
    return pid


# --- killed ----------------------------------------------------------------------------------


def list_all(bench: Bench) -> None:
    bench.catalog().table()


def tag_one(bench: Bench) -> None:
    bench.tag(bench.naive()[0]["id"], b="y")


def resume_one(bench: Bench) -> None:
    bench.resume(bench.naive()[0]["id"])


@pytest.mark.crash
@pytest.mark.parametrize("known", ["begun", "new"])
@pytest.mark.parametrize("operation", [list_all, tag_one, resume_one])
def test_listing_and_changing_may_be_killed_at_any_call(
    operation: Callable[[Bench], None],
    known: str,
    tmp_path: Path,
    small: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepared = Bench(tmp_path / "prepared").create()
    prepared.ended(4)
    loaded: dict[Path, Catalog] = {}

    def copy(source: Path, target: Path) -> None:
        """Copy, and let a process list that lives on."""
        shutil.copytree(source, target, symlinks=True)
        bench = Bench(target)
        loaded[target] = bench.catalog()
        if known == "begun":
            loaded[target].table()
        for row in bench.naive()[1:]:
            bench.tag(row["id"], a="x")

    monkeypatch.setattr("qwf.testing.crash.copy_tree", copy)
    steps = 0
    for point in crash_points(prepared.root, lambda root: operation(Bench(root)), tmp_path):
        steps = point.step
        bench = Bench(point.directory)
        for catalog in (loaded[point.directory], bench.catalog(), loaded[point.directory]):
            assert shown(catalog.table()) == bench.naive(), point
        bench.tag(bench.naive()[0]["id"], c="z")
        for catalog in (loaded[point.directory], bench.catalog()):
            assert shown(catalog.table()) == bench.naive(), point
        if operation is not resume_one:  # else it runs, by a process that has died
            check_store(point.directory, repair=True, older_than_seconds=0)
            assert check_store(point.directory, older_than_seconds=0) == [], point
        for catalog in (loaded[point.directory], bench.catalog()):
            assert shown(catalog.table()) == bench.naive(), point
    assert steps > 5


# --- many at once ----------------------------------------------------------------------------


class Crowd:
    """Processes that change recorders of their own, and list those of all."""

    writers = 4

    def __init__(self, bench: Bench, place: Path) -> None:
        self.bench, self.place = bench, place

    def write(self, number: int) -> None:
        mine: list[str] = []
        for step in range(40):
            identity = self.bench.start()
            self.bench.tag(identity, step=str(step))
            self.bench.end(identity, value=step)
            mine.append(identity)
            self.bench.tag(mine[step // 2], **{f"t{number}": str(step)})
            if step % 5 == 0:
                self.bench.resume(mine[-1])
                self.bench.end(mine[-1], "FAILED")
            if step % 7 == 6:
                with (self.place / f"gone.{number}").open("a") as log:
                    log.write(f"{mine[0]}\n")
                self.bench.delete(mine.pop(0))
        (self.place / f"done.{number}").touch()

    def are_done(self) -> bool:
        return all((self.place / f"done.{one}").exists() for one in range(self.writers))

    def deleted(self) -> set[str]:
        return {one for log in self.place.glob("gone.*") for one in log.read_text().split()}

    def look(self, *, removing: bool) -> None:
        catalog = self.bench.catalog()
        seen: dict[str, int] = {}
        for turn in itertools.count():
            done = self.are_done()
            table = catalog.table()
            ids, revisions = table.column("attributes", "run_id"), table.column("row", "revision")
            found = dict(zip(ids, revisions, strict=True))
            assert seen.keys() - found.keys() <= self.deleted()
            assert all(found[one] >= seen[one] for one in seen.keys() & found.keys())
            assert set(table.column("attributes", "status")) <= {"RUNNING", "FINISHED", "FAILED"}
            seen = found
            if removing and turn % 20 == 19:
                self.bench.remove_index()
            if done:
                break
        self.bench.assert_shown(catalog)


@pytest.mark.stress
@pytest.mark.parametrize("index", ["kept", "removed now and then"])
def test_processes_that_change_and_list_at_once_never_show_the_past(
    index: str, bench: Bench, small: None, children: Children, tmp_path: Path
) -> None:
    crowd = Crowd(bench, tmp_path)
    for number in range(crowd.writers):
        children.add(lambda number=number: crowd.write(number))
    for removing in (index != "kept", False):
        children.add(lambda removing=removing: crowd.look(removing=removing))
    assert children.exit_codes() == [0] * 6
    expected = bench.naive()
    assert len(expected) == crowd.writers * 35
    bench.assert_shown()
    bench.remove_index()
    assert shown(bench.catalog().table()) == expected
    assert len(list_trash(bench.store)) == 20
