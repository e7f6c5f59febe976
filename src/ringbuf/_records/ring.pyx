# cython: freethreading_compatible=True
"""RingBuffer: a bounded, lock-free queue of records of one numpy dtype in one block of
memory.

Contract. Any number of threads may push and pop, with the GIL or without it, and with
`path=` any number of processes, up to 32. No method but those with a timeout blocks: a
push puts in as many records as fit, from the front, and says how many; a pop gives what
is there. Records of one push stay together and in order, but where it waits for room in
its midst. Only `pop_many` without `out`, and what is not a plain number, allocate; the
ring itself is allocated once. What a push refuses as invalid changes nothing. Records
are copied as bytes: objects are refused, and so is any record that a conversion would
change (an integer out of range, a string that is too long), not only by its dtype but
by its value.

Layout. One tag for each slot, then the slots: 8 + itemsize bytes a record. What a push
of many costs besides its copy is one exchange and one tag, whatever its size. See
positions.pxd for positions, ordering and progress, shared_positions.pxd for what
processes share, blocks.pyx for `reserve` and `peek`, _shared/waiting.pyx for those who
wait.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ringbuf._core.atomics cimport load_acquire, load_relaxed, store_relaxed, word
from ringbuf._core.counts cimport at_most, positive
from ringbuf._core.eventcount cimport EventCount, before_sleep, wanted
from ringbuf._core.gil cimport HAS_GIL
from ringbuf._core.nogil cimport NOGIL_BYTES
from ringbuf._core.pairs cimport Pair, load_pair
from ringbuf._core.timing cimport steady_ns
from ringbuf._records.base cimport RecordRingBase, MAX_CAPACITY
from ringbuf._records.blocks cimport new_span
from ringbuf._records.file cimport SharedRuns
from ringbuf._records.numbers cimport (
    BY_NUMPY, BY_STEPS, from_bits, from_quick, get_bits, kind_of_dtype, put_bits, quick_bits, quick_of, to_bits,
)
from ringbuf._records.positions cimport (
    HELD, PUBLISHED, RELEASED, RETURNED, VOID, RunCursors, Runs, add_one, claim, count_of, find_one, give_back, is_of, kind_of,
    pass_one, publish, release, rewind, take, waiting,
)
from ringbuf._records.shared_positions cimport shared_publish, shared_release
from ringbuf._shared.op_slots cimport OpSlot
from ringbuf._shared.waiting cimport CLOSED, check_open, deadline_of, new_waiting, seconds_of

from weakref import WeakValueDictionary

import numpy as np

from ringbuf._core.pinning import pins
from ringbuf._records.convert import as_records
from ringbuf._records.file import attach, create_or_attach
from ringbuf._shared.shared_file import SharedFile


# What makes handles: their `__new__` alone, called by somebody else, would make one of
# no ring.
cdef object OURS = object()
cdef object MISSING = object()


cdef enum:
    LINE = 64  # bytes in a cache line: where the cursors, the tags and the records start


@cython.final
cdef class RingBuffer(RecordRingBase):
    """A bounded, lock-free queue of records of one numpy dtype; for any number of
    producer and consumer threads.

    capacity: how many records fit. It is rounded up to a power of two, at least 2;
        `capacity` tells the true number.
    dtype: any numpy dtype of a fixed size, scalar or structured, without objects. A
        record takes its itemsize and 8 bytes.
    path: a file for the ring, which other processes can use at the same time (Linux).
        It is made, all of it allocated, or, where it is there already, attached to, if
        it has that capacity and dtype: else SharedFileError. What is in it outlives
        every process; what one has taken and not freed when it dies, is delivered
        again. A push of more than 4,096 records is several. A process takes one of the
        32 seats with its first push or pop, and raises RuntimeError there if all are
        taken; a forked child opens the file anew with its first, and raises OSError if
        it can not. What failed so can be tried again. Making the file shorter kills all
        who use it (SIGBUS).

    After `close`, which the end of `with ring:` does too, every method of the ring and
    of its handles raises ValueError.

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

    def __cinit__(self, capacity=MISSING, dtype=MISSING, *, path=None):
        cdef uint64_t slots
        if dtype is MISSING:
            raise TypeError("a RingBuffer needs a capacity and a dtype: RingBuffer(1024, 'i8')")
        # `attach` puts an open file in the place of the capacity.
        file = capacity if isinstance(capacity, SharedFile) else None
        records = file.meta["records"] if file is not None else positive(capacity, "capacity")
        if records > MAX_CAPACITY:
            raise ValueError(f"capacity must be from 1 to {MAX_CAPACITY:,} records, not {records:,}")
        self.dtype = dtype = np.dtype(dtype)
        if dtype.hasobject:
            raise TypeError(f"dtype {dtype} holds Python objects, which have no bytes of their own to copy")
        if dtype.subdtype is not None:
            raise TypeError(f"dtype {dtype} is one of arrays: make it a field, as in np.dtype([('values', {dtype})])")
        if dtype.names is not None and dtype.kind != "V":
            raise TypeError(
                f"dtype {dtype} is a number and its fields at once: give np.dtype({dtype.str!r}), or the fields alone"
            )
        if dtype.itemsize == 0:
            raise ValueError(f"dtype {dtype!r} has records of no bytes: give it a size")
        self._kind = kind_of_dtype(dtype)
        slots = max(2, 1 << (records - 1).bit_length())
        if path is not None:
            file = create_or_attach(path, slots, dtype)
        if file is None:
            self._allocate(slots)
        else:
            self._shared = SharedRuns(file, slots, dtype.itemsize)
            self._runs = self._shared.runs
            self._memory = self._shared.memory
            store_relaxed(&self._seen, load_acquire(&self._runs.cursors.tail))
        self._waiting = new_waiting(
            &self._runs.cursors.records, self._memory, None if self._shared is None else self._shared.participant
        )
        self._handles = WeakValueDictionary()

    cdef object _allocate(self, uint64_t slots):
        cdef uint64_t itemsize = self.dtype.itemsize
        # The records start on a cache line of their own.
        cdef uint64_t before = sizeof(RunCursors) + (slots * sizeof(word) + LINE - 1) // LINE * LINE
        # Zeroed memory is not touched until it is used. A line more, so that the first
        # thing can start on one.
        self._memory = np.zeros(before + slots * itemsize + LINE, dtype=np.uint8)
        cdef size_t address = (<size_t>self._memory.ctypes.data + LINE - 1) & ~<size_t>(LINE - 1)
        self._runs.cursors = <RunCursors*>address
        self._runs.index = <word*>(address + sizeof(RunCursors))
        self._runs.data = <unsigned char*>(address + before)
        self._runs.mask = slots - 1
        self._runs.itemsize = itemsize
        self._runs.alone = HAS_GIL
        self._quick = quick_of(self._kind, itemsize) if HAS_GIL else BY_STEPS

    @staticmethod
    def attach(path):
        """Open the ring that another process, or an earlier run, made in this file.

        Raises FileNotFoundError, and SharedFileError for a file that is not a
        RingBuffer's, damaged, or of another version.
        """
        file, _, dtype = attach(path)
        return RingBuffer(file, dtype)

    @cython.binding(False)
    @cython.always_allow_keywords(False)
    def try_push(self, record):
        """try_push(record) -> bool

        Push one record; False: no room now. Raises TypeError or ValueError for what the
        dtype can not hold as it is, and OverflowError for a number out of its range.
        """
        return push_one(self, record)

    def push(self, record, timeout=None):
        """`try_push` that waits for room, up to `timeout` seconds; None: as long as it
        takes. False: there was none.
        """
        return push_patiently(self, record, timeout)

    def push_many(self, records, timeout=0.0):
        """Push as many of `records` as fit, from the front; returns how many.

        records: a one-dimensional numpy array, anything that numpy sees as one, or a
            sequence of what `try_push` takes. An array of another dtype is converted
            where numpy's "same_kind" rule allows it and every value can be held.
            TypeError or ValueError (OverflowError for numbers) otherwise, before
            anything is pushed.
        timeout: seconds to wait for room for all of them; None: as long as it takes. A
            signal's handler runs meanwhile, and what it raises comes out of here, with
            nothing but the first part of the records pushed. If the ring is closed
            meanwhile, this returns how many went in before; only where that is none,
            and from the next call on, it raises.
        """
        return push_some(self, records, timeout)

    def reserve(self, n):
        """A block to write up to `n` records in place: `with ring.reserve(n) as span`.

        Claimed when the block begins; published when it ends, or undone if it raises.
        `len(span)` tells how many there are: fewer than `n` where the memory of the
        ring ends or there is no more room, and 0 if there is none. What `span` does not
        get written holds an earlier record.
        """
        return new_span(self, n, False)

    @cython.binding(False)
    def try_pop(self):
        """try_pop() -> record | None

        Take the oldest record; None: nothing there. An int, float, bool or complex
        where the dtype is one of numbers, else a numpy scalar (np.void for a structured
        dtype).
        """
        return pop_one(self)

    def pop(self, timeout=None):
        """`try_pop` that waits for a record, up to `timeout` seconds; None: as long as
        it takes. None: there was none.
        """
        return pop_patiently(self, timeout)

    def pop_many(self, max_items=None, out=None, timeout=0.0):
        """Take up to `max_items` of the oldest records (None: all that are there) as an
        array; empty: nothing there.

        out: a writable, contiguous, one-dimensional array of the ring's dtype to put
            them in; the part that was filled is returned (of a subclass, as a plain
            array), and no more records are taken than it holds.
        timeout: seconds to wait for the first record; None: as long as it takes.
        """
        return pop_some(self, max_items, out, timeout)

    def fileno(self):
        """A file descriptor that is readable while there is something to take, for
        event loops: `loop.add_reader(ring, ...)`.

        It stays readable until a pop or a peek has found nothing. It belongs to the
        ring and is closed with it. In a ring that processes share it also becomes
        readable every 50 ms, so that what a killed process left is found.
        """
        return self._waiting.fileno()

    def peek(self, n):
        """A block to read up to `n` of the oldest records in place:
        `with ring.peek(n) as span`.

        Taken when the block begins, so that no other consumer gets them; freed when it
        ends, or given back if it raises. `len(span)` tells how many there are: fewer
        than `n` where the memory of the ring ends, and 0 if there is none.
        """
        return new_span(self, n, True)

    def close(self):
        """End the use of the ring: every method, of its handles too, raises ValueError
        from now on. A second call does nothing.

        Whoever waits in a push or a pop wakes up and raises it (a push of many of which
        some are in returns how many), and the descriptor of `fileno` becomes readable.
        Of a shared ring this is this process's part: others go on. A block that is open
        ends as ever, and what another thread is doing at the moment it finishes.
        """
        cdef RecordRingBase ring
        self._waiting.close(&self._runs.cursors.room)
        # The short ways do not look whether the ring is closed. They are gone into and
        # come out of without letting the GIL go.
        self._quick = BY_STEPS
        for handle in self._handles.valuerefs():
            ring = handle()
            if ring is not None:
                ring._quick = BY_STEPS
        if self._shared is not None:
            self._shared.participant.close()

    @property
    def closed(self):
        """Whether `close` was called."""
        return load_relaxed(&self._waiting.closed) == CLOSED

    def __enter__(self):
        check_open(self._waiting)
        return self

    def __exit__(self, *error):
        self.close()

    def producer(self):
        """A handle for a thread that pushes: with no GIL, threads that share an object
        fight over its reference count.
        """
        return (<RecordRingBase>Producer.__new__(Producer, OURS))._share(self)

    def consumer(self):
        """A handle for a thread that pops: with no GIL, threads that share an object
        fight over its reference count.
        """
        return (<RecordRingBase>Consumer.__new__(Consumer, OURS))._share(self)

    def _take_participant_slot(self):
        """Do before the first operation what it would have to do. For tests that count
        the steps of one.
        """
        if self._shared is not None:
            self._shared.participant.own_number()

    def _start_at(self, uint64_t position):
        """Let a ring that was never used count from there on. For tests of the widths.
        """
        if self._shared is not None:
            self._shared.participant.own_number()
        assert load_relaxed(&self._runs.cursors.write.position) == 0
        store_relaxed(&self._runs.cursors.tail, position)
        store_relaxed(&self._seen, position)
        store_relaxed(&self._runs.cursors.write.position, position)
        store_relaxed(&self._runs.cursors.read.position, position)

    def _use_exchanges(self):
        """Do as without a GIL, before there are handles. For tests."""
        self._runs.alone = False
        self._quick = BY_STEPS

    def _check(self):
        """Assert every invariant of a ring that nobody uses at the moment, but for
        blocks that are open. For tests.

        Returns how many records are reserved, and how many are taken and neither freed
        nor given back.
        """
        check_open(self._waiting)
        if self._shared is not None:
            return self._shared.check()
        cdef Runs* r = &self._runs
        cdef Pair read = load_pair(&r.cursors.read)
        cdef uint64_t tail = load_acquire(&r.cursors.tail), write = load_acquire(&r.cursors.write.position)
        cdef uint64_t at = read.position, end = at + read.rest, position = tail, capacity = r.mask + 1, tag
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
cdef class Producer(RecordRingBase):
    """The pushing side of a RingBuffer, for one thread; made by
    `RingBuffer.producer()`. Its methods are the ring's.
    """

    def __cinit__(self, key=None):
        if key is not OURS:
            raise TypeError("a Producer is made by RingBuffer.producer()")

    @cython.binding(False)
    @cython.always_allow_keywords(False)
    def try_push(self, record):
        """As RingBuffer.try_push."""
        return push_one(self, record)

    def push(self, record, timeout=None):
        """As RingBuffer.push."""
        return push_patiently(self, record, timeout)

    def push_many(self, records, timeout=0.0):
        """As RingBuffer.push_many."""
        return push_some(self, records, timeout)

    def reserve(self, n):
        """As RingBuffer.reserve."""
        return new_span(self, n, False)


@cython.final
cdef class Consumer(RecordRingBase):
    """The popping side of a RingBuffer, for one thread; made by
    `RingBuffer.consumer()`. Its methods are the ring's.
    """

    def __cinit__(self, key=None):
        if key is not OURS:
            raise TypeError("a Consumer is made by RingBuffer.consumer()")

    @cython.binding(False)
    def try_pop(self):
        """As RingBuffer.try_pop."""
        return pop_one(self)

    def pop(self, timeout=None):
        """As RingBuffer.pop."""
        return pop_patiently(self, timeout)

    def pop_many(self, max_items=None, out=None, timeout=0.0):
        """As RingBuffer.pop_many."""
        return pop_some(self, max_items, out, timeout)

    def fileno(self):
        """As RingBuffer.fileno."""
        return self._waiting.fileno()

    def peek(self, n):
        """As RingBuffer.peek."""
        return new_span(self, n, True)


# ---------------------------------------------------------------- push


cdef inline bint push_one(RecordRingBase ring, object record) except -1:
    cdef uint64_t bits, position
    cdef EventCount* bell = &ring._runs.cursors.records
    # The commonest records, without the general case's choices (measured: 49
    # instructions rather than 103).
    if ring._quick != BY_STEPS and quick_bits(ring._quick, record, &bits):
        if not add_one(&ring._runs, &position):
            return push_word(ring, bits)
        (<uint64_t*>ring._runs.data)[position & ring._runs.mask] = bits
        publish(&ring._runs, position, 1, PUBLISHED)
        if wanted(bell):
            ring._waiting.call(bell)
        return True
    return push_any(ring, record)


cdef bint push_any(RecordRingBase ring, object record) except -1:
    cdef uint64_t bits
    if ring._kind == BY_NUMPY:
        return push_array(ring, as_records(ring.dtype, [record]), 0) == 1
    to_bits(ring._kind, ring._runs.itemsize, record, &bits)
    return push_word(ring, bits)


cdef bint push_word(RecordRingBase ring, uint64_t bits) except -1:
    """Push a record that is a plain number."""
    cdef uint64_t position, itemsize = ring._runs.itemsize
    cdef int64_t number
    cdef OpSlot* slot
    if ring._shared is None:
        check_open(ring._waiting)
        if claim(&ring._runs, &ring._seen, 1, False, &position) == 0:
            return False
        put_bits(ring._runs.data + (position & ring._runs.mask) * itemsize, itemsize, bits)
        publish(&ring._runs, position, 1, PUBLISHED)
    else:
        number = ring._shared.begin(&slot)
        try:
            if ring._shared.claim(slot, &ring._seen, 1, False, &position) == 0:
                return False
            put_bits(ring._runs.data + (position & ring._runs.mask) * itemsize, itemsize, bits)
            shared_publish(&ring._runs, slot, position, 1, PUBLISHED)
        finally:
            ring._shared.end(number)
    if wanted(&ring._runs.cursors.records):
        ring._waiting.call(&ring._runs.cursors.records)
    return True


cdef bint push_patiently(RecordRingBase ring, object record, object timeout) except -1:
    cdef int64_t deadline
    cdef uint32_t seen
    cdef double seconds = seconds_of(timeout)
    if push_one(ring, record):
        return True
    if seconds == 0:
        return False
    deadline = deadline_of(seconds)
    while True:
        seen = before_sleep(&ring._runs.cursors.room)
        if push_one(ring, record):
            return True
        if steady_ns() >= deadline:
            return False
        ring._waiting.sleep(&ring._runs.cursors.room, seen, deadline)


cdef object push_some(RecordRingBase ring, object records, object timeout):
    cdef double seconds = seconds_of(timeout)
    check_open(ring._waiting)
    if type(records) is np.ndarray and records.dtype is ring.dtype and records.ndim == 1 and records.flags.c_contiguous:
        return push_array(ring, records, seconds)
    return push_array(ring, gather(ring, records) if ring._kind != BY_NUMPY else as_records(ring.dtype, records), seconds)


cdef uint64_t push_array(RecordRingBase ring, object array, double seconds) except? 0xFFFFFFFF:
    """Push what fits of a contiguous array of the ring's dtype, at last after a wait;
    returns how many records did.
    """
    cdef Py_buffer view
    cdef uint64_t done = 0, total, itemsize = ring._runs.itemsize
    cdef int64_t deadline
    cdef uint32_t seen
    PyObject_GetBuffer(array, &view, PyBUF_SIMPLE)
    # Other threads run meanwhile, or a signal's handler, which a seat of a shared ring
    # may have to wait for.
    if not HAS_GIL or seconds > 0 or view.len >= NOGIL_BYTES or ring._shared is not None:
        _held = pins(array)
    try:
        total = view.len // itemsize
        if total > 0:
            done = push_bytes(ring, <unsigned char*>view.buf, total)
        if done < total and seconds > 0:
            deadline = deadline_of(seconds)
            while True:
                seen = before_sleep(&ring._runs.cursors.room)
                try:
                    done += push_bytes(ring, <unsigned char*>view.buf + done * itemsize, total - done)
                except ValueError:
                    # Closed meanwhile. Those that are in stay in, and nobody else can
                    # say how many they are.
                    if done == 0 or load_relaxed(&ring._waiting.closed) != CLOSED:
                        raise
                    break
                if done == total or steady_ns() >= deadline:
                    break
                ring._waiting.sleep(&ring._runs.cursors.room, seen, deadline)
    finally:
        PyBuffer_Release(&view)
    return done


cdef uint64_t push_bytes(RecordRingBase ring, unsigned char* source, uint64_t total) except? 0xFFFFFFFF:
    """Push as many of these records as fit; returns how many."""
    cdef uint64_t count, position
    cdef int64_t number
    cdef OpSlot* slot
    if ring._shared is not None:
        number = ring._shared.begin(&slot)
        try:
            count = push_shared(ring, slot, source, total)
        finally:
            ring._shared.end(number)
    else:
        check_open(ring._waiting)
        count = claim(&ring._runs, &ring._seen, total, False, &position)
        if count > 0:
            copy_in(&ring._runs, position, count, source)
            publish(&ring._runs, position, count, PUBLISHED)
    if wanted(&ring._runs.cursors.records):
        ring._waiting.call(&ring._runs.cursors.records)
    return count


cdef uint64_t push_shared(RecordRingBase ring, OpSlot* slot, unsigned char* source, uint64_t total) except? 0xFFFFFFFF:
    cdef uint64_t done = 0, count, position
    while done < total:
        count = ring._shared.claim(slot, &ring._seen, total - done, False, &position)
        if count == 0:
            break
        copy_in(&ring._runs, position, count, source + done * ring._runs.itemsize)
        shared_publish(&ring._runs, slot, position, count, PUBLISHED)
        done += count
    return done


# ---------------------------------------------------------------- pop


cdef inline object pop_one(RecordRingBase ring):
    cdef uint64_t position, known
    cdef EventCount* bell = &ring._runs.cursors.room
    if ring._quick != BY_STEPS and find_one(&ring._runs, &position, &known):
        # Made first: if memory runs out, the record is still there.
        record = from_quick(ring._quick, (<uint64_t*>ring._runs.data)[position & ring._runs.mask], ring._spares)
        pass_one(&ring._runs, position, known)
        if wanted(bell):
            ring._waiting.call(bell)
        return record
    return pop_any(ring)


cdef object pop_any(RecordRingBase ring):
    if ring._kind == BY_NUMPY:
        array = pop_some(ring, 1, None, 0)
        if len(array) == 0:
            return None
        return array.item() if ring.dtype.kind in "biufc" else array[0]
    record = pop_word(ring)
    if record is None:
        if not load_relaxed(&ring._waiting.listening):
            return None
        ring._waiting.listen()
        record = pop_word(ring)
        if record is None:
            return None
        ring._waiting.hear()
    if wanted(&ring._runs.cursors.room):
        ring._waiting.call(&ring._runs.cursors.room)
    return record


cdef object pop_word(RecordRingBase ring):
    """Take a record that is a plain number; None: nothing there. If memory for it runs
    out, it is given back.
    """
    cdef uint64_t position
    cdef int64_t number
    cdef OpSlot* slot
    if ring._shared is None:
        check_open(ring._waiting)
        if take(&ring._runs, 1, False, &position) == 0:
            return None
        try:
            record = number_at(ring, position)
        except BaseException:
            give_back(&ring._runs, position, 1)
            raise
        release(&ring._runs, position, 1)
        return record
    number = ring._shared.begin(&slot)
    try:
        if ring._shared.take(slot, 1, False, &position) == 0:
            return None
        try:
            record = number_at(ring, position)
        except BaseException:
            ring._shared.return_taken(slot, number, position)
            number = -1
            raise
        shared_release(&ring._runs, slot, position, 1)
        return record
    finally:
        if number >= 0:
            ring._shared.end(number)


cdef inline object number_at(RecordRingBase ring, uint64_t position):
    cdef uint64_t itemsize = ring._runs.itemsize
    return from_bits(ring._kind, itemsize, get_bits(ring._runs.data + (position & ring._runs.mask) * itemsize, itemsize))


cdef object pop_patiently(RecordRingBase ring, object timeout):
    cdef int64_t deadline
    cdef uint32_t seen
    cdef double seconds = seconds_of(timeout)
    record = pop_one(ring)
    if record is not None or seconds == 0:
        return record
    deadline = deadline_of(seconds)
    while True:
        seen = before_sleep(&ring._runs.cursors.records)
        record = pop_one(ring)
        if record is not None or steady_ns() >= deadline:
            return record
        ring._waiting.sleep(&ring._runs.cursors.records, seen, deadline)


cdef object pop_some(RecordRingBase ring, object max_items, object out, object timeout):
    cdef double seconds = seconds_of(timeout)
    cdef uint64_t most = min(<uint64_t>at_most(max_items, "max_items"), MAX_CAPACITY), done
    cdef int64_t deadline
    cdef uint32_t seen
    check_open(ring._waiting)
    if out is None:
        pass
    elif not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a numpy array, not {type(out).__name__}")
    else:
        out = np.asarray(out)  # what a subclass says of itself is not asked
    if out is None:
        pass
    elif out.dtype != ring.dtype or out.ndim != 1 or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(f"out must be a writable, contiguous array of one dimension and dtype {ring.dtype}")
    elif out.size == 0:
        return out
    array = pop_array(ring, most, out, &done)
    if done > 0:
        return array
    if load_relaxed(&ring._waiting.listening):
        ring._waiting.listen()
        array = pop_array(ring, most, out, &done)
        if done > 0:
            ring._waiting.hear()
            return array
    if seconds == 0:
        return array
    deadline = deadline_of(seconds)
    while True:
        seen = before_sleep(&ring._runs.cursors.records)
        array = pop_array(ring, most, out, &done)
        if done > 0 or steady_ns() >= deadline:
            return array
        ring._waiting.sleep(&ring._runs.cursors.records, seen, deadline)


cdef object pop_array(RecordRingBase ring, uint64_t most, object array, uint64_t* done):
    """Take up to `most` records into the array, or a new one, and tell how many;
    returns the part that was filled.
    """
    cdef uint64_t itemsize = ring._runs.itemsize
    cdef int64_t number
    cdef OpSlot* slot
    cdef Py_buffer view
    cdef bint is_ours = array is None
    if is_ours:
        # Allocated before anything is taken: if memory runs out, all is still there.
        # For one at least: only a look at the tags knows that there is nothing.
        array = np.empty(min(most, max(<uint64_t>len(ring), <uint64_t>1)), ring.dtype)
    PyObject_GetBuffer(array, &view, PyBUF_WRITABLE)
    # As in push_array.
    if not is_ours and (not HAS_GIL or view.len >= NOGIL_BYTES or ring._shared is not None):
        _held = pins(array)
    try:
        most = min(most, <uint64_t>view.len // itemsize)
        if ring._shared is not None:
            number = ring._shared.begin(&slot)
            try:
                done[0] = pop_shared(ring, slot, <unsigned char*>view.buf, most)
            finally:
                ring._shared.end(number)
        else:
            check_open(ring._waiting)
            done[0] = pop_bytes(&ring._runs, <unsigned char*>view.buf, most)
        if done[0] > 0 and wanted(&ring._runs.cursors.room):
            ring._waiting.call(&ring._runs.cursors.room)
        return array if done[0] * itemsize == <uint64_t>view.len else array[:done[0]]
    finally:
        PyBuffer_Release(&view)


cdef uint64_t pop_bytes(Runs* r, unsigned char* target, uint64_t most) noexcept:
    cdef uint64_t done = 0, count, position
    while done < most:
        count = take(r, most - done, False, &position)
        if count == 0:
            break
        copy_out(r, position, count, target + done * r.itemsize)
        release(r, position, count)
        done += count
    if done > 0:
        rewind(r)
    return done


cdef uint64_t pop_shared(RecordRingBase ring, OpSlot* slot, unsigned char* target, uint64_t most) except? 0xFFFFFFFF:
    cdef uint64_t done = 0, count, position
    while done < most:
        count = ring._shared.take(slot, most - done, False, &position)
        if count == 0:
            break
        copy_out(&ring._runs, position, count, target + done * ring._runs.itemsize)
        shared_release(&ring._runs, slot, position, count)
        done += count
    return done


# ---------------------------------------------------------------- copies


cdef void copy_in(Runs* r, uint64_t position, uint64_t count, const unsigned char* source) noexcept:
    """Copy records in, without the GIL where that pays, going on at the start where the
    end of the memory is reached.
    """
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


# ---------------------------------------------------------------- helpers


cdef object gather(RecordRingBase ring, object records):
    """A sequence of plain numbers as an array; anything else as `as_records` sees it.
    """
    cdef Py_buffer view
    cdef unsigned char* target
    cdef uint64_t bits
    if not isinstance(records, (list, tuple)):
        return as_records(ring.dtype, records)
    records = tuple(records)  # a list could change while it is read
    array = np.empty(len(records), ring.dtype)
    PyObject_GetBuffer(array, &view, PyBUF_WRITABLE)
    target = <unsigned char*>view.buf
    PyBuffer_Release(&view)  # the array is ours and stays where it is
    for record in records:
        to_bits(ring._kind, ring._runs.itemsize, record, &bits)
        put_bits(target, ring._runs.itemsize, bits)
        target += ring._runs.itemsize
    return array
