from cpython.buffer cimport Py_buffer
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
    cdef bint _gather_list(self, list messages, uint64_t limit) except -1
    cdef int _note(self, Py_ssize_t i, object item, uint64_t limit) except -1
    cdef _gather_array(self, array, uint64_t limit)
    cdef _gather_arrow(self, array, uint64_t limit)


# A piece of the heap; what it is used for comes behind this.
cdef struct Chunk:
    size_t size     # of what comes behind
    size_t padding  # so that it is aligned as the chunk is


cdef class Spares:
    cdef word _chunks[3]  # 0, or a Chunk that nobody uses
    cdef word _turn       # which goes next when there are too many

    cdef Chunk* get(self, uint64_t size) except NULL
    cdef void put(self, Chunk* chunk) noexcept


cdef class Block:
    cdef Chunk* _chunk
    cdef Py_ssize_t _nbytes  # of it that are used
    cdef word _users         # Messages and buffers that show it; ENDED: the memory serves others
    cdef Spares _spares      # whom the memory goes to then, or None

    cdef unsigned char* start(self) noexcept
    cdef void leave(self) noexcept


# Of one take that was split: how many parts are not released yet.
cdef class Parts:
    cdef word left


cdef class Messages:
    cdef readonly uint64_t first_seq
    cdef unsigned char* _data
    cdef int64_t* _offsets
    cdef Py_ssize_t _count
    cdef Py_ssize_t _size        # bytes at `_data`
    cdef Block _block            # that the offsets lie in
    cdef object _source          # what lends the data as a buffer: the block, or a memoryview; None: there are none
    cdef object _pins            # what keeps the data of a numpy array in its place
    cdef object _data_array      # made when they are asked for
    cdef object _offsets_array
    # Where the ring that they came from still holds them, until they are released.
    cdef uint64_t _position
    cdef uint64_t _place
    cdef word _held       # whether they are to be released
    cdef object _ring     # by which ring: its identity
    cdef int64_t _slot    # that speaks of them in a shared ring, or -1
    cdef uint64_t _epoch  # of the process that took them there
    cdef Parts _parts     # that they are one of; or None

    cdef object _column_of(self, source, dtype, const void* start, Py_ssize_t count)
    cdef Messages _share(self, Py_ssize_t start, Py_ssize_t count)

cdef Messages new_messages(uint64_t count, uint64_t size, Spares spares)
cdef const char* text_of(object message, Py_ssize_t* size) except NULL
cdef int borrow_bytes(object owner, Py_buffer* buffer, bint to_write, str name) except -1
