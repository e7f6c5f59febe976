"""Lines of a chunk as the messages of frames, without a Python object for any."""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memchr

from ringbuf._messages.frames cimport push_column
from ringbuf._messages.gathered cimport Column
from ringbuf._messages.positions cimport FRAME_BYTES, MAX_FRAME_MESSAGES, Frames
from ringbuf._shared.op_slots cimport OpSlot


cdef int check_lines(const char* chunk, size_t size, bint final, uint64_t limit) except -1


cdef inline int64_t push_lines(
    Frames* f, OpSlot* slot, const char* chunk, size_t size, bint final, int64_t max_lines,
    size_t* consumed, uint64_t* first_seq
) noexcept nogil:
    """Push as many lines of the chunk as fit; returns how many, and in `consumed` the
    bytes that they took up.
    """
    cdef const char* starts[MAX_FRAME_MESSAGES]
    cdef uint32_t lengths[MAX_FRAME_MESSAGES]
    cdef Column column
    cdef const char* end = chunk + size
    cdef const char* line = chunk
    cdef const char* newline
    cdef int64_t done = 0, most, pushed
    cdef uint64_t payload, sequence
    column.starts = starts
    column.lengths = lengths
    while line < end and done < max_lines:
        # One frame's worth at a time, so that its bytes are still in the cache when
        # they are copied.
        column.count = 0
        payload = 0
        most = min(max_lines - done, <int64_t>MAX_FRAME_MESSAGES)
        while line < end and column.count < most and payload < FRAME_BYTES:
            newline = <const char*>memchr(line, b"\n", end - line)
            if newline == NULL:
                if not final:
                    end = line
                    break
                newline = end
            starts[column.count] = line
            lengths[column.count] = <uint32_t>(newline - line)
            payload += newline - line
            column.count += 1
            line = newline + 1
        if column.count == 0:
            break
        pushed = push_column(f, slot, &column, &sequence)
        if pushed > 0:
            if done == 0:
                first_seq[0] = sequence
            done += pushed
            # A final piece has no newline that could be consumed.
            consumed[0] = min(<size_t>(starts[pushed - 1] - chunk) + lengths[pushed - 1] + 1, size)
        if pushed < column.count:
            break
    return done
