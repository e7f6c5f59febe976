# cython: freethreading_compatible=True
"""MessageRing: a bounded, lock-free queue of variable-length messages in one block of memory.

Contract. Any number of threads may push and pop, with the GIL or without it. No method blocks: a push puts in as many
messages as fit, from the front, and says how many; a pop gives what is there. Messages of one push keep their order, and
where they fit into one frame (4,096 messages, 256 KiB) no other producer's come between. Only pops allocate (their result);
the ring itself is allocated once. What a push refuses as invalid changes nothing.

Layout. Memory is cut into granules of 64 bytes. One push of many messages makes one frame, so that what a message costs is a
length and a copy, and the positions, the tag and the count of messages still to be released are paid for once a frame:

    frame    Frame header (24 bytes) | ends, uint32 each, left out for a single message | payloads, end to end

A frame starts on a granule and may run over the end of the memory back to its start. Where frames begin is in the index
alone: see _cursor.pxd for positions, ordering and progress.

Numbers. Messages carry sequence numbers from 0 on, in the order in which they were claimed: the line on which a lane of
`backpressure` counts its events.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport INT64_MAX, int64_t, uint32_t, uint64_t
from libc.string cimport memchr, memcpy

from ringbuf._atomics cimport cas_relaxed, fetch_add_relaxed, fetch_sub_total, load_acquire, load_relaxed, store_relaxed, word
from ringbuf._cursor cimport (
    MAX_FRAME_MESSAGES, PLACE_BITS, Cursors, Frame, FrameView, advance_tail, claim, free_granules, nearest32, nearest50,
    peek_frame, publish, rewind,
)
from ringbuf._columns cimport NOGIL_BYTES, Column, Gathered, Messages, Spares, new_messages, text_of

import numpy as np

from ringbuf._columns import MessageTooLarge


cdef extern from *:
    """
    #include <cstddef>
    #include <cstdint>

    /* Newlines in n bytes. Written so that compilers make vector code of the inner loop: a byte wide counter, cleared
       before it can run over. */
    static inline size_t penstock_count_newlines(const char *p, size_t n) {
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
    size_t count_newlines "penstock_count_newlines"(const char* p, size_t n) noexcept nogil


cdef enum:
    GRANULE = 64              # a cache line, so that two producers never write the same one
    MIN_GRANULES = 64         # 4 KiB: one page
    FRAME_BYTES = 256 * 1024  # a frame is closed at this payload: it stays in the second-level cache from scan to copy
    # An empty ring goes back to its start when it has come this far: half of a second-level cache of 2 MiB. Measured in
    # bench/micro: 1.9 times two copies of the same bytes instead of 2.6 for a ring that does not fit the cache.
    REWIND_GRANULES = 16 * 1024  # 1 MiB

# Positions are compared by difference in 32 bits.
cdef uint64_t MAX_GRANULES = <uint64_t>1 << 31
# Lengths and ends are uint32.
cdef uint64_t MAX_MESSAGE = (<uint64_t>1 << 32) - 1


cdef inline uint64_t frame_granules(uint64_t count, uint64_t payload) noexcept nogil:
    return (sizeof(Frame) + (count * sizeof(uint32_t) if count > 1 else 0) + payload + GRANULE - 1) // GRANULE


@cython.final
cdef class MessageRing:
    """A bounded, lock-free queue of variable-length messages; for any number of producer and consumer threads.

    capacity_bytes: the memory for messages. It is rounded up to a power of two, at least 4 KiB; `capacity_bytes` tells the
        true size. A message takes its own length, 4 bytes, and its part of a header for each push.

    >>> ring = MessageRing(1 << 16)
    >>> ring.push_many([b"one", b"two", "three"])
    3
    >>> ring.push_lines(b"four\\nfive\\nsi")
    (2, 10)
    >>> [bytes(m) for m in ring.pop_many(4)]
    [b'one', b'two', b'three', b'four']
    >>> len(ring)
    1
    """

    def __cinit__(self, capacity_bytes):
        if isinstance(capacity_bytes, float) or not hasattr(capacity_bytes, "__index__"):
            raise TypeError(f"capacity_bytes must be an int, not {type(capacity_bytes).__name__}")
        wanted = capacity_bytes.__index__()
        if not 0 < wanted <= MAX_GRANULES * GRANULE:
            raise ValueError(f"capacity_bytes must be from 1 to {MAX_GRANULES * GRANULE:,}, not {wanted:,}")
        cdef uint64_t granules = max(MIN_GRANULES, 1 << (-(-wanted // GRANULE) - 1).bit_length())
        self._granules = granules
        self._spares = Spares()
        # Zeroed memory is not touched until it is used. A granule more, so that the first can start on a cache line.
        self._memory = np.zeros(sizeof(Cursors) + granules * (8 + GRANULE) + GRANULE, dtype=np.uint8)
        cdef size_t address = self._memory.ctypes.data
        address = (address + GRANULE - 1) & ~<size_t>(GRANULE - 1)
        self._cursors = <Cursors*>address
        self._index = <word*>(address + sizeof(Cursors))
        self._data = <unsigned char*>(address + sizeof(Cursors) + granules * 8)
        # The first lap is number 1: the zeroed index holds no tag of it.
        self._start_at(granules, 0)

    def _start_at(self, uint64_t position, uint64_t first_seq):
        """Let a ring that was never used count from there on. For tests of the widths."""
        assert position >= self._granules and len(self) == 0
        store_relaxed(&self._cursors.tail, position)
        store_relaxed(&self._cursors.write, position << 32 | <uint64_t><uint32_t>first_seq)
        store_relaxed(&self._cursors.read, position << PLACE_BITS)
        store_relaxed(&self._cursors.sequence, first_seq)
        store_relaxed(&self._cursors.taken, first_seq)

    # ---------------------------------------------------------------- properties

    @property
    def capacity_bytes(self):
        """Bytes of memory for messages and their headers: a power of two."""
        return self._granules * GRANULE

    @property
    def max_message_bytes(self):
        """The largest message that an empty ring can take."""
        return min(self._granules * GRANULE - sizeof(Frame), MAX_MESSAGE)

    @property
    def used_bytes(self):
        """Bytes that are not free: claimed, waiting, or taken and not yet released."""
        return (self._granules - free_granules(self._cursors, self._granules)) * GRANULE

    @property
    def next_seq(self):
        """The sequence number that the next message will get: how many have been pushed so far."""
        cdef uint64_t write = load_acquire(&self._cursors.write)
        return nearest32(<uint64_t><uint32_t>write, load_relaxed(&self._cursors.sequence))

    def __len__(self):
        """Messages pushed and not yet taken; while others push or pop it is a moment's truth."""
        # `taken` first: what is pushed in between then makes the answer too large and never negative.
        cdef uint64_t taken = load_acquire(&self._cursors.taken)
        return self.next_seq - taken

    # ---------------------------------------------------------------- push

    def try_push(self, message):
        """Push one message (bytes or str, which goes in as UTF-8); False: no room now.

        Raises ValueError for a message larger than `max_message_bytes`, which never fits.
        """
        cdef Column column
        cdef const char* start
        cdef uint32_t length
        cdef uint64_t first_seq
        cdef Py_ssize_t size
        start = text_of(message, &size)
        if <uint64_t>size > self.max_message_bytes:
            raise MessageTooLarge(0, size, self.max_message_bytes)
        length = <uint32_t>size
        column.starts = &start
        column.lengths = &length
        column.count = 1
        return self._push_column(&column, &first_seq) == 1

    def push_many(self, messages):
        """Push as many of `messages` as fit, from the front; returns how many.

        messages: a list, tuple or other sequence of bytes and str (which go in as UTF-8); a 1-D numpy array, each item of
            which is one message of its itemsize in bytes; or an Arrow binary or string array (anything with
            `__arrow_c_array__`). Everything is checked before anything is pushed: TypeError for an item of another
            type, ValueError for one larger than `max_message_bytes`.
        """
        cdef Gathered gathered = Gathered(messages, self.max_message_bytes)
        cdef uint64_t first_seq
        return self._push_column(&gathered.column, &first_seq)

    def push_gathered(self, Gathered gathered not None, int64_t start=0, max_messages=None):
        """Push from message number `start` of `gathered` on; returns (messages pushed, first sequence number).

        For the lanes of `backpressure`, which may need several tries for one call and check its messages only once.
        """
        cdef Column column
        cdef uint64_t first_seq = 0
        if not 0 <= start <= gathered.column.count:
            raise ValueError(f"start must be from 0 to {gathered.column.count}, not {start}")
        column.starts = gathered.column.starts + start
        column.lengths = gathered.column.lengths + start
        column.count = gathered.column.count - start
        if max_messages is not None:
            column.count = min(column.count, <int64_t>max_messages)
        return self._push_column(&column, &first_seq), first_seq

    def push_lines(self, chunk, final=False):
        """Push the lines of `chunk`, each without its b"\\n"; returns (lines, bytes_consumed).

        chunk: anything with a contiguous buffer (bytes, bytearray, memoryview, mmap, a numpy array). It is split in C, and no
            Python object is made for a line.
        final: whether a last piece without b"\\n" is a line as well. If not, it is left, and `chunk[bytes_consumed:]` is what to
            put before the next chunk; it is the same where the ring became full.

        Raises ValueError, and pushes nothing, if a line is larger than `max_message_bytes`.
        """
        lines, consumed, _ = self.push_lines_seq(chunk, final, None)
        return lines, consumed

    def push_lines_seq(self, chunk, final=False, max_lines=None):
        """`push_lines` of at most `max_lines` lines, which also tells the first one's sequence number.

        Returns (lines, bytes_consumed, first_seq). For the lanes of `backpressure`, which number their events.
        """
        cdef Py_buffer view
        cdef size_t consumed = 0
        cdef uint64_t first_seq = 0, limit = self.max_message_bytes
        cdef int64_t lines, most = INT64_MAX if max_lines is None else max_lines
        cdef bint last = final
        PyObject_GetBuffer(chunk, &view, PyBUF_SIMPLE)
        try:
            if <uint64_t>view.len > limit:
                check_lines(<const char*>view.buf, view.len, last, limit)
            if view.len >= NOGIL_BYTES:
                with nogil:
                    lines = self._push_lines(<const char*>view.buf, view.len, last, most, &consumed, &first_seq)
            else:
                lines = self._push_lines(<const char*>view.buf, view.len, last, most, &consumed, &first_seq)
        finally:
            PyBuffer_Release(&view)
        return lines, consumed, first_seq

    cdef int64_t _push_column(self, Column* column, uint64_t* first_seq) noexcept nogil:
        """Push as many messages of the column as fit; returns how many."""
        cdef int64_t done = 0, end
        cdef uint64_t payload, free, position, sequence, granules
        while done < column.count:
            # As many as one frame takes …
            payload = column.lengths[done]
            end = done + 1
            while end < column.count and end - done < MAX_FRAME_MESSAGES and payload + column.lengths[end] <= FRAME_BYTES:
                payload += column.lengths[end]
                end += 1
            # … or, near a full ring, as many as there is room for.
            while True:
                granules = frame_granules(end - done, payload)
                if claim(self._cursors, self._granules, granules, end - done, &position, &sequence):
                    break
                free = free_granules(self._cursors, self._granules)
                while end > done and frame_granules(end - done, payload) > free:
                    end -= 1
                    payload -= column.lengths[end]
                if end == done:
                    return done
            if done == 0:
                first_seq[0] = sequence
            self._fill(column, done, end - done, payload, position, sequence)
            publish(self._index, self._granules, position, granules)
            done = end
        return done

    cdef int64_t _push_lines(
        self, const char* chunk, size_t size, bint final, int64_t max_lines, size_t* consumed, uint64_t* first_seq
    ) noexcept nogil:
        """Push as many lines of the chunk as fit; returns how many, and in `consumed` the bytes that they took up."""
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
            # One frame's worth at a time, so that its bytes are still in the cache when they are copied.
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
            pushed = self._push_column(&column, &sequence)
            if pushed > 0:
                if done == 0:
                    first_seq[0] = sequence
                done += pushed
                # A final piece has no newline that could be consumed.
                consumed[0] = min(<size_t>(starts[pushed - 1] - chunk) + lengths[pushed - 1] + 1, size)
            if pushed < column.count:
                break
        return done

    cdef void _fill(
        self, Column* column, int64_t first, int64_t count, uint64_t payload, uint64_t position, uint64_t sequence
    ) noexcept nogil:
        """Write a claimed frame."""
        cdef uint64_t offset = (position & (self._granules - 1)) * GRANULE
        cdef uint64_t size = self._granules * GRANULE
        cdef Frame* frame = <Frame*>(self._data + offset)
        cdef uint32_t* lengths = column.lengths + first
        cdef const char** starts = column.starts + first
        cdef uint32_t* ends
        cdef unsigned char* target
        cdef uint32_t end = 0
        cdef int64_t i
        frame.first_seq = sequence
        frame.count = <uint32_t>count
        frame.payload = <uint32_t>payload
        store_relaxed(&frame.remaining, count)
        if offset + frame_granules(count, payload) * GRANULE <= size:
            target = self._data + offset + sizeof(Frame)
            if count > 1:
                ends = <uint32_t*>target
                target += count * sizeof(uint32_t)
                for i in range(count):
                    memcpy(target + end, starts[i], lengths[i])
                    end += lengths[i]
                    ends[i] = end
            else:
                memcpy(target, starts[0], lengths[0])
            return
        # The frame runs over the end of the memory.
        offset += sizeof(Frame)
        if count > 1:
            for i in range(count):
                end += lengths[i]
                self._put(offset, &end, sizeof(uint32_t))
                offset += sizeof(uint32_t)
        for i in range(count):
            self._put(offset, starts[i], lengths[i])
            offset += lengths[i]

    cdef void _put(self, uint64_t offset, const void* source, size_t size) noexcept nogil:
        """Copy into the memory at `offset`, going on at the start where the end is reached."""
        cdef uint64_t whole = self._granules * GRANULE
        offset &= whole - 1
        cdef size_t first = min(size, <size_t>(whole - offset))
        memcpy(self._data + offset, source, first)
        memcpy(self._data, <const char*>source + first, size - first)

    cdef void _get(self, void* target, uint64_t offset, size_t size) noexcept nogil:
        """Copy out of the memory at `offset`, going on at the start where the end is reached."""
        cdef uint64_t whole = self._granules * GRANULE
        offset &= whole - 1
        cdef size_t first = min(size, <size_t>(whole - offset))
        memcpy(target, self._data + offset, first)
        memcpy(<char*>target + first, self._data, size - first)

    # ---------------------------------------------------------------- pop

    def pop_many(self, max_messages=None, max_bytes=None):
        """Take up to `max_messages` messages of up to `max_bytes` bytes in total, oldest first; returns Messages.

        None: no limit of that kind. A first message larger than `max_bytes` comes alone, so that it can not block the ring.
        Where there is nothing, the result is empty.
        """
        cdef Messages messages = self.take(max_messages, max_bytes)
        self.release(messages)
        return messages

    def take(self, max_messages=None, max_bytes=None):
        """`pop_many`, but the room stays occupied until `release` is called with the result.

        For consumers that must be able to fail: what has been taken and not released is still in the ring.
        """
        cdef int64_t most = limit(max_messages, "max_messages"), most_bytes = limit(max_bytes, "max_bytes")
        cdef Take take
        cdef uint64_t read
        cdef Messages messages
        while self._peek(most, most_bytes, &take, &read):
            # Allocated before the exchange: if memory runs out, nothing has been taken.
            messages = new_messages(take.count, take.bytes, self._spares)
            if not cas_relaxed(&self._cursors.read, &read, take.next):
                continue
            fetch_add_relaxed(&self._cursors.taken, take.count)
            if take.bytes >= NOGIL_BYTES:
                with nogil:
                    self._copy_out(&take, messages._data, messages._offsets)
            else:
                self._copy_out(&take, messages._data, messages._offsets)
            messages.first_seq = take.first_seq
            messages._position = take.position
            messages._place = take.place
            messages._held = True
            return messages
        return new_messages(0, 0, self._spares)

    def release(self, Messages messages not None):
        """Free the room of messages that `take` returned; any order will do. A second call does nothing."""
        if not messages._held:
            return
        messages._held = False
        self._release(messages._position, messages._place, messages._count)

    cdef bint _peek(self, int64_t max_messages, int64_t max_bytes, Take* take, uint64_t* read) noexcept nogil:
        """Find what a consumer with these limits may take next, without taking it; False: nothing.

        Another consumer may take it at the same time, and producers may then write over what is read here. So nothing
        read is trusted further than the memory reaches, and all of it is void unless the exchange of `read` succeeds.
        """
        cdef FrameView view
        cdef uint64_t tail, position, place, count, many, bytes
        cdef uint32_t before
        cdef int64_t low, high, middle
        while True:
            read[0] = load_acquire(&self._cursors.read)
            tail = load_acquire(&self._cursors.tail)
            position = nearest50(read[0] >> PLACE_BITS, tail)
            place = read[0] & ((1 << PLACE_BITS) - 1)
            take.count = 0
            take.bytes = 0
            while <int64_t>take.count < max_messages and peek_frame(
                self._index, self._data, self._granules, position, &view
            ):
                count = view.frame.count
                if count == 0:  # it only pads
                    position += view.granules
                    continue
                if count > MAX_FRAME_MESSAGES or place >= count:
                    break  # written over: the exchange will fail
                before = self._end(&view, place - 1) if place > 0 else 0
                many = min(count - place, <uint64_t>max_messages - take.count)
                bytes = self._end(&view, place + many - 1) - before
                if <int64_t>(take.bytes + bytes) > max_bytes:
                    # The most messages that fit: their ends ascend.
                    low, high = 0, many
                    while low < high:
                        middle = (low + high + 1) // 2
                        if <int64_t>(take.bytes + self._end(&view, place + middle - 1) - before) <= max_bytes:
                            low = middle
                        else:
                            high = middle - 1
                    many = low if low > 0 or take.count > 0 else 1
                    if many == 0:
                        break
                    bytes = self._end(&view, place + many - 1) - before
                if take.count == 0:
                    take.position = position
                    take.place = place
                    take.first_seq = view.frame.first_seq + place
                take.count += many
                take.bytes += bytes
                place += many
                if place < count:
                    break
                position += view.granules
                place = 0
            if take.count > 0:
                take.next = position << PLACE_BITS | place
                # A garbled frame could make up any size: see that it could be real before anyone allocates it.
                if take.bytes <= self._granules * GRANULE:
                    return True
            # Nothing there, unless another consumer was faster and all that was read above is void.
            if load_acquire(&self._cursors.read) == read[0]:
                return False

    cdef uint32_t _end(self, FrameView* view, uint64_t i) noexcept nogil:
        """Where message number i of the frame ends, counted from the start of its payloads."""
        cdef uint32_t end
        if view.frame.count == 1:
            return view.frame.payload
        self._get(&end, (view.position & (self._granules - 1)) * GRANULE + sizeof(Frame) + i * sizeof(uint32_t), sizeof(end))
        return end

    cdef void _copy_out(self, Take* take, unsigned char* data, int64_t* offsets) noexcept nogil:
        """Copy what was taken, and was made ours by the exchange of `read`, into columns."""
        cdef FrameView view
        cdef uint64_t position = take.position, place = take.place, left = take.count, many, offset
        cdef uint64_t whole = self._granules * GRANULE
        cdef int64_t written = 0, shift
        cdef uint32_t first, last
        cdef uint32_t* ends
        cdef uint64_t i
        offsets[0] = 0
        while left > 0:
            peek_frame(self._index, self._data, self._granules, position, &view)
            if view.frame.count == 0:  # it only pads
                position += view.granules
                continue
            many = min(view.frame.count - place, left)
            first = self._end(&view, place - 1) if place > 0 else 0
            last = self._end(&view, place + many - 1)
            offset = (position & (self._granules - 1)) * GRANULE + sizeof(Frame)
            shift = written - first
            if view.frame.count == 1:
                offsets[1] = shift + last
            else:
                if offset + view.frame.count * sizeof(uint32_t) <= whole:
                    ends = <uint32_t*>(self._data + offset) + place
                    for i in range(many):
                        offsets[i + 1] = shift + ends[i]
                else:
                    for i in range(many):
                        offsets[i + 1] = shift + self._end(&view, place + i)
                offset += view.frame.count * sizeof(uint32_t)
            self._get(data + written, offset + first, last - first)
            written += last - first
            offsets += many
            left -= many
            position += view.granules
            place = 0

    cdef void _release(self, uint64_t position, uint64_t place, uint64_t count) noexcept nogil:
        """Count down the frames that hold these messages, and free what nobody holds any more."""
        cdef FrameView view
        cdef uint64_t many
        while count > 0:
            # Our messages are in it, so it can neither be freed nor written over before the count-down.
            peek_frame(self._index, self._data, self._granules, position, &view)
            position += view.granules
            if view.frame.count == 0:  # it only pads
                continue
            many = min(view.frame.count - place, count)
            place = 0
            count -= many
            fetch_sub_total(&view.frame.remaining, many)  # R
        advance_tail(self._cursors, self._index, self._data, self._granules)
        rewind(self._cursors, self._index, self._data, self._granules, REWIND_GRANULES)

    def _memory_view(self):
        """The memory for frames, as it is. For tests."""
        cdef size_t start = <size_t>self._data - <size_t>self._memory.ctypes.data
        return self._memory[start:start + self._granules * GRANULE]

    def _check(self):
        """Assert every invariant of a ring that nobody uses at the moment. For tests."""
        cdef FrameView view
        cdef uint64_t tail = load_acquire(&self._cursors.tail), position = tail, messages = 0, waiting = 0
        cdef uint64_t read = load_acquire(&self._cursors.read)
        cdef uint64_t write = load_acquire(&self._cursors.write)
        cdef uint64_t end = nearest32(write >> 32, tail), at = nearest50(read >> PLACE_BITS, tail)
        cdef uint64_t sequence = 0
        assert tail <= at <= end <= tail + self._granules, (tail, at, end)
        while position != end:
            assert peek_frame(self._index, self._data, self._granules, position, &view), "a claimed frame is not published"
            if view.frame.count == 0:
                position += view.granules
                continue
            assert view.frame.count <= MAX_FRAME_MESSAGES
            assert view.granules == frame_granules(view.frame.count, view.frame.payload)
            assert load_relaxed(&view.frame.remaining) <= view.frame.count
            assert messages == 0 or view.frame.first_seq == sequence, "sequence numbers have a gap"
            assert self._end(&view, view.frame.count - 1) == view.frame.payload
            if position >= at:
                assert load_relaxed(&view.frame.remaining) == view.frame.count or position == at
                waiting += view.frame.count - (read & ((1 << PLACE_BITS) - 1) if position == at else 0)
            assert position != tail or load_relaxed(&view.frame.remaining) > 0, "a frame that nobody needs is not freed"
            sequence = view.frame.first_seq + view.frame.count
            messages += view.frame.count
            position += view.granules
        assert messages == 0 or sequence == self.next_seq
        assert waiting == len(self), (waiting, len(self))

    def __repr__(self):
        return f"MessageRing(capacity_bytes={self.capacity_bytes}, messages={len(self)})"

    def __reduce__(self):
        raise TypeError("a MessageRing is live shared state and can not be copied or pickled")


cdef int64_t limit(object most, str name) except -1:
    if most is None:
        return INT64_MAX
    value = most.__index__()
    if value < 1:
        raise ValueError(f"{name} must be at least 1, or None for no limit, not {value}")
    return min(value, INT64_MAX)


cdef int check_lines(const char* chunk, size_t size, bint final, uint64_t limit) except -1:
    """Raise if a line of the chunk is larger than `limit`. Only a chunk that is larger itself can have one."""
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
    """How many lines `push_lines(chunk, final)` would push, given room. Raises MessageTooLarge for one over `limit` bytes."""
    cdef Py_buffer view
    cdef size_t lines
    cdef bint last = final
    PyObject_GetBuffer(chunk, &view, PyBUF_SIMPLE)
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
