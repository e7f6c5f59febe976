"""Whether what lies in the file of a ring of messages makes sense.

Asked by who attaches while nobody else takes part, before he tidies up: then nothing moves, and all that was begun is said in
slots. All that the others rely on is looked at: where positions lead, which frame begins where, and how long it is. So a
damaged file is refused when it is opened, and can neither hang nor crash those who use it. Payloads are not looked at.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from ringbuf._core.atomics cimport load_acquire
from ringbuf._messages.frames cimport end_of, frame_granules
from ringbuf._messages.positions cimport (
    FRAME_BYTES, MAX_FRAME_MESSAGES, PLACE_BITS, Frames, FrameView, nearest32, peek_frame, place_of,
)
from ringbuf._shared.op_slots cimport HELD, ORPHAN, POSITION_MASK, SEATS, SLOTS, Slot, claimer, has_claimed, kind_of_state


cdef inline const char* damage_of_frames(Frames* f) noexcept nogil:
    """What is wrong with it, or NULL."""
    cdef FrameView view
    cdef uint64_t tail = load_acquire(&f.cursors.tail), read = load_acquire(&f.cursors.read)
    cdef uint64_t start = tail >> PLACE_BITS, at = nearest32(read >> 32, start), position = start, place, i
    cdef uint64_t end = nearest32(load_acquire(&f.cursors.write) >> 32, start)
    cdef bint found = at == end
    cdef Slot* slot
    if not f.capacity <= start <= at <= end <= start + f.capacity or end > POSITION_MASK >> 1:
        return b"its positions make no sense"
    while position != end:
        # The first message in it that somebody still needs.
        place = tail & ((1 << PLACE_BITS) - 1) if position == start else 0
        if position == at:
            found = True
            place = max(place, place_of(read))
        slot = claimer(f.desk, load_acquire(&f.index[position & (f.capacity - 1)]), position)
        if slot != NULL:
            i = load_acquire(&slot.size) >> 32
            if place != 0 or not has_claimed(slot, <uint32_t>((load_acquire(&slot.base) >> 32) - position), i, end - position):
                return b"its index names one who claimed nothing"
            position += i
        elif not peek_frame(f, position, &view):
            return b"its index has gaps"
        elif view.granules > end - position or not is_sound(f, &view) or place > 0 and place >= view.frame.count:
            return b"it has a frame that makes no sense"
        else:
            position += view.granules
    slot = claimer(f.desk, load_acquire(&f.index[end & (f.capacity - 1)]), end)
    if slot != NULL and not has_claimed(
        slot, <uint32_t>((load_acquire(&slot.base) >> 32) - end), load_acquire(&slot.size) >> 32, start + f.capacity - end
    ):
        return b"its index names one who claimed nothing"
    if not found:
        return b"its read position is not where a frame begins"
    for i in range(<uint64_t>(SEATS * SLOTS)):
        slot = &f.desk.slots[i]
        if kind_of_state(load_acquire(&slot.state)) in (HELD, ORPHAN):
            end = nearest32(load_acquire(&slot.after) >> 32, start)
            if end > at or <int64_t>(end - nearest32(load_acquire(&slot.before) >> 32, start)) < 0:
                return b"it speaks of messages taken that were not there"
    return NULL


cdef inline bint is_sound(Frames* f, FrameView* view) noexcept nogil:
    cdef uint64_t i, end = 0, last = 0
    if view.frame.count == 0:
        return True
    if view.frame.count > MAX_FRAME_MESSAGES or view.frame.count > 1 and view.frame.payload > FRAME_BYTES:
        return False
    if frame_granules(f, view.frame.count, view.frame.payload) > view.granules:
        return False
    for i in range(view.frame.count):
        end = end_of(f, view, i)
        if end < last:
            return False
        last = end
    return end == view.frame.payload
