"""Errors of experiments, recorders, searches and artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from unicodedata import combining, east_asian_width

from .base import QwfError, suggest

__all__ = [
    "AmbiguousRecorderError",
    "ArtifactCorruptError",
    "ArtifactNotFoundError",
    "ExpAlreadyExistError",
    "ExperimentNotFoundError",
    "FilterError",
    "LoadObjectError",
    "MetricNotFoundError",
    "MetricsLostError",
    "MissingArgumentError",
    "PickleRefusedError",
    "RecorderInitializationError",
    "RecorderNotFoundError",
    "RecorderStateError",
    "RestoreError",
    "SaveObjectError",
    "SearchArgumentError",
    "TrashEntryNotFoundError",
    "UnknownStatusError",
]


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
