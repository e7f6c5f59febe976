"""What dead processes left in a shared ring of messages: takes that were not released, and holes that were not published.

One participant at a time tidies up (SharedFile.recovery), while all others go on. It may itself be killed at any point: every
step either changes one word or can be done again.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from ringbuf._atomics cimport cas_total, fetch_add_release, load_acquire, load_relaxed, store_release, word
from ringbuf._cursor cimport (
    PLACE_BITS, Frames, FrameView, advance_tail, make_read, nearest32, peek_frame, place_of, publish, read_mark, write_pad,
)
from ringbuf._slots cimport (
    FREE, HELD, NOBODY, ORPHAN, PREPARED, PUSHING, SEATS, SLOTS, TURN_BITS, WHO_BITS, Desk, Slot, help_taker, kind_of_state,
    set_state,
)


cdef inline uint64_t used_slots(Desk* desk, uint64_t seat) noexcept nogil:
    return min(load_acquire(&desk.seats[seat].used), <uint64_t>SLOTS)


cdef inline bint is_clean(Desk* desk, uint64_t seat) noexcept nogil:
    """Whether nothing in the slots of this seat waits for anybody."""
    cdef uint64_t i
    for i in range(used_slots(desk, seat)):
        if kind_of_state(load_acquire(&desk.slots[seat * SLOTS + i].state)) != FREE:
            return False
    return True


cdef inline bint tidy_up(Frames* f, const bint* dead, bint alone) noexcept nogil:
    """Finish what the holders of these seats had begun; False: not all of it yet, as a living one stands in the way.

    alone: nobody else takes part, nor can begin to.
    """
    cdef Desk* desk = f.desk
    cdef uint64_t seat, i
    for seat in range(<uint64_t>SEATS):
        if dead[seat]:
            for i in range(used_slots(desk, seat)):
                settle_take(f, &desk.slots[seat * SLOTS + i])
    advance_tail(f)
    for seat in range(<uint64_t>SEATS):
        if dead[seat]:
            for i in range(used_slots(desk, seat)):
                orphan_take(f, &desk.slots[seat * SLOTS + i])
    if not fill_holes(f, dead, alone):
        return False
    for seat in range(<uint64_t>SEATS):
        if dead[seat]:
            for i in range(used_slots(desk, seat)):
                # Whatever it was to claim, it did not, or it was published.
                if kind_of_state(load_acquire(&desk.slots[seat * SLOTS + i].state)) == PUSHING:
                    set_state(&desk.slots[seat * SLOTS + i], FREE)
    advance_tail(f)
    return True


# ---------------------------------------------------------------- takes


cdef inline word* source_of(Frames* f, Slot* slot) noexcept nogil:
    cdef uint64_t source = load_acquire(&slot.source)
    if source == 0 or source > SEATS * SLOTS:
        return &f.cursors.read
    return &f.desk.slots[source - 1].before


cdef inline void settle_take(Frames* f, Slot* slot) noexcept nogil:
    """Find out whether a dead taker's exchange went through."""
    if kind_of_state(load_acquire(&slot.state)) != PREPARED:
        return
    # If somebody had taken after him, that one would have said HELD.
    if load_acquire(source_of(f, slot)) == load_acquire(&slot.after):
        set_state(slot, HELD)
    elif kind_of_state(load_acquire(&slot.state)) == PREPARED:  # still: somebody may have taken after him since
        set_state(slot, FREE)


cdef inline void orphan_take(Frames* f, Slot* slot) noexcept nogil:
    """Offer what a dead taker had not released; an ORPHAN of which nothing is left is done with."""
    cdef uint64_t kind = kind_of_state(load_acquire(&slot.state)), before, start
    if kind == HELD:
        before = load_acquire(&slot.before)
        start = first_unreleased(f, before, load_acquire(&slot.after))
        if start == 0:
            set_state(slot, FREE)
            return
        # Two orphans in one slot differ in the turn, so that nobody takes from the second one what he saw in the first.
        start |= (before + 1) & ((1 << TURN_BITS) - 1)
        store_release(&slot.before, start)
        set_state(slot, ORPHAN)
        fetch_add_release(&f.desk.deaths, 1)
    elif kind == ORPHAN:
        before = load_acquire(&slot.before)
        if before >> (TURN_BITS + WHO_BITS) == load_acquire(&slot.after) >> (TURN_BITS + WHO_BITS):
            help_taker(f.desk, <uint64_t>(slot - f.desk.slots) + 1, before)
            set_state(slot, FREE)
        else:
            # Who made it an ORPHAN may have been killed before he said so.
            fetch_add_release(&f.desk.deaths, 1)


cdef inline uint64_t first_unreleased(Frames* f, uint64_t before, uint64_t after) noexcept nogil:
    """Where, in the range of a dead taker, the first message that he had not released lies, as a source word; 0: nowhere."""
    cdef FrameView view
    cdef uint64_t tail = load_acquire(&f.cursors.tail), near = tail >> PLACE_BITS
    cdef uint64_t position = nearest32(before >> 32, near), place = place_of(before)
    cdef uint64_t end = nearest32(after >> 32, near), end_place = place_of(after), many
    # What lies before `tail` has been released, and its memory is not ours to look at.
    if (position << PLACE_BITS | place) < tail:
        position = near
        place = tail & ((1 << PLACE_BITS) - 1)
    while (position << PLACE_BITS | place) < (end << PLACE_BITS | end_place):
        if not peek_frame(f, position, &view):
            return 0
        if view.frame.count > 0:
            many = read_mark(f, &view, place)
            if many == 0:
                return make_read(position, place, NOBODY, 0)
            place += many
            if place < view.frame.count:
                continue
        position += view.granules
        place = 0
    return 0


# ---------------------------------------------------------------- holes


cdef inline bint fill_holes(Frames* f, const bint* dead, bint alone) noexcept nogil:
    """Take back or pad out what the dead had claimed and not published; False: a living one has yet to publish something."""
    cdef FrameView view
    cdef uint64_t tail, position, write, granules, numbers, sequence, base
    cdef Slot* slot
    while True:
        tail = load_acquire(&f.cursors.tail)
        write = load_acquire(&f.cursors.write)
        position = tail >> PLACE_BITS
        while <uint32_t>position != <uint32_t>(write >> 32) and peek_frame(f, position, &view):
            position += view.granules
        if <uint32_t>position == <uint32_t>(write >> 32):
            return True
        if load_acquire(&f.cursors.tail) != tail:
            continue  # what was read may have been written over
        if find_push(f, dead, False, position) != NULL:
            return False
        # All who could have published before we asked have: the hole is a dead one's.
        if peek_frame(f, position, &view):
            continue
        slot = find_owner(f, dead, position)
        if slot == NULL:
            return False
        base = load_acquire(&slot.base)
        granules = load_acquire(&slot.size) >> 32
        numbers = <uint32_t>load_acquire(&slot.size)
        write = end_of_push(slot)
        # Alone, the last claim is taken back with its numbers as if it had never been. With others there is no telling who has
        # seen them; then, as before a frame of somebody else's, it becomes a pad. So it does where frames are sealed: what was
        # filled and not published may be found whole after power loss, and its numbers must not mean two things.
        if not alone or f.key != NULL or not cas_total(&f.cursors.write, &write, base):
            sequence = nearest32(<uint64_t><uint32_t>base, load_relaxed(&f.cursors.sequence))
            write_pad(f, position, sequence, numbers)
            publish(f, NULL, position, granules)
        while True:
            slot = find_push(f, dead, True, position)
            if slot == NULL:
                break
            set_state(slot, FREE)


cdef inline Slot* find_push(Frames* f, const bint* dead, bint of_dead, uint64_t position) noexcept nogil:
    """A slot, of the dead or of the others, that may have claimed at this position."""
    cdef uint64_t seat, i
    cdef Slot* slot
    for seat in range(<uint64_t>SEATS):
        if dead[seat] == of_dead:
            for i in range(used_slots(f.desk, seat)):
                slot = &f.desk.slots[seat * SLOTS + i]
                if is_push_at(slot, position):
                    return slot
    return NULL


cdef inline bint is_push_at(Slot* slot, uint64_t position) noexcept nogil:
    return (
        kind_of_state(load_acquire(&slot.state)) == PUSHING
        and <uint32_t>(load_acquire(&slot.base) >> 32) == <uint32_t>position
    )


cdef inline uint64_t end_of_push(Slot* slot) noexcept nogil:
    """What `write` was after the claim of this slot, if it went through."""
    cdef uint64_t base = load_acquire(&slot.base), size = load_acquire(&slot.size)
    return ((base >> 32) + (size >> 32)) << 32 | <uint64_t><uint32_t>(base + size)


cdef inline Slot* find_owner(Frames* f, const bint* dead, uint64_t position) noexcept nogil:
    """Of the dead that were to claim at this position, the one that did: whose end somebody has seen. Equal ends are all one.

    The end of one that did not may be a boundary as well, by chance, but a later one: the nearest is meant.
    """
    cdef Slot* only = NULL
    cdef Slot* nearest = NULL
    cdef Slot* slot
    cdef FrameView view
    cdef uint64_t seat, i, end, behind
    cdef bint several = False
    for seat in range(<uint64_t>SEATS):
        if not dead[seat]:
            continue
        for i in range(used_slots(f.desk, seat)):
            slot = &f.desk.slots[seat * SLOTS + i]
            if not is_push_at(slot, position):
                continue
            end = end_of_push(slot)
            if only != NULL and end_of_push(only) != end:
                several = True
            only = slot
            behind = position + (load_acquire(&slot.size) >> 32)
            if not (
                load_acquire(&f.cursors.write) == end
                or was_base(f, end)
                or (peek_frame(f, behind, &view) and <uint32_t>view.frame.first_seq == <uint32_t>end)
            ):
                continue
            if nearest == NULL or load_acquire(&slot.size) >> 32 < load_acquire(&nearest.size) >> 32:
                nearest = slot
    if nearest != NULL or several:
        return nearest
    return only


cdef inline bint was_base(Frames* f, uint64_t write) noexcept nogil:
    """Whether anybody, dead or alive, has seen this value of `write`."""
    cdef uint64_t i, seat
    cdef Slot* slot
    for seat in range(<uint64_t>SEATS):
        for i in range(used_slots(f.desk, seat)):
            slot = &f.desk.slots[seat * SLOTS + i]
            if kind_of_state(load_acquire(&slot.state)) == PUSHING and load_acquire(&slot.base) == write:
                return True
    return False
