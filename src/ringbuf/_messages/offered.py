"""What a caller offers as messages: what is taken as it is, and what to do instead with
what is not.

A sequence of bytes or str, a numpy array and an Arrow column are messages. Much else
can be iterated over and gives something that looks like them: the keys of a dict, the
names of a table's columns, the bytes of an mmap one by one. None of it is taken apart:
it is refused with a hint.
"""

from __future__ import annotations

from collections.abc import Mapping, MappingView, Set
from typing import NoReturn

import numpy as np

__all__ = ["check_array", "check_offered", "refuse_message"]

WANTED = "messages must be a sequence of bytes or str"

# Of numpy's kinds: raw bytes, with fields or without; bytes; objects; StringDType.
TAKEN_KINDS = "VSOT"


def check_offered(messages: object) -> None:
    """TypeError with a hint for what is no sequence of messages, nor a column of them.

    For anything but a list, a tuple or a numpy array.
    """
    kind = type(messages).__name__
    if isinstance(messages, (bytes, str)):
        raise TypeError(f"{WANTED}, not one {kind}: give [message]")
    if isinstance(messages, np.generic):
        raise TypeError(f"{WANTED}, not one {kind}: give [item.tobytes()]")
    if isinstance(messages, tuple) and hasattr(messages, "_fields"):
        raise TypeError(
            f"{WANTED}, not a {kind}, which is one record: give [json.dumps(record._asdict())]"
        )
    if isinstance(messages, Mapping):
        raise TypeError(
            f"{WANTED}, not a {kind}: give [json.dumps(mapping)] for one message, or "
            "list(mapping.values())"
        )
    if isinstance(messages, Set) and not isinstance(messages, MappingView):
        raise TypeError(
            f"{WANTED}, not a {kind}, which has no order: give list(...) or sorted(...)"
        )
    if isinstance(messages, MappingView):
        raise TypeError(f"{WANTED}, not a {kind}: give list(...)")
    # Of the type: a table that is still to be computed would be, for its names.
    if hasattr(type(messages), "__dataframe__") or hasattr(type(messages), "columns"):
        raise TypeError(
            f'{WANTED}, not a {kind}: give one of its columns, as table["message"], or '
            "[json.dumps(row) for row in ...] for its rows"
        )
    # A column, of whatever library, or numpy's own dtype in it.
    if is_arrow(messages) or has_numpy_dtype(messages):
        return
    if has_buffer(messages):
        raise TypeError(
            f"{WANTED}, not one {kind}: give [bytes(...)] for one message, or the lines in it to "
            "push_lines or add_lines"
        )
    if not hasattr(messages, "__len__") and not hasattr(messages, "__iter__"):
        raise TypeError(f"{WANTED}, not {kind}: give a list of them")
    if hasattr(messages, "__next__") or not hasattr(messages, "__len__"):
        raise TypeError(
            f"{WANTED}, not {kind}: give list(...), piece by piece where it is long "
            "(itertools.islice)"
        )
    if hasattr(messages, "keys") and not hasattr(messages, "to_numpy"):
        raise TypeError(f"{WANTED}, not a {kind}, which has keys: give list(...) of its values")


def is_arrow(messages: object) -> bool:
    """Whether it lends an Arrow column, or a stream of them."""
    return hasattr(messages, "__arrow_c_array__") or hasattr(messages, "__arrow_c_stream__")


def has_numpy_dtype(messages: object) -> bool:
    """Whether it is a column over a numpy array, as a pandas.Series may be."""
    return hasattr(messages, "__array__") and isinstance(getattr(messages, "dtype", None), np.dtype)


def has_buffer(messages: object) -> bool:
    try:
        memoryview(messages).release()  # type: ignore[arg-type]
    except TypeError:
        return False
    except (BufferError, ValueError):  # it has one, and does not lend it now
        return True
    return True


def check_array(dtype: np.dtype[np.generic], ndim: int) -> None:
    """TypeError or ValueError, with a hint, for an array of what are no messages."""
    if ndim != 1:
        raise ValueError(f"a numpy array of messages must have one dimension, not {ndim}")
    if dtype.kind == "U":
        raise TypeError(
            "a numpy array of str holds UTF-32: give array.tolist(), or np.char.encode(array, "
            "'utf-8')"
        )
    if dtype.kind not in TAKEN_KINDS:
        raise TypeError(
            f"a numpy array of {dtype} holds numbers, no messages: give [array.tobytes()] for one "
            f"message, or array.view('V{dtype.itemsize}') for the bytes of each item"
        )
    if dtype.hasobject and dtype.kind == "V":
        raise TypeError(
            "a numpy array of records with objects in them has no bytes of its own: give a list of "
            "bytes or str"
        )


def refuse_message(message: object) -> NoReturn:
    """TypeError, with a hint, for one item that is no message."""
    if (
        message is None
        or message is np.ma.masked
        or type(message).__name__ in _MISSING
        or (isinstance(message, _NUMBERS) and message != message)  # NaN, NaT
    ):
        hint = "drop the rows that have no value, or fill them"
    elif isinstance(message, (bytearray, memoryview, np.void, np.ndarray)):
        hint = "give bytes(message)"
    elif isinstance(message, (Mapping, list, tuple)):
        hint = "give json.dumps(message)"
    else:
        hint = "give str(message), or its bytes"
    raise TypeError(f"a message must be bytes or str, not {type(message).__name__}: {hint}")


# pandas' own.
_MISSING = ("NAType", "NaTType")
_NUMBERS = (float, np.inexact, np.datetime64, np.timedelta64)
