from libc.stdint cimport int64_t, uint32_t, uint64_t

from ringbuf._core.atomics cimport load_relaxed, word
from ringbuf._core.eventcount cimport EventCount
from ringbuf._shared.participant cimport Participant


# In Waiting.closed.
cdef enum:
    OPEN = 0
    CLOSED = 1
    # By `__new__` alone: there is a ring that is of no use, so that nothing is missing.
    UNMADE = 2


# One for a ring and all its handles.
cdef class Waiting:
    cdef EventCount* filled       # signalled when there is something to take
    cdef object memory            # … which lies in this
    cdef Participant participant  # of a ring that processes share; else None
    # The ReadyFd that event loops of this process listen to, if any does.
    cdef list ears
    cdef word listening           # 1: there is one, and what follows says how to reach it
    cdef word closed              # OPEN, CLOSED or UNMADE
    cdef int _source              # what to read until it is empty
    cdef int _writer              # -1: there is none, but a timer
    cdef int _timer
    cdef uint64_t _number
    cdef uint64_t _nonce
    cdef uint64_t _source_device, _source_inode, _writer_device, _writer_inode
    cdef uint64_t _epoch          # of the process that listens
    cdef char _name[48]           # what the names of all ears of a shared ring begin with

    cdef int sleep(self, EventCount* event, uint32_t seen, int64_t deadline_ns) except -1
    cdef void call(self, EventCount* event) noexcept
    cdef int fileno(self) except -1
    cdef void listen(self) noexcept
    cdef void hear(self) noexcept
    cdef bint _is_ours(self) noexcept
    cdef uint64_t _epoch_now(self) noexcept
    cdef void close(self, EventCount* room) noexcept
    cdef int refuse(self) except -1


cdef inline int check_open(Waiting waiting) except -1:
    """Raise where the ring is closed, or was never made."""
    if load_relaxed(&waiting.closed) != OPEN:
        waiting.refuse()
    return 0


cdef inline int check_made(Waiting waiting) except -1:
    """Raise where the ring was never made."""
    if load_relaxed(&waiting.closed) == UNMADE:
        waiting.refuse()
    return 0


cdef inline bint is_closed(Waiting waiting) noexcept:
    """Whether the ring was closed."""
    return load_relaxed(&waiting.closed) == CLOSED


cdef Waiting new_waiting(EventCount* filled, object memory, Participant participant)
cdef double seconds_of(object timeout) except -1
cdef int64_t deadline_of(double seconds) noexcept
