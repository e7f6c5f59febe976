"""Pushes into a RingBuffer: one record, and arrays of them; with their waits for room.
"""

from cpython.buffer cimport (
    PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer,
)
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ringbuf._core.eventcount cimport EventCount, before_sleep, wanted
from ringbuf._core.gil cimport HAS_GIL
from ringbuf._core.nogil cimport NOGIL_BYTES
from ringbuf._core.pinning cimport pins
from ringbuf._core.timing cimport steady_ns
from ringbuf._records.arrays cimport record_of, records_of
from ringbuf._records.base cimport RecordRingBase
from ringbuf._records.copies cimport copy_in
from ringbuf._records.numbers cimport BY_NUMPY, QUICK_ROW, put_bits, quick_bits, to_bits
from ringbuf._records.positions cimport PUBLISHED, add_one, claim, publish
from ringbuf._records.rows cimport MAX_TUPLE_BYTES
from ringbuf._records.shared_positions cimport shared_publish
from ringbuf._records.tuples cimport is_plain_tuple
from ringbuf._shared.op_slots cimport OpSlot
from ringbuf._shared.waiting cimport check_open, deadline_of, is_closed, seconds_of


cdef inline bint push_one(RecordRingBase ring, object record) except -1:
    cdef uint64_t bits, position
    cdef EventCount* records = &ring._runs.cursors.records
    # The most common records, without the choices of the general case (measured: 49
    # instructions rather than 103).
    if ring._quick > QUICK_ROW and quick_bits(ring._quick, record, &bits):
        if not add_one(&ring._runs, &position):
            return push_word(ring, bits)
        (<uint64_t*>ring._runs.data)[position & ring._runs.mask] = bits
        publish(&ring._runs, position, 1, PUBLISHED)
        if wanted(records):
            ring._waiting.call(records)
        return True
    return push_any(ring, record)


cdef inline bint push_any(RecordRingBase ring, object record) except -1:
    cdef uint64_t bits
    if ring._rows is not None:
        return push_row(ring, record)
    if ring._kind == BY_NUMPY:
        return push_array(ring, record_of(ring, record), 0) == 1
    to_bits(ring._kind, ring._runs.itemsize, record, &bits)
    return push_word(ring, bits)


cdef inline bint push_word(RecordRingBase ring, uint64_t bits) except -1:
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


cdef inline bint push_row(RecordRingBase ring, object record) except -1:
    """Push a record of raw bytes or with fields: as it is where that can be, and
    through numpy where it is to be converted or refused.
    """
    cdef unsigned char[MAX_TUPLE_BYTES] row
    cdef Py_buffer view
    if is_plain_tuple(record):
        if ring._rows.write(record, row):
            return push_bytes_of_one(ring, row)
    elif ring._rows.lend(record, &view):
        # As in push_array.
        if not HAS_GIL or view.len >= NOGIL_BYTES or ring._shared is not None:
            _held = pins(record)
        try:
            return push_bytes_of_one(ring, <unsigned char*>view.buf)
        finally:
            PyBuffer_Release(&view)
    return push_array(ring, record_of(ring, record), 0) == 1


cdef inline bint push_bytes_of_one(RecordRingBase ring, unsigned char* source) except -1:
    cdef uint64_t position, itemsize = ring._runs.itemsize
    if ring._quick == QUICK_ROW and add_one(&ring._runs, &position):
        memcpy(ring._runs.data + (position & ring._runs.mask) * itemsize, source, itemsize)
        publish(&ring._runs, position, 1, PUBLISHED)
        if wanted(&ring._runs.cursors.records):
            ring._waiting.call(&ring._runs.cursors.records)
        return True
    return push_bytes(ring, source, 1) == 1


cdef inline bint push_waiting(RecordRingBase ring, object record, object timeout) except -1:
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


cdef inline object push_some(RecordRingBase ring, object records, object timeout):
    cdef double seconds = seconds_of(timeout)
    check_open(ring._waiting)
    return push_array(ring, records_of(ring, records), seconds)


cdef inline uint64_t push_array(
    RecordRingBase ring, object array, double seconds
) except? 0xFFFFFFFF:
    """Push what fits of a contiguous array of the ring's dtype, and wait for room for
    all of it; returns how many records went in.
    """
    cdef Py_buffer view
    cdef unsigned char* source
    cdef uint64_t done = 0, total, itemsize = ring._runs.itemsize
    cdef int64_t deadline
    cdef uint32_t seen
    PyObject_GetBuffer(array, &view, PyBUF_SIMPLE)
    # Other threads run meanwhile, or a signal's handler: a shared ring may have to wait
    # for a participant slot.
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
                    source = <unsigned char*>view.buf + done * itemsize
                    done += push_bytes(ring, source, total - done)
                except ValueError:
                    # Closed meanwhile. What is in stays in, and only this call knows
                    # how much.
                    if done == 0 or not is_closed(ring._waiting):
                        raise
                    break
                if done == total or steady_ns() >= deadline:
                    break
                ring._waiting.sleep(&ring._runs.cursors.room, seen, deadline)
    finally:
        PyBuffer_Release(&view)
    return done


cdef inline uint64_t push_bytes(
    RecordRingBase ring, unsigned char* source, uint64_t total
) except? 0xFFFFFFFF:
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


cdef inline uint64_t push_shared(
    RecordRingBase ring, OpSlot* slot, unsigned char* source, uint64_t total
) except? 0xFFFFFFFF:
    cdef uint64_t done = 0, count, position
    while done < total:
        count = ring._shared.claim(slot, &ring._seen, total - done, False, &position)
        if count == 0:
            break
        copy_in(&ring._runs, position, count, source + done * ring._runs.itemsize)
        shared_publish(&ring._runs, slot, position, count, PUBLISHED)
        done += count
    return done
