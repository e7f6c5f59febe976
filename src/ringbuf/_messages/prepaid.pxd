from libc.stdint cimport int64_t, uint64_t

from ringbuf._core.atomics cimport word
from ringbuf._messages.gathered cimport Column
from ringbuf._messages.ring cimport MessageRing


cdef class Gate:
    cdef word _shut


cdef class Purse:
    cdef word _unused
    cdef word _used


cdef class Entrance:
    cdef object __weakref__
    cdef MessageRing _ring
    cdef Gate _gate
    cdef word _closed
    cdef Purse _purse
    cdef object _fill
    cdef object _arrived
    # Of each wakeup: the set of the threads that sleep on it, the list of its
    # listeners.
    cdef set _sleepers, _held
    cdef list _listeners, _held_listeners
    cdef word _look_at_ns  # when `_arrived` is called next, also if nothing waits
    cdef int64_t _pace_ns

    cdef bint enter(self, event) except -1
    cdef bint _refill(self) except -1
    cdef bint _push(self, Column* column, uint64_t* seq) except -1


cdef class Entrances:
    cdef tuple _by_priority
    cdef Entrance _default

    cdef bint _enter(self, event, priority) except -1
