from libc.stdint cimport int64_t, uint32_t, uint64_t

from ringbuf._atomics cimport word
from ringbuf._cursor cimport Cursors, FrameView
from ringbuf._columns cimport Column, Spares


# Messages that a consumer took: `count` of them from number `place` of the frame at `position` on.
cdef struct Take:
    uint64_t position
    uint64_t place
    uint64_t count
    uint64_t bytes
    uint64_t first_seq
    uint64_t next         # the value of Cursors.read behind them


cdef class MessageRing:
    cdef Cursors* _cursors
    cdef word* _index
    cdef unsigned char* _data
    cdef uint64_t _granules      # a power of two
    cdef object _memory          # the numpy array that owns all three
    cdef Spares _spares

    cdef int64_t _push_column(self, Column* column, uint64_t* first_seq) noexcept nogil
    cdef int64_t _push_lines(
        self, const char* chunk, size_t size, bint final, int64_t max_lines, size_t* consumed, uint64_t* first_seq
    ) noexcept nogil
    cdef void _fill(
        self, Column* column, int64_t first, int64_t count, uint64_t payload, uint64_t position, uint64_t sequence
    ) noexcept nogil
    cdef void _put(self, uint64_t offset, const void* source, size_t size) noexcept nogil
    cdef void _get(self, void* target, uint64_t offset, size_t size) noexcept nogil
    cdef bint _peek(self, int64_t max_messages, int64_t max_bytes, Take* take, uint64_t* read) noexcept nogil
    cdef uint32_t _end(self, FrameView* view, uint64_t i) noexcept nogil
    cdef void _copy_out(self, Take* take, unsigned char* data, int64_t* offsets) noexcept nogil
    cdef void _release(self, uint64_t position, uint64_t place, uint64_t count) noexcept nogil
