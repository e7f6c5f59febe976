from libc.stdint cimport uint64_t

from ringbuf._core.atomics cimport word

cdef extern from *:
    """
    struct ringbuf_locks;
    """
    cppclass Part "ringbuf_locks":
        pass


cdef class ParticipantLocks:
    cdef Part* part

    cdef void watch(self, word* owned, uint64_t* epoch) noexcept nogil
    cdef int take(self, int participant) noexcept nogil
    cdef bint is_taken(self, int participant) noexcept nogil
    cdef int attend(self) noexcept nogil
    cdef bint others_attend(self) noexcept nogil
    cdef int begin_tidying(self) noexcept nogil
    cdef void end_tidying(self) noexcept nogil
    cdef void close(self) noexcept nogil


cdef uint64_t fork_count() noexcept nogil
