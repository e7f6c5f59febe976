from cpython.buffer cimport Py_buffer
from libc.stdint cimport uint64_t

from ringbuf._records.tuples cimport TupleWriter


cdef enum:
    # What a tuple is written to before it goes in lies on the stack. Larger rows cost
    # more to copy than to convert.
    MAX_TUPLE_BYTES = 512


cdef class Rows:
    cdef object _dtype
    cdef uint64_t _itemsize
    cdef bint _has_fields
    cdef TupleWriter _writer  # of tuples, or None
    # Another dtype object that was found equal, and what the fields of both were called
    # then: numpy lets these be changed.
    cdef object _equal
    cdef object _equal_names
    cdef object _own_names
    # The format of buffers that were found to be of the dtype, or None; and the names,
    # as above.
    cdef bytes _format
    cdef object _format_names
    # Rows for pops, made at once; from `_next` on they are zeros, and no caller's.
    cdef object _block
    cdef Py_ssize_t _next
    cdef Py_ssize_t _count
    cdef object _unused     # the row of a pop that found nothing, or None

    cdef Rows of_handle(self)
    cdef bint lend(self, object record, Py_buffer* view) except -1
    cdef bint lend_other(self, object record, Py_buffer* view) except -1
    cdef bint is_ours(self, object dtype) except -1
    cdef bint is_format(self, object record, Py_buffer* view) except -1
    cdef bint write(self, object values, unsigned char* row) except -1
    cdef object new_row(self)
    cdef int keep(self, object row) except -1


cdef Rows rows_of(object dtype)
cdef unsigned char* memory_of(object row) except NULL
