from libc.stdint cimport int64_t, uint64_t

from ringbuf._core.atomics cimport word
from ringbuf._meters.refill_law cimport BucketState


cdef class Reservation:
    cdef BucketState* _state
    cdef object _bucket   # keeps the state
    cdef word _n          # tokens that a cancel may bring back
    cdef int64_t _due_ns
    cdef uint64_t _end    # the bucket's `spent` right after this reservation
    cdef readonly double delay
