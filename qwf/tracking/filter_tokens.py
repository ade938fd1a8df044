"""How the text of a filter or order falls into words, numbers, quoted texts and signs.

Knows no grammar; whoever meets a token that it cannot use asks for the error here.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from ..errors import FilterError

__all__ = ["Scanner", "Token"]

_TOKEN: Final = re.compile(
    r"""
    (?P<number> [+-]? (?: (?: [0-9]+ \.? [0-9]* | \.[0-9]+ ) (?: [eE] [+-]? [0-9]+ )?
                        | (?i: inf | infinity | nan ) )
                (?! [\w./:+-] ) )
    | (?P<word> [\w./:-]+ )
    | (?P<quoted> ' [^']* (?: '' [^']* )* ' (?!')
                | " [^"]* (?: "" [^"]* )* " (?!")
                | ` [^`]* (?: `` [^`]* )* ` (?!`) )
    | (?P<operator> [<>=!]+ )
    | (?P<sign> [(),] )
    """,
    re.VERBOSE,
)
_BLANK: Final = re.compile(r"\s*")
_SHOWN: Final = 40


class Token(NamedTuple):
    """A piece of the text; `kind` is a group of the pattern, ``unclosed``, ``other`` or ``end``.

    It is `glued` if no blank stands before it.
    """

    kind: str
    written: str
    position: int
    glued: bool

    @property
    def keyword(self) -> str:
        """The word or sign in upper case; empty for quoted texts and all else."""
        return self.written.upper() if self.kind in ("word", "sign") else ""

    @property
    def value(self) -> str:
        """The text without its quotes; a quote that stands for itself is doubled within."""
        if self.kind != "quoted":
            return self.written
        quote = self.written[0]
        return self.written[1:-1].replace(quote * 2, quote)

    def __str__(self) -> str:
        if self.kind == "end":
            return "the end"
        if self.kind == "sign":
            return f'"{self.written}"'
        short = self.written[:_SHOWN]
        return short if short == self.written else f"{short}..."


class Scanner:
    """The tokens of one text, of which the next one is looked at before it is taken.

    Parameters
    ----------
    text : str
    what : str
        What the text is, for errors: "filter" or "order".
    """

    def __init__(self, text: str, what: str) -> None:
        self._text, self._what = text, what
        self.token = self._scan(0)

    def take(self) -> Token:
        """Return the next token and go on to the one after it."""
        taken = self.token
        self.token = self._scan(taken.position + len(taken.written))
        return taken

    def take_if(self, *keywords: str) -> Token | None:
        """Take the next token if it is one of these words or signs."""
        return self.take() if self.token.keyword in keywords else None

    def _scan(self, start: int) -> Token:
        blank = _BLANK.match(self._text, start)
        position = blank.end() if blank else start
        found = _TOKEN.match(self._text, position)
        if found is not None and found.lastgroup is not None:
            kind, written = found.lastgroup, found.group()
        elif position == len(self._text):
            kind, written = "end", ""
        elif self._text[position] in "'\"`":
            kind, written = "unclosed", self._text[position:]
        else:
            kind, written = "other", self._text[position]
        return Token(kind, written, position, position == start)

    def mistake(self, expected: str, hint: str = "", *, at: Token | None = None) -> FilterError:
        """Return the error that something else was expected than the next token, or than `at`."""
        token = at or self.token
        if token.kind == "unclosed":
            quote = token.written[0]
            expected = f"another {quote} that closes the quoted text"
            hint = f"a {quote} within the text is doubled."
        return FilterError(
            self._text,
            token.position,
            found=str(token),
            expected=expected,
            hint=hint,
            what=self._what,
        )
