"""Errors of a store, its files and the settings."""

from __future__ import annotations

from os import PathLike
from typing import Any

from ..version import __version__
from .base import QwfError, rebuild

__all__ = [
    "CommandLineError",
    "ConfigError",
    "CorruptRecordError",
    "FormatVersionError",
    "InstantiationError",
    "LockTimeoutError",
    "NoDirectoryError",
    "NotAStoreError",
    "NotDurableError",
    "NotInitializedError",
    "PlaceholderError",
    "StoreNotFoundError",
    "UnknownNameError",
    "UnsafeNameError",
    "WriteError",
    "WriteRefusedError",
]


class NotAStoreError(QwfError, NotADirectoryError):
    """The path given as a store cannot be one."""


class StoreNotFoundError(QwfError, FileNotFoundError):
    """There is no store where one was to be read."""

    def __init__(self, path: str | PathLike[str]) -> None:
        super().__init__()
        self.path = path

    def __str__(self) -> str:
        return (
            f"there is no store at {self.path}. Nothing was created. Say where it is with --uri or "
            "QWF_URI, or go to the directory that has it."
        )


class NoDirectoryError(QwfError, NotADirectoryError):
    """There is no directory where one was to be tried out."""

    def __init__(self, path: str | PathLike[str], *, found: str, nearest: object) -> None:
        super().__init__()
        self.path, self.found, self.nearest = path, found, nearest

    def __str__(self) -> str:
        return (
            f"cannot try out {self.path}: expected a directory and found {self.found}. Nothing was "
            f"created. The nearest directory above it is {self.nearest}; try that, or create it."
        )


class FormatVersionError(QwfError, RuntimeError):
    """A file carries a format version that this qwf cannot read."""

    def __init__(self, path: str | PathLike[str], *, found: object, readable: int) -> None:
        super().__init__()
        self.path, self.found, self.readable = path, found, readable

    def __str__(self) -> str:
        return (
            f"cannot read {self.path}: it has format version {self.found!r}, and qwf {__version__} "
            f"reads versions 1 to {self.readable}. Nothing was changed. Upgrade qwf."
        )


class CorruptRecordError(QwfError, ValueError):
    """A file that qwf wrote does not hold what qwf writes."""

    def __init__(self, path: str | PathLike[str], reason: str) -> None:
        super().__init__()
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return (
            f"{self.path} is damaged: {self.reason}. It was left in place. "
            "Run `qwf check --repair STORE` to set damaged files aside."
        )


class UnsafeNameError(QwfError, ValueError):
    """A name that cannot be the name of an experiment, artifact or metric."""

    def __init__(self, what: str, name: object, reason: str) -> None:
        super().__init__()
        self.what, self.name, self.reason = what, name, reason

    def __str__(self) -> str:
        return (
            f"{self.name!r} cannot be the name of {self.what}: {self.reason}. Nothing was changed."
        )


class LockTimeoutError(QwfError, TimeoutError):
    """Another process held a lock for longer than the caller was willing to wait."""

    def __init__(self, path: str | PathLike[str], seconds: float) -> None:
        super().__init__()
        self.path, self.seconds = path, seconds

    def __str__(self) -> str:
        return (
            f"{self.path} was still locked by another process after {self.seconds:g} s. "
            "Nothing was changed. Try again, or look for a process that hangs on this store."
        )


class WriteError(QwfError, OSError):
    """The operating system refused a write; the file keeps its old content."""

    def __init__(self, path: str | PathLike[str], cause: OSError) -> None:
        super().__init__(cause.errno, cause.strerror)
        self.path, self.reason = path, cause.strerror or str(cause)
        self.filename = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild, (type(self), (self.errno, self.strerror), self.__dict__.copy())

    def __str__(self) -> str:
        return (
            f"cannot write {self.path}: {self.reason}. What was there before is unchanged. "
            "Free some space or choose another store, then try again."
        )


class WriteRefusedError(WriteError, PermissionError):
    """The directory may not be written by this user, or is on a read-only mount."""

    def __str__(self) -> str:
        return (
            f"cannot write {self.path}: {self.reason}. What was there before is unchanged. "
            "The store can be read; to write, give this user permission or copy the store."
        )


class NotDurableError(WriteError):
    """A write took effect, and the system could not promise that it survives the loss of power."""

    def __str__(self) -> str:
        return (
            f"{self.path} was changed, but its directory could not be synced: {self.reason}. "
            "The change is in effect and may be lost with the power. Look at the disk."
        )


class ConfigError(QwfError, ValueError):
    """A setting that does not exist or has an impossible value."""


class NotInitializedError(QwfError, AttributeError):
    """``R`` was used before ``qwf.init``."""


class UnknownNameError(QwfError, AttributeError):
    """A public name that does not exist."""


class InstantiationError(QwfError, TypeError):
    """A configuration does not describe an object that can be built."""


class PlaceholderError(QwfError, KeyError, AssertionError):
    """A ``<PLACEHOLDER>`` that nothing fills."""


class CommandLineError(QwfError, ValueError):
    """What stands on the command line contradicts itself."""
