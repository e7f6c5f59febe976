"""Lines of a chunk as the messages of frames, without a Python object for any."""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memchr

from ringbuf._messages.frames cimport push_found
from ringbuf._messages.newlines cimport SPARE_ENDS, find_lines
from ringbuf._messages.positions cimport FRAME_BYTES, MAX_FRAME_MESSAGES, Frames
from ringbuf._shared.op_slots cimport OpSlot


cdef int check_lines(const char* chunk, size_t size, bint final, uint64_t limit) except -1


cdef inline int64_t push_lines(
    Frames* f, OpSlot* slot, const char* chunk, size_t size, bint final, int64_t max_lines,
    size_t* consumed, uint64_t* first_seq
) noexcept nogil:
    """Push as many lines of the chunk as fit; returns how many, and in `consumed` the
    bytes that they took up.

    One frame's worth at a time: the ends of its lines, then their bytes, which are
    still in the cache.
    """
    cdef uint32_t[MAX_FRAME_MESSAGES + SPARE_ENDS] ends
    cdef int64_t done = 0, count, pushed
    cdef uint64_t sequence
    while consumed[0] < size and done < max_lines:
        count = next_lines(
            f.line_way, chunk + consumed[0], size - consumed[0], final,
            min(max_lines - done, <int64_t>MAX_FRAME_MESSAGES), ends
        )
        if count == 0:
            break
        pushed = push_found(
            f, slot, chunk + consumed[0], size - consumed[0], ends, count, &sequence
        )
        if pushed > 0:
            if done == 0:
                first_seq[0] = sequence
            done += pushed
            # A final piece has no newline that could be consumed.
            consumed[0] = min(consumed[0] + ends[pushed - 1] + pushed, size)
        if pushed < count:
            break
    return done


cdef inline int64_t next_lines(
    int way, const char* chunk, size_t size, bint final, int64_t most, uint32_t* ends
) noexcept nogil:
    """The ends of the first lines of the chunk, of at most `most`, that fit into one
    frame; returns how many.
    """
    # What they hold is no more, without the newlines.
    cdef size_t window = min(size, <size_t>FRAME_BYTES), length = size
    cdef int64_t count = find_lines(way, chunk, window, ends, most)
    cdef const char* newline = NULL
    if window < size:
        if count > 0:
            return count
        # A line that is larger goes alone.
        newline = <const char*>memchr(chunk + window, b"\n", size - window)
        if newline != NULL:
            length = newline - chunk
    if newline != NULL or (
        final and count < most and (count == 0 or ends[count - 1] + <size_t>count < size)
    ):
        ends[count] = <uint32_t>(length - count)
        count += 1
    return count
