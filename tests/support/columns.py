"""A column over a numpy array, as other libraries have them."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["Column"]


class Column:
    """As a pandas.Series: it has keys, and is indexed by labels."""

    def __init__(self, values: np.ndarray[Any, Any]) -> None:
        self._values = values
        self.dtype = values.dtype

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        return self._values

    def __len__(self) -> int:
        return len(self._values)

    def keys(self) -> list[str]:
        return ["x", "y"]
