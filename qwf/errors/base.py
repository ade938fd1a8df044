"""What all errors have in common, and how a near name is suggested."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

__all__ = [
    "QlibException",
    "QwfError",
    "rebuild",
    "suggest",
]


def suggest(name: object, known: Iterable[object]) -> str:
    """Return a clause that names the nearest of the known names, or lists a few of them."""
    names = sorted(str(item) for item in known)
    near = get_close_matches(str(name), names, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    if not names:
        return "there are none."
    shown = ", ".join(repr(item) for item in names[:8])
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"there are: {shown}{more}."


class QwfError(Exception):
    """Base class of all errors raised by qwf.

    A subclass either passes one finished sentence, or keeps facts as attributes and builds
    the sentence in ``__str__``.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild, (type(self), self.args, self.__dict__.copy())

    def __str__(self) -> str:
        # KeyError would print the repr of the sentence.
        return str(self.args[0]) if self.args else type(self).__name__


def rebuild(cls: type[QwfError], args: tuple[Any, ...], facts: dict[str, Any]) -> QwfError:
    """Return an error as it was before it was pickled."""
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(facts)
    return error


# The name under which Qlib's users catch everything.
QlibException = QwfError
