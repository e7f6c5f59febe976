"""Memory that stays where it is while C code has its address.

A buffer keeps most objects from moving their memory: bytearray, array.array and mmap refuse to be resized while one is exported.
numpy does not: `array.resize(n, refcheck=False)` frees the memory under it. What it does refuse is to resize an array that has
a weak reference.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

__all__ = ["pins"]


def pins(owner: object) -> list[weakref.ref[Any]]:
    """What to keep as long as the memory of `owner`, an array or a view of one, is used; empty where its buffer is enough."""
    held: list[weakref.ref[Any]] = []
    while True:
        if type(owner) is memoryview:
            owner = owner.obj
        elif issubclass(type(owner), np.ndarray):
            held.append(weakref.ref(owner))
            # Not `owner.base`, which a subclass may have made something else of.
            owner = np.ndarray.base.__get__(owner)
        else:
            return held
