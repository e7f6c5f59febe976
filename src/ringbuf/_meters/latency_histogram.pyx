# cython: freethreading_compatible=True, auto_pickle=False, autotestdict=False, cdivision=True
"""Latencies over their range in fixed memory: LatencyHistogram.

Contract. Any number of threads, with the GIL or without it, may call every method.
Nothing blocks. To record is lock-free, allocates nothing and costs two exchanges of one
word, or three or four where the latency is a new extreme (`record_many` makes a float64
array of seconds of what is not one, and exchanges the extremes and the sum once for
all). To read goes through all buckets, at most allocates its result, and never holds up
a thread that records.

Buckets. The leading bits of a double, its exponent and the first 6 of its mantissa, are
the number of its bucket: each power of two is cut into 64 buckets of equal width, so
the middle of a bucket is within 1/128 = 0.8 % of each value in it. Bucket 0 takes what
is below the range, the last one what is above.

Order. `record` first widens sum, min and max and then counts, with release; a reader
first takes the counts, with acquire, and then the sum, which so covers all that it has
counted and at most some values more that were being recorded just then. It brings min
and max into the outermost buckets that it has seen filled, where they are unless
something was being recorded or reset just then.

Source: buckets by leading bits are the idea of HdrHistogram (G. Tene).
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.math cimport INFINITY, NAN, ceil, isfinite
from libc.stdint cimport int64_t, uint64_t

from ringbuf._core.atomics cimport (
    cas_relaxed, cas_release, fetch_add_release, load_acquire, load_relaxed, store_relaxed, word,
)
from ringbuf._core.cache_lines cimport aligned
from ringbuf._core.counts cimport real
from ringbuf._core.timing cimport checked_count

import numpy as np

from ringbuf._core.masked import plain_array
from ringbuf._core.pinning import pins

cdef extern from * nogil:
    """
    #include <bit>
    #include <cstdint>
    static inline uint64_t ringbuf_bits(double value) { return std::bit_cast<uint64_t>(value); }
    static inline double ringbuf_from_bits(uint64_t bits) { return std::bit_cast<double>(bits); }
    """
    uint64_t to_bits "ringbuf_bits"(double value)
    double from_bits "ringbuf_from_bits"(uint64_t bits)


# Bits of a double below those that number its bucket: 52 of mantissa less 6, for 64
# buckets in each power of two.
cdef int BUCKET_SHIFT = 46
# Where a bucket stops counting: far below where a word overflows, so that many threads
# may add before one of them checks.
cdef uint64_t FULL = <uint64_t>1 << 63
# Up to this many are added without a check of what is there before.
cdef uint64_t STEP = <uint64_t>1 << 32
# A picosecond and 31 years: together 4,500 buckets at most.
cdef double LEAST = 1e-12
cdef double MOST = 1e9

cdef str MASKED = (
    "latencies that are masked have no value: leave them out (seconds.compressed())"
)


cdef inline uint64_t added(uint64_t a, uint64_t b) noexcept nogil:
    """Their sum, at most what a word holds."""
    return a + b if b <= ~a else ~<uint64_t>0


# The lengths of the units of timedelta64 in seconds, as a factor and a divisor, so that
# each is a whole number.
cdef dict UNITS = {
    "W": (604_800, 1), "D": (86_400, 1), "h": (3_600, 1), "m": (60, 1), "s": (1, 1),
    "ms": (1, 1e3), "us": (1, 1e6), "ns": (1, 1e9),
    "ps": (1, 1e12), "fs": (1, 1e15), "as": (1, 1e18),
}


cdef object as_seconds(array):
    """Latencies as a contiguous float64 array of seconds, or an error that says why
    not.
    """
    if array.dtype.kind == "m":
        unit, count = np.datetime_data(array.dtype)
        if unit not in UNITS:
            raise TypeError(f"latencies of dtype {array.dtype} have no length in seconds")
        if np.isnat(array).any():
            raise ValueError("seconds must be finite, and there is a NaT")
        factor, divisor = UNITS[unit]
        return np.ascontiguousarray(
            array.astype(np.int64).astype(np.float64) * (factor * count) / divisor
        )
    if array.dtype.kind not in "iuf":
        raise TypeError(
            f"latencies must be numbers of seconds or timedelta64, not of dtype {array.dtype}"
        )
    with np.errstate(over="ignore"):  # what becomes infinite is refused as such
        return np.ascontiguousarray(array, dtype=np.float64)


cdef double one_latency(object seconds) except? -1:
    """A latency that is no float."""
    if isinstance(seconds, np.timedelta64):
        return as_seconds(np.asarray(seconds))[0]
    return real(seconds, "seconds")


@cython.final
cdef class LatencyHistogram:
    """How often latencies of each size occurred, to within 1 % of the size, in fixed
    memory.

    lowest, highest: the range in seconds, 1e-12 to 1e9, that is resolved to 1 %; the
        default takes 16 kB. Values beside it are counted too: a percentile below the
        range is off by less than `lowest`, one above it is reported as the maximum.

    `min`, `max`, `sum` and `mean` are exact but for a double's rounding: a sum beyond
    1.8e308 is inf, and so is the mean then. A bucket stops counting at 2**63.

    >>> histogram = LatencyHistogram()
    >>> histogram.record_many([0.010, 0.020, 0.030, 2.0])
    >>> histogram.count, histogram.max
    (4, 2.0)
    >>> round(histogram.percentile(50), 3)
    0.02
    """

    def __cinit__(self, lowest=1e-6, highest=1000.0):
        self.lowest = real(lowest, "lowest")
        self.highest = real(highest, "highest")
        if not LEAST <= self.lowest <= MOST:
            raise ValueError(f"lowest must be from {LEAST} to {MOST:.0e} seconds, not {lowest!r}")
        if not self.lowest < self.highest <= MOST:
            raise ValueError(
                f"highest must be above lowest ({lowest!r}) and at most {MOST:.0e} seconds, "
                f"not {highest!r}"
            )
        self._first = to_bits(self.lowest) >> BUCKET_SHIFT
        self._size = (to_bits(self.highest) >> BUCKET_SHIFT) - self._first + 3
        bits = np.arange(self._first, self._first + self._size - 1, dtype=np.uint64)
        bits <<= np.uint64(BUCKET_SHIFT)
        self._edges = np.concatenate([[0.0], bits.view(np.float64), [INFINITY]]).tobytes()
        self._memory = np.zeros(sizeof(Extremes) + 8 * self._size + 64, dtype=np.uint8)
        self._extremes = <Extremes*>aligned(self._memory)
        self._counts = <word*>(self._extremes + 1)
        store_relaxed(&self._extremes.low, to_bits(INFINITY))

    cdef uint64_t _index(self, double value) noexcept nogil:
        """The bucket of any double whatsoever."""
        cdef uint64_t leading = to_bits(value) >> BUCKET_SHIFT
        # Also true of NaN, which an array may hold that is written while it is read.
        if not value > 0.0 or leading < self._first:
            return 0
        return min(leading - self._first + 1, self._size - 1)

    cdef void _widen(self, double low, double high, double total) noexcept nogil:
        cdef uint64_t found = load_relaxed(&self._extremes.low)
        while (
            to_bits(low) < found
            and not cas_relaxed(&self._extremes.low, &found, to_bits(low))
        ):
            pass
        found = load_relaxed(&self._extremes.high)
        while (
            to_bits(high) > found
            and not cas_relaxed(&self._extremes.high, &found, to_bits(high))
        ):
            pass
        found = load_relaxed(&self._extremes.total)
        while not cas_relaxed(&self._extremes.total, &found, to_bits(from_bits(found) + total)):
            pass

    cdef void _add(self, uint64_t bucket, uint64_t times) noexcept nogil:
        """Add to the count of a bucket, which stops at FULL. With release: see
        `snapshot`.
        """
        cdef word* count = self._counts + bucket
        cdef uint64_t found
        if times <= STEP:
            # An exchange less than below. The word could only overflow with two
            # thousand million threads at this place.
            if fetch_add_release(count, times) >= FULL - STEP:
                self._stop_at_full(count)
            return
        found = load_relaxed(count)
        while found < FULL and not cas_release(
            count, &found, FULL if times >= FULL - found else found + times
        ):
            pass

    cdef void _stop_at_full(self, word* count) noexcept nogil:
        cdef uint64_t found = load_relaxed(count)
        while found > FULL and not cas_release(count, &found, FULL):
            pass

    def record(self, seconds, n=1):
        """Count a latency, `n` times. A negative one is taken as 0: the clock that
        measured it went back.

        seconds: a number, or a timedelta64. ValueError if it is NaN, NaT or infinite.
        """
        cdef double value = seconds if isinstance(seconds, float) else one_latency(seconds)
        cdef uint64_t times = <uint64_t>checked_count(n)
        if not isfinite(value):
            raise ValueError(f"seconds must be finite, not {value}")
        # Also turns -0.0 into 0.0, whose bits are the smallest.
        value = value if value > 0.0 else 0.0
        if times == 0:
            return
        self._widen(value, value, value * <double>times)
        # Pairs with the acquire in `snapshot`: a reader that sees the count sees the
        # extremes widened.
        self._add(self._index(value), times)

    def record_many(self, seconds):
        """Count each latency in an array-like, as `record` does; none if it raises.

        seconds: numbers, or timedelta64 of any unit that has a length. TypeError for
            anything else, ValueError for what is NaN, NaT, infinite or masked.
        """
        values = as_seconds(plain_array(seconds, MASKED))
        _held = pins(values)
        cdef size_t address = values.ctypes.data
        cdef const double* value = <const double*>address
        cdef int64_t size = values.size, i, wrong = -1
        cdef double low = INFINITY, high = 0.0, total = 0.0, each
        if size == 0:
            return
        with nogil:
            for i in range(size):
                each = value[i]
                if not isfinite(each):
                    wrong = i
                    break
                each = max(each, 0.0)
                total += each
                low = min(low, each)
                high = max(high, each)
            if wrong < 0:
                # Adding 0.0 turns a -0.0 into 0.0.
                self._widen(low + 0.0, high + 0.0, total)
                for i in range(size):
                    # Pairs with the acquire in `snapshot`.
                    self._add(self._index(value[i]), 1)
        if wrong >= 0:
            raise ValueError(f"seconds must be finite, and item {wrong} is {values.flat[wrong]}")

    def merge(self, LatencyHistogram other not None):
        """Add all that `other` has counted. ValueError if it has another range."""
        if other._first != self._first or other._size != self._size:
            raise ValueError(
                f"only histograms of the same range can be merged, and {other.lowest} to "
                f"{other.highest} is not {self.lowest} to {self.highest}"
            )
        cdef HistogramSnapshot added = other.snapshot()
        cdef const uint64_t* counts = added._count_of()
        cdef uint64_t i
        if added.count == 0:
            return
        self._widen(added.min, added.max, added.sum)
        for i in range(self._size):
            if counts[i] != 0:
                # Pairs with the acquire in `snapshot`.
                self._add(i, counts[i])

    def reset(self):
        """Forget everything; of what is being recorded meanwhile, perhaps a part."""
        cdef uint64_t i
        store_relaxed(&self._extremes.total, 0)
        store_relaxed(&self._extremes.low, to_bits(INFINITY))
        store_relaxed(&self._extremes.high, 0)
        for i in range(self._size):
            store_relaxed(self._counts + i, 0)

    def snapshot(self):
        """A copy of the present state, which does not change."""
        cdef HistogramSnapshot taken = HistogramSnapshot.__new__(HistogramSnapshot)
        # Filled before any other thread has it.
        taken._counts = PyBytes_FromStringAndSize(NULL, self._size * sizeof(uint64_t))
        taken._edges = self._edges
        taken._size = self._size
        cdef uint64_t* copy = <uint64_t*>PyBytes_AS_STRING(taken._counts)
        cdef uint64_t i, first = self._size, last = 0
        for i in range(self._size):
            # Pairs with the releases in `record`, `record_many` and `merge`.
            copy[i] = load_acquire(self._counts + i)
            if copy[i] != 0:
                taken.count = added(taken.count, copy[i])
                first = min(first, i)
                last = i
        taken.sum = 0.0
        taken.min = taken.max = NAN
        if taken.count != 0:
            taken.sum = from_bits(load_relaxed(&self._extremes.total))
            taken.min = self._within(first, from_bits(load_relaxed(&self._extremes.low)))
            taken.max = self._within(last, from_bits(load_relaxed(&self._extremes.high)))
            # While a bucket is reset and filled again the two may be of different
            # values.
            if taken.min > taken.max:
                taken.min, taken.max = taken.max, taken.min
        return taken

    cdef double _within(self, uint64_t bucket, double value) noexcept nogil:
        """`value`, or the edge of the bucket that is nearest to it."""
        cdef double lower = 0.0, upper = INFINITY
        if bucket > 0:
            lower = from_bits(self._first + bucket - 1 << BUCKET_SHIFT)
        if bucket < self._size - 1:
            upper = from_bits(self._first + bucket << BUCKET_SHIFT)
        return max(lower, min(value, upper))

    def percentile(self, q):
        """The latency in seconds that q percent (0 to 100) of all did not exceed; NaN
        while there are none.

        It is within 1 % of a recorded value (nearest rank); 0 and 100 give the exact
        minimum and maximum.
        """
        return self.snapshot().percentile(q)

    def percentiles(self, qs):
        """`percentile` of each in `qs`, all from the same moment, as a list."""
        return self.snapshot().percentiles(qs)

    @property
    def count(self):
        """How many latencies have been recorded."""
        return self.snapshot().count

    @property
    def sum(self):
        """All of them added up, in seconds."""
        return self.snapshot().sum

    @property
    def min(self):
        """The smallest, in seconds; NaN while there are none."""
        return self.snapshot().min

    @property
    def max(self):
        """The largest, in seconds; NaN while there are none."""
        return self.snapshot().max

    @property
    def mean(self):
        """Their mean in seconds; NaN while there are none."""
        return self.snapshot().mean

    def __repr__(self):
        return f"LatencyHistogram(lowest={self.lowest}, highest={self.highest}, count={self.count})"

    def __reduce__(self):
        raise TypeError("a LatencyHistogram is live shared state and cannot be copied or pickled")


@cython.final
cdef class HistogramSnapshot:
    """What a LatencyHistogram held at one moment. Made by `LatencyHistogram.snapshot`.

    count, sum, min, max: as in the histogram.
    """

    def __init__(self):
        raise TypeError("made by LatencyHistogram.snapshot()")

    def percentile(self, q):
        """As `LatencyHistogram.percentile`."""
        cdef double share = real(q, "q")
        if not 0.0 <= share <= 100.0:
            raise ValueError(f"a percentile must be from 0 to 100, not {q!r}")
        if self.count == 0:
            return NAN
        # Made smaller by some ulps: 16.1 % of 1,000 comes out a little above 161 and
        # means the 161st.
        cdef double rank = ceil(share * <double>self.count / 100.0 * (1.0 - 2.0 ** -50))
        if rank <= 1.0:
            return self.min
        if rank >= <double>self.count or share == 100.0:
            return self.max
        return self._at_rank(<uint64_t>rank)

    def percentiles(self, qs):
        """As `LatencyHistogram.percentiles`."""
        return [self.percentile(q) for q in qs]

    # Over bytes, which do not change: numpy will not make these arrays writable.

    @property
    def counts(self):
        """How many latencies each bucket holds: a read-only numpy array of uint64."""
        return np.frombuffer(self._counts, np.uint64)

    @property
    def edges(self):
        """The bounds of the buckets in seconds: a read-only numpy array of float64, one
        longer than `counts`.

        Bucket i holds edges[i] <= latency < edges[i + 1]. The first edge is 0 and the
        last is inf.
        """
        return np.frombuffer(self._edges, np.float64)

    @property
    def mean(self):
        """The mean in seconds; NaN while there are none."""
        return self.sum / <double>self.count if self.count != 0 else NAN

    cdef const uint64_t* _count_of(self) noexcept:
        """How many there are in each of `_size` buckets."""
        return <const uint64_t*>PyBytes_AS_STRING(self._counts)

    cdef double _at_rank(self, uint64_t rank):
        """The middle of the bucket of the `rank`-th smallest value, within min and max.
        """
        cdef const uint64_t* counts = self._count_of()
        cdef const double* edges = <const double*>PyBytes_AS_STRING(self._edges)
        cdef uint64_t i = 0, passed = counts[0]
        while passed < rank and i < self._size - 1:
            i += 1
            passed = added(passed, counts[i])
        cdef double middle = (edges[i] + edges[i + 1]) / 2
        return max(self.min, min(middle, self.max))

    def __repr__(self):
        return (
            f"HistogramSnapshot(count={self.count}, min={self.min}, mean={self.mean}, "
            f"max={self.max})"
        )
