"""What definitions and results of tasks are kept as: JSON, with references in place of recorders.

Knows neither pool nor queries. A pickle is kept only where the caller allows it, and loaded only as
the pickle policy allows.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import pickle
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..config import C
from ..errors import (
    ArtifactCorruptError,
    CorruptRecordError,
    FormatVersionError,
    LoadObjectError,
    RecorderNotFoundError,
    TaskValueError,
)
from ..storage import codec
from ..storage.codec import NotPlainError
from ..storage.pickles import dump_pickle, load_pickle
from ..types import Json

if TYPE_CHECKING:
    from ..tracking.recorder import Recorder

__all__ = ["MissingRecorder", "Values", "without_objects"]

_RECORDER: Final = "$recorder"
_PICKLE: Final = "$pickle"
_REMEDY: Final = (
    "A pool keeps plain data, recorders, and with allow_pickle=True whatever can be pickled. "
    "Describe the object by a dict with class, module_path and kwargs, or"
)


class MissingRecorder:
    """Stands for a recorder that a task refers to and that was deleted.

    Whatever is asked of it but `id`, `experiment_id` and `uri` raises `RecorderNotFoundError`. When
    the recorder is restored, reading the task again gives the recorder.
    """

    id = ""  # while it is being unpickled

    def __init__(self, uri: str, experiment_id: str, id: str) -> None:
        self.uri, self.experiment_id, self.id = uri, experiment_id, id

    def __repr__(self) -> str:
        return f"MissingRecorder(experiment_id={self.experiment_id!r}, id={self.id!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MissingRecorder) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash(self.id)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # what Python itself looks for, to copy or to print
            raise AttributeError(name)
        from ..tracking.store import Store

        known = Store(Path(self.uri)).recorder_names(self.experiment_id)
        raise RecorderNotFoundError("id", self.id, experiment=self.experiment_id, known=known)


class Values:
    """Turns definitions and results into JSON, and back in any process.

    Parameters
    ----------
    store_root : Path
        The store of the pool. Recorders in it are found again wherever the store is moved to; those
        of another store where it lies in the same direction.
    allow_pickle : bool
        Whether to keep as a pickle what is neither plain nor a recorder. It matters for writing
        only; what was written is read under the pickle policy of `qwf.init`.
    """

    def __init__(self, store_root: Path, allow_pickle: bool) -> None:
        self._root = Path(os.path.realpath(store_root))
        self._allow_pickle = allow_pickle
        self._experiments: dict[tuple[str, str], Any] = {}

    # --- writing ---

    def encode(self, value: object, what: str) -> Json:
        """Return the JSON form of a definition or a result.

        Scalars of numpy become numbers, booleans and text of Python.

        Parameters
        ----------
        value : object
        what : str
            What it is, as ``"the result of task 3f2a"``, for the message.

        Raises
        ------
        TaskValueError
            If something in it is neither plain nor a recorder and pickles are not allowed, or it
            cannot be pickled.
        """
        try:
            return codec.encode(value, other=partial(self._encode_other, what))
        except NotPlainError as error:
            # Keys, text that JSON would change, and what contains itself are kept with the whole.
            if not self._allow_pickle:
                raise _refused(what, str(error)) from error
            return self._encode_pickle(what, "", value)

    def _encode_other(self, what: str, value: object, place: str) -> Json:
        if _is_scalar(value):
            return codec.encode(value.item(), place)  # type: ignore[attr-defined]  # of numpy
        if _is_recorder(value) or isinstance(value, MissingRecorder):
            return {_RECORDER: self._reference(what, value, place)}
        if self._allow_pickle:
            return self._encode_pickle(what, place, value)
        raise NotPlainError(place, value)

    def _reference(self, what: str, recorder: Any, place: str) -> Json:
        if recorder.id is None:
            raise _refused(what, f"{place or 'it'} is a recorder that was never started")
        reference: dict[str, Json] = {
            "experiment": recorder.experiment_id,
            "recorder": recorder.id,
        }
        root = os.path.realpath(recorder.uri)
        if root != str(self._root):
            reference["store"] = os.path.relpath(root, self._root)
        return reference

    @staticmethod
    def _encode_pickle(what: str, place: str, value: object) -> Json:
        try:
            data = dump_pickle(value)
        except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
            reason = f"{place or 'it'} is a {type(value).__name__} that cannot be pickled ({error})"
            raise _refused(what, reason, remedy="Give it __getstate__, or") from error
        return {
            _PICKLE: {
                "sha256": hashlib.sha256(data).hexdigest(),
                "size": len(data),
                "data": base64.b64encode(data).decode(),
            }
        }

    # --- reading ---

    def decode(self, form: Json, source: str) -> Any:
        """Return the definition or the result again; a deleted recorder as `MissingRecorder`.

        Parameters
        ----------
        form : Json
            What `encode` returned.
        source : str
            Where it was read, for messages.

        Raises
        ------
        ArtifactCorruptError
            If a pickle is not the one that was written.
        PickleRefusedError
            If the pickle policy forbids what it asks for.
        LoadObjectError
            If it cannot be loaded for another reason, as a missing module.
        CorruptRecordError
            If the form is none that qwf writes.
        """
        return _decoded(
            form,
            source,
            {_RECORDER: self._open, _PICKLE: partial(_unpickled, source)},
        )

    def _open(self, reference: Any) -> Recorder | MissingRecorder:
        from ..tracking.experiment import Experiment
        from ..tracking.store import Store

        experiment_id, recorder_id = str(reference["experiment"]), str(reference["recorder"])
        root = os.path.normpath(self._root / reference.get("store", ""))
        # A pool has many results of a few experiments.
        experiment = self._experiments.get((root, experiment_id))
        if experiment is None:
            experiment = Experiment(Store(Path(root)), experiment_id, experiment_id)
            self._experiments[root, experiment_id] = experiment
        try:
            found: Recorder = experiment.get_recorder(recorder_id=recorder_id)
        except RecorderNotFoundError:
            return MissingRecorder(root, experiment_id, recorder_id)
        except (CorruptRecordError, FormatVersionError):
            # It shows as broken, as in any other listing.
            shown: Recorder | None = experiment.list_recorders().get(recorder_id)
            return shown or MissingRecorder(root, experiment_id, recorder_id)
        return found


def without_objects(form: Json, source: str) -> Any:
    """Return a definition or a result with references in place of recorders and of pickles.

    Opens and loads nothing, so it is for listings and for queries.

    Examples
    --------
    >>> without_objects({"ic": {"$tuple": [1]}, "by": {"$recorder": {"recorder": "3f2a"}}}, "x")
    {'ic': (1,), 'by': {'recorder': '3f2a'}}
    """
    return _decoded(form, source, {_RECORDER: dict, _PICKLE: _digest})


def _refused(what: str, reason: str, remedy: str = _REMEDY) -> TaskValueError:
    return TaskValueError(
        f"{what} cannot be kept: {reason}. Nothing was changed. {remedy} save it as an artifact of "
        "a recorder."
    )


def _digest(form: Any) -> dict[str, Any]:
    return {"pickle": form["sha256"], "size": form["size"]}


def _decoded(form: Json, source: str, others: dict[str, Callable[[Any], Any]]) -> Any:
    try:
        return codec.decode(form, others)
    except (ArtifactCorruptError, LoadObjectError, CorruptRecordError):
        raise
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise CorruptRecordError(
            source, f"it holds a value that cannot be read: {error}"
        ) from error


def _unpickled(source: str, form: Any) -> Any:
    try:
        data = base64.b64decode(form["data"], validate=True)
    except binascii.Error as error:
        raise ArtifactCorruptError(source, expected=form["sha256"], found=str(error)) from None
    found = hashlib.sha256(data).hexdigest()
    if found != form["sha256"]:
        raise ArtifactCorruptError(source, expected=form["sha256"], found=f"sha256 {found}")
    try:
        return load_pickle(data, policy=C.pickle_policy, allow=C.pickle_allow, source=source)
    except LoadObjectError:
        raise
    except Exception as error:
        raise LoadObjectError(
            f"{source} holds a pickle that cannot be loaded: {type(error).__name__}: {error}. "
            "It was left in place. A module or class that is missing here has to be installed."
        ) from error


def _is_scalar(value: object) -> bool:
    numpy = sys.modules.get("numpy")
    if numpy is None or isinstance(value, numpy.timedelta64):  # which is an integer to numpy
        return False
    return isinstance(value, (numpy.bool_, numpy.integer, numpy.floating, numpy.str_))


def _is_recorder(value: object) -> bool:
    # There can only be one if its module is loaded.
    tracking = sys.modules.get("qwf.tracking.recorder")
    return tracking is not None and isinstance(value, tracking.Recorder)
