from libc.stdint cimport int64_t, uint64_t

from ringbuf._meters.reservation cimport Reservation
from ringbuf._meters.token_bucket cimport TokenBucket


cdef class TokenWait:
    cdef TokenBucket _bucket
    cdef int64_t _n
    cdef int64_t _deadline_ns
    cdef Reservation _place  # in the line of those who wait, or None
    cdef uint64_t _forks     # fork_count() when it was taken
    cdef bint _is_done

    cdef double _step(self, int64_t now_ns) except? -2
    cdef double _join(self, int64_t now_ns) except? -2
    cdef void _leave(self) noexcept
    cdef void _give_up(self, int64_t now_ns) noexcept
