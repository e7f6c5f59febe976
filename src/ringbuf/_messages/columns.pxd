from libc.stdint cimport int64_t, uint64_t

from ringbuf._core.atomics cimport word


# A piece of the heap; the usable memory comes behind this.
cdef struct Chunk:
    size_t size     # of the usable memory
    size_t padding  # so that it is aligned as the chunk is


cdef class Spares:
    cdef word _chunks[3]  # 0, or a Chunk that is not in use
    cdef word _turn       # which goes next when there are too many

    cdef Chunk* get(self, uint64_t size) except NULL
    cdef void put(self, Chunk* chunk) noexcept


cdef class Block:
    cdef Chunk* _chunk
    cdef Py_ssize_t _nbytes  # how much of it is used
    cdef word _users         # Messages and buffers that show it; ENDED: the memory serves others
    cdef Spares _spares      # where the memory goes then, or None

    cdef unsigned char* start(self) noexcept
    cdef void leave(self) noexcept


# Of one take that was split: how many of its parts are not released yet.
cdef class Parts:
    cdef word unreleased


cdef class Messages:
    cdef readonly uint64_t first_seq
    cdef unsigned char* _data
    cdef int64_t* _offsets
    cdef Py_ssize_t _count
    cdef Py_ssize_t _size        # bytes at `_data`
    cdef Block _block            # that the offsets lie in
    # What lends the data as a buffer: the block, or a memoryview; None: there are none.
    cdef object _source
    cdef object _pins            # what keeps the data of a numpy array in its place
    cdef object _data_array      # made when they are asked for
    cdef object _offsets_array
    # Where the ring that they came from still holds them, until they are released.
    cdef uint64_t _position
    cdef uint64_t _place
    cdef word _held       # whether they are to be released
    cdef object _ring     # by which ring: its identity
    cdef int64_t _slot    # of their take in a shared ring, or -1
    cdef uint64_t _epoch  # of the process that took them there
    cdef Parts _parts     # that they are one of; or None

    cdef object _column_of(self, source, dtype, const void* start, Py_ssize_t count)
    cdef Messages _share(self, Py_ssize_t start, Py_ssize_t count)

cdef Messages new_messages(uint64_t count, uint64_t size, Spares spares)
