"""Validation of the file of a ring of messages, before a process trusts it.

Done at an attach while no other process takes part, before it tidies up: then nothing
moves, and all that was begun is said in op slots. All that the ring relies on is
checked: where positions lead, which frame begins where, how long it is and which
numbers it has, which slot took what and what of it is released. So a damaged file is
refused when it is opened, and can neither hang nor crash its users. Payloads are not
checked, nor is what the index says from `write` on: no code believes it.
"""

from libc.stdint cimport uint64_t

from ringbuf._core.atomics cimport load_acquire
from ringbuf._core.pairs cimport Pair, is_before, load_pair, pair
from ringbuf._messages.positions cimport (
    MAX_SEQ, Frames, FrameView, end_of, frame_at, next_seq_of_frame, read_mark,
)
from ringbuf._shared.op_slots cimport MOST_POSITION, OpSlot, claimer, has_claimed, place_in
from ringbuf._shared.ranges cimport Range, Walk, collect_ranges, come_to


cdef inline const char* damage_of_frames(Frames* f, Range* ranges) noexcept nogil:
    """What is wrong with the ring, or NULL. `ranges`: room for MOST_RANGES."""
    cdef FrameView view
    cdef Pair tail = load_pair(&f.cursors.tail), read = place_in(load_pair(&f.cursors.read))
    cdef Pair write = load_pair(&f.cursors.write), at = pair(tail.position, 0), here
    cdef uint64_t sequence = 0, limit = tail.position + f.capacity, i
    cdef Walk walk
    cdef bint known = False, found = read.position == write.position and read.rest == 0
    cdef const char* damage
    cdef OpSlot* slot
    if not f.capacity <= tail.position <= read.position <= write.position <= limit:
        return b"its positions make no sense"
    if write.position > MOST_POSITION:
        return b"its positions make no sense"
    if write.rest > MAX_SEQ:
        return b"its numbers make no sense"
    if is_before(read, tail):
        return b"more of it is released than was taken"
    walk.ranges, walk.next, walk.within = ranges, 0, False
    damage = collect_ranges(f.shared, tail, ranges, &walk.count)
    if damage != NULL:
        return damage
    while at.position <= write.position:
        slot = claimer(
            f.shared.control, load_acquire(&f.index[at.position & (f.capacity - 1)]), at.position
        )
        if slot != NULL:
            # Only of the last claim `write` may not have moved yet.
            here = pair(at.position, sequence if known else load_pair(&slot.before).rest)
            i = (write.position if at.position < write.position else limit) - at.position
            if not has_claimed(slot, here, i):
                if at.position == write.position:
                    break  # the next claim there replaces that tag
                return b"its index names a slot that claimed nothing"
            if at.position < read.position:
                return b"its index names a slot that claimed nothing"
            if at.position == read.position and read.rest != 0:
                return b"its read position is not where a message begins"
            found = found or at.position == read.position
            view.granules = load_pair(&slot.after).position - at.position
            sequence = load_pair(&slot.after).rest if at.position < write.position else here.rest
        elif at.position == write.position:
            break
        elif not frame_at(f, at.position, &view):
            return b"it has a frame that makes no sense"
        elif (
            view.granules > write.position - at.position or view.first_seq > write.rest
            or known and view.first_seq != sequence
        ):
            return b"its frames do not follow each other"
        else:
            at.rest = tail.rest if at.position == tail.position else 0
            damage = damage_of_frame(f, &view, at, read, &walk)
            if damage != NULL:
                return damage
            found = found or at.position == read.position
            sequence = next_seq_of_frame(&view)
        known = True
        at.position += view.granules
    if not found:
        return b"its read position is not where a frame begins"
    if not come_to(&walk, read) or walk.next < walk.count:
        return b"it tells of takes that were not there"
    if known and sequence != write.rest:
        return b"its numbers do not follow each other"
    return NULL


cdef inline const char* damage_of_frame(
    Frames* f, FrameView* view, Pair at, Pair read, Walk* walk
) noexcept nogil:
    """What is wrong with one frame, of which all before `at` is released."""
    cdef uint64_t i, end = 0, last = 0, mark, taken = 0
    if at.position <= read.position:
        taken = view.count if at.position < read.position else read.rest
    if view.count == 0:
        if at.rest != 0 or taken != 0:
            return b"it has a place in a frame of no messages"
        if at.position < read.position and not come_to(walk, at):
            return b"it tells of takes that were not there"
        return NULL
    if at.rest >= view.count or taken > view.count or (
        at.position == read.position and taken == view.count
    ):
        return b"it has a place behind the end of a frame"
    for i in range(view.count):
        last = end
        end = end_of(f, view, i)
        if end < last:
            return b"it has a frame that makes no sense"
    if end != view.payload:
        return b"it has a frame that makes no sense"
    while at.rest < taken:
        mark = read_mark(f, view, at.rest)
        if mark > taken - at.rest:
            return b"more of a frame is released than was taken"
        if not come_to(walk, at):
            return b"it tells of takes that were not there"
        if mark == 0 and not walk.within:
            return b"it has messages that were taken, and no slot holds them"
        at.rest += max(mark, <uint64_t>1)
    while at.rest < view.count:
        if read_mark(f, view, at.rest) != 0:
            return b"messages are released that were not taken"
        at.rest += 1
    return NULL
