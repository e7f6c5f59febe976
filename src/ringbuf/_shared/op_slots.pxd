"""Op slots: each operation on a shared ring says in one what it is about to do, so that
other participants can finish it if its process dies.

An op slot stands for one operation. It lies in the shared file, and only its owner
writes it, but for what is said below. A participant slot (see participant_locks.pyx)
has SLOTS of them; they are dead when the process that holds the participant slot is.

A push, from before its claim until after its publishing:

    FREE ──> PUSHING ──> FREE

A take, from before its exchange until after its release; what a dead process had not
released becomes an ORPHAN, which is taken again:

    FREE ──> PREPARED ──> HELD ──> FREE
                            └────> ORPHAN ──> FREE

Either replaces a source word, which is a pair, by another: the op slot says what is
replaced (`before`) and by what (`after`), before it is done. Source words are the
ring's `write` for a push; for a take its `read`, or `left` of an ORPHAN.

Push. One exchange in the index, where the tag will stand, claims: until it is published
a claim tag there names the op slot. `write` moves after that; the first participant
that sees the claim moves it. So it is known at every moment which slot has claimed at a
position, and how much, and no participant has to be asked: one that loses the race for
a position leaves nothing to recover, whether it runs, is stopped or dead. What a dead
participant had claimed is filled at once. What a living one has claimed and not
published is passed over, and it alone delays the sight of what follows.

Take. The exchange of the source word puts into it which op slot took. The next taker
first says HELD in that slot, if that is not said yet, and then exchanges the word
itself. So a PREPARED slot whose `after` the source word does not show has not taken
anything, and a kill leaves no moment at which it is open which slot has what.

Numbers. A position is whole and never comes again, so neither does a value of `write`
or `read`. `left` could begin twice at one position; its turn tells an ORPHAN from every
earlier one in the same slot. `state` holds a version beside its kind. Each preparation
has another one, so that a HELD that comes late changes nothing.

Pairs of release and acquire:

    S  store of `state`, after what it describes
       ->  load of it in `help_taker` and by the participant that tidies up
    B  exchange of a source word  ->  load of it by others: the slot that says so
    C  exchange of a word of the index: a claim
       ->  load of it by others: the slot that it names
"""

from libc.stdint cimport uint64_t

from ringbuf._core.atomics cimport cas_total, load_acquire, load_relaxed, store_release, word
from ringbuf._core.pairs cimport Pair, PairWord, load_pair, pair, same


cdef enum:
    PARTICIPANTS = 32
    SLOTS = 64            # of a participant: a word has a bit for each
    # The parts of the rest of a source word: how far into a frame, or how many records
    # are known; which op slot took, its number + 1; and a turn.
    AMOUNT_BITS = 12
    TAKER_BITS = 12
    TURN_BITS = 40
    NO_TAKER = 0          # in the place of a slot's number + 1


# Of a claim tag: CLAIMED, the number of the slot, as much of the position as there is
# room for. No claim tag outlasts its lap: it is replaced when what was claimed is
# published, filled or taken back.
cdef enum:
    POSITION_BITS = 50


cdef extern from *:
    """
    #define RINGBUF_CLAIMED (1ull << 63)
    #define RINGBUF_POSITION_MASK ((1ull << 50) - 1)
    #define RINGBUF_MOST_POSITION (1ull << 59)
    """
    const uint64_t CLAIMED "RINGBUF_CLAIMED"
    const uint64_t POSITION_MASK "RINGBUF_POSITION_MASK"
    # Tags hold positions beside some bits of their own, and below CLAIMED. Half of it
    # is reached after 2**48 bytes by a ring of 64 GiB that goes back to its start after
    # each MiB, and after 2**58 by one of 64 MiB; the other half takes 2**64 bytes.
    const uint64_t MOST_POSITION "RINGBUF_MOST_POSITION"


cdef enum:
    FREE = 0
    PUSHING = 1
    PREPARED = 2
    HELD = 3
    ORPHAN = 4
    STATE_BITS = 3


cdef struct OpSlot:
    word state            # version << STATE_BITS | kind
    word source           # of a take: 0: the ring's `read`; n: `left` of slot n - 1
    PairWord before       # what it replaces there
    PairWord after        # … and what it puts there: where the range ends
    PairWord left         # of an ORPHAN: where what is left of it begins


# Of one participant; in shared memory.
cdef struct ParticipantSlot:
    word used             # its op slots from this one on have never been used
    # Not 0: an event loop of its process wants to be called when there is something to
    # take (_core/ready_fd.py).
    word listens
    word pad[6]


# What lies at the start of a shared ring's body.
cdef struct ControlBlock:
    word deaths           # goes up when slots become ORPHAN: tells whether to look again
    word pad[7]
    ParticipantSlot participants[PARTICIPANTS]
    OpSlot slots[PARTICIPANTS * SLOTS]


# ------------------------------------------------------------ the rest of a source word


cdef inline uint64_t make_rest(uint64_t amount, uint64_t taker, uint64_t turn) noexcept nogil:
    return amount << (TAKER_BITS + TURN_BITS) | taker << TURN_BITS | turn


cdef inline uint64_t amount_of(uint64_t rest) noexcept nogil:
    return rest >> (TAKER_BITS + TURN_BITS)


cdef inline uint64_t taker_of(uint64_t rest) noexcept nogil:
    return rest >> TURN_BITS & ((1 << TAKER_BITS) - 1)


cdef inline uint64_t turn_of(uint64_t rest) noexcept nogil:
    return rest & ((<uint64_t>1 << TURN_BITS) - 1)


cdef inline Pair place_in(Pair source) noexcept nogil:
    """Position and amount alone, so that two of them can be compared."""
    return pair(source.position, amount_of(source.rest))


# ---------------------------------------------------------------- slots


cdef inline uint64_t kind_of_state(uint64_t state) noexcept nogil:
    return state & ((1 << STATE_BITS) - 1)


cdef inline uint64_t kind_of_slot(OpSlot* slot) noexcept nogil:
    return kind_of_state(load_acquire(&slot.state))  # S


cdef inline void set_state(OpSlot* slot, uint64_t kind) noexcept nogil:
    """Change the kind, for the same operation."""
    cdef uint64_t version = load_relaxed(&slot.state) & ~<uint64_t>((1 << STATE_BITS) - 1)
    store_release(&slot.state, version | kind)  # S


cdef inline void store_pair(PairWord* w, Pair value) noexcept nogil:
    """Store a pair that is not exchanged meanwhile. The rest first: an ORPHAN's turn
    makes a pair of its own at once.
    """
    store_release(&w.rest, value.rest)
    store_release(&w.position, value.position)


cdef inline uint64_t number_of(ControlBlock* control, OpSlot* slot) noexcept nogil:
    return <uint64_t>(slot - control.slots)


cdef inline uint64_t used_slots(ControlBlock* control, uint64_t participant) noexcept nogil:
    return min(load_acquire(&control.participants[participant].used), <uint64_t>SLOTS)


cdef inline bint is_clean(ControlBlock* control, uint64_t participant) noexcept nogil:
    """Whether no op slot of this participant has anything to finish or to take."""
    cdef uint64_t i
    for i in range(used_slots(control, participant)):
        if kind_of_slot(&control.slots[participant * SLOTS + i]) != FREE:
            return False
    return True


cdef inline bint is_of_dead(ControlBlock* control, OpSlot* slot, const bint* dead) noexcept nogil:
    return dead[number_of(control, slot) // SLOTS]


cdef inline bint is_empty_orphan(OpSlot* slot) noexcept nogil:
    return (
        kind_of_slot(slot) == ORPHAN
        and same(place_in(load_pair(&slot.left)), place_in(load_pair(&slot.after)))
    )


# ---------------------------------------------------------------- pushes


cdef inline void begin_push(OpSlot* slot, Pair before, Pair after) noexcept nogil:
    # Release: not before the FREE that ended the push before.
    store_pair(&slot.after, after)
    store_pair(&slot.before, before)
    set_state(slot, PUSHING)


cdef inline bint has_claimed(OpSlot* slot, Pair write, uint64_t most) noexcept nogil:
    """Whether a slot that the index names as the claimer at this `write` says so too,
    and claims no more than `most`.
    """
    cdef uint64_t end = load_acquire(&slot.after.position)
    return (
        kind_of_slot(slot) == PUSHING and same(load_pair(&slot.before), write)
        and write.position < end and end - write.position <= most
    )


cdef inline uint64_t claim_tag(
    ControlBlock* control, OpSlot* slot, uint64_t position
) noexcept nogil:
    """What the index says at `position` while it is claimed and not published. No other
    tag is like it, as no position has that bit.
    """
    return CLAIMED | number_of(control, slot) << POSITION_BITS | position & POSITION_MASK


cdef inline OpSlot* claimer(ControlBlock* control, uint64_t tag, uint64_t position) noexcept nogil:
    """The slot that claimed at `position`, if this tag in its place in the index says
    so; else NULL.
    """
    if tag & CLAIMED == 0 or (tag ^ position) & POSITION_MASK != 0:
        return NULL
    return &control.slots[tag >> POSITION_BITS & (PARTICIPANTS * SLOTS - 1)]


# ---------------------------------------------------------------- takes


cdef inline void prepare_take(
    OpSlot* slot, uint64_t source, Pair before, Pair after
) noexcept nogil:
    cdef uint64_t version = load_relaxed(&slot.state) >> STATE_BITS
    # FREE under a new version first: a late helper of an earlier preparation must not
    # find its own state beside new words.
    version += 1
    store_release(&slot.state, version << STATE_BITS | FREE)
    store_release(&slot.source, source)
    store_pair(&slot.before, before)
    store_pair(&slot.after, after)
    store_release(&slot.state, version << STATE_BITS | PREPARED)  # S


cdef inline void help_taker(ControlBlock* control, uint64_t source, Pair seen) noexcept nogil:
    """Say HELD for the slot that put `seen` into this source word, if it has not said
    so itself.
    """
    cdef uint64_t taker = taker_of(seen.rest), state
    cdef OpSlot* slot
    if taker == NO_TAKER or taker > PARTICIPANTS * SLOTS:
        return
    slot = &control.slots[taker - 1]
    state = load_acquire(&slot.state)  # S
    if (
        kind_of_state(state) == PREPARED and same(load_pair(&slot.after), seen)
        and load_acquire(&slot.source) == source
    ):
        # Fails if it has said so, or has come further.
        cas_total(&slot.state, &state, state & ~<uint64_t>((1 << STATE_BITS) - 1) | HELD)


cdef inline void offer(OpSlot* slot, Pair start) noexcept nogil:
    """Make an ORPHAN of a take, of which all from `start`, a position and an amount, is
    left.
    """
    # Another turn than any before it in this slot, so that no take from this ORPHAN is
    # one that was found in an earlier one.
    cdef uint64_t turn = turn_of(load_relaxed(&slot.left.rest) + 1)
    store_pair(&slot.left, pair(start.position, make_rest(start.rest, NO_TAKER, turn)))
    set_state(slot, ORPHAN)
