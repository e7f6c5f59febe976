from cpython.buffer cimport Py_buffer


cpdef object pins(object owner)
cdef int borrow_bytes(object owner, Py_buffer* buffer, bint to_write, str name) except -1
