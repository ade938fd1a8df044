"""How a long loop shows how far it is: a bar when `tqdm` is installed, else nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

__all__ = ["track"]

_T = TypeVar("_T")


def track(items: Sequence[_T], what: str) -> Iterator[_T]:
    """Yield the items; a bar on standard error names what is done, if that is a terminal."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        yield from items
        return
    # disable=None: no bar where nobody watches it.
    yield from tqdm(items, desc=what, disable=None)
