from libc.stdint cimport uint64_t

from ringbuf._core.atomics cimport word


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
    cdef bytes _edges         # float64, one more than there are buckets
    cdef uint64_t _first      # the leading bits of bucket 1: see "Buckets" in latency_histogram.pyx
    cdef uint64_t _size       # buckets, with the two for what lies outside
    cdef readonly double lowest
    cdef readonly double highest

    cdef uint64_t _index(self, double value) noexcept nogil
    cdef void _widen(self, double low, double high, double total) noexcept nogil
    cdef void _add(self, uint64_t bucket, uint64_t times) noexcept nogil
    cdef void _stop_at_full(self, word* count) noexcept nogil
    cdef double _within(self, uint64_t bucket, double value) noexcept nogil


cdef class HistogramSnapshot:
    cdef bytes _counts        # uint64
    cdef bytes _edges         # float64, one more
    cdef uint64_t _size       # buckets
    cdef readonly uint64_t count
    cdef readonly double sum
    cdef readonly double min
    cdef readonly double max

    cdef const uint64_t* _count_of(self) noexcept
    cdef double _at_rank(self, uint64_t rank)
