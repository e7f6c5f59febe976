# cython: freethreading_compatible=True
"""Blocks: the memory of a RingBuffer itself, for the length of a `with` block.

`reserve` and `peek` show it as a Span. A Span makes an array of what it shows at each
use and keeps none, so that nothing can outlive the block by accident; an array that a
caller took out of it by `np.asarray` is counted. When the block ends

    reserve  without an error the records are published. With one the claim is undone,
             as if it had never been.
    peek     without an error the records are freed. With one they are given back: the
             next consumer gets them, before all others and in their order. Records that
             other consumers took in the meantime stay with them.

An array that is still alive when its block ends is an error (BufferError). What was
reserved then holds nothing, and its memory is used again only when the array has gone
(in a ring that processes share, what was pushed behind it is to be seen only then);
what was peeked at is given back, and the array, which cannot be written, may show other
records from then on.
"""

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE
from libc.stdint cimport uint64_t

from ringbuf._core.atomics cimport (
    cas_total, exchange_total, fetch_add_relaxed, fetch_add_total, fetch_sub_total, load_relaxed,
)
from ringbuf._core.counts cimport positive
from ringbuf._core.buffers cimport fill_bytes
from ringbuf._core.eventcount cimport wanted
from ringbuf._records.base cimport RecordRingBase, MAX_CAPACITY
from ringbuf._records.positions cimport (
    HELD, PUBLISHED, VOID, Runs, abandon, claim, give_back, leave, publish, release, rewind, take,
)
from ringbuf._records.shared_positions cimport shared_publish, shared_release
from ringbuf._shared.op_slots cimport OpSlot
from ringbuf._shared.waiting cimport check_open

import numpy as np

# In Lease._lent, above any number of buffers.
cdef uint64_t ENDED = <uint64_t>1 << 32
# The key that makes a Span: its `__new__` alone would make one of nothing.
cdef object OURS = object()


# So that `_memory` is still there when it is deallocated; nothing that it refers to can
# refer back.
@cython.no_gc
@cython.final
cdef class Lease:
    """A part of the ring's memory that a block holds; lends it out as buffers and
    counts them.
    """

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        cdef uint64_t lent = load_relaxed(&self._lent)
        if self._reading and flags & PyBUF_WRITABLE:
            raise BufferError("what is peeked at cannot be written")
        while True:
            if lent & ENDED:
                raise BufferError("the view ended with its block")
            if cas_total(&self._lent, &lent, lent + 1):
                break
        buffer.obj = self
        cdef uint64_t offset = (self._position & self._runs.mask) * self._runs.itemsize
        fill_bytes(buffer, self._runs.data + offset, &self._nbytes, self._reading)

    def __releasebuffer__(self, Py_buffer* buffer):
        if fetch_sub_total(&self._lent, 1) == ENDED + 1 and not self._reading and self._count > 0:
            self.view_gone()

    cdef int begin(self, RecordRingBase ring, uint64_t most) except -1:
        self._runs = ring._runs
        self._memory = ring._memory
        self._shared = ring._shared
        self._waiting = ring._waiting
        if self.hold(ring, most) == 0 and self._reading and load_relaxed(&self._waiting.listening):
            self._waiting.listen()
            if self.hold(ring, most) > 0:
                self._waiting.hear()
        self._nbytes = self._count * self._runs.itemsize
        return 0

    cdef uint64_t hold(self, RecordRingBase ring, uint64_t most) except? 0xFFFFFFFF:
        """Take or claim what is there, up to `most`; returns how many."""
        cdef OpSlot* slot
        check_open(self._waiting)
        if self._shared is not None:
            self._slot = self._shared.begin(&slot)
            try:
                if self._reading:
                    self._count = self._shared.take(slot, most, True, &self._position)
                else:
                    self._count = self._shared.claim(slot, &ring._seen, most, True, &self._position)
            finally:
                if self._count == 0:
                    self._shared.end(self._slot)
            self._epoch = self._shared.participant.epoch
        elif self._reading:
            self._count = take(&self._runs, most, True, &self._position)
        else:
            self._count = claim(&self._runs, &ring._seen, most, True, &self._position)
            fetch_add_relaxed(&self._runs.cursors.absent, self._count)
        return self._count

    cdef bint end(self, bint commit) noexcept:
        """End the block; False: buffers are still out, and nothing was committed. A
        second call does nothing.
        """
        cdef uint64_t none = 0
        if exchange_total(&self._ended, 1):
            return True
        cdef Runs* r = &self._runs
        cdef bint quiet = cas_total(&self._lent, &none, ENDED)
        if self._shared is not None:
            return self.end_shared(commit, quiet)
        if self._count == 0:
            pass
        elif self._reading:
            if commit and quiet:
                release(r, self._position, self._count)
                rewind(r)
            else:
                give_back(r, self._position, self._count)
        elif not quiet:
            publish(r, self._position, self._count, HELD)
            # The last buffer may have come back in between.
            if fetch_add_total(&self._lent, ENDED) == 0:
                self.view_gone()
            return False
        elif commit:
            fetch_add_relaxed(&r.cursors.absent, -self._count)
            publish(r, self._position, self._count, PUBLISHED)
        else:
            abandon(r, self._position, self._count)
        if not quiet:
            fetch_add_total(&self._lent, ENDED)
        return quiet

    cdef bint end_shared(self, bint commit, bint quiet) noexcept:
        """The same for a ring that processes share."""
        cdef OpSlot* slot = &self._runs.shared.control.slots[self._slot]
        if self._count == 0 or self._epoch != self._shared.participant.epoch:
            pass  # the parent ends what was begun before a fork
        elif self._reading and commit and quiet:
            shared_release(&self._runs, slot, self._position, self._count)
            self._shared.end(self._slot)
        elif self._reading:
            self._shared.return_taken(slot, self._slot, self._position)
        elif quiet:
            shared_publish(
                &self._runs, slot, self._position, self._count, PUBLISHED if commit else VOID
            )
            self._shared.end(self._slot)
        if not quiet and fetch_add_total(&self._lent, ENDED) == 0:
            if not self._reading and self._count > 0:
                self.view_gone()
        return quiet

    cdef int tell(self) except -1:
        """Wake what waits for records or room: the end of a block may bring either."""
        if self._count > 0 and wanted(&self._runs.cursors.records):
            self._waiting.call(&self._runs.cursors.records)
        if self._count > 0 and wanted(&self._runs.cursors.room):
            self._waiting.call(&self._runs.cursors.room)
        return 0

    cdef void view_gone(self) noexcept:
        """The last view of what was reserved has gone, after the block."""
        if self._shared is None:
            leave(&self._runs, self._position, self._count)
        elif self._epoch == self._shared.participant.epoch:
            shared_publish(
                &self._runs, &self._runs.shared.control.slots[self._slot], self._position,
                self._count, VOID
            )
            self._shared.end(self._slot)
        self.tell()

    def __dealloc__(self):
        # A block that began and never ended.
        if not load_relaxed(&self._lent) & ENDED:
            self.end(False)
            self.tell()


@cython.final
cdef class Span:
    """Records of a ring, in place, for the length of a `with` block: what `reserve` and
    `peek` give. For one thread.

    Within the block it is used like an array: `len(span)`; `span[i]` is a copy of one
    record; a slice or the name of a field gives a Span of that part; assignments to any
    of these write into the ring, converting as numpy does (not after `peek`);
    `np.asarray(span)` is an array of the ring's own memory, which has to be gone
    (`del`) when the block ends: else the end raises BufferError. After the block every
    use raises ValueError.
    """

    def __cinit__(self, key=None):
        if key is not OURS:
            raise TypeError("a Span is made by RingBuffer.reserve() and RingBuffer.peek()")

    def __enter__(self):
        if self._lease is not None:
            raise ValueError("a view serves for one block: call reserve() or peek() for another")
        cdef Lease lease = Lease.__new__(Lease)
        lease._reading = self._reading
        lease.begin(self._ring, self._most)
        self._lease = lease
        return self

    def __exit__(self, kind, error, traceback):
        # Without an array: making one may run the caller's code, or run out of memory.
        self._check_begun()
        cdef bint quiet = self._lease.end(kind is None)
        self._lease.tell()
        if not quiet and kind is None:
            raise BufferError(
                "an array of this view is still alive at the end of its block (del it before): "
                + (
                    "what was peeked at is given back" if self._reading
                    else "what was reserved is not published"
                )
            )

    def __len__(self):
        return len(self._array())

    def __iter__(self):
        cdef Py_ssize_t i
        for i in range(len(self)):
            yield self[i]

    def __getitem__(self, key):
        part = self._array()[key]
        if isinstance(key, (slice, str)):
            return span_of(self._ring, self._most, self._reading, self._lease, self._keys + (key,))
        if isinstance(part, (np.ndarray, np.void)):
            return part.copy()
        return part.item() if part.dtype.kind in "biufc" else part

    def __setitem__(self, key, value):
        self._array()[key] = value

    def __array__(self, dtype=None, copy=None):
        array = self._array()
        if dtype is None or np.dtype(dtype) == array.dtype:
            return array.copy() if copy else array
        if copy is False:
            raise ValueError(
                f"an array of dtype {dtype} can only be a copy of records of dtype {array.dtype}"
            )
        return array.astype(dtype)

    def __repr__(self):
        if self._lease is None:
            state = "not begun"
        else:
            state = "ended" if load_relaxed(&self._lease._lent) & ENDED else f"{len(self)} records"
        return f"<Span of a {self._ring.dtype} ring: {state}>"

    def __reduce__(self):
        raise TypeError("a Span is live shared state and cannot be copied or pickled")

    cdef int _check_begun(self) except -1:
        """Raise unless the block has begun and has not ended."""
        if self._lease is None:
            raise ValueError("the view begins with its block: with ring.reserve(n) as span")
        if load_relaxed(&self._lease._lent) & ENDED:
            raise ValueError("the view ended with its block")
        return 0

    cdef object _array(self):
        """What is shown, as a new array."""
        self._check_begun()
        array = np.asarray(memoryview(self._lease)).view(self._ring.dtype)
        for key in self._keys:
            array = array[key]
        return array


cdef Span new_span(RecordRingBase ring, object n, bint reading):
    return span_of(ring, positive(n, "n"), reading, None, ())


cdef Span span_of(RecordRingBase ring, object most, bint reading, Lease lease, tuple keys):
    cdef Span span = Span.__new__(Span, OURS)
    span._ring = ring
    span._most = min(most, MAX_CAPACITY)
    span._reading = reading
    span._lease = lease
    span._keys = keys
    return span
