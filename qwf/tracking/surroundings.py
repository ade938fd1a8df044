"""What a session says of its surroundings, and where the store keeps it: once, however many runs.

The answer of git may come after the run has begun; it is noted as soon as it is there, at the
latest with the end of the run.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakSet

from ..config import C
from ..errors import CorruptRecordError, QwfError
from ..process import pulse
from ..storage import fsio, layout
from ..storage.codec import dump_json
from ..storage.documents import encode_document, new_document, read_document
from ..types import Json
from ..version import PROVENANCE_FORMAT
from .metadata import Session
from .provenance import SourceCapture, environment, source_of_process

__all__ = ["PROVENANCE_KIND", "Surroundings", "read_surroundings"]

PROVENANCE_KIND: Final = "qwf-provenance"

_LOOK_SECONDS: Final = 0.5

# How long the end of a run waits for git. Afterwards it is not said what git would have answered.
_PATIENCE_SECONDS: Final = 2.0


# Runs that start within a minute share one answer: it is waited for by one of them, and made a name
# of once.
_waited_for: WeakSet[SourceCapture] = WeakSet()
_names: WeakKeyDictionary[SourceCapture, str] = WeakKeyDictionary()


class Surroundings:
    """What is captured for one session of a recorder.

    Parameters
    ----------
    root : Path
        The store.

    Attributes
    ----------
    references : dict
        What stands in the session from its beginning.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.references: dict[str, Json] = {}
        self._capture: SourceCapture | None = None
        if C.provenance == "off":
            return
        with contextlib.suppress(OSError, QwfError):  # no run fails because of this
            self.references["environment"] = self._kept(environment())
            if C.provenance == "full":
                self._capture = source_of_process()
                self.references.update(self.answer(0.0))

    def answer(self, seconds: float = _PATIENCE_SECONDS) -> dict[str, Json]:
        """Return what is to be added to the session, once; wait for it so many seconds."""
        capture = self._capture
        if capture is None:
            return {}
        name = _names.get(capture)
        if name is not None and fsio.exists(_path_of(self._root, name)):
            self._capture = None
            return {"source": name}
        facts = capture.result(0.0 if capture in _waited_for else seconds)
        if seconds:
            _waited_for.add(capture)
        if facts is None:
            return {}
        self._capture = None
        with contextlib.suppress(OSError, QwfError):
            _names[capture] = self._kept(facts)
            return {"source": _names[capture]}
        return {}

    def note_later(self, key: object, note: Callable[[dict[str, Json]], object]) -> None:
        """Call ``note(answer)`` in a thread when git has answered."""
        if self._capture is None:
            return
        watched = ("source", key)

        def look() -> None:
            answer = self.answer(0.0)
            if answer:
                with contextlib.suppress(OSError, QwfError):  # deleted meanwhile
                    note(answer)
            if self._capture is None:
                pulse.unwatch(watched)

        pulse.watch(watched, look, seconds=_LOOK_SECONDS)

    def finish(self, key: object) -> dict[str, Json]:
        """Return what is still to be added to the session when it ends."""
        pulse.unwatch(("source", key))
        return self.answer()

    def _kept(self, facts: dict[str, Json]) -> str:
        """Keep facts in the store and return by what they are found."""
        name = hashlib.sha256(dump_json(facts)).hexdigest()[:32]
        path = _path_of(self._root, name)
        if not fsio.exists(path):
            fsio.make_directories(path.parent)
            document = new_document(PROVENANCE_KIND, PROVENANCE_FORMAT, facts=facts)
            fsio.create_whole(path, encode_document(document))
        return name


def _path_of(root: Path, name: str) -> Path:
    return root / layout.PROVENANCE / layout.encode_name(f"{name}.json")


def read_surroundings(root: Path, session: Session) -> dict[str, Any]:
    """Return what a session says of its surroundings.

    Returns
    -------
    dict
        ``argv``, ``cwd``, ``host``, ``user``; as far as they were captured ``python``,
        ``implementation``, ``platform``, ``packages``, and ``source``, see
        `SourceCapture.result`.
    """
    told = {name: session.get(name) for name in ("argv", "cwd", "host", "user")}
    facts = _facts_of(root, session.get("environment"))
    source = _facts_of(root, session.get("source"))
    return {**told, **(facts or {}), **({} if source is None else {"source": source})}


def _facts_of(root: Path, name: object) -> dict[str, Any] | None:
    if not isinstance(name, str):
        return None
    path = _path_of(root, name)
    try:
        document = read_document(path, kind=PROVENANCE_KIND, version=PROVENANCE_FORMAT)
    except FileNotFoundError:
        return None
    facts = document.get("facts")
    if not isinstance(facts, dict):
        raise CorruptRecordError(path, f"the field 'facts' is {facts!r}")
    return facts
