"""The files that are made to try things out; none of them has to survive anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from .. import fsio

__all__ = ["PREFIX", "new_file", "put_file"]

# How everything begins that a doctor makes; what one that was killed has left may be removed.
PREFIX: Final = ".qwf-doctor-"


def new_file(path: Path, data: bytes = b"") -> Path:
    """Create a file, written where it is, and return its name.

    Raises
    ------
    FileExistsError
        If the name is taken.
    """
    system = fsio.system()
    descriptor = system.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        fsio.write_all(descriptor, data)
    finally:
        system.close(descriptor)
    return path


def put_file(path: Path, data: bytes) -> None:
    """Create or replace a file whole, on servers that lose an answer too.

    Raises
    ------
    FileNotFoundError
        If there is no such file afterwards.
    """
    try:
        fsio.write_atomic(path, data, durable=False)
    except FileNotFoundError:  # what a repeated question is answered (NFS 3) when it had happened
        if path.name not in fsio.list_names(path.parent):
            raise
