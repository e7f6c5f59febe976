"""Runs in a file that several processes share: what positions.pxd does, in steps after
any of which a process may be killed.

As in positions.pxd, but for this. Each operation says in an op slot what it is about to
do (_shared/op_slots.pxd), and one participant at a time finishes what dead ones had
begun (_shared/shared_ring.pxd), while all others go on:

    push     A hole, claimed and never published, becomes a VOID run, by one exchange in
             the index, which names the op slot that says how much was claimed.
    take     What had been taken and not released becomes an ORPHAN, a range that
             consumers take from before all else. Nothing in the ring changes by that,
             so it can be done again if the participant that does it is killed.
    release  is one store, of `tail` or of a tag, and can be told from what is not
             released.

The rest of `read` holds how many records are known to be published from its position
on, which slot took last and a turn. So that there is room for it, a run has at most
MAX_RUN records. There are no RETURNED and HELD tags: a block that gives back makes an
ORPHAN of itself, and a reservation of which there is still a view delays what was
claimed after it until the view has gone.
"""

from libc.stdint cimport uint64_t

from ringbuf._core.atomics cimport (
    cas_total, fetch_add_release, load_acquire, load_relaxed, store_release, word,
)
from ringbuf._core.pairs cimport Pair, load_pair, pair, same
from ringbuf._records.positions cimport (
    PUBLISHED, RELEASED, VOID, Runs, advance, count_of, is_of, kind_of, make_tag, published,
    release, room,
)
from ringbuf._shared.op_slots cimport (
    AMOUNT_BITS, FREE, ORPHAN, PARTICIPANTS, SLOTS, ControlBlock, OpSlot, amount_of, begin_push,
    kind_of_slot, kind_of_state, make_rest, offer, set_state, store_pair, turn_of, used_slots,
)
from ringbuf._shared.shared_ring cimport Hooks, SharedRing, claim_at, lay_out, win_take


cdef enum:
    MAX_RUN = 1 << AMOUNT_BITS  # `known` is less


# ---------------------------------------------------------------- producers


cdef inline uint64_t shared_claim(
    Runs* r, word* seen, OpSlot* slot, uint64_t most, bint contiguous, uint64_t* position
) noexcept nogil:
    """As `claim`, for at most MAX_RUN records. The op slot describes it until
    `shared_publish`.
    """
    cdef Pair write = load_pair(&r.cursors.write)
    cdef uint64_t count
    most = min(most, <uint64_t>MAX_RUN)
    while True:
        count = min(most, room(r, seen, most, &write.position))
        if contiguous:
            count = min(count, r.mask + 1 - (write.position & r.mask))
        if count == 0:
            set_state(slot, FREE)
            return 0
        begin_push(slot, write, pair(write.position + count, 0))
        if claim_at(r.shared, slot, write):
            position[0] = write.position
            return count
        write = load_pair(&r.cursors.write)


cdef inline void shared_publish(
    Runs* r, OpSlot* slot, uint64_t position, uint64_t count, uint64_t kind
) noexcept nogil:
    store_release(&r.index[position & r.mask], make_tag(r, position, count, kind))  # P
    set_state(slot, FREE)


# ---------------------------------------------------------------- consumers


cdef inline uint64_t shared_take(
    Runs* r, OpSlot* slot, uint64_t most, bint contiguous, uint64_t* position
) noexcept nogil:
    """As `take`, from `read`. The op slot describes it until `shared_release`."""
    cdef uint64_t end, known, limit, count
    cdef Pair read = load_pair(&r.cursors.read), seen  # M
    while True:
        end = position[0] = read.position
        known = amount_of(read.rest)
        limit = min(most, r.mask + 1 - (end & r.mask)) if contiguous else most
        while end - position[0] < limit:
            if known == 0:
                known = published(r, end)
                # What the index says from `write` on is of an earlier lap, or forged.
                if known == 0 or known > MAX_RUN or end >= load_acquire(&r.cursors.write.position):
                    known = 0
                    break
            count = min(known, limit - (end - position[0]))
            end += count
            known -= count
        if end != position[0]:
            if win_take(r.shared, slot, 0, &read, pair(end, make_rest(known, 0, 0))):  # M
                return end - position[0]
            continue
        seen = read
        if shared_pass_void(r, slot):
            read = load_pair(&r.cursors.read)
            continue
        read = load_pair(&r.cursors.read)  # M
        if same(read, seen):
            return 0


cdef inline bint shared_pass_void(Runs* r, OpSlot* slot) noexcept nogil:
    """Pass a run that holds nothing; returns whether one was next to be read. It is
    taken and released like any other range.
    """
    cdef Pair read = load_pair(&r.cursors.read)
    cdef uint64_t at = read.position, tag, count
    if amount_of(read.rest) != 0:
        return False
    tag = load_acquire(&r.index[at & r.mask])  # P
    if not is_of(r, tag, at) or kind_of(tag) != VOID:
        return False
    if at >= load_acquire(&r.cursors.write.position):
        return False
    count = count_of(r, tag)
    if win_take(r.shared, slot, 0, &read, pair(at + count, 0)):
        shared_release(r, slot, at, count)
    return True


cdef inline uint64_t take_orphan(
    Runs* r, OpSlot* slot, uint64_t orphan, uint64_t most, bint contiguous, uint64_t* position
) noexcept nogil:
    """Take from the front of what the slot `orphan` left; returns how many. 0: another
    was faster.
    """
    cdef OpSlot* dead = &r.shared.control.slots[orphan]
    cdef uint64_t state = load_acquire(&dead.state), count, rest  # S
    cdef Pair seen = load_pair(&dead.left)
    count = min(most, load_acquire(&dead.after.position) - seen.position)
    # The state has a version: if it is the same, what was read in between is one thing.
    if kind_of_state(state) != ORPHAN or load_acquire(&dead.state) != state or count == 0:
        return 0
    if contiguous:
        count = min(count, r.mask + 1 - (seen.position & r.mask))
    position[0] = seen.position
    rest = make_rest(0, 0, turn_of(seen.rest))
    if win_take(r.shared, slot, orphan + 1, &seen, pair(seen.position + count, rest)):
        return count
    return 0


cdef inline void shared_release(
    Runs* r, OpSlot* slot, uint64_t position, uint64_t count
) noexcept nogil:
    release(r, position, count)
    set_state(slot, FREE)


cdef inline void leave_orphan(
    ControlBlock* control, OpSlot* slot, uint64_t position
) noexcept nogil:
    """Make an ORPHAN of a take, of which all from `position` on is left."""
    # Without the number of records that are known behind it: an ORPHAN is empty when
    # its two words have the same place.
    store_pair(&slot.after, pair(load_relaxed(&slot.after.position), 0))
    offer(slot, pair(position, 0))
    fetch_add_release(&control.deaths, 1)


cdef inline uint64_t shared_waiting(Runs* r) noexcept nogil:
    """Records that were pushed and not yet taken. Goes from run to run, and over what
    is claimed and not published.
    """
    cdef Pair read = load_pair(&r.cursors.read)
    cdef uint64_t count = amount_of(read.rest), at = read.position + count
    cdef uint64_t end = load_acquire(&r.cursors.write.position), tag
    cdef uint64_t participant, i
    cdef OpSlot* slot
    while at < end and at - read.position <= r.mask:
        tag = load_acquire(&r.index[at & r.mask])
        if is_of(r, tag, at):
            at += count_of(r, tag)
            count += count_of(r, tag) if kind_of(tag) == PUBLISHED else 0
        else:
            at += 1
    if load_relaxed(&r.shared.control.deaths) != 0:
        for participant in range(<uint64_t>PARTICIPANTS):
            for i in range(used_slots(r.shared.control, participant)):
                slot = &r.shared.control.slots[participant * SLOTS + i]
                if kind_of_slot(slot) == ORPHAN:
                    count += load_acquire(&slot.after.position) - load_acquire(&slot.left.position)
    return min(count, r.mask + 1)


# ------------------------------------------------ Hooks of _shared/shared_ring.pxd


cdef inline void share_runs(Runs* r, SharedRing* s, ControlBlock* control) noexcept:
    """Make these runs a ring that processes share."""
    cdef Hooks hooks
    hooks.first_waiting = first_waiting_run
    hooks.extent = extent_of_run
    hooks.fill = fill_run_hole
    hooks.unreleased = unreleased_records
    hooks.advance = advance_runs
    # No places: an amount is a number of records that are known to be published.
    lay_out(s, control, &r.cursors.write, &r.cursors.read, r.index, r.mask, False, r, hooks)
    r.shared = s


cdef inline uint64_t first_waiting_run(void* ring) noexcept nogil:
    cdef Pair read = load_pair(&(<Runs*>ring).cursors.read)
    return read.position + amount_of(read.rest)


cdef inline uint64_t extent_of_run(void* ring, uint64_t position) noexcept nogil:
    cdef Runs* r = <Runs*>ring
    cdef uint64_t tag = load_acquire(&r.index[position & r.mask])
    return count_of(r, tag) if is_of(r, tag, position) else 0


cdef inline void advance_runs(void* ring) noexcept nogil:
    advance(<Runs*>ring, load_acquire(&(<Runs*>ring).cursors.tail))


cdef inline bint fill_run_hole(
    void* ring, OpSlot* slot, uint64_t tag, Pair before, Pair after, bint alone
) noexcept nogil:
    """Make a VOID run of it."""
    cdef Runs* r = <Runs*>ring
    cdef uint64_t void = make_tag(r, before.position, after.position - before.position, VOID)
    cas_total(&r.index[before.position & r.mask], &tag, void)  # P
    return True


cdef inline bint unreleased_records(void* ring, OpSlot* slot, Pair* start) noexcept nogil:
    cdef Runs* r = <Runs*>ring
    cdef uint64_t at = start.position
    # The tag first: a range can be freed, and its memory used again, only after it was
    # released.
    cdef uint64_t tag = load_acquire(&r.index[at & r.mask])
    if is_of(r, tag, at) and kind_of(tag) == RELEASED or load_acquire(&r.cursors.tail) > at:
        return False
    if is_of(r, tag, at) and kind_of(tag) == VOID:
        release(r, at, count_of(r, tag))
        return False
    store_pair(&slot.after, pair(load_relaxed(&slot.after.position), 0))
    start[0] = pair(at, 0)
    return True
