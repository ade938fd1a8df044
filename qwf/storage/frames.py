"""DataFrame and Series ↔ parquet bytes, exactly: index, names, dtypes, tz, units, categories.

The parquet columns hold readable values, so that any tool can read them; what parquet has no words
for stands as JSON under ``qwf`` in the file's metadata. What this form cannot hold exactly is
refused, and the caller keeps it in another.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import FormatVersionError
from ..version import FRAME_FORMAT
from .codec import NotPlainError, decode, encode

__all__ = ["NotTabularError", "decode_frame", "encode_frame"]

_METADATA_KEY: Final = b"qwf"
# Categories stand in the metadata; beyond this the metadata would outweigh the data.
_MAX_CATEGORIES: Final = 100_000
_NUMBERS: Final = "biuf"
_THREADED_BYTES: Final = 1 << 20
# From this many columns on, taking them one by one costs more than a copy of them together.
_WIDE: Final = 256


class NotTabularError(TypeError):
    """A frame or series that parquet cannot hold exactly."""


def encode_frame(frame: pd.DataFrame | pd.Series) -> bytes:
    """Return a frame or series as the bytes of one parquet file.

    Parameters
    ----------
    frame : DataFrame or Series
        Any index and column labels, duplicates included.

    Returns
    -------
    bytes
        Parquet, compressed with zstd; every column and index level is a parquet column.

    Raises
    ------
    NotTabularError
        If something in it would not come back exactly: objects other than text, periods,
        intervals, complex or sparse values, subclasses, labels or attributes that are not plain.
    """
    try:
        return _encode(frame)
    except (NotPlainError, pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        raise NotTabularError(str(error)) from error


def _encode(frame: pd.DataFrame | pd.Series) -> bytes:
    is_series = type(frame) is pd.Series
    if not is_series and type(frame) is not pd.DataFrame:
        raise NotTabularError(f"{type(frame).__name__} is a subclass")
    if not frame.flags.allows_duplicate_labels:
        raise NotTabularError("the flag allows_duplicate_labels is set to False")
    columns = [frame] if is_series else _columns(frame)
    labels = [frame.name] if is_series else list(frame.columns)
    names = _field_names(frame.index, labels)
    arrays: list[Any] = []
    index = _encode_index(frame.index, names, arrays)
    fields = []
    for column, name in zip(columns, names[len(arrays) :], strict=True):
        array, tag = _encode_values(column)
        arrays.append(array)
        fields.append({"field": name, **tag})
    description = {
        "format": "qwf-frame",
        "version": FRAME_FORMAT,
        "kind": "series" if is_series else "frame",
        "rows": len(frame),
        "index": index,
        "columns": {"name": encode(_plain(frame.name))} if is_series else _labels(frame.columns),
        "fields": fields,
        "attrs": encode(frame.attrs),
    }
    return _to_parquet(arrays, names, description)


def _columns(frame: pd.DataFrame) -> list[Any]:
    """Return the columns; those of a wide frame as arrays, where that is all there is to them."""
    width = frame.shape[1]
    if width < _WIDE:
        return [frame.iloc[:, position] for position in range(width)]
    columns: list[Any] = [None] * width
    groups: dict[np.dtype[Any], list[int]] = {}
    for position, dtype in enumerate(frame.dtypes.to_list()):
        if isinstance(dtype, np.dtype) and dtype.kind in _NUMBERS and not dtype.metadata:
            groups.setdefault(dtype, []).append(position)
        else:
            columns[position] = frame.iloc[:, position]
    for positions in groups.values():
        block = frame if len(positions) == width else frame.iloc[:, positions]
        for position, values in zip(positions, block.to_numpy().T, strict=True):
            columns[position] = values
    return columns


def _to_parquet(arrays: list[Any], names: list[str], description: dict[str, Any]) -> bytes:
    table = pa.Table.from_arrays(arrays, names=names)
    text = json.dumps(description, ensure_ascii=True).encode()
    table = table.replace_schema_metadata({_METADATA_KEY: text})
    floating = {
        name: "BYTE_STREAM_SPLIT"  # a fifth smaller for prices and scores, and as fast to read
        for name, array in zip(names, arrays, strict=True)
        if pa.types.is_float32(array.type) or pa.types.is_float64(array.type)
    }
    texts = [name for name in names if name not in floating]
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=texts,
        column_encoding=floating or None,
    )
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _field_names(index: pd.Index, labels: Sequence[object]) -> list[str]:
    """Return one unique, readable parquet column name per index level and column."""
    wanted: list[object] = []
    if not isinstance(index, pd.RangeIndex):
        wanted += list(index.names)
    names: list[str] = []
    taken: set[str] = set()
    for position, label in enumerate([*wanted, *labels]):
        text = label if isinstance(label, str) and label else f"field_{position}"
        if isinstance(label, tuple) and all(isinstance(part, str) for part in label):
            text = ".".join(label)
        try:
            text.encode()
        except UnicodeEncodeError:
            text = f"field_{position}"
        while text in taken:
            text = f"{text}_{position}"
        taken.add(text)
        names.append(text)
    return names


def _plain(label: Any) -> Any:
    """Return a label as plain data: NumPy scalars in labels mean the same as Python's."""
    if isinstance(label, np.generic):
        raise NotTabularError(f"the label {label!r} is a NumPy scalar")
    return label


# --- index -----------------------------------------------------------------------------------


def _encode_index(index: pd.Index, names: list[str], arrays: list[Any]) -> dict[str, Any]:
    if type(index) is pd.RangeIndex:
        bounds = {"start": index.start, "stop": index.stop, "step": index.step}
        return {"type": "range", **bounds, "name": encode(_plain(index.name))}
    if type(index) is pd.MultiIndex:
        levels = []
        for number, name in enumerate(index.names):
            array, tag = _encode_level(index.levels[number], index.codes[number])
            tag = {"field": names[len(arrays)], "name": encode(_plain(name)), **tag}
            arrays.append(array)
            levels.append(tag)
        return {"type": "multi", "levels": levels}
    if type(index) not in (pd.Index, pd.DatetimeIndex, pd.TimedeltaIndex, pd.CategoricalIndex):
        raise NotTabularError(f"an index of type {type(index).__name__}")
    array, tag = _encode_values(index)
    tag = {"field": names[len(arrays)], "name": encode(_plain(index.name)), **tag}
    freq = getattr(index, "freq", None)
    if freq is not None:
        if not _is_regained(index):
            raise NotTabularError(f"a frequency of type {type(freq).__name__}")
        tag["freq"] = freq.freqstr
    arrays.append(array)
    return {"type": "single", **tag}


def _is_regained(index: Any) -> bool:
    """Whether the name of its frequency, which leaves out holidays and the like, is enough."""
    back = index.copy(deep=True)  # the frequency belongs to the values, which copies may share
    try:
        back.freq = index.freq.freqstr
    except (ValueError, TypeError):
        return False
    return bool(back.freq == index.freq)


def _encode_level(level: pd.Index, codes: np.ndarray) -> tuple[Any, dict[str, Any]]:
    if isinstance(level.dtype, pd.CategoricalDtype):
        return _encode_values(pd.Series(level.array.take(codes, allow_fill=True)))
    array, tag = _encode_values(level)
    if type(level) is pd.DatetimeIndex and level.freq is not None:
        tag |= _steps(level)
    missing = codes < 0
    indices = pa.array(codes.astype(np.int32), mask=missing if missing.any() else None)
    if pa.types.is_large_string(array.type):
        array = array.cast(pa.string())
    if pa.types.is_string(array.type):
        return pa.DictionaryArray.from_arrays(indices, array), tag
    return array.take(indices), tag


def _steps(level: pd.DatetimeIndex) -> dict[str, Any]:
    """Return what the level is rebuilt from as a whole, or nothing where that would change it.

    A selection of rows keeps all steps of the level, and with them its frequency. Without, the
    level comes back with the dates that are used, which is what the index shows.
    """
    if not len(level):
        return {}
    try:
        tag = {"freq": level.freq.freqstr, "size": len(level), "start": encode(level[0])}
        whole = _whole_level(tag, level)
    except (NotPlainError, ValueError, TypeError, OverflowError):
        return {}
    same = whole.dtype == level.dtype and whole.equals(level) and whole.freq == level.freq
    return tag if same else {}


def _whole_level(tag: dict[str, Any], level: pd.DatetimeIndex) -> pd.DatetimeIndex:
    start = decode(tag["start"])
    return pd.date_range(start, periods=tag["size"], freq=tag["freq"], unit=level.unit)


def _decode_index(form: dict[str, Any], table: pa.Table, rows: int) -> pd.Index:
    if form["type"] == "range":
        return pd.RangeIndex(form["start"], form["stop"], form["step"], name=decode(form["name"]))
    if form["type"] == "multi":
        names = [decode(level["name"]) for level in form["levels"]]
        if not form["levels"]:
            raise ValueError("a MultiIndex without levels")
        parts = [_decode_level(level, table) for level in form["levels"]]
        return pd.MultiIndex(
            levels=[level for level, _ in parts],
            codes=[codes for _, codes in parts],
            names=names,
            verify_integrity=False,
        )
    values = _decode_values(table.column(form["field"]), form)
    index = _index(values)
    index.name = decode(form["name"])
    if "freq" in form:
        index.freq = form["freq"]
    return index


def _index(values: Any) -> pd.Index:
    # Without the dtype, pandas 3 makes text of objects that are all text.
    return pd.Index(values, dtype=values.dtype, tupleize_cols=False)


def _decode_level(tag: dict[str, Any], table: pa.Table) -> tuple[pd.Index, np.ndarray]:
    column = table.column(tag["field"])
    if tag["dtype"] == "category":
        values = _decode_values(column, tag)
        return pd.CategoricalIndex(values.categories, dtype=values.dtype), values.codes
    if not len(column):
        level, codes = _index(_decode_values(column, tag)), np.empty(0, dtype=np.int32)
    else:
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        column = column.unify_dictionaries().combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # what combine_chunks returns differs by release
            column = column.chunk(0)
        level = _index(_decode_values(column.dictionary, tag))
        indices = column.indices
        indices = indices.fill_null(-1) if indices.null_count else indices
        codes = indices.to_numpy(zero_copy_only=False)
    if "freq" in tag:
        whole = _whole_level(tag, level)
        return whole, _recoded(codes, whole.get_indexer(level))
    if level.is_monotonic_increasing:
        return level, codes
    # Sorted levels make the index lexsorted where the rows are, which pandas can use.
    order = np.asarray(level.argsort())
    position = np.empty(len(order), dtype=np.intp)
    position[order] = np.arange(len(order))
    return level.take(order), _recoded(codes, position)


def _recoded(codes: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Return the codes for a level in which the value `i` stands at ``position[i]``."""
    recoded: np.ndarray = np.append(position, -1)[codes]  # the code -1, missing, stays
    return recoded


# --- columns ---------------------------------------------------------------------------------


def _labels(columns: pd.Index) -> dict[str, Any]:
    if type(columns) is pd.RangeIndex:
        form: dict[str, Any] = {
            "range": [columns.start, columns.stop, columns.step],
            "names": [encode(_plain(columns.name))],
        }
        return form
    multi = type(columns) is pd.MultiIndex
    form = {
        "labels": [encode(label) for label in columns.tolist()],
        "names": [encode(_plain(name)) for name in columns.names],
        "dtypes": [str(d) for d in columns.dtypes] if multi else [str(columns.dtype)],
        "multi": multi,
    }
    if not _same_labels(_decode_labels(form), columns):
        # Without their text: pandas cannot print all that it can hold.
        raise NotTabularError(f"column labels of type {type(columns).__name__} {form['dtypes']}")
    return form


def _same_labels(back: pd.Index, columns: pd.Index) -> bool:
    if type(back) is not type(columns) or not back.equals(columns):
        return False
    if type(columns) is pd.MultiIndex:
        pairs = list(zip(back.levels, columns.levels, strict=True))
    else:
        pairs = [(back, columns)]
    return all(
        one.dtype == other.dtype
        and _category_order(one) == _category_order(other)
        and getattr(other, "freq", None) is None
        for one, other in pairs
    )


def _category_order(index: pd.Index) -> list[Any] | None:
    # Unordered categories in another order make an equal dtype, and other codes.
    return index.categories.tolist() if isinstance(index.dtype, pd.CategoricalDtype) else None


def _decode_labels(form: dict[str, Any]) -> pd.Index:
    names = [decode(name) for name in form["names"]]
    if "range" in form:
        return pd.RangeIndex(*form["range"], name=names[0])
    labels = [decode(label) for label in form["labels"]]
    if form["multi"]:
        parts = zip(*labels, strict=True) if labels else [[] for _ in names]
        arrays = [
            _index_of(list(part), dtype) for part, dtype in zip(parts, form["dtypes"], strict=True)
        ]
        return pd.MultiIndex.from_arrays(arrays, names=names)
    index = _index_of(labels, form["dtypes"][0])
    index.name = names[0]
    return index


def _index_of(labels: list[Any], dtype: str) -> pd.Index:
    try:
        # A list of tuples would become a MultiIndex.
        return pd.Index(labels, dtype=dtype, tupleize_cols=False)
    except TypeError:  # `str` written under pandas 3 and read under pandas 2
        return pd.Index(labels, dtype=object, tupleize_cols=False)


# --- values ----------------------------------------------------------------------------------


def _encode_values(column: pd.Series | pd.Index | np.ndarray) -> tuple[Any, dict[str, Any]]:
    """Return one column as an Arrow array, and what is needed to get the same dtype back."""
    if isinstance(column, np.ndarray):
        return _encode_numpy(column)
    dtype = column.dtype
    if isinstance(dtype, np.dtype):
        return _encode_numpy(column.to_numpy())
    values = column.array
    if isinstance(dtype, pd.CategoricalDtype):
        return _encode_categories(values)
    if isinstance(dtype, pd.DatetimeTZDtype):
        if not _is_named(dtype):
            raise NotTabularError(f"the time zone {dtype.tz!r}")
        moments = values.tz_convert("UTC").tz_localize(None).to_numpy()
        return _moments(moments).cast(pa.timestamp(dtype.unit, "UTC")), {"dtype": str(dtype)}
    if isinstance(dtype, pd.StringDtype):
        array = pa.array(values.to_numpy(dtype=object), type=pa.large_string(), from_pandas=True)
        missing = "nan" if getattr(dtype, "na_value", pd.NA) is not pd.NA else "NA"
        return array, {"dtype": "string", "storage": dtype.storage, "missing": missing}
    return _encode_masked(values)


def _is_named(dtype: pd.DatetimeTZDtype) -> bool:
    """Whether the time zone can be got back from the name of the dtype."""
    try:
        return bool(pd.api.types.pandas_dtype(str(dtype)) == dtype)
    except (TypeError, ValueError, KeyError):
        return False


def _moments(values: np.ndarray) -> Any:
    return pa.array(np.ascontiguousarray(values))


def _encode_numpy(values: np.ndarray) -> tuple[Any, dict[str, Any]]:
    dtype = values.dtype
    if not dtype.isnative or dtype.metadata:
        raise NotTabularError(f"values of type {dtype!r}")
    if dtype == np.float16:
        return pa.array(values.astype(np.float32)), {"dtype": "float16"}
    if dtype.kind in _NUMBERS and dtype.itemsize <= 8:
        return pa.array(np.ascontiguousarray(values)), {"dtype": _dtype_name(dtype)}
    if dtype.kind in "mM":
        return _moments(values), {"dtype": str(dtype)}
    if dtype.kind == "O" and _only_text(values):
        return pa.array(values, type=pa.large_string()), {"dtype": "object"}
    raise NotTabularError(f"values of type {dtype}")


@functools.cache
def _dtype_name(dtype: np.dtype[Any]) -> str:
    return str(dtype)  # which NumPy takes as long for as Arrow for a short column


def _only_text(values: np.ndarray) -> bool:
    return all(type(value) is str or value is None for value in values)


def _encode_masked(values: Any) -> tuple[Any, dict[str, Any]]:
    """Encode pandas' nullable numbers and booleans, where NA is not NaN."""
    name = str(values.dtype)
    if name not in _MASKED:
        raise NotTabularError(f"values of type {name}")
    # Asked of the numbers: `isna` of some releases counts NaN, and they would read it as NA.
    if name.startswith("Float") and np.isnan(values.to_numpy(np.float64, na_value=0.0)).any():
        raise NotTabularError(f"NaN, which is not NA, in a {name} column")
    array = pa.array(values)
    return array, {"dtype": name}


_MASKED: Final = frozenset(
    "boolean Int8 Int16 Int32 Int64 UInt8 UInt16 UInt32 UInt64 Float32 Float64".split()
)


def _encode_categories(values: Any) -> tuple[Any, dict[str, Any]]:
    categories = values.categories
    if len(categories) > _MAX_CATEGORIES:
        raise NotTabularError(f"{len(categories)} categories")
    _, inner = _encode_values(categories)
    tag = {
        "dtype": "category",
        "ordered": bool(values.ordered),
        "categories": [encode(item) for item in categories.tolist()],
        "categories_name": encode(_plain(categories.name)),
        "inner": inner,
    }
    back = _categories(tag)
    same = back.equals(categories) and back.dtype == categories.dtype
    if not same or getattr(categories, "freq", None) is not None:
        raise NotTabularError(f"categories of type {categories.dtype}")
    array, _ = _encode_values(categories)
    codes = values.codes.astype(np.int32)
    missing = codes < 0
    taken = array.take(pa.array(codes, mask=missing if missing.any() else None))
    return taken, tag


def _categories(tag: dict[str, Any]) -> pd.Index:
    inner = tag["inner"]
    labels = [decode(item) for item in tag["categories"]]
    if inner["dtype"] == "string":
        return pd.Index(labels, dtype=_string_dtype(inner))
    if inner["dtype"] == "category":
        raise NotTabularError("categories of categories")
    return pd.Index(labels, dtype=inner["dtype"])


def _decode_values(column: Any, tag: dict[str, Any]) -> Any:
    """Return the pandas or NumPy array that `_encode_values` was given."""
    name = tag["dtype"]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if name == "category":
        return _decode_categories(column, tag)
    if name == "string":
        dtype = _string_dtype(tag)
        if isinstance(dtype, np.dtype):
            return _to_numpy(column)
        return dtype.__from_arrow__(_chunked(column))
    if name.startswith("datetime64[") and "," in name:
        dtype = pd.api.types.pandas_dtype(name)
        moments = _to_numpy(column.cast(pa.timestamp(dtype.unit)))
        return pd.DatetimeIndex(moments).tz_localize("UTC").tz_convert(dtype.tz).array
    if name in _MASKED:
        return pd.api.types.pandas_dtype(name).__from_arrow__(_chunked(column))
    values = _to_numpy(column)
    return values if values.dtype == name else values.astype(name)


def _decode_categories(column: Any, tag: dict[str, Any]) -> pd.Categorical:
    categories = _categories(tag)
    categories.name = decode(tag["categories_name"])
    values = _index(_decode_values(column, tag["inner"]))
    codes = categories.get_indexer(values)
    return pd.Categorical.from_codes(codes, categories=categories, ordered=tag["ordered"])


def _string_dtype(tag: dict[str, Any]) -> Any:
    if tag["missing"] == "NA":
        return pd.StringDtype(tag["storage"])
    try:
        return pd.StringDtype(tag["storage"], na_value=np.nan)
    except TypeError:  # pandas 2 has no such type; its own text columns are objects
        return np.dtype(object)


def _chunked(column: Any) -> Any:
    return column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])


def _to_numpy(column: Any) -> np.ndarray:
    chunked = isinstance(column, pa.ChunkedArray)
    values: np.ndarray = column.to_numpy() if chunked else column.to_numpy(zero_copy_only=False)
    return values


def decode_frame(data: bytes, *, source: object = "the frame") -> pd.DataFrame | pd.Series:
    """Return the frame or series that `encode_frame` was given.

    Parquet that other programs wrote is read as pandas reads it.

    Raises
    ------
    FormatVersionError
        If a newer qwf wrote it.
    ValueError
        If the bytes are no whole parquet file (``pyarrow.ArrowInvalid`` is one).
    """
    file = pq.ParquetFile(pa.BufferReader(data))
    text = (file.metadata.metadata or {}).get(_METADATA_KEY)
    if text is None:
        return file.read().to_pandas()
    form = json.loads(text)
    if form["version"] > FRAME_FORMAT:
        raise FormatVersionError(str(source), found=form["version"], readable=FRAME_FORMAT)
    levels = form["index"].get("levels", ())
    texts = [level["field"] for level in levels if level["dtype"] in ("object", "string")]
    if texts:
        reader = pa.BufferReader(data)
        file = pq.ParquetFile(reader, metadata=file.metadata, read_dictionary=texts)
    # Handing a small file to other threads takes longer than reading it.
    return _rebuild(form, file.read(use_threads=len(data) > _THREADED_BYTES))


def _rebuild(form: dict[str, Any], table: pa.Table) -> pd.DataFrame | pd.Series:
    index = _decode_index(form["index"], table, form["rows"])
    values = [_decode_values(table.column(tag["field"]), tag) for tag in form["fields"]]
    if form["kind"] == "series":
        name = decode(form["columns"]["name"])
        # A copy, as below: what Arrow reads may not be written to.
        frame = pd.Series(values[0], index=index, name=name, dtype=values[0].dtype, copy=True)
    else:
        frame = _join(values, index)
        frame.columns = _decode_labels(form["columns"])
    frame.attrs = decode(form["attrs"])
    return frame


def _join(values: list[Any], index: pd.Index) -> pd.DataFrame:
    """Return a frame with one block per type, as pandas makes them; thousands make it slow."""
    dtypes = {part.dtype if _is_number(part) else None for part in values}
    if len(dtypes) == 1 and None not in dtypes:
        return pd.DataFrame(np.stack(values).T, index=index, copy=False)
    # Without a Series, pandas 3 makes text of objects that are all text.
    parts = {
        number: part if _is_number(part) else pd.Series(part, index, part.dtype, copy=False)
        for number, part in enumerate(values)
    }
    return pd.DataFrame(parts, index=index, copy=True)


def _is_number(values: Any) -> bool:
    return isinstance(values, np.ndarray) and values.dtype.kind in _NUMBERS
