from libc.stdint cimport uint64_t

from ringbuf._atomics cimport word
from ringbuf._number cimport Kind
from ringbuf._run cimport Runs


# What a ring and its handles have in common. Nothing in it changes after it was made.
cdef class Face:
    cdef Runs _runs
    cdef Kind _kind
    cdef readonly object dtype
    cdef object _memory   # the numpy array that owns what `_runs` leads to

    cdef object _share(self, Face ring)


cdef class RingBuffer(Face):
    pass


cdef class Producer(Face):
    pass


cdef class Consumer(Face):
    pass


# The hold of a block on a part of the ring's memory, which it lends out as a buffer.
cdef class Lease:
    cdef Runs _runs
    cdef object _memory
    cdef uint64_t _position
    cdef uint64_t _count
    cdef Py_ssize_t _nbytes
    cdef bint _reading
    cdef word _lent       # buffers that are out, and ENDED

    cdef bint end(self, bint commit) noexcept


cdef class Span:
    cdef Face _face
    cdef uint64_t _most
    cdef bint _reading
    cdef Lease _lease     # from the start of the block on
    cdef tuple _keys      # how to come from the whole block to this part of it

    cdef object _array(self)
