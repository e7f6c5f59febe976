"""The invariants of a RingBuffer of one process, asserted over its memory. For tests.
"""

from libc.stdint cimport uint64_t

from ringbuf._core.atomics cimport load_acquire
from ringbuf._core.pairs cimport Pair, load_pair
from ringbuf._records.positions cimport (
    HELD, PUBLISHED, RELEASED, RETURNED, VOID, Runs, count_of, is_of, kind_of, waiting,
)


cdef inline object check_runs(Runs* r):
    """Assert every invariant; returns how many records are reserved, and how many
    taken.
    """
    cdef Pair read = load_pair(&r.cursors.read)
    cdef uint64_t tail = load_acquire(&r.cursors.tail)
    cdef uint64_t write = load_acquire(&r.cursors.write.position)
    cdef uint64_t at = read.position, end = at + read.rest, position = tail, capacity = r.mask + 1
    cdef uint64_t tag
    cdef uint64_t returned = 0, ranges = 0, done = 0, void = 0, reserved = 0
    assert at - tail <= capacity and end - tail <= capacity, (tail, read)
    assert write - tail <= capacity, (tail, write)
    assert write - end <= capacity, "more is known to be published than was claimed"
    tag = load_acquire(&r.index[tail & r.mask])
    assert tail == at or not is_of(r, tag, tail) or kind_of(tag) != RELEASED, (
        "a range that was released is not freed"
    )
    while position != at:
        tag = load_acquire(&r.index[position & r.mask])
        if not is_of(r, tag, position) or kind_of(tag) == PUBLISHED:
            position += 1
            continue
        position += count_of(r, tag)
        assert at - position <= capacity, "a range goes on behind `read`"
        if kind_of(tag) == RELEASED:
            done += count_of(r, tag)
        elif kind_of(tag) == RETURNED:
            returned += count_of(r, tag)
            ranges += 1
    assert ranges == load_acquire(&r.cursors.returned)
    position = end
    while position != write:
        tag = load_acquire(&r.index[position & r.mask])
        if not is_of(r, tag, position):
            position += 1
            reserved += 1
            continue
        assert kind_of(tag) in (PUBLISHED, VOID, HELD), "a range was released before it was taken"
        void += count_of(r, tag) if kind_of(tag) != PUBLISHED else 0
        position += count_of(r, tag)
        assert write - position <= capacity, "a run goes on behind `write`"
    assert load_acquire(&r.cursors.absent) == void + reserved - returned
    assert waiting(r) == write - at - void - reserved + returned
    return reserved, at - tail - done - returned
