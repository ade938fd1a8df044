"""Whole directories and large files: published at once, copied, removed with all below them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from . import fsio

__all__ = ["copy_whole", "publish_directory", "remove_empty_directories", "remove_tree"]

_CHUNK: Final = 1 << 20


def publish_directory(path: Path, files: Mapping[str, bytes]) -> bool:
    """Create a directory together with its first files, all at once.

    Parameters
    ----------
    path : Path
        The directory to create; its parent must exist.
    files : mapping of str to bytes
        Names relative to `path` (no subdirectories) and contents.

    Returns
    -------
    bool
        Whether this call created it; False when somebody else did before.

    Notes
    -----
    *Readers* never see the directory without its files. *Racing writers*: one wins. *A crash*
    leaves nothing, the whole directory, or a temporary directory that the check removes.
    """
    temporary = fsio.private_beside(path)
    with fsio.writing(path):
        fsio.system().mkdir(temporary)
        try:
            for name, data in files.items():
                fsio.write_new(temporary / name, data)
            fsio.secure_names(temporary, path)
            try:
                fsio.rename(fsio.system().rename, temporary, path)
                created = True
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise
                created = False
        except BaseException:
            remove_tree(temporary)
            raise
        if created:
            fsio.fsync_directory(path.parent)
        else:
            remove_tree(temporary)
    return created


def remove_tree(path: Path) -> None:
    """Remove a directory and all below it; what others remove meanwhile is no error.

    Symbolic links are removed, not followed.
    """
    with fsio.writing(path), contextlib.suppress(FileNotFoundError):
        if not stat.S_ISDIR(fsio.system().lstat(path).st_mode):
            fsio.system().unlink(path)
            return
        for name in fsio.system().listdir(path):
            remove_tree(path / name)
        fsio.system().rmdir(path)


def remove_empty_directories(path: Path) -> None:
    """Remove a directory and all below it, if there are only directories; else what is empty.

    Symbolic links are not followed.
    """
    if os.path.islink(path):
        return
    with contextlib.suppress(NotADirectoryError, FileNotFoundError):
        for name in fsio.system().listdir(path):
            remove_empty_directories(path / name)
        with contextlib.suppress(OSError):
            fsio.system().rmdir(path)


def copy_whole(source: Path, near: Path) -> tuple[Path, int, str]:
    """Copy a file to a new private file beside `near`, durable.

    Returns the private file, its size in bytes, and its sha256 in hex.
    """
    temporary = fsio.private_beside(near)
    digest = hashlib.sha256()
    size = 0
    with source.open("rb") as reader, fsio.writing(near):
        descriptor = fsio.system().open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            try:
                while chunk := reader.read(_CHUNK):
                    fsio.write_all(descriptor, chunk)
                    digest.update(chunk)
                    size += len(chunk)
                fsio.system().fsync(descriptor)
            finally:
                fsio.system().close(descriptor)
        except BaseException:
            fsio.drop_private(temporary)
            raise
    return temporary, size, digest.hexdigest()
