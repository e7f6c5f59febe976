"""Buffers of plain bytes in one dimension that this core lends out, and what a caller's
buffer says that it holds.
"""

from cpython.buffer cimport Py_buffer


cdef inline void fill_bytes(
    Py_buffer* buffer, void* start, Py_ssize_t* nbytes, bint is_readonly
) noexcept:
    """Fill in all but `obj`. `nbytes` must stay in place as long as the buffer is out.
    """
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


cdef inline bint names_objects(const char* format) noexcept:
    """Whether a buffer's format has objects in it: an O that is not in the name of a
    field (numpy allows no colon there).
    """
    cdef bint in_name = False
    if format == NULL:
        return False
    while format[0] != 0:
        if format[0] == b":":
            in_name = not in_name
        elif format[0] == b"O" and not in_name:
            return True
        format += 1
    return False
