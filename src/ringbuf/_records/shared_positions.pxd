"""Runs in a file that several processes share: what positions.pxd does, in steps after any of which a process may be killed.

As in positions.pxd, but for this. Everybody says in a slot what he is about to do (see _shared/op_slots.pxd), and one
participant at a time finishes what the dead had begun (`tidy_runs`), while all others go on:

    push    A hole, claimed and never published, becomes a VOID run, by one exchange in the index. Who claimed it, and how much,
            is said there and in his slot.
    take    What had been taken and not released becomes an ORPHAN, a range that consumers take from before all else. Nothing in
            the ring changes by that, so it can be done again if he who does it is killed.
    release is one store, of `tail` or of a tag, and can be told from what is not released.

`read` holds, besides the low half of its position, how many records are known to be published from there on and who took last:
position << 32 | known << 20 | who << 8. So that `known` has room, a run has at most MAX_RUN records. There are no RETURNED and
HELD tags: a block that gives back makes an ORPHAN of itself, and a reservation that somebody still has a view of delays what
was claimed after it until the view has gone.

`write` never goes back and counts in 64 bits, so no two claims begin at the same place.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from ringbuf._core.atomics cimport cas_total, fetch_add_release, load_acquire, load_relaxed, store_release, word
from ringbuf._records.positions cimport (
    PUBLISHED, RELEASED, VOID, Runs, advance, count_of, is_of, kind_of, make_tag, position_of, published, release,
    room,
)
from ringbuf._shared.op_slots cimport (
    FREE, HELD, ORPHAN, PREPARED, PUSHING, SEATS, SLOTS, TURN_BITS, WHO_BITS, Desk, Slot, begin_push, claim_tag, claimer,
    help_taker, is_of_dead, kind_of_state, prepare_take, set_state, used_slots,
)


cdef enum:
    MAX_RUN = 4096        # `known` is less, and has the bits that `_slots` leaves between a position and who took there


cdef inline uint64_t known_of(uint64_t read) noexcept nogil:
    return read >> (WHO_BITS + TURN_BITS) & (MAX_RUN - 1)


cdef inline uint64_t make_read(uint64_t position, uint64_t known, uint64_t who, uint64_t turn) noexcept nogil:
    return position << 32 | known << (WHO_BITS + TURN_BITS) | who << TURN_BITS | turn


cdef inline word* source_of(Runs* r, uint64_t source) noexcept nogil:
    """What a take took from: `read`, or what is left of an ORPHAN."""
    return &r.cursors.read if source == 0 or source > SEATS * SLOTS else &r.desk.slots[source - 1].before


# ---------------------------------------------------------------- producers


cdef inline uint64_t shared_claim(
    Runs* r, word* seen, Slot* slot, uint64_t most, bint contiguous, uint64_t* position
) noexcept nogil:
    """As `claim`, for at most MAX_RUN records. The slot speaks of it until `shared_publish`."""
    cdef uint64_t write = load_acquire(&r.cursors.write), count, tag
    cdef Slot* other
    most = min(most, <uint64_t>MAX_RUN)
    while True:
        count = min(most, room(r, seen, most, &write))
        if contiguous:
            count = min(count, r.mask + 1 - (write & r.mask))
        if count == 0:
            set_state(slot, FREE)
            return 0
        begin_push(slot, count, write)
        tag = load_acquire(&r.index[write & r.mask])  # C
        other = claimer(r.desk, tag, write)
        # What was published there is not to be written over: but `write` had moved before that.
        if other == NULL and load_acquire(&r.cursors.write) == write:
            if cas_total(&r.index[write & r.mask], &tag, claim_tag(r.desk, slot, write)):  # C
                move_write(r, slot, write)
                position[0] = write
                return count
            other = claimer(r.desk, tag, write)
        if other != NULL:
            move_write(r, other, write)
        write = load_acquire(&r.cursors.write)


cdef inline void move_write(Runs* r, Slot* slot, uint64_t write) noexcept nogil:
    """Move `write` on for one who claimed there, unless it has moved."""
    cdef uint64_t size = load_acquire(&slot.size)
    # If he has gone on to another push, `write` moved before that.
    if load_acquire(&slot.base) == write:
        cas_total(&r.cursors.write, &write, write + size)


cdef inline void shared_publish(Runs* r, Slot* slot, uint64_t position, uint64_t count, uint64_t kind) noexcept nogil:
    store_release(&r.index[position & r.mask], make_tag(r, position, count, kind))  # P
    set_state(slot, FREE)


# ---------------------------------------------------------------- consumers


cdef inline bint win(Runs* r, Slot* slot, uint64_t source, uint64_t at, uint64_t* seen, uint64_t next) noexcept nogil:
    """Take what lies from `at` on: change a source word from `seen` to `next`, and say so in the slot.

    False: somebody was faster, and `seen` is now what he left.
    """
    help_taker(r.desk, source, seen[0])
    next |= (<uint64_t>(slot - r.desk.slots) + 1) << TURN_BITS
    # Whole: once it is released, `tail` may be anywhere, and half of a position says nothing.
    store_release(&slot.base, at)
    prepare_take(slot, source, seen[0], next)
    if not cas_total(source_of(r, source), seen, next):  # B
        set_state(slot, FREE)
        return False
    set_state(slot, HELD)
    return True


cdef inline uint64_t shared_take(Runs* r, Slot* slot, uint64_t most, bint contiguous, uint64_t* position) noexcept nogil:
    """As `take`, from `read`. The slot speaks of it until `shared_release`."""
    cdef uint64_t read = load_acquire(&r.cursors.read), seen, at, end, known, limit, count  # M
    while True:
        at = end = position_of(r, read)
        known = known_of(read)
        limit = min(most, r.mask + 1 - (at & r.mask)) if contiguous else most
        while end - at < limit:
            if known == 0:
                known = published(r, end)
                if known == 0 or known > MAX_RUN:
                    known = 0
                    break
            count = min(known, limit - (end - at))
            end += count
            known -= count
        if end != at:
            position[0] = at
            if win(r, slot, 0, at, &read, make_read(end, known, 0, 0)):  # M
                return end - at
            continue
        seen = read
        if shared_pass_void(r, slot):
            read = load_acquire(&r.cursors.read)
            continue
        read = load_acquire(&r.cursors.read)  # M
        if read == seen:
            return 0


cdef inline bint shared_pass_void(Runs* r, Slot* slot) noexcept nogil:
    """Whether a run that holds nothing was next to be read; it no longer is. It is taken and released like any other range."""
    cdef uint64_t read = load_acquire(&r.cursors.read), at = position_of(r, read), tag, count
    if known_of(read) != 0:
        return False
    tag = load_acquire(&r.index[at & r.mask])  # P
    if not is_of(r, tag, at) or kind_of(tag) != VOID:
        return False
    count = count_of(r, tag)
    if win(r, slot, 0, at, &read, make_read(at + count, 0, 0, 0)):
        shared_release(r, slot, at, count)
    return True


cdef inline uint64_t take_orphan(
    Runs* r, Slot* slot, uint64_t orphan, uint64_t most, bint contiguous, uint64_t* position
) noexcept nogil:
    """Take from the front of what the slot `orphan` left; returns how many. 0: another was faster."""
    cdef Slot* left = &r.desk.slots[orphan]
    cdef uint64_t state = load_acquire(&left.state)  # S
    cdef uint64_t seen = load_acquire(&left.before), at = position_of(r, seen), count
    count = min(most, position_of(r, load_acquire(&left.after)) - at)
    # The state has a version: if it is the same, what was read in between is one thing.
    if kind_of_state(state) != ORPHAN or load_acquire(&left.state) != state or count == 0:
        return 0
    if contiguous:
        count = min(count, r.mask + 1 - (at & r.mask))
    position[0] = at
    if win(r, slot, orphan + 1, at, &seen, make_read(at + count, 0, 0, seen & ((1 << TURN_BITS) - 1))):
        return count
    return 0


cdef inline void shared_release(Runs* r, Slot* slot, uint64_t position, uint64_t count) noexcept nogil:
    release(r, position, count)
    set_state(slot, FREE)


cdef inline void offer(Runs* r, Slot* slot, uint64_t position) noexcept nogil:
    """Make an ORPHAN of a take, of which all from `position` on is left."""
    # Two of them in one slot differ in the turn, so that nobody takes from the second one what he saw in the first.
    store_release(&slot.before, make_read(position, 0, 0, (load_relaxed(&slot.before) + 1) & ((1 << TURN_BITS) - 1)))
    # Where it ends needs no `known`: so that an empty one has the same place in both.
    store_release(&slot.after, load_relaxed(&slot.after) >> 32 << 32)
    set_state(slot, ORPHAN)
    fetch_add_release(&r.desk.deaths, 1)


cdef inline bint is_empty_orphan(Slot* slot) noexcept nogil:
    return (
        kind_of_state(load_acquire(&slot.state)) == ORPHAN
        and load_acquire(&slot.before) >> 32 == load_acquire(&slot.after) >> 32
    )


cdef inline uint64_t shared_waiting(Runs* r) noexcept nogil:
    """Records that were pushed and not yet taken. It goes from run to run, and over what is claimed and not published."""
    cdef uint64_t read = load_acquire(&r.cursors.read), start = position_of(r, read), at = start + known_of(read), tag
    cdef uint64_t count = known_of(read), end = load_acquire(&r.cursors.write), seat, i
    cdef Slot* slot
    while at != end and at - start <= r.mask:
        tag = load_acquire(&r.index[at & r.mask])
        if is_of(r, tag, at):
            at += count_of(r, tag)
            count += count_of(r, tag) if kind_of(tag) == PUBLISHED else 0
        else:
            at += 1
    if load_relaxed(&r.desk.deaths) != 0:
        for seat in range(<uint64_t>SEATS):
            for i in range(used_slots(r.desk, seat)):
                slot = &r.desk.slots[seat * SLOTS + i]
                if kind_of_state(load_acquire(&slot.state)) == ORPHAN:
                    count += <uint32_t>((load_acquire(&slot.after) >> 32) - (load_acquire(&slot.before) >> 32))
    return min(count, r.mask + 1)


# ---------------------------------------------------------------- the dead


cdef inline void tidy_runs(Runs* r, const bint* dead) noexcept nogil:
    """Finish what the holders of these seats had begun. No living one can be in the way.

    May itself be killed at any point: each step changes one word, or can be done again.
    """
    cdef uint64_t seat, i
    cdef Slot* slot
    for seat in range(<uint64_t>SEATS):
        if dead[seat]:
            for i in range(used_slots(r.desk, seat)):
                settle_take(r, &r.desk.slots[seat * SLOTS + i])
    for seat in range(<uint64_t>SEATS):
        if dead[seat]:
            for i in range(used_slots(r.desk, seat)):
                orphan_take(r, &r.desk.slots[seat * SLOTS + i])
    advance(r, load_acquire(&r.cursors.tail))
    fill_holes(r, dead)
    for seat in range(<uint64_t>SEATS):
        if dead[seat]:
            for i in range(used_slots(r.desk, seat)):
                slot = &r.desk.slots[seat * SLOTS + i]
                # Whatever it was to claim, it did not, or it was published, or is VOID by now.
                if kind_of_state(load_acquire(&slot.state)) == PUSHING:
                    set_state(slot, FREE)


cdef inline void settle_take(Runs* r, Slot* slot) noexcept nogil:
    """Find out whether a dead taker's exchange went through."""
    if kind_of_state(load_acquire(&slot.state)) != PREPARED:
        return
    # If somebody had taken after him, that one would have said HELD.
    if load_acquire(source_of(r, load_acquire(&slot.source))) == load_acquire(&slot.after):
        set_state(slot, HELD)
    elif kind_of_state(load_acquire(&slot.state)) == PREPARED:  # still: somebody may have taken after him since
        set_state(slot, FREE)


cdef inline void orphan_take(Runs* r, Slot* slot) noexcept nogil:
    """Offer what a dead taker had not released; an ORPHAN of which nothing is left is done with."""
    cdef uint64_t kind = kind_of_state(load_acquire(&slot.state)), at, tag
    if kind == ORPHAN:
        if is_empty_orphan(slot):
            help_taker(r.desk, <uint64_t>(slot - r.desk.slots) + 1, load_acquire(&slot.before))
            set_state(slot, FREE)
        else:
            fetch_add_release(&r.desk.deaths, 1)  # whoever made it may have died before he said so
        return
    if kind != HELD:
        return
    at = load_acquire(&slot.base)
    # The tag first: a range can be freed, and its memory used again, only after it was released.
    tag = load_acquire(&r.index[at & r.mask])
    if is_of(r, tag, at) and kind_of(tag) == RELEASED or <int64_t>(load_acquire(&r.cursors.tail) - at) > 0:
        set_state(slot, FREE)
    elif is_of(r, tag, at) and kind_of(tag) == VOID:
        shared_release(r, slot, at, count_of(r, tag))
    else:
        offer(r, slot, at)


cdef inline void fill_holes(Runs* r, const bint* dead) noexcept nogil:
    """Make VOID runs of what the dead had claimed and not published."""
    cdef uint64_t read, position, write, tag, size
    cdef Slot* slot
    while True:
        read = load_acquire(&r.cursors.read)
        position = position_of(r, read) + known_of(read)
        while True:
            # In this order: what is neither published nor claimed is the end, unless somebody has claimed there since.
            write = load_acquire(&r.cursors.write)
            tag = load_acquire(&r.index[position & r.mask])  # C
            slot = claimer(r.desk, tag, position)
            if slot == NULL:
                if not is_of(r, tag, position):
                    break
                position += count_of(r, tag)
                continue
            size = load_acquire(&slot.size)
            if load_acquire(&r.index[position & r.mask]) != tag:
                continue  # published since, and what the slot says may be something else by now
            # So he claimed that much; `write` may not have moved yet.
            move_write(r, slot, position)
            if is_of_dead(r.desk, slot, dead):
                cas_total(&r.index[position & r.mask], &tag, make_tag(r, position, size, VOID))  # P
            position += size
        if position == write:
            return
        # Unless the file is damaged, `read` has passed what was looked at: once more from where it is now.
        if load_acquire(&r.cursors.read) == read:
            return
