# cython: freethreading_compatible=True
"""MessageRing: a bounded, lock-free queue of variable-length messages in one block of
memory, or in a file that processes share.

Contract. Any number of threads may push and pop, with the GIL or without it, and with
`path=` any number of processes, up to 32. No method but those with a timeout blocks: a
push puts in as many messages as fit, from the front, and says how many; a pop gives
what is there. Messages of one push keep their order, and where they fit into one frame
(4,096 messages, 256 KiB) no other producer's come between. Only pops allocate (their
result); the ring itself is allocated once. What a push refuses as invalid changes
nothing.

Where things are: frames.pxd has the frames, positions.pxd the positions with ordering
and progress, _shared/op_slots.pxd and recovery.pxd what makes a killed process
harmless.

Numbers. Messages carry sequence numbers from 0 on, in the order in which they were
claimed: the line on which a lane of `backpressure` counts its events. Those of messages
that a killed process had claimed and not published never come.
"""

cimport cython
from cpython.buffer cimport Py_buffer, PyBuffer_Release
from libc.stdint cimport UINT64_MAX, int64_t, uint32_t, uint64_t
from libc.string cimport memchr, memset

from ringbuf._core.atomics cimport (
    exchange_total, fetch_add_relaxed, fetch_sub_acq_rel, ignore_races, load_acquire, load_relaxed, store_relaxed, store_release,
    word,
)
from ringbuf._core.counts cimport at_most, up_to, whole
from ringbuf._core.eventcount cimport before_sleep, wanted
from ringbuf._core.nogil cimport NOGIL_BYTES
from ringbuf._core.pages cimport prefault
from ringbuf._core.pairs cimport Pair, load_pair, same
from ringbuf._core.timing cimport steady_ns
from ringbuf._messages.columns cimport Column, Gathered, Messages, Parts, Spares, borrow_bytes, new_messages, text_of
from ringbuf._messages.frame_checksum cimport KEY_WORDS, SECRET_BYTES, TRAILER_BYTES, best_way
from ringbuf._messages.frames cimport (
    Take, TakeSource, copy_out, find_take, push_column, release_messages, walk, win,
)
from ringbuf._messages.positions cimport (
    FRAME_BYTES, GRANULE, MAX_FIRST_SEQ, MAX_FRAME_MESSAGES, Cursors, Frame, Frames, FrameView, end_of, frame_at, frame_granules,
    free_granules, next_seq_of_frame, read_mark, rewind,
)
from ringbuf._messages.recovery cimport share_frames
from ringbuf._messages.validate cimport damage_of_frames
from ringbuf._shared.op_slots cimport FREE, ORPHAN, ControlBlock, OpSlot, amount_of, kind_of_slot, place_in, set_state
from ringbuf._shared.participant cimport Participant
from ringbuf._shared.ranges cimport Range
from ringbuf._shared.waiting cimport CLOSED, UNMADE, check_made, check_open, deadline_of, new_waiting, seconds_of

import hashlib
import os
import re

import numpy as np

from ringbuf._core.pinning import pins
from ringbuf._messages.columns import MessageTooLarge
from ringbuf._messages.look import look as look_at_ring
from ringbuf._shared import shared_file
from ringbuf._shared.shared_file import SharedFile, SharedFileError, open_to_read, read_header


class _Forked(Exception):
    """This is a forked child, and its parent began the operation."""


cdef extern from *:
    """
    #include <cstddef>
    #include <cstdint>

    /* Newlines in n bytes. Written so that compilers make vector code of the inner loop: a byte wide counter, cleared
       before it can run over. */
    static inline size_t ringbuf_count_newlines(const char *p, size_t n) {
        size_t total = 0, i = 0;
        while (n - i >= 240) {
            uint8_t part = 0;
            for (size_t j = 0; j < 240; j++) part += p[i + j] == '\\n';
            total += part;
            i += 240;
        }
        for (; i < n; i++) total += p[i] == '\\n';
        return total;
    }
    """
    size_t count_newlines "ringbuf_count_newlines"(const char* p, size_t n) noexcept nogil


cdef enum:
    MIN_GRANULES = 64         # 4 KiB: one page
    # An empty ring goes back to its start when it has come this far: half of a
    # second-level cache of 2 MiB. Measured in bench/micro: 1.9 times two copies of the
    # same bytes instead of 2.6 for a ring that does not fit the cache.
    REWIND_GRANULES = 16 * 1024  # 1 MiB
    # So much of a file's ring is ready from the start, and no more than an eighth of
    # it: what a spike needs at first, until `warm_ahead` comes. Five lanes of it, of
    # the 100 ms that a directory may take, take 15 (and more where the disk is busy) …
    WARM_GRANULES = 128 * 1024  # 8 MiB
    # … and what a ring lives in whose consumers keep up: the way until it goes back,
    # and a frame.
    HOT_GRANULES = REWIND_GRANULES + 4 * 1024
    # So often a consumer of a shared ring looks for the dead while it finds something:
    # their takes are to be taken again.
    LOOK_TAKES = 256

# 64 GiB: as far as the tests go (in files that are mostly holes); a tag would have room
# for the lengths of a larger one.
cdef uint64_t MAX_GRANULES = <uint64_t>1 << 30
# Lengths and ends are uint32.
cdef uint64_t MAX_MESSAGE = (<uint64_t>1 << 32) - 1
# Each part of a shared file's body begins on a page.
cdef size_t PAGE = 4096
cdef bytes KIND = b"msgs"
# What makes handles: their `__new__` alone, called by somebody else, would make one of
# no ring.
cdef object OURS = object()


cdef inline size_t pages(size_t size) noexcept:
    return (size + PAGE - 1) & ~(PAGE - 1)


cdef const char* judge_messages(void* ring, Range* ranges) noexcept nogil:
    return damage_of_frames(<Frames*>ring, ranges)


cdef class MessageRingBase:
    """What a ring and its handles have in common: the way to the memory, and what goes
    in and out.
    """

    def __cinit__(self, *args, **kwargs):
        if not isinstance(self, (MessageRing, MessageProducer, MessageConsumer)):
            raise TypeError("a MessageRingBase is a MessageRing or one of its handles")

    # ---------------------------------------------------------------- push

    cdef int64_t _push(self, Column* column, uint64_t* first_seq) except -1:
        """Push as many messages of the column as fit; returns how many."""
        cdef int64_t pushed, number = -1
        cdef OpSlot* slot = NULL
        if self._frames.shared == NULL:
            check_open(self._waiting)
            pushed = push_column(&self._frames, NULL, column, first_seq)
            if wanted(&self._frames.cursors.messages):
                self._waiting.call(&self._frames.cursors.messages)
            return pushed
        number = self._begin(&slot)
        try:
            pushed = push_column(&self._frames, slot, column, first_seq)
            if pushed < column.count and self._participant.notice(False):
                column.starts += pushed
                column.lengths += pushed
                column.count -= pushed
                pushed += push_column(&self._frames, slot, column, first_seq if pushed == 0 else &self._unused)
        finally:
            self._end(number)
        if wanted(&self._frames.cursors.messages):
            self._waiting.call(&self._frames.cursors.messages)
        return pushed

    cdef int64_t _push_lines(
        self, const char* chunk, size_t size, bint final, int64_t max_lines, size_t* consumed, uint64_t* first_seq
    ) except -1:
        cdef int64_t lines = 0, number = -1
        cdef OpSlot* slot = NULL
        number = self._begin(&slot)
        try:
            if size >= NOGIL_BYTES:
                with nogil:
                    lines = push_lines(&self._frames, slot, chunk, size, final, max_lines, consumed, first_seq)
            else:
                lines = push_lines(&self._frames, slot, chunk, size, final, max_lines, consumed, first_seq)
            if lines == 0 and size > 0 and number >= 0 and self._participant.notice(False):
                lines = push_lines(&self._frames, slot, chunk, size, final, max_lines, consumed, first_seq)
        finally:
            self._end(number)
        if wanted(&self._frames.cursors.messages):
            self._waiting.call(&self._frames.cursors.messages)
        return lines

    # ---------------------------------------------------------------- pop

    cdef Messages _take(self, int64_t most, int64_t most_bytes):
        """Take what is there within these limits; empty Messages where there is
        nothing.
        """
        cdef Messages messages = self._take_now(most, most_bytes)
        if messages is None and load_relaxed(&self._waiting.listening):
            self._waiting.listen()
            messages = self._take_now(most, most_bytes)
            if messages is not None:
                self._waiting.hear()
        return messages if messages is not None else new_messages(0, 0, self._spares)

    cdef Messages _take_now(self, int64_t most, int64_t most_bytes):
        if self._frames.shared == NULL:
            check_open(self._waiting)
            return self._take_from(NULL, -1, most, most_bytes)
        while True:
            try:
                return self._take_by_slot(False, most, most_bytes)
            except _Forked:
                pass

    cdef Messages _take_orphaned(self, int64_t most, int64_t most_bytes):
        cdef Messages messages = None
        check_open(self._waiting)
        while self._frames.shared != NULL:
            try:
                messages = self._take_by_slot(True, most, most_bytes)
                break
            except _Forked:
                pass
        return messages if messages is not None else new_messages(0, 0, self._spares)

    cdef Messages _take_by_slot(self, bint orphaned, int64_t most, int64_t most_bytes):
        """What is there, or only what the dead left; None: nothing. _Forked: the parent
        began this, by a slot of its own.
        """
        cdef Messages messages = None
        cdef OpSlot* slot = NULL
        cdef int64_t number = self._begin(&slot)
        cdef uint64_t epoch = self._participant.epoch
        try:
            if orphaned:
                self._participant.notice(True)
                messages = self._take_orphan(slot, number, most, most_bytes)
            else:
                store_relaxed(&self._takes, load_relaxed(&self._takes) + 1)
                if load_relaxed(&self._takes) % LOOK_TAKES == 0:
                    self._participant.notice(False)
                messages = self._take_from(slot, number, most, most_bytes)
                if messages is None and self._participant.notice(False):
                    messages = self._take_from(slot, number, most, most_bytes)
        finally:
            if messages is None and epoch == self._participant.epoch:
                self._end(number)
        return messages

    cdef Messages _take_from(self, OpSlot* slot, int64_t number, int64_t most, int64_t most_bytes):
        """What a process left that died; else what waits in the ring; else None."""
        cdef TakeSource source
        cdef Messages messages = self._take_orphan(slot, number, most, most_bytes)
        if messages is not None:
            return messages
        source.word = &self._frames.cursors.read
        source.number = 0
        return self._take_one(&source, slot, number, most, most_bytes)

    cdef Messages _take_orphan(self, OpSlot* slot, int64_t number, int64_t most, int64_t most_bytes):
        cdef TakeSource source
        cdef uint64_t orphan = 0, last = UINT64_MAX
        cdef Pair left
        cdef Messages messages
        cdef OpSlot* dead
        while self._frames.shared != NULL and self._participant.next_orphan(&orphan):
            dead = &self._frames.shared.control.slots[orphan]
            source.word = &dead.left
            source.number = orphan + 1
            source.after = &dead.after
            left = load_pair(source.word)
            messages = self._take_one(&source, slot, number, most, most_bytes)
            if messages is not None:
                return messages
            # Others may have taken it. If nobody has, nothing of it can be taken: go on
            # with what waits.
            if orphan == last and same(load_pair(source.word), left):
                return None
            last = orphan
        return None

    cdef Messages _take_one(self, TakeSource* source, OpSlot* slot, int64_t number, int64_t most, int64_t most_bytes):
        cdef Take take
        cdef Messages messages
        cdef bint copied
        cdef uint64_t epoch = self._participant.epoch if slot != NULL else 0
        while find_take(&self._frames, source, most, most_bytes, &take):
            # An ORPHAN that others have emptied may be somebody's slot by now: then
            # what was found is that one's.
            if source.number != 0 and kind_of_slot(&self._frames.shared.control.slots[source.number - 1]) != ORPHAN:
                return None
            # Allocated before the exchange: if memory runs out, nothing has been taken.
            messages = new_messages(take.count, take.bytes, self._spares)
            # Which may have begun a collection, and that may fork.
            if slot != NULL and self._participant.epoch != epoch:
                raise _Forked()
            if not win(&self._frames, slot, source, &take):
                continue
            if take.bytes >= NOGIL_BYTES:
                with nogil:
                    copied = copy_out(&self._frames, &take, messages._data, messages._offsets)
            else:
                copied = copy_out(&self._frames, &take, messages._data, messages._offsets)
            if not copied:
                self._raise_damaged()
            messages.first_seq = take.first_seq
            messages._position = take.position
            messages._place = take.place
            messages._slot = number
            messages._epoch = epoch
            messages._ring = self._identity
            store_release(&messages._held, True)
            return messages
        return None

    cdef int _raise_damaged(self) except -1:
        raise SharedFileError(f"{self._where()}: what was taken is not what was found: somebody has written over the memory")

    cdef object _where(self):
        return "the ring in memory" if self._participant is None else self._participant.file.path

    cdef Messages _rest(self, Messages messages):
        """Hand out what was taken: from here on a `close` leaves it to others."""
        if load_acquire(&messages._held) and messages._slot >= 0:
            self._participant.rest(messages._slot)
        return messages

    cdef int _release(self, Messages messages, bint rests) except -1:
        """rests: it was handed out by `_rest`."""
        cdef bint found
        if rests:
            check_open(self._waiting)
        self._check_ours(messages)
        # Of two that release the same one, one does.
        if not exchange_total(&messages._held, False):
            return 0
        if rests and messages._slot >= 0 and not self._participant.resume(messages._slot):
            self._refuse_abandoned()
        found = release_messages(&self._frames, messages._position, messages._place, messages._count)
        if messages._parts is None:
            self._finish(messages)
        else:
            # The slot speaks of the whole take: until its last part is released it can
            # not serve for anything else. Who releases the last one is the last to work
            # on it.
            if messages._slot >= 0:
                self._participant.rest(messages._slot)
            if fetch_sub_acq_rel(&messages._parts.left, 1) == 1:
                # Left to others meanwhile, it is free all the same: they find nothing
                # in it.
                if messages._slot < 0 or self._participant.resume(messages._slot):
                    self._finish(messages)
        if wanted(&self._frames.cursors.room):
            self._waiting.call(&self._frames.cursors.room)
        if not found:
            self._raise_damaged()
        return 0

    cdef int _finish(self, Messages messages) noexcept:
        """All of a take is released."""
        cdef OpSlot* slot = NULL
        if messages._slot >= 0:
            slot = &self._frames.shared.control.slots[messages._slot]
            set_state(slot, FREE)
        rewind(&self._frames, slot, REWIND_GRANULES)
        if messages._slot >= 0:
            self._participant.give_back(messages._slot)
        return 0

    cdef int _refuse_abandoned(self) except -1:
        raise ValueError("the ring is closed: what was taken and not released before that is for others")

    cdef _split(self, Messages messages, count):
        cdef Messages first, rest
        cdef Parts parts
        cdef bint found
        check_open(self._waiting)
        count = whole(count, "count")
        self._check_ours(messages)
        if not load_acquire(&messages._held):
            raise ValueError("only what take() returned and was not released can be split")
        if not 0 < count < messages._count:
            raise ValueError(f"count must be from 1 to {messages._count - 1}, so that both parts have messages, not {count}")
        first, rest, parts = messages[:count], messages[count:], messages._parts
        first._position = rest._position = messages._position
        first._place = rest._place = messages._place
        if parts is None:
            parts = Parts()
            store_relaxed(&parts.left, 1)
        # Of two that split or release the same one, one does.
        if not exchange_total(&messages._held, False):
            raise ValueError("another thread has released or split these messages")
        if messages._slot >= 0 and not self._participant.resume(messages._slot):
            self._refuse_abandoned()
        found = walk(&self._frames, &rest._position, &rest._place, count)
        if messages._slot >= 0:
            self._participant.rest(messages._slot)
        if not found:
            self._raise_damaged()
        fetch_add_relaxed(&parts.left, 1)
        first._slot = rest._slot = messages._slot
        first._epoch = rest._epoch = messages._epoch
        first._parts = rest._parts = parts
        first._ring = rest._ring = messages._ring
        store_release(&first._held, True)
        store_release(&rest._held, True)
        return first, rest

    cdef int _check_ours(self, Messages messages) except -1:
        """Refuse what another ring took, and what was taken before a fork."""
        if not load_acquire(&messages._held):
            return 0
        if messages._ring is not self._identity:
            raise ValueError("these messages were taken from another ring: only that one can release or split them")
        if self._participant is not None and messages._epoch != self._participant.epoch:
            raise RuntimeError("these messages were taken before a fork, and belong to the parent process")
        return 0

    # ---------------------------------------------------------------- the slots of a shared ring

    cdef int64_t _begin(self, OpSlot** slot) except -2:
        """A slot for one operation, and its number; of a ring of our own: none, and -1.
        """
        if self._frames.shared == NULL:
            check_open(self._waiting)
            return -1
        cdef int64_t number = self._participant.slot()
        slot[0] = &self._frames.shared.control.slots[number]
        return number

    cdef void _end(self, int64_t number) noexcept:
        if number >= 0:
            set_state(&self._frames.shared.control.slots[number], FREE)
            self._participant.give_back(number)


@cython.final
cdef class MessageRing(MessageRingBase):
    """A bounded, lock-free queue of variable-length messages; for any number of
    producer and consumer threads, and processes.

    capacity_bytes: the memory for messages. It is rounded up to a power of two, at
        least 4 KiB; `capacity_bytes` tells the true size. A message takes its own
        length, 4 bytes, and its part of a header for each push.
    path: a file for the ring, which other processes can use at the same time (Linux).
        It is made, all of it allocated, or, where it is there already, attached to, if
        it has that capacity: else SharedFileError. What is in it outlives every
        process; what one has taken and not released when it dies, is delivered again. A
        process takes one of the 32 seats with its first push or take, and raises
        RuntimeError there if all are taken; a forked child opens the file anew with its
        first, and raises OSError if it can not. What failed so can be tried again.
        Making the file shorter kills all who use it (SIGBUS).
    first_seq: the number that the first message of a new ring gets: at most 2**63, from
        where no ring comes to the last number.
    checksums: of a new ring in a file: whether each push gets a keyed checksum, so that
        after power loss `ringbuf.salvage` can tell what reached the disk whole. It
        costs 16 bytes a push, and a reading of what was just written.

    >>> ring = MessageRing(1 << 16)
    >>> ring.push_many([b"one", b"two", "three"])
    3
    >>> ring.push_lines(b"four\\nfive\\nsi")
    (2, 10)
    >>> [bytes(m) for m in ring.pop_many(4)]
    [b'one', b'two', b'three', b'four']
    >>> len(ring)
    1

    After `close`, which the end of `with ring:` does too, every method of the ring and
    of its handles raises ValueError; the properties tell on.
    """

    def __cinit__(self, *args, **kwargs):
        # Small, in memory, and of no use until __init__ or attach() says otherwise: so
        # that nothing is missing in a ring that was made without either.
        self._spares = Spares()
        self._identity = object()
        self._allocate(MIN_GRANULES, 0)
        store_relaxed(&self._waiting.closed, UNMADE)

    def __init__(self, capacity_bytes, *, path=None, first_seq=0, checksums=False):
        size = whole(capacity_bytes, "capacity_bytes")
        if not 0 < size <= MAX_GRANULES * GRANULE:
            raise ValueError(f"capacity_bytes must be from 1 to {MAX_GRANULES * GRANULE:,}, not {size:,}")
        cdef uint64_t granules = max(MIN_GRANULES, 1 << (-(-size // GRANULE) - 1).bit_length())
        number = whole(first_seq, "first_seq")
        if not 0 <= number <= MAX_FIRST_SEQ:
            raise ValueError(f"first_seq must be from 0 to 2**63, which leaves 2**63 messages, not {number:,}")
        cdef uint64_t first = number
        cdef bint sealed = checksums
        if path is not None:
            path = os.fsdecode(path)
        elif sealed:
            raise ValueError("checksums are for a ring in a file: give it a path")
        # Nothing of the caller's runs from here on, but another thread may be as far.
        if exchange_total(&self._made, 1):
            raise TypeError("a MessageRing is made once")
        try:
            if path is not None:
                self._open(create_or_attach(path, granules, first, sealed))
            else:
                self._allocate(granules, first)
        except BaseException:
            # As it was: a file that was refused is not worked on.
            self._participant = self._key = None
            memset(&self._frames, 0, sizeof(Frames))
            store_release(&self._made, 0)
            raise

    cdef _allocate(self, uint64_t granules, uint64_t first_seq):
        # Zeroed memory is not touched until it is used. A granule more, so that the
        # first can start on a cache line.
        self._memory = np.zeros(sizeof(Cursors) + granules * (8 + GRANULE) + GRANULE, dtype=np.uint8)
        cdef size_t address = self._memory.ctypes.data
        address = (address + GRANULE - 1) & ~<size_t>(GRANULE - 1)
        self._frames.capacity = granules
        self._frames.cursors = <Cursors*>address
        self._frames.index = <word*>(address + sizeof(Cursors))
        self._frames.data = <unsigned char*>(address + sizeof(Cursors) + granules * 8)
        self._waiting = new_waiting(&self._frames.cursors.messages, self._memory, None)
        # The first lap is number 1: the zeroed index holds no tag of it.
        self._start_at(granules, first_seq)

    @classmethod
    def attach(cls, path):
        """Open the ring that another process, or an earlier run, made in this file.

        Raises FileNotFoundError, and SharedFileError for a file that is not a
        MessageRing's, damaged, or of another version.
        """
        cdef MessageRing ring = cls.__new__(cls)
        store_release(&ring._made, 1)
        ring._open(SharedFile.attach(path, KIND))
        return ring

    @staticmethod
    def look(path):
        """What the ring in this file is like at the moment, as a RingLook; without
        taking part in it, so nobody notices.

        Works beside any number of processes that use the ring, and with one for reading
        only. Raises as `attach` does.
        """
        return look_at_ring(path)

    @staticmethod
    def needs_salvage(path):
        """Whether the file was made by another run of the kernel: then some of it may
        never have reached the disk.

        Attaching takes such a file at its word; `ringbuf.salvage` takes of it what is
        proved whole. Raises as attach() does.
        """
        fd = open_to_read(path)
        try:
            return read_header(os.fsdecode(path), fd, KIND).boot_id != shared_file.boot_id()
        finally:
            os.close(fd)

    cdef _open(self, file):
        """Lay the ring over the body of its file: control, positions, index, data, each
        from a page on.
        """
        cdef uint64_t granules
        granules, self._key = layout_of(file.path, file.meta, len(file.memory))
        self._memory = np.frombuffer(file.memory, np.uint8)
        cdef size_t address = self._memory.ctypes.data
        cdef Participant participant = Participant(file)
        self._participant = participant
        self._frames.capacity = granules
        participant.control = <ControlBlock*>address
        address += pages(sizeof(ControlBlock))
        self._frames.cursors = <Cursors*>address
        address += pages(sizeof(Cursors))
        self._frames.index = <word*>address
        address += pages(granules * 8)
        self._frames.data = <unsigned char*>address
        if self._key is not None:
            self._frames.key = <const uint64_t*><size_t>self._key.ctypes.data
            self._frames.way = best_way()
        share_frames(&self._frames, &participant.ring, participant.control)
        participant._join(judge_messages)
        self._waiting = new_waiting(&self._frames.cursors.messages, self._memory, participant)

    def _take_seat(self):
        """Do before the first operation what it would have to do. For tests that count
        the steps of one.
        """
        if self._participant is not None:
            self._participant.first_seat()

    def _start_at(self, uint64_t position, uint64_t first_seq):
        """Let a ring that was never used count from there on. For tests of the widths.
        """
        cdef Cursors* cursors = self._frames.cursors
        if self._participant is not None:
            self._participant.first_seat()
        assert position >= self._frames.capacity and len(self) == 0
        place_cursors(cursors, position, first_seq)

    # ---------------------------------------------------------------- properties

    @property
    def capacity_bytes(self):
        """Bytes of memory for messages and their headers: a power of two."""
        check_made(self._waiting)
        return self._frames.capacity * GRANULE

    @property
    def max_message_bytes(self):
        """The largest message that an empty ring can take."""
        check_made(self._waiting)
        return largest_message(&self._frames)

    @property
    def used_bytes(self):
        """Bytes that are not free: claimed, waiting, or taken and not yet released."""
        check_made(self._waiting)
        return (self._frames.capacity - free_granules(&self._frames)) * GRANULE

    @property
    def next_seq(self):
        """The sequence number that the next message will get: how many have been pushed
        so far.
        """
        check_made(self._waiting)
        return next_number(&self._frames)

    @property
    def path(self):
        """The file that it shares with others, or None."""
        check_made(self._waiting)
        return None if self._participant is None else self._participant.file.path

    @property
    def checksums(self):
        """Whether each push gets a checksum."""
        check_made(self._waiting)
        return self._frames.key != NULL

    def note_stored(self, seq):
        """Note in the ring's memory that the messages below `seq` are on disk: before
        one of them is released for that reason.

        For the lanes of `backpressure`: after power loss the note tells which of the
        released messages the disk should have. For one thread at a time.
        """
        cdef uint64_t stored = up_to(seq, "seq", UINT64_MAX)
        check_open(self._waiting)
        store_release(&self._frames.cursors.stored, stored)
        store_release(&self._frames.cursors.stored_mirror, ~stored)

    def __len__(self):
        """Messages pushed and not yet taken; while others push or pop it is a moment's
        truth.

        The numbers of messages that a killed process never published count as well:
        `count` leaves them out.
        """
        check_open(self._waiting)
        return count_waiting(&self._frames)

    def count(self):
        """Messages that can be taken, counted frame by frame, without those that dead
        processes had taken.
        """
        check_open(self._waiting)
        return count_published(&self._frames)

    def warm_ahead(self, most_bytes):
        """Make memory ready in front of the producers, up to `most_bytes` of it, so
        that they do not wait for it page by page.

        Only in a ring in a file, and only where it fills: one whose consumers keep up
        goes back to its start, which is ready. For a thread that has time, one at a
        time.
        """
        cdef uint64_t most = up_to(most_bytes, "most_bytes", UINT64_MAX)
        check_open(self._waiting)
        if self._participant is None:
            return
        cdef uint64_t tail = load_acquire(&self._frames.cursors.tail.position), start, end
        cdef uint64_t write = load_acquire(&self._frames.cursors.write.position)
        cdef uint64_t capacity = self._frames.capacity, used = write - tail
        if <int64_t>used <= REWIND_GRANULES:
            return
        # What has filled up so far tells how much is about to come.
        end = write + min(min(most // GRANULE, used * 4), capacity - min(used, capacity))
        start = max(write, self._warm_until)
        if end <= start:
            return
        self._warm_until = end
        with nogil:
            prefault(<unsigned char*>self._frames.index, capacity * 8, start * 8, end * 8)
            prefault(self._frames.data, capacity * GRANULE, start * GRANULE, end * GRANULE)

    def close(self):
        """End the use of the ring: every method, of its handles too, raises ValueError
        from now on. A second call does nothing.

        Whoever waits in a push or a pop wakes up and raises it (a push of many of which
        some are in returns how many), and the descriptor of `fileno` becomes readable.
        Of a shared ring this is this process's part: others go on, and get what was
        taken here and not released, which can not be released any more. What another
        thread is doing at the moment it finishes.
        """
        check_made(self._waiting)
        self._waiting.close(&self._frames.cursors.room)
        if self._participant is not None:
            self._participant.close()

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
        """A handle to push with, for one thread.

        Without the GIL, threads that call methods of one object fight over its
        reference count; a handle each does not.
        """
        return self._handle(MessageProducer.__new__(MessageProducer, OURS))

    def consumer(self):
        """A handle to pop with, for one thread. See `producer`."""
        return self._handle(MessageConsumer.__new__(MessageConsumer, OURS))

    cdef _handle(self, MessageRingBase handle):
        check_open(self._waiting)
        handle._frames = self._frames
        handle._memory = self._memory
        handle._owner = self  # the participant tidies up through it
        handle._participant = self._participant
        handle._waiting = self._waiting
        handle._identity = self._identity
        handle._spares = Spares()
        return handle

    # ---------------------------------------------------------------- push

    def try_push(self, message):
        """Push one message (bytes or str, which goes in as UTF-8); False: no room now.

        Raises ValueError for a message larger than `max_message_bytes`, which never
        fits.
        """
        return push_one(self, message)

    def push(self, message, timeout=None):
        """`try_push` that waits for room, up to `timeout` seconds; None: as long as it
        takes. False: there was none.
        """
        return push_waiting(self, [message], timeout) == 1

    def push_many(self, messages, timeout=0.0):
        """Push as many of `messages` as fit, from the front; returns how many.

        messages: a list, tuple or other sequence of bytes and str (which go in as
            UTF-8); a 1-D numpy array, each item of which is one message of its itemsize
            in bytes; or an Arrow binary or string array (anything with
            `__arrow_c_array__`). Everything is checked before anything is pushed:
            TypeError for an item of another type, ValueError for one larger than
            `max_message_bytes`.
        timeout: seconds to wait for room for all of them; None: as long as it takes. A
            signal's handler runs meanwhile, and what it raises comes out of here, with
            nothing but the first part of the messages pushed. If the ring is closed
            meanwhile, this returns how many went in before; only where that is none,
            and from the next call on, it raises.
        """
        return push_waiting(self, messages, timeout)

    def push_gathered(self, Gathered gathered not None, start=0, max_messages=None):
        """Push from message number `start` of `gathered` on; returns (messages pushed,
        first sequence number).

        For the lanes of `backpressure`, which may need several tries for one call and
        check its messages only once.
        """
        cdef Column column
        cdef uint64_t first_seq = 0, first = up_to(start, "start", gathered.column.count)
        column.starts = gathered.column.starts + first
        column.lengths = gathered.column.lengths + first
        column.count = gathered.column.count - <int64_t>first
        column.count = min(column.count, at_most(max_messages, "max_messages"))
        return self._push(&column, &first_seq), first_seq

    def push_lines(self, chunk, final=False):
        """Push the lines of `chunk`, each without its b"\\n"; returns (lines,
        bytes_consumed).

        chunk: anything with a contiguous buffer (bytes, bytearray, memoryview, mmap, a
            numpy array). It is split in C, and no Python object is made for a line.
        final: whether a last piece without b"\\n" is a line as well. If not, it is
            left, and `chunk[bytes_consumed:]` is what to put before the next chunk; it
            is the same where the ring became full.

        Raises ValueError, and pushes nothing, if a line is larger than
        `max_message_bytes`.
        """
        lines, consumed, _ = push_chunk(self, chunk, final, None)
        return lines, consumed

    def push_lines_seq(self, chunk, final=False, max_lines=None):
        """`push_lines` of at most `max_lines` lines, which also tells the first one's
        sequence number.

        Returns (lines, bytes_consumed, first_seq). For the lanes of `backpressure`,
        which number their events.
        """
        return push_chunk(self, chunk, final, max_lines)

    # ---------------------------------------------------------------- pop

    def pop_many(self, max_messages=None, max_bytes=None, timeout=0.0):
        """Take up to `max_messages` messages of up to `max_bytes` bytes in total,
        oldest first; returns Messages.

        None: no limit of that kind. A first message larger than `max_bytes` comes
        alone, so that it can not block the ring.
        timeout: seconds to wait for the first message; None: as long as it takes. Where
            there is nothing, the result is empty.
        """
        return pop_some(self, max_messages, max_bytes, timeout)

    def fileno(self):
        """A file descriptor that is readable while there is something to pop, for event
        loops: `loop.add_reader(ring, ...)`.

        It stays readable until a pop has found nothing. It belongs to the ring and is
        closed with it. In a ring that processes share it also becomes readable every 50
        ms, so that what a killed process left is found.
        """
        return self._waiting.fileno()

    def take(self, max_messages=None, max_bytes=None):
        """`pop_many`, but the room stays occupied until `release` is called with the
        result.

        For consumers that must be able to fail: what has been taken and not released is
        still in the ring.
        """
        return self._rest(self._take(at_most(max_messages, "max_messages"), at_most(max_bytes, "max_bytes")))

    def take_orphaned(self, max_messages=None, max_bytes=None):
        """`take`, but only what a process had taken that died before it released it;
        empty where there is nothing of that kind.

        `take` itself gives these first. It finds them out after a moment, this looks at
        once.
        """
        return self._rest(self._take_orphaned(at_most(max_messages, "max_messages"), at_most(max_bytes, "max_bytes")))

    def release(self, Messages messages not None):
        """Free the room of messages that `take` returned; any order will do. A second
        call does nothing.
        """
        self._release(messages, True)

    def split(self, Messages messages not None, count):
        """Two parts of what `take` returned: the first `count` messages, and the
        others, each to be released by itself.

        The parts share the memory of `messages`, which is released through them only.
        ValueError where it was released, or where a part would be empty. If this
        process dies, only parts that it had not released are delivered again.
        """
        return self._split(messages, count)

    def _memory_view(self):
        """The memory for frames, as it is. For tests."""
        cdef size_t start = <size_t>self._frames.data - <size_t>self._memory.ctypes.data
        return self._memory[start:start + self._frames.capacity * GRANULE]

    def _check(self):
        """Assert every invariant of a ring that nobody uses at the moment. For tests.
        """
        check_open(self._waiting)
        cdef Frames* f = &self._frames
        cdef FrameView view
        cdef Pair tail = load_pair(&f.cursors.tail), read = place_in(load_pair(&f.cursors.read))
        cdef uint64_t position = tail.position, place = tail.rest, at = read.position
        cdef uint64_t end = load_acquire(&f.cursors.write.position), sequence = 0, messages = 0, waiting = 0, mark
        assert position <= at <= end <= position + f.capacity, (position, at, end)
        while position != end:
            assert frame_at(f, position, &view), "a claimed frame is not published"
            assert position == tail.position or view.first_seq == sequence, "numbers have a gap"
            if view.count > 0:
                assert view.granules == frame_granules(f, view.count, view.payload)
                assert end_of(f, &view, view.count - 1) == view.payload
                assert place < view.count
                assert messages > 0 or read_mark(f, &view, place) == 0, "a part that nobody needs is not freed"
                # Parts follow each other; what has not been taken has no mark.
                while place < view.count:
                    mark = read_mark(f, &view, place)
                    assert place + mark <= view.count
                    assert mark == 0 or position < at or (position == at and place + mark <= read.rest)
                    place += max(mark, <uint64_t>1)
                if position >= at:
                    waiting += view.count - (read.rest if position == at else 0)
            sequence = next_seq_of_frame(&view)
            messages += view.count
            position += view.granules
            place = 0
        assert tail.position == end or sequence == self.next_seq
        assert self._participant is not None or waiting == <uint64_t>len(self), (waiting, len(self))

    def __repr__(self):
        if load_relaxed(&self._waiting.closed) == UNMADE:
            return "MessageRing(never made)"
        where = "" if self.path is None else f", path={self.path!r}"
        if self.closed:
            return f"MessageRing(capacity_bytes={self.capacity_bytes}, closed{where})"
        return f"MessageRing(capacity_bytes={self.capacity_bytes}, messages={len(self)}{where})"

    def __reduce__(self):
        raise TypeError("a MessageRing is live shared state and can not be copied or pickled")


@cython.final
cdef class MessageProducer(MessageRingBase):
    """The pushing side of a MessageRing, for one thread; made by
    `MessageRing.producer()`. Its methods are the ring's.
    """

    def __cinit__(self, key=None):
        if key is not OURS:
            raise TypeError("a MessageProducer is made by MessageRing.producer()")

    def try_push(self, message):
        """As MessageRing.try_push."""
        return push_one(self, message)

    def push(self, message, timeout=None):
        """As MessageRing.push."""
        return push_waiting(self, [message], timeout) == 1

    def push_many(self, messages, timeout=0.0):
        """As MessageRing.push_many."""
        return push_waiting(self, messages, timeout)

    def push_lines(self, chunk, final=False):
        """As MessageRing.push_lines."""
        lines, consumed, _ = push_chunk(self, chunk, final, None)
        return lines, consumed

    def __reduce__(self):
        raise TypeError("a MessageProducer is live shared state and can not be copied or pickled")


@cython.final
cdef class MessageConsumer(MessageRingBase):
    """The popping side of a MessageRing, for one thread; made by
    `MessageRing.consumer()`. Its methods are the ring's.
    """

    def __cinit__(self, key=None):
        if key is not OURS:
            raise TypeError("a MessageConsumer is made by MessageRing.consumer()")

    def pop_many(self, max_messages=None, max_bytes=None, timeout=0.0):
        """As MessageRing.pop_many."""
        return pop_some(self, max_messages, max_bytes, timeout)

    def fileno(self):
        """As MessageRing.fileno."""
        return self._waiting.fileno()

    def take(self, max_messages=None, max_bytes=None):
        """As MessageRing.take."""
        return self._rest(self._take(at_most(max_messages, "max_messages"), at_most(max_bytes, "max_bytes")))

    def release(self, Messages messages not None):
        """As MessageRing.release."""
        self._release(messages, True)

    def split(self, Messages messages not None, count):
        """As MessageRing.split."""
        return self._split(messages, count)

    def __reduce__(self):
        raise TypeError("a MessageConsumer is live shared state and can not be copied or pickled")


# ---------------------------------------------------------------- push and pop


cdef bint push_one(MessageRingBase port, message) except -1:
    cdef Column column
    cdef const char* start
    cdef uint32_t length
    cdef uint64_t first_seq
    cdef Py_ssize_t size
    start = text_of(message, &size)
    if <uint64_t>size > largest_message(&port._frames):
        raise MessageTooLarge(0, size, largest_message(&port._frames))
    length = <uint32_t>size
    column.starts = &start
    column.lengths = &length
    column.count = 1
    return port._push(&column, &first_seq) == 1


cdef object push_waiting(MessageRingBase port, messages, timeout):
    """Push messages, waiting for room until the timeout; returns how many went in."""
    cdef double seconds = seconds_of(timeout)
    cdef Gathered gathered = Gathered(messages, largest_message(&port._frames))
    cdef Column column = gathered.column
    cdef uint64_t first_seq
    cdef uint32_t seen
    cdef int64_t total = column.count, deadline = 0, pushed = port._push(&column, &first_seq), done = pushed
    if done == total or seconds == 0:
        return done
    deadline = deadline_of(seconds)
    while True:
        # `_push` moves its column along only where it looks for the dead; this one is
        # counted anew each time.
        column.starts = gathered.column.starts + done
        column.lengths = gathered.column.lengths + done
        column.count = total - done
        seen = before_sleep(&port._frames.cursors.room)
        try:
            done += port._push(&column, &first_seq)
        except ValueError:
            # Closed meanwhile. Those that are in stay in, and nobody else can say how
            # many they are.
            if done == 0 or load_relaxed(&port._waiting.closed) != CLOSED:
                raise
            return done
        if done == total or steady_ns() >= deadline:
            return done
        port._waiting.sleep(&port._frames.cursors.room, seen, deadline)


cdef object push_chunk(MessageRingBase port, chunk, bint final, max_lines):
    cdef Py_buffer view
    cdef size_t consumed = 0
    cdef uint64_t first_seq = 0, largest = largest_message(&port._frames)
    cdef int64_t lines, most = at_most(max_lines, "max_lines")
    _held = pins(chunk) if type(chunk) is not bytes else None
    borrow_bytes(chunk, &view, False, "chunk")
    try:
        if <uint64_t>view.len > largest:
            check_lines(<const char*>view.buf, view.len, final, largest)
        lines = port._push_lines(<const char*>view.buf, view.len, final, most, &consumed, &first_seq)
    finally:
        PyBuffer_Release(&view)
    return lines, consumed, first_seq


cdef Messages pop_some(MessageRingBase port, max_messages, max_bytes, timeout):
    cdef double seconds = seconds_of(timeout)
    cdef int64_t most = at_most(max_messages, "max_messages"), most_bytes = at_most(max_bytes, "max_bytes"), deadline
    cdef Messages messages = port._take(most, most_bytes)
    cdef uint32_t seen
    if messages._count == 0 and seconds > 0:
        deadline = deadline_of(seconds)
        while True:
            seen = before_sleep(&port._frames.cursors.messages)
            messages = port._take(most, most_bytes)
            if messages._count > 0 or steady_ns() >= deadline:
                break
            port._waiting.sleep(&port._frames.cursors.messages, seen, deadline)
    port._release(messages, False)
    return messages


cdef int64_t push_lines(
    Frames* f, OpSlot* slot, const char* chunk, size_t size, bint final, int64_t max_lines, size_t* consumed, uint64_t* first_seq
) noexcept nogil:
    """Push as many lines of the chunk as fit; returns how many, and in `consumed` the
    bytes that they took up.
    """
    cdef const char* starts[MAX_FRAME_MESSAGES]
    cdef uint32_t lengths[MAX_FRAME_MESSAGES]
    cdef Column column
    cdef const char* end = chunk + size
    cdef const char* line = chunk
    cdef const char* newline
    cdef int64_t done = 0, most, pushed
    cdef uint64_t payload, sequence
    column.starts = starts
    column.lengths = lengths
    while line < end and done < max_lines:
        # One frame's worth at a time, so that its bytes are still in the cache when
        # they are copied.
        column.count = 0
        payload = 0
        most = min(max_lines - done, <int64_t>MAX_FRAME_MESSAGES)
        while line < end and column.count < most and payload < FRAME_BYTES:
            newline = <const char*>memchr(line, b"\n", end - line)
            if newline == NULL:
                if not final:
                    end = line
                    break
                newline = end
            starts[column.count] = line
            lengths[column.count] = <uint32_t>(newline - line)
            payload += newline - line
            column.count += 1
            line = newline + 1
        if column.count == 0:
            break
        pushed = push_column(f, slot, &column, &sequence)
        if pushed > 0:
            if done == 0:
                first_seq[0] = sequence
            done += pushed
            # A final piece has no newline that could be consumed.
            consumed[0] = min(<size_t>(starts[pushed - 1] - chunk) + lengths[pushed - 1] + 1, size)
        if pushed < column.count:
            break
    return done


cdef inline uint64_t largest_message(Frames* f) noexcept nogil:
    return min(f.capacity * GRANULE - sizeof(Frame) - (TRAILER_BYTES if f.key != NULL else 0), MAX_MESSAGE)


cdef uint64_t next_number(Frames* f) noexcept nogil:
    return load_pair(&f.cursors.write).rest


cdef uint64_t count_waiting(Frames* f) noexcept nogil:
    """Messages from `read` on; of a hole that nobody has published yet, none."""
    cdef FrameView view
    cdef Pair read
    cdef uint64_t position, first, next
    while True:
        read = load_pair(&f.cursors.read)
        position = read.position
        ignore_races(True)
        first = next = 0
        while position < load_acquire(&f.cursors.write.position) and frame_at(f, position, &view):
            if view.count > 0:
                first = view.first_seq + amount_of(read.rest)
                next = next_number(f)
                break
            position += view.granules
        ignore_races(False)
        # As long as nobody has taken there, nobody has written over what was read.
        if same(load_pair(&f.cursors.read), read):
            return next - first


cdef uint64_t count_published(Frames* f) noexcept nogil:
    """Messages in the frames from `read` on."""
    cdef FrameView view
    cdef Pair read
    cdef uint64_t position, count
    while True:
        read = load_pair(&f.cursors.read)
        position = read.position
        ignore_races(True)
        count = 0
        while position < load_acquire(&f.cursors.write.position) and frame_at(f, position, &view):
            count += view.count
            position += view.granules
        ignore_races(False)
        if same(load_pair(&f.cursors.read), read):
            return count - (amount_of(read.rest) if count > 0 else 0)


# ---------------------------------------------------------------- helpers


cdef object create_or_attach(str path, uint64_t granules, uint64_t first_seq, bint checksums):
    """The SharedFile of a ring of that capacity, made if it is not there."""
    cdef size_t index = pages(sizeof(ControlBlock)) + pages(sizeof(Cursors)), data = data_offset(granules)
    cdef size_t first = min(granules // 8, <uint64_t>WARM_GRANULES), size = data + granules * GRANULE
    hot = data, data + min(granules, <uint64_t>HOT_GRANULES) * GRANULE
    warm = (index, index + first * 8), (hot[1], data + first * GRANULE)
    if not os.path.exists(path):
        meta = {"granules": granules}
        if checksums:
            meta["secret"] = os.urandom(SECRET_BYTES).hex()
        try:
            start = first_positions(granules, first_seq)
            return SharedFile.create(path, KIND, meta, size, start, hot, warm, durable=checksums)
        except FileExistsError:
            pass  # another process was faster
    file = SharedFile.attach(path, KIND)
    found, _ = layout_of(file.path, file.meta, len(file.memory))
    if found != granules:
        raise SharedFileError(
            f"{file.path} is a ring of {found * GRANULE:,} bytes, not {granules * GRANULE:,}: "
            "attach(path) takes it as it is"
        )
    return file


cdef object first_positions(uint64_t granules, uint64_t first_seq):
    """Where, and as what bytes, the positions of a new ring lie in its body."""
    cdef Cursors cursors
    cdef size_t i
    for i in range(sizeof(Cursors)):
        (<unsigned char*>&cursors)[i] = 0
    place_cursors(&cursors, granules, first_seq)
    store_relaxed(&cursors.stored_mirror, ~<uint64_t>0)
    return pages(sizeof(ControlBlock)), (<unsigned char*>&cursors)[:sizeof(Cursors)]


cdef void place_cursors(Cursors* cursors, uint64_t position, uint64_t first_seq) noexcept:
    """Let an empty ring begin at this position, with this number."""
    store_relaxed(&cursors.tail.position, position)
    store_relaxed(&cursors.tail.rest, 0)
    store_relaxed(&cursors.read.position, position)
    store_relaxed(&cursors.read.rest, 0)
    store_relaxed(&cursors.write.position, position)
    store_relaxed(&cursors.write.rest, first_seq)
    store_relaxed(&cursors.sequence, first_seq)
    store_relaxed(&cursors.mirror, ~first_seq)


def layout_of(path, meta, body_bytes):
    """From a file's header: the capacity in granules, and the key of sealed frames or
    None. SharedFileError: it is damaged.
    """
    granules, secret, key = meta.get("granules"), meta.get("secret"), None
    if not isinstance(granules, int) or granules < MIN_GRANULES or granules & (granules - 1) or granules > MAX_GRANULES:
        raise SharedFileError(f"{path} is damaged: it speaks of {granules!r} granules")
    if body_bytes < data_offset(granules) + granules * GRANULE:
        raise SharedFileError(f"{path} is damaged: it is too small for {granules} granules")
    if secret is not None:
        if not isinstance(secret, str) or not re.fullmatch(f"[0-9a-f]{{{2 * SECRET_BYTES}}}", secret):
            raise SharedFileError(f"{path} is damaged: it speaks of checksums, and its secret is not {SECRET_BYTES} bytes")
        key = aligned(hashlib.shake_256(bytes.fromhex(secret)).digest(KEY_WORDS * 8))
    return granules, key


def aligned(content):
    """A copy of some bytes that starts on a cache line: no vector of a key then lies in
    two.
    """
    memory = np.empty(len(content) + GRANULE, np.uint8)
    start = -memory.ctypes.data % GRANULE
    memory[start:start + len(content)] = np.frombuffer(content, np.uint8)
    return memory[start:start + len(content)]


def positions_offset():
    """Where the positions lie in a file's body."""
    return pages(sizeof(ControlBlock))


def data_offset(uint64_t granules):
    """Where the memory for frames lies in a file's body."""
    return pages(sizeof(ControlBlock)) + pages(sizeof(Cursors)) + pages(granules * 8)


cdef int check_lines(const char* chunk, size_t size, bint final, uint64_t limit) except -1:
    """Raise if a line of the chunk is larger than `limit`. Only a chunk that is larger
    itself can have one.
    """
    cdef const char* line = chunk
    cdef const char* end = chunk + size
    cdef const char* newline
    cdef size_t number = 0
    while line < end:
        newline = <const char*>memchr(line, b"\n", end - line)
        if newline == NULL:
            if not final:
                return 0
            newline = end
        if <uint64_t>(newline - line) > limit:
            raise MessageTooLarge(number, newline - line, limit)
        number += 1
        line = newline + 1
    return 0


def count_lines(chunk, final=True, uint64_t limit=MAX_MESSAGE):
    """How many lines `push_lines(chunk, final)` would push, given room. Raises
    MessageTooLarge for one over `limit` bytes.
    """
    cdef Py_buffer view
    cdef size_t lines
    cdef bint last = final
    _held = pins(chunk) if type(chunk) is not bytes else None
    borrow_bytes(chunk, &view, False, "chunk")
    try:
        if <uint64_t>view.len > limit:
            check_lines(<const char*>view.buf, view.len, last, limit)
        if view.len >= NOGIL_BYTES:
            with nogil:
                lines = count_newlines(<const char*>view.buf, view.len)
        else:
            lines = count_newlines(<const char*>view.buf, view.len)
        if last and view.len > 0 and (<const char*>view.buf)[view.len - 1] != b"\n":
            lines += 1
    finally:
        PyBuffer_Release(&view)
    return lines
