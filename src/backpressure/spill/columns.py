"""Columns of events as a caller hands them in: payloads end to end, and offsets."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from backpressure.spill.blocks import MAX_EVENT_BYTES

__all__ = ["lengths_of"]


def lengths_of(
    data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The sizes of the events data[offsets[i]:offsets[i + 1]].

    Raises ValueError or TypeError where these are not columns of events.
    """
    if data.dtype != np.uint8 or data.ndim != 1 or not data.flags.c_contiguous:
        raise TypeError(
            "data: must be a contiguous array of uint8 with one dimension, "
            f"not {data.dtype} with {data.ndim}"
        )
    if offsets.dtype != np.int64 or offsets.ndim != 1 or len(offsets) == 0:
        raise TypeError(
            "offsets: must be a one-dimensional array of int64, not empty; "
            f"not {offsets.dtype} of {offsets.shape}"
        )
    lengths = np.diff(offsets)
    if (
        offsets[0] < 0
        or offsets[-1] > len(data)
        or (len(lengths) and (lengths.min() < 0 or lengths.max() > MAX_EVENT_BYTES))
    ):
        raise ValueError(
            f"offsets: must ascend from 0 or more to at most {len(data)}, "
            f"in steps of at most {MAX_EVENT_BYTES:,}"
        )
    return lengths
