"""The Arrow C data and stream interfaces: columns of bytes in and out without a copy
and without pyarrow.
"""

from libc.stdint cimport int64_t


# As the Arrow specification lays them out ("The Arrow C data interface").
cdef struct ArrowSchema:
    const char* format
    const char* name
    const char* metadata
    int64_t flags
    int64_t n_children
    ArrowSchema** children
    ArrowSchema* dictionary
    void (*release)(ArrowSchema*) noexcept nogil
    void* private_data


cdef struct ArrowArray:
    int64_t length
    int64_t null_count
    int64_t offset
    int64_t n_buffers
    int64_t n_children
    const void** buffers
    ArrowArray** children
    ArrowArray* dictionary
    void (*release)(ArrowArray*) noexcept nogil
    void* private_data


# "The Arrow C stream interface".
cdef struct ArrowArrayStream:
    int (*get_schema)(ArrowArrayStream*, ArrowSchema*) noexcept nogil
    int (*get_next)(ArrowArrayStream*, ArrowArray*) noexcept nogil
    const char* (*get_last_error)(ArrowArrayStream*) noexcept nogil
    void (*release)(ArrowArrayStream*) noexcept nogil
    void* private_data


cdef enum Layout:
    OFFSETS_32
    OFFSETS_64
    VIEWS


# A column of bytes that another library lent, until this object goes.
cdef class Lent:
    cdef ArrowArray array
    cdef Layout layout
    cdef int64_t first  # the number of its first message, where there are more columns

    cdef int64_t place(self, int64_t i, const char** start) except -1
    cdef int64_t _offset(self, int64_t i) noexcept
    cdef int64_t _place_view(self, int64_t i, const char** start) except -1


cdef list borrow_array(object source)
cdef list borrow_stream(object source)
cdef tuple lend(object owner, const void* offsets, const void* data, int64_t count)
