"""Who may be unpickled: the guard in front of every pickle that qwf loads."""

from __future__ import annotations

import datetime
import io
import pickle
import types
from collections.abc import Sequence
from typing import Any, ClassVar, Final
from zoneinfo import ZoneInfo

from ..errors import PickleRefusedError

__all__ = ["dump_pickle", "load_pickle"]

# Readable by every supported Python, and by Qlib, which writes the same.
PICKLE_PROTOCOL: Final = 4

# Enough for arrays, frames, dates and plain containers, and nothing that opens a file or calls a
# function named in the pickle: `builtins.eval`, `numpy.memmap`, `pandas.read_pickle` are "in NumPy
# and pandas" too, so names are listed one by one.
_SAFE_NAMES: Final[dict[str, frozenset[str]]] = {
    "builtins": frozenset(
        "bool bytearray bytes complex dict float frozenset int list object range set slice str "
        "tuple NotImplemented Ellipsis".split()
    ),
    "collections": frozenset({"OrderedDict", "defaultdict", "deque", "Counter"}),
    "copyreg": frozenset({"_reconstructor"}),
    "datetime": frozenset({"date", "datetime", "time", "timedelta", "timezone"}),
    "decimal": frozenset({"Decimal"}),
    "zoneinfo": frozenset({"ZoneInfo", "ZoneInfo._unpickle"}),
    "pytz": frozenset({"_p", "_UTC"}),
    "pyarrow.lib": frozenset({"_restore_array", "py_buffer", "type_for_alias", "chunked_array"}),
    "_codecs": frozenset({"encode"}),
    "numpy": frozenset(
        "ndarray dtype bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 "
        "float64 complex64 complex128 str_ bytes_ datetime64 timedelta64".split()
    ),
    "numpy.core.multiarray": frozenset({"_reconstruct", "scalar"}),
    "numpy._core.multiarray": frozenset({"_reconstruct", "scalar"}),
    "numpy.core.numeric": frozenset({"_frombuffer"}),
    "numpy._core.numeric": frozenset({"_frombuffer"}),
    "qwf.data.models": frozenset({"LinearModel"}),
}
_SAFE_PANDAS: Final = frozenset(
    "DataFrame Series Index MultiIndex RangeIndex DatetimeIndex TimedeltaIndex PeriodIndex "
    "CategoricalIndex IntervalIndex Categorical CategoricalDtype DatetimeTZDtype StringDtype "
    "BlockManager SingleBlockManager DatetimeArray TimedeltaArray StringArray PandasArray "
    "ArrowStringArray "
    "NumpyExtensionArray FloatingArray IntegerArray BooleanArray Int8Dtype Int16Dtype Int32Dtype "
    "Int64Dtype UInt8Dtype UInt16Dtype UInt32Dtype UInt64Dtype Float32Dtype Float64Dtype "
    "BooleanDtype _new_Index _new_DatetimeIndex _unpickle_block _unpickle_timestamp "
    "_timedelta_unpickle __pyx_unpickle_NDArrayBacked new_block Day BusinessDay "
    "_nat_unpickle NaTType".split()
)


def dump_pickle(obj: Any) -> bytes:
    """Return the pickle of an object."""
    return pickle.dumps(obj, protocol=PICKLE_PROTOCOL)


def load_pickle(data: bytes, *, policy: str, allow: Sequence[str], source: object) -> Any:
    """Unpickle `data` if the policy allows what it asks for.

    Parameters
    ----------
    data : bytes
        The pickle.
    policy : {"trusted", "restricted", "never"}
        ``trusted`` loads anything; ``restricted`` only plain containers, dates, arrays, frames,
        qwf's linear model, and `allow`; ``never`` refuses.
    allow : sequence of str
        Modules (with all below them) and ``module.name`` entries that ``restricted`` accepts.
    source : object
        What the pickle belongs to, for the message.

    Raises
    ------
    PickleRefusedError
        If the policy forbids it. Nothing of the refused class was run.

    Examples
    --------
    >>> load_pickle(dump_pickle({1, 2}), policy="restricted", allow=(), source="x")
    {1, 2}
    """
    if policy == "never":
        raise PickleRefusedError(
            f"{source} is a pickle and pickle_policy is 'never'. It was not loaded. If you trust "
            "whoever wrote it, call qwf.init(pickle_policy='restricted') or 'trusted'."
        )
    if policy == "trusted":
        return pickle.loads(data)
    return _RestrictedUnpickler(io.BytesIO(data), allow=allow, source=source).load()


def _zone_reader(owner: object, name: str) -> Any:
    """Stand for ``getattr``, which pickled time zones ask for, and give nothing else away."""
    if owner is ZoneInfo and name == "_unpickle":
        return ZoneInfo._unpickle  # type: ignore[attr-defined]  # private, and what pickle uses
    raise PickleRefusedError(f"a pickle asks for the attribute {name!r} of {owner!r}.")


_set_state: Final[Any] = pickle._Unpickler.dispatch[pickle.BUILD[0]]


# Python's own reader, and not the faster one in C, which cannot be told what BUILD may change.
class _RestrictedUnpickler(pickle._Unpickler):
    # Not made by the pickle but there before it, so whoever else uses them would see a change.
    _SHARED: Final = (
        type,
        datetime.tzinfo,
        types.ModuleType,
        types.FunctionType,
        types.BuiltinFunctionType,
        types.MethodType,
    )

    stack: list[Any]

    def __init__(self, file: io.BytesIO, *, allow: Sequence[str], source: object) -> None:
        super().__init__(file)
        self._allow = tuple(allow)
        self._source = source
        self._found: dict[int, Any] = {}  # by id, and held, so that no other gets the id

    def load_build(self) -> None:
        """Set the state of an object that this pickle made, and of nothing else."""
        target = self.stack[-2]
        if isinstance(target, self._SHARED) or id(target) in self._found:
            raise PickleRefusedError(
                f"{self._source} would change {target!r} itself, as only a forged pickle does. It "
                "was not loaded. Delete it, and do not load it under pickle_policy 'trusted'."
            )
        _set_state(self)

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}

    def find_class(self, module: str, name: str) -> Any:
        found = self._find(module, name)
        self._found[id(found)] = found
        return found

    def _find(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _zone_reader
        if name in _SAFE_NAMES.get(module, ()):
            return super().find_class(module, name)
        if module.partition(".")[0] == "pandas" and name in _SAFE_PANDAS:
            return super().find_class(module, name)
        if self._allowed(module, name):
            found = super().find_class(module, name)
            # "mymodels.os.system" begins with an allowed module and is not of it.
            if self._allowed(getattr(found, "__module__", None) or "", name):
                return found
        raise PickleRefusedError(
            f"{self._source} asks for {module}.{name}, which pickle_policy 'restricted' does not "
            "load. It was not loaded. If you trust whoever wrote it, call "
            f"qwf.init(pickle_allow=[{module!r}])."
        )

    def _allowed(self, module: str, name: str) -> bool:
        full = f"{module}.{name}"
        return any(
            full == entry or module == entry or module.startswith(f"{entry}.")
            for entry in self._allow
        )
