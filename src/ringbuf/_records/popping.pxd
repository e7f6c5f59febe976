"""Pops from a RingBuffer: one record, and arrays of them; with their waits for records.
"""

from cpython.buffer cimport (
    PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer,
)
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ringbuf._core.atomics cimport load_relaxed
from ringbuf._core.counts cimport at_most
from ringbuf._core.eventcount cimport EventCount, before_sleep, wanted
from ringbuf._core.gil cimport HAS_GIL
from ringbuf._core.nogil cimport NOGIL_BYTES
from ringbuf._core.pinning cimport pins
from ringbuf._core.timing cimport steady_ns
from ringbuf._records.arrays cimport checked_out, new_array
from ringbuf._records.base cimport MAX_CAPACITY, RecordRingBase
from ringbuf._records.copies cimport copy_out
from ringbuf._records.numbers cimport BY_NUMPY, QUICK_ROW, from_bits, from_quick, get_bits
from ringbuf._records.positions cimport (
    Runs, find_one, give_back, pass_one, release, rewind, take,
)
from ringbuf._records.rows cimport memory_of
from ringbuf._records.shared_positions cimport shared_release
from ringbuf._shared.op_slots cimport OpSlot
from ringbuf._shared.waiting cimport check_open, deadline_of, seconds_of


cdef inline object pop_one(RecordRingBase ring):
    cdef uint64_t position, known
    cdef EventCount* room = &ring._runs.cursors.room
    if ring._quick > QUICK_ROW and find_one(&ring._runs, &position, &known):
        # Made first: if memory runs out, the record is still there.
        record = from_quick(
            ring._quick, (<uint64_t*>ring._runs.data)[position & ring._runs.mask], ring._spares
        )
        pass_one(&ring._runs, position, known)
        if wanted(room):
            ring._waiting.call(room)
        return record
    return pop_any(ring)


cdef inline object pop_any(RecordRingBase ring):
    if ring._quick == QUICK_ROW:
        record = pop_quick_row(ring)
        if record is not None:
            return record
    if ring._kind == BY_NUMPY and ring._rows is None:
        array = pop_some(ring, 1, None, 0)
        if len(array) == 0:
            return None
        return array.item() if ring.dtype.kind in "biufc" else array[0]
    record = pop_object(ring)
    if record is None:
        if not load_relaxed(&ring._waiting.listening):
            return None
        ring._waiting.listen()
        record = pop_object(ring)
        if record is None:
            return None
        ring._waiting.hear()
    if wanted(&ring._runs.cursors.room):
        ring._waiting.call(&ring._runs.cursors.room)
    return record


cdef inline object pop_object(RecordRingBase ring):
    """Take a record that needs no array; None: nothing there."""
    return pop_word(ring) if ring._rows is None else pop_row(ring)


cdef inline object pop_quick_row(RecordRingBase ring):
    """Take an np.void in one step; None: that cannot be."""
    cdef uint64_t position, known, itemsize = ring._runs.itemsize
    cdef unsigned char* target
    if not find_one(&ring._runs, &position, &known):
        return None
    row = ring._rows.new_row()
    target = memory_of(row)
    # Making it may have run other code, which popped or closed.
    if ring._quick != QUICK_ROW or not find_one(&ring._runs, &position, &known):
        ring._rows.keep(row)
        return None
    memcpy(target, ring._runs.data + (position & ring._runs.mask) * itemsize, itemsize)
    pass_one(&ring._runs, position, known)
    rewind(&ring._runs)
    if wanted(&ring._runs.cursors.room):
        ring._waiting.call(&ring._runs.cursors.room)
    return row


cdef inline object pop_row(RecordRingBase ring):
    """Take an np.void; None: nothing there."""
    cdef int64_t number
    cdef uint64_t done
    cdef OpSlot* slot
    # Made before anything is taken: if memory runs out, all is still there.
    row = ring._rows.new_row()
    cdef unsigned char* target = memory_of(row)
    if ring._shared is None:
        check_open(ring._waiting)
        done = pop_bytes(&ring._runs, target, 1)
    else:
        number = ring._shared.begin(&slot)
        try:
            done = pop_shared(ring, slot, target, 1)
        finally:
            ring._shared.end(number)
    if done == 1:
        return row
    ring._rows.keep(row)
    return None


cdef inline object pop_word(RecordRingBase ring):
    """Take a record that is a plain number; None: nothing there. If there is no memory
    for the object, the record is given back.
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
    return from_bits(
        ring._kind, itemsize,
        get_bits(ring._runs.data + (position & ring._runs.mask) * itemsize, itemsize)
    )


cdef inline object pop_waiting(RecordRingBase ring, object timeout):
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


cdef inline object pop_some(RecordRingBase ring, object max_items, object out, object timeout):
    cdef double seconds = seconds_of(timeout)
    cdef uint64_t most = min(<uint64_t>at_most(max_items, "max_items"), MAX_CAPACITY), done
    cdef int64_t deadline
    cdef uint32_t seen
    check_open(ring._waiting)
    if out is not None:
        out = checked_out(ring, out)
        if out.size == 0:
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


cdef inline object pop_array(RecordRingBase ring, uint64_t most, object array, uint64_t* done):
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
        # For one at least: only the tags tell that there is nothing.
        array = new_array(ring, min(most, max(<uint64_t>len(ring), <uint64_t>1)))
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


cdef inline uint64_t pop_bytes(Runs* r, unsigned char* target, uint64_t most) noexcept:
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


cdef inline uint64_t pop_shared(
    RecordRingBase ring, OpSlot* slot, unsigned char* target, uint64_t most
) except? 0xFFFFFFFF:
    cdef uint64_t done = 0, count, position
    while done < most:
        count = ring._shared.take(slot, most - done, False, &position)
        if count == 0:
            break
        copy_out(&ring._runs, position, count, target + done * ring._runs.itemsize)
        shared_release(&ring._runs, slot, position, count)
        done += count
    return done
