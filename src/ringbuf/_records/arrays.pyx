# cython: freethreading_compatible=True
"""What callers push and pop as arrays of a ring's dtype."""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint64_t

from ringbuf._records.base cimport RecordRingBase
from ringbuf._records.numbers cimport BY_NUMPY, put_bits, to_bits

import numpy as np

from ringbuf._records.convert import as_records


cdef object records_of(RecordRingBase ring, object records):
    """What `push_many` was given, as a contiguous array of the ring's dtype."""
    if (
        type(records) is np.ndarray and records.dtype is ring.dtype
        and records.ndim == 1 and records.flags.c_contiguous
    ):
        return records
    return gather(ring, records) if ring._kind != BY_NUMPY else as_records(ring.dtype, records)


cdef object record_of(RecordRingBase ring, object record):
    """One record, as an array."""
    return as_records(ring.dtype, [record])


cdef object gather(RecordRingBase ring, object records):
    """A list or tuple of plain numbers as an array; anything else by `as_records`."""
    cdef Py_buffer view
    cdef unsigned char* target
    cdef uint64_t bits
    if not isinstance(records, (list, tuple)):
        return as_records(ring.dtype, records)
    records = tuple(records)  # a list could change while it is read
    array = np.empty(len(records), ring.dtype)
    PyObject_GetBuffer(array, &view, PyBUF_WRITABLE)
    target = <unsigned char*>view.buf
    PyBuffer_Release(&view)  # the array is ours and stays where it is
    for record in records:
        to_bits(ring._kind, ring._runs.itemsize, record, &bits)
        put_bits(target, ring._runs.itemsize, bits)
        target += ring._runs.itemsize
    return array


cdef object checked_out(RecordRingBase ring, object out):
    """The `out` of `pop_many` as a plain array; TypeError or ValueError if it cannot
    take records.
    """
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a numpy array, not {type(out).__name__}")
    out = np.asarray(out)  # what a subclass says of itself is not asked
    is_flat = out.ndim == 1 and out.flags.c_contiguous
    if out.dtype != ring.dtype or not is_flat or not out.flags.writeable:
        raise ValueError(
            f"out must be a writable, contiguous array of one dimension and dtype {ring.dtype}"
        )
    return out


cdef object new_array(RecordRingBase ring, uint64_t count):
    return np.empty(count, ring.dtype)
