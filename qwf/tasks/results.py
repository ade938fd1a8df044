"""How definitions and results are written as JSON (to be replaced)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..storage.codec import decode, encode
from ..types import Json

__all__ = ["Values"]


class Values:
    """Plain data only, for the time being."""

    def __init__(self, store_root: Path, allow_pickle: bool) -> None:
        self.root, self.allow_pickle = store_root, allow_pickle

    def encode(self, value: object, what: str) -> Json:
        """Return JSON."""
        return encode(value)

    def decode(self, form: Json, source: str) -> Any:
        """Return the value."""
        return decode(form)
