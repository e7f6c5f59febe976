"""Validation of the file of a ring of records, before a process trusts it.

Done at an attach while no other process takes part, before it tidies up: then nothing
moves, and all that was begun is said in op slots. All that the ring relies on is
checked: where positions lead, which run begins where and how long it is, which slot
took what and what of it is released. So a damaged file is refused when it is opened,
and can neither hang nor crash its users. Payloads are not checked, nor is what the
index says from `write` on: no code believes it.
"""

from libc.stdint cimport uint64_t

from ringbuf._core.atomics cimport load_acquire
from ringbuf._core.pairs cimport Pair, load_pair, pair
from ringbuf._records.positions cimport PUBLISHED, RELEASED, VOID, Runs, count_of, is_of, kind_of
from ringbuf._records.shared_positions cimport MAX_RUN
from ringbuf._shared.op_slots cimport MOST_POSITION, OpSlot, amount_of, claimer, has_claimed
from ringbuf._shared.ranges cimport Range, collect_ranges


cdef inline const char* damage_of_runs(Runs* r, Range* ranges) noexcept nogil:
    """What is wrong with the ring, or NULL. `ranges`: room for MOST_RANGES."""
    cdef Pair read = load_pair(&r.cursors.read)
    cdef uint64_t tail = load_acquire(&r.cursors.tail), at = read.position
    cdef uint64_t position = at + amount_of(read.rest), tag, i, count
    cdef uint64_t write = load_acquire(&r.cursors.write.position), limit = tail + r.mask + 1
    cdef uint64_t taken = 0
    cdef const char* damage
    cdef OpSlot* slot
    if not tail <= at <= position <= write <= limit or write > MOST_POSITION:
        return b"its positions make no sense"
    if load_acquire(&r.cursors.write.rest) != 0:
        return b"its write position makes no sense"
    damage = collect_ranges(r.shared, pair(tail, 0), ranges, &taken)
    if damage == NULL:
        damage = damage_of_taken(r, tail, at, ranges, taken)
    if damage != NULL:
        return damage
    while position <= write:
        tag = load_acquire(&r.index[position & r.mask])
        slot = claimer(r.shared.control, tag, position)
        if slot != NULL:
            # Only of the last claim `write` may not have moved yet.
            i = min((write if position < write else limit) - position, <uint64_t>MAX_RUN)
            if not has_claimed(slot, pair(position, 0), i):
                if position == write:
                    break  # the next claim there replaces that tag
                return b"its index names a slot that claimed nothing"
            count = load_acquire(&slot.after.position) - position
        elif position == write:
            break
        elif not is_of(r, tag, position):
            return b"its index has gaps"
        else:
            count = count_of(r, tag)
            if kind_of(tag) not in (PUBLISHED, VOID) or count > write - position or count > MAX_RUN:
                return b"its index has a run that makes no sense"
        position += count
    return NULL


cdef inline const char* damage_of_taken(
    Runs* r, uint64_t tail, uint64_t read, Range* ranges, uint64_t count
) noexcept nogil:
    """What is wrong with what lies between `tail` and `read`: each range there must be
    released, or held by an op slot.
    """
    cdef uint64_t position = tail, next = 0, tag, end
    cdef bint is_held
    while position < read:
        tag = load_acquire(&r.index[position & r.mask])
        is_held = next < count and ranges[next].start.position == position
        if is_of(r, tag, position) and kind_of(tag) == RELEASED:
            end = position + count_of(r, tag)
            if end > read or is_held and end != ranges[next].end.position:
                return b"more of it is released than was taken"
        elif is_held:
            end = ranges[next].end.position
        else:
            return b"it has records that were taken, and no slot holds them"
        next += is_held
        position = end
    if next < count:
        return b"it tells of takes that were not there"
    return NULL
