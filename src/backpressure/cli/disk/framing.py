"""Events as bytes in a file: as lines, or as records that begin with their length.

lines     event, b"\\n". An event that holds a newline itself cannot be told from two.
records   length as 4 bytes, little-endian, then the event. Takes any event.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ringbuf import Messages

__all__ = ["FORMATS", "framed", "with_newlines"]

FORMATS: Final = ("lines", "records")
_NEWLINE: Final = 10
_LENGTH_BYTES: Final = 4


def framed(messages: Messages, form: str) -> bytes | memoryview:
    """The events one after the other, in one of FORMATS."""
    if form == "lines":
        return messages.join(b"\n", b"\n") if len(messages) else b""
    offsets = messages.offsets
    lengths = np.diff(offsets)
    out = np.empty(int(lengths.sum()) + _LENGTH_BYTES * len(lengths), np.uint8)
    starts = offsets[:-1] - offsets[0] + _LENGTH_BYTES * np.arange(len(lengths))
    places = starts[:, None] + np.arange(_LENGTH_BYTES)
    out[places] = lengths.astype("<u4").view(np.uint8).reshape(-1, _LENGTH_BYTES)
    payload = np.ones(len(out), np.bool_)
    payload[places] = False
    out[payload] = messages.data[int(offsets[0]) : int(offsets[-1])]
    return out.data


def with_newlines(messages: Messages) -> int:
    """How many of the events hold a newline."""
    offsets = messages.offsets
    found = (
        np.flatnonzero(messages.data[int(offsets[0]) : int(offsets[-1])] == _NEWLINE) + offsets[0]
    )
    return len(np.unique(np.searchsorted(offsets, found, "right"))) if len(found) else 0
