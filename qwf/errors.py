"""Every exception class of qwf: facts are attributes, the sentence is built from them.

Each class also derives from the built-in exception (and has the name) that a caller of Qlib would
catch. All of them survive pickling, because workers are processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from os import PathLike
from typing import Any
from unicodedata import combining, east_asian_width

from .version import __version__

__all__ = [
    "AmbiguousRecorderError",
    "ArtifactCorruptError",
    "ArtifactNotFoundError",
    "CommandLineError",
    "ConfigError",
    "CorruptRecordError",
    "DataError",
    "ExpAlreadyExistError",
    "ExperimentNotFoundError",
    "FilterError",
    "FormatVersionError",
    "InstantiationError",
    "LoadObjectError",
    "LockTimeoutError",
    "LookAheadError",
    "MetricNotFoundError",
    "MetricsLostError",
    "MissingArgumentError",
    "NotAStoreError",
    "NotDurableError",
    "NotInitializedError",
    "NotSessionError",
    "PickleRefusedError",
    "PlaceholderError",
    "QlibException",
    "QueryError",
    "QwfError",
    "RecorderInitializationError",
    "RecorderNotFoundError",
    "RecorderStateError",
    "RestoreError",
    "SaveObjectError",
    "SearchArgumentError",
    "SegmentError",
    "SessionOutOfBoundsError",
    "StoreNotFoundError",
    "TrainingError",
    "TrashEntryNotFoundError",
    "UnknownNameError",
    "UnknownStatusError",
    "UnsafeNameError",
    "WriteError",
    "WriteRefusedError",
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
        return _rebuild, (type(self), self.args, self.__dict__.copy())

    def __str__(self) -> str:
        # KeyError would print the repr of the sentence.
        return str(self.args[0]) if self.args else type(self).__name__


def _rebuild(cls: type[QwfError], args: tuple[Any, ...], facts: dict[str, Any]) -> QwfError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(facts)
    return error


# --- storage ---------------------------------------------------------------------------------


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
        return _rebuild, (type(self), (self.errno, self.strerror), self.__dict__.copy())

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


# --- configuration ---------------------------------------------------------------------------


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


# --- tracking --------------------------------------------------------------------------------


class ExperimentNotFoundError(QwfError, ValueError):
    """No experiment has this id or name."""

    def __init__(
        self, what: str, value: object, *, store: object, known: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.what, self.value, self.store, self.known = what, value, store, tuple(known)

    def __str__(self) -> str:
        return (
            f"no experiment with {self.what} {self.value!r} in {self.store}; "
            f"{suggest(self.value, self.known)}"
        )


class RecorderNotFoundError(QwfError, ValueError):
    """No recorder has this id or name in the experiment."""

    def __init__(
        self, what: str, value: object, *, experiment: str, known: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.what, self.value, self.experiment, self.known = what, value, experiment, tuple(known)

    def __str__(self) -> str:
        return (
            f"no recorder with {self.what} {self.value!r} in experiment {self.experiment!r}; "
            f"{suggest(self.value, self.known)}"
        )


class AmbiguousRecorderError(QwfError, ValueError):
    """A part of an id that several recorders have."""

    def __init__(self, part: str, found: Sequence[str]) -> None:
        super().__init__()
        self.part, self.found = part, tuple(found)

    def __str__(self) -> str:
        shown = ", ".join(self.found[:4]) + (" ..." if len(self.found) > 4 else "")
        return (
            f"{len(self.found)} recorders have an id that begins or ends with {self.part!r}: "
            f"{shown}. Nothing was changed. Give more of it."
        )


class TrashEntryNotFoundError(QwfError, ValueError):
    """Nothing of this id or name was deleted, or it was removed for good."""

    def __init__(self, kind: str, value: object, *, store: object, known: Sequence[str]) -> None:
        super().__init__()
        self.kind, self.value, self.store, self.known = kind, value, store, tuple(known)

    def __str__(self) -> str:
        near = suggest(self.value, self.known)
        return f"there is no {self.kind} {self.value!r} in the trash of {self.store}; {near}"


class SearchArgumentError(QwfError, ValueError):
    """A search was asked for something that there is not, besides its filter and order."""


class RestoreError(QwfError, FileExistsError):
    """What was deleted cannot be brought back to its place."""


class ExpAlreadyExistError(QwfError):
    """An experiment of this name exists already."""

    def __init__(self, name: str, *, store: object) -> None:
        super().__init__()
        self.name, self.store = name, store

    def __str__(self) -> str:
        return (
            f"experiment {self.name!r} exists already in {self.store}. Nothing was changed. "
            "Use get_exp to open it, or choose another name."
        )


class RecorderInitializationError(QwfError, RuntimeError):
    """The settings were to change while an experiment is active."""


class RecorderStateError(QwfError, ValueError):
    """A recorder was asked for something that its present state does not allow."""


class MissingArgumentError(QwfError, AssertionError, ValueError):
    """Neither an id nor a name was given."""


class UnknownStatusError(QwfError, AssertionError, ValueError):
    """A status that is not one of the recorder's."""

    def __init__(self, status: object, known: Sequence[str]) -> None:
        super().__init__()
        self.status, self.known = status, tuple(known)

    def __str__(self) -> str:
        return (
            f"unknown recorder status {self.status!r}; {suggest(self.status, self.known)} "
            "Nothing was changed."
        )


class FilterError(QwfError, ValueError):
    """A filter or an order of a search that cannot be understood.

    `position` counts the characters of `text` from 0.
    """

    def __init__(
        self,
        text: str,
        position: int,
        *,
        found: str,
        expected: str,
        hint: str = "",
        what: str = "filter",
    ) -> None:
        super().__init__()
        self.text, self.position, self.what = text, position, what
        self.found, self.expected, self.hint = found, expected, hint

    def __str__(self) -> str:
        sentence = (
            f"the {self.what} has a mistake at position {self.position}: found {self.found}, "
            f"expected {self.expected}{self.hint and '; '}{self.hint or '.'}"
        )
        # What is quoted from the text may be of several lines.
        return f"{' '.join(sentence.splitlines())}\n{_pointed_at(self.text, self.position)}"


def _pointed_at(text: str, position: int) -> str:
    """Return the part of the text around a position, and below it a caret."""
    start = max(text.rfind("\n", 0, position) + 1, position - 60)
    end = text.find("\n", position)
    end = min(len(text) if end < 0 else end, position + 40)
    shown = text[start:end].replace("\t", " ").replace("\r", " ")
    # A terminal shows a Chinese character two columns wide, and an accent in none.
    columns = sum(
        0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1
        for char in shown[: position - start]
    )
    return f"  {shown}\n  {' ' * columns}^"


class MetricsLostError(QwfError, OSError):
    """Metrics were logged for so long while the disk refused them that some could not be kept."""

    def __init__(self, recorder: str, count: int, cause: OSError | None = None) -> None:
        super().__init__()
        self.recorder, self.count = recorder, count
        self.reason = None if cause is None else str(cause)

    def __str__(self) -> str:
        rest = "The others were written." if self.reason is None else f"And now: {self.reason}"
        return (
            f"{self.count} values of metrics of recorder {self.recorder} are lost: the disk "
            f"refused them until no more could be kept in memory. {rest} Log them again."
        )


class MetricNotFoundError(QwfError, KeyError):
    """The recorder has no metric of this name."""

    def __init__(self, name: str, *, recorder: object, known: Sequence[str] = ()) -> None:
        super().__init__()
        self.name, self.recorder, self.known = name, recorder, tuple(known)

    def __str__(self) -> str:
        near = suggest(self.name, self.known)
        return f"recorder {self.recorder} has no metric {self.name!r}; {near}"


class LoadObjectError(QwfError):
    """An artifact could not be loaded."""


class ArtifactNotFoundError(LoadObjectError, FileNotFoundError):
    """The recorder has no artifact of this name."""

    def __init__(self, name: str, *, recorder: object, known: Sequence[str] = ()) -> None:
        super().__init__()
        self.name, self.recorder, self.known = name, recorder, tuple(known)

    def __str__(self) -> str:
        near = suggest(self.name, self.known)
        return f"recorder {self.recorder} has no artifact {self.name!r}; {near}"


class ArtifactCorruptError(LoadObjectError):
    """The bytes of an artifact are not those that were saved."""

    def __init__(self, path: str | PathLike[str], *, expected: str, found: str) -> None:
        super().__init__()
        self.path, self.expected, self.found = path, expected, found

    def __str__(self) -> str:
        return (
            f"{self.path} is damaged: {self.found}, recorded {self.expected}. "
            "It was left in place. Save the object again, or restore the file from a copy."
        )


class SaveObjectError(QwfError, TypeError):
    """An object that can be written in no form."""

    def __init__(self, name: str, obj: object, cause: BaseException) -> None:
        super().__init__()
        self.name, self.kind, self.reason = name, type(obj).__name__, str(cause)

    def __str__(self) -> str:
        return (
            f"cannot save artifact {self.name!r}: it is a {self.kind} that cannot be pickled "
            f"({self.reason}). Nothing was saved. Give it __getstate__, or save its parts."
        )


class PickleRefusedError(LoadObjectError, PermissionError):
    """The pickle policy does not allow what an artifact asks for."""


# --- training --------------------------------------------------------------------------------


class TrainingError(QwfError, RuntimeError):
    """Some tasks of several failed; the others were trained all the same.

    Attributes
    ----------
    experiment : str or None
        The name that the trainer was given.
    recorders : list of Recorder or None
        In the order of the tasks; None where one failed.
    failures : dict of int to exception
        By the position of the task.
    """

    def __init__(
        self,
        experiment: str | None,
        *,
        recorders: Sequence[Any],
        failures: Mapping[int, BaseException],
    ) -> None:
        super().__init__()
        self.experiment = experiment
        self.recorders, self.failures = list(recorders), dict(sorted(failures.items()))

    def __str__(self) -> str:
        shown = [
            f"task {index}: {type(error).__name__}: {error}"
            for index, error in list(self.failures.items())[:3]
        ]
        more = len(self.failures) - len(shown)
        return (
            f"{len(self.failures)} of {len(self.recorders)} tasks failed in experiment "
            f"{self.experiment!r}: {'; '.join(shown)}{f'; and {more} more' if more else ''}. The "
            f"other {len(self.recorders) - len(self.failures)} are trained and kept, and "
            "`recorders` of this error holds them. Mend the tasks of `failures` and train those "
            "again."
        )


# --- tasks -----------------------------------------------------------------------------------


class QueryError(QwfError, ValueError):
    """A query of a task pool that cannot be understood; `place` is the key or operator."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__()
        self.place, self.reason = place, reason

    def __str__(self) -> str:
        end = "" if self.reason.endswith((".", "?")) else "."
        return f"the query has a mistake at {self.place!r}: {self.reason}{end} Nothing was changed."


# --- calendar and segments -------------------------------------------------------------------


class SessionOutOfBoundsError(QwfError, KeyError, IndexError):
    """A date or shift that lies outside the calendar."""


class NotSessionError(QwfError, ValueError):
    """A date that has to be a trading day or bar and is not."""


class LookAheadError(QwfError, ValueError):
    """What was asked for would use data from after the moment it may see."""


class SegmentError(QwfError, ValueError):
    """A segment that is unknown, empty, or starts after it ends."""


# --- data ------------------------------------------------------------------------------------


class DataError(QwfError, ValueError):
    """Prices, features or labels that cannot be used as they are."""


# The name under which Qlib's users catch everything.
QlibException = QwfError
