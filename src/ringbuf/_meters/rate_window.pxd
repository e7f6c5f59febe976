from libc.stdint cimport int64_t, uint64_t

from ringbuf._core.atomics cimport word


# The bucket that a window has in part: `inside` of its `span` ns are in it.
cdef struct Oldest:
    uint64_t count
    uint64_t inside
    uint64_t span


cdef class RateWindow:
    cdef word* _earliest      # the first moment that any call has named; a cache line of its own
    cdef word* _slots         # lap and count in one word: see "Slots" in _meters/rate_window.pyx
    cdef object _memory       # the numpy array that owns both
    cdef uint64_t _width      # ns that one bucket spans
    cdef int64_t _origin      # slot 0 starts so many ns before the zero of the clock
    cdef uint64_t _buckets
    cdef uint64_t _slot_mask
    cdef unsigned _lap_shift      # slot number >> this = lap
    cdef unsigned _count_bits

    cdef uint64_t _moment(self, object now_ns) except? 0
    cdef uint64_t _present(self) noexcept nogil
    cdef bint _add(self, uint64_t moment, uint64_t n) noexcept nogil
    cdef void _see(self, uint64_t moment) noexcept nogil
    cdef uint64_t _slot_count(self, uint64_t slot) noexcept nogil
    cdef uint64_t _tally(self, uint64_t moment, Oldest* oldest) noexcept nogil
    cdef double _rate(self, uint64_t moment) noexcept nogil
    cdef _count(self, uint64_t moment)


# The first cache line of a histogram; the counts follow.
cdef struct Extremes:
    word total                # sum of the values, the bits of a double
    word low                  # the smallest value, likewise: doubles from 0 on sort like their bits
    word high
    word pad[5]


cdef class LatencyHistogram:
    cdef Extremes* _extremes
    cdef word* _counts
    cdef object _memory       # the numpy array that owns both
    cdef object _edges
    cdef uint64_t _first      # the leading bits of bucket 1: see "Buckets" in _meters/rate_window.pyx
    cdef uint64_t _size       # buckets, with the two for what lies outside
    cdef readonly double lowest
    cdef readonly double highest

    cdef uint64_t _index(self, double value) noexcept nogil
    cdef void _widen(self, double low, double high, double total) noexcept nogil
    cdef double _within(self, uint64_t bucket, double value) noexcept nogil


cdef class HistogramSnapshot:
    cdef readonly object counts
    cdef readonly object edges
    cdef readonly uint64_t count
    cdef readonly double sum
    cdef readonly double min
    cdef readonly double max

    cdef double _at_rank(self, uint64_t rank)
