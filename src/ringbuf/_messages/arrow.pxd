"""The Arrow C data interface: columns of bytes in and out without a copy and without
pyarrow.
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


# An Arrow column of bytes as another library lent it.
cdef struct Borrowed:
    int64_t count
    const char* offsets  # count + 1 of them, if there are any messages; aligned or not
    bint wide            # each has 8 bytes, not 4
    const char* data     # NULL: all are empty


cdef object borrow(object array, Borrowed* column)
cdef int64_t offset_at(const Borrowed* column, int64_t i) noexcept
cdef tuple lend(object owner, const void* offsets, const void* data, int64_t count)
