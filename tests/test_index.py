"""The derived index: rows replace rows, of two writers one wins, and losing it costs time only."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from qwf.errors import CorruptRecordError
from qwf.storage import fsio
from qwf.storage.documents import encode_document
from qwf.storage.index import ID, REVISION, Index, Rows, Snapshot
from qwf.testing.crash import crash_points

FAMILIES = ("params", "tags")


def row(identity: str, revision: int, **params: Any) -> dict[tuple[str, str], Any]:
    return {ID: identity, REVISION: revision, **{("params", k): v for k, v in params.items()}}


def contents(snapshot: Snapshot | None) -> dict[str, dict[str, Any]]:
    """All rows by id, with what they have; later files win."""
    found = {}
    for file in () if snapshot is None else snapshot.files:
        columns = {key: file.column("params", key) for key in file.keys("params")}
        for position, identity in enumerate(file.column(*ID)):
            values = {key: column[position] for key, column in columns.items()}
            found[identity] = {
                "revision": file.column(*REVISION)[position],
                **{key: value for key, value in values.items() if value is not None},
            }
    return found


def begun(index: Index) -> Snapshot:
    known = index.newest()
    assert known is None
    snapshot = index.begin({})
    assert snapshot is not None
    return snapshot


def added(index: Index, base: Snapshot, *rows: Any, **options: Any) -> Snapshot:
    snapshot = index.commit(base, Rows(rows), {"of": len(rows)}, **options)
    assert snapshot is not None
    return snapshot


def manifests(directory: Path) -> list[Path]:
    return sorted(directory.glob("manifest.*"), key=lambda path: int(path.suffix[1:]))


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index(tmp_path / "index", FAMILIES)


class Model(RuleBasedStateMachine):
    """Commits through several objects, as of several processes, beside a dict."""

    ids = st.sampled_from([f"r{number}" for number in range(12)])
    rows = st.dictionaries(ids, st.dictionaries(st.sampled_from("abc"), st.text(max_size=2)))
    which = st.integers(0, 2)

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp()) / "index"
        self.indexes = [Index(self.directory, FAMILIES) for _ in range(3)]
        self.known: list[Snapshot | None] = [None] * 3
        self.model: dict[str, dict[str, Any]] = {}
        self.dropped: set[str] = set()
        self.revision = 0

    def teardown(self) -> None:
        shutil.rmtree(self.directory.parent)

    @rule(which=which)
    def look(self, which: int) -> None:
        self.known[which] = self.indexes[which].newest(self.known[which])

    @rule(which=which, rows=rows, dropped=st.sets(ids, max_size=3))
    def commit(self, which: int, rows: dict[str, dict[str, str]], dropped: set[str]) -> None:
        index, base = self.indexes[which], self.known[which]
        if base is None:
            base = index.newest() or index.begin({})
            if base is None or not self.is_newest(base):
                return
        self.revision += 1
        rows = {one: fields for one, fields in rows.items() if one not in dropped}
        new = [row(one, self.revision, **fields) for one, fields in rows.items()]
        newest = self.is_newest(base)
        written = index.commit(base, Rows(new), {"n": self.revision}, without=dropped)
        assert (written is not None) == newest
        if written is None:
            return
        self.known[which] = written
        self.dropped = (self.dropped | dropped) - rows.keys()
        for one, fields in rows.items():
            self.model[one] = {"revision": self.revision, **fields}

    def is_newest(self, base: Snapshot) -> bool:
        newest = Index(self.directory, FAMILIES).newest()
        return newest is not None and newest.number == base.number

    @precondition(lambda self: self.directory.exists())
    @rule()
    def remove_all(self) -> None:
        shutil.rmtree(self.directory)
        self.model, self.dropped = {}, set()

    @precondition(lambda self: self.directory.exists())
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        """A file vanishes, or is cut off: then there is none of the rows, or all are right."""
        paths = manifests(self.directory)  # other names are random
        paths += sorted(self.directory.glob("columns.*"), key=lambda one: one.stat().st_ctime_ns)
        path = paths[data.draw(st.integers(0, 20)) % len(paths)]
        if data.draw(st.booleans()):
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[: data.draw(st.integers(0, 40))])
        for number, index in enumerate(self.indexes):
            self.known[number] = index.newest()
        newest = Index(self.directory, FAMILIES).newest()
        if newest is None:
            self.start_anew()
            return
        try:
            found = contents(newest)
        except CorruptRecordError:
            self.start_anew()
            return
        # What was before the last commit, or the last commit.
        for fields in found.values():
            assert fields["revision"] <= self.revision
        self.model, self.dropped = found, self.dropped & found.keys()

    def start_anew(self) -> None:
        shutil.rmtree(self.directory)
        self.model, self.dropped = {}, set()

    @invariant()
    def what_is_there_is_what_was_committed(self) -> None:
        found = contents(Index(self.directory, FAMILIES).newest())
        # A row that is not needed, or what it was before, stays until its file is merged.
        needed = {one: fields for one, fields in self.model.items() if one not in self.dropped}
        assert {one: found.get(one) for one in needed} == needed
        assert found.keys() <= self.model.keys()

    @invariant()
    def there_are_few_files(self) -> None:
        newest = Index(self.directory, FAMILIES).newest()
        sizes = [file.rows for file in newest.files] if newest else []
        for larger, smaller in itertools.pairwise(sizes):
            assert larger >= 2 * smaller
        assert len(manifests(self.directory)) <= 1


TestModel = Model.TestCase
TestModel.settings = settings(stateful_step_count=20)


def test_there_is_nothing_where_nothing_was_written(index: Index, tmp_path: Path) -> None:
    assert index.newest() is None
    index.verify()
    assert not (tmp_path / "index").exists()


def test_a_snapshot_that_is_still_the_newest_is_the_same_object(index: Index) -> None:
    base = begun(index)
    known = added(index, base, row("a", 1))
    assert index.newest(known) is known
    later = added(Index(index.directory, FAMILIES), known, row("b", 1))
    newest = index.newest(known)
    assert newest is not None
    assert newest.number == later.number
    assert newest.facts == {"of": 1}
    assert contents(newest).keys() == {"a", "b"}


def test_of_two_that_build_on_one_snapshot_the_second_leaves_nothing(index: Index) -> None:
    base = added(index, begun(index), row("a", 1))
    first = added(index, base, row("a", 2))
    before = sorted(path.name for path in index.directory.iterdir())
    other = Index(index.directory, FAMILIES)
    assert other.commit(base, Rows([row("a", 3), row("b", 3)]), {}) is None
    assert sorted(path.name for path in index.directory.iterdir()) == before
    assert contents(index.newest()) == contents(first) == {"a": {"revision": 2}}


def test_of_two_that_begin_one_wins(index: Index) -> None:
    other = Index(index.directory, FAMILIES)
    assert index.newest() is other.newest() is None
    assert index.begin({}) is not None
    assert other.begin({}) is None


@pytest.mark.parametrize("others", [1, 2, 3, 4])
def test_who_comes_late_does_not_take_a_number_that_is_free_again(
    index: Index, others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old manifests are removed, so that their numbers could be given a second time."""
    base = added(index, begun(index), row("a", 1))
    late = Index(index.directory, FAMILIES)
    real = fsio.create_whole

    def after_others(path: Path, data: bytes, **options: Any) -> bool:
        monkeypatch.setattr(fsio, "create_whole", real)
        snapshot = base
        for number in range(others):
            snapshot = added(index, snapshot, row("a", 10 + number))
        return real(path, data, **options)

    monkeypatch.setattr(fsio, "create_whole", after_others)
    assert late.commit(base, Rows([row("a", 2)]), {}) is None
    assert contents(index.newest()) == {"a": {"revision": 9 + others}}
    newest = index.newest()
    assert newest is not None
    for number in range(3):  # what it has left is tidied up, and never believed
        newest = added(index, newest, row("a", 50 + number))
    assert len(manifests(index.directory)) == 1


def test_an_index_that_is_removed_while_somebody_writes_is_not_brought_back(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = added(index, begun(index), row("a", 1))
    real = fsio.create_whole

    def after_removal(path: Path, data: bytes, **options: Any) -> bool:
        monkeypatch.setattr(fsio, "create_whole", real)
        shutil.rmtree(index.directory)
        index.directory.mkdir()
        return real(path, data, **options)

    monkeypatch.setattr(fsio, "create_whole", after_removal)
    assert index.commit(base, Rows([row("a", 2)]), {}) is None
    assert index.newest() is None


def test_an_index_that_others_have_begun_anew_is_not_added_to(index: Index) -> None:
    base = added(index, begun(index), row("a", 1))
    shutil.rmtree(index.directory)
    other = Index(index.directory, FAMILIES)
    again = begun(other)
    assert again.origin != base.origin
    assert index.commit(base, Rows([row("a", 2)]), {}) is None
    newest = index.newest(base)
    assert newest is not None
    assert newest.origin == again.origin
    assert newest.files == ()


def test_rows_are_replaced_also_across_files(index: Index) -> None:
    snapshot = added(index, begun(index), *(row(f"r{n}", 1, a=str(n)) for n in range(40)))
    snapshot = added(index, snapshot, row("r3", 2, b="new"))
    assert len(snapshot.files) == 2
    found = contents(index.newest())
    assert found["r3"] == {"revision": 2, "b": "new"}
    assert found["r4"] == {"revision": 1, "a": "4"}


def test_rows_that_are_not_needed_are_left_out_when_files_are_merged(index: Index) -> None:
    snapshot = added(index, begun(index), row("a", 1), row("b", 1))
    snapshot = added(index, snapshot, row("c", 1), row("d", 1), without=["a"])
    assert contents(snapshot).keys() == {"b", "c", "d"}


def test_rows_added_one_by_one_make_few_files_and_are_rarely_written_again(index: Index) -> None:
    snapshot, written = begun(index), 0
    for number in range(256):
        before = {file.path for file in snapshot.files}
        snapshot = added(index, snapshot, row(f"r{number}", 1))
        written += sum(file.rows for file in snapshot.files if file.path not in before)
    assert len(snapshot.files) <= 9
    assert written <= 256 * 9
    assert len(contents(snapshot)) == 256


def test_files_that_no_manifest_names_are_removed_when_they_are_old(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = added(index, begun(index), row("a", 1))
    orphan = index.directory / "columns.0123456789abcdef"
    orphan.write_bytes(b"x")
    foreign = index.directory / "notes.txt"
    foreign.write_bytes(b"x")
    snapshot = added(index, snapshot, row("a", 2))
    assert orphan.exists()
    monkeypatch.setattr("qwf.storage.index._ORPHAN_SECONDS", -60.0)
    added(index, snapshot, row("a", 3))
    assert not orphan.exists()
    assert foreign.exists()
    assert contents(index.newest()) == {"a": {"revision": 3}}


@pytest.mark.parametrize("change", [{"version": 99}, {"files": None}, {"origin": None}])
def test_an_index_of_an_unknown_version_is_none_and_is_begun_anew(
    index: Index, change: dict[str, Any]
) -> None:
    added(index, begun(index), row("a", 1))
    path = manifests(index.directory)[-1]
    document = {**json.loads(path.read_bytes()), **change}
    document = {key: value for key, value in document.items() if value is not None}
    path.write_bytes(encode_document(document))
    assert index.newest() is None
    assert index.begin({}) is not None
    newest = index.newest()
    assert newest is not None
    assert newest.files == ()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "changed": lambda path: path.write_bytes(path.read_bytes().replace(b'"of": 1', b'"of": 2')),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_without_its_newest_manifest_an_index_is_none_and_never_the_one_before(
    index: Index, name: str
) -> None:
    base = added(index, begun(index), *(row(f"r{n}", 1) for n in range(5)))
    added(index, base, row("r1", 2))
    DAMAGES[name](manifests(index.directory)[-1])
    assert index.newest() is None
    if name != "missing":
        with pytest.raises(CorruptRecordError):
            index.verify()


def test_names_that_are_listed_while_one_manifest_follows_another_are_listed_again(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing may show neither what goes nor what comes while it is made."""
    snapshot = added(index, begun(index), row("a", 1))
    real = fsio.list_names
    answers = [[name for name in real(index.directory) if name.startswith("columns.")]]
    monkeypatch.setattr(fsio, "list_names", lambda path: answers.pop() if answers else real(path))
    newest = index.newest()
    assert newest is not None
    assert newest.number == snapshot.number


def test_an_index_that_may_not_be_listed_is_none(index: Index) -> None:
    index.directory.write_bytes(b"a file in its place")
    assert index.newest() is None


@given(st.binary(max_size=80))
def test_a_manifest_of_any_bytes_is_none(tmp_path_factory: Any, data: bytes) -> None:
    directory = tmp_path_factory.mktemp("index")
    (directory / "manifest.1").write_bytes(data)
    assert Index(directory, FAMILIES).newest() is None


@pytest.mark.crash
@pytest.mark.parametrize("what", ["begin", "add", "merge", "tidy"])
def test_writing_may_be_killed_at_any_call(what: str, tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    if what != "begin":
        index = Index(prepared / "index", FAMILIES)
        snapshot = added(index, begun(index), *(row(f"r{n}", 1) for n in range(8)))
        for revision in (2, 3) if what == "tidy" else ():
            snapshot = added(index, snapshot, row("r0", revision))
    before = contents(Index(prepared / "index", FAMILIES).newest())
    new = [row(f"r{n}", 9) for n in range(8 if what == "merge" else 1)]

    def write(root: Path) -> None:
        index = Index(root / "index", FAMILIES)
        base = index.newest() or index.begin({})
        assert base is not None
        assert index.commit(base, Rows(new), {}) is not None

    steps = 0
    after = {**before, **{one[ID]: {"revision": 9} for one in new}}
    for point in crash_points(prepared, write, tmp_path):
        steps = point.step
        index = Index(point.directory / "index", FAMILIES)
        found = contents(index.newest())
        assert found in (before, after), point
        assert not point.acknowledged or found == after, point
        write(point.directory)
        assert contents(index.newest()) == after, point
        index.verify()
    assert steps > 5
