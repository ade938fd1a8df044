"""Why these tests cannot run here: it is told in one sentence, and is no failure."""

from __future__ import annotations

__all__ = ["CannotRunError"]


class CannotRunError(Exception):
    """Something is missing on this machine; the message says what."""
