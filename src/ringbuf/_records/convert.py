"""What callers hand to a RingBuffer, as an array of its dtype; or an error that says
why not.

A dtype says which conversions make sense (numpy's "same_kind" rule), and the values say
whether they lose anything: an integer that does not fit, a number that would become
infinite, a string that would be cut, and a time that is out of range or finer than the
unit are refused. Floats round.

What numpy itself does not tell apart stays so: a string or raw bytes that are too short
are filled up with NULs, and an array of strings does not know whether there were NULs
at the end of one. A str or bytes that ends in NULs is refused, as it would come out
without them: "V" keeps them. None is NaT where the dtype is one of times; a datetime
with a time zone counts in UTC.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, MappingView, Set, Sized
from typing import TYPE_CHECKING, Any

import numpy as np

from ringbuf._core.masked import has_masked, plain_array

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["as_records"]

MICROSECOND = datetime.timedelta(microseconds=1)
MASKED = "records that are masked have no value: fill them (records.filled(...)) or leave them out"


def as_records(dtype: np.dtype[Any], records: object) -> npt.NDArray[Any]:
    """`records` as a contiguous array of `dtype` with one dimension.

    TypeError for what can never be of that dtype, ValueError for a wrong shape and for
    values that do not fit (numbers: OverflowError).
    """
    if isinstance(records, (Mapping, MappingView, Set)):
        raise TypeError(
            f"records must be a sequence or an array, not a {type(records).__name__}: "
            "give list(...)"
        )
    if isinstance(records, memoryview):
        # ValueError if it was released; numpy would take it for one object.
        records = memoryview(records)
    if is_array(records):
        return cast(plain_array(records, MASKED), dtype)
    if (
        isinstance(records, (str, bytes))
        or not isinstance(records, Iterable)
        or not isinstance(records, Sized)
    ):
        raise TypeError(
            f"records must be an array or a sequence, not {type(records).__name__}: "
            "one alone goes in by try_push()"
        )
    rows = [unwrapped(record) for record in records]
    if dtype.kind == "V":
        rows = [row_of(row, dtype) for row in rows]
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
    """The scalar of a record that came as an array of no dimensions."""
    if not isinstance(record, np.ndarray) or record.ndim:
        return record
    return plain_array(record, MASKED)[()]


def row_of(record: Any, dtype: np.dtype[Any]) -> Any:
    """The np.void of a record that came as an array of one row, or as another object
    whose buffer has one; anything else unchanged.
    """
    if isinstance(record, (tuple, np.generic, str, bytes, bytearray)):
        return record
    array = record
    if not isinstance(record, np.ndarray):
        try:
            view = memoryview(record)
            own = view.format == format_of(dtype) and view.itemsize == dtype.itemsize
            if own and view.ndim <= 1:
                array = np.frombuffer(view.tobytes(), dtype)
            else:
                array = np.asarray(view)
        # No buffer, or one that numpy cannot read, as some that it lends itself.
        except (TypeError, ValueError, BufferError, RuntimeError):
            return record
    if array.dtype.kind != "V" or array.shape not in ((), (1,)):
        return record
    return plain_array(array, MASKED).reshape(())[()]


def format_of(dtype: np.dtype[Any]) -> str | None:
    """The format of a buffer of the dtype; None where there is none, as for times."""
    try:
        return memoryview(np.zeros(1, dtype)).format  # type: ignore[arg-type]
    except ValueError:
        return None


def as_field(dtype: np.dtype[Any], values: list[Any]) -> npt.NDArray[Any]:
    """One field of several records."""
    if dtype.subdtype is None:
        return as_records(dtype, values)
    base, shape = dtype.subdtype
    for value in values:
        if has_masked(value):
            raise ValueError(MASKED)
        if np.shape(value) != shape:
            raise ValueError(f"a field of shape {shape} cannot be made from {value!r}")
    cells = [cell for value in values for cell in cells_of(value)]
    return as_records(base, cells).reshape(len(values), *shape)


def cells_of(value: Any) -> list[Any]:
    """The items of an array, or of nested sequences, each as it is: an array of objects
    would lose the unit of a time.
    """
    array = plain_array(value, MASKED) if is_array(value) else np.array(value, object)
    return list(array.ravel())


def is_array(records: object) -> bool:
    """Whether numpy makes an array of it without a look at each item."""
    if isinstance(records, (np.ndarray, memoryview, bytearray)) or hasattr(records, "__array__"):
        return True
    return hasattr(records, "__array_interface__") or type(records).__module__ == "array"


def array_of(rows: list[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Python objects as an array of the dtype that numpy finds for them."""
    if not rows:
        return np.empty(0, dtype)
    if dtype.kind in "ium" and all(is_int(row) for row in rows):
        return int_array(rows)
    if dtype.kind in "mM":
        return time_array(rows, dtype)
    if dtype.kind in "SU":
        for row in rows:
            if isinstance(row, (str, bytes)) and row[-1:] in ("\0", b"\0"):
                raise ValueError(
                    f"{row!r} ends in NULs, which dtype {dtype} does not keep: "
                    "make it one of raw bytes, as 'V16'"
                )
    return np.array(rows)


def is_int(row: Any) -> bool:
    """Whether it is an int of any kind; numpy counts a timedelta64 as one."""
    return isinstance(row, (int, np.integer)) and not isinstance(row, np.timedelta64)


def int_array(rows: list[Any]) -> npt.NDArray[Any]:
    """Ints as int64, or as uint64 where one is too large for that: numpy would make
    floats of a mixture.
    """
    try:
        return np.array([int(row) for row in rows], np.int64)
    except OverflowError:
        return np.array([int(row) for row in rows], np.uint64)


def time_array(rows: list[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Times in the unit that they have, or in `dtype` where they have several: numpy
    would cut a mixture, or wrap it.
    """
    times = [as_time(row, dtype) for row in rows]
    if len({getattr(time, "dtype", None) for time in times}) == 1:
        return np.array(times)
    return np.concatenate([cast(np.array([time]), dtype, by_value=True) for time in times])


def as_time(row: Any, dtype: np.dtype[Any]) -> Any:
    """A time of Python or pandas as one of numpy, in a unit that holds it as it is;
    anything else unchanged.
    """
    if row is None:
        return np.array("NaT", dtype)[()]
    if not isinstance(row, (datetime.date, datetime.timedelta)):
        return row
    if hasattr(row, "to_numpy"):
        # pandas counts nanoseconds, of which numpy sees only the microseconds.
        return row.to_numpy()
    if isinstance(row, datetime.date):
        return np.datetime64(row)
    count = row // MICROSECOND
    if abs(count) < 2**63:
        return np.timedelta64(count, "us")
    if row.microseconds:
        raise ValueError(f"{row!r} is too long to be told in microseconds")
    return np.timedelta64(count // 10**6, "s")


def cast(
    array: npt.NDArray[Any], dtype: np.dtype[Any], *, by_value: bool = False
) -> npt.NDArray[Any]:
    """`array` in `dtype`; `by_value`: it was made from Python objects, whose ints have
    no width or sign of their own.
    """
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
                    f"field {name!r} has shape {array.dtype[name].shape}, "
                    f"and not {dtype[name].shape}"
                )
            made[name] = converted(array[name], dtype[name].base, by_value)
        return made
    ints = array.dtype.kind in "iu" and dtype.kind in "iu"
    texts = {"S": "S", "U": "SU", "V": "SV"}.get(dtype.kind)
    allowed = np.can_cast(array.dtype, dtype, "same_kind") and (
        texts is None or array.dtype.kind in texts
    )
    if not allowed and not (ints and by_value):
        raise TypeError(f"records of dtype {array.dtype} cannot go into a ring of dtype {dtype}")
    if dtype.kind in "mM":
        return converted_times(array, dtype)
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


def converted_times(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Times of another unit, or numbers of units, in `dtype`; refuses what numpy would
    wrap (out of range) or cut (finer than the unit).
    """
    if array.dtype.kind in "biu":
        made = array.astype(dtype)
        lost = (made.astype(np.int64) != array) | np.isnat(made)
        if lost.any():
            raise OverflowError(f"{array[lost][0]!r} is out of range for {dtype}")
        return made
    try:
        made = array.astype(dtype)
        back = made.astype(array.dtype)
    except OverflowError:  # from the units alone
        raise ValueError(f"times of dtype {array.dtype} cannot be told in {dtype}") from None
    # What fits comes back as it was; so what comes back as another time has wrapped.
    lost = (back != array) & ~(np.isnat(back) & np.isnat(array))
    if lost.any():
        raise ValueError(f"{array[lost][0]!r} is out of range for {dtype}, or finer than its unit")
    return made


def length(array: npt.NDArray[Any]) -> int:
    """The longest text in characters; of raw bytes, the size."""
    if array.dtype.kind == "V":
        return array.dtype.itemsize
    return int(np.char.str_len(array).max(initial=0))
