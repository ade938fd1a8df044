"""How results reach people and programs: tables, JSON, CSV; and how values are written for people.

Data goes to standard output; notes of what is not shown go to standard error, so that a pipe gets
nothing but data.
"""

from __future__ import annotations

import csv
import json
import math
import shlex
import shutil
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone

from .tables import Column, lay_out, lay_out_facts, printable

__all__ = [
    "command_line",
    "note",
    "print_csv",
    "print_facts",
    "print_json",
    "print_lines",
    "print_pairs",
    "print_table",
    "print_text",
    "show_duration",
    "show_minute",
    "show_number",
    "show_size",
    "show_time",
    "stored_time",
]


def print_table(columns: Sequence[Column], options: Namespace) -> None:
    """Print a table, or with ``--json`` or ``--csv`` its values."""
    if options.json:
        names = [column.name for column in columns]
        rows = zip(*(column.values for column in columns), strict=True)
        print_json([dict(zip(names, row, strict=True)) for row in rows])
    elif options.csv:
        print_csv(columns)
    else:
        print_text(columns)


def print_pairs(pairs: Mapping[str, object], options: Namespace, *, number: bool = False) -> None:
    """Print keys and values as a table; with ``--json`` as one object."""
    if options.json:
        print_json(pairs)
        return
    keys = Column(name="key", values=list(pairs), importance=1)
    print_table([keys, Column(name="value", values=list(pairs.values()), number=number)], options)


def print_text(columns: Sequence[Column], indent: str = "") -> None:
    """Print a table that fits the terminal, if it is one; notes say what does not."""
    lines, left_out = lay_out(columns, _room(indent), sys.stdout.encoding)
    print_lines([f"{indent}{line}" for line in lines])
    if left_out:
        note(f"not shown, for want of width: {', '.join(left_out)}; --json has all.")


def print_facts(facts: Mapping[str, str], indent: str = "") -> None:
    """Print names and values, wrapped at the edge of the terminal."""
    width = _room(indent)
    print_lines([f"{indent}{line}" for line in lay_out_facts(facts, width, sys.stdout.encoding)])


def _room(indent: str) -> int | None:
    """Return the width of the terminal beside an indent, or None when it is none."""
    if not sys.stdout.isatty():
        return None
    return max(shutil.get_terminal_size().columns - len(indent), 1)


def print_lines(lines: Sequence[str]) -> None:
    """Print lines in one write."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def note(text: str) -> None:
    """Tell people something that is no data."""
    sys.stdout.flush()  # the note comes after what it is about
    # In one write: other processes write to the same file.
    sys.stderr.write(f"{printable(text, sys.stderr.encoding)}\n")


def command_line(options: Namespace, *words: str) -> str:
    """Return a command for the same store, to be copied into a shell."""
    command, action, *names = words
    where = [] if options.uri is None else ["--uri", options.uri]
    dashes = ["--"] if any(name.startswith("-") for name in names) else []
    return printable(shlex.join(["qwf", command, action, *where, *dashes, *names]))


def print_json(document: object) -> None:
    """Print one JSON document; NaN and infinities, which JSON lacks, are null."""
    print(json.dumps(_finite(document), indent=1, allow_nan=False))


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def print_csv(columns: Sequence[Column]) -> None:
    """Print the values of a table as CSV; what is missing is empty."""
    # The module's own dialect is that of RFC 4180, line ends included.
    writer = csv.writer(sys.stdout)
    writer.writerow([column.name for column in columns])
    writer.writerows(zip(*(column.values for column in columns), strict=True))


# --- values for people -----------------------------------------------------------------------


def show_number(value: object) -> str:
    """Return a metric with six significant digits.

    Examples
    --------
    >>> show_number(0.0312345678), show_number(3.0), show_number(float("nan"))
    ('0.0312346', '3', 'nan')
    """
    return f"{value:.6g}"


def show_size(value: object) -> str:
    """Return a number of bytes.

    Examples
    --------
    >>> show_size(999), show_size(12_345), show_size(7_000_000_000)
    ('999 B', '12.3 kB', '7.0 GB')
    """
    assert isinstance(value, int)
    if value < 1000:
        return f"{value} B"
    size, units = value / 1000, ["kB", "MB", "GB", "TB"]
    while size >= 999.95 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.1f} {units[0]}"


def show_duration(value: object) -> str:
    """Return seconds as people say them.

    Examples
    --------
    >>> show_duration(0.25), show_duration(75.0), show_duration(7_260), show_duration(180_000)
    ('0.2 s', '1 min 15 s', '2 h 01 min', '2 d 02 h')
    """
    assert isinstance(value, (int, float))
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours:02} h"


def show_time(value: object) -> str:
    """Return a stored moment in local time."""
    moment = datetime.fromisoformat(str(value).removesuffix("Z")).replace(tzinfo=timezone.utc)
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def show_minute(value: object) -> str:
    """Return a stored moment in local time, without its seconds."""
    return show_time(value)[:-3]


def stored_time(milliseconds: int | None) -> str | None:
    """Return a moment as the files of a store write it: ISO 8601 in UTC."""
    if milliseconds is None:
        return None
    moment = datetime.fromtimestamp(milliseconds // 1000, timezone.utc)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{milliseconds % 1000:03}Z"
