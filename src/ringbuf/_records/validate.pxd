"""Whether what lies in the file of a ring of records makes sense.

Asked by who attaches while nobody else takes part, before he tidies up: then nothing moves, and all that was begun is said in
slots. All that the others rely on is looked at: where positions lead, which run begins where, and how long it is. So a
damaged file is refused when it is opened, and can neither hang nor crash those who use it. Payloads are not looked at.
"""

from libc.stdint cimport uint64_t

from ringbuf._core.atomics cimport load_acquire
from ringbuf._records.positions cimport PUBLISHED, RELEASED, VOID, Runs, count_of, is_of, kind_of, position_of
from ringbuf._records.shared_positions cimport MAX_RUN, known_of, source_of
from ringbuf._shared.op_slots cimport (
    HELD, ORPHAN, POSITION_MASK, PREPARED, SEATS, SLOTS, Slot, claimer, has_claimed, kind_of_state,
)


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
