# cython: freethreading_compatible=True
"""Where the parts of a MessageRing's file lie, and its positions read by somebody who takes no part in it.

All that is done here is to load: memory that can not be written will do. What is loaded may be damaged, and then proves nothing;
but nothing outside of the memory is ever touched.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from ringbuf._core.atomics cimport load_acquire, load_relaxed, word
from ringbuf._messages.positions cimport (
    GRANULE, PLACE_BITS, Cursors, Frames, FrameView, nearest32, peek_frame, place_of,
)
from ringbuf._shared.op_slots cimport SEATS as _SEATS
from ringbuf._shared.op_slots cimport Desk

import numpy as np

SEATS = _SEATS

cdef enum:
    # Beside those who work on the ring a look may not fit together; again and again it can hardly be.
    LOOKS = 1000

cdef size_t PAGE = 4096


cdef inline size_t pages(size_t size) noexcept:
    return (size + PAGE - 1) & ~(PAGE - 1)


def layout(uint64_t granules):
    """Where in the body the positions, the index and the data of so many granules begin, and the body ends: bytes."""
    cdef size_t cursors = pages(sizeof(Desk)), index = cursors + pages(sizeof(Cursors)), data = index + pages(granules * 8)
    return cursors, index, data, data + granules * GRANULE


def read_positions(memory, uint64_t granules):
    """Of a ring of so many granules in this body: its tail as an offset in its data, the bytes in use, and the numbers of the
    first message that is not freed, of the first that is not taken, and of the next one to come. None: they make no sense.
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
    cdef uint64_t tail, read, write, position, at, used, next_seq, acked, taken
    for _ in range(LOOKS):
        # In this order: each is, when it is loaded, no less than the one before was.
        tail = load_acquire(&frames.cursors.tail)
        read = load_acquire(&frames.cursors.read)
        write = load_acquire(&frames.cursors.write)
        position = tail >> PLACE_BITS
        at = nearest32(read >> 32, position)
        used = nearest32(write >> 32, position) - position
        next_seq = nearest32(<uint64_t><uint32_t>write, load_relaxed(&frames.cursors.sequence))
        acked = number_at(&frames, position, tail & ((1 << PLACE_BITS) - 1), next_seq)
        taken = number_at(&frames, at, place_of(read), next_seq)
        if position < granules or at - position > used or used > granules:
            continue
        if <int64_t>(taken - acked) < 0 or <int64_t>(next_seq - taken) < 0:
            continue
        # What lies between tail and write was not used anew while nobody has moved them.
        if load_acquire(&frames.cursors.tail) == tail and load_acquire(&frames.cursors.read) == read:
            return (position & (granules - 1)) * GRANULE, used * GRANULE, acked, taken, next_seq
    return None


cdef uint64_t number_at(Frames* f, uint64_t position, uint64_t place, uint64_t next_seq) noexcept:
    """The number of the message at that place, or behind it; where nothing is published there, the next one to come."""
    cdef FrameView view
    cdef uint64_t passed = 0
    while passed <= f.capacity and peek_frame(f, position, &view):
        if view.frame.count > 0:
            return view.frame.first_seq + place
        position += view.granules
        passed += view.granules
    return next_seq
