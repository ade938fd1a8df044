"""Where the files of one pool are, and how its tokens are listed and moved."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ..errors import CorruptRecordError, PoolNotFoundError
from ..storage import fsio
from ..storage.documents import encode_document, new_document, read_document, update_document
from ..storage.entries import Mark, list_entries, move_entry, read_mark, renew_mark
from ..version import POOL_FORMAT
from .records import POOL_KIND
from .tokens import STATUSES, Token, id_of, is_token, parse_token

__all__ = ["DEFAULT_ATTEMPTS", "MOST_ATTEMPTS", "Directory"]

# An error that was bad luck goes by; one that was not need not cost a night.
DEFAULT_ATTEMPTS: Final = 3
MOST_ATTEMPTS: Final = 255

# A task that moves to and fro is missed by a listing of all statuses, but not so often.
_LOOKS: Final = 10

_POOL_FILE: Final = "pool.json"
_DEFINITIONS: Final = "def"
_RESULTS: Final = "res"
_FAILURES: Final = "failures"
_WORKERS: Final = "workers"
_PRIVATE: Final = "tmp"
_TRASH: Final = "trash"
_ORDER: Final = "order"
_ALL: Final = (*STATUSES, _DEFINITIONS, _RESULTS, _FAILURES, _WORKERS, _PRIVATE, _TRASH)


class Directory:
    """The directory of one pool.

    Parameters
    ----------
    root : Path
        It need not exist; `create` makes it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        base = str(root)
        self._statuses = {status: f"{base}/{status}" for status in STATUSES}
        self.definitions = f"{base}/{_DEFINITIONS}"
        self.results = f"{base}/{_RESULTS}"
        self.failures = f"{base}/{_FAILURES}"
        self.workers = f"{base}/{_WORKERS}"
        self.private = f"{base}/{_PRIVATE}"
        self.trash = f"{base}/{_TRASH}"
        self.settings = root / _POOL_FILE
        self._order = f"{base}/{_ORDER}"

    def __repr__(self) -> str:
        return f"Directory({str(self.root)!r})"

    # --- the pool itself ---

    def exists(self) -> bool:
        """Whether there is a pool here that this release understands.

        Raises
        ------
        FormatVersionError
            If a newer qwf made it.
        """
        try:
            self._read_settings()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except CorruptRecordError:
            pass  # told by the check; what it says has defaults
        return True

    def require(self) -> None:
        """Raise `PoolNotFoundError` unless there is a pool here."""
        if not self.exists():
            raise PoolNotFoundError(self.root)

    def create(self) -> None:
        """Make the directories and the settings of the pool, where they are missing.

        Racing processes make one pool. *A crash* leaves a part, which the next call completes.
        """
        for name in _ALL:
            fsio.make_directories(self.root / name)
        settings = new_document(POOL_KIND, POOL_FORMAT, max_attempts=DEFAULT_ATTEMPTS)
        fsio.create_whole(self.settings, encode_document(settings))

    def complete(self) -> None:
        """Make directories that are missing: what copies a pool may leave out empty ones."""
        for name in _ALL:
            fsio.make_directories(self.root / name)

    def places(self) -> list[str]:
        """Return the directories that make up a pool."""
        return [str(self.root / name) for name in _ALL]

    @property
    def max_attempts(self) -> int:
        """How often a task may fail, or lose its worker, until it is set aside."""
        try:
            found = self._read_settings().get("max_attempts")
        except (FileNotFoundError, CorruptRecordError):
            found = None
        return found if isinstance(found, int) and found > 0 else DEFAULT_ATTEMPTS

    def set_max_attempts(self, attempts: int) -> None:
        """Change how often a task may fail, for all who work on the pool from now on."""
        if attempts != self.max_attempts:
            update_document(
                self.settings,
                lambda present: {**present, "max_attempts": attempts},
                kind=POOL_KIND,
                version=POOL_FORMAT,
            )

    def _read_settings(self) -> dict[str, object]:
        return read_document(self.settings, kind=POOL_KIND, version=POOL_FORMAT)

    # --- tokens ---

    def path(self, status: str, token: Token) -> str:
        """Return the path of a token in the directory of a status."""
        return f"{self._statuses[status]}/{token.name}"

    def status_path(self, status: str) -> str:
        """Return the directory of a status."""
        return self._statuses[status]

    def names(self, status: str) -> list[str]:
        """Return the names of the tokens of a status, unsorted."""
        return [name for name in list_entries(self._statuses[status]) if is_token(name)]

    def move(self, token: Token, status: str, new: Token, new_status: str) -> bool:
        """Change the state of a task; return whether it was this call that did.

        Raises
        ------
        WriteError
            If the system refuses; the state is the old one.
        """
        return move_entry(self.path(status, token), self.path(new_status, new))

    def find_all(self, identity: str) -> list[tuple[str, Token]]:
        """Return status and token of a task, as often as it is seen; the latest state last.

        It is seen twice if it moves meanwhile, or was removed and inserted again just now.
        """
        found = []
        for status in STATUSES:
            for name in list_entries(self._statuses[status]):
                if identity in name:
                    token = parse_token(name)
                    if token is not None and token.id == identity:
                        found.append((status, token))
        return sorted(found, key=lambda one: (one[1].time, one[1].epoch))

    def find(self, identity: str) -> tuple[str, Token] | None:
        """Return status and token of a task; None if it is not seen.

        It may be missed while it moves: `look_for` looks again.
        """
        found = self.find_all(identity)
        return found[-1] if found else None

    def look_for(self, identity: str) -> tuple[str, Token] | None:
        """Return status and token of a task; None if there is none."""
        for _ in range(_LOOKS):
            found = self.find(identity)
            if found is not None or not self._may_be_moving({identity} & self.ids()):
                break
        return found

    def _may_be_moving(self, unseen: set[str]) -> bool:
        """Whether one of the tasks of which the definition was seen, and no token, has one."""
        if not unseen:
            return False
        private = list_entries(self.private)
        return any(
            self._has_token(one) and not any(one in name for name in private) for one in unseen
        )

    def _has_token(self, identity: str) -> bool:
        try:
            return fsio.count_names(Path(self.definitions, identity)) > 1
        except OSError:
            return False

    def snapshot(self) -> dict[str, tuple[str, str]]:
        """Return status and name of the token of each task, by id.

        A task that moves while the directories are listed is looked for again; where it was seen
        at two places the later state counts.
        """
        found: dict[str, tuple[str, str]] = {}
        for _ in range(_LOOKS):
            known = self.ids()
            for status in STATUSES:
                for name in self.names(status):
                    seen = found.get(id_of(name))
                    if seen is None or _age(seen[1]) <= _age(name):
                        found[id_of(name)] = status, name
            if not self._may_be_moving(known - found.keys()):
                break
        return found

    def ids(self) -> set[str]:
        """Return the ids of all tasks."""
        return {name for name in list_entries(self.definitions) if len(name) == 24}

    # --- the order of tasks ---

    def order(self) -> Mark | None:
        """Return a mark that differs when a task may come earlier than a listing before said."""
        return read_mark(self._order)

    def note_order(self) -> None:
        """Tell those who go by a listing that there is something new."""
        renew_mark(self._order)


def _age(name: str) -> tuple[str, str]:
    """Return what is greater for a later task of one id, and for a later state of a task."""
    return name[9:25], name[51:57]
