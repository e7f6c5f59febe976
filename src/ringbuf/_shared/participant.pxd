from libc.stdint cimport int64_t, uint64_t

from ringbuf._core.atomics cimport word
from ringbuf._shared.op_slots cimport PARTICIPANTS, ControlBlock
from ringbuf._shared.ranges cimport Range
from ringbuf._shared.participant_locks cimport ParticipantLocks
from ringbuf._shared.shared_ring cimport SharedRing

# What is wrong with the ring (Frames or Runs), or NULL; asked while no other process
# takes part. `ranges`: room for MOST_RANGES.
ctypedef const char* (*Judge)(void* ring, Range* ranges) noexcept nogil


cdef class Participant:
    cdef ControlBlock* control
    cdef SharedRing ring              # what the ring's Frames or Runs lead to
    cdef readonly object file         # the SharedFile
    cdef ParticipantLocks locks
    cdef Judge _judge
    # Of each participant slot of ours: a bit for each op slot that is not in use …
    cdef word _free[PARTICIPANTS]
    # … and for each op slot how many threads work on it; see `rest_take`.
    cdef word* _at_work[PARTICIPANTS]
    cdef word _own                    # which slots are ours, as bits; 0 in a forked child
    cdef word _closing                # not 0 from `close` on: no op slot is given out any more
    cdef word _leaving                # the participant slots that were ours then …
    cdef word _out_of_use[PARTICIPANTS]  # … and of each the op slots that serve no more
    cdef word _seen_deaths
    cdef word _next_look_ns
    cdef readonly uint64_t epoch      # goes up when this process turns out to be a forked child

    cdef _join(self, Judge judge)
    cdef _attend(self)
    cdef int64_t op_slot(self) except -1
    cdef int64_t _free_op_slot(self) noexcept nogil
    cdef int64_t _op_slot_of_another(self) except -2
    cdef int64_t _take_participant_slot(self, int* error) noexcept
    cdef int _begin_tidying(self) except -1
    cdef int own_number(self) except -1
    cdef void give_back(self, int64_t number) noexcept nogil
    cdef void rest_take(self, int64_t number) noexcept nogil
    cdef bint resume_take(self, int64_t number) noexcept nogil
    cdef void close(self) noexcept nogil
    cdef void _leave(self) noexcept nogil
    cdef bint notice_dead(self, bint now) noexcept
    cdef bint _find_dead(self, bint* dead) noexcept nogil
    cdef bint _tidy_up(self, bint alone) noexcept nogil
    cdef bint _is_any_taken(self) noexcept nogil
    cdef bint next_orphan(self, uint64_t* number) noexcept nogil
