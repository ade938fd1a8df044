"""What every record has in common: where its artifacts lie and what it depends on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, ClassVar, Final

from ..errors import ArtifactNotFoundError, RecorderStateError
from ..tracking.recorder import Recorder

__all__ = ["ACRecordTemp", "RecordTemp"]

_logger: Final = logging.getLogger("qwf.records")


class RecordTemp:
    """Base of qwf's own records; a record of the user's needs only ``generate()``.

    Parameters
    ----------
    recorder : Recorder
        The recorder whose artifacts are read and written.
    """

    artifact_path: ClassVar[str | None] = None
    depend_cls: ClassVar[type[RecordTemp] | None] = None

    def __init__(self, recorder: Recorder | None) -> None:
        self._recorder = recorder

    @property
    def recorder(self) -> Recorder:
        """The recorder.

        Raises
        ------
        RecorderStateError
            If none was given.
        """
        if self._recorder is None:
            raise RecorderStateError(
                f"{type(self).__name__} was made without a recorder. Pass recorder=..."
            )
        return self._recorder

    @classmethod
    def get_path(cls, path: str | None = None) -> str:
        """Return the artifact name of a file of this record, or of its directory."""
        return "/".join(part for part in (cls.artifact_path, path) if part)

    def save(self, **objects: Any) -> None:
        """Save objects below this record's artifact path."""
        self.recorder.save_objects(artifact_path=self.get_path() or None, **objects)

    def generate(self, **kwargs: Any) -> Any:
        """Compute and save."""
        raise NotImplementedError(f"{type(self).__name__} has no generate()")

    def list(self) -> list[str]:
        """Return the names of the files that `generate` saves."""
        return []

    def load(self, name: str, parents: bool = True) -> Any:
        """Load a file of this record, or of one that it depends on.

        Raises
        ------
        ArtifactNotFoundError
            If the recorder has none of this name at any of these places.
        """
        missing: ArtifactNotFoundError | None = None
        for record in self._chain(parents=parents):
            try:
                return self.recorder.load_object(record.get_path(name))
            except ArtifactNotFoundError as error:
                missing = missing or error
        assert missing is not None  # the chain begins with this record
        raise missing

    @classmethod
    def _chain(cls, *, parents: bool) -> Iterator[type[RecordTemp]]:
        record: type[RecordTemp] | None = cls
        while record is not None:
            yield record
            record = record.depend_cls if parents else None

    def check(self, include_self: bool = False, parents: bool = True) -> None:
        """Raise if a file is missing that this record needs (or, with `include_self`, saves).

        Raises
        ------
        FileNotFoundError
        """
        needed = list(self.list_needed()) if parents else []
        if include_self:
            needed += [self.get_path(name) for name in self.list()]
        present = self.recorder.artifacts()
        for name in needed:
            if name not in present:
                raise ArtifactNotFoundError(name, recorder=self.recorder.id, known=sorted(present))

    @classmethod
    def list_needed(cls) -> Iterator[str]:
        """Yield the artifact names that this record reads."""
        if cls.depend_cls is not None:
            for name in cls.depend_cls(recorder=None).list():
                yield cls.depend_cls.get_path(name)
            yield from cls.depend_cls.list_needed()


class ACRecordTemp(RecordTemp):
    """A record that checks before it generates, and can be told to keep what is there.

    Parameters
    ----------
    recorder : Recorder
    skip_existing : bool, default False
        Do nothing when everything this record saves is there already.
    """

    def __init__(self, recorder: Recorder, skip_existing: bool = False) -> None:
        super().__init__(recorder)
        self.skip_existing = skip_existing

    def generate(self, **kwargs: Any) -> dict[str, Any] | None:
        """Compute and save; returns what was saved, or None when there was nothing to do.

        When a file that this record depends on is missing, that is logged as a warning.
        """
        if self.skip_existing and self._complete():
            return None
        try:
            self.check()
        except FileNotFoundError as error:
            _logger.warning("%s is skipped: %s", type(self).__name__, error)
            return None
        objects = self._generate(**kwargs)
        if objects:
            self.save(**objects)
        return objects

    def _complete(self) -> bool:
        try:
            self.check(include_self=True, parents=False)
        except FileNotFoundError:
            return False
        return True

    def _generate(self, **kwargs: Any) -> dict[str, Any]:
        """Return name -> object to save."""
        raise NotImplementedError(f"{type(self).__name__} has no _generate()")
