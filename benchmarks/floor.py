"""The floor: the system calls that no program with the same durability can do without."""

from __future__ import annotations

import os

__all__ = ["append_all", "fsync_directory", "publish", "read", "replace", "write_new"]

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL


def fsync_directory(path: str) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def write_new(path: str, data: bytes) -> None:
    """Create a file; its content is durable, its name is not."""
    descriptor = os.open(path, _NEW, 0o666)
    os.write(descriptor, data)
    os.fsync(descriptor)
    os.close(descriptor)


def publish(parent: str, name: str, file: str, data: bytes) -> None:
    """Create a directory together with its first file, all at once, durable."""
    temporary = f"{parent}/.tmp"
    os.mkdir(temporary)
    write_new(f"{temporary}/{file}", data)
    fsync_directory(temporary)
    os.rename(temporary, f"{parent}/{name}")
    fsync_directory(parent)


def replace(directory: str, file: str, data: bytes) -> None:
    """Replace a file, atomic and durable."""
    temporary = f"{directory}/.tmp"
    write_new(temporary, data)
    os.replace(temporary, f"{directory}/{file}")
    fsync_directory(directory)


def append_all(directory: str, file: str, chunks: list[bytes]) -> None:
    """Append each chunk with a write of its own to a new file; durable at the end."""
    descriptor = os.open(f"{directory}/{file}", _NEW | os.O_APPEND, 0o666)
    fsync_directory(directory)
    for chunk in chunks:
        os.write(descriptor, chunk)
    os.fsync(descriptor)
    os.close(descriptor)


def read(path: str) -> bytes:
    """Return the content of a file."""
    descriptor = os.open(path, os.O_RDONLY)
    size = os.fstat(descriptor).st_size
    data = os.read(descriptor, size)
    os.close(descriptor)
    return data
