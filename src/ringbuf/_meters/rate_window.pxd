from libc.stdint cimport int64_t, uint64_t

from ringbuf._core.atomics cimport word


# The bucket that a window has in part: `inside` of its `span` ns are in it.
cdef struct Oldest:
    uint64_t count
    uint64_t inside
    uint64_t span


# high * 2**64 + low: the counts of many full buckets add up to more than a word holds.
cdef struct Sum:
    uint64_t low
    uint64_t high


cdef class RateWindow:
    cdef word* _earliest      # the first moment that any call has named; a cache line of its own
    cdef word* _slots         # lap and count in one word: see "Slots" in rate_window.pyx
    cdef object _memory       # the numpy array that owns both
    cdef uint64_t _width      # ns that one bucket spans
    cdef int64_t _origin      # slot 0 starts this many ns before the zero of the clock
    cdef uint64_t _buckets
    cdef uint64_t _slot_mask
    cdef unsigned _lap_shift      # slot number >> this = lap
    cdef unsigned _count_bits

    cdef uint64_t _moment(self, object now_ns) except? 0
    cdef uint64_t _present(self) noexcept nogil
    cdef bint _add(self, uint64_t moment, uint64_t n) noexcept nogil
    cdef void _see(self, uint64_t moment) noexcept nogil
    cdef uint64_t _slot_count(self, uint64_t slot) noexcept nogil
    cdef Sum _tally(self, uint64_t moment, Oldest* oldest) noexcept nogil
    cdef double _rate(self, uint64_t moment) noexcept nogil
    cdef _count(self, uint64_t moment)
