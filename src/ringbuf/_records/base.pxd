from cpython.ref cimport PyObject
from libc.stdint cimport uint64_t

from ringbuf._core.atomics cimport word
from ringbuf._records.file cimport SharedRuns
from ringbuf._records.numbers cimport Kind, Quick
from ringbuf._records.positions cimport Runs
from ringbuf._records.rows cimport Rows
from ringbuf._shared.waiting cimport Waiting

cdef uint64_t MAX_CAPACITY


# Nothing in it changes after it was made, but what one call leaves for the next: that
# has a cache line of its own, so that threads with a handle each do not contend for it.
cdef class RecordRingBase:
    cdef Runs _runs
    cdef Kind _kind
    # How one record goes in and out in one step, while the GIL alone orders its
    # threads.
    cdef Quick _quick
    cdef Rows _rows       # of records that are np.void; else None
    cdef PyObject* _spares[2]  # ints handed out before: see `int_of`
    cdef readonly object dtype
    cdef object _memory   # the numpy array that owns what `_runs` leads to
    cdef SharedRuns _shared  # of a ring that processes share; else None
    cdef Waiting _waiting
    cdef object _handles    # of a ring: its handles, as far as they live, by their id
    cdef object __weakref__

    cdef word _pad0[8]
    cdef word _seen       # the ring's `tail` as `claim` saw it last
    cdef word _pad1[7]

    cdef object _share(self, RecordRingBase ring)
