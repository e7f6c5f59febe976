# cython: freethreading_compatible=True
"""Where the parts of a MessageRing's file lie, and its positions read without taking
part in it.

All that is done here is to load: memory that cannot be written will do. What is loaded
may be damaged, and then proves nothing; but nothing outside of the memory is ever
touched.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memset

from ringbuf._core.atomics cimport word
from ringbuf._core.pages cimport whole_pages
from ringbuf._core.pairs cimport Pair, is_before, load_pair, same
from ringbuf._messages.positions cimport (
    GRANULE, MAX_SEQ, Cursors, Frames, FrameView, frame_at,
)
from ringbuf._shared.op_slots cimport PARTICIPANTS as _PARTICIPANTS
from ringbuf._shared.op_slots cimport ControlBlock, place_in

import numpy as np

PARTICIPANTS = _PARTICIPANTS

cdef enum:
    # While others work on the ring what is loaded may not fit together; this often in a
    # row that is hardly possible.
    LOOKS = 1000


def layout(uint64_t granules):
    """Where in the body of a ring of this capacity the positions, the index and the
    data begin, and where the body ends: bytes.
    """
    cdef size_t cursors = whole_pages(sizeof(ControlBlock))
    cdef size_t index = cursors + whole_pages(sizeof(Cursors))
    cdef size_t data = index + whole_pages(granules * 8)
    return cursors, index, data, data + granules * GRANULE


def read_positions(memory, uint64_t granules):
    """Of a ring of this capacity in this body: its tail as an offset in its data, the
    bytes in use, and the numbers of the first message that is not freed, of the first
    that is not taken, and of the next one to come. None: they make no sense.
    """
    view = np.frombuffer(memory, np.uint8)
    cdef size_t address = view.ctypes.data
    cursors, index, _, end = layout(granules)
    assert len(view) >= end
    cdef Frames frames
    memset(&frames, 0, sizeof(Frames))
    frames.capacity = granules
    frames.cursors = <Cursors*>(address + <size_t>cursors)
    frames.index = <word*>(address + <size_t>index)
    frames.data = <unsigned char*>(address + <size_t>end - granules * GRANULE)
    cdef Pair tail, read, write
    cdef uint64_t used, acked, taken
    for _ in range(LOOKS):
        # In this order: each is, when it is loaded, no less than the one before was.
        tail = load_pair(&frames.cursors.tail)
        read = place_in(load_pair(&frames.cursors.read))
        write = load_pair(&frames.cursors.write)
        used = write.position - tail.position
        acked = number_at(&frames, tail, write)
        taken = number_at(&frames, read, write)
        if tail.position < granules or is_before(read, tail) or read.position > write.position:
            continue
        if used > granules:
            continue
        if not acked <= taken <= write.rest <= MAX_SEQ:
            continue
        # What lies between tail and write was not used anew unless they have moved.
        if (
            same(load_pair(&frames.cursors.tail), tail)
            and same(place_in(load_pair(&frames.cursors.read)), read)
        ):
            offset = (tail.position & (granules - 1)) * GRANULE
            return offset, used * GRANULE, acked, taken, write.rest
    return None


cdef uint64_t number_at(Frames* f, Pair at, Pair write) noexcept:
    """The number of the message at that place, or behind it; where nothing is published
    there, the next one to come.
    """
    cdef FrameView view
    cdef uint64_t position = at.position
    while position < write.position and frame_at(f, position, &view):
        if view.count > 0:
            return view.first_seq + at.rest
        position += view.granules
    return write.rest
