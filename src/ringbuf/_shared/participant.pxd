from libc.stdint cimport int64_t, uint64_t

from ringbuf._core.atomics cimport word
from ringbuf._shared.op_slots cimport SEATS, Desk, Slot
from ringbuf._shared.ranges cimport Range
from ringbuf._shared.shared_ring cimport SharedRing

# What in the ring (Frames or Runs) makes no sense, or NULL; asked while nobody else takes part. `ranges`: room for MOST_RANGES.
ctypedef const char* (*Judge)(void* ring, Range* ranges) noexcept nogil


cdef class Participant:
    cdef object __weakref__
    cdef Desk* desk
    cdef SharedRing ring              # what the ring's Frames or Runs lead to
    cdef readonly object file         # the SharedFile
    cdef Judge _judge
    cdef word _free[SEATS]            # of each seat that is ours: a bit for each slot that is not in use
    cdef word _seats                  # which are ours, as bits
    cdef word _seen_deaths
    cdef word _next_look_ns
    cdef readonly uint64_t epoch      # goes up when this process turns out to be a forked child

    cdef _join(self, Judge judge)
    cdef int64_t slot(self) except -1
    cdef int64_t _free_slot(self) noexcept nogil
    cdef void give_back(self, int64_t number) noexcept nogil
    cdef bint notice(self, bint now) except -1
    cdef _check_whole(self)
    cdef bint _find_dead(self, bint* dead) except -1
    cdef bint _look(self) except -1
    cdef bint next_orphan(self, uint64_t* number) noexcept nogil
