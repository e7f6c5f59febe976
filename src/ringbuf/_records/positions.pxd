"""Runs of records of one size: how producers claim and publish, and consumers take,
release and give back.

Three positions, each in a cache line of its own because each has its own writers:

    0 ............ tail ............ read ............ write
                   [=== out with ===][== published ===)
                       consumers         and claimed

    tail ≤ read ≤ write ≤ tail + capacity

Positions count records; record p lies in slot p & mask. What one push claims is a run:
one exchange of `write`, a copy, and one tag in the index, at the run's first slot,
whatever its length. Consumers find runs by their tags, and take from `read` by one
exchange as many records as they want, over several runs or from the midst of one. What
one take got is a range. Ranges are released in any order: the one at `tail` moves
`tail` on, and any other leaves a tag that moves `tail` on when it comes there.

    tag = kind (3 bits), length - 1 (as many bits as the capacity has), lap (the rest)

    PUBLISHED  a run that can be read
    VOID       a run that holds nothing
    HELD       the same, while there is still a view of it
    RELEASED   a range that its consumer is done with
    RETURNED   a range that its consumer gave back: it will be taken again

A tag holds the lap, so what an earlier lap left behind never matches, and memory full
of zeros holds no tag at all: nothing is ever cleared. Payload lies elsewhere and cannot
be taken for a tag. One index serves both sides: when a range is released or given back,
its first slot has been taken, and no consumer needs a PUBLISHED there any more.

Progress. Every operation is lock-free: a failed exchange means that another thread's
succeeded, and none waits for another. A producer that stalls between claim and publish
delays the sight of what was claimed after its run, and nothing else. A consumer that
stalls between take and release keeps its range occupied, and nothing else. A producer
that gives up publishes its run as VOID, and consumers, or producers that lack room,
pass over it.

A HELD run is free when a consumer has passed it and its view has gone: each of the two
leaves it by `leave`, and the second one frees it. So a view that outlives its block
delays no operation, and can never show or change other records.

Scaling. Without a GIL, producers of one ring share the line of `write`, which goes from
processor to processor with each claim, and that takes as long as pushing a record does:
so records pushed one at a time hardly go in faster by two producers than by one; in
batches, or into a ring each, they do (bench/micro/test_ring_buffer.py). Handing out
slots ahead, a run for each handle, would spare the exchange, but a handle that then
pauses would hide what all the others have pushed behind its run.

Widths. Positions are whole, 64 bits, and given out once. `read` is a pair
(_core/pairs.pxd) of a position and the number of records known to be published from
there on, since both must move in one exchange; no value of it ever comes again. A ring
that goes back to its start uses up a lap for it; it stops doing so at MOST_POSITION /
2, long before positions could end.

Alone. While the GIL is held no other thread of this process is between two lines here.
A ring that no other process shares then needs no exchange: to compare and to store does
(measured: 3 ns less for each). On a build without a GIL a ring is never alone.

Pairs of release and acquire, each named again where it stands in the code:

    P  publish: store of a tag    ->  load of the tag in `published`: the records of the
                                      run
    M  take: exchange of `read`   ->  load of `read` in `take`: the same, for one that
                                      goes on in the midst of a run
    R  release: store of a tag    ->  load of the tag in `advance`: the reader is done
                                      with the range
    T  advance: change of `tail`  ->  load of `tail` in `room`: all readers of what is
                                      claimed are done
    S  room: store of `seen`      ->  load of it in `room`: the same, for the next claim
                                      by this handle
    G  give back: store of a tag  ->  load of the tag in `retake`: as M, for what comes
                                      a second time

R and the loads of `tail` and of tags by a release are in one total order as well: of
two threads that release neighbouring ranges at the same moment, at least one sees the
other's. With acquire alone each could miss the other's, and the room would be lost for
ever.
"""

from libc.stdint cimport int64_t, uint64_t

from ringbuf._core.atomics cimport (
    cas_total, fetch_add_relaxed, load_acquire, load_relaxed, load_total, store_relaxed,
    store_release, store_total, word,
)
from ringbuf._core.eventcount cimport EventCount
from ringbuf._core.pairs cimport Pair, PairWord, cas_pair, load_pair, pair, same
from ringbuf._shared.op_slots cimport MOST_POSITION
from ringbuf._shared.shared_ring cimport SharedRing


cdef enum:
    PUBLISHED = 1
    RELEASED = 2
    RETURNED = 3
    VOID = 4
    HELD = 5
    KIND_BITS = 3


cdef enum:
    # An empty ring goes back to its start when it has come this far, so that it stays
    # in a second-level cache beside what is copied in and out. Measured for 4,096
    # records of 64 B at a time: 0.92 times two copies of them; without it 1.2 times for
    # a ring of 4 MiB and 1.7 times for one of 64 MiB.
    REWIND_BYTES = 128 * 1024


cdef struct RunCursors:
    # Only the position; in a ring that processes share it is exchanged as a pair, whose
    # rest is 0.
    PairWord write
    word pad0[6]
    # Position | records known to be published from there; shared_positions.pxd packs
    # more into it.
    PairWord read
    word pad1[6]
    word tail
    word pad2[7]
    # Changed only by reservations and by what goes wrong, so that it stays in every
    # cache.
    # Records between `read` and `write` that cannot be read, less those before `read`
    # that can: for len().
    word absent
    word returned         # ranges given back and not yet taken again
    word pad3[6]
    EventCount records    # signalled when something can be taken
    EventCount room       # signalled when something has been released


# A ring of records. Every handle has a copy: all but what the pointers lead to stays as
# it was made.
cdef struct Runs:
    RunCursors* cursors
    word* index
    unsigned char* data
    uint64_t mask         # capacity - 1; the capacity is a power of two
    uint64_t itemsize
    bint alone
    SharedRing* shared    # of a ring that processes share (shared_positions.pxd); else NULL


cdef inline bint exchange(Runs* r, word* w, uint64_t* expected, uint64_t desired) noexcept nogil:
    """Set `w` to `desired` if it is as expected; else tell in `expected` what it is."""
    cdef uint64_t found
    if not r.alone:
        return cas_total(w, expected, desired)
    found = load_relaxed(w)
    if found != expected[0]:
        expected[0] = found
        return False
    store_release(w, desired)
    return True


cdef inline bint exchange_read(Runs* r, Pair* expected, Pair desired) noexcept nogil:
    """The same for `read`."""
    cdef Pair found
    if not r.alone:
        return cas_pair(&r.cursors.read, expected, desired)
    found = load_pair(&r.cursors.read)
    if not same(found, expected[0]):
        expected[0] = found
        return False
    store_release(&r.cursors.read.rest, desired.rest)
    store_release(&r.cursors.read.position, desired.position)
    return True


cdef inline void put_total(Runs* r, word* w, uint64_t value) noexcept nogil:
    if r.alone:
        store_release(w, value)
    else:
        store_total(w, value)


cdef inline uint64_t make_tag(
    Runs* r, uint64_t position, uint64_t count, uint64_t kind
) noexcept nogil:
    return ((position & ~r.mask) | (count - 1)) << KIND_BITS | kind


cdef inline bint is_of(Runs* r, uint64_t tag, uint64_t position) noexcept nogil:
    """Whether a tag found in the slot of `position` belongs to it, and not to another
    lap; 0 belongs to none.
    """
    return (
        ((tag ^ position << KIND_BITS) & (~r.mask << KIND_BITS)) == 0
        and tag & ((1 << KIND_BITS) - 1) != 0
    )


cdef inline uint64_t kind_of(uint64_t tag) noexcept nogil:
    return tag & ((1 << KIND_BITS) - 1)


cdef inline uint64_t count_of(Runs* r, uint64_t tag) noexcept nogil:
    return (tag >> KIND_BITS & r.mask) + 1


cdef inline uint64_t published(Runs* r, uint64_t position) noexcept nogil:
    """The length of the run published at `position`; 0: none."""
    cdef uint64_t tag = load_acquire(&r.index[position & r.mask])  # P
    if (tag ^ (position << KIND_BITS | PUBLISHED)) & ~(r.mask << KIND_BITS) != 0:
        return 0
    return count_of(r, tag)


cdef inline uint64_t waiting(Runs* r) noexcept nogil:
    """Records that can be taken; while others push or pop, only for a moment, and while
    blocks end it may be off by them.
    """
    # `read` first: what is claimed in between then makes the answer too large. `absent`
    # is lowered before and raised after what it stands for, to the same end.
    cdef uint64_t read = load_acquire(&r.cursors.read.position)
    cdef int64_t count = <int64_t>(load_acquire(&r.cursors.write.position) - read)
    count -= <int64_t>load_relaxed(&r.cursors.absent)
    return min(max(count, 0), <int64_t>r.mask + 1)


# ---------------------------------------------------------------- producers


cdef inline uint64_t room(Runs* r, word* seen, uint64_t most, uint64_t* write) noexcept nogil:
    """How many records can be claimed at `write`; where there is room for `most`, at
    least as many. A `write` that is too old is loaded again.
    """
    cdef uint64_t free, tail
    while True:
        free = r.mask + 1 - (write[0] - load_acquire(seen))  # S
        if free < most or free > r.mask + 1:
            tail = load_acquire(&r.cursors.tail)  # T
            store_release(seen, tail)  # S
            free = r.mask + 1 - (write[0] - tail)
        if free <= r.mask + 1:
            return free
        # Others have gone round since `write` was read; having seen their `tail` we see
        # their `write`.
        write[0] = load_relaxed(&r.cursors.write.position)


cdef inline uint64_t claim(
    Runs* r, word* seen, uint64_t most, bint contiguous, uint64_t* position
) noexcept nogil:
    """Claim up to `most` records, not over the end of the memory if `contiguous`;
    returns how many. 0: no room.

    seen: where `tail` was at the last load. It serves while it leaves room enough,
        since `tail` lies in a line that consumers write (measured without a GIL, one
        thread pushing and one taking: 24 million a second rather than 20).
    """
    cdef uint64_t write = load_relaxed(&r.cursors.write.position), free, count
    while True:
        free = room(r, seen, most, &write)
        if free < most and pass_void(r):
            continue
        count = min(most, free)
        if contiguous:
            count = min(count, r.mask + 1 - (write & r.mask))
        if count == 0:
            return 0
        position[0] = write
        # Shows nothing to consumers: the run is published by its tag.
        if exchange(r, &r.cursors.write.position, &write, write + count):
            return count


cdef inline bint add_one(Runs* r, uint64_t* position) noexcept nogil:
    """Claim one record of a ring that is alone and has room, without a check for what
    cannot be there; False, and nothing is changed, where there is no room.
    """
    cdef uint64_t write = load_relaxed(&r.cursors.write.position)
    if write - load_relaxed(&r.cursors.tail) > r.mask:
        return False
    position[0] = write
    store_relaxed(&r.cursors.write.position, write + 1)
    return True


cdef inline void publish(Runs* r, uint64_t position, uint64_t count, uint64_t kind) noexcept nogil:
    """Let consumers see the run as PUBLISHED, VOID or HELD."""
    store_release(&r.index[position & r.mask], make_tag(r, position, count, kind))  # P


cdef inline void abandon(Runs* r, uint64_t position, uint64_t count) noexcept nogil:
    """Undo the claim of a reservation; if others have claimed since, make it a VOID
    run.
    """
    cdef uint64_t write = position + count
    fetch_add_relaxed(&r.cursors.absent, -count)
    if not exchange(r, &r.cursors.write.position, &write, position):
        fetch_add_relaxed(&r.cursors.absent, count)
        publish(r, position, count, VOID)


cdef inline void leave(Runs* r, uint64_t position, uint64_t count) noexcept nogil:
    """The view has left a HELD run, or a consumer has passed it: the first of the two
    makes it VOID, and the second frees it.
    """
    cdef uint64_t tag = make_tag(r, position, count, HELD)
    if not exchange(r, &r.index[position & r.mask], &tag, make_tag(r, position, count, VOID)):
        release(r, position, count)


# ---------------------------------------------------------------- consumers


cdef inline uint64_t take(
    Runs* r, uint64_t most, bint contiguous, uint64_t* position
) noexcept nogil:
    """Take up to `most` records, not over the end of the memory if `contiguous`;
    returns how many. 0: nothing there.

    What was given back comes first. While a part of it is being taken, its rest cannot
    be seen.
    """
    cdef uint64_t end, known, limit, count
    cdef Pair read, seen
    cdef bint passed
    if load_relaxed(&r.cursors.returned) != 0:
        count = retake(r, most, position)
        if count != 0:
            return count
    read = load_pair(&r.cursors.read)  # M
    while True:
        end = position[0] = read.position
        known = read.rest
        limit = min(most, r.mask + 1 - (end & r.mask)) if contiguous else most
        while end - position[0] < limit:
            if known == 0:
                known = published(r, end)
                if known == 0:
                    break
            count = min(known, limit - (end - position[0]))
            end += count
            known -= count
        if end != position[0]:
            # Nothing read above is trusted unless this succeeds.
            if exchange_read(r, &read, pair(end, known)):  # M
                return end - position[0]
            continue
        passed = pass_void(r)
        seen = read
        read = load_pair(&r.cursors.read)  # M
        if same(read, seen) and not passed:
            return 0


cdef inline bint pass_void(Runs* r) noexcept nogil:
    """Pass a run that holds nothing; returns whether one was next to be read."""
    cdef Pair read = load_pair(&r.cursors.read)
    cdef uint64_t at = read.position, tag, count
    if read.rest != 0:
        return False
    tag = load_acquire(&r.index[at & r.mask])  # P
    if not is_of(r, tag, at) or kind_of(tag) < VOID:
        return False
    count = count_of(r, tag)
    fetch_add_relaxed(&r.cursors.absent, -count)
    if exchange_read(r, &read, pair(at + count, 0)):
        leave(r, at, count)
    else:
        fetch_add_relaxed(&r.cursors.absent, count)
    return True


cdef inline void release(Runs* r, uint64_t position, uint64_t count) noexcept nogil:
    """Free a range that was taken; ranges may come in any order."""
    cdef uint64_t tail = load_acquire(&r.cursors.tail)
    if tail == position:
        # No other thread moves `tail` from here: no tag says that it may.
        tail += count
        put_total(r, &r.cursors.tail, tail)  # T
    else:
        put_total(r, &r.index[position & r.mask], make_tag(r, position, count, RELEASED))  # R
        tail = load_total(&r.cursors.tail)
        if tail != position:
            return
    advance(r, tail)


cdef inline void advance(Runs* r, uint64_t tail) noexcept nogil:
    """Move `tail` on over the ranges that were released before it came there."""
    cdef uint64_t tag
    while True:
        tag = load_total(&r.index[tail & r.mask])  # R
        if not is_of(r, tag, tail) or kind_of(tag) != RELEASED:
            return
        # A file may hold anything where nothing was pushed yet.
        if r.shared != NULL and tail >= load_acquire(&r.cursors.read.position):
            return
        if exchange(r, &r.cursors.tail, &tail, tail + count_of(r, tag)):  # T
            tail += count_of(r, tag)


cdef inline bint find_one(Runs* r, uint64_t* position, uint64_t* known) noexcept nogil:
    """Whether `pass_one` can take a record, and which: of a ring that is alone, and of
    which no range is out. Nothing is changed.

    The two do what `take` and `release` would do, without a check for what cannot be
    there (measured: 3 ns less).
    """
    cdef uint64_t tail = load_relaxed(&r.cursors.tail)
    known[0] = load_relaxed(&r.cursors.read.rest)
    position[0] = tail
    if load_relaxed(&r.cursors.read.position) != tail:
        return False
    if known[0] == 0:
        known[0] = published(r, tail)
    return known[0] != 0


cdef inline void pass_one(Runs* r, uint64_t position, uint64_t known) noexcept nogil:
    """Take and free what `find_one` has found, in one step; the GIL was held since."""
    store_release(&r.cursors.read.rest, known - 1)
    store_release(&r.cursors.read.position, position + 1)
    store_release(&r.cursors.tail, position + 1)


cdef inline void rewind(Runs* r) noexcept nogil:
    """Send an empty ring back to the start of its memory, if it has come further than
    REWIND_BYTES.

    A ring whose consumers keep up then lives in as much memory as it needs, which stays
    in the cache and, the first time round, need not be touched. It is done by a VOID
    run up to the end: claimed, published and passed like any other.
    """
    cdef uint64_t tail = load_acquire(&r.cursors.tail), write = tail
    cdef uint64_t count = r.mask + 1 - (tail & r.mask)
    if (tail & r.mask) * r.itemsize <= REWIND_BYTES or tail > MOST_POSITION >> 1:
        return
    # Fails unless it is empty, and no operation is under way.
    if exchange(r, &r.cursors.write.position, &write, tail + count):
        fetch_add_relaxed(&r.cursors.absent, count)
        publish(r, tail, count, VOID)
        pass_void(r)


cdef inline void give_back(Runs* r, uint64_t position, uint64_t count) noexcept nogil:
    """Let a range that was taken be taken again."""
    fetch_add_relaxed(&r.cursors.absent, -count)
    store_release(&r.index[position & r.mask], make_tag(r, position, count, RETURNED))  # G
    fetch_add_relaxed(&r.cursors.returned, 1)


cdef inline uint64_t retake(Runs* r, uint64_t most, uint64_t* position) noexcept nogil:
    """Take up to `most` records of the oldest range that was given back; 0: another
    consumer was faster.

    Goes through every slot from `tail` to that range, which is seldom far: `tail`
    stands still until the range is released.
    """
    cdef uint64_t at = load_acquire(&r.cursors.tail), end = load_acquire(&r.cursors.read.position)
    cdef uint64_t tag, count
    while <int64_t>(end - at) > 0:
        tag = load_acquire(&r.index[at & r.mask])  # G
        if not is_of(r, tag, at) or kind_of(tag) == PUBLISHED:
            at += 1
            continue
        count = count_of(r, tag)
        if kind_of(tag) != RETURNED:
            at += count
            continue
        if not exchange(r, &r.index[at & r.mask], &tag, 0):
            continue
        if count > most:
            tag = make_tag(r, at + most, count - most, RETURNED)
            store_release(&r.index[(at + most) & r.mask], tag)  # G
            count = most
        else:
            fetch_add_relaxed(&r.cursors.returned, -1)
        fetch_add_relaxed(&r.cursors.absent, count)
        position[0] = at
        return count
    return 0
