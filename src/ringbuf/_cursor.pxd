"""Positions in a control block: how producers claim, publish, and consumers take and release.

Three positions, each in a cache line of its own because each has its own crowd of writers:

    0 ............ tail ............ read ............ write           tail ≤ read ≤ write ≤ tail + capacity
                   [== being read ==][== published ===)
                                           and claimed

A span between two positions is a frame. A producer claims one with a single compare-and-exchange of `write`, fills it, and
publishes it by storing its tag in the index; consumers find frames by their tags, take from `read` by a compare-and-exchange,
and count down what is left of a frame as they release. Whoever brings the frame at `tail` to nothing moves `tail` on.

The index is a table of its own with one tag for each granule, so that framing never shares a byte with payload: no payload can
be taken for a tag. A tag holds the lap, so what an earlier lap left behind never matches, and the table is never cleared.

Progress. Claim, publish, take and release are lock-free: a failed exchange means that another thread's succeeded, and no
operation waits for another. A producer that stalls between claim and publish delays the sight of what was claimed after
its frame, and nothing else: other producers go on until the ring is full, consumers take all that lies before it. A consumer
that stalls between take and release keeps its frames occupied, and nothing else.

Widths. Positions count granules and are 64 bits wide. `write` joins the low halves of a position and of a sequence number in
one word, since both must move in one exchange, and `read` joins a position with a place in its frame; the full value is the
one nearest to `tail`, which is never further away than the capacity. An exchange could be fooled only if a thread slept
in mid-claim while exactly a multiple of 2**32 granules and of 2**32 messages went by.

Pairs of release and acquire, each named again where it stands in the code:

    P  publish: store of a tag                ->  load of the tag in `peek_frame`: header and payload of the frame
    R  release: count-down of `remaining`     ->  load of it in `advance_tail`: the reader is done with the frame
    T  advance: exchange of `tail`            ->  load of `tail` in `claim`: all readers of what is claimed are done
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from ringbuf._atomics cimport (
    cas_acq_rel, cas_relaxed, load_acquire, load_relaxed, load_total, fetch_sub_total, store_relaxed, store_release, word,
)


# What one claim may be split into when it is read: the width of the place in `read`.
cdef enum:
    PLACE_BITS = 14
    MAX_FRAME_MESSAGES = 4096


cdef struct Cursors:
    word write            # low half of the position << 32 | low half of the next sequence number
    word pad0[7]
    word read             # position << PLACE_BITS | place in the frame there
    word taken            # messages taken so far: for len(), moved right after `read`
    word pad1[6]
    word tail             # the position, whole
    word sequence         # the sequence number at `tail`, or one from shortly before: `write` is extended from it
    word pad2[6]


# At the head of each frame, on a granule: written by its producer before it publishes.
cdef struct Frame:
    uint64_t first_seq
    uint32_t count        # messages; 0 in a frame that only pads
    uint32_t payload      # bytes
    word remaining        # messages not yet released


# A frame as a consumer finds it.
cdef struct FrameView:
    uint64_t position
    uint64_t granules
    Frame* frame


cdef inline uint64_t nearest32(uint64_t low, uint64_t near) noexcept nogil:
    """The value with these low 32 bits that is nearest to `near`."""
    return near + <uint64_t><int64_t><int32_t><uint32_t>(low - near)


cdef inline uint64_t nearest50(uint64_t low, uint64_t near) noexcept nogil:
    """The value with these low 64 - PLACE_BITS bits that is nearest to `near`."""
    return near + <uint64_t>(<int64_t>((low - near) << PLACE_BITS) >> PLACE_BITS)


cdef inline uint64_t make_tag(uint64_t position, uint64_t granules, uint64_t capacity) noexcept nogil:
    """Lap and length; capacity is a power of two, so the bits below it are free for the length."""
    return (position & ~(capacity - 1)) | (granules - 1)


cdef inline bint claim(
    Cursors* c, uint64_t capacity, uint64_t granules, uint64_t count, uint64_t* position, uint64_t* sequence
) noexcept nogil:
    """Claim a frame of `granules` for `count` messages, or return False: no room."""
    cdef uint64_t write = load_relaxed(&c.write), tail, at
    while True:
        tail = load_acquire(&c.tail)  # T
        at = nearest32(write >> 32, tail)
        # A `write` that is older than `tail` fails the exchange below, which fetches the present one.
        if <int64_t>(at - tail) >= 0 and at - tail + granules > capacity:
            return False
        # Relaxed: a claim shows nothing to anybody; the frame is published by its tag.
        if cas_relaxed(
            &c.write, &write,
            ((write >> 32) + granules) << 32 | <uint64_t><uint32_t>(write + count)
        ):
            position[0] = at
            sequence[0] = nearest32(<uint64_t><uint32_t>write, load_relaxed(&c.sequence))
            return True


cdef inline uint64_t free_granules(Cursors* c, uint64_t capacity) noexcept nogil:
    cdef uint64_t write = load_relaxed(&c.write)
    cdef uint64_t tail = load_acquire(&c.tail)  # T
    cdef uint64_t at = nearest32(write >> 32, tail)
    return capacity - (at - tail) if <int64_t>(at - tail) >= 0 else capacity


cdef inline void publish(word* index, uint64_t capacity, uint64_t position, uint64_t granules) noexcept nogil:
    store_release(&index[position & (capacity - 1)], make_tag(position, granules, capacity))  # P


cdef inline bint peek_frame(
    word* index, unsigned char* data, uint64_t capacity, uint64_t position, FrameView* view
) noexcept nogil:
    """Whether a frame is published at `position`; if so `view` shows it."""
    cdef uint64_t slot = position & (capacity - 1)
    cdef uint64_t tag = load_acquire(&index[slot])  # P
    if tag & ~(capacity - 1) != position & ~(capacity - 1):
        return False
    view.position = position
    view.granules = (tag & (capacity - 1)) + 1
    view.frame = <Frame*>(data + slot * 64)
    return True


cdef inline void advance_tail(Cursors* c, word* index, unsigned char* data, uint64_t capacity) noexcept nogil:
    """Free the frames at `tail` that nobody needs any more. Called by everyone who released something."""
    cdef FrameView view
    cdef uint64_t tail = load_acquire(&c.tail), seen, sequence
    while True:
        if not peek_frame(index, data, capacity, tail, &view):
            # Nothing published there: all is free, or `tail` has moved and another lap's frame begins elsewhere.
            seen = load_acquire(&c.tail)
            if seen == tail:
                return
            tail = seen
            continue
        # A frame that only pads holds nothing, and goes when `read` has passed it.
        if view.frame.count == 0 and nearest50(load_acquire(&c.read) >> PLACE_BITS, tail) == tail:
            return
        # R, and in one total order with the count-downs: of two threads that finish neighbouring frames at the same moment,
        # at least one sees both finished. With acquire alone each could miss the other's, and the room would be lost
        # until the next release.
        if load_total(&view.frame.remaining) != 0:
            seen = load_acquire(&c.tail)
            if seen == tail:
                return
            tail = seen
            continue
        sequence = view.frame.first_seq + view.frame.count
        if cas_acq_rel(&c.tail, &tail, tail + view.granules):  # T
            store_relaxed(&c.sequence, sequence)
            tail = tail + view.granules


cdef inline void rewind(Cursors* c, word* index, unsigned char* data, uint64_t capacity, uint64_t beyond) noexcept nogil:
    """Send an empty ring back to the start of its memory, if it has come further than `beyond` granules.

    A ring whose consumers keep up then lives in as much memory as it needs, which stays in the cache and, the first time
    round, need not be touched. It is done by a frame that pads to the end: claimed, published and taken like any other.
    """
    cdef uint64_t write = load_relaxed(&c.write)
    cdef uint64_t tail = load_acquire(&c.tail)
    cdef uint64_t offset = tail & (capacity - 1), read
    cdef Frame* frame
    if <uint32_t>(write >> 32) != <uint32_t>tail or offset <= beyond:
        return
    # Fails if anyone has pushed since: then it is not empty.
    if not cas_relaxed(&c.write, &write, ((write >> 32) + capacity - offset) << 32 | <uint64_t><uint32_t>write):
        return
    frame = <Frame*>(data + offset * 64)
    frame.first_seq = nearest32(<uint64_t><uint32_t>write, load_relaxed(&c.sequence))
    frame.count = 0
    frame.payload = 0
    store_relaxed(&frame.remaining, 0)
    publish(index, capacity, tail, capacity - offset)
    # Pass it at once. Should a consumer be faster, it has passed it itself.
    read = tail << PLACE_BITS
    cas_relaxed(&c.read, &read, (tail + capacity - offset) << PLACE_BITS)
    advance_tail(c, index, data, capacity)
