"""What dead processes left in a shared ring of messages: takes that were not released, and holes that were not published.

One participant at a time tidies up (SharedFile.recovery), while all others go on. It may itself be killed at any point: every
step either changes one word or can be done again.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from ringbuf._core.atomics cimport cas_total, fetch_add_release, load_acquire, load_relaxed, store_release, word
from ringbuf._messages.positions cimport (
    PLACE_BITS, Frames, FrameView, advance_tail, make_read, move_write, nearest32, peek_frame, place_of, publish, read_mark,
    write_pad,
)
from ringbuf._shared.op_slots cimport (
    FREE, HELD, NOBODY, ORPHAN, PREPARED, PUSHING, SEATS, SLOTS, TURN_BITS, WHO_BITS, Desk, Slot, claimer, help_taker, is_of_dead,
    kind_of_state, set_state, used_slots,
)


cdef inline void tidy_up(Frames* f, const bint* dead, bint alone) noexcept nogil:
    """Finish what the holders of these seats had begun. No living one can be in the way.

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
    fill_holes(f, dead, alone)
    for seat in range(<uint64_t>SEATS):
        if dead[seat]:
            for i in range(used_slots(desk, seat)):
                # Whatever it was to claim, it did not, or it was published.
                if kind_of_state(load_acquire(&desk.slots[seat * SLOTS + i].state)) == PUSHING:
                    set_state(&desk.slots[seat * SLOTS + i], FREE)
    advance_tail(f)


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


cdef inline void fill_holes(Frames* f, const bint* dead, bint alone) noexcept nogil:
    """Take back or pad out what the dead had claimed and not published."""
    cdef FrameView view
    cdef uint64_t start, position, write, tag, base, size
    cdef Slot* slot
    while True:
        position = start = load_acquire(&f.cursors.tail) >> PLACE_BITS
        while True:
            # In this order: what is neither published nor claimed is the end, unless somebody has claimed there since.
            write = load_acquire(&f.cursors.write)
            tag = load_acquire(&f.index[position & (f.capacity - 1)])  # C
            slot = claimer(f.desk, tag, position)
            if slot == NULL:
                if peek_frame(f, position, &view):
                    position += view.granules
                    continue
                break
            size = load_acquire(&slot.size)
            base = load_acquire(&slot.base)
            if load_acquire(&f.index[position & (f.capacity - 1)]) != tag:
                continue  # published since, and what the slot says may be something else by now
            # So he claimed that much; `write` may not have moved yet.
            move_write(f, slot, base)
            if not is_of_dead(f.desk, slot, dead):
                position += size >> 32
                continue
            if alone and f.key == NULL:
                # The last claim is taken back with its numbers as if it had never been. With others there is no telling who has
                # seen them; then, as before a frame of somebody else's, it becomes a pad. So it does where frames are sealed:
                # what was filled and not published may be found whole after power loss, and no number may mean two things.
                write = end_of_push(base, size)
                if cas_total(&f.cursors.write, &write, base) or write == base:
                    store_release(&f.index[position & (f.capacity - 1)], 0)
                    set_state(slot, FREE)
                    break
            write_pad(f, position, nearest32(<uint64_t><uint32_t>base, load_relaxed(&f.cursors.sequence)), <uint32_t>size)
            publish(f, slot, position, size >> 32)
            position += size >> 32
        if <uint32_t>position == <uint32_t>(write >> 32):
            return
        # Unless the file is damaged, `tail` has passed what was looked at: once more from where it is now.
        if load_acquire(&f.cursors.tail) >> PLACE_BITS == start:
            return


cdef inline uint64_t end_of_push(uint64_t base, uint64_t size) noexcept nogil:
    """What `write` is after this claim."""
    return ((base >> 32) + (size >> 32)) << 32 | <uint64_t><uint32_t>(base + size)
