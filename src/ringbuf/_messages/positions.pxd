"""Positions in a control block: how producers claim and publish, and consumers take and release.

Three positions, each in a cache line of its own because each has its own crowd of writers:

    0 ............ tail ............ read ............ write           tail ≤ read ≤ write ≤ tail + capacity
                   [=== out with ===][== published ===)
                       consumers         and claimed

A span between two values of `write` is a frame. A producer claims one with a single compare-and-exchange of `write`, fills it,
and publishes it by storing its tag in the index; consumers find frames by their tags and take from `read` by a compare-and-
exchange, over several frames or from the midst of one. What one take got of one frame is a part. Parts are released in any
order: the one at `tail` moves `tail` on, and any other leaves a mark of its length for whoever brings `tail` there.

The index is a table of its own with one tag for each granule, so that framing never shares a byte with payload: no payload can
be taken for a tag. A tag holds the lap, so what an earlier lap left behind never matches, and the table is never cleared.
A frame of no messages is a pad: it fills up to the end of the memory, or a hole that a dead process left, and goes when
`read` has passed it.

Progress. Claim, publish, take and release are lock-free: a failed exchange means that another thread's succeeded, and no
operation waits for another. A producer that stalls between claim and publish delays the sight of what was claimed after
its frame, and nothing else: other producers go on until the ring is full, consumers take all that lies before it. A consumer
that stalls between take and release keeps its parts occupied, and nothing else. In a ring that processes share the same
holds for one that is killed, but for no longer than it takes the others to notice: see _shared/op_slots.pxd and recovery.pxd.
Each step of a release can be done a second time without harm, so it does not matter after which of them a process died.

Widths. Positions count granules; `tail` holds one whole, beside the place in its frame. `write` joins the low half of a
position with that of a sequence number, since both must move in one exchange, and `read` the low half of a position with a
place and with who took last; the full value is the one nearest to `tail`, which is never further away than the capacity. An
exchange could be fooled only if a thread slept in mid-claim while exactly a multiple of 2**32 granules and of 2**32 messages
went by.

Pairs of release and acquire, each named again where it stands in the code:

    P  publish: store of a tag                ->  load of the tag in `peek_frame`: header and payload of the frame
    R  release: store of a mark               ->  load of it in `advance_tail`: the reader is done with the part
    T  advance: change of `tail`              ->  load of `tail` in `claim`: all readers of what is claimed are done
    B  exchange of `read`                     ->  load of it by those who tidy up (_shared/op_slots.pxd)
    C  shared: exchange of a word of the index  ->  load of it: who claimed there (_shared/op_slots.pxd)

R and the loads of `tail` and of marks are in one total order as well: of two threads that release neighbouring parts at the
same moment, at least one sees the other's. With acquire alone each could miss the other's, and the room would be lost for ever.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from ringbuf._core.atomics cimport (
    cas_acq_rel, cas_total, load32_relaxed, load32_total, load_acquire, load_relaxed, load_total, store32_total, store_relaxed,
    store_release, store_total, word, word32,
)
from ringbuf._core.eventcount cimport Bell
from ringbuf._shared.op_slots cimport (
    FREE, NOBODY, TURN_BITS, WHO_BITS, Desk, Slot, begin_push, claim_tag, claimer, help_taker, set_state,
)


cdef enum:
    GRANULE = 64             # bytes: a cache line, so that two producers never write the same one
    # What one claim may be split into when it is read: the width of a place.
    PLACE_BITS = 12
    MAX_FRAME_MESSAGES = 4096
    # Of a frame of several messages: it stays in the second-level cache from scan to copy, and its ends leave room for marks.
    FRAME_BYTES = 256 * 1024
    END_BITS = 19            # an end, up to FRAME_BYTES; above it, the mark of the part that begins there


cdef struct Cursors:
    word write               # low half of the position << 32 | low half of the next sequence number
    word pad0[7]
    word read                # low half of the position << 32 | place << 20 | who took last << 8 | turn: see _shared/op_slots.pxd
    word pad1[7]
    word tail                # position << PLACE_BITS | place
    word sequence            # the sequence number at `tail`, or one from shortly before: `write` is extended from it
    # For who finds the file after power loss; all three in one cache line, and so in one sector, with what they belong to.
    word mirror              # ~sequence: where the two differ, the lower one is certain
    word stored              # every lower number was put on disk before it was released here: see MessageRing.note_stored
    word stored_mirror       # ~stored
    word pad2[3]
    Bell messages            # rung when something has been published
    Bell room                # rung when something has been released


# At the head of each frame, on a granule: written by its producer before it publishes. Behind it lie the ends of the messages,
# uint32 each (left out for a single message), and their payloads.
cdef struct Frame:
    uint64_t first_seq
    uint32_t count           # messages; 0: a pad
    uint32_t payload         # bytes; of a pad: how many sequence numbers it stands for
    word32 mark              # how many messages from number 0 on were released as one part; 0: none yet
    uint32_t check           # of a sealed frame: over the first three


# A ring of frames. Every handle has a copy: all but what the pointers lead to stays as it was made.
cdef struct Frames:
    Cursors* cursors
    word* index
    unsigned char* data
    uint64_t capacity        # granules: a power of two
    Desk* desk               # of a ring that processes share; else NULL
    const uint64_t* key      # of a ring with sealed frames: see frame_checksum.pxd; else NULL
    int way                  # … and how this machine hashes


# A frame as a consumer finds it.
cdef struct FrameView:
    uint64_t position
    uint64_t granules
    Frame* frame


cdef inline uint64_t nearest32(uint64_t low, uint64_t near) noexcept nogil:
    """The value with these low 32 bits that is nearest to `near`."""
    return near + <uint64_t><int64_t><int32_t><uint32_t>(low - near)


cdef inline uint64_t make_read(uint64_t position, uint64_t place, uint64_t who, uint64_t turn) noexcept nogil:
    return position << 32 | place << (WHO_BITS + TURN_BITS) | who << TURN_BITS | turn


cdef inline uint64_t place_of(uint64_t read) noexcept nogil:
    return read >> (WHO_BITS + TURN_BITS) & ((1 << PLACE_BITS) - 1)


cdef inline uint64_t tail_position(Frames* f) noexcept nogil:
    return load_acquire(&f.cursors.tail) >> PLACE_BITS  # T


cdef inline uint64_t make_tag(Frames* f, uint64_t position, uint64_t granules) noexcept nogil:
    """Lap and length; the bits of the position below the capacity are free for the length."""
    return (position & ~(f.capacity - 1)) | (granules - 1)


# ---------------------------------------------------------------- producers


cdef inline bint claim(
    Frames* f, Slot* slot, uint64_t granules, uint64_t count, uint64_t* position, uint64_t* sequence
) noexcept nogil:
    """Claim a frame of `granules` for `count` messages, or return False: no room. `slot` speaks of it in a shared ring."""
    cdef Cursors* c = f.cursors
    cdef uint64_t write = load_acquire(&c.write), tail, at
    if slot != NULL:
        begin_push(slot, granules << 32 | count, write)
    while True:
        tail = tail_position(f)
        at = nearest32(write >> 32, tail)
        # A `write` that is older than `tail` fails the exchange below, which fetches the present one.
        if <int64_t>(at - tail) >= 0 and at - tail + granules > f.capacity:
            if slot != NULL:
                set_state(slot, FREE)
            return False
        # A claim shows nothing to anybody; the frame is published by its tag.
        if slot == NULL:
            if not cas_acq_rel(&c.write, &write, ((write >> 32) + granules) << 32 | <uint64_t><uint32_t>(write + count)):
                continue
        elif not shared_claim(f, slot, write, at):
            write = load_acquire(&c.write)
            store_release(&slot.base, write)
            continue
        position[0] = at
        sequence[0] = nearest32(<uint64_t><uint32_t>write, load_relaxed(&c.sequence))
        return True


cdef inline bint shared_claim(Frames* f, Slot* slot, uint64_t write, uint64_t position) noexcept nogil:
    """Claim what the slot says at `write`, where this position is; False: somebody else has, and `write` is another by now."""
    cdef word* index = &f.index[position & (f.capacity - 1)]
    cdef uint64_t tag = load_acquire(index)  # C
    cdef Slot* other = claimer(f.desk, tag, position)
    # What was published there is not to be written over: but `write` had moved before that.
    if other == NULL and load_acquire(&f.cursors.write) == write:
        if cas_total(index, &tag, claim_tag(f.desk, slot, position)):  # C
            move_write(f, slot, write)
            return True
        other = claimer(f.desk, tag, position)
    if other != NULL:
        move_write(f, other, write)
    return False


cdef inline void move_write(Frames* f, Slot* slot, uint64_t write) noexcept nogil:
    """Move `write` on for one who claimed there, unless it has moved."""
    cdef uint64_t size = load_acquire(&slot.size)
    # If he has gone on to another push, `write` moved before that.
    if load_acquire(&slot.base) == write:
        cas_total(&f.cursors.write, &write, ((write >> 32) + (size >> 32)) << 32 | <uint64_t><uint32_t>(write + size))


cdef inline uint64_t free_granules(Frames* f) noexcept nogil:
    cdef uint64_t write = load_relaxed(&f.cursors.write), tail = tail_position(f)
    cdef uint64_t at = nearest32(write >> 32, tail)
    return f.capacity - (at - tail) if <int64_t>(at - tail) >= 0 else f.capacity


cdef inline void publish(Frames* f, Slot* slot, uint64_t position, uint64_t granules) noexcept nogil:
    store_release(&f.index[position & (f.capacity - 1)], make_tag(f, position, granules))  # P
    if slot != NULL:
        set_state(slot, FREE)


cdef inline void write_pad(Frames* f, uint64_t position, uint64_t first_seq, uint64_t numbers) noexcept nogil:
    cdef Frame* frame = <Frame*>(f.data + (position & (f.capacity - 1)) * GRANULE)
    frame.first_seq = first_seq
    frame.count = 0
    frame.payload = <uint32_t>numbers


# ---------------------------------------------------------------- consumers


cdef inline bint peek_frame(Frames* f, uint64_t position, FrameView* view) noexcept nogil:
    """Whether a frame is published at `position`; if so `view` shows it."""
    cdef uint64_t slot = position & (f.capacity - 1)
    cdef uint64_t tag = load_acquire(&f.index[slot])  # P
    if tag & ~(f.capacity - 1) != position & ~(f.capacity - 1):
        return False
    view.position = position
    view.granules = (tag & (f.capacity - 1)) + 1
    view.frame = <Frame*>(f.data + slot * GRANULE)
    return True


cdef inline word32* mark_of(Frames* f, FrameView* view, uint64_t place) noexcept nogil:
    """Where the part that begins with this message is marked, and below the mark, but for the first, where it ends."""
    cdef uint64_t at
    if place == 0:
        return &view.frame.mark
    at = (view.position & (f.capacity - 1)) * GRANULE + sizeof(Frame) + place * sizeof(uint32_t)
    return <word32*>(f.data + (at & (f.capacity * GRANULE - 1)))


cdef inline uint64_t read_mark(Frames* f, FrameView* view, uint64_t place) noexcept nogil:
    """The length of the released part that begins there; 0: it is not released."""
    cdef uint32_t mark = load32_total(mark_of(f, view, place))  # R
    return mark if place == 0 else mark >> END_BITS


cdef inline void release_part(Frames* f, FrameView* view, uint64_t place, uint64_t count) noexcept nogil:
    """Free a part of a frame. Any order will do, and a second time does no harm while what follows it is not released."""
    cdef uint64_t part = view.position << PLACE_BITS | place
    cdef word32* mark
    if load_acquire(&f.cursors.tail) == part:
        # Nobody else moves `tail` from here, as no mark says that they may.
        step_tail(f, view, place, count, part)
        return
    mark = mark_of(f, view, place)
    if place == 0:
        store32_total(mark, <uint32_t>count)  # R
    else:
        store32_total(mark, load32_relaxed(mark) | <uint32_t>(count << END_BITS))  # R


cdef inline bint step_tail(Frames* f, FrameView* view, uint64_t place, uint64_t count, uint64_t tail) noexcept nogil:
    """Move `tail` over a part that it stands before; False: somebody else has."""
    cdef uint64_t next, sequence
    if place + count < view.frame.count:
        next = view.position << PLACE_BITS | (place + count)
    else:
        next = (view.position + view.granules) << PLACE_BITS
    sequence = view.frame.first_seq + (place + count if view.frame.count > 0 else view.frame.payload)
    if not cas_total(&f.cursors.tail, &tail, next):  # T
        return False
    # Of two who come here at once, the first may be the last to store: so both words may be from shortly before, or differ.
    store_relaxed(&f.cursors.sequence, sequence)
    store_relaxed(&f.cursors.mirror, ~sequence)
    return True


cdef inline void advance_tail(Frames* f) noexcept nogil:
    """Free what at `tail` nobody needs any more. Called by everyone who released something."""
    cdef FrameView view
    cdef uint64_t tail, position, place, count
    while True:
        tail = load_total(&f.cursors.tail)
        position = tail >> PLACE_BITS
        place = tail & ((1 << PLACE_BITS) - 1)
        if peek_frame(f, position, &view):
            if view.frame.count == 0:
                if nearest32(load_acquire(&f.cursors.read) >> 32, position) != position:
                    step_tail(f, &view, 0, 0, tail)
                    continue
            else:
                count = read_mark(f, &view, place)
                if count > 0:
                    step_tail(f, &view, place, count, tail)
                    continue
        # Nothing more to free, unless `tail` has moved and all that was read above is void.
        if load_total(&f.cursors.tail) == tail:
            return


cdef inline void rewind(Frames* f, Slot* slot, uint64_t beyond) noexcept nogil:
    """Send an empty ring back to the start of its memory, if it has come further than `beyond` granules.

    A ring whose consumers keep up then lives in as much memory as it needs, which stays in the cache and, the first time
    round, need not be touched. It is done by a pad up to the end: claimed, published and passed like any other.
    """
    cdef uint64_t write = load_acquire(&f.cursors.write), tail = load_acquire(&f.cursors.tail), read
    cdef uint64_t position = tail >> PLACE_BITS, offset = position & (f.capacity - 1), granules = f.capacity - offset
    if <uint32_t>(write >> 32) != <uint32_t>position or offset <= beyond:
        return
    if slot != NULL:
        begin_push(slot, granules << 32, write)
    # Fails if anyone has pushed since: then it is not empty.
    if slot == NULL:
        if not cas_total(&f.cursors.write, &write, ((write >> 32) + granules) << 32 | <uint64_t><uint32_t>write):
            return
    elif not shared_claim(f, slot, write, position):
        set_state(slot, FREE)
        return
    write_pad(f, position, nearest32(<uint64_t><uint32_t>write, load_relaxed(&f.cursors.sequence)), 0)
    publish(f, slot, position, granules)
    # Pass it at once. Should a consumer be faster, it has passed it itself.
    read = load_acquire(&f.cursors.read)
    if <uint32_t>(read >> 32) == <uint32_t>position and place_of(read) == 0:
        if f.desk != NULL:
            help_taker(f.desk, 0, read)
        cas_acq_rel(&f.cursors.read, &read, make_read(position + granules, 0, NOBODY, 0))  # B
    advance_tail(f)
