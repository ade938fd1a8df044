"""What the files of a pool say, as the dicts that Qlib's users know."""

from __future__ import annotations

import copy
import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ..errors import CorruptRecordError, FormatVersionError, QwfError
from ..pool.claims import ANY, Selection
from ..pool.directory import Directory
from ..pool.records import parse_definition, parse_failure, parse_result
from ..pool.tokens import FAILED, WAITING, Token, id_of, parse_token, priority_of
from ..pool.transitions import result_path
from ..storage import fsio
from ..storage.codec import load_with_lists, load_with_tuples, only_tuples
from ..storage.entries import list_entries
from ..types import Json
from .queries import Query
from .results import Values, without_objects

__all__ = ["Books", "FetchedTask"]

_logger: Final = logging.getLogger("qwf.tasks")

# A task that moves while it is read is read again.
_LOOKS: Final = 5

_NESTED: Final = frozenset({dict, list, tuple})

# Definitions never change, so they are read once; so many are kept.
_KEPT_DEFINITIONS: Final = 20_000


class FetchedTask(dict[str, Any]):
    """A task as a dict, and the claim by which its holder may commit it."""

    claim: Token | None = None


class Books:
    """Reads the tasks of one pool.

    Parameters
    ----------
    directory : Directory
    values : Values
        How definitions and results are written as JSON.
    """

    def __init__(self, directory: Directory, values: Values) -> None:
        self._directory = directory
        self._values = values
        self._definitions: dict[str, Json] = {}
        self._asked: tuple[dict[str, Any], Selection] | None = None
        self._numbers = itertools.count()

    # --- queries ---

    def selection(self, query: Mapping[str, Any]) -> Selection:
        """Return what a query means for claiming; its status does not count there.

        The one that was asked for last is kept: a worker asks the same for every task.
        """
        asked = {key: value for key, value in query.items() if key != "status"}
        if not asked:
            return ANY
        if self._asked is None or self._asked[0] != asked:
            self._asked = copy.deepcopy(asked), self._made(Query.parse(asked))
        return self._asked[1]

    def _made(self, query: Query) -> Selection:
        def accepts(name: str) -> bool:
            identity = id_of(name)
            if query.ids is not None and identity not in query.ids:
                return False
            return query.accepts_name(identity, WAITING, priority_of(name[:8]))

        def matches(token: Token, status: str, data: bytes) -> bool:
            return query.matches(self._plain(query, status, token, data))

        return Selection(
            key=next(self._numbers),
            accepts=accepts,
            matches=matches if query.needs_document else None,
        )

    def select(self, query: Query) -> Iterator[tuple[str, Token]]:
        """Yield status and token of the tasks that match, in the order of their insertion.

        Reads no file if the query asks only for what names tell.
        """
        found = [(name[9:50], status, name) for status, name in self._named(query)]
        for _, status, name in sorted(found):
            token = parse_token(name)
            if token is not None and (
                not query.needs_document or self._reads(query, status, token)
            ):
                yield status, token

    def _named(self, query: Query) -> Iterator[tuple[str, str]]:
        """Yield status and name of the tokens that match by what names tell, unsorted."""
        for status, name in self._directory.snapshot().values():
            if query.statuses is not None and status not in query.statuses:
                continue
            if query.ids is not None and id_of(name) not in query.ids:
                continue
            if not query.needs_name or query.accepts_name(
                id_of(name), status, priority_of(name[:8])
            ):
                yield status, name

    def _reads(self, query: Query, status: str, token: Token) -> bool:
        for _ in range(_LOOKS):
            try:
                return query.matches(self._plain(query, status, token, None))
            except FileNotFoundError:
                found = self._directory.look_for(token.id)
            except (CorruptRecordError, FormatVersionError) as error:
                _logger.warning("a query passes over task %s: %s", token.id, error)
                return False
            if found is None or found == (status, token):
                break
            status, token = found
        return False  # it was removed, or a file is missing, which the check tells

    def _plain(self, query: Query, status: str, token: Token, data: bytes | None) -> dict[str, Any]:
        """Return what a query asks of a task; nothing is unpickled, no recorder opened for it."""
        path = f"{self._directory.definitions}/{token.id}"
        form = self._definition(token, path) if data is None else parse_definition(data, path)
        definition = without_objects(form, path)
        document = self.outline(status, token)
        document |= {"def": definition, "filter": _with_lists(definition)}
        if query.needs_result and token.has_result:
            place = result_path(self._directory, token)
            document["res"] = without_objects(self._result_form(token), place)
        if query.needs_result and status == FAILED:
            document["error"] = self.last_error(token)
        return {key: value for key, value in document.items() if value is not None}

    def count(self, query: Query) -> dict[str, int]:
        """Return how many tasks match, by status."""
        found = self.select(query) if query.needs_document else self._named(query)
        return dict(Counter(status for status, _ in found))

    def count_names(self, query: Query, status: str) -> int:
        """Return how many names of a status may match, by one listing."""
        if query.statuses is not None and status not in query.statuses:
            return 0
        names = self._directory.names(status)
        if not query.needs_name:
            return len(names)
        return sum(query.accepts_name(id_of(name), status, priority_of(name[:8])) for name in names)

    # --- documents ---

    def row(self, status: str, token: Token) -> dict[str, Any] | None:
        """Return a task for a listing: as it is now, if it has moved on; None if it was removed.

        One that cannot be read is told by a warning, and is a row without definition that has an
        ``error``.
        """
        for _ in range(_LOOKS):
            try:
                return self.document(status, token)
            except FileNotFoundError as error:
                reason: Exception = error
                found = self._directory.look_for(token.id)
                if found is None or token.id not in self._directory.ids():
                    return None
                if found == (status, token):
                    break
                status, token = found
            except (OSError, QwfError) as error:
                reason = error
                break
        _logger.warning("task %s cannot be read: %s", token.id, reason)
        return {**self.outline(status, token), "def": None, "filter": None, "error": str(reason)}

    def document(self, status: str, token: Token, data: bytes | None = None) -> dict[str, Any]:
        """Return a task as Qlib's users know it.

        Parameters
        ----------
        status, token
            Where it is.
        data : bytes, optional
            Of its definition, if they were read already.

        Returns
        -------
        dict
            ``_id def filter status``, and where there is one ``priority``, ``res``, ``error``.
            ``filter`` is ``def`` with lists in place of tuples.

        Raises
        ------
        FileNotFoundError
            If it was removed.
        """
        definition, with_lists = self._both(token, data)
        document = {"_id": token.id, "def": definition, "filter": with_lists, "status": status}
        priority = priority_of(token.rank)
        if priority is not None:
            document["priority"] = priority
        if token.has_result:
            document["res"] = self.result(token)
        if status == FAILED:
            document["error"] = self.last_error(token)
        return document

    def _both(self, token: Token, data: bytes | None) -> tuple[Any, Any]:
        """Return the definition, and the same with lists in place of tuples."""
        path = f"{self._directory.definitions}/{token.id}"
        if data is None:
            form = self._definition(token, path)
        elif only_tuples(data):  # as of most; read twice, which takes less than any other way
            return (
                parse_definition(data, path, load_with_tuples),
                parse_definition(data, path, load_with_lists),
            )
        else:
            form = parse_definition(data, path)
        definition = self._values.decode(form, f"the definition of task {token.id}")
        return definition, _with_lists(definition)

    @staticmethod
    def outline(status: str, token: Token) -> dict[str, Any]:
        """Return what a task's name tells: ``_id status``, ``priority``, ``attempts``, ``origin``.

        ``origin`` is the status that a running task was claimed from, and None of any other.
        """
        return {
            "_id": token.id,
            "status": status,
            "priority": priority_of(token.rank),
            "attempts": token.attempts,
            "origin": token.status,
        }

    def result(self, token: Token) -> Any:
        """Return the accepted result of a task."""
        return self._values.decode(self._result_form(token), f"the result of task {token.id}")

    def _result_form(self, token: Token) -> Json:
        path = result_path(self._directory, token)
        return parse_result(fsio.read_bytes(path), path).res

    def failures(self, token: Token) -> list[dict[str, Any]]:
        """Return what is known of the failed attempts of a task, the oldest first."""
        start = f"{token.id}.{token.time}."
        names = [one for one in list_entries(self._directory.failures) if one.startswith(start)]
        found = {}
        for name in sorted(names):
            path = f"{self._directory.failures}/{name}"
            try:
                failure = parse_failure(fsio.read_bytes(path), path)
            except (FileNotFoundError, CorruptRecordError):
                continue
            epoch = name[len(start) :].partition(".")[
                0
            ]  # two may notice at once that a worker died
            found[epoch] = {"error": failure.error, "traceback": failure.traceback, **failure.by}
        return [*found.values()]

    def last_error(self, token: Token) -> str:
        """Return in a line why a task failed last."""
        found = self.failures(token)
        return str(found[-1]["error"]) if found else "unknown: its file is not there"

    def _definition(self, token: Token, path: str) -> Json:
        form = self._definitions.get(token.id)
        if form is None:
            form = parse_definition(fsio.read_bytes(path), path)
            if len(self._definitions) >= _KEPT_DEFINITIONS:
                self._definitions.clear()
            self._definitions[token.id] = form
        return form


def _with_lists(value: Any) -> Any:
    if type(value) is dict:
        return {
            key: _with_lists(item) if type(item) in _NESTED else item for key, item in value.items()
        }
    if type(value) in _NESTED:
        return [_with_lists(item) if type(item) in _NESTED else item for item in value]
    return value
