# cython: freethreading_compatible=True
"""Lines of a chunk: how many there are, and whether each fits into a ring."""

from cpython.buffer cimport Py_buffer, PyBuffer_Release
from libc.stdint cimport uint64_t
from libc.string cimport memchr

from ringbuf._core.nogil cimport NOGIL_BYTES
from ringbuf._core.pinning cimport borrow_bytes, pins
from ringbuf._messages.gathered cimport refuse_length
from ringbuf._messages.newlines cimport count_newlines, last_newline
from ringbuf._messages.positions cimport MAX_MESSAGE


cdef enum:
    # Of a larger chunk a sample tells how many lines it may have. Counting so much
    # takes as long as giving back what was admitted in vain.
    LARGE_BYTES = 64 * 1024
    SAMPLE_BYTES = 4 * 1024


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


def expect_lines(chunk, final=True, uint64_t limit=MAX_MESSAGE):
    """How many lines `push_lines(chunk, final)` would push, given room, and whether
    that is certain.

    Of a large chunk it is a guess from the lines at its start, and rather too high than
    too low; counting them would read all of it once more. Raises MessageTooLarge for a
    line over `limit` bytes.
    """
    cdef Py_buffer view
    cdef double lines
    _held = pins(chunk) if type(chunk) is not bytes else None
    borrow_bytes(chunk, &view, False, "chunk")
    try:
        if view.len <= LARGE_BYTES:
            return count_lines(chunk, final, limit), True
        if <uint64_t>view.len > limit:
            check_lines(<const char*>view.buf, view.len, final, limit)
        # One more in the sample, and a quarter more of them all.
        lines = count_newlines(<const char*>view.buf, SAMPLE_BYTES) + 1
        return <uint64_t>(lines * 1.25 * view.len / SAMPLE_BYTES), False
    finally:
        PyBuffer_Release(&view)


cdef int check_lines(const char* chunk, size_t size, bint final, uint64_t limit) except -1:
    """Raise MessageTooLarge if a line of the chunk is larger than `limit`. Only a chunk
    that is larger itself can have one.
    """
    cdef const char* line = chunk
    cdef const char* end = chunk + size
    cdef const char* newline
    while <uint64_t>(end - line) > limit:
        # The last newline that the line at hand could end with: what lies before it is
        # of lines that are no larger.
        newline = last_newline(line, limit + 1)
        if newline == NULL:
            newline = <const char*>memchr(line, b"\n", end - line)
            if newline == NULL:
                if not final:
                    return 0
                newline = end
            refuse_length(count_newlines(chunk, line - chunk), newline - line, limit)
        line = newline + 1
    return 0
