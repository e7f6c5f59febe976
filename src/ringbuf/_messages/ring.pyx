# cython: freethreading_compatible=True
"""MessageRing: a bounded, lock-free queue of variable-length messages in one block of
memory, or in a file that processes share.

Contract. Any number of threads may push and pop, with the GIL or without it, and with
`path=` any number of processes, up to 32. Only the methods with a timeout block: a push
puts in as many messages as fit, from the front, and says how many; a pop gives what is
there. Messages of one push keep their order, and where they fit into one frame (4,096
messages, 256 KiB) no other producer's come between. Only pops allocate (their result);
the ring itself is allocated once. A push that is refused as invalid changes nothing.

Where things are: pushing.pxd and taking.pxd have the operations, frames.pxd the frames,
positions.pxd the positions with ordering and progress, file.pyx the file,
_shared/op_slots.pxd and recovery.pxd what makes a killed process harmless. Here are the
classes.

Numbers. Messages carry sequence numbers from 0 on, in the order in which they were
claimed: the line on which a lane of `backpressure` counts its events. Those of messages
that a killed process had claimed and not published never come.
"""

cimport cython
from libc.stdint cimport UINT64_MAX, int64_t, uint64_t
from libc.string cimport memset

from ringbuf._core.atomics cimport (
    exchange_total, load_acquire, load_relaxed, store_relaxed, store_release, word,
)
from ringbuf._core.counts cimport at_most, up_to, whole
from ringbuf._core.pages cimport prefault
from ringbuf._messages.columns cimport Messages, Spares
from ringbuf._messages.deferred_checksums cimport write_deferred
from ringbuf._messages.frame_checksum cimport best_way
from ringbuf._messages.gathered cimport Column, Gathered, PushProgress
from ringbuf._messages.newlines cimport best_line_way, has_line_way
from ringbuf._messages.positions cimport (
    GRANULE, MAX_FIRST_SEQ, MAX_GRANULES, MIN_GRANULES, REWIND_GRANULES, Cursors, Frames,
    count_published, count_waiting, free_granules, largest_message, next_number, place_cursors,
)
from ringbuf._messages.pushing cimport push_chunk, push_now, push_one, push_waiting
from ringbuf._messages.recovery cimport share_frames
from ringbuf._messages.self_check cimport check_frames
from ringbuf._messages.taking cimport (
    hand_out, pop_one, pop_some, release_taken, split_taken, take_messages, take_orphaned,
)
from ringbuf._messages.validate cimport damage_of_frames
from ringbuf._shared.op_slots cimport ControlBlock
from ringbuf._shared.participant cimport Participant
from ringbuf._shared.ranges cimport Range
from ringbuf._shared.waiting cimport UNMADE, check_made, check_open, is_closed, new_waiting

import os

import numpy as np

from ringbuf._messages.file import KIND as _KIND
from ringbuf._messages.file import attach, create_or_attach, read_meta
from ringbuf._messages.file_positions import layout
from ringbuf._messages.look import look as look_at_ring
from ringbuf._shared import shared_file
from ringbuf._shared.shared_file import SharedFileError, open_to_read, read_header

# The key that makes handles: their `__new__` alone would make one of no ring.
cdef object OURS = object()


cdef const char* judge_messages(void* ring, Range* ranges) noexcept nogil:
    return damage_of_frames(<Frames*>ring, ranges)


cdef int refuse_damage(MessageRingBase ring) except -1:
    where = "the ring in memory" if ring._participant is None else ring._participant.file.path
    raise SharedFileError(
        f"{where}: what was taken is not what was found: the memory was written over"
    )


cdef class MessageRingBase:
    """What a ring and its handles have in common: the way to the memory."""

    def __cinit__(self, *args, **kwargs):
        if not isinstance(self, (MessageRing, MessageProducer, MessageConsumer)):
            raise TypeError("a MessageRingBase is a MessageRing or one of its handles")


@cython.final
cdef class MessageRing(MessageRingBase):
    """A bounded, lock-free queue of variable-length messages; for any number of
    producer and consumer threads, and processes.

    capacity_bytes: the memory for messages. It is rounded up to a power of two, at
        least 4 KiB; `capacity_bytes` tells the true size. A message takes its own
        length, 4 bytes, and its part of a header for each push.
    path: a file for the ring, which other processes can use at the same time (Linux).
        It is made, all of it allocated, or, where it is there already, attached to; if
        that has another capacity: SharedFileError. What is in it outlives every
        process; what one has taken and not released when it dies is delivered again. A
        process takes one of the 32 participant slots with its first push or take, and
        raises RuntimeError there if all are taken; a forked child opens the file anew
        with its first, and raises OSError if it cannot. An operation that failed so can
        be tried again. Making the file shorter kills all processes that use it
        (SIGBUS).
    first_seq: the number that the first message of a new ring gets: at most 2**63, from
        where no ring comes to the last number.
    checksums: of a new ring in a file: whether each push gets a keyed checksum, so that
        after power loss `ringbuf.salvage` can tell what reached the disk whole. It
        costs 16 bytes a push, and a second read of what was just written; or of what
        stays for a while (`defer_checksums`).

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
    of its handles raises ValueError; the properties still tell.
    """

    def __cinit__(self, *args, **kwargs):
        # Small, in memory, and of no use until __init__ or attach() is called: so
        # nothing is missing in a ring that was made without either.
        self._spares = Spares()
        self._identity = object()
        self._allocate(MIN_GRANULES, 0)
        store_relaxed(&self._waiting.closed, UNMADE)

    def __init__(self, capacity_bytes, *, path=None, first_seq=0, checksums=False):
        size = whole(capacity_bytes, "capacity_bytes")
        if not 0 < size <= MAX_GRANULES * GRANULE:
            raise ValueError(
                f"capacity_bytes must be from 1 to {MAX_GRANULES * GRANULE:,}, not {size:,}"
            )
        cdef uint64_t granules = max(MIN_GRANULES, 1 << (-(-size // GRANULE) - 1).bit_length())
        number = whole(first_seq, "first_seq")
        if not 0 <= number <= MAX_FIRST_SEQ:
            raise ValueError(
                f"first_seq must be from 0 to 2**63, which leaves 2**63 messages, not {number:,}"
            )
        cdef uint64_t first = number
        cdef bint with_checksums = checksums
        if path is not None:
            path = os.fsdecode(path)
        elif with_checksums:
            raise ValueError("checksums are for a ring in a file: give it a path")
        # No code of the caller's runs from here on, but another thread may be as far.
        if exchange_total(&self._made, 1):
            raise TypeError("a MessageRing is made once")
        try:
            if path is not None:
                self._use_file(create_or_attach(path, granules, first, with_checksums))
            else:
                self._allocate(granules, first)
        except BaseException:
            # As it was before, without the file that was refused.
            self._participant = self._key = None
            memset(&self._frames, 0, sizeof(Frames))
            store_release(&self._made, 0)
            raise

    cdef _allocate(self, uint64_t granules, uint64_t first_seq):
        # Zeroed memory is not touched until it is used. A granule more, so that the
        # first can start on a cache line.
        self._memory = np.zeros(
            sizeof(Cursors) + granules * (8 + GRANULE) + GRANULE, dtype=np.uint8
        )
        cdef size_t address = self._memory.ctypes.data
        address = (address + GRANULE - 1) & ~<size_t>(GRANULE - 1)
        self._frames.capacity = granules
        self._frames.cursors = <Cursors*>address
        self._frames.index = <word*>(address + sizeof(Cursors))
        self._frames.data = <unsigned char*>(address + sizeof(Cursors) + granules * 8)
        self._frames.line_way = best_line_way()
        self._waiting = new_waiting(&self._frames.cursors.messages, self._memory, None)
        # The first lap is number 1: the zeroed index holds no tag of it. At position 0
        # it would show a frame on each granule.
        place_cursors(self._frames.cursors, granules, first_seq)

    @classmethod
    def attach(cls, path):
        """Open the ring that another process, or an earlier run, made in this file.

        Raises FileNotFoundError, and SharedFileError for a file that is not a
        MessageRing's, damaged, or of another version.
        """
        cdef MessageRing ring = cls.__new__(cls)
        store_release(&ring._made, 1)
        ring._use_file(attach(path))
        return ring

    @staticmethod
    def look(path):
        """What the ring in this file is like at the moment, as a RingLook; without
        taking part in it.

        Works beside any number of processes that use the ring, and by a file that can
        only be read. Raises as `attach` does.
        """
        return look_at_ring(path)

    @staticmethod
    def needs_salvage(path):
        """Whether the file was made by another run of the kernel: then some of it may
        never have reached the disk.

        `attach` trusts such a file; `ringbuf.salvage` takes of it what is proved whole.
        Raises as attach() does.
        """
        fd = open_to_read(path)
        try:
            return read_header(os.fsdecode(path), fd, _KIND).boot_id != shared_file.boot_id()
        finally:
            os.close(fd)

    cdef _use_file(self, file):
        """Lay the ring over the body of its file (see `layout`)."""
        granules, self._key = read_meta(file.path, file.meta, len(file.memory))
        cursors, index, data, _ = layout(granules)
        self._memory = np.frombuffer(file.memory, np.uint8)
        cdef size_t address = self._memory.ctypes.data
        cdef Participant participant = Participant(file)
        self._participant = participant
        participant.control = <ControlBlock*>address
        self._frames.capacity = granules
        self._frames.cursors = <Cursors*>(address + <size_t>cursors)
        self._frames.index = <word*>(address + <size_t>index)
        self._frames.data = <unsigned char*>(address + <size_t>data)
        if self._key is not None:
            self._frames.key = <const uint64_t*><size_t>self._key.ctypes.data
            self._frames.way = best_way()
            self._frames.deferring = &self._deferring
        self._frames.line_way = best_line_way()
        share_frames(&self._frames, &participant.ring, participant.control)
        participant._join(judge_messages)
        self._waiting = new_waiting(&self._frames.cursors.messages, self._memory, participant)

    def _take_participant_slot(self):
        """Take the slot that the first operation would take. For tests that count the
        steps of one.
        """
        if self._participant is not None:
            self._participant.own_number()

    def _start_at(self, uint64_t position, uint64_t first_seq):
        """Let a ring that was never used count from there on. For tests of the widths.
        """
        cdef Cursors* cursors = self._frames.cursors
        if self._participant is not None:
            self._participant.own_number()
        assert position >= self._frames.capacity and len(self) == 0
        place_cursors(cursors, position, first_seq)

    def _find_lines_by(self, int way):
        """Have this ring find the ends of lines in one of the ways of newlines.pxd, by
        number; False: this machine does not have it. For tests.
        """
        if not has_line_way(way):
            return False
        self._frames.line_way = way
        return True

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
        """The sequence number that the next message will get: `first_seq` and how many
        have been pushed since.
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
        """Note in the ring's memory that the messages below `seq` are on disk, before
        one of them is released for that reason.

        For the lanes of `backpressure`: after power loss the note tells which of the
        released messages the disk should have. For one thread at a time.
        """
        cdef uint64_t stored = up_to(seq, "seq", UINT64_MAX)
        check_open(self._waiting)
        store_release(&self._frames.cursors.stored, stored)
        store_release(&self._frames.cursors.stored_mirror, ~stored)

    def __len__(self):
        """Messages pushed and not yet taken; while others push or pop, only for a
        moment.

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
        """Prefault memory in front of the producers, up to `most_bytes` of it, so that
        they do not wait for it page by page.

        Only in a ring in a file, and only while it fills: one whose consumers keep up
        goes back to its start, which was prefaulted. For a thread that has time, one at
        a time.
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
        # How much has filled so far tells how much is about to come.
        end = write + min(min(most // GRANULE, used * 4), capacity - min(used, capacity))
        start = max(write, self._warm_until)
        if end <= start:
            return
        self._warm_until = end
        with nogil:
            prefault(<unsigned char*>self._frames.index, capacity * 8, start * 8, end * 8)
            prefault(self._frames.data, capacity * GRANULE, start * GRANULE, end * GRANULE)

    def defer_checksums(self, on=True):
        """Whether pushes from now on, also of handles, leave their checksums to
        `write_checksums`.

        Only of this object's: other processes, and other objects of the same file,
        write theirs as they push.
        """
        cdef bint value = on
        check_open(self._waiting)
        store_relaxed(&self._deferring, value)

    def write_checksums(self, recent=True):
        """Write the checksums that were deferred of all that is in the ring, also of
        what is taken and not released; with `recent` false, only of what was there at
        the last call already.

        Returns whether any may be left: of what was pushed since that call, or is just
        being pushed. Others may push, take and release meanwhile, and call this.
        """
        cdef bint everything = recent
        check_open(self._waiting)
        if self._frames.key == NULL:
            return False
        cdef uint64_t write = load_acquire(&self._frames.cursors.write.position)
        cdef uint64_t end = write if everything else load_relaxed(&self._deferred_until), start
        store_relaxed(&self._deferred_until, write)
        start = max(
            load_relaxed(&self._deferred_from), load_acquire(&self._frames.cursors.tail.position)
        )
        if start < end:
            with nogil:
                start = write_deferred(&self._frames, start, end)
        # Of two threads that come here at once the slower one may set it back: then
        # some is looked at again.
        store_relaxed(&self._deferred_from, start)
        return start < write

    def close(self):
        """End the use of the ring: every method, of its handles too, raises ValueError
        from now on. A second call does nothing.

        A thread that waits in a push or a pop wakes up and raises it (a push of many of
        which some are in returns how many), and the descriptor of `fileno` becomes
        readable. In a shared ring only this process's part ends: others go on, and get
        what was taken here and not released, which cannot be released any more. An
        operation under way in another thread finishes.
        """
        check_made(self._waiting)
        self._waiting.close(&self._frames.cursors.room)

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
        handle._owner = self  # the participant tidies up through its frames
        handle._participant = self._participant
        handle._waiting = self._waiting
        handle._identity = self._identity
        handle._spares = Spares()
        return handle

    # ---------------------------------------------------------------- push

    def try_push(self, message):
        """Push one message (bytes or str, as UTF-8); False: no room now.

        Raises ValueError for a message larger than `max_message_bytes`, which never
        fits.
        """
        return push_one(self, message)

    def push(self, message, timeout=None):
        """`try_push` that waits for room, up to `timeout` seconds (None: no limit);
        False: there was none.
        """
        return push_waiting(self, [message], timeout) == 1

    def push_many(self, messages, timeout=0.0):
        """Push as many of `messages` as fit, from the front; returns how many.

        messages: a list, tuple or other sequence of bytes and str (which go in as
            UTF-8); a 1-D numpy array of bytes (without the NULs at the end, which are
            padding, as numpy itself reads an item), of void or of records (all bytes of
            each item), of objects or of StringDType; or an Arrow column of binary or
            string, their large forms or their views (anything with `__arrow_c_array__`
            or `__arrow_c_stream__`; a stream is read to its end first). Everything is
            checked before anything is pushed: TypeError for what is no sequence of
            messages (a dict, a table, an iterator, one buffer) and for an item of
            another type, ValueError for a null, a masked item, a stream that fails, and
            a message larger than `max_message_bytes`.
        timeout: seconds to wait for room for all of them; None: no limit. A signal's
            handler runs meanwhile; an exception that it raises leaves the first part of
            the messages pushed. If the ring is closed meanwhile, this returns how many
            went in before; it raises only where that is none, and from the next call
            on.
        """
        return push_waiting(self, messages, timeout)

    def push_gathered(
        self, Gathered gathered not None, start=0, max_messages=None, PushProgress progress=None
    ):
        """Push from message number `start` of `gathered` on; returns (messages pushed,
        first sequence number), and notes them in `progress`.

        For the lanes of `backpressure`, which may need several tries for one call and
        check its messages only once.
        """
        cdef Column column
        cdef uint64_t first_seq = 0, first = up_to(start, "start", gathered.column.count)
        column.starts = gathered.column.starts + first
        column.lengths = gathered.column.lengths + first
        column.count = gathered.column.count - <int64_t>first
        column.count = min(column.count, at_most(max_messages, "max_messages"))
        return push_now(self, &column, &first_seq, progress), first_seq

    def push_lines(self, chunk, final=False):
        """Push the lines of `chunk`, each without its b"\\n"; returns (lines,
        bytes_consumed).

        chunk: anything with a contiguous buffer (bytes, bytearray, memoryview, mmap, a
            numpy array). It is split in C, and no Python object is made for a line.
        final: whether a last piece without b"\\n" is a line as well. If not, it is not
            consumed. What is not consumed, also where the ring became full, goes before
            the next chunk: `chunk[bytes_consumed:]`.

        Raises ValueError, and pushes nothing, if a line is larger than
        `max_message_bytes`.
        """
        lines, consumed, _ = push_chunk(self, chunk, final, None, None)
        return lines, consumed

    def push_lines_seq(self, chunk, final=False, max_lines=None, PushProgress progress=None):
        """`push_lines` of at most `max_lines` lines, which also tells the first one's
        sequence number, and notes them in `progress`.

        Returns (lines, bytes_consumed, first_seq). For the lanes of `backpressure`,
        which number their events.
        """
        return push_chunk(self, chunk, final, max_lines, progress)

    # ---------------------------------------------------------------- pop

    @cython.binding(False)
    def try_pop(self):
        """try_pop() -> bytes | None

        Take the oldest message; None: nothing there. As `pop_many(1)`, without columns.
        """
        return pop_one(self)

    def pop_many(self, max_messages=None, max_bytes=None, timeout=0.0):
        """Take up to `max_messages` messages of up to `max_bytes` bytes in total,
        oldest first; returns Messages.

        None: no limit of that kind. A first message larger than `max_bytes` comes
        alone, so that it cannot block the ring.
        timeout: seconds to wait for the first message; None: no limit. Where there is
            none, the result is empty.
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
        cdef int64_t most = at_most(max_messages, "max_messages")
        return hand_out(self, take_messages(self, most, at_most(max_bytes, "max_bytes")))

    def take_orphaned(self, max_messages=None, max_bytes=None):
        """`take`, but only what a process had taken that died before it released it;
        empty where there is nothing of that kind.

        `take` gives these first as well, but checks for dead processes only now and
        then; this checks at once.
        """
        cdef int64_t most = at_most(max_messages, "max_messages")
        return hand_out(self, take_orphaned(self, most, at_most(max_bytes, "max_bytes")))

    def release(self, Messages messages not None):
        """Free the room of messages that `take` returned, in any order. A second call
        does nothing.
        """
        release_taken(self, messages, True)

    def split(self, Messages messages not None, count):
        """Two parts of what `take` returned: the first `count` messages and the others,
        each to be released by itself.

        The parts share the memory of `messages`, which is released through them only.
        ValueError where it was released, or where a part would be empty. If this
        process dies, only parts that it had not released are delivered again.
        """
        return split_taken(self, messages, count)

    def _memory_view(self):
        """The memory for frames, as it is. For tests."""
        cdef size_t start = <size_t>self._frames.data - <size_t>self._memory.ctypes.data
        return self._memory[start:start + self._frames.capacity * GRANULE]

    def _check(self):
        """Assert every invariant of a ring that is not in use. For tests."""
        check_open(self._waiting)
        cdef int64_t waiting = check_frames(&self._frames)
        assert self._participant is not None or waiting == len(self), (waiting, len(self))

    def __repr__(self):
        if load_relaxed(&self._waiting.closed) == UNMADE:
            return "MessageRing(never made)"
        where = "" if self.path is None else f", path={self.path!r}"
        if self.closed:
            return f"MessageRing(capacity_bytes={self.capacity_bytes}, closed{where})"
        return f"MessageRing(capacity_bytes={self.capacity_bytes}, messages={len(self)}{where})"

    def __reduce__(self):
        raise TypeError("a MessageRing is live shared state and cannot be copied or pickled")


@cython.final
cdef class MessageProducer(MessageRingBase):
    """The pushing side of a MessageRing, for one thread: `MessageRing.producer()` makes
    it. Its methods are the ring's.
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
        lines, consumed, _ = push_chunk(self, chunk, final, None, None)
        return lines, consumed

    def __reduce__(self):
        raise TypeError("a MessageProducer is live shared state and cannot be copied or pickled")


@cython.final
cdef class MessageConsumer(MessageRingBase):
    """The popping side of a MessageRing, for one thread: `MessageRing.consumer()` makes
    it. Its methods are the ring's.
    """

    def __cinit__(self, key=None):
        if key is not OURS:
            raise TypeError("a MessageConsumer is made by MessageRing.consumer()")

    @cython.binding(False)
    def try_pop(self):
        """As MessageRing.try_pop."""
        return pop_one(self)

    def pop_many(self, max_messages=None, max_bytes=None, timeout=0.0):
        """As MessageRing.pop_many."""
        return pop_some(self, max_messages, max_bytes, timeout)

    def fileno(self):
        """As MessageRing.fileno."""
        return self._waiting.fileno()

    def take(self, max_messages=None, max_bytes=None):
        """As MessageRing.take."""
        cdef int64_t most = at_most(max_messages, "max_messages")
        return hand_out(self, take_messages(self, most, at_most(max_bytes, "max_bytes")))

    def release(self, Messages messages not None):
        """As MessageRing.release."""
        release_taken(self, messages, True)

    def split(self, Messages messages not None, count):
        """As MessageRing.split."""
        return split_taken(self, messages, count)

    def __reduce__(self):
        raise TypeError("a MessageConsumer is live shared state and cannot be copied or pickled")
