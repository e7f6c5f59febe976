from libc.stdint cimport int64_t

from ringbuf._core.atomics cimport word
from ringbuf._meters.refill_law cimport BucketState


cdef class Reservation:
    cdef BucketState* _state
    cdef object _bucket   # keeps the state
    cdef word _n          # tokens that a cancel may bring back
    cdef int64_t _due_ns
    cdef word _end        # its place on the line: `spent` right after it
    cdef readonly double delay

    cdef double time_left(self, int64_t now_ns) noexcept
