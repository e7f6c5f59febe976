from libc.stdint cimport int64_t, uint64_t

from ringbuf._core.atomics cimport word
from ringbuf._shared.op_slots cimport SEATS, Desk, Slot

# Finishes what the holders of the seats marked as dead had begun: `tidy_up` of the ring's own kind.
ctypedef void (*Tidy)(void* ring, const bint* dead, bint alone) noexcept nogil


# What in the ring makes no sense, or NULL; asked while nobody else takes part.
ctypedef const char* (*Judge)(void* ring) noexcept nogil


cdef class Participant:
    cdef object __weakref__
    cdef Desk* desk
    cdef readonly object file         # the SharedFile
    cdef void* _ring
    cdef Tidy _tidy
    cdef Judge _judge
    cdef word _free[SEATS]            # of each seat that is ours: a bit for each slot that is not in use
    cdef word _seats                  # which are ours, as bits
    cdef word _seen_deaths
    cdef word _next_look_ns
    cdef readonly uint64_t epoch      # goes up when this process turns out to be a forked child

    cdef _join(self, void* ring, Tidy tidy, Judge judge)
    cdef int64_t slot(self) except -1
    cdef int64_t _free_slot(self) noexcept nogil
    cdef void give_back(self, int64_t number) noexcept nogil
    cdef bint notice(self, bint now) except -1
    cdef _check_whole(self)
    cdef bint _find_dead(self, bint* dead) except -1
    cdef bint _look(self) except -1
    cdef bint next_orphan(self, uint64_t* number) noexcept nogil
