# cython: freethreading_compatible=True
"""RingBuffer: a bounded, lock-free queue of records of one numpy dtype in one block of memory.

Contract. Any number of threads may push and pop, with the GIL or without it. No method blocks: a push puts in as many
records as fit, from the front, and says how many; a pop gives what is there. Records of one push stay together and in
order. Only `pop_many` without `out`, and what is not a plain number, allocate; the ring itself is allocated once. What a push
refuses as invalid changes nothing. Records are copied as bytes: objects are refused, and so is any record that a conversion
would change (an integer out of range, a string that is too long), not only by its dtype but by its value.

Layout. One tag for each slot, then the slots: 8 + itemsize bytes a record. What a push of many costs besides its copy is one
exchange and one tag, whatever its size. See _run.pxd for positions, ordering and progress.

Blocks. `reserve` and `peek` show the memory of the ring itself for the length of a `with` block, as a Span. A Span makes an
array of what it shows at each use and keeps none, so that nothing can outlive the block by accident; an array that somebody took
out of it by `np.asarray` is counted. When the block ends

    reserve  without an error the records are published. With one the claim is undone, as if it had never been.
    peek     without an error the records are freed. With one they are given back: the next consumer gets them, before all
             others and in their order. Those that other consumers took in the meantime stay with them.

An array that is still alive when its block ends is an error (BufferError). What was reserved then holds nothing, and its memory
is used again only when the array has gone (in a ring that processes share, what was pushed behind it is to be seen only then);
what was peeked at is given back, and the array, which can not be written, may
show other records from then on.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.ref cimport Py_XDECREF
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ringbuf._atomics cimport (
    cas_total, fetch_add_relaxed, fetch_add_total, fetch_sub_total, load_acquire, load_relaxed, store_relaxed, word,
)
from ringbuf._columns cimport NOGIL_BYTES
from ringbuf._number cimport (
    BY_NUMPY, BY_STEPS, from_bits, from_quick, get_bits, kind_of_dtype, put_bits, quick_bits, quick_of, to_bits,
)
from ringbuf._ring_file cimport SharedRuns
from ringbuf._run cimport (
    HELD, PUBLISHED, RELEASED, RETURNED, VOID, RunCursors, Runs, abandon, add_one, claim, count_of, give_back, is_of, kind_of,
    leave, pass_one, publish, release, rewind, take, waiting,
)
from ringbuf._shared_run cimport offer, shared_publish, shared_release
from ringbuf._slots cimport Slot

import numpy as np

from ringbuf._records import as_records
from ringbuf._ring_file import attach, create_or_attach
from ringbuf._shared_file import SharedFile


cdef extern from *:
    """
    /* Whether the GIL orders the threads of this process. Not asked at run time: an interpreter built without one turns it
       on and off as it imports modules. */
    #ifdef Py_GIL_DISABLED
    #define PENSTOCK_GIL 0
    #else
    #define PENSTOCK_GIL 1
    #endif
    """
    const bint PENSTOCK_GIL


cdef enum:
    LINE = 64  # bytes in a cache line: where the cursors, the tags and the records start
    # An empty ring goes back to its start when it has come this far, so that it stays in a second-level cache beside what is
    # copied in and out. Measured for 4,096 records of 64 B at a time: 0.92 times two copies of them; without it 1.2 times
    # for a ring of 4 MiB and 1.7 times for one of 64 MiB.
    REWIND_BYTES = 128 * 1024

# Widths of what counts records; the index alone would have 16 GiB.
cdef uint64_t MAX_CAPACITY = <uint64_t>1 << 31
# In Lease._lent, above any number of buffers.
cdef uint64_t ENDED = <uint64_t>1 << 32


cdef class Face:
    """What a ring and its handles have in common."""

    @property
    def capacity(self):
        """How many records there is room for: a power of two."""
        return self._runs.mask + 1

    def __len__(self):
        """Records pushed and not yet taken; while others push or pop it is a moment's truth."""
        return waiting(&self._runs) if self._shared is None else self._shared.waiting()

    @property
    def path(self):
        """The file that it shares with other processes, or None."""
        return None if self._shared is None else self._shared.participant.file.path

    def __repr__(self):
        where = "" if self._shared is None else f", path={self.path!r}"
        return f"{type(self).__name__}(capacity={self.capacity}, dtype={self.dtype!r}, records={len(self)}{where})"

    def __reduce__(self):
        raise TypeError(f"a {type(self).__name__} is live shared state and can not be copied or pickled")

    def __dealloc__(self):
        Py_XDECREF(self._spares[0])
        Py_XDECREF(self._spares[1])

    cdef object _share(self, Face ring):
        self._runs = ring._runs
        self._kind = ring._kind
        self._quick = ring._quick
        self._memory = ring._memory
        self._shared = ring._shared
        self.dtype = ring.dtype
        store_relaxed(&self._seen, load_acquire(&ring._seen))
        return self


@cython.final
cdef class RingBuffer(Face):
    """A bounded, lock-free queue of records of one numpy dtype; for any number of producer and consumer threads.

    capacity: how many records fit. It is rounded up to a power of two, at least 2; `capacity` tells the true number.
    dtype: any numpy dtype of a fixed size, scalar or structured, without objects. A record takes its itemsize and 8 bytes.
    path: a file for the ring, which other processes can use at the same time (Linux). It is made, all of it allocated, or,
        where it is there already, attached to, if it has that capacity and dtype: else SharedFileError. What is in it outlives
        every process; what one has taken and not freed when it dies, is delivered again. A push of more than 4,096 records is
        several.

    >>> ring = RingBuffer(1000, "i8")
    >>> ring.capacity
    1024
    >>> ring.try_push(7)
    True
    >>> ring.push_many([8, 9, 10])
    3
    >>> ring.try_pop()
    7
    >>> ring.pop_many(2).tolist()
    [8, 9]
    >>> with ring.reserve(2) as span:
    ...     span[:] = 11, 12
    >>> with ring.peek(8) as span:
    ...     int(sum(span))
    33
    """

    def __cinit__(self, capacity, dtype, *, path=None):
        cdef uint64_t slots
        # `attach` puts an open file in the place of the capacity.
        file = capacity if isinstance(capacity, SharedFile) else None
        wanted = file.meta["records"] if file is not None else positive(capacity, "capacity")
        if wanted > MAX_CAPACITY:
            raise ValueError(f"capacity must be from 1 to {MAX_CAPACITY:,} records, not {wanted:,}")
        self.dtype = dtype = np.dtype(dtype)
        if dtype.hasobject:
            raise TypeError(f"dtype {dtype} holds Python objects, which have no bytes of their own to copy")
        if dtype.subdtype is not None:
            raise TypeError(f"dtype {dtype} is one of arrays: make it a field, as in np.dtype([('values', {dtype})])")
        if dtype.itemsize == 0:
            raise ValueError(f"dtype {dtype!r} has records of no bytes: give it a size")
        self._kind = kind_of_dtype(dtype)
        slots = max(2, 1 << (wanted - 1).bit_length())
        if path is not None:
            file = create_or_attach(path, slots, dtype)
        if file is None:
            self._allocate(slots)
            return
        self._shared = SharedRuns(file, slots, dtype.itemsize)
        self._runs = self._shared.runs
        self._memory = self._shared.memory
        store_relaxed(&self._seen, load_acquire(&self._runs.cursors.tail))

    cdef object _allocate(self, uint64_t slots):
        cdef uint64_t itemsize = self.dtype.itemsize
        # The records start on a cache line of their own.
        cdef uint64_t before = sizeof(RunCursors) + (slots * sizeof(word) + LINE - 1) // LINE * LINE
        # Zeroed memory is not touched until it is used. A line more, so that the first thing can start on one.
        self._memory = np.zeros(before + slots * itemsize + LINE, dtype=np.uint8)
        cdef size_t address = (<size_t>self._memory.ctypes.data + LINE - 1) & ~<size_t>(LINE - 1)
        self._runs.cursors = <RunCursors*>address
        self._runs.index = <word*>(address + sizeof(RunCursors))
        self._runs.data = <unsigned char*>(address + before)
        self._runs.mask = slots - 1
        self._runs.itemsize = itemsize
        self._runs.alone = PENSTOCK_GIL
        self._quick = quick_of(self._kind, itemsize) if PENSTOCK_GIL else BY_STEPS

    @staticmethod
    def attach(path):
        """Open the ring that another process, or an earlier run, made in this file.

        Raises FileNotFoundError, and SharedFileError for a file that is not a RingBuffer's, damaged, or of another version.
        """
        file, _, dtype = attach(path)
        return RingBuffer(file, dtype)

    @cython.binding(False)
    @cython.always_allow_keywords(False)
    def try_push(self, record):
        """try_push(record) -> bool

        Push one record; False: no room now. Raises TypeError or ValueError for what the dtype can not hold as it is, and
        OverflowError for a number out of its range.
        """
        return push_one(self, record)

    @cython.binding(False)
    @cython.always_allow_keywords(False)
    def push_many(self, records):
        """push_many(records) -> int

        Push as many of `records` as fit, from the front; returns how many.

        records: a one-dimensional numpy array, anything that numpy sees as one, or a sequence of what `try_push` takes.
            An array of another dtype is converted where numpy's "same_kind" rule allows it and every value can be held.
            TypeError or ValueError (OverflowError for numbers) otherwise, before anything is pushed.
        """
        return push_some(self, records)

    def reserve(self, n):
        """A block to write up to `n` records in place: `with ring.reserve(n) as span`.

        Claimed when the block begins; published when it ends, or undone if it raises. `len(span)` tells how many there are:
        fewer than `n` where the memory of the ring ends or there is no more room, and 0 if there is none. What `span` does not
        get written holds an earlier record.
        """
        return new_span(self, n, False)

    @cython.binding(False)
    def try_pop(self):
        """try_pop() -> record | None

        Take the oldest record; None: nothing there. An int, float, bool or complex where the dtype is one of numbers, else a
        numpy scalar (np.void for a structured dtype).
        """
        return pop_one(self)

    def pop_many(self, max_items=None, out=None):
        """Take up to `max_items` of the oldest records (None: all that are there) as an array; empty: nothing there.

        out: a writable, contiguous, one-dimensional array of the ring's dtype to put them in; the part that was filled is
            returned, and no more records are taken than it holds.
        """
        return pop_some(self, max_items, out)

    def peek(self, n):
        """A block to read up to `n` of the oldest records in place: `with ring.peek(n) as span`.

        Taken when the block begins, so that no other consumer gets them; freed when it ends, or given back if it raises.
        `len(span)` tells how many there are: fewer than `n` where the memory of the ring ends, and 0 if there is none.
        """
        return new_span(self, n, True)

    def producer(self):
        """A handle for a thread that pushes: with no GIL, threads that share an object fight over its reference count."""
        return (<Face>Producer.__new__(Producer))._share(self)

    def consumer(self):
        """A handle for a thread that pops: with no GIL, threads that share an object fight over its reference count."""
        return (<Face>Consumer.__new__(Consumer))._share(self)

    def _start_at(self, uint64_t position):
        """Let a ring that was never used count from there on. For tests of the widths."""
        assert load_relaxed(&self._runs.cursors.write) == 0
        store_relaxed(&self._runs.cursors.tail, position)
        store_relaxed(&self._seen, position)
        store_relaxed(&self._runs.cursors.write, position)
        store_relaxed(&self._runs.cursors.read, position << 32)

    def _use_exchanges(self):
        """Do as without a GIL, before there are handles. For tests."""
        self._runs.alone = False
        self._quick = BY_STEPS

    def _check(self):
        """Assert every invariant of a ring that nobody uses at the moment, but for blocks that are open. For tests.

        Returns how many records are reserved, and how many are taken and neither freed nor given back.
        """
        if self._shared is not None:
            return self._shared.check()
        cdef Runs* r = &self._runs
        cdef uint64_t tail = load_acquire(&r.cursors.tail), read = load_acquire(&r.cursors.read)
        cdef uint64_t write = load_acquire(&r.cursors.write), capacity = r.mask + 1, tag
        cdef uint64_t at = tail + <uint32_t>((read >> 32) - tail), end = at + <uint32_t>read, position = tail
        cdef uint64_t returned = 0, ranges = 0, done = 0, void = 0, reserved = 0
        assert at - tail <= capacity and end - tail <= capacity and write - tail <= capacity, (tail, read, write)
        assert write - end <= capacity, "more is known to be published than was claimed"
        tag = load_acquire(&r.index[tail & r.mask])
        assert tail == at or not is_of(r, tag, tail) or kind_of(tag) != RELEASED, "a range that nobody needs is not freed"
        while position != at:
            tag = load_acquire(&r.index[position & r.mask])
            if not is_of(r, tag, position) or kind_of(tag) == PUBLISHED:
                position += 1
                continue
            position += count_of(r, tag)
            assert at - position <= capacity, "a range goes on behind `read`"
            if kind_of(tag) == RELEASED:
                done += count_of(r, tag)
            elif kind_of(tag) == RETURNED:
                returned += count_of(r, tag)
                ranges += 1
        assert ranges == load_acquire(&r.cursors.returned)
        position = end
        while position != write:
            tag = load_acquire(&r.index[position & r.mask])
            if not is_of(r, tag, position):
                position += 1
                reserved += 1
                continue
            assert kind_of(tag) in (PUBLISHED, VOID, HELD), "a range was released before it was taken"
            void += count_of(r, tag) if kind_of(tag) != PUBLISHED else 0
            position += count_of(r, tag)
            assert write - position <= capacity, "a run goes on behind `write`"
        assert load_acquire(&r.cursors.absent) == void + reserved - returned
        assert waiting(r) == write - at - void - reserved + returned
        return reserved, at - tail - done - returned


@cython.final
cdef class Producer(Face):
    """The pushing side of a RingBuffer, for one thread; made by `RingBuffer.producer()`. Its methods are the ring's."""

    def __init__(self):
        raise TypeError("a Producer is made by RingBuffer.producer()")

    @cython.binding(False)
    @cython.always_allow_keywords(False)
    def try_push(self, record):
        """As RingBuffer.try_push."""
        return push_one(self, record)

    @cython.binding(False)
    @cython.always_allow_keywords(False)
    def push_many(self, records):
        """As RingBuffer.push_many."""
        return push_some(self, records)

    def reserve(self, n):
        """As RingBuffer.reserve."""
        return new_span(self, n, False)


@cython.final
cdef class Consumer(Face):
    """The popping side of a RingBuffer, for one thread; made by `RingBuffer.consumer()`. Its methods are the ring's."""

    def __init__(self):
        raise TypeError("a Consumer is made by RingBuffer.consumer()")

    @cython.binding(False)
    def try_pop(self):
        """As RingBuffer.try_pop."""
        return pop_one(self)

    def pop_many(self, max_items=None, out=None):
        """As RingBuffer.pop_many."""
        return pop_some(self, max_items, out)

    def peek(self, n):
        """As RingBuffer.peek."""
        return new_span(self, n, True)


# ---------------------------------------------------------------- push and pop


cdef inline bint push_one(Face face, object record) except -1:
    cdef uint64_t bits, position
    # The commonest records, without the general case's choices (measured: 49 instructions rather than 103).
    if face._quick != BY_STEPS and quick_bits(face._quick, record, &bits):
        if not add_one(&face._runs, &position):
            return push_word(face, bits)
        (<uint64_t*>face._runs.data)[position & face._runs.mask] = bits
        publish(&face._runs, position, 1, PUBLISHED)
        return True
    return push_any(face, record)


cdef bint push_any(Face face, object record) except -1:
    cdef uint64_t bits
    if face._kind == BY_NUMPY:
        return push_array(face, as_records(face.dtype, [record])) == 1
    to_bits(face._kind, face._runs.itemsize, record, &bits)
    return push_word(face, bits)


cdef bint push_word(Face face, uint64_t bits) except -1:
    """Push a record that is a plain number."""
    cdef uint64_t position, itemsize = face._runs.itemsize
    cdef int64_t number
    cdef Slot* slot
    if face._shared is None:
        if claim(&face._runs, &face._seen, 1, False, &position) == 0:
            return False
        put_bits(face._runs.data + (position & face._runs.mask) * itemsize, itemsize, bits)
        publish(&face._runs, position, 1, PUBLISHED)
        return True
    number = face._shared.begin(&slot)
    try:
        if face._shared.claim(slot, &face._seen, 1, False, &position) == 0:
            return False
        put_bits(face._runs.data + (position & face._runs.mask) * itemsize, itemsize, bits)
        shared_publish(&face._runs, slot, position, 1, PUBLISHED)
        return True
    finally:
        face._shared.end(number)


cdef object push_some(Face face, object records):
    if type(records) is np.ndarray and records.dtype is face.dtype and records.ndim == 1 and records.flags.c_contiguous:
        return push_array(face, records)
    return push_array(face, gather(face, records) if face._kind != BY_NUMPY else as_records(face.dtype, records))


cdef uint64_t push_array(Face face, object array) except? 0xFFFFFFFF:
    """Push what fits of a contiguous array of the ring's dtype; returns how many records did."""
    cdef Py_buffer view
    cdef uint64_t count = 0, position
    cdef int64_t number
    cdef Slot* slot
    PyObject_GetBuffer(array, &view, PyBUF_SIMPLE)
    try:
        if view.len == 0:
            pass
        elif face._shared is not None:
            number = face._shared.begin(&slot)
            try:
                count = push_shared(face, slot, <unsigned char*>view.buf, view.len // face._runs.itemsize)
            finally:
                face._shared.end(number)
        else:
            count = claim(&face._runs, &face._seen, view.len // face._runs.itemsize, False, &position)
            if count > 0:
                copy_in(&face._runs, position, count, <unsigned char*>view.buf)
                publish(&face._runs, position, count, PUBLISHED)
    finally:
        PyBuffer_Release(&view)
    return count


cdef uint64_t push_shared(Face face, Slot* slot, unsigned char* source, uint64_t total) except? 0xFFFFFFFF:
    cdef uint64_t done = 0, count, position
    while done < total:
        count = face._shared.claim(slot, &face._seen, total - done, False, &position)
        if count == 0:
            break
        copy_in(&face._runs, position, count, source + done * face._runs.itemsize)
        shared_publish(&face._runs, slot, position, count, PUBLISHED)
        done += count
    return done


cdef inline object pop_one(Face face):
    cdef uint64_t position
    if face._quick != BY_STEPS and pass_one(&face._runs, &position):
        return from_quick(face._quick, (<uint64_t*>face._runs.data)[position & face._runs.mask], face._spares)
    return pop_any(face)


cdef object pop_any(Face face):
    cdef uint64_t bits, position
    cdef int64_t number
    cdef Slot* slot
    if face._kind == BY_NUMPY:
        array = pop_some(face, 1, None)
        if len(array) == 0:
            return None
        return array.item() if face.dtype.kind in "biufc" else array[0]
    if face._shared is not None:
        number = face._shared.begin(&slot)
        try:
            if face._shared.take(slot, 1, False, &position) == 0:
                return None
            bits = get_bits(face._runs.data + (position & face._runs.mask) * face._runs.itemsize, face._runs.itemsize)
            shared_release(&face._runs, slot, position, 1)
        finally:
            face._shared.end(number)
    elif take(&face._runs, 1, False, &position) == 0:
        return None
    else:
        bits = get_bits(face._runs.data + (position & face._runs.mask) * face._runs.itemsize, face._runs.itemsize)
        release(&face._runs, position, 1)
    return from_bits(face._kind, face._runs.itemsize, bits)


cdef object pop_some(Face face, object max_items, object out):
    cdef uint64_t most = MAX_CAPACITY if max_items is None else min(positive(max_items, "max_items"), MAX_CAPACITY)
    cdef uint64_t done = 0, count, position, itemsize = face._runs.itemsize
    cdef int64_t number
    cdef Slot* slot
    cdef Py_buffer view
    if out is None:
        # Allocated before anything is taken: if memory runs out, all is still there. For one at least: only a look at the tags
        # knows that there is nothing.
        array = np.empty(min(most, max(<uint64_t>len(face), <uint64_t>1)), face.dtype)
    elif not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a numpy array, not {type(out).__name__}")
    elif out.dtype != face.dtype or out.ndim != 1 or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(f"out must be a writable, contiguous array of one dimension and dtype {face.dtype}")
    else:
        array = out
    PyObject_GetBuffer(array, &view, PyBUF_WRITABLE)
    try:
        most = min(most, <uint64_t>view.len // itemsize)
        if face._shared is not None:
            number = face._shared.begin(&slot)
            try:
                while done < most:
                    count = face._shared.take(slot, most - done, False, &position)
                    if count == 0:
                        break
                    copy_out(&face._runs, position, count, <unsigned char*>view.buf + done * itemsize)
                    shared_release(&face._runs, slot, position, count)
                    done += count
            finally:
                face._shared.end(number)
        else:
            while done < most:
                count = take(&face._runs, most - done, False, &position)
                if count == 0:
                    break
                copy_out(&face._runs, position, count, <unsigned char*>view.buf + done * itemsize)
                release(&face._runs, position, count)
                done += count
            if done > 0:
                rewind(&face._runs, REWIND_BYTES // itemsize)
    finally:
        PyBuffer_Release(&view)
    return array if done * itemsize == <uint64_t>view.len else array[:done]


cdef void copy_in(Runs* r, uint64_t position, uint64_t count, const unsigned char* source) noexcept:
    """Copy records in, without the GIL where that pays, going on at the start where the end of the memory is reached."""
    cdef uint64_t slot = position & r.mask, first = min(count, r.mask + 1 - slot)
    copy(r.data + slot * r.itemsize, source, first * r.itemsize)
    copy(r.data, source + first * r.itemsize, (count - first) * r.itemsize)


cdef void copy_out(Runs* r, uint64_t position, uint64_t count, unsigned char* target) noexcept:
    """Copy records out, in the same way."""
    cdef uint64_t slot = position & r.mask, first = min(count, r.mask + 1 - slot)
    copy(target, r.data + slot * r.itemsize, first * r.itemsize)
    copy(target + first * r.itemsize, r.data, (count - first) * r.itemsize)


cdef inline void copy(unsigned char* target, const unsigned char* source, uint64_t size) noexcept:
    if size >= NOGIL_BYTES:
        with nogil:
            memcpy(target, source, size)
    else:
        memcpy(target, source, size)


# ---------------------------------------------------------------- blocks


@cython.no_gc  # so that `_memory` is still there when it is deallocated; nothing that it refers to can refer back
@cython.final
cdef class Lease:
    """A part of the ring's memory that a block holds; lends it out as buffers and counts them."""

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        cdef uint64_t lent = load_relaxed(&self._lent)
        if self._reading and flags & PyBUF_WRITABLE:
            raise BufferError("what is peeked at can not be written")
        while True:
            if lent & ENDED:
                raise BufferError("the view ended with its block")
            if cas_total(&self._lent, &lent, lent + 1):
                break
        buffer.obj = self
        buffer.buf = self._runs.data + (self._position & self._runs.mask) * self._runs.itemsize
        buffer.len = self._nbytes
        buffer.readonly = self._reading
        buffer.itemsize = 1
        buffer.format = NULL  # bytes
        buffer.ndim = 1
        buffer.shape = &self._nbytes
        buffer.strides = &buffer.itemsize
        buffer.suboffsets = NULL
        buffer.internal = NULL

    def __releasebuffer__(self, Py_buffer* buffer):
        if fetch_sub_total(&self._lent, 1) == ENDED + 1 and not self._reading and self._count > 0:
            self.view_gone()

    cdef int begin(self, Face face, uint64_t most) except -1:
        cdef Slot* slot
        self._runs = face._runs
        self._memory = face._memory
        if face._shared is not None:
            self._slot = face._shared.begin(&slot)
            try:
                if self._reading:
                    self._count = face._shared.take(slot, most, True, &self._position)
                else:
                    self._count = face._shared.claim(slot, &face._seen, most, True, &self._position)
            finally:
                if self._count == 0:
                    face._shared.end(self._slot)
            self._shared = face._shared
            self._epoch = face._shared.participant.epoch
        elif self._reading:
            self._count = take(&self._runs, most, True, &self._position)
        else:
            self._count = claim(&self._runs, &face._seen, most, True, &self._position)
            fetch_add_relaxed(&self._runs.cursors.absent, self._count)
        self._nbytes = self._count * self._runs.itemsize
        return 0

    cdef bint end(self, bint commit) noexcept:
        """End the block; returns False if buffers are still out, in which case nothing is committed."""
        cdef uint64_t none = 0
        cdef Runs* r = &self._runs
        cdef bint quiet = cas_total(&self._lent, &none, ENDED)
        if self._shared is not None:
            return self.end_shared(commit, quiet)
        if self._count == 0:
            pass
        elif self._reading:
            if commit and quiet:
                release(r, self._position, self._count)
                rewind(r, REWIND_BYTES // r.itemsize)
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
        cdef Slot* slot = &self._runs.desk.slots[self._slot]
        if self._count == 0 or self._epoch != self._shared.participant.epoch:
            pass  # what was begun before a fork, the parent ends
        elif self._reading and commit and quiet:
            shared_release(&self._runs, slot, self._position, self._count)
            self._shared.end(self._slot)
        elif self._reading:
            offer(&self._runs, slot, self._position)
            self._shared.given.append((self._epoch, self._slot))
        elif quiet:
            shared_publish(&self._runs, slot, self._position, self._count, PUBLISHED if commit else VOID)
            self._shared.end(self._slot)
        if not quiet and fetch_add_total(&self._lent, ENDED) == 0 and not self._reading and self._count > 0:
            self.view_gone()
        return quiet

    cdef void view_gone(self) noexcept:
        """The last view of what was reserved has gone, after the block."""
        if self._shared is None:
            leave(&self._runs, self._position, self._count)
        elif self._epoch == self._shared.participant.epoch:
            shared_publish(&self._runs, &self._runs.desk.slots[self._slot], self._position, self._count, VOID)
            self._shared.end(self._slot)

    def __dealloc__(self):
        # A block that began and never ended.
        if not load_relaxed(&self._lent) & ENDED:
            self.end(False)


@cython.final
cdef class Span:
    """Records of a ring, in place, for the length of a `with` block: what `reserve` and `peek` give. For one thread.

    Within the block it is used like an array: `len(span)`; `span[i]` is a copy of one record; a slice or the name of a field
    gives a Span of that part; assignments to any of these write into the ring, converting as numpy does (not after `peek`);
    `np.asarray(span)` is an array of the ring's own memory, which has to be gone (`del`) when the block ends: else the end
    raises BufferError. After the block every use raises ValueError.
    """

    def __init__(self):
        raise TypeError("a Span is made by RingBuffer.reserve() and RingBuffer.peek()")

    def __enter__(self):
        if self._lease is not None:
            raise ValueError("a view serves for one block: call reserve() or peek() for another")
        cdef Lease lease = Lease.__new__(Lease)
        lease._reading = self._reading
        lease.begin(self._face, self._most)
        self._lease = lease
        return self

    def __exit__(self, kind, error, traceback):
        self._array()
        if not self._lease.end(kind is None) and kind is None:
            raise BufferError(
                "an array of this view is still alive at the end of its block (del it before): "
                + ("what was peeked at is given back" if self._reading else "what was reserved is not published")
            )

    def __len__(self):
        return len(self._array())

    def __getitem__(self, key):
        part = self._array()[key]
        if isinstance(key, (slice, str)):
            return span_of(self._face, self._most, self._reading, self._lease, self._keys + (key,))
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
            raise ValueError(f"an array of dtype {dtype} can only be a copy of records of dtype {array.dtype}")
        return array.astype(dtype)

    def __repr__(self):
        if self._lease is None:
            state = "not begun"
        else:
            state = "ended" if load_relaxed(&self._lease._lent) & ENDED else f"{len(self)} records"
        return f"<Span of a {self._face.dtype} ring: {state}>"

    def __reduce__(self):
        raise TypeError("a Span is live shared state and can not be copied or pickled")

    cdef object _array(self):
        """What is shown, as an array that nobody else has yet."""
        if self._lease is None:
            raise ValueError("the view begins with its block: with ring.reserve(n) as span")
        if load_relaxed(&self._lease._lent) & ENDED:
            raise ValueError("the view ended with its block")
        array = np.asarray(memoryview(self._lease)).view(self._face.dtype)
        for key in self._keys:
            array = array[key]
        return array


cdef Span new_span(Face face, object n, bint reading):
    return span_of(face, positive(n, "n"), reading, None, ())


cdef Span span_of(Face face, object most, bint reading, Lease lease, tuple keys):
    cdef Span span = Span.__new__(Span)
    span._face = face
    span._most = min(most, MAX_CAPACITY)
    span._reading = reading
    span._lease = lease
    span._keys = keys
    return span


# ---------------------------------------------------------------- helpers


cdef object gather(Face face, object records):
    """A sequence of plain numbers as an array; anything else as `as_records` sees it."""
    cdef Py_buffer view
    cdef unsigned char* target
    cdef uint64_t bits
    if not isinstance(records, (list, tuple)):
        return as_records(face.dtype, records)
    records = tuple(records)  # a list could change while it is read
    array = np.empty(len(records), face.dtype)
    PyObject_GetBuffer(array, &view, PyBUF_WRITABLE)
    target = <unsigned char*>view.buf
    PyBuffer_Release(&view)  # the array is ours and stays where it is
    for record in records:
        to_bits(face._kind, face._runs.itemsize, record, &bits)
        put_bits(target, face._runs.itemsize, bits)
        target += face._runs.itemsize
    return array


cdef object positive(number, str name):
    if isinstance(number, float) or not hasattr(number, "__index__"):
        raise TypeError(f"{name} must be an int, not {type(number).__name__}")
    number = number.__index__()
    if number < 1:
        raise ValueError(f"{name} must be at least 1, not {number}")
    return number
