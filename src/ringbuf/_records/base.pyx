# cython: freethreading_compatible=True
"""RecordRingBase: what a RingBuffer and its handles have in common: the way to the
memory, and what they say of it.
"""

from cpython.ref cimport Py_XDECREF
from libc.stdint cimport uint64_t

from ringbuf._core.atomics cimport load_acquire, store_relaxed
from ringbuf._records.positions cimport waiting
from ringbuf._shared.waiting cimport check_open, is_closed

# Widths of what counts records; the index alone would have 16 GiB.
MAX_CAPACITY = <uint64_t>1 << 31


cdef class RecordRingBase:
    """What a ring and its handles have in common."""

    @property
    def capacity(self):
        """How many records there is room for: a power of two."""
        return self._runs.mask + 1

    def __len__(self):
        """Records pushed and not yet taken; while others push or pop, only for a
        moment.
        """
        if self._runs.cursors == NULL:
            return 0  # a RecordRingBase that is neither a ring nor a handle
        check_open(self._waiting)
        return waiting(&self._runs) if self._shared is None else self._shared.waiting()

    @property
    def path(self):
        """The file that it shares with other processes, or None."""
        return None if self._shared is None else self._shared.participant.file.path

    def __repr__(self):
        where = "" if self._shared is None else f", path={self.path!r}"
        closed = self._waiting is not None and is_closed(self._waiting)
        state = "closed" if closed else f"records={len(self)}"
        name = type(self).__name__
        return f"{name}(capacity={self.capacity}, dtype={self.dtype!r}, {state}{where})"

    def __reduce__(self):
        raise TypeError(
            f"a {type(self).__name__} is live shared state and cannot be copied or pickled"
        )

    def __dealloc__(self):
        Py_XDECREF(self._spares[0])
        Py_XDECREF(self._spares[1])

    cdef object _share(self, RecordRingBase ring):
        self._runs = ring._runs
        self._kind = ring._kind
        self._quick = ring._quick
        self._rows = None if ring._rows is None else ring._rows.of_handle()
        self._memory = ring._memory
        self._shared = ring._shared
        self._waiting = ring._waiting
        self.dtype = ring.dtype
        store_relaxed(&self._seen, load_acquire(&ring._seen))
        ring._handles[id(self)] = self
        check_open(ring._waiting)  # else `close` may not have seen this one
        return self
