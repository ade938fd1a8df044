"""Names given by users become file names that can be read back and never leave their directory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwf.errors import ConfigError, NotAStoreError, UnsafeNameError
from qwf.storage.layout import (
    artifact_path,
    decode_name,
    encode_name,
    new_recorder_id,
    parse_uri,
)

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300)


@given(names)
def test_an_encoded_name_is_one_safe_entry(name: str) -> None:
    encoded = encode_name(name)
    assert "/" not in encoded
    assert "\0" not in encoded
    assert not encoded.startswith(".")
    assert encoded not in ("", ".", "..")
    assert len(encoded.encode()) <= 216


@given(names.filter(lambda name: len(name.encode()) < 60))
def test_a_short_name_can_be_read_back(name: str) -> None:
    assert decode_name(encode_name(name)) == name


@given(names, names)
def test_different_names_get_different_entries(one: str, other: str) -> None:
    assert (encode_name(one) == encode_name(other)) == (one == other)


def test_long_names_that_differ_only_at_their_end_stay_apart() -> None:
    assert encode_name("x" * 5000 + "a") != encode_name("x" * 5000 + "b")


@pytest.mark.parametrize("name", ["", None, 3, "\ud800"])
def test_what_is_no_name_is_refused(name: object) -> None:
    with pytest.raises(UnsafeNameError, match="Nothing was changed"):
        encode_name(name)


@pytest.mark.parametrize("name", ["..", "a/../b", "/abs", "a//b", "a/", ".", "./a", ""])
def test_an_artifact_name_cannot_leave_its_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsafeNameError):
        artifact_path(tmp_path, name)


def test_ids_of_one_process_sort_in_the_order_they_were_made() -> None:
    ids = [new_recorder_id() for _ in range(2000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("/a/b", "/a/b"),
        ("file:///a/b", "/a/b"),
        ("file:/a/b", "/a/b"),
        ("file:///a/my%20store", "/a/my store"),
        ("FILE:///a", "/a"),
        ("/a/../b", "/b"),
    ],
)
def test_a_uri_means_one_absolute_path(uri: str, path: str) -> None:
    assert parse_uri(uri) == Path(path)


def test_a_relative_uri_starts_from_its_base(tmp_path: Path) -> None:
    assert parse_uri("s", base=tmp_path) == tmp_path / "s"
    assert parse_uri("file:s", base=tmp_path) == tmp_path / "s"
    assert parse_uri("s") == Path(os.getcwd()) / "s"


def test_the_home_directory_is_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_uri("~/s") == tmp_path / "s"


@pytest.mark.parametrize("uri", ["", "sqlite:///x.db", "http://host/x"])
def test_what_is_no_directory_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError):
        parse_uri(uri)


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(NotAStoreError, match="is a file and not a directory"):
        parse_uri(tmp_path / "f")


def test_a_store_that_another_process_creates_just_now_is_not_taken_for_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "s"

    def then_create(answer: Callable[[Path], bool]) -> Callable[[Path], bool]:
        def asked(path: Path) -> bool:
            found = answer(path)
            os.makedirs(store, exist_ok=True)
            return found

        return asked

    for question in (Path.is_dir, Path.exists):
        monkeypatch.setattr(Path, question.__name__, then_create(question))
    assert parse_uri(store) == store
