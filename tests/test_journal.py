"""A journal keeps what was appended, passes over a torn end, and tells damage."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwf.errors import CorruptRecordError, FormatVersionError
from qwf.storage.codec import dump_json
from qwf.storage.journal import JournalWriter, read_journal


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "j"
    writer = JournalWriter(path)
    for number in range(5):
        writer.append(dump_json([number, {"x": "é"}]))
    writer.sync()
    writer.close()
    return path


def numbers(path: Path) -> list[object]:
    return [entry[0] for entry in read_journal(path)]  # type: ignore[index]


def test_entries_come_back_in_order(journal: Path) -> None:
    assert numbers(journal) == [0, 1, 2, 3, 4]


def test_readers_see_an_entry_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "j")
    writer.append(b"[7]\n")
    assert numbers(tmp_path / "j") == [7]
    writer.close()


def test_cutting_the_file_anywhere_loses_only_what_was_cut(journal: Path) -> None:
    data = journal.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    for size in range(len(data) + 1):
        journal.write_bytes(data[:size])
        whole = sum(end <= size for end in ends) - 1
        assert numbers(journal) == list(range(max(whole, 0)))


def test_any_changed_byte_before_the_end_is_told(journal: Path) -> None:
    data = journal.read_bytes()
    for position in range(len(data) - 1):
        changed = bytearray(data)
        changed[position] ^= 0x15
        journal.write_bytes(bytes(changed))
        try:
            assert numbers(journal) != [0, 1, 2, 3, 4], f"byte {position} was not noticed"
        except (CorruptRecordError, FormatVersionError):
            continue


def test_a_newer_journal_is_refused(journal: Path) -> None:
    journal.write_bytes(journal.read_bytes().replace(b"journal/2", b"journal/9"))
    with pytest.raises(FormatVersionError):
        numbers(journal)


def test_an_empty_file_has_no_entries(tmp_path: Path) -> None:
    (tmp_path / "j").touch()
    assert numbers(tmp_path / "j") == []
