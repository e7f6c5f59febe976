# cython: freethreading_compatible=True
"""RingBuffer: a bounded, lock-free queue of records of one numpy dtype in one block of
memory.

Contract. Any number of threads may push and pop, with the GIL or without it, and with
`path=` any number of processes, up to 32. Only the methods with a timeout block: a push
puts in as many records as fit, from the front, and says how many; a pop gives what is
there. Records of one push stay together and in order, unless it waits for room in its
midst. Only `pop_many` without `out`, and what is not a plain number, allocate; the ring
itself is allocated once. A push that is refused as invalid changes nothing. Records are
copied as bytes: objects are refused, and so is any record that a conversion would
change (an integer out of range, a string that is too long), not only by its dtype but
by its value.

Layout. One tag for each slot, then the slots: 8 + itemsize bytes a record. What a push
of many costs besides its copy is one exchange and one tag, whatever its size. See
pushing.pxd and popping.pxd for the operations, positions.pxd for positions, ordering
and progress, shared_positions.pxd for what processes share, blocks.pyx for `reserve`
and `peek`, _shared/waiting.pyx for waits. Here are the classes.
"""

cimport cython
from libc.stdint cimport uint64_t

from ringbuf._core.atomics cimport load_acquire, load_relaxed, store_relaxed, word
from ringbuf._core.counts cimport positive
from ringbuf._core.gil cimport HAS_GIL
from ringbuf._core.nogil cimport NOGIL_BYTES
from ringbuf._records.base cimport MAX_CAPACITY, RecordRingBase
from ringbuf._records.blocks cimport new_span
from ringbuf._records.file cimport SharedRuns
from ringbuf._records.numbers cimport BY_STEPS, QUICK_ROW, kind_of_dtype, quick_of
from ringbuf._records.popping cimport pop_one, pop_some, pop_waiting
from ringbuf._records.positions cimport RunCursors
from ringbuf._records.pushing cimport push_one, push_some, push_waiting
from ringbuf._records.rows cimport rows_of
from ringbuf._records.self_check cimport check_runs
from ringbuf._shared.waiting cimport check_open, is_closed, new_waiting

from weakref import WeakValueDictionary

import numpy as np

from ringbuf._records.file import attach, create_or_attach
from ringbuf._shared.shared_file import SharedFile


# The key that makes handles: their `__new__` alone would make one of no ring.
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
        It is made, all of it allocated, or, where it is there already, attached to; if
        that has another capacity or dtype: SharedFileError. What is in it outlives
        every process; what one has taken and not freed when it dies is delivered again.
        A push of more than 4,096 records is several. A process takes one of the 32
        participant slots with its first push or pop, and raises RuntimeError there if
        all are taken; a forked child opens the file anew with its first, and raises
        OSError if it cannot. An operation that failed so can be tried again. Making the
        file shorter kills all processes that use it (SIGBUS).

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
            raise ValueError(
                f"capacity must be from 1 to {MAX_CAPACITY:,} records, not {records:,}"
            )
        self.dtype = dtype = np.dtype(dtype)
        if dtype.hasobject:
            raise TypeError(
                f"dtype {dtype} holds Python objects, which have no bytes of their own to copy"
            )
        if dtype.subdtype is not None:
            raise TypeError(
                f"dtype {dtype} is one of arrays: make it a field, as in np.dtype([('values', "
                f"{dtype})])"
            )
        if dtype.names is not None and dtype.kind != "V":
            raise TypeError(
                f"dtype {dtype} is a number and its fields at once: "
                f"give np.dtype({dtype.str!r}), or the fields alone"
            )
        if dtype.itemsize == 0:
            raise ValueError(f"dtype {dtype!r} has records of no bytes: give it a size")
        self._kind = kind_of_dtype(dtype)
        self._rows = rows_of(dtype)
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
        participant = None if self._shared is None else self._shared.participant
        self._waiting = new_waiting(&self._runs.cursors.records, self._memory, participant)
        self._handles = WeakValueDictionary()

    cdef object _allocate(self, uint64_t slots):
        cdef uint64_t itemsize = self.dtype.itemsize
        # The records start on a cache line of their own.
        cdef uint64_t before = sizeof(RunCursors) + (slots * sizeof(word) + LINE - 1) // LINE * LINE
        # Zeroed memory is not touched until it is used. A line more, so that the
        # cursors can start on one.
        self._memory = np.zeros(before + slots * itemsize + LINE, dtype=np.uint8)
        cdef size_t address = (<size_t>self._memory.ctypes.data + LINE - 1) & ~<size_t>(LINE - 1)
        self._runs.cursors = <RunCursors*>address
        self._runs.index = <word*>(address + sizeof(RunCursors))
        self._runs.data = <unsigned char*>(address + before)
        self._runs.mask = slots - 1
        self._runs.itemsize = itemsize
        self._runs.alone = HAS_GIL
        if HAS_GIL:
            self._quick = quick_of(self._kind, itemsize)
            # Larger ones are copied while other threads run.
            if self._rows is not None and itemsize < NOGIL_BYTES:
                self._quick = QUICK_ROW

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
        dtype cannot hold as it is, and OverflowError for a number out of its range.

        A record with fields is a tuple, an np.void, an array of one row, or anything
        with a buffer of one; quickest is what has the ring's own dtype.
        """
        return push_one(self, record)

    def push(self, record, timeout=None):
        """`try_push` that waits for room, up to `timeout` seconds (None: no limit);
        False: there was none.
        """
        return push_waiting(self, record, timeout)

    def push_many(self, records, timeout=0.0):
        """Push as many of `records` as fit, from the front; returns how many.

        records: a one-dimensional numpy array, anything that numpy sees as one, or a
            sequence of what `try_push` takes. An array of another dtype is converted
            where numpy's "same_kind" rule allows it and every value can be held.
            TypeError or ValueError (OverflowError for numbers) otherwise, before
            anything is pushed.
        timeout: seconds to wait for room for all of them; None: no limit. A signal's
            handler runs meanwhile; an exception that it raises leaves the first part of
            the records pushed. If the ring is closed meanwhile, this returns how many
            went in before; it raises only where that is none, and from the next call
            on.
        """
        return push_some(self, records, timeout)

    def reserve(self, n):
        """A block to write up to `n` records in place: `with ring.reserve(n) as span`.

        Claimed when the block begins; published when it ends, or undone if it raises.
        `len(span)` tells how many there are: fewer than `n` where the memory of the
        ring ends or there is no more room, and 0 if there is none. A record of `span`
        that is not written holds an earlier one.
        """
        return new_span(self, n, False)

    @cython.binding(False)
    def try_pop(self):
        """try_pop() -> record | None

        Take the oldest record; None: nothing there. An int, float, bool or complex
        where the dtype is one of numbers, else a numpy scalar (np.void for a structured
        dtype). It is the caller's alone; a few of those with fields share their `base`,
        which is no array to write to.
        """
        return pop_one(self)

    def pop(self, timeout=None):
        """`try_pop` that waits for a record, up to `timeout` seconds (None: no limit);
        returns None where there was none.
        """
        return pop_waiting(self, timeout)

    def pop_many(self, max_items=None, out=None, timeout=0.0):
        """Take up to `max_items` of the oldest records (None: all that are there) as an
        array; empty: nothing there.

        out: a writable, contiguous, one-dimensional array of the ring's dtype to put
            them in; the part that was filled is returned (of a subclass, as a plain
            array), and no more records are taken than it holds.
        timeout: seconds to wait for the first record; None: no limit.
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

        A thread that waits in a push or a pop wakes up and raises it (a push of many of
        which some are in returns how many), and the descriptor of `fileno` becomes
        readable. In a shared ring only this process's part ends: others go on. A block
        that is open ends as ever, and an operation under way in another thread
        finishes.
        """
        cdef RecordRingBase ring
        self._waiting.close(&self._runs.cursors.room)
        # The fast paths do not check whether the ring is closed. They hold the GIL from
        # beginning to end, so none of them is under way here.
        self._quick = BY_STEPS
        for handle in self._handles.valuerefs():
            ring = handle()
            if ring is not None:
                ring._quick = BY_STEPS

    @property
    def closed(self):
        """Whether `close` was called."""
        return is_closed(self._waiting)

    def __enter__(self):
        check_open(self._waiting)
        return self

    def __exit__(self, *error):
        self.close()

    def producer(self):
        """A handle for one thread that pushes: without a GIL, threads that share an
        object contend for its reference count.
        """
        return (<RecordRingBase>Producer.__new__(Producer, OURS))._share(self)

    def consumer(self):
        """A handle for one thread that pops: without a GIL, threads that share an
        object contend for its reference count.
        """
        return (<RecordRingBase>Consumer.__new__(Consumer, OURS))._share(self)

    def _take_participant_slot(self):
        """Take the slot that the first operation would take. For tests that count the
        steps of one.
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
        """Assert every invariant of a ring that is not in use, but for open blocks; for
        tests.

        Returns how many records are reserved, and how many are taken and neither freed
        nor given back.
        """
        check_open(self._waiting)
        if self._shared is not None:
            return self._shared.check()
        return check_runs(&self._runs)


@cython.final
cdef class Producer(RecordRingBase):
    """The pushing side of a RingBuffer, for one thread: `RingBuffer.producer()` makes
    it. Its methods are the ring's.
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
        return push_waiting(self, record, timeout)

    def push_many(self, records, timeout=0.0):
        """As RingBuffer.push_many."""
        return push_some(self, records, timeout)

    def reserve(self, n):
        """As RingBuffer.reserve."""
        return new_span(self, n, False)


@cython.final
cdef class Consumer(RecordRingBase):
    """The popping side of a RingBuffer, for one thread: `RingBuffer.consumer()` makes
    it. Its methods are the ring's.
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
        return pop_waiting(self, timeout)

    def pop_many(self, max_items=None, out=None, timeout=0.0):
        """As RingBuffer.pop_many."""
        return pop_some(self, max_items, out, timeout)

    def fileno(self):
        """As RingBuffer.fileno."""
        return self._waiting.fileno()

    def peek(self, n):
        """As RingBuffer.peek."""
        return new_span(self, n, True)
