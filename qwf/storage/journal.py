"""An append-only log with one writer per file: checksummed lines of JSON.

The first line is ``qwf-journal/2``; every other is eight hex digits of CRC-32, a blank, and JSON.
A last line without its newline was never acknowledged and is passed over; any other bad line is
damage.
"""

from __future__ import annotations

import contextlib
import itertools
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from ..errors import CorruptRecordError, FormatVersionError, WriteError
from ..types import Json
from ..version import JOURNAL_FORMAT
from . import fsio
from .appending import AppendFile
from .codec import load_json
from .reading import read_whole

__all__ = ["JournalWriter", "read_batches", "read_journal", "sound_lines", "whole_size"]

_MAGIC: Final = b"qwf-journal/"
_AT_ONCE: Final = 1024  # lines that are parsed together


class JournalWriter:
    """The one writer of a journal file, which must not exist yet.

    Attributes
    ----------
    path : Path
    size : int
        How many bytes the file has after the last `append` that returned.

    Notes
    -----
    An appended entry is visible to readers at once and survives the death of this process;
    `sync` makes it survive the loss of power.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        try:
            self._file = AppendFile(path)
        except WriteError:
            fsio.drop_private(path)  # its name may be there, not durable
            raise

    def append(self, *bodies: bytes) -> None:
        """Append entries with one write; each is JSON on one line, with its newline."""
        data = b"".join(self._lines(bodies, self.size))
        self._file.append(data)
        self.size += len(data)

    def _lines(self, bodies: Sequence[bytes], before: int) -> list[bytes]:
        lines = [b"%08x %s" % (zlib.crc32(body), body) for body in bodies]
        if before == 0 and lines:
            lines[0] = b"%s%d\n%s" % (_MAGIC, JOURNAL_FORMAT, lines[0])
        return lines

    def settle(self, bodies: Sequence[bytes], before: int) -> tuple[int, bool]:
        """Find out what an `append` has done that did not return.

        Parameters
        ----------
        bodies : sequence of bytes
            What was to be appended.
        before : int
            The size of the file before.

        Returns
        -------
        tuple of (int, bool)
            How many of the entries are whole in the file, and whether half a line follows, after
            which nothing may be appended.
        """
        self.size = fsio.size_of(self.path)
        ends = itertools.accumulate(map(len, self._lines(bodies, before)), initial=before)
        whole = [end for end in ends if end <= self.size]
        return len(whole) - 1, whole[-1] != self.size

    def sync(self) -> None:
        """Return once all entries are on stable storage."""
        self._file.sync()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_journal(path: Path) -> Iterator[Json]:
    """Yield the entries of a journal, oldest first.

    Raises
    ------
    CorruptRecordError
        At a damaged line; the entries before it were yielded.
    FormatVersionError
        If a newer qwf wrote it.

    Notes
    -----
    May be called while the writer appends: it yields the entries that were whole at the start.
    """
    return itertools.chain.from_iterable(read_batches(path))


def read_batches(path: Path) -> Iterator[list[Json]]:
    """Yield the entries of a journal as `read_journal`, many at once."""
    lines = read_whole(path).split(b"\n")
    lines.pop()  # empty after the last newline, or torn and never acknowledged
    if not lines:
        return
    _check_header(path, lines[0])
    for start in range(1, len(lines), _AT_ONCE):
        several = lines[start : start + _AT_ONCE]
        count = _count_sound(several)
        # Parsed as one array, in a fifth of the time that many texts take; not all of the file
        # at once, because the garbage collector goes through a million lists again and again.
        yield load_json(b"[%s]" % b",".join([line[9:] for line in several[:count]]))  # type: ignore[misc]  # an array
        if count < len(several):
            place = start + count + 1
            raise CorruptRecordError(path, f"line {place} does not match its checksum")


def _count_sound(lines: Sequence[bytes]) -> int:
    """Return how many lines there are before the first damaged one."""
    crc32 = zlib.crc32  # a million times
    with contextlib.suppress(ValueError):
        matches = [int(line[:8], 16) == crc32(b"\n", crc32(line[9:])) for line in lines]
        if all(matches) and {line[8:9] for line in lines} == {b" "}:
            return len(lines)
    return len(list(itertools.takewhile(_is_sound, lines)))


def _is_sound(line: bytes) -> bool:
    return line[:9] == b"%08x " % zlib.crc32(b"\n", zlib.crc32(line[9:]))


def sound_lines(path: Path) -> bytes:
    """Return what is left of a journal without the lines that are damaged."""
    lines = read_whole(path).split(b"\n")
    kept = [line for line in lines if _is_sound(line)]
    try:
        _check_header(path, lines[0])
        header = lines[0]
    except (CorruptRecordError, FormatVersionError):
        header = b"%s%d" % (_MAGIC, JOURNAL_FORMAT)
    return b"\n".join([header, *kept, b""])


def whole_size(path: Path) -> tuple[int, int]:
    """Return how many bytes of a journal are whole lines, and how many it has."""
    data = read_whole(path)
    return data.rfind(b"\n") + 1, len(data)


def _check_header(path: Path, line: bytes) -> None:
    magic, version = line[: len(_MAGIC)], line[len(_MAGIC) :]
    if magic != _MAGIC or not version.isdigit():
        raise CorruptRecordError(path, "line 1 is not the header of a journal")
    if int(version) > JOURNAL_FORMAT:
        raise FormatVersionError(path, found=int(version), readable=JOURNAL_FORMAT)
