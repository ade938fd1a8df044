"""Tables of text: aligned, and never wider than asked, whatever users have written into them.

Pure functions of columns; they know no recorder and no terminal.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["Column", "cut", "display_width", "lay_out", "lay_out_facts", "printable"]

_GAP: Final = 2
# A text may be cut to this width; below it, little can be recognised.
_TEXT_FLOOR: Final = 8
_MARK: Final = "…"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column.

    Attributes
    ----------
    name : str
        The head.
    values : sequence
        What programs get; None where there is nothing.
    show : callable
        Value -> what people get. Not called for None, which is shown as nothing.
    whole : bool
        Whether a part of a value says nothing, so that it is left out rather than cut.
    number : bool
        The same, and it stands on the right.
    keep_end : bool
        Whether the end says more than the beginning, when it has to be cut.
    importance : int
        Of columns that do not fit, the least important go first; of equals, the last.
    """

    name: str
    values: Sequence[object]
    show: Callable[[object], str] = str
    whole: bool = False
    number: bool = False
    keep_end: bool = False
    importance: int = 0


@dataclass(frozen=True)
class _Shown:
    """A column as text."""

    column: Column
    head: str
    cells: list[str]

    @property
    def natural(self) -> int:
        """The width that shows it whole."""
        return max(map(display_width, [self.head, *self.cells]), default=0)

    @property
    def floor(self) -> int:
        """The width below which it is rather left out."""
        if not (self.column.number or self.column.whole):
            return min(self.natural, _TEXT_FLOOR + self.column.keep_end)
        cells = max(map(display_width, self.cells), default=0)
        return max(cells, min(display_width(self.head), _TEXT_FLOOR))

    def lines(self, width: int) -> list[str]:
        """Return head and cells, each exactly so wide."""
        keep_end, right = self.column.keep_end, self.column.number
        cells = [cut(cell, width, keep_end=keep_end) for cell in self.cells]
        return [_padded(text, width, right=right) for text in [cut(self.head, width), *cells]]


def lay_out(
    columns: Sequence[Column], width: int | None = None, encoding: str = "utf-8"
) -> tuple[list[str], list[str]]:
    """Return the lines of a table, and the names of the columns that were left out.

    Parameters
    ----------
    columns : sequence of Column
        With equally many values.
    width : int, optional
        No line is wider. Texts are cut and columns left out until it fits; at least one is shown.
        None: everything is shown whole.
    encoding : str
        What cannot be written in it is shown escaped.

    Examples
    --------
    >>> columns = [Column(name="name", values=["a", "b"]),
    ...            Column(name="IC", values=[0.5, None], number=True)]
    >>> lay_out(columns)
    (['name   IC', 'a     0.5', 'b'], [])
    """
    shown = [_shown(column, encoding) for column in columns]
    if width is None:
        kept, widths = shown, [one.natural for one in shown]
    else:
        kept = _that_fit(shown, width)
        widths = _shares(kept, width)
    cells = [one.lines(wide) for one, wide in zip(kept, widths, strict=True)]
    lines = [(" " * _GAP).join(row) for row in zip(*cells, strict=True)]
    return _marked(lines, encoding), [one.head for one in shown if one not in kept]


def _marked(lines: list[str], encoding: str) -> list[str]:
    """Return stripped lines with a mark that can be written."""
    if printable(_MARK, encoding) != _MARK:  # so it stands nowhere as a user's character
        lines = [line.replace(_MARK, "~") for line in lines]
    return [line.rstrip() for line in lines]


def _shown(column: Column, encoding: str) -> _Shown:
    texts = ["" if value is None else column.show(value) for value in column.values]
    return _Shown(
        column, printable(column.name, encoding), [printable(text, encoding) for text in texts]
    )


def _that_fit(shown: list[_Shown], width: int) -> list[_Shown]:
    kept = list(shown)
    while len(kept) > 1 and _needed([one.floor for one in kept]) > width:
        least = min(one.column.importance for one in kept)
        kept.remove([one for one in kept if one.column.importance == least][-1])
    return kept


def _needed(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def _shares(kept: list[_Shown], width: int) -> list[int]:
    """Give each column its natural width, and take from the widest what is too much."""
    widths = [one.natural for one in kept]
    floors = [one.floor for one in kept]
    if len(kept) == 1:
        return [min(widths[0], width)]
    while (excess := _needed(widths) - width) > 0:
        able = [i for i in range(len(kept)) if widths[i] > floors[i]]
        widest = max(able, key=widths.__getitem__)
        others = [widths[i] for i in able if widths[i] < widths[widest]]
        # Down to the next widest in one go: a text may be megabytes long.
        target = max(floors[widest], max(others, default=0), widths[widest] - excess)
        widths[widest] = min(target, widths[widest] - 1)
    return widths


def _padded(text: str, width: int, *, right: bool) -> str:
    blanks = " " * (width - display_width(text))
    return blanks + text if right else text + blanks


def lay_out_facts(
    facts: Mapping[str, str], width: int | None = None, encoding: str = "utf-8"
) -> list[str]:
    """Return lines with names and values, these wrapped where they would be wider.

    Examples
    --------
    >>> lay_out_facts({"lr": "0.001", "model": "a linear one"}, width=14)
    ['lr     0.001', 'model  a linea', '       r one']
    """
    names = [printable(name, encoding) for name in facts]
    head = max(map(display_width, names), default=0)
    if width is not None:
        head = min(head, max(0, (width - _GAP - 1) // 2))
    gap = _GAP if head else 0
    room = None if width is None else width - head - gap
    lines = []
    for name, value in zip(names, facts.values(), strict=True):
        first, *others = _wrapped(printable(value, encoding), room)
        lines.append(_padded(cut(name, head), head + gap, right=False) + first)
        lines += [" " * (head + gap) + other for other in others]
    return _marked(lines, encoding)


def _wrapped(text: str, width: int | None) -> list[str]:
    if width is None or display_width(text) <= width:
        return [text]
    lines, used = [""], 0
    for character in text:
        wide = _width(character)
        if wide > width:  # a wide one, and room for one
            character, wide = _MARK, 1
        if used + wide > width:
            lines.append("")
            used = 0
        lines[-1] += character
        used += wide
    return lines


# --- characters ------------------------------------------------------------------------------


def printable(text: str, encoding: str = "utf-8") -> str:
    r"""Return a text that moves no cursor: one line, without anything that a terminal obeys.

    Examples
    --------
    >>> print(printable("a\nb\x1b[31m\u202e 沪深"))
    a\nb\x1b[31m\u202e 沪深
    """
    if not text.isprintable():
        text = "".join(map(_escaped, text))
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _escaped(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode()


def display_width(text: str) -> int:
    """Return how many columns of a terminal a printable text takes.

    Examples
    --------
    >>> display_width("沪深300")
    7
    """
    return len(text) if text.isascii() else sum(map(_width, text))


def _width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, width: int, *, keep_end: bool = False) -> str:
    """Return a printable text that is no wider; what is missing is marked.

    Examples
    --------
    >>> cut("rolling", 5), cut("沪深300", 4), cut("20251124-a1b2", 5, keep_end=True)
    ('roll…', '沪…', '…a1b2')
    """
    if display_width(text) <= width:
        return text
    if width < 1:
        return ""
    kept, used = [], 1
    for character in reversed(text) if keep_end else text:
        used += _width(character)
        if used > width:
            break
        kept.append(character)
    return _MARK + "".join(reversed(kept)) if keep_end else "".join(kept) + _MARK
