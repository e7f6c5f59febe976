# cython: freethreading_compatible=True
"""Memory of a caller's object that stays where it is while C code has its address.

A buffer keeps most objects from moving their memory: bytearray, array.array and mmap
refuse to be resized while one is exported. numpy does not:
`array.resize(n, refcheck=False)` frees the memory under it. What it does refuse is to
resize an array that has a weak reference, or one whose memory is another's.
"""

from cpython.buffer cimport (
    Py_buffer, PyBUF_FORMAT, PyBUF_ND, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.weakref cimport PyWeakref_NewRef

from ringbuf._core.buffers cimport names_objects

import numpy as np

cdef object NDARRAY = np.ndarray
# Not the attribute, which a subclass may have replaced.
cdef object GET_BASE = np.ndarray.base.__get__
cdef object VOID = np.void
cdef object RECORD = np.record
cdef object GET_BASE_OF_VOID = np.void.base.__get__


cpdef object pins(object owner):
    """What to keep as long as the memory of `owner`, an array or a view of one, is
    used; None where its buffer is enough.
    """
    while True:
        if type(owner) is NDARRAY or issubclass(type(owner), NDARRAY):
            base = GET_BASE(owner)
            if base is None:
                return PyWeakref_NewRef(owner, None)
            owner = base
        elif type(owner) is VOID or type(owner) is RECORD:
            # A view of an array, or bytes of its own, which stay where they are.
            owner = GET_BASE_OF_VOID(owner)
        elif type(owner) is memoryview:
            owner = owner.obj
        else:
            return None


cdef int borrow_bytes(object owner, Py_buffer* buffer, bint to_write, str name) except -1:
    """Borrow the bytes of a caller's object, until PyBuffer_Release. TypeError where
    they are pointers to Python objects.

    numpy lends an array of objects as if it were bytes, and lets them be written,
    unless it is asked for the format.
    """
    cdef int flags = PyBUF_WRITABLE if to_write else PyBUF_SIMPLE
    try:
        PyObject_GetBuffer(owner, buffer, flags | PyBUF_ND | PyBUF_FORMAT)
    except (BufferError, ValueError):
        # No format has a letter for times; an array of them has bytes all the same. The
        # dtype is numpy's own: a subclass may have replaced the attribute.
        if not isinstance(owner, np.ndarray) or np.ndarray.dtype.__get__(owner).hasobject:
            raise
        PyObject_GetBuffer(owner, buffer, flags)
        return 0
    if names_objects(buffer.format):
        PyBuffer_Release(buffer)
        raise TypeError(f"{name} holds Python objects, which have no bytes of their own")
    return 0
