from libc.stdint cimport int64_t, uint64_t

from ringbuf._core.atomics cimport word
from ringbuf._shared.op_slots cimport SEATS, ControlBlock, OpSlot
from ringbuf._shared.ranges cimport Range
from ringbuf._shared.seat_locks cimport SeatLocks
from ringbuf._shared.shared_ring cimport SharedRing

# What in the ring (Frames or Runs) makes no sense, or NULL; asked while nobody else
# takes part. `ranges`: room for MOST_RANGES.
ctypedef const char* (*Judge)(void* ring, Range* ranges) noexcept nogil


cdef class Participant:
    cdef ControlBlock* control
    cdef SharedRing ring              # what the ring's Frames or Runs lead to
    cdef readonly object file         # the SharedFile
    cdef SeatLocks locks
    cdef Judge _judge
    cdef word _free[SEATS]            # of each seat that is ours: a bit for each slot that is not in use
    cdef word* _at_work[SEATS]        # … and for each slot how many threads work on it; see `rest`
    cdef word _seats                  # which are ours, as bits; 0 in a forked child
    cdef word _closing                # not 0 from `close` on: no slot is given out any more
    cdef word _leaving                # the seats that were ours then
    cdef word _out_of_use[SEATS]      # … and of each the slots that nobody can use again
    cdef word _seen_deaths
    cdef word _next_look_ns
    cdef readonly uint64_t epoch      # goes up when this process turns out to be a forked child

    cdef _join(self, Judge judge)
    cdef _attend(self)
    cdef int64_t slot(self) except -1
    cdef int64_t _free_slot(self) noexcept nogil
    cdef int64_t _slot_of_another_seat(self) except -2
    cdef int64_t _sit_down(self, int* error) noexcept
    cdef int _begin_tidying(self) except -1
    cdef int first_seat(self) except -1
    cdef void give_back(self, int64_t number) noexcept nogil
    cdef void rest(self, int64_t number) noexcept nogil
    cdef bint resume(self, int64_t number) noexcept nogil
    cdef void close(self) noexcept nogil
    cdef void _leave(self) noexcept nogil
    cdef bint notice(self, bint now) noexcept
    cdef bint _find_dead(self, bint* dead) noexcept nogil
    cdef bint _look(self, bint alone) noexcept nogil
    cdef bint _is_any_taken(self) noexcept nogil
    cdef bint next_orphan(self, uint64_t* number) noexcept nogil
