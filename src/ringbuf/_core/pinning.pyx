# cython: freethreading_compatible=True
"""Memory that stays where it is while C code has its address.

A buffer keeps most objects from moving their memory: bytearray, array.array and mmap
refuse to be resized while one is exported. numpy does not:
`array.resize(n, refcheck=False)` frees the memory under it. What it does refuse is to
resize an array that has a weak reference, or one whose memory is another's.
"""

from cpython.weakref cimport PyWeakref_NewRef

import numpy as np

cdef object NDARRAY = np.ndarray
# Not the attribute, which a subclass may have made something else of.
cdef object GET_BASE = np.ndarray.base.__get__


def pins(owner):
    """What to keep as long as the memory of `owner`, an array or a view of one, is
    used; None where its buffer is enough.
    """
    while True:
        if type(owner) is NDARRAY or issubclass(type(owner), NDARRAY):
            base = GET_BASE(owner)
            if base is None:
                return PyWeakref_NewRef(owner, None)
            owner = base
        elif type(owner) is memoryview:
            owner = owner.obj
        else:
            return None
