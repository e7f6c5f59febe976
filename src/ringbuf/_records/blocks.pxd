from libc.stdint cimport int64_t, uint64_t

from ringbuf._core.atomics cimport word
from ringbuf._records.base cimport RecordRingBase
from ringbuf._records.file cimport SharedRuns
from ringbuf._records.positions cimport Runs
from ringbuf._shared.waiting cimport Waiting


# The hold of a block on a part of the ring's memory, which it lends out as a buffer.
cdef class Lease:
    cdef Runs _runs
    cdef object _memory
    cdef uint64_t _position
    cdef uint64_t _count
    cdef Py_ssize_t _nbytes
    cdef bint _reading
    cdef word _lent       # buffers that are out, and ENDED
    cdef word _ended      # 1: the block has ended, or is about to
    cdef SharedRuns _shared
    cdef Waiting _waiting
    cdef int64_t _slot    # of a shared ring: its op slot, …
    cdef uint64_t _epoch  # … and the epoch of the process that took it

    cdef int begin(self, RecordRingBase ring, uint64_t most) except -1
    cdef uint64_t hold(self, RecordRingBase ring, uint64_t most) except? 0xFFFFFFFF
    cdef bint end(self, bint commit) noexcept
    cdef bint end_shared(self, bint commit, bint quiet) noexcept
    cdef int tell(self) except -1
    cdef void view_gone(self) noexcept


cdef class Span:
    cdef RecordRingBase _ring
    cdef uint64_t _most
    cdef bint _reading
    cdef Lease _lease     # from the start of the block on
    cdef tuple _keys      # how to come from the whole block to this part of it

    cdef int _check_begun(self) except -1
    cdef object _array(self)


cdef Span new_span(RecordRingBase ring, object n, bint reading)
