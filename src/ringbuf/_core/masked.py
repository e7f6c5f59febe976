"""Masked arrays: a masked item has no value, so it is neither pushed nor counted."""

from __future__ import annotations

import numpy as np

__all__ = ["has_masked"]


def has_masked(values: object) -> bool:
    """Whether any item of a masked array, or any field of one, is masked; False for
    anything else.
    """
    if not isinstance(values, np.ma.MaskedArray):
        return False
    # Of structured arrays the mask is structured as well, of nothing but bools.
    mask = np.ascontiguousarray(np.ma.getmaskarray(values))
    return bool(mask.size and mask.view(np.bool_).any())
