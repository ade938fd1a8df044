"""A table of plain values in one file, written once, of which each column can be read alone.

The first line is ``qwf-columns/1``, the second lists the columns with their places, every other
line is one column. Each line but the first carries its checksum, as in a journal. Columns that
repeat themselves are kept small: as one value, as codes, or as the few rows that have a value.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ..errors import CorruptRecordError
from . import fsio
from .codec import dump_json, load_json

__all__ = ["ColumnFile", "encode_columns"]

_MAGIC: Final = b"qwf-columns/1\n"
_CRC_BYTES: Final = 9  # eight hex digits and a blank

# The forms of a column.
_ALL: Final = "all"  # one value per row
_ONE: Final = "one"  # the same value in every row
_CODES: Final = "codes"  # [distinct values, number of the value per row]
_SOME: Final = "some"  # [rows that have a value, their values]

# A file of at most so many bytes is read whole: on a network mount each column would else take as
# long as all of them.
_WHOLE_BYTES: Final = 1 << 20

Key = tuple[str, str]


def encode_columns(columns: Mapping[Key, Sequence[Any]], rows: int) -> bytes:
    """Return the bytes of a file of columns.

    Parameters
    ----------
    columns : mapping of (family, key) to sequence
        One value per row: None (missing), a text, an int or a float.
    rows : int
        The length of each.
    """
    directory, lines, place = [], [], 0
    for (family, key), values in columns.items():
        form, content = _packed(list(values), rows)
        line = _line(content)
        directory.append([family, key, form, place, len(line)])
        lines.append(line)
        place += len(line)
    head = _line({"rows": rows, "columns": directory})
    return b"".join([_MAGIC, head, *lines])


def _line(content: Any) -> bytes:
    body = dump_json(content)
    return b"%08x %s" % (zlib.crc32(body), body)


def _packed(values: list[Any], rows: int) -> tuple[str, Any]:
    kinds = set(map(type, values))
    if float in kinds:
        # JSON has no NaN and no infinities; a text in a list of one cannot be a value of its own.
        values = [
            [repr(value)] if type(value) is float and value - value != 0 else value
            for value in values
        ]
    missing = type(None) in kinds
    present = (
        [row for row, value in enumerate(values) if value is not None] if missing else range(rows)
    )
    first = values[0] if rows else None
    if len(present) in (0, rows) and _all_are(first, values):
        return _ONE, first
    if 2 * len(present) < rows:
        return _SOME, [list(present), [values[row] for row in present]]
    if kinds <= {str, type(None)}:
        numbers: dict[Any, int] = {}
        codes = [numbers.setdefault(value, len(numbers)) for value in values]
        if 4 * len(numbers) < rows:
            return _CODES, [list(numbers), codes]
    return _ALL, values


def _all_are(first: Any, values: list[Any]) -> bool:
    # 1, 1.0 and True are equal, and so are 0.0 and -0.0; their texts are not.
    text = repr(first)
    return all(value == first and repr(value) == text for value in values)


def _unpacked(form: str, content: Any, rows: int) -> list[Any]:
    if form == _ONE:
        return [_plain(content)] * rows
    if form == _CODES:
        distinct, codes = content
        return [distinct[code] for code in codes]
    if form == _SOME:
        values: list[Any] = [None] * rows
        for row, value in zip(*content, strict=True):
            values[row] = _plain(value)
        return values
    if form != _ALL:
        raise ValueError(f"a column has the unknown form {form!r}")
    return [_plain(value) for value in content] if _has_lists(content) else content


def _has_lists(values: list[Any]) -> bool:
    return list in set(map(type, values))


def _plain(value: Any) -> Any:
    return float(value[0]) if type(value) is list else value


class ColumnFile:
    """A file of columns; those of a large one are read one by one, when they are asked for.

    Parameters
    ----------
    path : Path

    Raises
    ------
    FileNotFoundError
        If it is not there.
    CorruptRecordError
        If its directory is damaged; `column` raises it for a damaged column.

    Notes
    -----
    A file of columns never changes, so what was read stays true also when the file is removed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        head = fsio.read_range(path, 0, _WHOLE_BYTES)
        if not head.startswith(_MAGIC):
            raise CorruptRecordError(path, "its first line is not that of a file of columns")
        end = head.find(b"\n", len(_MAGIC)) + 1
        if end == 0:  # more columns than usual
            head = fsio.read_bytes(path)
            end = head.find(b"\n", len(_MAGIC)) + 1
        directory = self._checked(head[len(_MAGIC) : end])
        self._start = end
        self._content = head if len(head) < _WHOLE_BYTES else None
        try:
            self.rows = int(directory["rows"])
            self._places: dict[Key, tuple[str, int, int]] = {
                (family, key): (form, place, size)
                for family, key, form, place, size in directory["columns"]
            }
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptRecordError(path, f"its list of columns is wrong ({error!r})") from error

    def keys(self, family: str) -> list[str]:
        """Return the keys of a family that any row has."""
        return [key for of, key in self._places if of == family]

    def column(self, family: str, key: str) -> list[Any]:
        """Return one value per row; None where there is none. It is parsed at each call."""
        if (family, key) not in self._places:
            return [None] * self.rows
        form, place, size = self._places[family, key]
        start = self._start + place
        if self._content is None:
            line = fsio.read_range(self.path, start, size)
        else:
            line = self._content[start : start + size]
        content = self._checked(line)
        try:
            values = _unpacked(form, content, self.rows)
        except (TypeError, ValueError, IndexError) as error:
            raise CorruptRecordError(self.path, f"column {key!r} is wrong ({error!r})") from error
        if len(values) != self.rows:
            raise CorruptRecordError(self.path, f"column {key!r} has {len(values)} rows")
        return values

    def verify(self) -> None:
        """Read every column.

        Raises
        ------
        CorruptRecordError
            If one is damaged.
        """
        for family, key in self._places:
            self.column(family, key)

    def _checked(self, line: bytes) -> Any:
        body = line[_CRC_BYTES:]
        if line[:_CRC_BYTES] != b"%08x " % zlib.crc32(body) or not body.endswith(b"\n"):
            raise CorruptRecordError(self.path, "a line does not match its checksum")
        return load_json(body)
