"""Slots: what everybody who works on a shared ring says that he is about to do, so that others can finish it if he dies.

A slot stands for one operation. It lies in the shared file and is written by its owner alone, but for what is said below. A seat
(see shared_file.py) has SLOTS of them, so a slot is dead when its seat's holder is.

    FREE ──> PUSHING ──────────────> FREE            a push: from before its claim until after its publishing
    FREE ──> PREPARED ──> HELD ────> FREE            a take: from before its exchange until after its release
                            └──> ORPHAN ──> FREE     a take whose process died: what it had not released is taken again

Push. The slot says which `write` it is to replace (`base`) and by how much (`size`); then one exchange in the index, where the
tag will stand, claims: until it is published a claim tag there names the slot. `write` moves after that, by whoever is first. So
who claimed at a position, and how much, is known at every moment, and nobody has to be asked: one who was about to claim there
and was slower is no matter, whether he runs, is stopped or dead. What a dead one had claimed is filled at once; what a
living one has claimed and not published is passed over, and he alone delays the sight of what lies behind it.

Take. Before the exchange of a source word (`read` of the ring, or `before` of an ORPHAN), the slot says what it takes: `before`
and `after`. The exchange puts into the word who took, so that the next one knows whom to ask: he says HELD in the slot for him,
if that is not said yet, before he exchanges the word himself. So a PREPARED slot whose `after` the source word does not show
has not taken anything, and no moment is left at which a kill could leave it open who has what.

`state` holds a version beside its kind. Each preparation has another one, so that who is late with a HELD changes nothing.

Pairs of release and acquire:

    S  store of `state`, after what it speaks of   ->  load of it in `help_taker` and by those who tidy up
    B  exchange of a source word                   ->  load of it by the others: the slot that says so
    C  exchange of a word of the index: a claim    ->  load of it by the others: the slot that it names
"""

from libc.stdint cimport int64_t, uint64_t

from ringbuf._core.atomics cimport cas_total, load_acquire, load_relaxed, store_release, word


cdef enum:
    SEATS = 32
    SLOTS = 64            # of a seat: a word has a bit for each
    NOBODY = 0            # in a source word; who took is the number of the slot + 1, at most SEATS * SLOTS
    WHO_BITS = 12
    TURN_BITS = 8         # below it: tells one ORPHAN in a slot from the next, which could begin at the same place


# Of a claim tag: CLAIMED, the number of the slot, as much of the position as there is room for.
cdef enum:
    POSITION_BITS = 50


cdef extern from *:
    """
    #define RINGBUF_CLAIMED (1ull << 63)
    #define RINGBUF_POSITION_MASK ((1ull << 50) - 1)
    """
    const uint64_t CLAIMED "RINGBUF_CLAIMED"
    const uint64_t POSITION_MASK "RINGBUF_POSITION_MASK"


cdef enum:
    FREE = 0
    PUSHING = 1
    PREPARED = 2
    HELD = 3
    ORPHAN = 4
    STATE_BITS = 3


cdef struct Slot:
    word state            # version << STATE_BITS | kind
    word before           # of a take: the source word that it replaces; of an ORPHAN: what is left begins here
    word after            # … and what it puts there: where the range ends
    word source           # 0: the ring's `read`; n: `before` of slot n - 1
    word base             # of a push: the `write` that is moved by its claim
    word size             # granules or records << 32 | messages
    word pad[2]


# Of a seat; in shared memory.
cdef struct Seat:
    word used             # its slots from this one on have never been used
    word listens          # not 0: its holder's event loop wants to be called when there is something to take (_core/ready_fd.py)
    word pad[6]


# What lies at the start of a shared ring's body.
cdef struct Desk:
    word deaths           # goes up when slots become ORPHAN: who has seen it need not look again
    word pad[7]
    Seat seats[SEATS]
    Slot slots[SEATS * SLOTS]


cdef inline uint64_t kind_of_state(uint64_t state) noexcept nogil:
    return state & ((1 << STATE_BITS) - 1)


cdef inline void set_state(Slot* slot, uint64_t kind) noexcept nogil:
    """Say something else of the same operation."""
    store_release(&slot.state, load_relaxed(&slot.state) & ~<uint64_t>((1 << STATE_BITS) - 1) | kind)  # S


cdef inline void begin_push(Slot* slot, uint64_t size, uint64_t base) noexcept nogil:
    # Release: not before the FREE that ended the push before.
    store_release(&slot.size, size)
    store_release(&slot.base, base)
    set_state(slot, PUSHING)


cdef inline uint64_t claim_tag(Desk* desk, Slot* slot, uint64_t position) noexcept nogil:
    """What the index says at `position` while it is claimed and not published. Like no other tag, as no position has that bit."""
    return CLAIMED | <uint64_t>(slot - desk.slots) << POSITION_BITS | position & POSITION_MASK


cdef inline Slot* claimer(Desk* desk, uint64_t tag, uint64_t position) noexcept nogil:
    """Who claimed at `position`, if this tag in its place in the index says so; else NULL."""
    if tag & CLAIMED == 0 or (tag ^ position) & POSITION_MASK != 0:
        return NULL
    return &desk.slots[tag >> POSITION_BITS & (SEATS * SLOTS - 1)]


cdef inline uint64_t used_slots(Desk* desk, uint64_t seat) noexcept nogil:
    return min(load_acquire(&desk.seats[seat].used), <uint64_t>SLOTS)


cdef inline bint is_clean(Desk* desk, uint64_t seat) noexcept nogil:
    """Whether nothing in the slots of this seat waits for anybody."""
    cdef uint64_t i
    for i in range(used_slots(desk, seat)):
        if kind_of_state(load_acquire(&desk.slots[seat * SLOTS + i].state)) != FREE:
            return False
    return True


cdef inline bint has_claimed(Slot* slot, uint64_t base_bits, uint64_t size, uint64_t most) noexcept nogil:
    """Whether a slot that the index names says so too."""
    return kind_of_state(load_acquire(&slot.state)) == PUSHING and base_bits == 0 and 0 < size <= most


cdef inline bint is_of_dead(Desk* desk, Slot* slot, const bint* dead) noexcept nogil:
    return dead[<uint64_t>(slot - desk.slots) // SLOTS]


cdef inline void prepare_take(Slot* slot, uint64_t source, uint64_t before, uint64_t after) noexcept nogil:
    cdef uint64_t version = load_relaxed(&slot.state) >> STATE_BITS
    # FREE under a new version first: a late helper of an earlier preparation must not find its own state beside new words.
    version += 1
    store_release(&slot.state, version << STATE_BITS | FREE)
    store_release(&slot.source, source)
    store_release(&slot.before, before)
    store_release(&slot.after, after)
    store_release(&slot.state, version << STATE_BITS | PREPARED)  # S


cdef inline void help_taker(Desk* desk, uint64_t source, uint64_t seen) noexcept nogil:
    """Say HELD for whoever put `seen` into this source word, if he has not done so himself."""
    cdef uint64_t who = seen >> TURN_BITS & ((1 << WHO_BITS) - 1), state
    cdef Slot* slot
    if who == NOBODY or who > SEATS * SLOTS:
        return
    slot = &desk.slots[who - 1]
    state = load_acquire(&slot.state)  # S
    if kind_of_state(state) == PREPARED and load_acquire(&slot.after) == seen and load_acquire(&slot.source) == source:
        # Fails if he has said so, or has come further.
        cas_total(&slot.state, &state, state & ~<uint64_t>((1 << STATE_BITS) - 1) | HELD)
