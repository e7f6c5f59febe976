"""What both kinds of ring do in a file that processes share: claim, take, and finish
what dead participants had begun.

A ring of messages counts granules and one of records counts records; all else that can
go wrong when a process is killed is the same. op_slots.pxd says what an op slot holds,
and why no step leaves it open which slot has what. What only one kind of ring knows is
asked by its Hooks.

One participant at a time tidies up (ParticipantLocks.begin_tidying), while all others
go on. It may itself be killed at any point: every step either changes one word or can
be done again.
"""

from libc.stdint cimport uint64_t

from ringbuf._core.atomics cimport cas_total, fetch_add_release, load_acquire, word
from ringbuf._core.pairs cimport Pair, PairWord, cas_pair, load_pair, same
from ringbuf._shared.op_slots cimport (
    FREE, HELD, ORPHAN, PREPARED, PUSHING, PARTICIPANTS, SLOTS, TURN_BITS, ControlBlock, OpSlot,
    claim_tag, claimer, has_claimed, help_taker, is_empty_orphan, is_of_dead, kind_of_slot,
    number_of, offer, place_in, prepare_take, set_state, used_slots,
)


# What the participant that tidies up asks of a ring (Frames or Runs).
cdef struct Hooks:
    # Where what has not been taken begins: at a tag.
    uint64_t (*first_waiting)(void* ring) noexcept nogil
    # How long what is published at a position is; 0: nothing is.
    uint64_t (*extent)(void* ring, uint64_t position) noexcept nogil
    # Fill what a dead participant had claimed and not published; False: it was the last
    # claim and was taken back.
    bint (*fill)(
        void* ring, OpSlot* slot, uint64_t tag, Pair before, Pair after, bint alone
    ) noexcept nogil
    # Whether something of a take is not released, and from where on: position and
    # amount.
    bint (*unreleased)(void* ring, OpSlot* slot, Pair* start) noexcept nogil
    # Free what is released.
    void (*advance)(void* ring) noexcept nogil


# Of one ring in a file; in the memory of the process.
cdef struct SharedRing:
    ControlBlock* control
    PairWord* write
    PairWord* read
    word* index
    uint64_t mask         # of positions: where in the index they are
    # Whether a take can begin and end in the midst of what one tag stands for: then an
    # amount is a place.
    bint has_places
    void* ring
    Hooks hooks


cdef inline void lay_out(
    SharedRing* s, ControlBlock* control, PairWord* write, PairWord* read, word* index,
    uint64_t mask, bint has_places, void* ring, Hooks hooks
) noexcept:
    s.control = control
    s.write = write
    s.read = read
    s.index = index
    s.mask = mask
    s.has_places = has_places
    s.ring = ring
    s.hooks = hooks


cdef inline PairWord* source_word(SharedRing* s, uint64_t source) noexcept nogil:
    """What a take takes from: the ring's `read`, or what is left of an ORPHAN."""
    if source == 0 or source > PARTICIPANTS * SLOTS:
        return s.read
    return &s.control.slots[source - 1].left


# ---------------------------------------------------------------- pushes


cdef inline bint claim_at(SharedRing* s, OpSlot* slot, Pair write) noexcept nogil:
    """Claim what the slot says at `write`; False: another slot has, or does right now.
    """
    cdef word* index = &s.index[write.position & s.mask]
    cdef uint64_t tag = load_acquire(index)  # C
    cdef OpSlot* other = claimer(s.control, tag, write.position)
    if other != NULL and has_claimed(other, write, s.mask + 1):
        move_write(s, other, write)
        return False
    # A tag of this lap there must not be written over; but if one was there, `write`
    # had moved before.
    if not same(load_pair(s.write), write):
        return False
    if not cas_total(index, &tag, claim_tag(s.control, slot, write.position)):  # C
        return False
    move_write(s, slot, write)
    return True


cdef inline void move_write(SharedRing* s, OpSlot* slot, Pair write) noexcept nogil:
    """Move `write` on over what the slot claimed there, unless it has moved."""
    cdef Pair after = load_pair(&slot.after)
    # If it has gone on to another push, `write` moved before that.
    if same(load_pair(&slot.before), write):
        cas_pair(s.write, &write, after)


# ---------------------------------------------------------------- takes


cdef inline bint win_take(
    SharedRing* s, OpSlot* slot, uint64_t source, Pair* seen, Pair next
) noexcept nogil:
    """Change a source word from `seen` to `next`, and say so in the slot; False:
    another take was faster, and `seen` is what it left.
    """
    help_taker(s.control, source, seen[0])
    next.rest |= (number_of(s.control, slot) + 1) << TURN_BITS
    prepare_take(slot, source, seen[0], next)
    if not cas_pair(source_word(s, source), seen, next):  # B
        set_state(slot, FREE)
        return False
    set_state(slot, HELD)
    return True


# ---------------------------------------------------------------- dead participants


cdef inline void tidy_up(SharedRing* s, const bint* dead, bint alone) noexcept nogil:
    """Finish what these participants had begun. No living one can be in the way.

    alone: no other process takes part, or can begin to.
    """
    cdef uint64_t participant, i
    for participant in range(<uint64_t>PARTICIPANTS):
        if dead[participant]:
            for i in range(used_slots(s.control, participant)):
                settle_take(s, &s.control.slots[participant * SLOTS + i])
    s.hooks.advance(s.ring)
    for participant in range(<uint64_t>PARTICIPANTS):
        if dead[participant]:
            for i in range(used_slots(s.control, participant)):
                orphan_take(s, &s.control.slots[participant * SLOTS + i])
    fill_holes(s, dead, alone)
    for participant in range(<uint64_t>PARTICIPANTS):
        if dead[participant]:
            for i in range(used_slots(s.control, participant)):
                # It claimed nothing, or its claim was published or filled.
                if kind_of_slot(&s.control.slots[participant * SLOTS + i]) == PUSHING:
                    set_state(&s.control.slots[participant * SLOTS + i], FREE)
    s.hooks.advance(s.ring)


cdef inline bint has_taken(SharedRing* s, OpSlot* slot) noexcept nogil:
    """Whether the exchange of a PREPARED slot went through. If another take had
    followed it, that one would have said HELD.
    """
    return same(load_pair(source_word(s, load_acquire(&slot.source))), load_pair(&slot.after))


cdef inline void settle_take(SharedRing* s, OpSlot* slot) noexcept nogil:
    """Find out whether a dead taker's exchange went through."""
    if kind_of_slot(slot) != PREPARED:
        return
    if has_taken(s, slot):
        set_state(slot, HELD)
    elif kind_of_slot(slot) == PREPARED:  # still: another take may have followed since
        set_state(slot, FREE)


cdef inline void orphan_take(SharedRing* s, OpSlot* slot) noexcept nogil:
    """Offer what a dead taker had not released; free an ORPHAN of which nothing is
    left.
    """
    cdef Pair start
    if kind_of_slot(slot) == HELD:
        start = place_in(load_pair(&slot.before))
        if not s.hooks.unreleased(s.ring, slot, &start):
            set_state(slot, FREE)
            return
        offer(slot, start)
    elif kind_of_slot(slot) != ORPHAN:
        return
    elif is_empty_orphan(slot):
        help_taker(s.control, number_of(s.control, slot) + 1, load_pair(&slot.left))
        set_state(slot, FREE)
        return
    # Also of one that was an ORPHAN already: the process that made it one may have been
    # killed before it said so.
    fetch_add_release(&s.control.deaths, 1)


cdef inline void fill_holes(SharedRing* s, const bint* dead, bint alone) noexcept nogil:
    """Take back or fill what dead participants had claimed and not published."""
    cdef uint64_t start, position, tag, extent
    cdef Pair write, before, after
    cdef OpSlot* slot
    while True:
        position = start = s.hooks.first_waiting(s.ring)
        while True:
            # In this order: what is neither published nor claimed is the end, unless
            # something was claimed there since. What the index says from `write` on is
            # of an earlier lap, or forged.
            write = load_pair(s.write)
            tag = load_acquire(&s.index[position & s.mask])  # C
            slot = claimer(s.control, tag, position)
            if slot == NULL or (
                position == write.position and not has_claimed(slot, write, s.mask + 1)
            ):
                extent = s.hooks.extent(s.ring, position) if position < write.position else 0
                if extent == 0:
                    break
                position += extent
                continue
            after = load_pair(&slot.after)
            before = load_pair(&slot.before)
            if load_acquire(&s.index[position & s.mask]) != tag:
                continue  # published since: the slot may say something else by now
            # So it claimed that much; `write` may not have moved yet.
            move_write(s, slot, before)
            if is_of_dead(s.control, slot, dead) and not s.hooks.fill(
                s.ring, slot, tag, before, after, alone
            ):
                write = before
                break
            position = after.position
        if position == write.position:
            return
        # `read` has passed what was looked at: once more from where it is now. If it
        # has not, the file is damaged.
        if s.hooks.first_waiting(s.ring) == start:
            return
