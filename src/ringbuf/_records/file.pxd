from libc.stdint cimport int64_t, uint64_t

from ringbuf._core.atomics cimport word
from ringbuf._records.positions cimport Runs
from ringbuf._shared.op_slots cimport OpSlot
from ringbuf._shared.participant cimport Participant


cdef class SharedRuns:
    cdef Runs runs
    cdef object memory           # the numpy array that owns what `runs` leads to
    cdef Participant participant
    # A deque: (epoch, slot) of blocks that gave back, until all of that is taken again.
    cdef object given
    cdef word takes

    cdef int64_t begin(self, OpSlot** slot) except -1
    cdef void end(self, int64_t number) noexcept
    cdef int return_taken(self, OpSlot* slot, int64_t number, uint64_t position) except -1
    cdef int sweep(self) except -1
    cdef uint64_t claim(
        self, OpSlot* slot, word* seen, uint64_t most, bint contiguous, uint64_t* position
    ) except? 0xFFFFFFFF
    cdef uint64_t take(
        self, OpSlot* slot, uint64_t most, bint contiguous, uint64_t* position
    ) except? 0xFFFFFFFF
    cdef uint64_t try_take(
        self, OpSlot* slot, uint64_t most, bint contiguous, uint64_t* position
    ) noexcept
    cdef uint64_t waiting(self) noexcept
    cdef object check(self)
