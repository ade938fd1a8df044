"""Reading a file that qwf has written: what fails is a missing file, a closed one, or damage."""

from __future__ import annotations

from pathlib import Path

from ..errors import CorruptRecordError
from . import fsio

__all__ = ["read_whole"]


def read_whole(path: Path) -> bytes:
    """Return the content of a file that qwf has written.

    Raises
    ------
    FileNotFoundError, NotADirectoryError, PermissionError
        If it is not there, or closed to this user.
    CorruptRecordError
        If it cannot be read for another reason: the disk fails, or a directory has its name.
    """
    try:
        return fsio.read_bytes(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        raise
    except OSError as error:
        raise CorruptRecordError(path, f"it cannot be read ({error.strerror})") from error
