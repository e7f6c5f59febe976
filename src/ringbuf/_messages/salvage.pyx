# cython: freethreading_compatible=True
"""salvage: what a ring's file holds after power loss, or where another kernel wrote it,
as far as checksums prove it whole.

The file is only read. Each of its pages and sectors may hold any state that there ever
was, so

 1. Index and `read` are not used. Frames are found by their checksums, wherever they
    lie, and a frame counts as a whole or not at all. Of two that overlap, the one with
    the higher position was written over the other.
 2. The words about the tail lie in one sector, and are true of some moment: what was
    released then stays released. Each has a mirror; where the two differ, `settled` is
    the lower one and `stored` the higher one, which at worst gives a message again.
 3. The write position is no more than a hint: what is found whole behind it counts, and
    nothing tells whether numbers behind it were given out before the power went.
    `next_seq` is the least that may not have been.
 4. Marks of parts released out of order are not used: they have no checksum. A message
    may come again.
"""

cimport cython
from libc.stdint cimport UINT64_MAX, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ringbuf._core.atomics cimport load_relaxed, store32_relaxed
from ringbuf._core.counts cimport up_to
from ringbuf._messages.frame_checksum cimport (
    KEY_WORDS, STRIPE_BYTES, TRAILER_BYTES, Trailer, best_way, hash_add, hash_end, hash_start,
    header_check, ringbuf_hash,
)
from ringbuf._messages.frames cimport get_bytes
from ringbuf._messages.positions cimport (
    END_MASK, GRANULE, MAX_FRAME_MESSAGES, MAX_SEQ, Cursors, Frame, Frames, frame_granules,
)

import errno
import os

import numpy as np

from ringbuf._messages.columns import Messages
from ringbuf._messages.file import KIND as _KIND
from ringbuf._messages.file import aligned, read_meta
from ringbuf._messages.file_positions import layout
from ringbuf._shared.shared_file import PAGE, open_to_read, read_header

cdef enum:
    CHUNK_BYTES = 2048  # a block of the hash
    MOST_IN_GRANULE = 16  # messages: each takes 4 bytes

# A Frame in memory of our own.
cdef struct Header:
    uint64_t first_seq
    uint32_t count
    uint32_t payload
    uint32_t mark
    uint32_t check


# The file is read, and messages are given back, in pieces of this size.
PIECE_BYTES = 1 << 20
# The key that makes a Salvage: its `__new__` alone would make one of nothing.
cdef object OURS = object()


@cython.final
cdef class Salvage:
    """What `salvage` found. Numbers are sequence numbers.

    path, capacity_bytes: of the ring. checksums: whether it has any; without, nothing
        can be found.
    settled_seq: every message with a lower number had been released.
    stored_seq: those below this of them, because they were on disk
        (MessageRing.note_stored).
    next_seq: the least number that may not have been given out yet. It may have been as
        well.
    ranges: the messages that are whole: a list of (first number, number after the
        last), ascending.
    """

    cdef readonly object path
    cdef readonly uint64_t capacity_bytes
    cdef readonly bint checksums
    cdef readonly uint64_t settled_seq
    cdef readonly uint64_t stored_seq
    cdef readonly uint64_t next_seq
    cdef readonly list ranges
    cdef object _memory      # the memory for frames, as it is in the file
    # Position, first number, count and granules of each whole frame, ascending.
    cdef object _found
    cdef Frames _frames
    cdef object _key

    def __cinit__(self, key=None):
        if key is not OURS:
            raise TypeError("a Salvage is made by ringbuf.salvage()")

    def messages(self, start=0, end=None):
        """The whole messages with numbers from `start` on and below `end`, ascending,
        as Messages of about a megabyte.
        """
        cdef uint64_t stop = UINT64_MAX if end is None else up_to(end, "end", UINT64_MAX)
        return self._pieces(up_to(start, "start", UINT64_MAX), stop)

    def _pieces(self, uint64_t start, uint64_t stop):
        cdef uint64_t first = 0, next = 0, count, skip, many, size
        cdef uint64_t[:, ::1] found = self._found
        cdef Header* frame
        cdef Py_ssize_t i
        parts, size = [], 0
        for i in range(found.shape[0]):
            frame = self._frame_at(found[i, 0])
            count = frame.count
            skip = max(start, frame.first_seq) - frame.first_seq
            many = max(min(stop, frame.first_seq + count), frame.first_seq) - frame.first_seq
            if skip >= many:
                continue
            if parts and (next != frame.first_seq + skip or size >= <uint64_t>PIECE_BYTES):
                yield self._columns(parts, first)
                parts, size = [], 0
            if not parts:
                first = frame.first_seq + skip
            parts.append((i, skip, many))
            size += frame.payload
            next = frame.first_seq + many
        if parts:
            yield self._columns(parts, first)

    cdef Header* _frame_at(self, uint64_t position) noexcept:
        return <Header*>(self._frames.data + (position & (self._frames.capacity - 1)) * GRANULE)

    cdef object _columns(self, list parts, uint64_t first_seq):
        """Messages of these parts of frames: (index, number of the first message,
        number after the last).
        """
        cdef uint64_t[:, ::1] found = self._found
        cdef uint64_t i, skip, many, at, position
        cdef int64_t written = 0, n = 1
        cdef uint32_t start, last
        cdef Header* frame
        count, size = 0, 0
        for i, skip, many in parts:
            count += many - skip
            start = self._end_of(found[i, 0], skip - 1) if skip > 0 else 0
            size += self._end_of(found[i, 0], many - 1) - start
        data, offsets = np.empty(size, np.uint8), np.zeros(count + 1, np.int64)
        cdef unsigned char[::1] bytes_out = data
        cdef int64_t[::1] places = offsets
        for i, skip, many in parts:
            position = found[i, 0]
            frame = self._frame_at(position)
            start = self._end_of(position, skip - 1) if skip > 0 else 0
            last = start
            for at in range(skip, many):
                last = self._end_of(position, at)
                places[n] = written + last - start
                n += 1
            if last > start:
                get_bytes(
                    &self._frames, &bytes_out[written],
                    (position & (self._frames.capacity - 1)) * GRANULE + sizeof(Frame)
                    + (frame.count * sizeof(uint32_t) if frame.count > 1 else 0) + start,
                    last - start,
                )
            written += last - start
        return Messages.from_columns(data, offsets, first_seq)

    cdef uint32_t _end_of(self, uint64_t position, uint64_t i) noexcept:
        """Where message number i of a whole frame ends."""
        cdef Header* frame = self._frame_at(position)
        cdef uint32_t end
        if frame.count == 1:
            return frame.payload
        get_bytes(
            &self._frames, &end,
            (position & (self._frames.capacity - 1)) * GRANULE
            + sizeof(Frame) + i * sizeof(uint32_t),
            sizeof(end),
        )
        return end & END_MASK


def salvage(path):
    """Find what can be proved whole in the file of a MessageRing that no process has
    open; returns a Salvage.

    For a file from before a reboot, or from another host. It is left as it is: a new
    ring, with a `first_seq` far above `next_seq`, is what goes on. Takes as much memory
    as the ring has capacity. Raises OSError, and SharedFileError as attach().
    """
    cdef Salvage found = Salvage.__new__(Salvage, OURS)
    found.path = os.fsdecode(path)
    fd = open_to_read(path)
    try:
        header = read_header(found.path, fd, _KIND)
        granules, found._key = read_meta(found.path, header.meta, header.size - PAGE)
        cursors, _, data, end = layout(granules)
        positions = np.frombuffer(read(fd, PAGE + cursors, sizeof(Cursors)), np.uint8)
        content = bytearray() if found._key is None else read(fd, PAGE + data, end - data)
        found._memory = np.frombuffer(content, np.uint8)
    finally:
        os.close(fd)
    found.capacity_bytes = granules * GRANULE
    found.checksums = found._key is not None
    found._frames.capacity = granules
    found._found = np.empty((0, 4), np.uint64)
    if found._key is not None:
        found._frames.key = <const uint64_t*><size_t>found._key.ctypes.data
        found._frames.way = best_way()
        found._frames.data = <unsigned char*><size_t>found._memory.ctypes.data
        found._found = latest_of(find_whole(found), granules)
    conclude(found, <Cursors*><size_t>positions.ctypes.data)
    return found


cdef object find_whole(Salvage found):
    """Position, first number, count and granules of all frames with right checksums,
    also of those within another one's payload.
    """
    cdef Frames* f = &found._frames
    cdef uint64_t slot = 0, most = 1024, n
    cdef uint64_t[:, ::1] into
    parts = []
    while slot < f.capacity:
        part = np.empty((most, 4), np.uint64)
        into = part
        with nogil:
            n = scan(f, &slot, &into[0, 0], most)
        parts.append(part[:n])
    return np.concatenate(parts)


cdef uint64_t scan(Frames* f, uint64_t* from_slot, uint64_t* into, uint64_t most) noexcept nogil:
    """Go on at a granule until `most` frames are found, or to the end."""
    cdef uint64_t n = 0, slot = from_slot[0], position
    cdef Header* frame
    while slot < f.capacity and n < most:
        if is_whole(f, slot, &position):
            frame = <Header*>(f.data + slot * GRANULE)
            into[4 * n] = position
            into[4 * n + 1] = frame.first_seq
            into[4 * n + 2] = frame.count
            into[4 * n + 3] = frame_granules(f, frame.count, frame.payload)
            n += 1
        slot += 1
    from_slot[0] = slot
    return n


cdef bint is_whole(Frames* f, uint64_t slot, uint64_t* position) noexcept nogil:
    """Whether a frame with right checksums begins at this granule, and its position."""
    cdef Header* frame = <Header*>(f.data + slot * GRANULE)
    cdef uint64_t count = frame.count, granules, last, done = 0, size, word, words, i
    cdef uint32_t end = 0, before = 0
    cdef Trailer trailer
    cdef ringbuf_hash hash
    cdef unsigned char[CHUNK_BYTES] chunk
    cdef uint32_t* ends
    if count == 0 or count > MAX_FRAME_MESSAGES:
        return False
    if frame.check != header_check(f.key, frame.first_seq, frame.count, frame.payload, slot):
        return False
    granules = frame_granules(f, count, frame.payload)
    if granules > f.capacity or frame.first_seq > MAX_SEQ - count:
        return False
    last = (slot + granules - 1) & (f.capacity - 1)
    memcpy(&trailer, f.data + (last + 1) * GRANULE - TRAILER_BYTES, sizeof(trailer))
    if trailer.position & (f.capacity - 1) != slot:
        return False
    words = (sizeof(Frame) // sizeof(uint32_t)) + (count if count > 1 else 0)  # of header and ends
    hash_start(&hash, f.key)
    while done < granules * GRANULE:
        size = min(<uint64_t>CHUNK_BYTES, granules * GRANULE - done)
        get_bytes(f, chunk, slot * GRANULE + done, size)
        if done == 0:
            store32_relaxed(&(<Frame*>chunk).mark, 0)
        ends = <uint32_t*>chunk
        word = done // sizeof(uint32_t)
        for i in range(min(size // sizeof(uint32_t), words - word if words > word else 0)):
            if word + i < sizeof(Frame) // sizeof(uint32_t):
                continue
            ends[i] &= END_MASK
            end = ends[i]
            if end < before:
                return False
            before = end
        done += size
        if done == granules * GRANULE:
            (<Trailer*>(chunk + size - TRAILER_BYTES)).checksum = 0
        hash_add(&hash, f.key, chunk, size, f.way)
    position[0] = trailer.position
    return hash_end(&hash, f.key) == trailer.checksum and (count == 1 or end == frame.payload)


cdef object latest_of(found, uint64_t granules):
    """Of frames that overlap in memory the latest, ascending. Numbers ascend with
    positions, as both are claimed at once.
    """
    cdef uint64_t[:, ::1] frames = np.ascontiguousarray(found[np.argsort(found[:, 0])])
    cdef unsigned char[::1] covered = np.zeros(granules, np.uint8)
    cdef unsigned char[::1] kept = np.zeros(len(found), np.uint8)
    cdef uint64_t lowest = <uint64_t>-1, n
    cdef Py_ssize_t i
    cdef bint free
    for i in range(frames.shape[0] - 1, -1, -1):
        free = frames[i, 1] + frames[i, 2] <= lowest
        for n in range(frames[i, 3]):
            free = free and not covered[(frames[i, 0] + n) & (granules - 1)]
        if not free:
            continue
        kept[i] = True
        lowest = frames[i, 1]
        for n in range(frames[i, 3]):
            covered[(frames[i, 0] + n) & (granules - 1)] = True
    return np.ascontiguousarray(np.asarray(frames)[np.asarray(kept, bool)])


cdef int conclude(Salvage found, Cursors* c) except -1:
    """What the words about the positions say, and the frames."""
    cdef uint64_t sequence = load_relaxed(&c.sequence), mirror = ~load_relaxed(&c.mirror)
    cdef uint64_t stored = load_relaxed(&c.stored), stored_mirror = ~load_relaxed(&c.stored_mirror)
    cdef uint64_t used = load_relaxed(&c.write.position) - load_relaxed(&c.tail.position)
    cdef uint64_t next = load_relaxed(&c.write.rest)
    found.settled_seq = min(sequence, mirror)
    found.stored_seq = max(stored, stored_mirror)
    found.next_seq = found.settled_seq
    # The words may be from different moments, or anything.
    if (
        used <= found._frames.capacity and next >= found.settled_seq
        and next - found.settled_seq <= used * MOST_IN_GRANULE
    ):
        found.next_seq = next
    found.ranges = []
    for first, count in np.asarray(found._found)[:, 1:3].tolist():
        if found.ranges and found.ranges[-1][1] == first:
            found.ranges[-1] = (found.ranges[-1][0], first + count)
        else:
            found.ranges.append((first, first + count))
    if found.ranges:
        found.next_seq = max(found.next_seq, found.ranges[-1][1])
    return 0


cdef object read(fd, uint64_t at, uint64_t size):
    """`size` bytes of a file; zeros where the disk cannot read them."""
    memory = bytearray(size)
    view = memoryview(memory)
    done, step = 0, PIECE_BYTES
    while done < size:
        try:
            count = os.preadv(fd, [view[done:done + step]], at + done)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            if step == PAGE:
                done += PAGE  # a bad place
            step = PAGE
            continue
        if count == 0:
            break  # shorter than its header says
        done += count
        step = PIECE_BYTES
    return memory


def hash_of(data, expanded, int way):
    """The hash of whole stripes with an expanded key; `way`: 0 plainly, 1 with SSE2, 2
    with AVX2, -1 the best here. For tests.
    """
    cdef const unsigned char[::1] stripes = data
    cdef const unsigned char[::1] words = aligned(expanded)
    cdef const uint64_t* key = <const uint64_t*>&words[0]
    cdef ringbuf_hash hash
    assert len(stripes) % STRIPE_BYTES == 0 and len(words) == KEY_WORDS * 8
    if way > best_way():
        raise NotImplementedError(f"way {way} is not there on this machine")
    hash_start(&hash, key)
    if len(stripes):
        hash_add(&hash, key, &stripes[0], len(stripes), way if way >= 0 else best_way())
    return hash_end(&hash, key)
