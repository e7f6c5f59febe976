"""Whether what lies in the file of a ring makes sense.

Asked by who attaches while nobody else takes part, before he tidies up: then nothing moves, and all that was begun is said in
slots. All that the others rely on is looked at: where positions lead, which frame or run begins where, and how long it is. So a
damaged file is refused when it is opened, and can neither hang nor crash those who use it. Payloads are not looked at.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from ringbuf._atomics cimport load_acquire
from ringbuf._cursor cimport (
    FRAME_BYTES, MAX_FRAME_MESSAGES, PLACE_BITS, Frames, FrameView, nearest32, peek_frame, place_of,
)
from ringbuf._frames cimport end_of, frame_granules
from ringbuf._run cimport PUBLISHED, RELEASED, VOID, Runs, count_of, is_of, kind_of, position_of
from ringbuf._shared_run cimport MAX_RUN, known_of, source_of
from ringbuf._slots cimport HELD, ORPHAN, POSITION_MASK, PREPARED, PUSHING, SEATS, SLOTS, Slot, claimer, kind_of_state


cdef inline bint has_claimed(Slot* slot, uint64_t base_bits, uint64_t size, uint64_t most) noexcept nogil:
    """Whether a slot that the index names says so too."""
    return kind_of_state(load_acquire(&slot.state)) == PUSHING and base_bits == 0 and 0 < size <= most


# ---------------------------------------------------------------- messages


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
    if frame_granules(view.frame.count, view.frame.payload) > view.granules:
        return False
    for i in range(view.frame.count):
        end = end_of(f, view, i)
        if end < last:
            return False
        last = end
    return end == view.frame.payload


# ---------------------------------------------------------------- records


cdef inline const char* damage_of_runs(Runs* r) noexcept nogil:
    """What is wrong with it, or NULL."""
    cdef uint64_t tail = load_acquire(&r.cursors.tail), read = load_acquire(&r.cursors.read), tag, count, i
    cdef uint64_t write = load_acquire(&r.cursors.write), at = position_of(r, read), position = at + known_of(read)
    cdef uint64_t start, kind
    cdef Slot* slot
    if not tail <= at <= position <= write <= tail + r.mask + 1 or write > POSITION_MASK >> 1:
        return b"its positions make no sense"
    while position != write:
        tag = load_acquire(&r.index[position & r.mask])
        slot = claimer(r.desk, tag, position)
        if slot != NULL:
            count = load_acquire(&slot.size)
            if not has_claimed(slot, load_acquire(&slot.base) ^ position, count, min(write - position, <uint64_t>MAX_RUN)):
                return b"its index names one who claimed nothing"
        elif not is_of(r, tag, position):
            return b"its index has gaps"
        else:
            count = count_of(r, tag)
            if kind_of(tag) not in (PUBLISHED, VOID) or count > write - position or count > MAX_RUN:
                return b"its index has a run that makes no sense"
        position += count
    slot = claimer(r.desk, load_acquire(&r.index[write & r.mask]), write)
    if slot != NULL and not has_claimed(
        slot, load_acquire(&slot.base) ^ write, load_acquire(&slot.size), min(tail + r.mask + 1 - write, <uint64_t>MAX_RUN)
    ):
        return b"its index names one who claimed nothing"
    position = tail
    while position != at:
        tag = load_acquire(&r.index[position & r.mask])
        if is_of(r, tag, position) and kind_of(tag) == RELEASED:
            if count_of(r, tag) > at - position:
                return b"its index has a run that makes no sense"
            position += count_of(r, tag)
        else:
            position += 1
    for i in range(<uint64_t>(SEATS * SLOTS)):
        slot = &r.desk.slots[i]
        kind = kind_of_state(load_acquire(&slot.state))
        if kind == ORPHAN:
            start = position_of(r, load_acquire(&slot.before))
        elif kind == HELD or (
            kind == PREPARED and load_acquire(source_of(r, load_acquire(&slot.source))) == load_acquire(&slot.after)
        ):
            start = load_acquire(&slot.base)
            if start < tail:
                continue  # released
        else:
            continue
        position = position_of(r, load_acquire(&slot.after))
        # An ORPHAN of which nothing is left may lie anywhere.
        if start != position and not start <= position <= at:
            return b"it speaks of records taken that were not there"
    return NULL
