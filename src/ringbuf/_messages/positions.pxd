"""Positions in a control block: how producers claim and publish, and consumers take and
release.

Three positions, each in a cache line of its own because each has its own writers:

    0 ............ tail ............ read ............ write
                   [=== out with ===][== published ===)
                       consumers         and claimed

    tail ≤ read ≤ write ≤ tail + capacity

A span between two values of `write` is a frame. A producer claims one with a single
compare-and-exchange of `write`, fills it, and publishes it by storing its tag in the
index; consumers find frames by their tags and take from `read` by a compare-and-
exchange, over several frames or from the midst of one. What one take got of one frame
is a part. Parts are released in any order: the one at `tail` moves `tail` on, and any
other leaves a mark of its length, which moves `tail` on when it comes there.

The index is a table of its own with one tag for each granule, so that framing never
shares a byte with payload: no payload can be taken for a tag. A tag holds the lap, so
what an earlier lap left behind never matches, and the table is never cleared. A frame
of no messages is a pad: it fills up to the end of the memory, or a hole that a dead
process left, and goes when `read` has passed it.

Progress. Claim, publish, take and release are lock-free: a failed exchange means that
another thread's succeeded, and no operation waits for another. A producer that stalls
between claim and publish delays the sight of what was claimed after its frame, and
nothing else: other producers go on until the ring is full, consumers take all that lies
before it. A consumer that stalls between take and release keeps its parts occupied, and
nothing else. In a ring that processes share the same holds for one that is killed, but
for no longer than it takes the others to notice: see _shared/op_slots.pxd and
recovery.pxd. Each step of a release can be done a second time without harm, so it does
not matter after which of them a process died.

Widths. Positions count granules in 64 bits and sequence numbers messages, both whole; a
position is given out once. `write`, `read` and `tail` each move together with a word
beside them, as a pair (_core/pairs.pxd):

    write    position | sequence number of the next message
    read     position | place in the frame, the slot that took last, turn: see
             _shared/op_slots.pxd
    tail     position | place in the frame

So no value of any of them ever comes again, and an exchange that succeeds proves that
nothing has changed since the load. A ring that goes back to its start uses up a lap for
it; it stops doing so at MOST_POSITION / 2, long before positions could end.

Pairs of release and acquire, each named again where it stands in the code:

    P  publish: store of a tag    ->  load of the tag in `frame_at`: the frame's header
                                      and payload
    R  release: store of a mark   ->  load of it in `free_released`: the reader is done
                                      with the part
    T  advance: change of `tail`  ->  load of `tail` in `claim`: all readers of what is
                                      claimed are done
    B  exchange of `read`         ->  load of it by others (_shared/op_slots.pxd)
    C  shared: exchange of a word of the index  ->  load of it: the slot that claimed
                                      there (_shared/op_slots.pxd)

R and the loads of `tail` and of marks are in one total order as well: of two threads
that release neighbouring parts at the same moment, at least one sees the other's. With
acquire alone each could miss the other's, and the room would be lost for ever.
"""

from libc.stdint cimport uint32_t, uint64_t

from ringbuf._core.atomics cimport (
    ignore_races, load32_relaxed, load32_total, load_acquire, load_relaxed, store32_relaxed,
    store32_total, store_relaxed, store_release, word, word32,
)
from ringbuf._core.eventcount cimport EventCount
from ringbuf._core.pairs cimport Pair, PairWord, cas_pair, is_before, load_pair, pair, same
from ringbuf._messages.frame_checksum cimport TRAILER_BYTES
from ringbuf._shared.op_slots cimport (
    AMOUNT_BITS, FREE, MOST_POSITION, NO_TAKER, OpSlot, amount_of, begin_push, help_taker,
    make_rest, place_in, set_state,
)
from ringbuf._shared.shared_ring cimport SharedRing, claim_at


cdef enum:
    GRANULE = 64             # bytes: a cache line; two producers never write the same one
    # What one claim may be split into when it is read: a place is less, and has
    # AMOUNT_BITS.
    MAX_FRAME_MESSAGES = 1 << AMOUNT_BITS
    # Of a frame of several messages: it stays in the second-level cache from scan to
    # copy, and its ends leave room for marks.
    FRAME_BYTES = 256 * 1024
    # An end, up to FRAME_BYTES; above it, the mark of the part that begins there.
    END_BITS = 19
    END_MASK = (1 << END_BITS) - 1
    MIN_GRANULES = 64        # 4 KiB: one page
    # An empty ring goes back to its start when it has come this far: half of a
    # second-level cache of 2 MiB. Measured in bench/micro: 1.9 times two copies of the
    # same bytes instead of 2.6 for a ring that does not fit the cache.
    REWIND_GRANULES = 16 * 1024  # 1 MiB


cdef extern from *:
    """
    #define RINGBUF_MAX_FIRST_SEQ (1ull << 63)
    #define RINGBUF_MAX_SEQ (3ull << 62)
    #define RINGBUF_MAX_GRANULES (1ull << 30)
    #define RINGBUF_MAX_MESSAGE ((1ull << 32) - 1)
    """
    # Numbers are added and compared as if they had no end. A ring that begins with the
    # largest one would have to push a billion messages a second for 146 years to come
    # to MAX_SEQ: what lies beyond it in a file is damage, and no sum wraps before it.
    const uint64_t MAX_FIRST_SEQ "RINGBUF_MAX_FIRST_SEQ"
    const uint64_t MAX_SEQ "RINGBUF_MAX_SEQ"
    # 64 GiB: as far as the tests go (in files that are mostly holes); a tag would have
    # room for the lengths of a larger one.
    const uint64_t MAX_GRANULES "RINGBUF_MAX_GRANULES"
    # Lengths and ends are uint32.
    const uint64_t MAX_MESSAGE "RINGBUF_MAX_MESSAGE"


cdef struct Cursors:
    PairWord write
    word pad0[6]
    PairWord read
    word pad1[6]
    PairWord tail
    word sequence            # the sequence number at `tail`, or one from shortly before
    # For salvage after power loss; all four in one cache line, and so in one sector,
    # with the tail.
    word mirror              # ~sequence: where the two differ, the lower one is certain
    # Every message with a lower number was on disk before it was released: see
    # MessageRing.note_stored.
    word stored
    word stored_mirror       # ~stored
    word pad2[2]
    EventCount messages      # signalled when something has been published
    EventCount room          # signalled when something has been released


# At the head of each frame, on a granule: written by its producer before it publishes.
# Behind it lie the ends of the messages, uint32 each (left out for a single message),
# and their payloads.
cdef struct Frame:
    word first_seq
    word32 count             # messages; 0: a pad
    word32 payload           # bytes; of a pad: how many sequence numbers it stands for
    # How many messages from number 0 on were released as one part; 0: none yet.
    word32 mark
    uint32_t check           # of a frame with a checksum: over the first three


# A ring of frames. Every handle has a copy: all but what the pointers lead to stays as
# it was made.
cdef struct Frames:
    Cursors* cursors
    word* index
    unsigned char* data
    uint64_t capacity        # granules: a power of two
    SharedRing* shared       # of a ring that processes share; else NULL
    const uint64_t* key      # of a ring with checksums: see frame_checksum.pxd; else NULL
    int way                  # … and how this machine hashes
    word* deferring          # … and whether pushes leave it to others: deferred_checksums.pxd
    int line_way             # how it finds the ends of lines: see newlines.pxd


# A frame as it was found: what its tag and its header said at that moment.
cdef struct FrameView:
    uint64_t position
    uint64_t granules
    uint64_t first_seq
    uint64_t count
    uint64_t payload
    Frame* frame


cdef inline Frame* frame_memory(Frames* f, uint64_t position) noexcept nogil:
    return <Frame*>(f.data + (position & (f.capacity - 1)) * GRANULE)


cdef inline uint64_t frame_granules(Frames* f, uint64_t count, uint64_t payload) noexcept nogil:
    """How many granules a frame takes: `count` messages, `payload` bytes in all."""
    cdef uint64_t size = sizeof(Frame) + (count * sizeof(uint32_t) if count > 1 else 0) + payload
    return (size + (TRAILER_BYTES if f.key != NULL else 0) + GRANULE - 1) // GRANULE


cdef inline uint64_t make_tag(Frames* f, uint64_t position, uint64_t granules) noexcept nogil:
    """Lap and length; the bits of the position below the capacity are free for the
    length.
    """
    return (position & ~(f.capacity - 1)) | (granules - 1)


cdef inline bint frame_at(Frames* f, uint64_t position, FrameView* view) noexcept nogil:
    """Whether a plausible frame is published at `position`; if so `view` shows it.
    There is no other way to a frame.

    Before a take has succeeded it proves no more: the frame can be released, and
    written over, at any moment.
    """
    cdef uint64_t slot = position & (f.capacity - 1)
    cdef uint64_t tag = load_acquire(&f.index[slot])  # P
    if tag & ~(f.capacity - 1) != position - slot:
        return False
    view.position = position
    view.granules = (tag & (f.capacity - 1)) + 1
    view.frame = <Frame*>(f.data + slot * GRANULE)
    view.first_seq = load_relaxed(&view.frame.first_seq)
    view.count = load32_relaxed(&view.frame.count)
    view.payload = load32_relaxed(&view.frame.payload)
    # What it holds lies within it, and it within the memory.
    return view.count == 0 or (
        view.count <= MAX_FRAME_MESSAGES
        and (view.count == 1 or view.payload <= FRAME_BYTES)
        and frame_granules(f, view.count, view.payload) <= view.granules
    )


cdef inline uint64_t next_seq_of_frame(FrameView* view) noexcept nogil:
    return view.first_seq + (view.count if view.count > 0 else view.payload)


cdef inline void place_cursors(Cursors* cursors, uint64_t position, uint64_t first_seq) noexcept:
    """Let an empty ring begin at this position, with this sequence number."""
    store_relaxed(&cursors.tail.position, position)
    store_relaxed(&cursors.tail.rest, 0)
    store_relaxed(&cursors.read.position, position)
    store_relaxed(&cursors.read.rest, 0)
    store_relaxed(&cursors.write.position, position)
    store_relaxed(&cursors.write.rest, first_seq)
    store_relaxed(&cursors.sequence, first_seq)
    store_relaxed(&cursors.mirror, ~first_seq)


cdef inline uint64_t largest_message(Frames* f) noexcept nogil:
    return min(
        f.capacity * GRANULE - sizeof(Frame) - (TRAILER_BYTES if f.key != NULL else 0), MAX_MESSAGE
    )


# ---------------------------------------------------------------- producers


cdef inline bint claim(
    Frames* f, OpSlot* slot, uint64_t granules, uint64_t count, uint64_t* position,
    uint64_t* sequence
) noexcept nogil:
    """Claim a frame of `granules` for `count` messages, or return False: no room. In a
    shared ring `slot` says what is claimed.
    """
    cdef Pair write = load_pair(&f.cursors.write), next
    cdef uint64_t tail
    while True:
        tail = load_acquire(&f.cursors.tail.position)  # T
        # A `write` that is older than `tail` fails the exchange below, which loads the
        # present one.
        if write.position >= tail and write.position - tail + granules > f.capacity:
            if slot != NULL:
                set_state(slot, FREE)
            return False
        next = pair(write.position + granules, write.rest + count)
        # A claim shows nothing to consumers; the frame is published by its tag.
        if slot == NULL:
            if cas_pair(&f.cursors.write, &write, next):
                break
            continue
        begin_push(slot, write, next)
        if claim_at(f.shared, slot, write):
            break
        write = load_pair(&f.cursors.write)
    position[0] = write.position
    sequence[0] = write.rest
    return True


cdef inline uint64_t free_granules(Frames* f) noexcept nogil:
    """How much room there is; while others push or pop, only for a moment."""
    # `write` first: what was claimed then had room, so no more than the capacity is in
    # use, or less than nothing.
    cdef uint64_t write = load_acquire(&f.cursors.write.position)
    cdef uint64_t used = write - load_acquire(&f.cursors.tail.position)
    return f.capacity - used if used <= f.capacity else f.capacity


cdef inline void publish(
    Frames* f, OpSlot* slot, uint64_t position, uint64_t granules
) noexcept nogil:
    store_release(&f.index[position & (f.capacity - 1)], make_tag(f, position, granules))  # P
    if slot != NULL:
        set_state(slot, FREE)


cdef inline void write_pad(
    Frames* f, uint64_t position, uint64_t first_seq, uint64_t numbers
) noexcept nogil:
    cdef Frame* frame = frame_memory(f, position)
    store_relaxed(&frame.first_seq, first_seq)
    store32_relaxed(&frame.count, 0)
    store32_relaxed(&frame.payload, <uint32_t>numbers)


# ---------------------------------------------------------------- consumers


cdef inline word32* end_word(Frames* f, FrameView* view, uint64_t place) noexcept nogil:
    """Of a frame of several messages: the end of message number `place`, below the mark
    of a part that begins there.
    """
    cdef uint64_t at = (view.position & (f.capacity - 1)) * GRANULE + sizeof(Frame)
    at += place * sizeof(uint32_t)
    return <word32*>(f.data + (at & (f.capacity * GRANULE - 1)))


cdef inline uint64_t end_of(Frames* f, FrameView* view, uint64_t place) noexcept nogil:
    """Where a message of the frame ends, counted from the start of its payloads;
    `place` is less than its count.
    """
    if view.count == 1:
        return view.payload
    return load32_relaxed(end_word(f, view, place)) & END_MASK


cdef inline uint64_t read_mark(Frames* f, FrameView* view, uint64_t place) noexcept nogil:
    """The length of the released part that begins there; 0: it is not released."""
    if place == 0:
        return load32_total(&view.frame.mark)  # R
    return load32_total(end_word(f, view, place)) >> END_BITS  # R


cdef inline void release_part(
    Frames* f, FrameView* view, uint64_t place, uint64_t count
) noexcept nogil:
    """Free a part of a frame. Parts may come in any order, and a second time does no
    harm while what follows is not released.
    """
    cdef word32* end
    if same(load_pair(&f.cursors.tail), pair(view.position, place)):
        # No other thread moves `tail` from here: no mark says that it may.
        step_tail(f, view, place, count)
    elif place == 0:
        store32_total(&view.frame.mark, <uint32_t>count)  # R
    else:
        end = end_word(f, view, place)
        store32_total(end, load32_relaxed(end) | <uint32_t>(count << END_BITS))  # R


cdef inline bint step_tail(
    Frames* f, FrameView* view, uint64_t place, uint64_t count
) noexcept nogil:
    """Move `tail` over the part that begins there; False: another thread has."""
    cdef Pair tail = pair(view.position, place), next = pair(view.position + view.granules, 0)
    cdef uint64_t sequence = next_seq_of_frame(view)
    if place + count < view.count:
        next = pair(view.position, place + count)
        sequence = view.first_seq + place + count
    if not cas_pair(&f.cursors.tail, &tail, next):  # T
        return False
    # Of two threads that come here at once, the first may be the last to store: so both
    # words may be from shortly before, or differ.
    store_relaxed(&f.cursors.sequence, sequence)
    store_relaxed(&f.cursors.mirror, ~sequence)
    return True


cdef inline void advance_tail(Frames* f) noexcept nogil:
    """Free the released parts at `tail`. Every release calls it.

    Another thread that moves `tail` lets producers write over what is read here: it is
    void unless the exchange succeeds.
    """
    ignore_races(True)
    free_released(f)
    ignore_races(False)


cdef inline void free_released(Frames* f) noexcept nogil:
    cdef FrameView view
    cdef Pair tail
    cdef uint64_t count
    while True:
        tail = load_pair(&f.cursors.tail)
        # What has not been taken is not free, whatever stands there.
        if (
            is_before(tail, place_in(load_pair(&f.cursors.read)))
            and frame_at(f, tail.position, &view)
        ):
            if view.count == 0:
                step_tail(f, &view, 0, 0)
                continue
            if tail.rest < view.count:
                count = read_mark(f, &view, tail.rest)
                if count > 0:
                    step_tail(f, &view, tail.rest, count)
                    continue
        # Nothing more to free, unless `tail` has moved and all that was read above is
        # void.
        if same(load_pair(&f.cursors.tail), tail):
            return


cdef inline void rewind(Frames* f, OpSlot* slot, uint64_t beyond) noexcept nogil:
    """Send an empty ring back to the start of its memory, if it has come further than
    `beyond` granules.

    A ring whose consumers keep up then lives in as much memory as it needs, which stays
    in the cache and, the first time round, need not be touched. It is done by a pad up
    to the end: claimed, published and passed like any other.
    """
    cdef Pair write = load_pair(&f.cursors.write), seen = write, next
    cdef uint64_t offset = write.position & (f.capacity - 1), granules = f.capacity - offset
    if offset <= beyond or write.position != load_acquire(&f.cursors.tail.position):
        return
    if write.position > MOST_POSITION >> 1:
        return
    next = pair(write.position + granules, write.rest)
    # Either fails if something was pushed since: then the ring is not empty.
    if slot == NULL:
        if not cas_pair(&f.cursors.write, &seen, next):
            return
    else:
        begin_push(slot, write, next)
        if not claim_at(f.shared, slot, write):
            set_state(slot, FREE)
            return
    write_pad(f, write.position, write.rest, 0)
    publish(f, slot, write.position, granules)
    # At once, unless a consumer was faster and has passed it itself.
    pass_pads(f)


cdef inline bint pass_pads(Frames* f) noexcept nogil:
    """Pass the pads that are next to be read: of a rewind, or of what dead participants
    had claimed; returns whether room came free.

    A take passes them on its way to a message; where they fill all the ring no message
    can ever come, unless a producer does it.
    """
    cdef FrameView view
    cdef Pair read = load_pair(&f.cursors.read), next
    cdef uint64_t tail = load_acquire(&f.cursors.tail.position)
    ignore_races(True)  # void, as in `advance_tail`, unless the exchange succeeds
    while (
        amount_of(read.rest) == 0 and read.position < load_acquire(&f.cursors.write.position)
        and frame_at(f, read.position, &view) and view.count == 0
    ):
        if f.shared != NULL:
            help_taker(f.shared.control, 0, read)
        next = pair(read.position + view.granules, make_rest(0, NO_TAKER, 0))
        if cas_pair(&f.cursors.read, &read, next):  # B
            read = load_pair(&f.cursors.read)
    ignore_races(False)
    advance_tail(f)
    return load_acquire(&f.cursors.tail.position) != tail


# ---------------------------------------------------------------- counts


cdef inline uint64_t next_number(Frames* f) noexcept nogil:
    return load_pair(&f.cursors.write).rest


cdef inline uint64_t count_waiting(Frames* f) noexcept nogil:
    """Messages from `read` on; behind a claim that is not published yet, none."""
    cdef FrameView view
    cdef Pair read
    cdef uint64_t position, first, next
    while True:
        read = load_pair(&f.cursors.read)
        position = read.position
        ignore_races(True)
        first = next = 0
        while position < load_acquire(&f.cursors.write.position) and frame_at(f, position, &view):
            if view.count > 0:
                first = view.first_seq + amount_of(read.rest)
                next = next_number(f)
                break
            position += view.granules
        ignore_races(False)
        # Where nothing was taken meanwhile, nothing was written over what was read.
        if same(load_pair(&f.cursors.read), read):
            return next - first


cdef inline uint64_t count_published(Frames* f) noexcept nogil:
    """Messages in the published frames from `read` on."""
    cdef FrameView view
    cdef Pair read
    cdef uint64_t position, count
    while True:
        read = load_pair(&f.cursors.read)
        position = read.position
        ignore_races(True)
        count = 0
        while position < load_acquire(&f.cursors.write.position) and frame_at(f, position, &view):
            count += view.count
            position += view.granules
        ignore_races(False)
        if same(load_pair(&f.cursors.read), read):
            return count - (amount_of(read.rest) if count > 0 else 0)
