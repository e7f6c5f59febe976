from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_Check, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_Check
from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL


# Messages to be pushed: message i has lengths[i] bytes at starts[i].
cdef struct Column:
    const char** starts
    uint32_t* lengths
    int64_t count


cdef class Gathered:
    cdef Column column
    cdef object _keep     # what owns the bytes

    cdef _allocate(self, Py_ssize_t count)
    cdef _gather_objects(self, messages, uint64_t limit)
    cdef bint _gather_list(self, list messages, uint64_t limit) except -1
    cdef int _note(self, Py_ssize_t i, object item, uint64_t limit) except -1
    cdef _gather_array(self, array, uint64_t limit)
    cdef _gather_stream(self, messages, uint64_t limit)
    cdef _gather_columns(self, list columns, uint64_t limit)


cdef class PushProgress:
    cdef readonly int64_t pushed
    cdef public int64_t remaining
    cdef readonly uint64_t consumed
    cdef readonly uint64_t first_seq

    cdef inline void note(self, int64_t pushed, size_t consumed, uint64_t first_seq) noexcept:
        if self.pushed == 0:
            self.first_seq = first_seq
        self.pushed += pushed
        self.remaining -= pushed
        self.consumed += consumed


# Raises MessageTooLarge.
cdef int refuse_length(size_t index, size_t nbytes, uint64_t limit) except -1
# Raises TypeError.
cdef const char* refuse_kind(object message) except NULL


cdef inline const char* text_of(object message, Py_ssize_t* size) except NULL:
    """The bytes of a bytes or str; they stay as long as the object does."""
    if PyBytes_Check(message):
        size[0] = PyBytes_GET_SIZE(message)
        return PyBytes_AS_STRING(message)
    if PyUnicode_Check(message):
        return PyUnicode_AsUTF8AndSize(message, size)
    return refuse_kind(message)
