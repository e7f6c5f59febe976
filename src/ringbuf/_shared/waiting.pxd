from libc.stdint cimport int64_t, uint32_t

from ringbuf._core.atomics cimport word
from ringbuf._core.eventcount cimport Bell
from ringbuf._shared.participant cimport Participant


# One for a ring and all its handles.
cdef class Waiting:
    cdef Bell* filled             # rung when there is something to take
    cdef object memory            # … which lies in this
    cdef Participant participant  # of a ring that processes share; else None
    cdef list ears                # the ReadyFd that event loops of this process listen to, if any does
    cdef word listening           # 1: there is one

    cdef int sleep(self, Bell* bell, uint32_t seen, int64_t deadline_ns) except -1
    cdef int call(self, Bell* bell) except -1
    cdef int fileno(self) except -1
    cdef int listen(self) except -1
    cdef int hear(self) except -1
    cdef object _ear(self)


cdef Waiting new_waiting(Bell* filled, object memory, Participant participant)
cdef double seconds_of(object timeout) except -1
cdef int64_t deadline_of(double seconds) noexcept
