from libc.stdint cimport int64_t
from libcpp.vector cimport vector

from ringbuf._core.atomics cimport word
from ringbuf._meters.refill_law cimport BucketState, LawCopy


cdef class TokenBucket:
    cdef BucketState* _state
    cdef object _memory   # the numpy array that owns the state
    cdef object _file     # the SharedFile that holds it, or None
    cdef object __weakref__
    cdef word _me         # in `setter`: the number of this participant + 1; 0: it has none
    cdef vector[word*] _waits  # where the places of those who wait here end, as they came

    cdef _use_file(self, file)
    cdef int _prepare(self) except -1
    cdef int64_t _acquire_at(self, int64_t now_ns, int64_t n, bint partial) noexcept nogil
    cdef int64_t _acquire_now(self, int64_t n, bint partial) noexcept nogil
    cdef int64_t _acquire_by_law(
        self, LawCopy* law, int64_t now_ns, int64_t n, bint partial, bint lend
    ) noexcept nogil
    cdef double _retry_after(self, int64_t now_ns, int64_t n) noexcept nogil
    cdef _change_law(self, int64_t now_ns, double rate, int64_t burst)
