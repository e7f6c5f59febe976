"""Which parts of a shared ring its op slots say are taken: for the validation of a file
(`validate.pxd` of each kind).

Positions never come again, so no two takes have any part in common; a file in which two
slots overlap, or one reaches behind `read`, was damaged or made up.
"""

from libc.stdint cimport uint64_t

from ringbuf._core.atomics cimport load_acquire
from ringbuf._core.pairs cimport Pair, PairWord, is_before, load_pair, pair, same
from ringbuf._shared.op_slots cimport (
    FREE, ORPHAN, PREPARED, PUSHING, PARTICIPANTS, SLOTS, OpSlot, amount_of, kind_of_slot, place_in,
)
from ringbuf._shared.shared_ring cimport SharedRing, has_taken

cdef extern from *:
    """
    #include <algorithm>
    #include <cstdint>
    struct ringbuf_range { ringbuf_pair start, end; };
    static inline bool ringbuf_range_before(const ringbuf_range &a, const ringbuf_range &b) {
        if (a.start.position != b.start.position) return a.start.position < b.start.position;
        return a.start.rest < b.start.rest;
    }
    static inline void ringbuf_sort_ranges(ringbuf_range *first, uint64_t count) {
        std::sort(first, first + count, ringbuf_range_before);
    }
    """
    # From position and place to position and place.
    ctypedef struct Range "ringbuf_range":
        Pair start
        Pair end
    void sort_ranges "ringbuf_sort_ranges"(Range* first, uint64_t count) noexcept nogil


cdef enum:
    MOST_RANGES = PARTICIPANTS * SLOTS


# Of a walk over all that is taken, from one part to the next: which ranges it has been
# through.
cdef struct Walk:
    const Range* ranges
    uint64_t count
    uint64_t next
    bint within           # the next one


cdef inline bint come_to(Walk* w, Pair at) noexcept nogil:
    """Go on to where a part begins; False: a range begins or ends between parts."""
    if w.within and same(at, w.ranges[w.next].end):
        w.within = False
        w.next += 1
    if w.next == w.count:
        return True
    if not w.within and same(at, w.ranges[w.next].start):
        w.within = True
    return is_before(at, w.ranges[w.next].end if w.within else w.ranges[w.next].start)


cdef inline Pair bound(SharedRing* s, PairWord* source) noexcept nogil:
    """Where a range begins or ends, from a source word."""
    cdef Pair place = place_in(load_pair(source))
    return place if s.has_places else pair(place.position, 0)


cdef inline const char* collect_ranges(
    SharedRing* s, Pair tail, Range* ranges, uint64_t* count
) noexcept nogil:
    """All that is taken and not released, ascending from `tail`, a position and an
    amount; returns NULL, or what is wrong.

    ranges: room for MOST_RANGES of them. No other process takes part.
    """
    cdef uint64_t participant, i, used, kind, n = 0
    cdef OpSlot* slot
    cdef Pair start, end, read = bound(s, s.read)
    if load_acquire(&s.control.deaths) >> 63:
        return b"it counts more deaths than there can have been"
    for participant in range(<uint64_t>PARTICIPANTS):
        used = load_acquire(&s.control.participants[participant].used)
        if used > SLOTS:
            return b"a participant has more slots than there are"
        for i in range(<uint64_t>SLOTS):
            slot = &s.control.slots[participant * SLOTS + i]
            kind = kind_of_slot(slot)
            if kind > ORPHAN or kind != FREE and i >= used:
                return b"a slot is in no state that there is"
            if kind in (FREE, PUSHING):
                continue
            if load_acquire(&slot.source) > PARTICIPANTS * SLOTS:
                return b"a slot names a source that is not there"
            if kind == PREPARED and not has_taken(s, slot):
                continue
            start = bound(s, &slot.left if kind == ORPHAN else &slot.before)
            end = bound(s, &slot.after)
            if kind == ORPHAN and not s.has_places and amount_of(
                load_acquire(&slot.left.rest) | load_acquire(&slot.after.rest)
            ):
                return b"what is left of a take has an amount"
            if is_before(start, bound(s, &slot.before)) or is_before(end, start):
                return b"a take ends before it begins"
            if not is_before(tail, end) or same(start, end):
                continue  # all of it is released
            if is_before(start, tail):
                # That much of it is; but records are released all at once, and what is
                # left of an ORPHAN is not released.
                if kind == ORPHAN or not s.has_places:
                    return b"it tells of takes that were not there"
                start = tail
            if is_before(read, end):
                return b"it tells of takes that were not there"
            ranges[n].start = start
            ranges[n].end = end
            n += 1
    sort_ranges(ranges, n)
    for i in range(1, n):
        if is_before(ranges[i].start, ranges[i - 1].end):
            return b"it tells of two takes of the same"
    count[0] = n
    return NULL
