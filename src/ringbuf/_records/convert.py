"""Whatever a caller hands to a RingBuffer as an array of its dtype, or an error that says why not.

A dtype says which conversions make sense (numpy's "same_kind" rule), and the values say whether they do it without loss: an
integer that does not fit, a number that would become infinite and a string that would be cut are refused. Floats round.
"""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import Any

import numpy as np
import numpy.typing as npt

from ringbuf._core.masked import has_masked

__all__ = ["as_records"]

MASKED = "records that are masked have no value: fill them (records.filled(...)) or leave them out"


def as_records(dtype: np.dtype[Any], records: object) -> npt.NDArray[Any]:
    """`records` as a contiguous array of `dtype` with one dimension.

    TypeError for what can never be of that dtype, ValueError for a wrong shape and for values that do not fit (numbers:
    OverflowError).
    """
    if has_masked(records):
        raise ValueError(MASKED)
    if is_array(records):
        return cast(np.asarray(records), dtype)
    if (
        isinstance(records, (str, bytes))
        or not isinstance(records, Iterable)
        or not isinstance(records, Sized)
    ):
        raise TypeError(
            f"records must be an array or a sequence, not {type(records).__name__}: one alone goes in by try_push()"
        )
    rows = [unwrapped(record) for record in records]
    if dtype.names is None:
        return cast(array_of(rows, dtype), dtype, by_value=True)
    if rows and all(isinstance(row, np.void) for row in rows):
        return cast(np.array(rows), dtype)
    for row in rows:
        values = row.item() if isinstance(row, np.void) else row
        if not isinstance(values, tuple) or len(values) != len(dtype.names):
            raise TypeError(
                f"a record of dtype {dtype} is a tuple of {len(dtype.names)} values, not {row!r}"
            )
    array = np.zeros(len(rows), dtype)
    for place, name in enumerate(dtype.names):
        array[name] = as_field(dtype[name], [row[place] for row in rows])
    return array


def unwrapped(record: Any) -> Any:
    """A record that came as an array of no dimensions, as the scalar that it holds."""
    if not isinstance(record, np.ndarray) or record.ndim:
        return record
    if has_masked(record):
        raise ValueError(MASKED)
    return np.asarray(record)[()]


def as_field(dtype: np.dtype[Any], values: list[Any]) -> npt.NDArray[Any]:
    """One field of several records."""
    if dtype.subdtype is None:
        return as_records(dtype, values)
    base, shape = dtype.subdtype
    for value in values:
        if np.shape(value) != shape:
            raise ValueError(f"a field of shape {shape} can not be made from {value!r}")
    cells = [cell for value in values for cell in np.array(value, object).ravel()]
    return as_records(base, cells).reshape(len(values), *shape)


def is_array(records: object) -> bool:
    """Whether numpy sees an array there without looking at each item."""
    if isinstance(records, (np.ndarray, memoryview, bytearray)) or hasattr(records, "__array__"):
        return True
    return hasattr(records, "__array_interface__") or type(records).__module__ == "array"


def array_of(rows: list[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Python objects as an array of whatever dtype they have."""
    if dtype.kind in "mM" and not any(isinstance(row, (int, float, str, bytes)) for row in rows):
        return np.array(
            rows, dtype
        )  # datetime and timedelta objects would become an array of objects
    if dtype.kind in "iu" and all(isinstance(row, (int, np.integer)) for row in rows):
        return int_array(rows)
    return np.array(rows) if rows else np.empty(0, dtype)


def int_array(rows: list[Any]) -> npt.NDArray[Any]:
    """Ints as int64, or as uint64 where one is too large for that: numpy would make floats of both together."""
    try:
        return np.array([int(row) for row in rows], np.int64)
    except OverflowError:
        return np.array([int(row) for row in rows], np.uint64)


def cast(
    array: npt.NDArray[Any], dtype: np.dtype[Any], *, by_value: bool = False
) -> npt.NDArray[Any]:
    """`array` in `dtype`; `by_value`: it was made from Python objects, whose ints have no width or sign of their own."""
    if array.ndim != 1:
        raise ValueError(f"records must have one dimension, not {array.ndim}")
    return np.ascontiguousarray(
        array if array.dtype == dtype else converted(array, dtype, by_value)
    )


def converted(array: npt.NDArray[Any], dtype: np.dtype[Any], by_value: bool) -> npt.NDArray[Any]:
    """`array`, of any shape, in `dtype`: cell by cell, field by field."""
    if dtype.names is not None:
        if array.dtype.names != dtype.names:
            raise TypeError(f"records of dtype {array.dtype} have other fields than {dtype}")
        made = np.zeros(array.shape, dtype)
        for name in dtype.names:
            if array.dtype[name].shape != dtype[name].shape:
                raise TypeError(
                    f"field {name!r} has shape {array.dtype[name].shape}, and not {dtype[name].shape}"
                )
            made[name] = converted(array[name], dtype[name].base, by_value)
        return made
    ints = array.dtype.kind in "iu" and dtype.kind in "iu"
    texts = {"S": "S", "U": "SU", "V": "SV"}.get(dtype.kind)
    allowed = np.can_cast(array.dtype, dtype, "same_kind") and (
        texts is None or array.dtype.kind in texts
    )
    if not allowed and not (ints and by_value):
        raise TypeError(f"records of dtype {array.dtype} can not go into a ring of dtype {dtype}")
    with np.errstate(over="ignore"):
        made = array.astype(dtype)
    if ints:
        lost = made != array
    elif dtype.kind in "fc" and array.dtype.kind in "biufc":
        lost = np.isfinite(array) & ~np.isfinite(made)
    else:
        lost = np.zeros(array.shape, bool)
        if texts is not None and length(array) > length(made):
            raise ValueError(f"a record of {length(array)} is too long for dtype {dtype}")
    if lost.any():
        raise OverflowError(f"{array[lost][0]!r} is out of range for {dtype}")
    return made


def length(array: npt.NDArray[Any]) -> int:
    """The longest text in characters; of raw bytes, the size."""
    if array.dtype.kind == "V":
        return array.dtype.itemsize
    return int(np.char.str_len(array).max(initial=0))
