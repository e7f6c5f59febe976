"""Checksums that a push left for later: whoever has time writes them, while producers
and consumers go on.

A push that defers writes all of its frame but the checksum; in the trailer's place for
that stands `pending_checksum`, a number that belongs to the position and cannot be had
without the key. What is taken and released before anyone comes by is never hashed. Such
a frame is published like any other; after power loss it is not whole, as any frame with
a wrong checksum.

No lock is taken, and nothing waits:

 1. The hash is that of the frame if `tail` has not passed the frame once it is made: so
    long nothing was written over it, but the marks, which count as zeros. Else it is
    void.
 2. The checksum replaces `pending_checksum` of this position by an exchange. If the
    frame was released since, and its memory claimed, then either the exchange finds
    something else there, and fails; or the checksum is written over as the rest of the
    trailer is. It is right for this frame and for no other, so wherever it stays it
    proves nothing that is not true.

So what a payload holds never stops nor misleads it. But a program that reads the file,
and has a message hold the pending trailer of an older frame at the very place of that,
may find eight bytes of this message of its own replaced, if the frame is released and
written over between the two steps above.
"""

from libc.stdint cimport uint32_t, uint64_t

from ringbuf._core.atomics cimport (
    cas_total, fence_acquire, ignore_races, load_acquire, load_relaxed, word,
)
from ringbuf._messages.frame_checksum cimport (
    TRAILER_BYTES, Trailer, hash_add, hash_end, hash_start, pending_checksum, ringbuf_hash,
)
from ringbuf._messages.frames cimport get_bytes
from ringbuf._messages.positions cimport (
    END_MASK, GRANULE, Frame, Frames, FrameView, frame_at, frame_granules,
)

cdef enum:
    WORDS = 16        # of 32 bits, in a granule
    MARK_WORD = 4     # of a frame: its `mark` …
    FIRST_END = 6     # … and where its ends begin


cdef inline uint64_t write_deferred(Frames* f, uint64_t start, uint64_t end) noexcept nogil:
    """Write what was deferred in the frames from `start` on, a place where a frame
    begins or what lies before `tail`, to `end`; returns where the first frame begins
    that is not done.
    """
    cdef FrameView view
    cdef uint64_t tail
    cdef bint found
    while start < end:
        tail = load_acquire(&f.cursors.tail.position)
        if start < tail:
            start = tail
            continue
        ignore_races(True)
        found = frame_at(f, start, &view)
        if (
            found and view.count > 0
            and frame_granules(f, view.count, view.payload) == view.granules
        ):
            write_deferred_of(f, &view)
        ignore_races(False)
        # Only a frame that is still held was what it seemed.
        fence_acquire()
        if load_relaxed(&f.cursors.tail.position) > start:
            continue
        if not found:
            break  # claimed, and not published yet
        start += view.granules
    return start


cdef inline void write_deferred_of(Frames* f, FrameView* view) noexcept nogil:
    """Write the checksum of this frame, if it was deferred and the frame is still held.
    """
    cdef uint64_t slot = view.position & (f.capacity - 1), checksum
    cdef uint64_t last = (slot + view.granules - 1) & (f.capacity - 1)
    cdef Trailer* trailer = <Trailer*>(f.data + (last + 1) * GRANULE - TRAILER_BYTES)
    cdef word* place = <word*>&trailer.checksum
    cdef uint64_t pending = pending_checksum(f.key, view.position)
    if load_relaxed(place) != pending:
        return
    checksum = checksum_of(f, view)
    # Pairs with T (positions.pxd): who writes over what was read has seen `tail` move.
    fence_acquire()
    if load_relaxed(&f.cursors.tail.position) <= view.position:
        cas_total(place, &pending, checksum)


cdef inline uint64_t checksum_of(Frames* f, FrameView* view) noexcept nogil:
    """The checksum of a frame of which parts may be released, or are just then."""
    cdef uint64_t start = (view.position & (f.capacity - 1)) * GRANULE, done = 0, at, first
    cdef uint64_t whole = f.capacity * GRANULE, last = (view.granules - 1) * GRANULE
    cdef uint64_t marked = sizeof(Frame)
    cdef uint32_t[WORDS] granule
    cdef ringbuf_hash hash
    if view.count > 1:
        marked += view.count * sizeof(uint32_t)
    hash_start(&hash, f.key)
    while done < min(marked, last):
        get_bytes(f, granule, start + done, GRANULE)
        clear_marks(granule, done // sizeof(uint32_t), view.count)
        hash_add(&hash, f.key, <unsigned char*>granule, GRANULE, f.way)
        done += GRANULE
    if done < last:
        # Granules, so no stripe of the hash runs over the end of the memory.
        at = (start + done) & (whole - 1)
        first = min(last - done, whole - at)
        hash_add(&hash, f.key, f.data + at, first, f.way)
        hash_add(&hash, f.key, f.data, last - done - first, f.way)
    get_bytes(f, granule, start + last, GRANULE)
    clear_marks(granule, last // sizeof(uint32_t), view.count)
    (<Trailer*>(<unsigned char*>granule + GRANULE - TRAILER_BYTES)).checksum = 0
    hash_add(&hash, f.key, <unsigned char*>granule, GRANULE, f.way)
    return hash_end(&hash, f.key)


cdef inline void clear_marks(uint32_t* granule, uint64_t first, uint64_t count) noexcept nogil:
    """In a copy of a granule of a frame of `count` messages, `first` words from its
    start on.
    """
    cdef uint64_t i
    if first == 0:
        granule[MARK_WORD] = 0
    if count == 1:
        return
    for i in range(<uint64_t>WORDS):
        if FIRST_END <= first + i < FIRST_END + count:
            granule[i] &= END_MASK
