# cython: freethreading_compatible=True
"""Lines of a chunk: how many there are, and whether each fits into a ring."""

from cpython.buffer cimport Py_buffer, PyBuffer_Release
from libc.stdint cimport uint64_t
from libc.string cimport memchr

from ringbuf._core.nogil cimport NOGIL_BYTES
from ringbuf._core.pinning cimport borrow_bytes, pins
from ringbuf._messages.gathered cimport refuse_length
from ringbuf._messages.positions cimport MAX_MESSAGE


cdef extern from *:
    """
    #include <cstddef>
    #include <cstdint>

    /* Newlines in n bytes. Written so that compilers make vector code of the inner loop:
       the counter is one byte wide, and cleared before it can overflow. */
    static inline size_t ringbuf_count_newlines(const char *p, size_t n) {
        size_t total = 0, i = 0;
        while (n - i >= 240) {
            uint8_t part = 0;
            for (size_t j = 0; j < 240; j++) part += p[i + j] == '\\n';
            total += part;
            i += 240;
        }
        for (; i < n; i++) total += p[i] == '\\n';
        return total;
    }
    """
    size_t count_newlines "ringbuf_count_newlines"(const char* p, size_t n) noexcept nogil


def count_lines(chunk, final=True, uint64_t limit=MAX_MESSAGE):
    """How many lines `push_lines(chunk, final)` would push, given room.

    Raises MessageTooLarge for one over `limit` bytes.
    """
    cdef Py_buffer view
    cdef size_t lines
    cdef bint last = final
    _held = pins(chunk) if type(chunk) is not bytes else None
    borrow_bytes(chunk, &view, False, "chunk")
    try:
        if <uint64_t>view.len > limit:
            check_lines(<const char*>view.buf, view.len, last, limit)
        if view.len >= NOGIL_BYTES:
            with nogil:
                lines = count_newlines(<const char*>view.buf, view.len)
        else:
            lines = count_newlines(<const char*>view.buf, view.len)
        if last and view.len > 0 and (<const char*>view.buf)[view.len - 1] != b"\n":
            lines += 1
    finally:
        PyBuffer_Release(&view)
    return lines


cdef int check_lines(const char* chunk, size_t size, bint final, uint64_t limit) except -1:
    """Raise MessageTooLarge if a line of the chunk is larger than `limit`. Only a chunk
    that is larger itself can have one.
    """
    cdef const char* line = chunk
    cdef const char* end = chunk + size
    cdef const char* newline
    cdef size_t number = 0
    while line < end:
        newline = <const char*>memchr(line, b"\n", end - line)
        if newline == NULL:
            if not final:
                return 0
            newline = end
        if <uint64_t>(newline - line) > limit:
            refuse_length(number, newline - line, limit)
        number += 1
        line = newline + 1
    return 0
