from libc.stdint cimport int64_t, uint32_t, uint64_t

from ringbuf._core.atomics cimport word


# Messages that are to be pushed: message i has lengths[i] bytes at starts[i].
cdef struct Column:
    const char** starts
    uint32_t* lengths
    int64_t count


cdef class Gathered:
    cdef Column column
    cdef object _keep     # what owns the bytes

    cdef _allocate(self, Py_ssize_t count)
    cdef _gather_objects(self, messages, uint64_t limit)
    cdef _gather_array(self, array, uint64_t limit)
    cdef _gather_arrow(self, array, uint64_t limit)


cdef class Spares:
    cdef list _blocks

    cdef object get(self, uint64_t size)
    cdef void put(self, memory)


# Of one take that was split: how many parts are not released yet.
cdef class Parts:
    cdef word left


cdef class Messages:
    cdef readonly object data
    cdef readonly object offsets
    cdef readonly uint64_t first_seq
    cdef unsigned char* _data
    cdef int64_t* _offsets
    cdef Py_ssize_t _count
    # Where the ring that they came from still holds them, until they are released.
    cdef uint64_t _position
    cdef uint64_t _place
    cdef word _held       # whether they are to be released
    cdef object _ring     # by which ring: its identity
    cdef int64_t _slot    # that speaks of them in a shared ring, or -1
    cdef uint64_t _epoch  # of the process that took them there
    cdef Parts _parts     # that they are one of; or None
    # Where `data` lies, if it is to be used again.
    cdef object _memory
    cdef Spares _spares


cdef Messages new_messages(uint64_t count, uint64_t size, Spares spares)
cdef const char* text_of(object message, Py_ssize_t* size) except NULL
