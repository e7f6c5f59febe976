# cython: freethreading_compatible=True, auto_pickle=False, autotestdict=False, cdivision=True
"""Counts over time in fixed memory: RateWindow.

Contract. Any number of threads, with the GIL or without it, may call every method.
Nothing blocks. To record is lock-free, allocates nothing and costs one or two exchanges
of one word. To read goes through all buckets, at most allocates its result, and never
holds up a thread that records.

Slots. Time is cut into slots of `width` ns, one of which starts at 0; they are numbered
from the first within 2**62 ns before that. Slot s lives in word s % size of a table
whose size is a power of two above the number of buckets, and that word holds

    lap << count_bits | count            lap = s // size

so a word says itself which slot it counts. Nothing has to be cleared when time goes on,
stands still, or jumps: a reader takes a word for slot s only if its lap is that of s,
and the first add of a later lap starts it again from its own n, in the same exchange.
The lap is there in full (count_bits is the least that leaves room for every lap of
2**63 ns), so no pause, however long, makes an old word look like a new one.

What is left for the count is enough for `size` events per ns of a bucket's width, and
size is at least 16: 16 billion a second. A bucket spans 1 ms or more, so it holds at
least 16 million. A count that reaches its limit stays there.

Races. Two threads add to one slot, or find an old lap: one exchange fails and is made
again; no count is lost. A thread is so late that a later lap has taken its word over:
the sample is dropped, for it lies further back than any window from then on. It cannot
be added to the wrong slot, because the lap is part of what is exchanged. A reader sees
each word whole, and each at its own moment: while others add, its result lies between
the counts at its beginning and at its end (only a reader held up for more than a
bucket's width may find its oldest buckets taken over). Relaxed order serves throughout:
no word guards another.

Late samples. A sample counts in the bucket of its own time. One up to `buckets + 1`
buckets behind the newest always finds its word, which is all that a window can reach;
of older ones, those whose word has a later lap are dropped, and the others lie outside
of every present window. So a clock that goes back by more than that finds the window
empty, and samples dropped where it was in use later, until it has caught up.

The window at time t is (t - seconds, t]. The buckets that lie in it count in full, also
the one that t is in. The oldest is in it in part, and its events are taken as spread
evenly over it: it counts for the part of its span that is in the window. Before the
first use there was nothing, so in the first bucket ever used that span begins with the
first use: while less than a window has passed since then, the count is the exact number
of all events.

Source: a count that carries its epoch is our own.
"""

cimport cython
from libc.stdint cimport int64_t, uint64_t

from ringbuf._core.atomics cimport cas_relaxed, load_relaxed, store_relaxed, word
from ringbuf._core.cache_lines cimport aligned
from ringbuf._core.counts cimport real, whole
from ringbuf._core.timing cimport checked_count, checked_ns, steady_ns

import numpy as np

# Times reach this far to both sides of 0: 146 years, in which lap numbers stay below
# 2**63 ns.
cdef int64_t REACH_NS = <int64_t>1 << 62
# Until a call has named a time.
cdef uint64_t NEVER = <uint64_t>-1
# A read goes through all buckets: with this many that takes 30 us.
cdef int MAX_BUCKETS = 65_536
# Three years: with it and the smallest table, lap and count still fit into a word.
cdef double MAX_SECONDS = 1e8
# 1 ms: the least that holds 16 million events, so that none is lost of a large batch
# that is added at once.
cdef int MIN_WIDTH = 1_000_000
# Two cache lines of slots, and room for 16 events per ns.
cdef int MIN_SLOTS = 16


@cython.final
cdef class RateWindow:
    """How many events the last `seconds` have seen, counted in `buckets` buckets of
    equal width.

    seconds: the length of the window, up to 1e8; rounded to a whole number of ns a
        bucket, see `.seconds`.
    buckets: 1 to 65,536. More make the end of the window sharper and cost 8 bytes each.

    Methods that ask for the time have a twin ending in `_at` that takes it (int ns,
    from any fixed start, less than 2**62 from 0). Use one kind or the other on a
    window: the two share no origin.

    >>> window = RateWindow(seconds=10, buckets=10)
    >>> window.add_at(0, 30), window.add_at(5_000_000_000, 20)
    (True, True)
    >>> window.count_at(5_000_000_000), window.rate_at(5_000_000_000)
    (50, 10.0)
    >>> window.count_at(10_500_000_000), window.rate_at(10_500_000_000)
    (35, 3.5)
    >>> window.count_at(3_600_000_000_000)
    0
    """

    def __cinit__(self, seconds, buckets):
        cdef double length = real(seconds, "seconds")
        count = whole(buckets, "buckets")
        if not 0.0 < length <= MAX_SECONDS:
            raise ValueError(
                f"seconds must be above 0 and at most {MAX_SECONDS:.0e}, not {seconds!r}"
            )
        if not 1 <= count <= MAX_BUCKETS:
            raise ValueError(f"buckets must be from 1 to {MAX_BUCKETS}, not {count}")
        if length * 1e9 < MIN_WIDTH * count:
            raise ValueError(
                f"a bucket must span at least 1 ms, and {seconds!r} s are too few for {count}"
            )
        self._buckets = count
        self._width = round(length * 1e9 / count)
        self._origin = REACH_NS // <int64_t>self._width * <int64_t>self._width
        # One more than the window reaches, so that a reader that is a little late still
        # finds its oldest bucket.
        size = max(MIN_SLOTS, 1 << (count + 1).bit_length())
        self._slot_mask = size - 1
        self._lap_shift = size.bit_length() - 1
        self._count_bits = (size * self._width).bit_length()
        # The slots start at the second cache line; one line more than needed, to start
        # at one.
        self._memory = np.zeros(8 * size + 128, dtype=np.uint8)
        self._earliest = <word*>aligned(self._memory)
        self._slots = self._earliest + 8
        store_relaxed(self._earliest, NEVER)

    cdef uint64_t _moment(self, object now_ns) except? 0:
        """A time as ns since the start of slot 0."""
        cdef int64_t now = checked_ns(now_ns)
        if not -self._origin <= now < self._origin:
            raise OverflowError(
                f"now_ns must be from {-self._origin} to {self._origin - 1}, not {now_ns}"
            )
        return <uint64_t>(now + self._origin)

    cdef uint64_t _present(self) noexcept nogil:
        return <uint64_t>(steady_ns() + self._origin)

    cdef void _see(self, uint64_t moment) noexcept nogil:
        """Note that the window was in use at `moment`."""
        cdef uint64_t earliest = load_relaxed(self._earliest)
        while moment < earliest and not cas_relaxed(self._earliest, &earliest, moment):
            pass

    cdef bint _add(self, uint64_t moment, uint64_t n) noexcept nogil:
        cdef uint64_t slot = moment // self._width
        cdef uint64_t lap = slot >> self._lap_shift
        cdef uint64_t most = (<uint64_t>1 << self._count_bits) - 1
        cdef word* place = self._slots + (slot & self._slot_mask)
        cdef uint64_t found = load_relaxed(place), count
        self._see(moment)
        while True:
            if found >> self._count_bits > lap:
                return False
            count = found & most if found >> self._count_bits == lap else 0
            count = count + n if n < most - count else most
            if cas_relaxed(place, &found, lap << self._count_bits | count):
                return True

    cdef uint64_t _slot_count(self, uint64_t slot) noexcept nogil:
        cdef uint64_t found = load_relaxed(self._slots + (slot & self._slot_mask))
        if found >> self._count_bits != slot >> self._lap_shift:
            return 0
        return found & ((<uint64_t>1 << self._count_bits) - 1)

    cdef Sum _tally(self, uint64_t moment, Oldest* oldest) noexcept nogil:
        """The count of the buckets that are in the window in full, and what is known of
        the oldest.
        """
        cdef uint64_t slot = moment // self._width, count, end, start, edge, earliest, i
        cdef Sum sum
        sum.low = sum.high = 0
        self._see(moment)
        for i in range(min(self._buckets, slot + 1)):
            count = self._slot_count(slot - i)
            sum.low += count
            sum.high += sum.low < count
        oldest.count = 0
        if slot >= self._buckets:
            oldest.count = self._slot_count(slot - self._buckets)
        if oldest.count != 0:
            start = (slot - self._buckets) * self._width
            end = start + self._width
            edge = moment - self._buckets * self._width
            earliest = load_relaxed(self._earliest)
            # A count may be seen a moment before the earliest use is: then the bucket
            # counts as used from its start.
            if start < earliest < end:
                start = earliest
            oldest.inside = end - max(edge, start)
            oldest.span = end - start
        return sum

    cdef _count(self, uint64_t moment):
        cdef Oldest oldest
        cdef Sum sum = self._tally(moment, &oldest)
        # In Python's integers, because the sum and the product may need more than 64
        # bits.
        count = <object>sum.high << 64 | <object>sum.low if sum.high != 0 else sum.low
        if oldest.count == 0:
            return count
        return count + <object>oldest.count * oldest.inside // oldest.span

    cdef double _rate(self, uint64_t moment) noexcept nogil:
        cdef Oldest oldest
        cdef Sum sum = self._tally(moment, &oldest)
        cdef double count = <double>sum.high * 2.0 ** 64 + <double>sum.low
        cdef uint64_t used = moment - load_relaxed(self._earliest)
        if oldest.count != 0:
            count += <double>oldest.count * (<double>oldest.inside / <double>oldest.span)
        return count / (1e-9 * <double>max(min(used, self._buckets * self._width), self._width))

    def add(self, n=1):
        """Count `n` events now. False if that came too late to count: see `add_at`."""
        return self._add(self._present(), <uint64_t>checked_count(n))

    def add_at(self, now_ns, n=1):
        """Count `n` events at the time `now_ns`.

        False if they were dropped: a later time, more than a window ahead, has taken
        their bucket over.
        """
        return self._add(self._moment(now_ns), <uint64_t>checked_count(n))

    def count(self):
        """Events in the window that ends now, the oldest bucket in proportion; rounded
        down.
        """
        return self._count(self._present())

    def count_at(self, now_ns):
        """`count` for the window that ends at `now_ns`; what was counted for a later
        bucket is not in it.
        """
        return self._count(self._moment(now_ns))

    def rate(self):
        """Events per second in the window that ends now.

        While less than a window has passed since the first use (the earliest time that
        any call has named), that time takes the window's place, but never less than a
        bucket: a lone event is not a flood.
        """
        return self._rate(self._present())

    def rate_at(self, now_ns):
        """`rate` for the window that ends at `now_ns`."""
        return self._rate(self._moment(now_ns))

    @property
    def seconds(self):
        """The length of the window as it came out in whole ns per bucket."""
        return self._buckets * self._width / 1e9

    @property
    def buckets(self):
        """The number of buckets in the window."""
        return self._buckets

    def __repr__(self):
        return f"RateWindow(seconds={self.seconds}, buckets={self.buckets})"

    def __reduce__(self):
        raise TypeError("a RateWindow is live shared state and cannot be copied or pickled")
