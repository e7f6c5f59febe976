"""Pushes into a MessageRing: one message, many, and the lines of a chunk; with their
waits for room.
"""

from cpython.buffer cimport Py_buffer, PyBuffer_Release
from libc.stdint cimport int64_t, uint32_t, uint64_t

from ringbuf._core.counts cimport at_most
from ringbuf._core.eventcount cimport before_sleep, wanted
from ringbuf._core.nogil cimport NOGIL_BYTES
from ringbuf._core.pinning cimport borrow_bytes, pins
from ringbuf._core.timing cimport steady_ns
from ringbuf._messages.frames cimport push_column
from ringbuf._messages.gathered cimport (
    Column, Gathered, PushProgress, refuse_length, text_of,
)
from ringbuf._messages.lines cimport check_lines, push_lines
from ringbuf._messages.positions cimport largest_message
from ringbuf._messages.ring cimport MessageRingBase, begin_operation, end_operation
from ringbuf._shared.op_slots cimport OpSlot
from ringbuf._shared.waiting cimport check_open, deadline_of, is_closed, seconds_of


cdef inline int64_t push_now(
    MessageRingBase ring, Column* column, uint64_t* first_seq, PushProgress progress=None
) except -1:
    """Push as many messages of the column as fit; returns how many."""
    cdef int64_t pushed = 0, number = -1
    cdef OpSlot* slot = NULL
    if ring._frames.shared == NULL:
        check_open(ring._waiting)
        pushed = push_column(&ring._frames, NULL, column, first_seq)
        if progress is not None:
            progress.note(pushed, 0, first_seq[0])
        if wanted(&ring._frames.cursors.messages):
            ring._waiting.call(&ring._frames.cursors.messages)
        return pushed
    number = begin_operation(ring, &slot)
    try:
        pushed = push_column(&ring._frames, slot, column, first_seq)
        if pushed < column.count and ring._participant.notice_dead(False):
            column.starts += pushed
            column.lengths += pushed
            column.count -= pushed
            pushed += push_column(
                &ring._frames, slot, column, first_seq if pushed == 0 else &ring._unused
            )
    finally:
        if progress is not None:
            progress.note(pushed, 0, first_seq[0])
        end_operation(ring, number)
    if wanted(&ring._frames.cursors.messages):
        ring._waiting.call(&ring._frames.cursors.messages)
    return pushed


cdef inline bint push_one(MessageRingBase ring, object message) except -1:
    cdef Column column
    cdef const char* start
    cdef uint32_t length
    cdef uint64_t first_seq
    cdef Py_ssize_t size
    start = text_of(message, &size)
    if <uint64_t>size > largest_message(&ring._frames):
        refuse_length(0, size, largest_message(&ring._frames))
    length = <uint32_t>size
    column.starts = &start
    column.lengths = &length
    column.count = 1
    return push_now(ring, &column, &first_seq) == 1


cdef inline object push_waiting(MessageRingBase ring, object messages, object timeout):
    """Push messages, waiting for room until the timeout; returns how many went in."""
    cdef double seconds = seconds_of(timeout)
    cdef Gathered gathered = Gathered(messages, largest_message(&ring._frames))
    cdef Column column = gathered.column
    cdef uint64_t first_seq
    cdef uint32_t seen
    cdef int64_t total = column.count, deadline = 0
    cdef int64_t pushed = push_now(ring, &column, &first_seq), done = pushed
    if done == total or seconds == 0:
        return done
    deadline = deadline_of(seconds)
    while True:
        # `push_now` moves its column on only where it has noticed a dead process; here
        # it is counted anew each time.
        column.starts = gathered.column.starts + done
        column.lengths = gathered.column.lengths + done
        column.count = total - done
        seen = before_sleep(&ring._frames.cursors.room)
        try:
            done += push_now(ring, &column, &first_seq)
        except ValueError:
            # Closed meanwhile. What is in stays in, and only this call knows how much.
            if done == 0 or not is_closed(ring._waiting):
                raise
            return done
        if done == total or steady_ns() >= deadline:
            return done
        ring._waiting.sleep(&ring._frames.cursors.room, seen, deadline)


cdef inline object push_chunk(
    MessageRingBase ring, object chunk, bint final, object max_lines, PushProgress progress
):
    """See MessageRing.push_lines_seq."""
    cdef Py_buffer view
    cdef size_t consumed = 0
    cdef uint64_t first_seq = 0, largest = largest_message(&ring._frames)
    cdef int64_t lines, most = at_most(max_lines, "max_lines")
    _held = pins(chunk) if type(chunk) is not bytes else None
    borrow_bytes(chunk, &view, False, "chunk")
    try:
        if <uint64_t>view.len > largest:
            check_lines(<const char*>view.buf, view.len, final, largest)
        lines = push_lines_now(
            ring, <const char*>view.buf, view.len, final, most, &consumed, &first_seq, progress
        )
    finally:
        PyBuffer_Release(&view)
    return lines, consumed, first_seq


cdef inline int64_t push_lines_now(
    MessageRingBase ring, const char* chunk, size_t size, bint final, int64_t max_lines,
    size_t* consumed, uint64_t* first_seq, PushProgress progress
) except -1:
    cdef int64_t lines = 0, number = -1
    cdef OpSlot* slot = NULL
    number = begin_operation(ring, &slot)
    try:
        if size >= NOGIL_BYTES:
            with nogil:
                lines = push_lines(
                    &ring._frames, slot, chunk, size, final, max_lines, consumed, first_seq
                )
        else:
            lines = push_lines(
                &ring._frames, slot, chunk, size, final, max_lines, consumed, first_seq
            )
        if lines == 0 and size > 0 and number >= 0 and ring._participant.notice_dead(False):
            lines = push_lines(
                &ring._frames, slot, chunk, size, final, max_lines, consumed, first_seq
            )
    finally:
        if progress is not None:
            progress.note(lines, consumed[0], first_seq[0])
        end_operation(ring, number)
    if wanted(&ring._frames.cursors.messages):
        ring._waiting.call(&ring._frames.cursors.messages)
    return lines
