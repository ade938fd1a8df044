"""Which directories of a store are experiments and recorders, and how they come and go."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

from ..errors import CorruptRecordError, ExpAlreadyExistError, FormatVersionError
from ..storage import fsio, layout, trees
from ..storage.documents import (
    Document,
    encode_document,
    read_document,
    update_document,
)
from ..version import EXPERIMENT_FORMAT, RECORDER_FORMAT, STORE_FORMAT
from .metadata import (
    EXPERIMENT_KIND,
    RECORDER_KIND,
    STORE_KIND,
    ExperimentRecord,
    RecorderRecord,
    new_experiment,
    new_store,
    parse_experiment,
    parse_recorder,
)
from .status import RUNNING

__all__ = ["Examined", "Store"]

# What was found in a recorder's directory: record and revision, an error, or nothing of ours.
Examined: TypeAlias = "tuple[RecorderRecord, int] | Exception | None"

_logger: Final = logging.getLogger("qwf.tracking")

# The longest name that Linux, macOS and NFS can look up.
_MAX_ENTRY_BYTES: Final = 255

# Broken entries are reported once per process, not at every listing.
_reported: set[object] = set()


class Store:
    """One store: a directory with ``qwf.json`` and, below it, experiments.

    Parameters
    ----------
    root : Path
        Absolute path. Nothing is read or created until it is needed; only writing creates.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._checked = False

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and other.root == self.root

    def __hash__(self) -> int:
        return hash(self.root)

    # --- the store itself ---

    def check_version(self) -> bool:
        """Return whether the store exists; raise if a newer qwf made it.

        A damaged ``qwf.json`` is reported and otherwise harmless: every other file carries the
        version of its own format.
        """
        if self._checked:
            return True
        path = self.root / layout.STORE_FILE
        try:
            read_document(path, kind=STORE_KIND, version=STORE_FORMAT)
        except (FileNotFoundError, NotADirectoryError):
            # Copied without it, or a crash came before it: what is there can be read all the same.
            return fsio.exists(self.root / layout.EXPERIMENTS)
        except CorruptRecordError as error:
            self._report(error)
        self._checked = True
        return True

    def ensure(self) -> None:
        """Create the store if it does not exist yet; racing processes make one."""
        self.check_version()
        if self._checked:
            return
        fsio.make_directories(self.root / layout.EXPERIMENTS)
        fsio.create_whole(self.root / layout.STORE_FILE, encode_document(new_store()))
        self.check_version()

    # --- experiments ---

    def experiment_directory(self, experiment_id: str) -> Path:
        """Return the directory of an experiment."""
        return self.root / layout.EXPERIMENTS / experiment_id

    def create_experiment(self, name: str) -> ExperimentRecord:
        """Create an experiment.

        Raises
        ------
        ExpAlreadyExistError
            If it exists; then also when another process created it in the same moment.
        UnsafeNameError
            If the name cannot be one.

        Notes
        -----
        One rename creates the directory together with its file (where there is a directory
        already, one link creates the file): *readers* see all or nothing.
        """
        identity = layout.encode_name(name)
        if not fsio.exists(self.root / layout.STORE_FILE):
            self._checked = False  # it may have been deleted while this process lives
        self.ensure()
        directory = self.experiment_directory(identity)
        fsio.make_directories(directory.parent)  # a copy may lack it: git keeps no empty ones
        document = new_experiment(identity, name)
        path = directory / layout.EXPERIMENT_FILE
        if not self._publish_experiment(path, encode_document(document)):
            raise ExpAlreadyExistError(name, store=self.root)
        return parse_experiment(document, path)

    @staticmethod
    def _publish_experiment(path: Path, data: bytes) -> bool:
        if not fsio.exists(path.parent):
            return trees.publish_directory(path.parent, {path.name: data})
        # A directory without its file is a foreign one, or holds what a late writer of a deleted
        # experiment has left. Looking first saves a write.
        return not fsio.exists(path) and fsio.create_whole(path, data)

    def read_experiment(self, experiment_id: str) -> ExperimentRecord | None:
        """Return an experiment by its id, or None when there is none.

        A damaged ``experiment.json`` is reported and otherwise harmless: the directory's name
        says the same.

        Raises
        ------
        FormatVersionError
            If a newer qwf wrote it.
        """
        if not self.is_entry(experiment_id) or not self.check_version():
            return None
        path = self.experiment_directory(experiment_id) / layout.EXPERIMENT_FILE
        try:
            document = read_document(path, kind=EXPERIMENT_KIND, version=EXPERIMENT_FORMAT)
            return parse_experiment(document, path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except CorruptRecordError as error:
            self._report(error)
            name = layout.decode_name(experiment_id)
            return ExperimentRecord(id=experiment_id, name=name, created_at="")

    def find_experiment(self, name: str) -> ExperimentRecord | None:
        """Return an experiment by its name, with one file read."""
        return self.read_experiment(layout.encode_name(name))

    def list_experiments(self) -> list[ExperimentRecord]:
        """Return all experiments, newest first; without foreign ones and those of a newer qwf."""
        if not self.check_version():
            return []
        names = fsio.list_names(self.root / layout.EXPERIMENTS)
        found = []
        for name in names:
            try:
                record = self.read_experiment(name)
            except FormatVersionError as error:
                self._report(error)
            else:
                found += [] if record is None else [record]
        return sorted(found, key=lambda record: (record.created_at, record.id), reverse=True)

    def discard_experiment(self, experiment_id: str) -> Path:
        """Move an experiment to the trash in one rename, and return where it is."""
        token = layout.new_trash_token()
        target = self._discard(self.experiment_directory(experiment_id), experiment_id, token)
        with contextlib.suppress(OSError):
            trees.remove_tree(self.index_directory(experiment_id))
        return target

    # --- recorders ---

    def recorder_directory(self, experiment_id: str, recorder_id: str) -> Path:
        """Return the directory of a recorder."""
        return self.experiment_directory(experiment_id) / layout.RECORDERS / recorder_id

    def create_recorder(self, experiment_id: str, recorder_id: str, document: Document) -> None:
        """Create the directory of a recorder together with its file, all at once and durable."""
        directory = self.recorder_directory(experiment_id, recorder_id)
        fsio.make_directories(directory.parent)
        trees.publish_directory(directory, {layout.RECORDER_FILE: encode_document(document)})

    def read_recorder(self, experiment_id: str, recorder_id: str) -> Document | None:
        """Return the document of a recorder, or None when there is none.

        Raises
        ------
        CorruptRecordError
            If it is damaged.
        """
        if not self.is_entry(recorder_id) or not self.check_version():
            return None
        path = self.recorder_directory(experiment_id, recorder_id) / layout.RECORDER_FILE
        try:
            return read_document(path, kind=RECORDER_KIND, version=RECORDER_FORMAT)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def update_recorder(
        self, experiment_id: str, recorder_id: str, change: Callable[[Document], Document]
    ) -> Document:
        """Change the document of a recorder; see `update_document`.

        A change of one that does not run is announced by a mark before, so that the index is
        not believed any more.
        """
        path = self.recorder_directory(experiment_id, recorder_id) / layout.RECORDER_FILE
        return update_document(
            path,
            change,
            kind=RECORDER_KIND,
            version=RECORDER_FORMAT,
            announce=partial(self._announce, experiment_id, recorder_id),
        )

    def _announce(self, experiment_id: str, recorder_id: str, present: Document) -> None:
        if present.get("status") == RUNNING:
            return  # nobody takes it for ended
        changes = self.experiment_directory(experiment_id) / layout.CHANGES
        if not changes.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(changes.parent))
        fsio.make_directories(changes)
        fsio.create_mark(changes / layout.change_mark(recorder_id, present["revision"] + 1))

    def parse(self, experiment_id: str, recorder_id: str, document: Document) -> RecorderRecord:
        """Return what a recorder's document says."""
        directory = self.recorder_directory(experiment_id, recorder_id)
        return parse_recorder(document, directory / layout.RECORDER_FILE)

    def recorder_names(self, experiment_id: str) -> list[str]:
        """Return the names of the recorders of an experiment, and of foreign entries there."""
        if not self.check_version():
            return []
        return fsio.list_names(self.experiment_directory(experiment_id) / layout.RECORDERS)

    def recorders_named(self, part: str) -> list[tuple[str, str]]:
        """Return experiment and id of the recorders whose id begins or ends with a text.

        That of just this id alone, if there is one. Asks no recorder's file but that one's.
        """
        experiments = [record.id for record in self.list_experiments()]
        for one in experiments:
            path = self.recorder_directory(one, part) / layout.RECORDER_FILE
            if self.is_entry(part) and fsio.exists(path):
                return [(one, part)]
        return [
            (one, name)
            for one in experiments
            for name in self.recorder_names(one)
            if (name.startswith(part) or name.endswith(part)) and self.is_entry(name)
        ]

    def examine_recorder(self, experiment_id: str, recorder_id: str) -> Examined:
        """Return record and revision of a recorder; what is wrong with it; or None without one."""
        if not self.is_entry(recorder_id) or not self.check_version():
            return None
        return self.examine_at(self.recorder_directory(experiment_id, recorder_id))

    def examine_at(self, directory: Path) -> Examined:
        """Do the same for a recorder's directory anywhere in the store.

        What is wrong is reported once per process.
        """
        path = directory / layout.RECORDER_FILE
        try:
            document = read_document(path, kind=RECORDER_KIND, version=RECORDER_FORMAT)
            return parse_recorder(document, path), document["revision"]
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (CorruptRecordError, FormatVersionError) as error:
            self._report(error)
            return error
        except PermissionError as error:  # a colleague's, who has closed it to others
            self._report(CorruptRecordError(directory, f"it cannot be read ({error})"))
            return error

    def discard_recorder(self, experiment_id: str, recorder_id: str, token: str) -> Path:
        """Move a recorder to the trash in one rename, and return where it is.

        Those that go together have one token, see `layout.new_trash_token`.
        """
        directory = self.recorder_directory(experiment_id, recorder_id)
        return self._discard(directory, f"{experiment_id}@{recorder_id}", token)

    # --- shared ---

    def index_directory(self, experiment_id: str) -> Path:
        """Return where the index of an experiment is kept; it may be removed at any time."""
        return self.root / layout.INDEX / experiment_id

    def _discard(self, directory: Path, entry: str, token: str) -> Path:
        fsio.make_directories(self.root / layout.TRASH)
        target = self.root / layout.TRASH / layout.trash_name(entry, token)
        fsio.move(directory, target)
        return target

    @staticmethod
    def is_entry(name: object) -> bool:
        """Whether an id can be a directory name of ours; it never leaves its directory."""
        if not isinstance(name, str) or name[:1] in ("", "."):
            return False
        try:
            encoded = os.fsencode(name)
        except UnicodeEncodeError:
            return False
        return len(encoded) <= _MAX_ENTRY_BYTES and b"/" not in encoded and b"\0" not in encoded

    @staticmethod
    def _report(error: CorruptRecordError | FormatVersionError) -> None:
        if error.path not in _reported:
            _reported.add(error.path)
            _logger.warning("%s", error)
