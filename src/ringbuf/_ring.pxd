from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint64_t

from ringbuf._atomics cimport word
from ringbuf._number cimport Kind, Quick
from ringbuf._ring_file cimport SharedRuns
from ringbuf._run cimport Runs


# What a ring and its handles have in common. Nothing in it changes after it was made, but what one thread leaves for its next
# call; on a line of its own, so that threads with a handle each do not fight over it.
cdef class Face:
    cdef Runs _runs
    cdef Kind _kind
    cdef Quick _quick     # how one number goes in and out in one step, while the GIL alone orders its threads
    cdef PyObject* _spares[2]  # ints handed out before: see `int_of`
    cdef readonly object dtype
    cdef object _memory   # the numpy array that owns what `_runs` leads to
    cdef SharedRuns _shared  # of a ring that processes share; else None

    cdef word _pad0[8]
    cdef word _seen       # the ring's `tail` as `claim` saw it last
    cdef word _pad1[7]

    cdef object _share(self, Face ring)


cdef class RingBuffer(Face):
    cdef object _allocate(self, uint64_t slots)


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
    cdef SharedRuns _shared
    cdef int64_t _slot    # of a shared ring: the slot that speaks of it,
    cdef uint64_t _epoch  # and between which forks it is ours

    cdef int begin(self, Face face, uint64_t most) except -1
    cdef bint end(self, bint commit) noexcept
    cdef bint end_shared(self, bint commit, bint quiet) noexcept
    cdef void view_gone(self) noexcept


cdef class Span:
    cdef Face _face
    cdef uint64_t _most
    cdef bint _reading
    cdef Lease _lease     # from the start of the block on
    cdef tuple _keys      # how to come from the whole block to this part of it

    cdef object _array(self)
