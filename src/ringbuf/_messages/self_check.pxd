"""The invariants of a MessageRing, asserted over its memory. For tests."""

from libc.stdint cimport int64_t, uint64_t

from ringbuf._core.atomics cimport load_acquire
from ringbuf._core.pairs cimport Pair, load_pair
from ringbuf._messages.positions cimport (
    Frames, FrameView, end_of, frame_at, frame_granules, next_number, next_seq_of_frame, read_mark,
)
from ringbuf._shared.op_slots cimport place_in


cdef inline int64_t check_frames(Frames* f) except -1:
    """Assert every invariant of a ring that nothing uses at the moment; returns how
    many messages wait in it.
    """
    cdef FrameView view
    cdef Pair tail = load_pair(&f.cursors.tail), read = place_in(load_pair(&f.cursors.read))
    cdef uint64_t position = tail.position, place = tail.rest, at = read.position
    cdef uint64_t end = load_acquire(&f.cursors.write.position)
    cdef uint64_t sequence = 0, messages = 0, waiting = 0, mark
    assert position <= at <= end <= position + f.capacity, (position, at, end)
    while position != end:
        assert frame_at(f, position, &view), "a claimed frame is not published"
        assert position == tail.position or view.first_seq == sequence, "numbers have a gap"
        if view.count > 0:
            assert view.granules == frame_granules(f, view.count, view.payload)
            assert end_of(f, &view, view.count - 1) == view.payload
            assert place < view.count
            assert messages > 0 or read_mark(f, &view, place) == 0, (
                "a part that was released is not freed"
            )
            # Parts follow each other; what has not been taken has no mark.
            while place < view.count:
                mark = read_mark(f, &view, place)
                assert place + mark <= view.count
                assert mark == 0 or position < at or (position == at and place + mark <= read.rest)
                place += max(mark, <uint64_t>1)
            if position >= at:
                waiting += view.count - (read.rest if position == at else 0)
        sequence = next_seq_of_frame(&view)
        messages += view.count
        position += view.granules
        place = 0
    assert tail.position == end or sequence == next_number(f)
    return waiting
