"""A file to which one process appends: the journals."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from . import fsio

__all__ = ["AppendFile"]


class AppendFile:
    """A file that only this process appends to.

    Notes
    -----
    Each `append` is one ``write`` call, so that *readers* see whole chunks except at the very end
    of the file, and a killed process has lost nothing that `append` returned from. Power loss
    loses what `sync` has not covered.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with fsio.writing(path):
            existed = fsio.exists(path)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self._descriptor = fsio.system().open(path, flags, 0o666)
            if not existed:
                fsio.secure_names(path.parent, path)

    def append(self, data: bytes) -> None:
        """Append all of `data`."""
        # Metrics that come slowly are written one by one; entering `writing` takes longer.
        try:
            written = fsio.system().write(self._descriptor, data)
            if written < len(data):
                fsio.write_all(self._descriptor, memoryview(data)[written:])
        except OSError as error:
            raise fsio.refusal(self.path, error) from error

    def sync(self) -> None:
        """Return once everything appended is on stable storage."""
        with fsio.writing(self.path):
            fsio.system().fsync(self._descriptor)

    def close(self) -> None:
        """Close the file; it does not imply `sync`. Closing again does nothing."""
        # Forgotten first: a number that failed to close may soon be another file's.
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with fsio.writing(self.path):
                fsio.system().close(descriptor)

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            with contextlib.suppress(OSError):
                self.close()
