"""Masked arrays: a masked item has no value, so it is neither pushed nor counted."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["has_masked", "plain_array"]


def has_masked(values: object) -> bool:
    """Whether any item of a masked array, or any field of one, is masked; False for
    anything else.
    """
    # numpy imports this module at its first use: where it is not there, there are none,
    # and a finaliser or a signal's handler may find it half imported.
    masked = getattr(sys.modules.get("numpy.ma"), "MaskedArray", None)
    if masked is None or not isinstance(values, masked):
        return False
    # Of structured arrays the mask is structured as well, of nothing but bools.
    mask = np.ascontiguousarray(np.ma.getmaskarray(values))
    return bool(mask.size and mask.view(np.bool_).any())


def plain_array(values: object, refusal: str) -> npt.NDArray[Any]:
    """Whatever numpy makes an array of, as one of no subclass: a subclass may misstate
    itself. ValueError (`refusal`) where any item is masked.
    """
    if type(values) is np.ndarray:
        return values
    # Of a column over a masked array, only the array that it gives has the mask.
    array = np.asanyarray(values)
    if has_masked(array):
        raise ValueError(refusal)
    return np.asarray(array)
