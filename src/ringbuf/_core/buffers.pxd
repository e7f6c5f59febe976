"""Memory lent out as a buffer of plain bytes in one dimension."""

from cpython.buffer cimport Py_buffer


cdef inline void fill_bytes(Py_buffer* buffer, void* start, Py_ssize_t* nbytes, bint is_readonly) noexcept:
    """All of it but `obj`. `nbytes` is pointed to as long as the buffer is out."""
    buffer.buf = start
    buffer.len = nbytes[0]
    buffer.readonly = is_readonly
    buffer.itemsize = 1
    buffer.format = NULL  # bytes
    buffer.ndim = 1
    buffer.shape = nbytes
    buffer.strides = &buffer.itemsize
    buffer.suboffsets = NULL
    buffer.internal = NULL
